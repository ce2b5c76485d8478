"""Explained variance of the celeb basis, per text encoder and token position.

From the same rows as the basis but over the whole spectrum, of which the basis keeps at most 512 components.
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
#: Numbers of components whose explained variance is reported.
REPORTED = (1, 8, 32, 128, 512)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One token position of one text encoder.

    Attributes:
        singular_values: (rank,) float64, descending, of the centered rows, in units of the token table.
        tokens: Distinct tokens behind the rows; the rank is at most one less.
    """

    singular_values: Floats
    tokens: int

    @property
    def rank(self) -> int:
        """Number of nonzero singular values."""
        return len(self.singular_values)

    @cached_property
    def cumulative(self) -> Floats:
        """(rank,) cumulative explained variance, nondecreasing up to 1."""
        total = np.cumsum(self.singular_values**2)
        return total / total[-1] if self.rank else total

    def explained(self, components: int) -> float:
        """Variance explained by the first ``components``, 0 to 1."""
        return float(self.cumulative[min(components, self.rank) - 1]) if self.rank and components > 0 else 0.0

    def needed(self, share: float) -> int:
        """Components needed to explain ``share`` of the variance."""
        return min(int(np.searchsorted(self.cumulative, share)) + 1, self.rank)


def spectrum_of(table: NDArray[np.float32], ids: Sequence[int], *, release: bool = False) -> Spectrum:
    """The spectrum of token ids in a token table (V, D); with ``release`` repeated tokens count repeatedly."""
    distinct = np.unique(np.array(ids))
    rows = table[np.array(ids) if release else distinct].astype(np.float64)
    singular: Floats = np.linalg.svd(rows - rows.mean(0), compute_uv=False).astype(np.float64)
    return Spectrum(singular[singular > max(singular[0] * 1e-6, 0.0)], len(distinct))  # the rank that the basis uses


def spectra_of(parts: Any, pairs: Sequence[TokenPairs], *, release: bool = False) -> tuple[tuple[Spectrum, ...], ...]:
    """Spectra of first and last names for each text encoder; ``pairs``: the token pairs of each encoder."""
    found: list[tuple[Spectrum, ...]] = []
    for encoder, names in enumerate(pairs):
        table = parts.token_rows(encoder)
        found.append(tuple(spectrum_of(table, names.column(position), release=release) for position in (0, 1)))
    return tuple(found)
