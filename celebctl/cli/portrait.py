"""portrait: a photo of somebody who does not exist, for those who have no photo at hand."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import Desk

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LARGEST = 2048  # pixels


def portrait(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(help="Where to write it: .png, .jpg or .webp.")] = Path("face.png"),
    seed: options.Seed = None,
    size: Annotated[int, typer.Option("--size", help="Side in pixels.")] = 512,
    force: options.Force = False,
) -> None:
    """Draw a fresh person of mini's world, to try things with."""
    from celebctl.library import Library
    from celebctl_runtime.errors import UsageProblem
    from celebctl_runtime.files import refuse_existing

    from .naming import suggested_name

    desk = ctx.ensure_object(Desk)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UsageProblem(f"{path} is no picture file celebctl writes", f"end it in {', '.join(FORMATS)}")
    if not 64 <= size <= LARGEST:
        raise UsageProblem(f"--size {size} is out of range", f"use 64 to {LARGEST}")
    refuse_existing(path, force)
    chosen = _draw(path, kind, seed, size)
    desk.tell(f"drew somebody new (seed {chosen})")
    desk.give([str(path)], {"path": str(path), "seed": chosen, "size": size})
    desk.next(f"celebctl learn {shlex.quote(str(path))} --name {suggested_name(str(path), Library().names())}")


def _draw(path: Path, kind: str, seed: int | None, size: int) -> int:
    """Draw, write, and return the seed."""
    from celebctl_runtime.files import atomic_write

    from .extras import needs
    from .gen import fresh_seed

    chosen = fresh_seed() if seed is None else seed
    with needs("learn", "drawing a portrait"):
        from celebctl_models.mini.world import draw_portrait

        picture = draw_portrait(seed=chosen, size=size)
    lossy = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    atomic_write(path, lambda place: picture.save(place, kind, **lossy))
    return chosen
