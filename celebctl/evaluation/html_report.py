"""The report as one self-contained HTML page: figures, charts, worst cases, galleries (template: report.html.j2)."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from .charts import Chart, Series, bars
from .image_metrics import ImageMetrics, stated
from .intervals import Estimate
from .metrics import CohortMetrics
from .results import SubjectRecord

#: Figures of the table: key, heading, digits, what a reader should know.
COLUMNS: tuple[tuple[str, str, int, str], ...] = (
    ("likeness", "likeness", 3, "share of the way from a stranger to a true picture of the person"),
    ("identity", "identity", 3, "cosine of the judge; a face not found counts as 0"),
    ("identity_found", "where found", 3, "the same over pictures with a face"),
    ("detected", "face found", 3, "share of pictures with a face"),
    ("prompt_fidelity", "prompt", 3, "how much of the prompt is in the picture"),
    ("identity_assignment", "identity_assignment", 3, "two people: both faces can be told to be who was named"),
    ("left_right_accuracy", "left_right_accuracy", 3, "two people: and stand where they were named"),
    ("identity_leakage", "identity_leakage", 3, "two people: how much a face takes from the other one; 0 is none"),
    ("pose", "pose °", 1, "how much heads turn and tilt"),
    ("expression", "expressions", 2, "chance that two pictures show different expressions"),
    ("seconds", "s each", 1, "seconds of learning per person"),
    ("bytes", "size on disk", 0, "bytes of the identity file"),
)
_GALLERY, _WORST = 9, 12  # pictures per person at first sight; worst cases shown
_COMPARED = 6  # people shown side by side


@dataclass(frozen=True)
class Group:
    """A cast's figures and the records they were made of."""

    figures: CohortMetrics
    records: Sequence[SubjectRecord]


Owned = tuple[SubjectRecord, ImageMetrics]


@dataclass(frozen=True)
class _Tile:
    label: str
    value: Estimate
    others: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class _Worst:
    """judged: whether anything judged how pictures fit their prompts."""

    by_look: Sequence[Owned]
    by_prompt: Sequence[Owned]
    judged: bool


def write_page(title: str, about: str, groups: Sequence[Group], settings: Mapping[str, str]) -> str:
    """The whole report. The first group with photos is what was asked for; the others are references."""
    main = next((group for group in groups if any(record.photo for record in group.records)), groups[-1])
    ordered = [main, *(group for group in groups if group is not main)]
    rows = [group.figures for group in groups]
    return _page(
        title, about, rows,
        groups=groups if len(groups) > 2 else ordered, tiles=_tiles(ordered), charts=_category_charts(rows),
        worst=_worst(main), compared=groups[0].records[:_COMPARED], settings=settings,
    )  # fmt: skip


def write_plot_page(title: str, about: str, plot: Chart, rows: Sequence[CohortMetrics]) -> str:
    """One chart and the table of figures behind it."""
    return _page(title, about, rows, plot=plot)


def columns_of(rows: Sequence[CohortMetrics]) -> list[tuple[str, str, int, str]]:
    """The ``COLUMNS`` for which any row has a value."""
    return [column for column in COLUMNS if any(row.summary.get(column[0]) is not None for row in rows)]


