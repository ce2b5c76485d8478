"""portrait: a photo of somebody who does not exist, for those who have no photo at hand."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import CliConsole

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LARGEST = 2048  # pixels


def sample_photo(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(help="Where to write it: .png, .jpg or .webp.")] = Path("face.png"),
    seed: options.Seed = None,
    size: Annotated[int, typer.Option("--size", help="Side in pixels.")] = 512,
    force: options.Force = False,
) -> None:
    """Draw a fresh person of mini's world, to try things with."""
    from celebctl.library import Library
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    from .naming import suggested_name

    console = ctx.ensure_object(CliConsole)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path} is no picture file celebctl writes", f"end it in {', '.join(FORMATS)}")
    if not 64 <= size <= LARGEST:
        raise UsageError(f"--size {size} is out of range", f"use 64 to {LARGEST}")
    refuse_existing(path, force)
    chosen = _draw(path, kind, seed, size)
    console.info(f"drew somebody new (seed {chosen})")
    console.output([str(path)], {"path": str(path), "seed": chosen, "size": size})
    console.suggest(f"celebctl learn {shlex.quote(str(path))} --name {suggested_name(str(path), Library().names())}")


def _draw(path: Path, kind: str, seed: int | None, size: int) -> int:
    """Draw, write, and return the seed."""
    from celebctl_runtime.files import atomic_write

    from .extras import requires_extra
    from .gen import random_seed

    chosen = random_seed() if seed is None else seed
    with requires_extra("learn", "drawing a portrait"):
        from celebctl_models.mini.world import draw_portrait

        picture = draw_portrait(seed=chosen, size=size)
    lossy = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    atomic_write(path, lambda place: picture.save(place, kind, **lossy))
    return chosen
