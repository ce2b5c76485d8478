"""Who stands where: regions of a picture, and the masks that give each person theirs while it is drawn.

    left:alice,right:bob            halves: left, right, top, bottom
    alice@0,0,0.5,1 bob@0.5,0,1,1   boxes: left, top, right, bottom edge as shares of the picture
    auto                            two people stand left and right as the prompt names them; nothing for one or many

Each region is drawn as if everybody in the layout were the person it belongs to, so that no other face can bleed into
it; what lies in no region follows the whole prompt. Predictions are blended per region as in MultiDiffusion (Bar-Tal et
al. 2023), with soft borders. What this module does *not* know: prompts, steps, networks.
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

#: What a request says that wants no layout, and one that leaves it to the prompt.
NONE, AUTO = "none", "auto"
NAMED_BOXES: dict[str, Box] = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
}
#: Width of a soft border, as a share of the picture's side.
BORDER = 0.125

_ITEM = re.compile(r"[,;\s]+(?=[^\d\s.,;+-])")
_HINT = "write --layout left:alice,right:bob, or boxes: --layout alice@0,0,0.5,1,bob@0.5,0,1,1"


@dataclass(frozen=True)
class Region:
    """A person's part of the picture: box (left, top, right, bottom) as shares of its width and height."""

    name: str
    box: Box

    def __str__(self) -> str:
        for side, box in NAMED_BOXES.items():
            if box == self.box:
                return f"{side}:{self.name}"
        return f"{self.name}@{','.join(f'{edge:g}' for edge in self.box)}"


def parse_layout(text: str) -> tuple[Region, ...]:
    """The regions of a layout; () for ``none``, for ``auto`` and for nothing said. Raises UsageError."""
    if text.strip().lower() in ("", NONE, AUTO):
        return ()
    regions = tuple(_region(item) for item in _ITEM.split(text.strip()))
    names = [region.name for region in regions]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"the layout {text!r} has {twice[0]} twice", "give everybody one region")
    return regions


def layout_text(regions: Sequence[Region]) -> str:
    """The inverse of :func:`parse_layout`, "" for no regions."""
    return ",".join(map(str, regions))


def normalize_layout(text: str) -> str:
    """A layout as it is written down: words in lower case, places in one form. Raises UsageError."""
    word = text.strip().lower()
    return word if word in (NONE, AUTO) else layout_text(parse_layout(text))


def resolve_layout(text: str, usual: str, named: Sequence[str]) -> str:
    """What a request's layout comes to once it is known whom its prompt names, in order.

    ``usual``: the bundle's own choice, for a request that says nothing. The answer means the same whenever it is asked
    of the bundle again.
    """
    if (text or usual) == AUTO and len(named) == 2:
        return layout_text([Region(name, NAMED_BOXES[side]) for name, side in zip(named, ("left", "right"), strict=True)])
    if parse_layout(text):
        return text
    return NONE if usual == AUTO else ""


def region_masks(regions: Sequence[Region], height: int, width: int) -> NDArray[np.float32]:
    """How much each conditioning counts where, (1 + R, height, width) in [0, 1], adding up to 1 everywhere.

    Row 0 is the whole prompt, for what lies in no region; the others are the regions in order. Where regions overlap
    they share.
    """
    boxes = [_soft_box(region.box, height, width) for region in regions]
    inside = np.stack(boxes) if boxes else np.zeros((0, height, width))
    inside /= np.maximum(inside.sum(0), 1.0)
    return np.concatenate([1.0 - inside.sum(0, keepdims=True), inside]).clip(0.0, 1.0).astype(np.float32)


def _soft_box(box: Box, height: int, width: int) -> NDArray[np.float64]:
    left, top, right, bottom = box
    return _soft_span(top, bottom, height)[:, None] * _soft_span(left, right, width)


def _soft_span(low: float, high: float, count: int) -> NDArray[np.float64]:
    """1 between ``low`` and ``high``, falling in a straight line to 0 across each border that lies in the picture."""
    at = (np.arange(count) + 0.5) / count
    rise = ((at - low) / BORDER + 0.5).clip(0.0, 1.0) if low > 0.0 else np.ones(count)
    fall = ((high - at) / BORDER + 0.5).clip(0.0, 1.0) if high < 1.0 else np.ones(count)
    return rise * fall


def _region(item: str) -> Region:
    side, colon, name = item.partition(":")
    if colon:
        if side.lower() not in NAMED_BOXES:
            raise UsageError(f"a layout has no place {side!r}", f"places are {', '.join(NAMED_BOXES)}; {_HINT}")
        return Region(check_name(name.strip("<>")), NAMED_BOXES[side.lower()])
    name, at, edges = item.partition("@")
    if not at:
        raise UsageError(f"the layout does not say where {item!r} is", _HINT)
    return Region(check_name(name.strip("<>")), _box(edges, item))


def _box(edges: str, item: str) -> Box:
    try:
        left, top, right, bottom = (float(edge) for edge in edges.strip(",").split(","))
    except ValueError as error:
        raise UsageError(f"{item!r} is no box", "a box is four numbers: left, top, right, bottom") from error
    if not (0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0):
        raise UsageError(
            f"the box of {item!r} lies outside the picture", "edges go from 0 to 1: left < right, top < bottom"
        )
    return left, top, right, bottom
