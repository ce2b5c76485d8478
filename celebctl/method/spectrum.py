"""How much of the celebrities each component of the basis carries: numbers for ``celebctl basis show``, and a picture.

Per text encoder and token position, from the same rows as the basis, but of the whole spectrum: the basis keeps 512
components at most, and what lies behind them shows only here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from celebctl.pen import COLOURS, FAINT, GRID, Pen, Point

from .basis import COMPONENTS
from .names import TokenPairs

Floats = NDArray[np.float64]
Box = tuple[float, float, float, float]

POSITIONS = ("first names", "last names")
#: Components whose share of the variance is told.
TOLD = (1, 8, 32, 128, 512)

_WIDTH, _HEAD, _ROW = 1200, 118, 440  # pixels of the picture: across, above the panels, per text encoder
_WIDTHS = (4.2, 2.0)  # of the curves, so that one is seen behind the other where they meet
_MARK = 0.9  # share of the variance that is marked on the curves


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


def draw_spectrum(spectra: Sequence[Sequence[Spectrum]], title: str, subtitle: str) -> Image.Image:
    """A picture of cumulative variance and of singular values on a logarithmic scale, a row for each text encoder."""
    pen = Pen(_WIDTH, _HEAD + _ROW * len(spectra))
    pen.text((48, 26), title, 25)
    pen.text((48, 60), subtitle, 15, FAINT)
    _legend(pen, spectra[0])
    for row, pair in enumerate(spectra):
        top = _HEAD + row * _ROW
        said = f", text encoder {row + 1}" if len(spectra) > 1 else ""
        # two curves can only be compared on one scale, so that both positions share the axes
        across = _linear(1, max(2, *(one.rank for one in pair)))
        _variance_panel(pen, (96, top + 40, 580, top + _ROW - 70), pair, across, said)
        _singular_panel(pen, (690, top + 40, 1164, top + _ROW - 70), pair, across, said)
    return pen.finish()


@dataclass(frozen=True)
class _Scale:
    """An axis: its ends, the numbers written along it, and the way from a value to 0 .. 1."""

    ticks: tuple[float, ...]
    place: Callable[[float], float]


def _linear(low: float, high: float) -> _Scale:
    steps = [m * 10.0**e for e in range(-2, 6) for m in (1, 2, 5)]
    step = next((step for step in steps if (high - low) / step <= 6), high)
    first = math.ceil(low / step)
    ticks = [k * step for k in range(first, math.floor(high / step) + 1)]
    # an axis of components begins with the first one, which there is no round number for
    ticks = [low, *(tick for tick in ticks if tick - low > step / 2)]
    return _Scale(tuple(ticks), lambda value: (value - low) / (high - low))


def _logarithmic(low: float, high: float) -> _Scale:
    low, high = math.log10(low) - 0.04, math.log10(high) + 0.04
    every = (1, 2, 5) if high - low < 2.5 else (1,)
    wanted = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in every]
    ticks = tuple(tick for tick in wanted if low <= math.log10(tick) <= high)
    return _Scale(ticks, lambda value: (math.log10(value) - low) / (high - low))


def _legend(pen: Pen, pair: Sequence[Spectrum]) -> None:
    left = 48.0
    for name, colour, spectrum in zip(POSITIONS, COLOURS, pair, strict=True):
        said = f"{name}: {spectrum.tokens:,} tokens, rank {spectrum.rank:,}"
        pen.line([(left, 100), (left + 26, 100)], colour, 3)
        pen.text((left + 36, 100), said, 15, anchor="lm")
        left += 36 + pen.width(said, 15) + 44


def _variance_panel(pen: Pen, box: Box, pair: Sequence[Spectrum], across: _Scale, said: str) -> None:
    up = _Scale((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), lambda value: value)
    _frame(pen, box, across, up, f"Cumulative explained variance{said}", lambda value: f"{value:.0%}")
    for spectrum, colour, width in zip(pair, COLOURS, _WIDTHS, strict=True):
        _curve(pen, box, across, up, spectrum.cumulative, colour, width)
    for number, (spectrum, colour) in enumerate(zip(pair, COLOURS, strict=True)):
        if spectrum.rank:
            needed = spectrum.needed(_MARK)
            at = _at(box, across.place(needed), float(spectrum.cumulative[needed - 1]))
            pen.dot(at, colour, 4.5)
            corner = (min(box[2], _end_of_basis(box, across)) - 12, box[3] - 20 - 24 * (1 - number))
            pen.text(corner, f"{_MARK:.0%} in {needed:,} components", 15, colour, anchor="rm")


def _singular_panel(pen: Pen, box: Box, pair: Sequence[Spectrum], across: _Scale, said: str) -> None:
    values = np.concatenate([spectrum.singular_values for spectrum in pair])
    up = _logarithmic(float(values.min()), float(values.max())) if len(values) else _linear(0, 1)
    _frame(pen, box, across, up, f"Singular values{said}", lambda value: f"{value:g}")
    for spectrum, colour, width in zip(pair, COLOURS, _WIDTHS, strict=True):
        _curve(pen, box, across, up, spectrum.singular_values, colour, width)


def _frame(pen: Pen, box: Box, across: _Scale, up: _Scale, title: str, write: Callable[[float], str]) -> None:
    left, top, right, bottom = box
    pen.text((left, top - 18), title, 16, anchor="lb")
    for tick in up.ticks:
        y = _at(box, 0, up.place(tick))[1]
        pen.line([(left, y), (right, y)], GRID, 1)
        pen.text((left - 10, y), write(tick), 13, FAINT, anchor="rm")
    for tick in across.ticks:
        x = _at(box, across.place(tick), 0)[0]
        pen.line([(x, bottom), (x, bottom + 5)], FAINT, 1)
        pen.text((x, bottom + 10), f"{tick:,.0f}", 13, FAINT, anchor="ma")
    pen.line([(left, bottom), (right, bottom)], FAINT, 1)
    _kept(pen, box, across)
    pen.text(((left + right) / 2, bottom + 32), "component", 14, FAINT, anchor="ma")


def _kept(pen: Pen, box: Box, across: _Scale) -> None:
    """Where the basis stops taking components, if the spectrum goes on behind that."""
    x = _end_of_basis(box, across)
    if x < box[2]:
        for y in range(round(box[1]), round(box[3]), 7):
            pen.line([(x, y), (x, min(y + 3, box[3]))], FAINT, 1)
        pen.text((x, box[1] - 4), f"{COMPONENTS} kept", 12, FAINT, anchor="mb")


def _end_of_basis(box: Box, across: _Scale) -> float:
    return _at(box, across.place(COMPONENTS), 0)[0]


def _curve(
    pen: Pen, box: Box, across: _Scale, up: _Scale, values: Floats, colour: tuple[int, int, int], width: float
) -> None:
    points = [_at(box, across.place(number), up.place(float(value))) for number, value in enumerate(values, 1)]
    if len(points) > 1:
        pen.line(points, colour, width)


def _at(box: Box, x: float, y: float) -> Point:
    """A place in a panel, both coordinates from 0 (left, bottom) to 1."""
    left, top, right, bottom = box
    return left + x * (right - left), bottom - y * (bottom - top)
