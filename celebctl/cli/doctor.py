"""doctor: what this machine has and lacks, with the command that mends it."""

from typing import TYPE_CHECKING, Annotated

import typer

from .console import CliConsole
from .error_handling import ENVIRONMENT

if TYPE_CHECKING:
    from celebctl.doctor import Check

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def doctor(
    ctx: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="Also import torch and TensorRT (seconds).")] = False,
) -> None:
    """Check this installation, one line each. Ends with 6 when something is broken."""
    from celebctl.doctor import render, run_checks

    console = ctx.ensure_object(CliConsole)
    lines = run_checks(deep)
    broken = [line for line in lines if line.status == "fail"]
    checks = [{"status": line.status, "what": line.name, "detail": line.detail, "mend": line.fix} for line in lines]
    console.output_table(render(lines), {"ok": not broken, "checks": checks}, lambda: _show(console, lines))
    console.info("something is broken: see above" if broken else "nothing is broken")
    if broken:
        raise typer.Exit(ENVIRONMENT)


def _show(console: CliConsole, lines: "list[Check]") -> None:
    from celebctl.doctor import render

    for line in lines:
        for row in render([line]):
            console.info(row, STYLES[line.status])
