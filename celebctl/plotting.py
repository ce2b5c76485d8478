"""The style of all charts, for matplotlib (extra ``eval``): fonts, colours, and figures as PNG or SVG."""

# matplotlib leaves the types of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import base64
import io
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
from cycler import cycler
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Distinguishable with any colour vision (the first after Okabe and Ito 2008), for light and for dark pages.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#a6569d", "#b8860b", "#4b5563", "#2a9fd6", "#8a3b12", "#c2185b", "#6b8e23")
DARK = ("#56b4e9", "#f08a3c", "#2fc79a", "#d49acb", "#f0c84a", "#a8b0bd", "#8fd0f5", "#d9906a", "#f48fb1", "#b5cc6a")
DPI = 100


@contextmanager
def chart_style(*, dark: bool = False) -> Generator[None]:
    """Settings for figures that are created and saved inside. dark: for a page with a dark background."""
    ink, faint, rule, paper = (
        ("#ece7df", "#9d968b", "#37332e", "#211f1c") if dark else ("#34322f", "#78736b", "#e4dfd6", "#fcfbf8")
    )
    settings: Any = {
        "axes.axisbelow": True,
        "axes.edgecolor": faint,
        "axes.facecolor": paper,
        "axes.grid": True,
        "axes.labelcolor": faint,
        "axes.labelsize": 10,
        "axes.prop_cycle": cycler(color=DARK if dark else LIGHT),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 12,
        "axes.titlepad": 10,
        "figure.dpi": DPI,
        "figure.facecolor": paper,
        "font.size": 10,
        "grid.color": rule,
        "legend.frameon": False,
        "lines.linewidth": 2.2,
        "svg.hashsalt": "celebctl",
        "text.color": ink,
        "xtick.color": faint,
        "ytick.color": faint,
    }
    with matplotlib.rc_context(settings):
        yield


def horizontal_bars(axes: Axes, names: list[str], group: float = 1.0) -> None:
    """Prepare axes for horizontal bars, first row on top. group: height of all bars of a row together."""
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=matplotlib.rcParams["text.color"])
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 1 + group / 2 + 0.1, -group / 2 - 0.1)


def to_image(figure: Figure) -> Image.Image:
    """The figure as an RGB picture of ``DPI`` pixels per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return Image.open(buffer).convert("RGB")


def to_svg_uri(figure: Figure) -> str:
    """The figure as an SVG in a data URI; the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
