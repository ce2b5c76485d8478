"""Records to figures: per person, per category, over everybody, with intervals over people.

| figure | what it is |
|---|---|
| likeness | (cosine - floor) / (ceiling - floor), a face not found is the floor; worlds only (benchmarks/likeness.py) |
| identity | cosine of the scoring recogniser with the truth, a face not found counting as 0 |
| identity_found | the same over pictures in which the faces were found |
| detected | share of pictures in which the faces were found |
| fidelity | share of what prompts state that a reader sees in the picture; CLIP's cosine for photographs |
| assigned | two people: after the best matching of faces to names each face is nearer to its own name |
| sides | two people: so without matching, the first-named on the left |
| bleeding | two people: how much nearer a face is to the other one than the two truly are, as a share of likeness |
| pose | root mean square of how far heads turn and tilt from their own mean, degrees |
| expression | chance that two pictures of the reconstruction and expression prompts show different expressions |

Figures of one person alone (likeness to detected) are over the prompts that show one person, except style, which only
has a category of its own: the world's style hides colours, the photographs' styles hide faces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .image_metrics import (
    ImageMetrics,
    PairMetrics,
    Scale,
    alone_scale,
    couple_of,
    mark_alone,
    mark_beside,
    mark_couple,
)
from .intervals import Estimate, by_couples, estimate
from .prompts import CATEGORIES, Prompt
from .results import Sample, SubjectRecord
from .scorers import ImageScores

#: Categories behind the figures of one person alone.
ALONE = ("reconstruction", "action", "expression")
PER_PICTURE = ("likeness", "identity", "identity_found", "detected", "prompt_fidelity", "identity_assignment", "left_right_accuracy", "identity_leakage")
SUMMARY = (*PER_PICTURE, "pair_likeness", "pose", "expression", "seconds", "bytes")

Person = dict[str, float | None]


@dataclass(frozen=True)
class CohortMetrics:
    """A cast's figures. people: name -> figure -> value. true_pose, true_expression: what true pictures show."""

    title: str
    summary: dict[str, Estimate | None]
    by_category: dict[str, dict[str, Estimate | None]]
    by_prompt: dict[str, dict[str, Estimate | None]]
    people: dict[str, Person]
    marks: list[list[ImageMetrics]] = field(repr=False, default_factory=list[list[ImageMetrics]])

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures."""

        def plain(row: dict[str, Estimate | None]) -> dict[str, Any]:
            return {k: {"mean": v.mean, "half": v.half, "people": v.count} for k, v in row.items() if v is not None}

        return {
            "title": self.title,
            "summary": plain(self.summary),
            "by_category": {name: plain(row) for name, row in self.by_category.items()},
            "by_prompt": {name: plain(row) for name, row in self.by_prompt.items()},
            "people": {name: {k: v for k, v in row.items() if v is not None} for name, row in self.people.items()},
        }


def read_figures(said: Mapping[str, Any]) -> CohortMetrics:
    """The inverse of ``Figures.to_json``; what nobody knew is missing, and there are no marks."""

    def row(values: Mapping[str, Any]) -> dict[str, Estimate | None]:
        return {key: Estimate(one["mean"], one["half"], one["people"]) for key, one in values.items()}

    kinds = [{name: row(one) for name, one in said[kind].items()} for kind in ("by_category", "by_prompt")]
    people = {name: dict(one) for name, one in said["people"].items()}
    return CohortMetrics(said["title"], row(said["summary"]), kinds[0], kinds[1], people)


def figures(title: str, records: Sequence[SubjectRecord], prompts: Sequence[Prompt], *, couples: bool = False) -> CohortMetrics:
    """Measure a cast. Floors and ceilings are those of the cast, so records of one cast belong in one call.

    couples: everybody's partner is the next or the one before, so that intervals are over couples. In a cast where
    each stands beside the next of a ring they are over people, and those of pairs a little narrow for that.
    """
    over_people: Callable[[Iterable[float | None]], Estimate | None] = (
        (lambda values: estimate(by_couples(values))) if couples else estimate
    )
    marks = mark_everybody(records, prompts)
    people = {record.name: _person(record, row, prompts) for record, row in zip(records, marks, strict=True)}
    categories = [name for name in CATEGORIES if any(prompt.category == name for prompt in prompts)]

    def over(row_of: Callable[[ImageMetrics], bool]) -> dict[str, Estimate | None]:
        rows = [_means([mark for mark in row if row_of(mark)]) for row in marks]
        return {name: over_people(row[name] for row in rows) for name in PER_PICTURE}

    return CohortMetrics(
        title,
        {
            name: over_people(row[name] for row in people.values())
            for name in [*SUMMARY, "true_pose", "true_expression"]
        },
        {name: over(lambda mark, name=name: mark.prompt.category == name) for name in categories},
        {prompt.say("X", "Y"): over(lambda mark, prompt=prompt: mark.prompt is prompt) for prompt in prompts},
        people,
        marks,
    )


def mark_everybody(records: Sequence[SubjectRecord], prompts: Sequence[Prompt]) -> list[list[ImageMetrics]]:
    """The marks of every picture, a list per person."""
    scales = {p: alone_scale(records, p) for p, prompt in enumerate(prompts) if prompt.people == 1}
    couples = [
        {p: couple_of(record, p) for p, prompt in enumerate(prompts) if prompt.people == 2} for record in records
    ]
    pooled = {
        name: _pooled([c for row in couples for p, c in row.items() if prompts[p].category == name])
        for name in ("pair", "celebrity")
    }

    def mark(person: int, shot: Sample) -> ImageMetrics | None:
        prompt, p = prompts[shot.prompt], shot.prompt
        truths = [seen.seen for seen in records[person].truth if seen.prompt == p]
        if prompt.people == 1:
            return mark_alone(shot, prompt, [_first(seen) for seen in truths], scales[p])
        couple = couples[person][p]
        if couple is not None:
            return mark_couple(shot, prompt, couple, pooled[prompt.category])
        if len(truths) == 1 and len(truths[0].features) == 1:
            return mark_beside(shot, prompt, truths[0].features[0])
        return None  # a true picture hides a face: nothing to compare with

    return [
        [made for made in (mark(person, shot) for shot in record.made) if made is not None]
        for person, record in enumerate(records)
    ]


def _first(seen: ImageScores) -> Any:
    return seen.features[0] if len(seen.features) else None


def _pooled(couples: Sequence[PairMetrics | None]) -> Scale:
    known = [couple.scale for couple in couples if couple is not None and couple.scale.known]
    if not known:
        return Scale()
    return Scale(float(np.mean([s.floor for s in known])), float(np.mean([s.ceiling for s in known])), True)


def _means(marks: Sequence[ImageMetrics]) -> Person:
    """Means over pictures; each prompt weighs the same, for each has as many pictures."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    row: Person = {
        name: mean([getattr(mark, name) for mark in marks])
        for name in PER_PICTURE
        if name not in ("detected", "identity_found")
    }
    row["detected"] = mean([float(mark.found) for mark in marks])
    row["identity_found"] = mean([mark.identity for mark in marks if mark.found])
    return row


