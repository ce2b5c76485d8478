"""doctor: what this machine has and lacks, with the command that mends it."""

from typing import TYPE_CHECKING, Annotated

import typer

from .console import Desk
from .problems import ENVIRONMENT

if TYPE_CHECKING:
    from celebctl.doctor import Line

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def doctor(
    ctx: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="Also import torch and TensorRT (seconds).")] = False,
) -> None:
    """Check this installation, one line each. Ends with 6 when something is broken."""
    from celebctl.doctor import examine, render

    desk = ctx.ensure_object(Desk)
    lines = examine(deep)
    broken = [line for line in lines if line.status == "fail"]
    checks = [{"status": line.status, "what": line.what, "detail": line.detail, "mend": line.mend} for line in lines]
    desk.give_list(render(lines), {"ok": not broken, "checks": checks}, lambda: _show(desk, lines))
    desk.tell("something is broken: see above" if broken else "nothing is broken")
    if broken:
        raise typer.Exit(ENVIRONMENT)


def _show(desk: Desk, lines: "list[Line]") -> None:
    from celebctl.doctor import render

    for line in lines:
        for row in render([line]):
            desk.tell(row, STYLES[line.status])