def _page(title: str, about: str, rows: Sequence[CohortMetrics], **parts: Any) -> str:
    """The template, filled in. Everything that is not given is left out of the page."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template("report.html.j2").render(
        title=title, about=about, rows=rows, columns=columns_of(rows), all_columns=COLUMNS,
        base64=_base64, capital=_capital, number=_number,
        score=_look_of, person_score=_person_score, request=_request, verdict=_verdict, some=_some, **parts,
    )  # fmt: skip


def _tiles(groups: Sequence[Group]) -> list[_Tile]:
    """The most important figures of the first group, with those of the others below."""
    summary = groups[0].figures.summary
    first = "likeness" if summary.get("likeness") else "identity"
    names = {first: first, "prompt_fidelity": "prompt", "identity_assignment": "two people told apart", "detected": "face found"}
    tiles: list[_Tile] = []
    for key, label in names.items():
        found = [(group.figures.title, group.figures.summary.get(key)) for group in groups[1:]]
        others = [(title, value.mean) for title, value in found if value is not None]
        if len(others) > 2:  # the best of them; the table has the rest
            others = sorted(others, key=lambda other: -other[1])[:2]
        if (value := summary.get(key)) is not None:
            tiles.append(_Tile(label, value, others))
    return tiles


def _category_charts(rows: Sequence[CohortMetrics]) -> list[Chart]:
    """Likeness (or identity) and prompt fidelity per category, a colour per cast."""
    first = "likeness" if any(row.summary.get("likeness") for row in rows) else "identity"
    names = {first: _capital(first), "prompt_fidelity": "Prompt fidelity"}
    if any(row.summary.get("identity_assignment") for row in rows):
        names |= {"identity_assignment": "Faces assigned to the right name", "identity_leakage": "Bleeding (less is better)"}
    charts: list[Chart] = []
    for key, title in names.items():
        wanted = [c for c in rows[0].by_category if any(row.by_category.get(c, {}).get(key) for row in rows)]
        series = [Series(row.title, [row.by_category.get(c, {}).get(key) for c in wanted]) for row in rows]
        if wanted:
            charts.append(bars(wanted, series, title=title))
    return charts


def _worst(group: Group) -> _Worst:
    """The pictures least like the person, and those that miss most of the prompt."""
    owned = [(record, mark) for record, row in zip(group.records, group.figures.marks, strict=True) for mark in row]
    judged = [pair for pair in owned if pair[1].prompt_fidelity is not None]
    missing = sorted(judged, key=lambda pair: (pair[1].prompt_fidelity or 0.0, _look_of(pair[1])))
    if any("two" in mark.shot.seen.said for _, mark in judged):
        missing = [pair for pair in missing if (pair[1].prompt_fidelity or 0.0) < 1.0]
    by_look = sorted(owned, key=lambda pair: _look_of(pair[1]))
    people = len(group.records)
    return _Worst(_few_of_each(by_look, people), _few_of_each(missing, people), bool(judged))


def _few_of_each(cases: Sequence[Owned], people: int) -> list[Owned]:
    """The first cases, of which no person has more than a share."""
    most = max(2, math.ceil(2 * _WORST / people))
    shown: list[Owned] = []
    for record, mark in cases:
        if sum(one is record for one, _ in shown) < most:
            shown.append((record, mark))
    return shown[:_WORST]


def _look_of(mark: ImageMetrics) -> float:
    return mark.likeness if mark.likeness is not None else mark.identity


def _person_score(person: Mapping[str, float | None]) -> str:
    key = "likeness" if person.get("likeness") is not None else "identity"
    value = person.get(key)
    return "" if value is None else f"{key} {value:.3f}"


def _request(record: SubjectRecord, mark: ImageMetrics) -> str:
    return mark.prompt.say(record.name, "their partner" if mark.prompt.category == "pair" else "a celebrity")


def _verdict(mark: ImageMetrics) -> str:
    words = [f"{'likeness' if mark.likeness is not None else 'identity'} {_look_of(mark):.2f}"]
    if not mark.found:
        words.append("a face was not found")
    if mark.identity_assignment == 0.0 and mark.found:
        words.append("cannot be told apart")
    if mark.prompt_fidelity is not None and "two" in mark.shot.seen.said:
        told = ["one or two people", *(f"{value}" for value in mark.prompt.states.values())]
        missed = [t for t, ok in zip(told, stated(mark.prompt, mark.shot.seen.said), strict=True) if not ok]
        words += [f"missing: {', '.join(missed)}"] if missed else []
    elif mark.prompt_fidelity is not None:
        words.append(f"CLIP {mark.prompt_fidelity:.2f}")
    return ", ".join(words)


def _some(marks: Sequence[ImageMetrics]) -> list[ImageMetrics]:
    """One picture of some prompts, evenly over the list."""
    first = [mark for mark in marks if mark.shot.draw == 0]
    step = max(1.0, len(first) / _GALLERY)
    return [first[int(i * step)] for i in range(min(_GALLERY, len(first)))]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"