def _person(record: SubjectRecord, marks: Sequence[ImageMetrics], prompts: Sequence[Prompt]) -> Person:
    alone = _means([mark for mark in marks if mark.prompt.category in ALONE])
    pairs = _means([mark for mark in marks if mark.prompt.category == "pair"])
    told = _means(marks)["prompt_fidelity"]
    row: Person = {**alone, "prompt_fidelity": told, "pair_likeness": pairs["likeness"]}
    row |= {name: pairs[name] for name in ("identity_assignment", "left_right_accuracy", "identity_leakage")}
    for name, shots in (("", record.made), ("true_", record.truth)):
        if name and not _is_world(record):
            continue
        row[f"{name}pose"] = pose_spread(shots, prompts)
        row[f"{name}expression"] = expression_spread(shots, prompts)
    row |= {"seconds": record.seconds, "bytes": record.bytes}
    return {name: row.get(name) for name in [*SUMMARY, "true_pose", "true_expression"]}


def _is_world(record: SubjectRecord) -> bool:
    return any(shot.draw > 0 for shot in record.truth)


def pose_spread(shots: Sequence[Sample], prompts: Sequence[Prompt]) -> float | None:
    """Root mean square distance of (roll, yaw) from the person's mean, degrees, over pictures of them alone."""
    poses = [s.seen.poses[0, :2] for s in shots if prompts[s.prompt].people == 1 and len(s.seen.poses)]
    return float(np.sqrt(np.var(np.array(poses), axis=0).sum())) if len(poses) > 1 else None


def expression_spread(shots: Sequence[Sample], prompts: Sequence[Prompt]) -> float | None:
    """Chance that two of the pictures show different expressions, where a reader tells them; None where none does."""
    counted = [
        shot.seen.said["expression"]
        for shot in shots
        if prompts[shot.prompt].category in ("reconstruction", "expression") and "expression" in shot.seen.said
    ]
    count = len(counted)
    if count < 2:
        return None
    same = sum(counted.count(word) * (counted.count(word) - 1) for word in set(counted))
    return 1.0 - same / (count * (count - 1))
