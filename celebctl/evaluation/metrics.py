"""Metrics of a cohort: per subject, per category and over all subjects, with intervals over subjects.

| key | definition | range |
|---|---|---|
| identity_similarity | cosine of the scoring recogniser's features with the reference (ArcFace, Deng et al. 2019); 0 \
where no face is found | -1 to 1 |
| identity_detected | the same over images in which the faces were found | -1 to 1 |
| likeness | (cosine - floor) / (ceiling - floor): floor between reference images of different people, ceiling between \
two reference images of one; a face not found counts as the floor; needs a world with references | about 0 to 1 |
| detection_rate | share of images in which the expected faces were found | 0 to 1 |
| prompt_fidelity | share of what the prompt states that the attribute reader confirms; for photographs the CLIP \
score, a cosine (Hessel et al. 2021) | 0 to 1; -1 to 1 |
| identity_assignment | two people: share of images in which, after the best matching of faces to names, each face is \
nearer to its own name than to the other | 0 to 1 |
| left_right_accuracy | two people: the same without matching, first name on the left | 0 to 1 |
| identity_leakage | two people: (cosine of a face with the other person - cosine of the two people) / (ceiling - \
floor) | 0 without leakage |
| pair_likeness | likeness in images of two learned people | about 0 to 1 |
| pose_spread | root mean square distance of (roll, yaw) from the subject's mean | degrees, 0 or more |
| expression_diversity | probability that two images of the reconstruction and expression prompts show different \
expressions (Simpson 1949) | 0 to 1 |
| learn_seconds | time of learning per person | seconds |
| size_bytes | size of the identity file | bytes |

The first four are over the prompts with one person, except style, which only has a category of its own: the world's
style hides colours, the photographs' styles hide faces. All other definitions are celebctl's own unless a source is
named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .image_metrics import (
    ImageMetrics,
    PairReference,
    Scale,
    pair_reference,
    score_pair,
    score_single,
    score_with_celebrity,
    single_scale,
)
from .intervals import Estimate, estimate, pair_means
from .prompts import CATEGORIES, Prompt
from .results import Sample, SubjectRecord

#: Categories behind the metrics of one person.
SINGLE = ("reconstruction", "action", "expression")
PER_IMAGE = (
    "likeness", "identity_similarity", "identity_detected", "detection_rate", "prompt_fidelity", "identity_assignment",
    "left_right_accuracy", "identity_leakage",
)  # fmt: skip
SUMMARY = (
    *PER_IMAGE, "pair_likeness", "pose_spread", "expression_diversity", "learn_seconds", "size_bytes",
    "reference_pose_spread", "reference_expression_diversity",
)  # fmt: skip

Row = dict[str, float | None]


@dataclass(frozen=True)
class CohortMetrics:
    """Metrics of a cohort; keys as in the table of `celebctl.evaluation.metrics`.

    Attributes:
        title: The cohort's title.
        summary: Metric -> mean over subjects. ``reference_`` metrics are those of the reference images.
        by_category: Prompt category -> metric -> mean over subjects.
        by_prompt: Prompt -> metric -> mean over subjects.
        people: Subject -> metric -> value.
        images: Metrics of every image, a list per subject; empty when read from JSON.
    """

    title: str
    summary: dict[str, Estimate | None]
    by_category: dict[str, dict[str, Estimate | None]]
    by_prompt: dict[str, dict[str, Estimate | None]]
    people: dict[str, Row]
    images: list[list[ImageMetrics]] = field(repr=False, default_factory=list[list[ImageMetrics]])

    def to_json(self) -> dict[str, Any]:
        """Everything but ``images``. An estimate is {"mean", "half_width", "count"}; unknown values are left out."""

        def plain(row: dict[str, Estimate | None]) -> dict[str, Any]:
            known = {key: value for key, value in row.items() if value is not None}
            return {k: {"mean": v.mean, "half_width": v.half_width, "count": v.count} for k, v in known.items()}

        return {
            "title": self.title,
            "summary": plain(self.summary),
            "by_category": {name: plain(row) for name, row in self.by_category.items()},
            "by_prompt": {name: plain(row) for name, row in self.by_prompt.items()},
            "people": {name: {k: v for k, v in row.items() if v is not None} for name, row in self.people.items()},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CohortMetrics:
        """The inverse of `to_json`; without images."""

        def row(values: Mapping[str, Any]) -> dict[str, Estimate | None]:
            return {key: Estimate(one["mean"], one["half_width"], one["count"]) for key, one in values.items()}

        tables = [{name: row(one) for name, one in document[key].items()} for key in ("by_category", "by_prompt")]
        people = {name: dict(one) for name, one in document["people"].items()}
        return cls(document["title"], row(document["summary"]), tables[0], tables[1], people)


def compute_metrics(
    title: str, records: Sequence[SubjectRecord], prompts: Sequence[Prompt], *, paired: bool = False
) -> CohortMetrics:
    """Metrics of one cohort. Floors and ceilings are those of the cohort, so pass all its records in one call.

    Args:
        paired: Subjects 0 and 1, 2 and 3, ... are partners, so intervals are over pairs. Otherwise each subject stands
            beside the next of a ring, intervals are over subjects, and those of pair prompts are slightly too narrow.
    """
    mean: Callable[[Iterable[float | None]], Estimate | None] = (
        (lambda values: estimate(pair_means(values))) if paired else estimate
    )
    images = score_images(records, prompts)
    people = {record.name: _subject_row(record, row, prompts) for record, row in zip(records, images, strict=True)}
    categories = [name for name in CATEGORIES if any(prompt.category == name for prompt in prompts)]

    def means_over(selected: Callable[[ImageMetrics], bool]) -> dict[str, Estimate | None]:
        rows = [_means([image for image in row if selected(image)]) for row in images]
        return {name: mean(row[name] for row in rows) for name in PER_IMAGE}

    return CohortMetrics(
        title,
        {name: mean(row[name] for row in people.values()) for name in SUMMARY},
        {name: means_over(lambda image, name=name: image.prompt.category == name) for name in categories},
        {p.format("X", "Y"): means_over(lambda image, p=p: image.prompt is p) for p in prompts},
        people,
        images,
    )


def score_images(records: Sequence[SubjectRecord], prompts: Sequence[Prompt]) -> list[list[ImageMetrics]]:
    """Metrics of every image, a list per record. Images of a prompt whose reference hides a face are left out."""
    scales = {p: single_scale(records, p) for p, prompt in enumerate(prompts) if prompt.people == 1}
    pairs = [
        {p: pair_reference(record, p) for p, prompt in enumerate(prompts) if prompt.people == 2} for record in records
    ]
    pooled = {
        name: _pooled([pair for row in pairs for p, pair in row.items() if prompts[p].category == name])
        for name in ("pair", "celebrity")
    }

    def score(subject: int, sample: Sample) -> ImageMetrics | None:
        prompt, p = prompts[sample.prompt], sample.prompt
        references = [other.scores for other in records[subject].references if other.prompt == p]
        if prompt.people == 1:
            return score_single(sample, prompt, [one.first_face for one in references], scales[p])
        pair = pairs[subject][p]
        if pair is not None:
            return score_pair(sample, prompt, pair, pooled[prompt.category])
        if len(references) == 1 and len(references[0].features) == 1:
            return score_with_celebrity(sample, prompt, references[0].features[0])
        return None

    return [
        [metrics for metrics in (score(subject, sample) for sample in record.samples) if metrics is not None]
        for subject, record in enumerate(records)
    ]


def _pooled(pairs: Sequence[PairReference | None]) -> Scale:
    known = [pair.scale for pair in pairs if pair is not None and pair.scale.known]
    if not known:
        return Scale()
    return Scale(float(np.mean([s.floor for s in known])), float(np.mean([s.ceiling for s in known])), True)


def _means(images: Sequence[ImageMetrics]) -> Row:
    """Means over images; each prompt weighs the same, because each has as many images."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    derived = {
        "detection_rate": mean([float(image.found) for image in images]),
        "identity_detected": mean([image.identity_similarity for image in images if image.found]),
    }
    return {
        name: derived[name] if name in derived else mean([getattr(image, name) for image in images])
        for name in PER_IMAGE
    }


