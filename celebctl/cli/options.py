"""Options that several commands share, said once."""

from pathlib import Path
from typing import Annotated

import typer

# Kept as text: importing the runtime's own tuple would import numpy for every --help. A test holds them equal.
SAMPLERS = "ddim, euler, euler_a, dpmpp_2m, dpmpp_2m_karras, lcm"

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Known name, diffusers folder, checkpoint file or hub id.", show_default="mini"),
]
BundleDir = Annotated[
    Path | None, typer.Option("--bundle", help="Use this exported bundle instead of the model's own.", metavar="DIR")
]
Seed = Annotated[int | None, typer.Option("--seed", "-s", help="Same seed, same result. Drawn when not given.")]
Steps = Annotated[int | None, typer.Option("--steps", help="How many steps. The model or preset knows a good number.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace what is there already.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or trt.", show_default="auto")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads.", show_default="one per physical core")]
Likeness = Annotated[
    str | None,
    typer.Option(
        "--likeness",
        help="From 0, the average celebrity, to 1, as learned. For each: alice=0.8,bob=1.",
        metavar="SHARE",
        show_default="1",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="Who stands where: left:alice,right:bob (also top, bottom), or boxes from 0 to 1: alice@0,0,0.5,1"
        " (left, top, right, bottom edge); auto: two people left and right as the prompt names them; none.",
        metavar="PLACES",
        show_default="the model's: none for mini, else auto",
    ),
]
FaceModels = Annotated[
    str | None, typer.Option("--face-models", help="buffalo_l, antelopev2, or a folder.", metavar="PACK|DIR")
]
LowMemory = Annotated[bool, typer.Option("--low-memory", help="Slower, in a third of the memory: for large models.")]
ForModel = Annotated[str | None, typer.Option("--shelf", help="Only people of this model, as `celebctl list` shows it.")]
Person = Annotated[str, typer.Argument(help="Their name.", metavar="NAME")]
People = Annotated[list[str], typer.Argument(help="One or more names.", metavar="NAME...")]


def parse_size(text: str | None) -> tuple[int, int]:
    """ "WxH" in pixels to (width, height), "N" to a square; (0, 0) for None. Raises UsageError."""
    if text is None:
        return 0, 0
    width, cross, height = text.lower().replace("×", "x").partition("x")
    height = height if cross else width
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        from celebctl_runtime.errors import UsageError

        raise UsageError(
            f"--size {text!r} is no size", "write width x height, as --size 512x768, or one side of a square"
        )
    return int(width), int(height)
