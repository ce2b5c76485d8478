"""sample-photo: a photo of a person who does not exist, to try the commands with."""

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
    """Draw a photo of a new person of mini's drawn world."""
    from celebctl.library import Library
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    from .naming import suggested_name

    console = ctx.ensure_object(CliConsole)
    image_format = FORMATS.get(path.suffix.lower())
    if image_format is None:
        raise UsageError(f"{path} has no supported image suffix", f"use one of {', '.join(FORMATS)}")
    if not 64 <= size <= LARGEST:
        raise UsageError(f"--size {size} is out of range", f"use 64 to {LARGEST}")
    refuse_existing(path, force)
    used_seed = _draw(path, image_format, seed, size)
    console.info(f"drew a new person (seed {used_seed})")
    console.output([str(path)], {"path": str(path), "seed": used_seed, "size": size})
    console.suggest(f"celebctl learn {shlex.quote(str(path))} --name {suggested_name(str(path), Library().names())}")


def _draw(path: Path, image_format: str, seed: int | None, size: int) -> int:
    """Draw and write the photo; returns the seed."""
    from celebctl.pipeline import random_seed
    from celebctl_runtime.files import atomic_write

    from .extras import requires_extra

    used_seed = random_seed() if seed is None else seed
    with requires_extra("learn", "drawing a portrait"):
        from celebctl_models.mini.world import draw_portrait

        image = draw_portrait(seed=used_seed, size=size)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(image_format, {})
    atomic_write(path, lambda file: image.save(file, image_format, **options))
    return used_seed
