"""A chart of the celeb basis: explained variance and singular values, one row per text encoder."""

# matplotlib leaves the types of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from celebctl.plotting import LIGHT, chart_style, to_image

from .basis import COMPONENTS
from .spectrum import POSITIONS, Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

_WIDTH, _ROW, _HEAD = 12.0, 4.2, 1.0  # inches
_LINE_WIDTHS = (4.2, 1.8)  # the first curve shows behind the second where they coincide
_MARKED = 0.9  # explained variance that is marked on the curves


def draw_spectrum(spectra: Sequence[Sequence[Spectrum]], title: str, subtitle: str) -> Image.Image:
    """Cumulative explained variance, and singular values on a logarithmic scale, over the number of components.

    spectra: for each text encoder one per token position.
    """
    with chart_style():
        layout = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.2)
        figure = Figure((_WIDTH, _HEAD + _ROW * len(spectra)), layout=layout)
        figure.suptitle(f"{title}\n", x=0.02, ha="left", fontsize=17)
        figure.text(0.02, 1 - 0.58 / figure.get_figheight(), subtitle, alpha=0.7)
        rows = figure.subplots(len(spectra), 2, squeeze=False, sharex="row")
        for number, (pair, (left, right)) in enumerate(zip(spectra, rows, strict=True), 1):
            encoder = f", text encoder {number}" if len(spectra) > 1 else ""
            _variance(left, pair, f"Cumulative explained variance{encoder}")
            _singular_values(right, pair, f"Singular values{encoder}")
        return to_image(figure)


def _variance(axes: Axes, pair: Sequence[Spectrum], title: str) -> None:
    for position, spectrum, colour, width in zip(POSITIONS, pair, LIGHT, _LINE_WIDTHS, strict=False):
        label = f"{position}: {spectrum.tokens:,} tokens, rank {spectrum.rank:,}"
        if spectrum.rank:
            needed = spectrum.needed(_MARKED)
            label += f", {_MARKED:.0%} in {needed:,} components"
            axes.plot([needed], [spectrum.cumulative[needed - 1]], "o", color=colour)
        axes.plot(_components(spectrum), spectrum.cumulative, color=colour, linewidth=width, label=label)
    axes.set_ylim(0, 1.03)
    axes.set_ylabel("explained variance")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(loc="lower right", fontsize=9, frameon=True, framealpha=1, edgecolor="none")
    _finish(axes, pair, title)


def _singular_values(axes: Axes, pair: Sequence[Spectrum], title: str) -> None:
    for spectrum, colour, width in zip(pair, LIGHT, _LINE_WIDTHS, strict=False):
        axes.plot(_components(spectrum), spectrum.singular_values, color=colour, linewidth=width)
    axes.set_yscale("log")
    axes.set_ylabel("singular value, in units of the token table")
    _finish(axes, pair, title)


def _components(spectrum: Spectrum) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(1, spectrum.rank + 1)


def _finish(axes: Axes, pair: Sequence[Spectrum], title: str) -> None:
    """Title and component axis, with a line where the basis is cut."""
    axes.set_title(title)
    axes.set_xlabel("component")
    if max(spectrum.rank for spectrum in pair) > COMPONENTS:
        axes.axvline(COMPONENTS, color="grey", linewidth=1, linestyle=":")
        axes.annotate(
            f"{COMPONENTS} kept", (COMPONENTS, 0.72), (4, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", rotation=90, va="center", fontsize=8,
        )  # fmt: skip
