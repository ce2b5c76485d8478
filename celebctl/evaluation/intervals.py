"""Means over people with 95 % confidence intervals of Student's t distribution, because people are few."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats

_stats: Any = scipy.stats  # which has no usable types


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % confidence interval.

    Attributes:
        mean: Mean over ``count`` people (or pairs of people).
        half_width: Half the width of the interval; 0 for a single observation.
        count: Number of observations.
    """

    mean: float
    half_width: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:z.3f} ± {self.half_width:.3f}" if self.count > 1 else f"{self.mean:z.3f}"


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Mean and interval of all values that are neither None nor NaN; None without any.

    Example:
        >>> str(estimate([0.5, 0.7, None]))
        '0.600 ± 1.271'
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return None
    count = len(known)
    half = float(_stats.t.ppf(0.975, count - 1) * _stats.sem(known)) if count > 1 else 0.0
    return Estimate(float(np.mean(known)), half, count)


def pair_means(values: Iterable[float | None]) -> list[float | None]:
    """Means of values 0 and 1, 2 and 3, and so on: people who were learned and drawn together are one observation.

    Where one value of a pair is unknown, the other one is its mean.
    """
    listed = list(values)
    pairs = [[v for v in listed[i : i + 2] if v is not None and not math.isnan(v)] for i in range(0, len(listed), 2)]
    return [sum(pair) / len(pair) if pair else None for pair in pairs]
