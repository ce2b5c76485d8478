"""Means over people with 95 % confidence intervals (Student's t: people are few)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_Z = 1.959964


def t95(freedom: int) -> float:
    """The two-sided 95 % point of Student's t, to three digits."""
    if freedom < 1:
        return math.nan
    # beyond the table: the first term of the Cornish-Fisher expansion around the normal
    return _T[freedom - 1] if freedom <= len(_T) else _Z + (_Z**3 + _Z) / (4 * freedom)


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` people and the half width of its interval; ``half`` is 0 for a single person."""

    mean: float
    half: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}" if self.count > 1 else f"{self.mean:.3f}"


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """The estimate of what is known; None when nothing is."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return None
    count, mean = len(known), sum(known) / len(known)
    if count == 1:
        return Estimate(mean, 0.0, 1)
    variance = sum((value - mean) ** 2 for value in known) / (count - 1)
    return Estimate(mean, t95(count - 1) * math.sqrt(variance / count), count)


def by_couples(values: Iterable[float | None]) -> list[float | None]:
    """Means of each two in turn. People who were learned and drawn together do not count as two observations.

    Where one of two is unknown the other stands for both.
    """
    given = list(values)
    couples = [given[i : i + 2] for i in range(0, len(given), 2)]
    known = [[value for value in couple if value is not None and not math.isnan(value)] for couple in couples]
    return [sum(couple) / len(couple) if couple else None for couple in known]
