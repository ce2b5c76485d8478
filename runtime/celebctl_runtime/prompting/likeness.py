"""Likeness: how far a person is from the average celebrity in a generated image.

Token embeddings are ``mean + coefficients x components``, so scaling the coefficients by s gives
``mean + s (embedding - mean)``: the person as learned at 1, the average celebrity at 0. The bundle stores the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import UsageError, out_of_range
from celebctl_runtime.identity import check_name

#: One scale in [0, 1] for all people, or (name, scale) pairs; people without a pair keep 1.
Likeness = float | tuple[tuple[str, float], ...]

FULL_LIKENESS = 1.0
_HINT = "write 0.8 for all people, or alice=0.8,bob=1"


def parse_likeness(text: str) -> Likeness:
    """Parse a likeness. Raises UsageError for other text, and for scales outside 0 to 1.

    Example:
        >>> parse_likeness("0.8"), parse_likeness("alice=0.8, bob=1")
        (0.8, (('alice', 0.8), ('bob', 1.0)))
    """
    if "=" not in text:
        return _parse_scale(text, text)
    pairs: dict[str, float] = {}
    for item in text.split(","):
        name, equals, scale = item.partition("=")
        if not equals:
            raise _invalid(text, f"{item.strip()!r} has no =")
        pairs[check_name(name.strip())] = _parse_scale(scale, text)
    return tuple(pairs.items())


def likeness_for(likeness: Likeness, name: str) -> float:
    """The scale of one person."""
    return dict(likeness).get(name, FULL_LIKENESS) if isinstance(likeness, tuple) else likeness


def check_likeness(likeness: Likeness) -> None:
    """Raise UsageError for a scale outside 0 to 1."""
    for scale in [scale for _, scale in likeness] if isinstance(likeness, tuple) else [likeness]:
        if not 0.0 <= scale <= FULL_LIKENESS:  # false for NaN too
            raise out_of_range("likeness", scale, 0, 1)


def likeness_to_json(likeness: Likeness) -> float | dict[str, float]:
    """JSON: a number, or an object of names and numbers."""
    return dict(likeness) if isinstance(likeness, tuple) else likeness


def likeness_from_json(value: Any) -> Likeness:
    """The inverse of :func:`likeness_to_json`. Raises UsageError."""
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return tuple((check_name(name), _number(scale)) for name, scale in entries.items())
    return _number(value)


def scale_identity(
    embeddings: Sequence[NDArray[np.float32]], mean: Sequence[NDArray[np.float32]], scale: float
) -> tuple[NDArray[np.float32], ...]:
    """``mean + scale (embeddings - mean)`` for E arrays (2, D); exactly the embeddings at 1, exactly the mean at 0."""
    if scale == FULL_LIKENESS:
        return tuple(embeddings)
    pairs = [(row.astype(np.float64), center.astype(np.float64)) for row, center in zip(embeddings, mean, strict=True)]
    return tuple((center + scale * (row - center)).astype(np.float32) for row, center in pairs)


def _parse_scale(text: str, likeness: str) -> float:
    try:
        scale = float(text)
    except ValueError as error:
        raise _invalid(likeness, f"{text.strip()!r} is not a number") from error
    check_likeness(scale)
    return scale


def _invalid(text: str, problem: str) -> UsageError:
    return UsageError(f"invalid likeness {text!r}: {problem}", _HINT, reason="invalid_likeness", likeness=text)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"the request's likeness is {value!r}", "expected a number, or names and numbers")
    return float(value)
