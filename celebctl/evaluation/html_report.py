"""The report as one self-contained HTML page: metrics, charts, worst cases, samples (template: report.html.j2)."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from .charts import Chart, Series, bar_chart
from .columns import used_columns
from .image_metrics import ImageMetrics, statements_met
from .intervals import Estimate
from .metrics import CohortMetrics, CohortResult
from .results import SubjectRecord

_PREVIEW, _WORST = 9, 12  # images per person at first sight; worst cases shown
_COMPARED = 6  # people shown side by side

Case = tuple[SubjectRecord, ImageMetrics]


@dataclass(frozen=True)
class _Tile:
    label: str
    value: Estimate
    others: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class _WorstCases:
    """scored: whether prompt fidelity was measured."""

    by_likeness: Sequence[Case]
    by_prompt: Sequence[Case]
    scored: bool


def render_report(title: str, about: str, results: Sequence[CohortResult], settings: Mapping[str, str]) -> str:
    """The whole report as HTML. The first cohort with photos leads; the others are for comparison."""
    main = next((result for result in results if any(record.photo for record in result.records)), results[-1])
    ordered = [main, *(result for result in results if result is not main)]
    rows = [result.metrics for result in results]
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template("report.html.j2").render(
        title=title, about=about, rows=rows, columns=used_columns(rows), settings=settings,
        results=results if len(results) > 2 else ordered, tiles=_tiles(ordered), charts=_category_charts(rows),
        worst=_worst_cases(main), compared=results[0].records[:_COMPARED],
        base64=_base64, capital=_capital, number=_number, score=_similarity,
        person_score=_person_score, request=_request, verdict=_verdict, preview=_preview,
    )  # fmt: skip


def _tiles(results: Sequence[CohortResult]) -> list[_Tile]:
    """The most important metrics of the first cohort, with those of the others below."""
    summary = results[0].metrics.summary
    first = "likeness" if summary.get("likeness") else "identity_similarity"
    labels = {
        first: first.replace("_", " "), "prompt_fidelity": "prompt fidelity",
        "identity_assignment": "identity assignment (two people)", "detection_rate": "face found",
    }  # fmt: skip
    tiles: list[_Tile] = []
    for key, label in labels.items():
        values = [(result.metrics.title, result.metrics.summary.get(key)) for result in results[1:]]
        others = [(title, value.mean) for title, value in values if value is not None]
        if len(others) > 2:  # the best of them; the table has the rest
            others = sorted(others, key=lambda other: -other[1])[:2]
        if (value := summary.get(key)) is not None:
            tiles.append(_Tile(label, value, others))
    return tiles


def _category_charts(rows: Sequence[CohortMetrics]) -> list[Chart]:
    """Likeness (or identity similarity), prompt fidelity and pair metrics per category, a colour per cohort."""
    titles = {
        "likeness": "Likeness", "identity_similarity": "Identity similarity", "prompt_fidelity": "Prompt fidelity",
        "identity_assignment": "Identity assignment", "identity_leakage": "Identity leakage (lower is better)",
    }  # fmt: skip
    if any(row.summary.get("likeness") for row in rows):
        del titles["identity_similarity"]
    charts: list[Chart] = []
    for key, title in titles.items():
        categories = [c for c in rows[0].by_category if any(row.by_category.get(c, {}).get(key) for row in rows)]
        series = [Series(row.title, [row.by_category.get(c, {}).get(key) for c in categories]) for row in rows]
        if categories:
            charts.append(bar_chart(categories, series, title=title))
    return charts


def _worst_cases(result: CohortResult) -> _WorstCases:
    """The images least like the person, and those that miss most of the prompt."""
    cases = [
        (record, image) for record, row in zip(result.records, result.metrics.images, strict=True) for image in row
    ]
    scored = [case for case in cases if case[1].prompt_fidelity is not None]
    missing = sorted(scored, key=lambda case: (case[1].prompt_fidelity or 0.0, _similarity(case[1])))
    if any("two" in image.sample.scores.attributes for _, image in scored):
        missing = [case for case in missing if (case[1].prompt_fidelity or 0.0) < 1.0]
    by_likeness = sorted(cases, key=lambda case: _similarity(case[1]))
    people = len(result.records)
    return _WorstCases(_spread(by_likeness, people), _spread(missing, people), bool(scored))


def _spread(cases: Sequence[Case], people: int) -> list[Case]:
    """The first cases, with at most a share for each person."""
    most = max(2, math.ceil(2 * _WORST / people))
    shown: list[Case] = []
    for record, image in cases:
        if sum(one is record for one, _ in shown) < most:
            shown.append((record, image))
    return shown[:_WORST]


def _similarity(image: ImageMetrics) -> float:
    return image.likeness if image.likeness is not None else image.identity_similarity


def _person_score(person: Mapping[str, float | None]) -> str:
    key = "likeness" if person.get("likeness") is not None else "identity_similarity"
    value = person.get(key)
    return "" if value is None else f"{key.replace('_', ' ')} {value:.3f}"


def _request(record: SubjectRecord, image: ImageMetrics) -> str:
    return image.prompt.format(record.name, "their partner" if image.prompt.category == "pair" else "a celebrity")


def _verdict(image: ImageMetrics) -> str:
    parts = [f"{'likeness' if image.likeness is not None else 'identity'} {_similarity(image):.2f}"]
    if not image.found:
        parts.append("face not found")
    if image.identity_assignment == 0.0 and image.found:
        parts.append("identities mixed up")
    attributes = image.sample.scores.attributes
    if image.prompt_fidelity is not None and "two" in attributes:
        statements = ["number of people", *image.prompt.states.values()]
        met = statements_met(image.prompt.states, image.prompt.people, attributes)
        missed = [statement for statement, ok in zip(statements, met, strict=True) if not ok]
        parts += [f"missing: {', '.join(missed)}"] if missed else []
    elif image.prompt_fidelity is not None:
        parts.append(f"CLIP {image.prompt_fidelity:.2f}")
    return ", ".join(parts)


def _preview(images: Sequence[ImageMetrics]) -> list[ImageMetrics]:
    """One image of some prompts, evenly over the list."""
    first = [image for image in images if image.sample.index == 0]
    step = max(1.0, len(first) / _PREVIEW)
    return [first[int(i * step)] for i in range(min(_PREVIEW, len(first)))]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"
