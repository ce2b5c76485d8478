"""The report of an evaluation: tables, the JSON document, and both files on disk.

The document: ``{"settings": {...}, "cohorts": [...]}``. Settings are what decides the numbers: ``model``,
``token_table_hash``, ``weights_digest``, ``scorer``, ``prompts`` (number), ``prompts_hash``, ``images_per_prompt``,
``clip`` and, by kind of cohort, ``people``, ``people_per_call``, ``learning``, ``mapper_digest``. Each cohort is a
`CohortMetrics.to_json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from celebctl_runtime.files import atomic_write

from .columns import used_columns
from .metrics import CohortMetrics, CohortResult


def summary_table(cohorts: Sequence[CohortMetrics]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, a row per cohort; metrics without any value are left out."""
    columns = used_columns(cohorts)
    rows: list[list[str]] = []
    for cohort in cohorts:
        row = [cohort.title]
        for column in columns:
            value = cohort.summary.get(column.key)
            number = "" if value is None else f"{value.mean:z,.{column.digits}f}"
            row.append(str(value) if value is not None and column.digits > 2 else number)
        rows.append(row)
    return ["cohort", *(column.heading for column in columns)], rows


def category_table(cohorts: Sequence[CohortMetrics]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of likeness (or identity similarity) and prompt fidelity per prompt category."""
    categories = list(cohorts[0].by_category)
    labels = {"likeness": "likeness", "identity_similarity": "identity", "prompt_fidelity": "prompt"}
    rows: list[list[str]] = []
    for cohort in cohorts:
        for key, label in labels.items():
            values = [cohort.by_category.get(category, {}).get(key) for category in categories]
            if any(values) and not (key == "identity_similarity" and cohort.summary.get("likeness")):
                rows.append([f"{cohort.title}: {label}", *("" if v is None else str(v) for v in values)])
    return ["by prompt category", *categories], rows


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table as lines."""
    table = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(row)} |" for row in table]


def report_document(results: Sequence[CohortResult], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON document of the module's docstring."""
    return {"settings": dict(settings), "cohorts": [one.metrics.to_json() for one in results]}


def write_report(results: Sequence[CohortResult], folder: Path, settings: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.json`` into a folder.

    Returns:
        The paths of page and document.
    """
    from .html_report import render_report

    people = len(results[0].records)
    title = f"{people} {'person' if people == 1 else 'people'} in {settings['model']}"
    about = (
        f"{settings['prompts']} prompts, {settings['images_per_prompt']} images per prompt; "
        f"scored by {settings['scorer']}"
    )
    page, document = folder / "report.html", folder / "report.json"
    shown = {name.replace("_", " "): _in_words(value) for name, value in settings.items() if value is not None}
    atomic_write(page, render_report(title, about, results, shown).encode())
    atomic_write(document, (json.dumps(report_document(results, settings), indent=1) + "\n").encode())
    return page, document


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in cast("dict[str, Any]", value).items())
    return str(value)
