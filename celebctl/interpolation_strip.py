"""Interpolation strips: the frames of an animation from one person to another side by side."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .animation import Keyframe
from .grid import grid

COLUMNS = 10
CELL = 256  # pixels: larger images are reduced to it


def weights_of(frames: Sequence[Keyframe], people: int) -> list[list[float]]:
    """The weights of `people` people in each frame, from 0 to 1; they add up to 1.

    Example:
        >>> weights_of([Keyframe(0, 0), Keyframe(0, 1, 0.25), Keyframe(1, 1)], 2)
        [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]
    """
    weights: list[list[float]] = []
    for frame in frames:
        shares = [0.0] * people
        shares[frame.second] = frame.blend
        shares[frame.first] = 1.0 - frame.blend
        weights.append(shares)
    return weights


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
    return grid([images[row] for row in rows], [texts[row] for row in rows], cell=fit(images[0]).size)


def fit(image: Image.Image) -> Image.Image:
    """The image, reduced to the width of a cell if it is wider."""
    if image.width <= CELL:
        return image
    return image.resize((CELL, round(image.height * CELL / image.width)), Image.Resampling.LANCZOS)
