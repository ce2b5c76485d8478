"""Figures as text: a Markdown table for pipes and files, rows for a terminal, one document for programs."""

from __future__ import annotations

from collections.abc import Sequence

from .html_report import columns_of
from .metrics import CohortMetrics


def rows_of(casts: Sequence[CohortMetrics]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; figures that nobody has are left out."""
    shown = columns_of(casts)
    cells: list[list[str]] = []
    for row in casts:
        said = [row.title]
        for key, _, digits, _ in shown:
            value = row.summary.get(key)
            if value is None:
                said.append("")
            elif digits > 2:
                said.append(str(value))
            else:
                said.append(f"{value.mean:,.{digits}f}")
        cells.append(said)
    return ["who", *(heading for _, heading, _, _ in shown)], cells


def category_rows(casts: Sequence[CohortMetrics]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of likeness (or identity) and prompt fidelity per category."""
    categories = list(casts[0].by_category)
    cells: list[list[str]] = []
    for row in casts:
        for key in ("likeness", "identity", "prompt_fidelity"):
            values = [row.by_category.get(category, {}).get(key) for category in categories]
            if any(values) and not (key == "identity" and row.summary.get("likeness")):
                cells.append([f"{row.title}: {key}", *("" if v is None else str(v) for v in values)])
    return ["by kind of prompt", *categories], cells


def markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table as lines."""
    rows = [head, ["---"] * len(head), *cells]
    return [f"| {' | '.join(row)} |" for row in rows]
