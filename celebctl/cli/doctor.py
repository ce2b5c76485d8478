"""doctor: checks of this installation, with the command that fixes each problem."""

from typing import Annotated

import typer

from .console import CliConsole
from .error_handling import ENVIRONMENT

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def doctor(
    ctx: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="Also import torch and TensorRT (seconds).")] = False,
) -> None:
    """Check this installation. The exit code is 6 when something is broken."""
    from celebctl.doctor import render, run_checks

    console = ctx.ensure_object(CliConsole)
    found = run_checks(deep)
    broken = any(check.status == "fail" for check in found)

    def show() -> None:
        for check in found:
            for row in render([check]):
                console.info(row, STYLES[check.status])

    checks = [{"status": one.status, "name": one.name, "detail": one.detail, "fix": one.fix} for one in found]
    console.output_table(render(found), {"ok": not broken, "checks": checks}, show)
    console.info("problems found: see above" if broken else "no problems found")
    if broken:
        raise typer.Exit(ENVIRONMENT)
