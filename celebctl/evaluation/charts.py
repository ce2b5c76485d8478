"""Charts of a report: bars of estimates with their confidence intervals."""

# matplotlib leaves the types of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure

from celebctl.plotting import chart_style, horizontal_bars, to_svg_uri

from .intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 6.4  # inches


@dataclass(frozen=True)
class Series:
    """One colour of a chart. values: one estimate per row, None where there is none."""

    label: str
    values: Sequence[Estimate | None]


@dataclass(frozen=True)
class Chart:
    """An SVG as data URIs, for pages with a light and with a dark background."""

    title: str
    light: str
    dark: str


def bar_chart(rows: Sequence[str], series: Sequence[Series], *, title: str) -> Chart:
    """Horizontal bars, a group per row, with error bars."""

    def plot(axes: Axes) -> None:
        height = 0.8 / len(series)
        horizontal_bars(axes, list(rows), 0.8)
        for number, one in enumerate(series):
            at = [row - 0.4 + height * (number + 0.5) for row in range(len(rows))]
            means, halves = _arrays(one.values)
            error_style = {"ecolor": rcParams["text.color"], "elinewidth": 1.2, "alpha": 0.75}
            axes.barh(at, means, 0.86 * height, xerr=halves, label=one.label, error_kw=error_style)
            for y, value in zip(at, one.values, strict=True):
                text, end = (f"{value.mean:z.2f}", value.mean + value.half_width) if value else ("not measured", 0.0)
                axes.annotate(text, (max(end, 0.0), y), (5, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_xlim(min(0.0, axes.get_xlim()[0]), 1.08 * max(axes.get_xlim()[1], 0.01))

    return _chart(plot, title, 0.9 + 0.22 * len(series) * len(rows) + 0.12 * len(rows), series)


def _arrays(values: Sequence[Estimate | None]) -> tuple[Any, Any]:
    """Means and half widths, NaN where there is no estimate."""
    pairs = [(value.mean, value.half_width) if value else (np.nan, np.nan) for value in values]
    means, halves = np.array(pairs, float).reshape(-1, 2).T
    return means, halves


def _chart(plot: Callable[[Axes], None], title: str, height: float, series: Sequence[Series]) -> Chart:
    uris: list[str] = []
    for dark in (False, True):
        with chart_style(dark=dark):
            figure = Figure((_WIDTH, height), layout="constrained")
            plot(figure.add_subplot())
            if len(series) > 1:
                figure.legend(loc="outside upper left", ncols=3, fontsize=9)
            uris.append(to_svg_uri(figure))
    return Chart(title, *uris)
