"""Means over people with 95 % confidence intervals of Student's t, because people are few."""

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
    """A mean over ``count`` people and the half width of its interval; ``half`` is 0 for a single person."""

    mean: float
    half: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}" if self.count > 1 else f"{self.mean:.3f}"


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """The estimate from all values that are neither None nor NaN; None without any."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return None
    count = len(known)
    half = float(_stats.t.ppf(0.975, count - 1) * _stats.sem(known)) if count > 1 else 0.0
    return Estimate(float(np.mean(known)), half, count)


def by_couples(values: Iterable[float | None]) -> list[float | None]:
    """Means of each two in turn. People who were learned and drawn together do not count as two observations.

    Where one of two is unknown the other stands for both.
    """
    given = list(values)
    couples = [[v for v in given[i : i + 2] if v is not None and not math.isnan(v)] for i in range(0, len(given), 2)]
    return [sum(couple) / len(couple) if couple else None for couple in couples]
