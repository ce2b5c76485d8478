"""A report as an image: a panel of bars for each measurement, celebctl in blue and baselines in orange."""

# matplotlib leaves the types of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from celebctl.plotting import LIGHT, chart_style, horizontal_bars, to_image

from .report import machine_of, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

_WIDTH = 12  # inches


@dataclass(frozen=True)
class Panel:
    """One measurement: the key of a contender's row, the key of a ratio, title and number format."""

    key: str
    ratio: str
    title: str
    write: Callable[[float], str]


PANELS = (
    Panel("cold", "cold", "Cold start: process to PNG", lambda value: f"{value:.2f} s"),
    Panel(
        "first",
        "first",
        "First image in a fresh interpreter: imports, model, image",
        lambda value: f"{value:.2f} s",
    ),
    Panel("picture", "picture", "Every further image", lambda value: f"{value * 1e3:.0f} ms"),
    Panel("step_ms", "step", "One step of the sampler", lambda value: f"{value:.2f} ms"),
    Panel("memory_mib", "memory", "Peak main memory", lambda value: f"{value:,.0f} MiB"),
    Panel("gpu_memory_mib", "gpu_memory", "Memory held on the GPU", lambda value: f"{value:,.0f} MiB"),
)


def draw_report(report: Mapping[str, Any]) -> Image.Image:
    """The image of a report (`celebctl.bench.report.report`)."""
    with chart_style():
        return to_image(make_figure(report))


def make_figure(report: Mapping[str, Any]) -> Figure:
    """The same as a figure, to be made within :func:`chart_style`."""
    rows: Sequence[Mapping[str, Any]] = report["contenders"]
    shown = [panel for panel in PANELS if any(row[panel.key] for row in rows)]
    height = 1.2 + len(shown) * (0.6 + 0.42 * len(rows))
    figure = Figure((_WIDTH, height), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.3))
    figure.suptitle(f"{title_of(report)}\n", x=0.02, ha="left", fontsize=17)
    figure.text(0.02, 1 - 0.58 / height, machine_of(report), fontsize=10, alpha=0.7)
    axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for panel, one in zip(shown, axes, strict=True):
        _panel(one, panel, report)
    figure.supxlabel(note_of(report), x=0.02, ha="left", fontsize=9, alpha=0.7)
    return figure


def note_of(report: Mapping[str, Any]) -> str:
    """How to read the numbers."""
    settings = report["settings"]
    text = f"Medians and quartiles of {settings['rounds']} rounds ({settings['cold_rounds']} cold), contenders in turn."
    if "no_baseline" in report:
        return f"{text} {report['no_baseline']}."
    return f"{text} Ratios are medians of pairs within a round; the line is the hardware's limit (best of all rounds)."


def _panel(axes: Axes, panel: Panel, report: Mapping[str, Any]) -> None:
    """One horizontal bar for each contender with this measurement, its value and its ratios."""
    rows = [row for row in report["contenders"] if row[panel.key]]
    values = [row[panel.key] for row in rows]
    limits = [_limit(report, row["name"]) if panel.key == "step_ms" else None for row in rows]
    horizontal_bars(axes, [row["name"] for row in rows])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_visible(False)
    axes.set_title(panel.title)
    axes.barh(range(len(rows)), values, 0.72, color=[LIGHT[1] if row["baseline"] else LIGHT[0] for row in rows])
    ends = [max(value, limit["floor_ms_per_step"] if limit else 0) for value, limit in zip(values, limits, strict=True)]
    axes.set_xlim(0, 1.3 * max(ends))
    for y, (row, limit, end) in enumerate(zip(rows, limits, ends, strict=True)):
        parts = [panel.write(row[panel.key]), _spread(row, panel), _ratio(report, row, panel)]
        parts += ["unreliable: over the limit"] if limit and not limit["reliable"] else []
        text = "   ".join(filter(None, parts))
        axes.annotate(text, (end, y), (8, 0), textcoords="offset points", va="center")
        if limit:
            axes.vlines(limit["floor_ms_per_step"], y - 0.45, y + 0.45, color=rcParams["text.color"])


def _limit(report: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((row for row in report["roofline"] if row["name"] == name), None)


def _spread(row: Mapping[str, Any], panel: Panel) -> str:
    quartiles = row["spread"].get(panel.key)
    return f"({panel.write(quartiles[0]).split()[0]} to {panel.write(quartiles[1])})" if quartiles else ""


def _ratio(report: Mapping[str, Any], row: Mapping[str, Any], panel: Panel) -> str:
    better = "less" if panel.ratio.endswith("memory") else "faster"
    baselines = {other["name"] for other in report["contenders"] if other["baseline"]}
    texts = [
        f"{ratio['values'][panel.ratio]:.2f}x" + (f" of {ratio['theirs']}" if number else "")
        for number, ratio in enumerate(
            r for r in report["ratios"] if r["ours"] == row["name"] and r["theirs"] in baselines
        )
        if panel.ratio in ratio["values"]
    ]
    return f"{', '.join(texts)} {better}" if texts else ""
