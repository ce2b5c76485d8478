"""How much of the celebrities each component of the basis carries: numbers for ``celebctl basis show``.

Per text encoder and token position, from the same rows as the basis, but of the whole spectrum: the basis keeps 512
components at most, and what lies behind them shows only here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .names import TokenPairs

Floats = NDArray[np.float64]

POSITIONS = ("first names", "last names")
#: Components whose share of the variance is told.
TOLD = (1, 8, 32, 128, 512)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One token position of one text encoder.

    singular_values: (rank,) float64, descending, of the centred rows, in units of the token table. tokens: how many
    different tokens the rows come from; their rank is at most one less.
    """

    singular_values: Floats
    tokens: int

    @property
    def rank(self) -> int:
        """Directions in which the celebrities differ at all."""
        return len(self.singular_values)

    @cached_property
    def cumulative(self) -> Floats:
        """(rank,) share of the variance in the first 1, 2, ... components; never falls, ends at 1."""
        total = np.cumsum(self.singular_values**2)
        return total / total[-1] if self.rank else total

    def explained(self, components: int) -> float:
        """Share of the variance, 0 to 1, in the first ``components``."""
        return float(self.cumulative[min(components, self.rank) - 1]) if self.rank and components > 0 else 0.0

    def needed(self, share: float) -> int:
        """How many components it takes to explain ``share`` of the variance."""
        return min(int(np.searchsorted(self.cumulative, share)) + 1, self.rank)


def spectrum_of(table: NDArray[np.float32], ids: Sequence[int], *, release: bool = False) -> Spectrum:
    """The spectrum of one column of token ids in a token table (V, D); the release counts repeated tokens each time."""
    distinct = np.unique(np.array(ids))
    rows = table[np.array(ids) if release else distinct].astype(np.float64)
    singular: Floats = np.linalg.svd(rows - rows.mean(0), compute_uv=False).astype(np.float64)
    return Spectrum(singular[singular > max(singular[0] * 1e-6, 0.0)], len(distinct))  # the rank that the basis uses


def spectra_of(parts: Any, pairs: Sequence[TokenPairs], *, release: bool = False) -> tuple[tuple[Spectrum, ...], ...]:
    """Spectra of first and last names for each text encoder of a loaded model; ``pairs`` are those of each encoder."""
    found: list[tuple[Spectrum, ...]] = []
    for encoder, names in enumerate(pairs):
        table = parts.token_rows(encoder)
        found.append(tuple(spectrum_of(table, names.column(position), release=release) for position in (0, 1)))
    return tuple(found)
