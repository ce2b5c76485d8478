"""Comparison of methods: differences person by person, and results of previous runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from celebctl.evaluation.intervals import Estimate, estimate, pair_means
from celebctl.evaluation.metrics import CohortMetrics

COMPARED = {"likeness": "likeness", "prompt_fidelity": "prompt", "pair_likeness": "likeness in pairs"}


def lead(ours: CohortMetrics, theirs: CohortMetrics, key: str) -> Estimate | None:
    """Mean difference of a metric over the pairs that both methods learned.

    They are the same people, so the interval of the difference is narrower than those of the two means."""
    both = [name for name in ours.people if name in theirs.people]
    pairs = [(ours.people[name].get(key), theirs.people[name].get(key)) for name in both]
    return estimate(pair_means(None if a is None or b is None else a - b for a, b in pairs))


def describe_difference(difference: Estimate | None) -> str:
    """The difference with its interval, and whether it is ahead, behind or within the interval."""
    if difference is None:
        return ""
    mean, half_width = difference.mean, difference.half_width
    word = "ahead" if mean > half_width else "behind" if mean < -half_width else "no difference shown"
    return f"{mean:+.3f} ± {half_width:.3f} ({word})"


def headroom(theirs: CohortMetrics) -> Estimate | None:
    """The lead of a method with perfect prompt fidelity."""
    values = [row.get("prompt_fidelity") for row in theirs.people.values()]
    return estimate(pair_means(None if value is None else 1.0 - value for value in values))


def lead_table(ours: CohortMetrics, others: Sequence[CohortMetrics]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: the lead over each method, and the largest possible lead in prompt fidelity."""
    rows: list[list[str]] = []
    for other in others:
        possible = headroom(other)
        text = "" if possible is None else f"{possible.mean:+.4f} ± {possible.half_width:.4f}"
        rows.append([other.title, *(describe_difference(lead(ours, other, key)) for key in COMPARED), text])
    return [f"{ours.title} against", *COMPARED.values(), "prompt, headroom"], rows


def previous_results(file: Path, settings: Mapping[str, Any], measured: Collection[str]) -> dict[str, CohortMetrics]:
    """CohortMetrics of methods in a previous result with the same settings, by name, without those ``measured`` now."""
    try:
        document: Mapping[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if document["settings"] != dict(settings):
        return {}
    return {name: CohortMetrics.from_json(one) for name, one in document["methods"].items() if name not in measured}


def pair_partners(count: int) -> list[int]:
    """The partner of each person, two by two: 0 with 1, 2 with 3."""
    return [i ^ 1 for i in range(count)]


def parse_part(text: str) -> tuple[int, int]:
    """``2/8``: the second of eight parts. Raises ValueError for anything else."""
    number, _, of = text.partition("/")
    if not 1 <= int(number) <= int(of):
        raise ValueError(text)
    return int(number), int(of)


def people_of_part(part: tuple[int, int], people: int) -> list[int]:
    """Indices of the people of a part; pairs stay together, because they are learned together."""
    number, of = part
    return [i for i in range(people) if i // 2 % of == number - 1]
