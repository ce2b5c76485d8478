"""Interpolation strips and animations: the same image while one person turns into another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .grid import grid

COLUMNS = 10
CELL = 256  # pixels: larger images are reduced to it
STEP_MS, REST_MS = 140, 700  # duration of a frame of the animation: on the way, and at both ends


def keyframes(people: int, frames: int) -> list[tuple[float, ...]]:
    """The weights of ``people`` people in each of ``frames`` images from the first through all to the last.

    Each tuple has ``people`` weights from 0 to 1 that add up to 1.

    Example:
        >>> keyframes(2, 3)
        [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    """
    frames_weights: list[tuple[float, ...]] = []
    for frame in range(frames):
        reached, rest = divmod(frame * (people - 1), frames - 1)
        weights = [0.0] * people
        weights[reached] = 1.0 - rest / (frames - 1)
        if rest:
            weights[reached + 1] = rest / (frames - 1)
        frames_weights.append(tuple(weights))
    return frames_weights


def labels(names: Sequence[str], weights: Sequence[Sequence[float]]) -> list[str]:
    """The text below each image: the name of a single person, else the share of the second."""
    texts: list[str] = []
    for shares in weights:
        present = [(name, share) for name, share in zip(names, shares, strict=True) if share]
        name, share = present[-1]
        texts.append(name if len(present) == 1 else f"{100 * share:.0f} % {name}")
    return texts


def lay_out(images: Sequence[Image.Image], texts: Sequence[str]) -> Image.Image:
    """Images of one size in rows of at most ten, each with a text below."""
    rows = [slice(start, start + COLUMNS) for start in range(0, len(images), COLUMNS)]
    return grid([images[row] for row in rows], [texts[row] for row in rows], cell=_fit(images[0]).size)


def save_animation(images: Sequence[Image.Image], path: Path) -> None:
    """Write an endless GIF, forth and back, with a pause at both ends."""
    cells = [_fit(image).quantize(256) for image in images]
    order = [*cells, *cells[-2:0:-1]]
    times = [REST_MS if number in (0, len(cells) - 1) else STEP_MS for number in range(len(order))]
    order[0].save(path, "GIF", save_all=True, append_images=order[1:], duration=times, loop=0)


def _fit(image: Image.Image) -> Image.Image:
    if image.width <= CELL:
        return image
    return image.resize((CELL, round(image.height * CELL / image.width)), Image.Resampling.LANCZOS)
