"""A report as a picture: a panel of bars for each thing measured, ours in blue and others' in orange."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from celebctl.pen import COLOURS, FAINT, INK, Pen

_WIDTH, _HEAD, _BAR, _GAP, _PANEL = 1200, 104, 30, 10, 66  # pixels: across, above, of a bar, between, around a panel
_LEFT, _LABELS, _RIGHT = 48, 190, 270  # margin, room for names before the bars and for numbers behind them


@dataclass(frozen=True)
class Panel:
    """One thing measured: the key of a contestant's row and of a ratio, what it means, how a number is written."""

    key: str
    ratio: str
    title: str
    write: Callable[[float], str]


PANELS = (
    Panel("cold", "cold", "Cold start: process to PNG", lambda value: f"{value:.2f} s"),
    Panel(
        "first",
        "first",
        "First picture in a fresh interpreter: imports, model, picture",
        lambda value: f"{value:.2f} s",
    ),
    Panel("picture", "picture", "Every further picture", lambda value: f"{value * 1e3:.0f} ms"),
    Panel("step_ms", "step", "One step of the sampler", lambda value: f"{value:.2f} ms"),
    Panel("memory_mib", "memory", "Peak main memory", lambda value: f"{value:,.0f} MiB"),
    Panel("gpu_memory_mib", "gpu_memory", "Memory held on the GPU", lambda value: f"{value:,.0f} MiB"),
)


def draw_report(report: Mapping[str, Any]) -> Image.Image:
    """The picture of a report as contest.report makes it."""
    rows: Sequence[Mapping[str, Any]] = report["contestants"]
    shown = [panel for panel in PANELS if any(row[panel.key] for row in rows)]
    height = _PANEL + len(rows) * (_BAR + _GAP)
    pen = Pen(_WIDTH, _HEAD + len(shown) * height + 34)
    pen.text((_LEFT, 26), title_of(report), 25)
    pen.text((_LEFT, 62), machine_of(report), 15, FAINT)
    for number, panel in enumerate(shown):
        _panel(pen, _HEAD + number * height, panel, report)
    pen.text((_LEFT, _HEAD + len(shown) * height), note_of(report), 13, FAINT)
    return pen.finish()


def title_of(report: Mapping[str, Any]) -> str:
    """What was drawn."""
    settings = report["settings"]
    size = f"{settings['width']} x {settings['height']}"
    guided = f", guidance {settings['guidance']:g}" if settings["guidance"] > 1 else ""
    return f"{settings['model']}: {size}, {settings['steps']} steps of {settings['sampler']}{guided}"


def machine_of(report: Mapping[str, Any]) -> str:
    """What it was drawn on."""
    machine, packages = report["machine"], report["machine"]["packages"]
    threads = report["settings"]["threads"] or machine["cores"]
    chips = [*machine["gpus"], f"{machine['cpu']}, {threads} thread{'' if threads == 1 else 's'}"]
    tools = [f"{name} {packages[name]}" for name in ("onnxruntime", "torch", "diffusers") if name in packages]
    return "; ".join([*chips, ", ".join(tools)])


def note_of(report: Mapping[str, Any]) -> str:
    """How to read the numbers."""
    settings = report["settings"]
    told = f"Medians of {settings['rounds']} rounds ({settings['cold_rounds']} cold), contestants in turn."
    if "missing" in report:
        return f"{told} {report['missing']}."
    return f"{told} Ratios are medians of pairs within a round; the line is the hardware's limit."


def _panel(pen: Pen, top: float, panel: Panel, report: Mapping[str, Any]) -> None:
    rows = [row for row in report["contestants"] if row[panel.key]]
    most = max(row[panel.key] for row in rows)
    left, right = _LEFT + _LABELS, _WIDTH - _RIGHT
    pen.text((_LEFT, top + 18), panel.title, 17)
    for number, row in enumerate(rows):
        y = top + 46 + number * (_BAR + _GAP) + _BAR / 2
        end = left + (right - left) * row[panel.key] / most
        colour = COLOURS[1] if row["rival"] else COLOURS[0]
        pen.text((left - 14, y), row["name"], 15, anchor="rm")
        pen.line([(left, y), (max(end, left + 2), y)], colour, _BAR)
        said = panel.write(row[panel.key])
        pen.text((end + 12, y), said, 15, INK, anchor="lm")
        pen.text((end + 24 + pen.width(said, 15), y), _ratio(report, row, panel), 15, FAINT, anchor="lm")
        if panel.key == "step_ms":
            _limit(pen, left, right, most, y, _floor(report, row["name"]))


def _limit(pen: Pen, left: float, right: float, most: float, y: float, floor: float | None) -> None:
    if floor is not None:
        x = left + (right - left) * floor / most
        pen.line([(x, y - _BAR / 2 - 3), (x, y + _BAR / 2 + 3)], INK, 2)


def _floor(report: Mapping[str, Any], name: str) -> float | None:
    found = [row["floor_ms_per_step"] for row in report["roofline"] if row["name"] == name]
    return float(found[0]) if found else None


def _ratio(report: Mapping[str, Any], row: Mapping[str, Any], panel: Panel) -> str:
    better = "less" if panel.ratio.endswith("memory") else "faster"
    rivals = {other["name"] for other in report["contestants"] if other["rival"]}
    found = [
        f"{ratio['values'][panel.ratio]:.2f}x" + (f" of {ratio['theirs']}" if number else "")
        for number, ratio in enumerate(
            r for r in report["ratios"] if r["ours"] == row["name"] and r["theirs"] in rivals
        )
        if panel.ratio in ratio["values"]
    ]
    return f"{', '.join(found)} {better}" if found else ""
