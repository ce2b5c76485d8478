"""Layouts: a region of the image for each person, and the masks that blend the regions.

    left:alice,right:bob            halves: left, right, top, bottom
    alice@0,0,0.5,1 bob@0.5,0,1,1   boxes: left, top, right, bottom edge as fractions of the image
    auto                            two people left and right in prompt order; no layout for one or many

In each region, every name of the layout stands for the region's person, so that no other face leaks into it; the rest
of the image follows the whole prompt. Predictions are blended per region as in MultiDiffusion (Bar-Tal et al. 2023),
with soft borders.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import UsageError
from celebctl_runtime.identity import check_name

Box = tuple[float, float, float, float]

#: Layouts without regions: none at all, and regions chosen by the prompt.
NONE, AUTO = "none", "auto"
NAMED_BOXES: dict[str, Box] = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
}
#: Width of a soft border, as a fraction of the image's side.
BORDER = 0.125

_ITEM = re.compile(r"[,;\s]+(?=[^\d\s.,;+-])")
_HINT = "write left:alice,right:bob, or boxes: alice@0,0,0.5,1,bob@0.5,0,1,1"


@dataclass(frozen=True)
class Region:
    """A person's part of the image: box (left, top, right, bottom) as fractions of its width and height."""

    name: str
    box: Box

    def __str__(self) -> str:
        for side, box in NAMED_BOXES.items():
            if box == self.box:
                return f"{side}:{self.name}"
        return f"{self.name}@{','.join(f'{edge:g}' for edge in self.box)}"


def parse_layout(text: str) -> tuple[Region, ...]:
    """The regions of a layout; () for "none", "auto" and "". Raises UsageError.

    Example:
        >>> [region.name for region in parse_layout("left:alice,right:bob")]
        ['alice', 'bob']
    """
    if text.strip().lower() in ("", NONE, AUTO):
        return ()
    regions = tuple(_region(item) for item in _ITEM.split(text.strip()))
    names = [region.name for region in regions]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise _invalid(f"the layout {text!r} has {repeated[0]} twice", "give each person one region")
    return regions


def layout_text(regions: Sequence[Region]) -> str:
    """The inverse of :func:`parse_layout`; "" for no regions."""
    return ",".join(map(str, regions))


def normalize_layout(text: str) -> str:
    """The canonical text of a layout. Raises UsageError."""
    word = text.strip().lower()
    return word if word in (NONE, AUTO) else layout_text(parse_layout(text))


def resolve_layout(text: str, default: str, names: Sequence[str]) -> str:
    """A request's layout with "auto" resolved; resolving the result again gives the same layout.

    Args:
        text: The request's layout.
        default: The bundle's default layout, for a request with "".
        names: The people that the prompt mentions, in order.
    """
    if (text or default) == AUTO and len(names) == 2:
        return f"left:{names[0]},right:{names[1]}"
    if parse_layout(text):
        return text
    return NONE if default == AUTO else ""


def region_masks(regions: Sequence[Region], height: int, width: int) -> NDArray[np.float32]:
    """Weights of the conditionings, (1 + R, height, width) float32 in [0, 1], with sum 1 everywhere.

    Mask 0 is the whole prompt, outside all regions; the others are the regions in order, with equal weight where they
    overlap.
    """
    boxes = [_soft_box(region.box, height, width) for region in regions]
    inside = np.stack(boxes) if boxes else np.zeros((0, height, width))
    inside /= np.maximum(inside.sum(0), 1.0)
    return np.concatenate([1.0 - inside.sum(0, keepdims=True), inside]).clip(0.0, 1.0).astype(np.float32)


def _soft_box(box: Box, height: int, width: int) -> NDArray[np.float64]:
    left, top, right, bottom = box
    return _soft_span(top, bottom, height)[:, None] * _soft_span(left, right, width)


def _soft_span(low: float, high: float, count: int) -> NDArray[np.float64]:
    """1 between ``low`` and ``high``, falling linearly to 0 across each border inside the image."""
    center = (np.arange(count) + 0.5) / count
    rise = ((center - low) / BORDER + 0.5).clip(0.0, 1.0) if low > 0.0 else np.ones(count)
    fall = ((high - center) / BORDER + 0.5).clip(0.0, 1.0) if high < 1.0 else np.ones(count)
    return rise * fall


def _invalid(problem: str, hint: str) -> UsageError:
    return UsageError(problem, hint, reason="invalid_layout")


def _region(item: str) -> Region:
    side, colon, name = item.partition(":")
    if colon:
        if side.lower() not in NAMED_BOXES:
            raise _invalid(f"unknown side {side!r} in a layout", f"sides are {', '.join(NAMED_BOXES)}; {_HINT}")
        return Region(check_name(name.strip("<>")), NAMED_BOXES[side.lower()])
    name, separator, edges = item.partition("@")
    if not separator:
        raise _invalid(f"the layout has no region for {item!r}", _HINT)
    return Region(check_name(name.strip("<>")), _box(edges, item))


def _box(edges: str, item: str) -> Box:
    try:
        left, top, right, bottom = (float(edge) for edge in edges.strip(",").split(","))
    except ValueError as error:
        raise _invalid(f"{item!r} is not a box", "a box is four numbers: left, top, right, bottom") from error
    if not (0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0):
        hint = "edges are from 0 to 1, with left < right and top < bottom"
        raise _invalid(f"the box of {item!r} is outside the image", hint)
    return left, top, right, bottom
