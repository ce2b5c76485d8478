"""An interpolation strip: the same picture over and over, while one person becomes another.

What this module does *not* know: how pictures are drawn, and what a person is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .grid import grid

ACROSS = 10  # pictures in one row
CELL = 256  # pixels: larger pictures are reduced to it
STEP_MS, REST_MS = 140, 700  # in the animation: on the way, and at both ends


def keyframes(people: int, frames: int) -> list[tuple[float, ...]]:
    """How much each of ``people`` counts in ``frames`` pictures on the way from the first through all to the last."""
    found: list[tuple[float, ...]] = []
    for frame in range(frames):
        reached, rest = divmod(frame * (people - 1), frames - 1)
        weights = [0.0] * people
        weights[reached] = 1.0 - rest / (frames - 1)
        if rest:
            weights[reached + 1] = rest / (frames - 1)
        found.append(tuple(weights))
    return found


def labels(names: Sequence[str], weights: Sequence[Sequence[float]]) -> list[str]:
    """What stands below each picture: a name where it is one person, else how much of whom has come in."""
    told: list[str] = []
    for shares in weights:
        present = [(name, share) for name, share in zip(names, shares, strict=True) if share]
        name, share = present[-1]
        told.append(name if len(present) == 1 else f"{100 * share:.0f} % {name}")
    return told


def lay_out(pictures: Sequence[Image.Image], said: Sequence[str]) -> Image.Image:
    """Pictures of one size in rows of at most ten, each with its label below."""
    rows = [slice(start, start + ACROSS) for start in range(0, len(pictures), ACROSS)]
    return grid([pictures[row] for row in rows], [said[row] for row in rows], cell=_fit(pictures[0]).size)


def save_animation(pictures: Sequence[Image.Image], path: Path) -> None:
    """An endless GIF that goes there and back, and rests at both ends."""
    cells = [_fit(picture).quantize(256) for picture in pictures]
    order = [*cells, *cells[-2:0:-1]]
    times = [REST_MS if number in (0, len(cells) - 1) else STEP_MS for number in range(len(order))]
    order[0].save(path, "GIF", save_all=True, append_images=order[1:], duration=times, loop=0)


def _fit(picture: Image.Image) -> Image.Image:
    if picture.width <= CELL:
        return picture
    return picture.resize((CELL, round(picture.height * CELL / picture.width)), Image.Resampling.LANCZOS)