def _subject_row(record: SubjectRecord, images: Sequence[ImageMetrics], prompts: Sequence[Prompt]) -> Row:
    single = _means([image for image in images if image.prompt.category in SINGLE])
    pairs = _means([image for image in images if image.prompt.category == "pair"])
    row: Row = {
        **single, "prompt_fidelity": _means(images)["prompt_fidelity"], "pair_likeness": pairs["likeness"],
        **{name: pairs[name] for name in ("identity_assignment", "left_right_accuracy", "identity_leakage")},
        "learn_seconds": record.learn_seconds, "size_bytes": record.size_bytes,
    }  # fmt: skip
    row["pose_spread"] = pose_spread(record.samples, prompts)
    row["expression_diversity"] = expression_diversity(record.samples, prompts)
    if any(sample.index > 0 for sample in record.references):  # photos are one reference each: no spread
        row["reference_pose_spread"] = pose_spread(record.references, prompts)
        row["reference_expression_diversity"] = expression_diversity(record.references, prompts)
    return {name: row.get(name) for name in SUMMARY}


def pose_spread(samples: Sequence[Sample], prompts: Sequence[Prompt]) -> float | None:
    """Root mean square distance of (roll, yaw) from their mean in degrees, over images of one person."""
    poses = [s.scores.poses[0, :2] for s in samples if prompts[s.prompt].people == 1 and len(s.scores.poses)]
    return float(np.sqrt(np.var(np.array(poses), axis=0).sum())) if len(poses) > 1 else None


def expression_diversity(samples: Sequence[Sample], prompts: Sequence[Prompt]) -> float | None:
    """Probability that two of the images show different expressions; None without an attribute reader."""
    expressions = [
        sample.scores.attributes["expression"]
        for sample in samples
        if prompts[sample.prompt].category in ("reconstruction", "expression")
        and "expression" in sample.scores.attributes
    ]
    count = len(expressions)
    if count < 2:
        return None
    same = sum(expressions.count(word) * (expressions.count(word) - 1) for word in set(expressions))
    return 1.0 - same / (count * (count - 1))


@dataclass(frozen=True)
class CohortResult:
    """A cohort's metrics and the records they were computed from, in the same order."""

    metrics: CohortMetrics
    records: Sequence[SubjectRecord]
