"""How far outputs may be from a reference: the same rule for graphs against torch and engines against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_close(max_abs_error: float, largest_value: float, floor: float) -> bool:
    """Whether an error is at most ``floor`` in units of the reference's largest value, at least 1. NaN is not."""
    return max_abs_error <= floor * max(1.0, largest_value)


def largest_difference(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Of two arrays of one shape, in float64."""
    return float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())
