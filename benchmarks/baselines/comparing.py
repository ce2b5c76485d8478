"""Methods beside one another: differences person by person, and figures of earlier runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from celebctl.evaluation.intervals import Estimate, by_couples, estimate
from celebctl.evaluation.metrics import Figures, read_figures

COMPARED = {"likeness": "likeness", "prompt_fidelity": "prompt", "pair_likeness": "likeness in pairs"}


def lead(ours: Figures, theirs: Figures, key: str) -> Estimate | None:
    """How far we are ahead in a figure, in the mean over couples whom both learned: they are the same people, so the
    interval of the difference is narrower than those of the two means."""
    both = [name for name in ours.people if name in theirs.people]
    pairs = [(ours.people[name].get(key), theirs.people[name].get(key)) for name in both]
    return estimate(by_couples(None if a is None or b is None else a - b for a, b in pairs))


def verdict(one: Estimate | None) -> str:
    """The difference, and what it says: ahead, behind, or within the interval."""
    if one is None:
        return ""
    word = "ahead" if one.mean > one.half else "behind" if one.mean < -one.half else "no difference shown"
    return f"{one.mean:+.3f} ± {one.half:.3f} ({word})"


def room(theirs: Figures) -> Estimate | None:
    """How far somebody whose pictures show all that prompts state would be ahead of a method."""
    told = [row.get("prompt_fidelity") for row in theirs.people.values()]
    return estimate(by_couples(None if share is None else 1.0 - share for share in told))


def lead_rows(ours: Figures, others: Sequence[Figures]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: our lead over everybody else, and the lead on prompts that one could have at all."""
    cells: list[list[str]] = []
    for other in others:
        most = room(other)
        said = "" if most is None else f"{most.mean:+.4f} ± {most.half:.4f}"
        cells.append([other.title, *(verdict(lead(ours, other, key)) for key in COMPARED), said])
    return [f"{ours.title} against", *COMPARED.values(), "prompt, without a mistake"], cells


def earlier(file: Path, settings: Mapping[str, Any], known: Collection[str]) -> dict[str, Figures]:
    """Figures of methods in an earlier result with the same settings, by name, but for those ``known`` now."""
    try:
        document: Mapping[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if document["settings"] != dict(settings):
        return {}
    return {name: read_figures(said) for name, said in document["methods"].items() if name not in known}


def partners(count: int) -> list[int]:
    """Who is learned and drawn with whom, two by two: 0 with 1, 2 with 3."""
    return [i ^ 1 for i in range(count)]


def part(text: str) -> tuple[int, int]:
    """``2/8``: the second of eight parts. Raises ValueError for what is none."""
    number, _, of = text.partition("/")
    if not 1 <= int(number) <= int(of):
        raise ValueError(text)
    return int(number), int(of)


def couples_in(share: tuple[int, int], people: int) -> list[int]:
    """The people of a part: every so many-th couple, for couples are learned together."""
    number, of = share
    return [i for i in range(people) if i // 2 % of == number - 1]
