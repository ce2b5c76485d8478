"""Figures as SVG for a page: bars with intervals, and curves over a dial. Colours are the page's own variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from .estimates import Estimate

#: Colours that everybody tells apart (the first after Okabe and Ito 2008), for light and for dark pages.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#a6569d", "#b8860b", "#4b5563", "#2a9fd6", "#8a3b12", "#c2185b", "#6b8e23")
DARK = ("#56b4e9", "#f08a3c", "#2fc79a", "#d49acb", "#f0c84a", "#a8b0bd", "#8fd0f5", "#d9906a", "#f48fb1", "#b5cc6a")

_WIDTH, _LEFT, _RIGHT = 640, 118, 54
_LETTER = 7.0  # px, about the width of one in a row's name
_BAR, _GAP, _GROUP = 15, 3, 16


@dataclass(frozen=True)
class Series:
    """One colour of a chart. values: one estimate per row or dial position, None where there is none."""

    label: str
    values: Sequence[Estimate | None]
    colour: int = 0


def style() -> str:
    """The colours as CSS variables of a page."""
    light = " ".join(f"--s{i}: {colour};" for i, colour in enumerate(LIGHT))
    dark = " ".join(f"--s{i}: {colour};" for i, colour in enumerate(DARK))
    return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def bars(rows: Sequence[str], series: Sequence[Series], *, title: str, top: float | None = None) -> str:
    """Horizontal bars, a group per row, whiskers for the intervals."""
    highest = top or _highest([v for s in series for v in s.values if v is not None])
    left = min(_WIDTH / 2, max(_LEFT, 16 + _LETTER * max(map(len, rows), default=0)))
    span = _WIDTH - left - _RIGHT
    each = len(series) * (_BAR + _GAP) + _GROUP
    height = len(rows) * each + 30
    parts = [_open(_WIDTH, height, title)]
    for tick in _ticks(highest):
        x = left + span * tick / highest
        parts.append(_line(x, 4, x, height - 24, "grid"))
        parts.append(_text(x, height - 8, _number(tick), "tick", "middle"))
    for r, row in enumerate(rows):
        y = 8 + r * each
        middle = y + (each - _GROUP) / 2 + 4
        parts.append(_text(left - 10, middle, row, "row", "end"))
        for one in series:
            parts.append(_bar(one.values[r], (left, y), span, highest, one))
            y += _BAR + _GAP
    return "".join([*parts, "</svg>"])


def _highest(values: Sequence[Estimate]) -> float:
    """Where the axis ends: behind the intervals, but a share is never drawn beyond 1."""
    ends = max((value.mean + value.half for value in values), default=1.0)
    return min(1.0, _round_up(ends)) if all(value.mean <= 1.0 for value in values) else _round_up(ends)


def _bar(value: Estimate | None, at: tuple[float, float], span: float, highest: float, series: Series) -> str:
    left, y = at
    if value is None:
        return _text(left + 4, y + _BAR - 3, "not measured", "tick", "start")
    fill = f"fill:var(--s{series.colour % len(LIGHT)})"
    width = max(0.0, min(1.0, value.mean / highest)) * span
    low, high = (
        left + span * max(0.0, min(1.0, v / highest)) for v in (value.mean - value.half, value.mean + value.half)
    )
    middle = y + _BAR / 2
    said = f"<title>{escape(series.label)}: {value}</title>"
    drawn = f'<rect x="{left}" y="{y:.1f}" width="{width:.1f}" height="{_BAR}" rx="2" style="{fill}">{said}</rect>'
    whisker = _line(low, middle, high, middle, "whisker") if value.half else ""
    return drawn + whisker + _text(max(high, left + width) + 6, y + _BAR - 3, f"{value.mean:.2f}", "value", "start")


def curve(positions: Sequence[str], series: Sequence[Series], *, title: str, axis: str) -> str:
    """Estimates over the settings of one dial, evenly spaced, with bands for the intervals."""
    width, height, left, right, top, bottom = _WIDTH, 300, 52, 24, 14, 46
    known = [v for s in series for v in s.values if v is not None]
    low, high = _range([v.mean - v.half for v in known], [v.mean + v.half for v in known])
    step = (width - left - right) / max(1, len(positions) - 1) if len(positions) > 1 else 0.0

    def at(index: int, value: float) -> tuple[float, float]:
        x = left + index * step if step else (left + width - right) / 2
        return x, top + (height - top - bottom) * (high - value) / (high - low)

    parts = [_open(width, height, title)]
    for tick in _ticks(high, low):
        y = at(0, tick)[1]
        parts.append(_line(left, y, width - right, y, "grid") + _text(left - 8, y + 4, _number(tick), "tick", "end"))
    for i, position in enumerate(positions):
        parts.append(_text(at(i, low)[0], height - bottom + 18, position, "tick", "middle"))
    parts.append(_text((left + width - right) / 2, height - 8, axis, "row", "middle"))
    parts += [_curve(one, at) for one in series]
    return "".join([*parts, "</svg>"])


def _curve(series: Series, at: Callable[[int, float], tuple[float, float]]) -> str:
    known = [(i, v) for i, v in enumerate(series.values) if v is not None]
    if not known:
        return ""
    colour = f"var(--s{series.colour % len(LIGHT)})"
    band = [at(i, v.mean + v.half) for i, v in known] + [at(i, v.mean - v.half) for i, v in reversed(known)]
    drawn = f'<polygon points="{_points(band)}" style="fill:{colour};opacity:.16"/>'
    line = [at(i, v.mean) for i, v in known]
    drawn += f'<polyline points="{_points(line)}" style="fill:none;stroke:{colour};stroke-width:2.4"/>'
    for (x, y), (_, value) in zip(line, known, strict=True):
        said = f"<title>{escape(series.label)}: {value}</title>"
        drawn += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" style="fill:{colour}">{said}</circle>'
    return drawn


def legend(series: Sequence[Series]) -> str:
    """The colours with their names, as HTML."""
    keys = "".join(
        f'<span><i style="background:var(--s{one.colour % len(LIGHT)})"></i>{escape(one.label)}</span>'
        for one in series
    )
    return f'<p class="legend">{keys}</p>'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _open(width: float, height: float, title: str) -> str:
    said = escape(title)
    return f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{said}"><title>{said}</title>'


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _text(x: float, y: float, said: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'


def _round_up(value: float) -> float:
    """The next of 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12) if m * power >= value * (1 - 1e-9))


def _range(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    low, high = min(lows, default=0.0), max(highs, default=1.0)
    room = max(0.02, 0.12 * (high - low))
    return low - room, high + room


def _ticks(high: float, low: float = 0.0) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.3g}" if value else "0"
