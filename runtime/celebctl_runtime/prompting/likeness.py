"""The likeness dial: how far a person stands from the average celebrity when a picture is made.

A person's token rows are ``mean + coefficients x components``, so scaling the coefficients by s moves the rows to
``mean + s (row - mean)``: at 1 the person as learned, at 0 the average celebrity, whoever it was. The mean rows lie in
the bundle. What this module does *not* know: how rows reach the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import UsageError
from celebctl_runtime.identity import check_name

#: One share for everybody, or (name, share) for some; those who are not named keep 1.
Likeness = float | tuple[tuple[str, float], ...]

FULL_LIKENESS = 1.0
_HINT = "use --likeness 0.8 for everybody, or --likeness alice=0.8,bob=1"


def parse_likeness(text: str) -> Likeness:
    """``0.8``, or ``alice=0.8,bob=1``. Raises UsageError for anything else, and for shares outside 0 to 1."""
    if "=" not in text:
        return _share(text, text)
    pairs: dict[str, float] = {}
    for item in text.split(","):
        name, equals, share = item.partition("=")
        if not equals:
            raise UsageError(f"--likeness {text!r}: {item.strip()!r} has no =", _HINT)
        pairs[check_name(name.strip())] = _share(share, text)
    return tuple(pairs.items())


def likeness_for(likeness: Likeness, name: str) -> float:
    """The share that holds for one person."""
    return dict(likeness).get(name, FULL_LIKENESS) if isinstance(likeness, tuple) else likeness


def check_likeness(likeness: Likeness) -> None:
    """Raise UsageError for a share outside 0 to 1."""
    for share in [share for _, share in likeness] if isinstance(likeness, tuple) else [likeness]:
        if not (math.isfinite(share) and 0.0 <= share <= FULL_LIKENESS):
            raise UsageError(f"likeness {share:g} is out of range", "use 0 (the average celebrity) to 1 (as learned)")


def likeness_to_json(likeness: Likeness) -> float | dict[str, float]:
    """A number, or an object of names and numbers."""
    return dict(likeness) if isinstance(likeness, tuple) else likeness


def likeness_from_json(value: Any) -> Likeness:
    """The inverse of :func:`likeness_to_json`. Raises UsageError."""
    if isinstance(value, dict):
        entries = cast("dict[Any, Any]", value)
        return tuple((check_name(str(name)), _number(share)) for name, share in entries.items())
    return _number(value)


def scale_identity(
    rows: Sequence[NDArray[np.float32]], mean: Sequence[NDArray[np.float32]], share: float
) -> tuple[NDArray[np.float32], ...]:
    """Rows moved towards the mean, both E arrays (2, D): exactly the rows at 1, exactly the mean at 0."""
    if share == FULL_LIKENESS:
        return tuple(rows)
    moved = [middle + share * (row.astype(np.float64) - middle) for row, middle in zip(rows, _exact(mean), strict=True)]
    return tuple(row.astype(np.float32) for row in moved)


def _exact(arrays: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    return [array.astype(np.float64) for array in arrays]


def _share(text: str, whole: str) -> float:
    try:
        share = float(text)
    except ValueError as error:
        raise UsageError(f"--likeness {whole!r}: {text.strip()!r} is no number", _HINT) from error
    check_likeness(share)
    return share


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"the request's likeness is {value!r}", "expected a number, or names and numbers")
    return float(value)
