"""Metrics of one image: cosines and attributes of the scorer against the references.

Cosines are those of the scoring recogniser (ArcFace-style unit features, Deng et al. 2019). A face that is not found
counts as an unrelated person's (world) or as cosine 0 (photo).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from .prompts import Prompt
from .results import Sample, SubjectRecord
from .scorers import ImageScores

Floats = NDArray[np.float32]

_optimize: Any = scipy.optimize  # which has no usable types
_SHIFTS = 8  # other people that the floor is measured with, at most


@dataclass(frozen=True)
class Scale:
    """Cosines between reference images of one person (ceiling) and of two people (floor).

    Photos give no such scale: there floor is 0, ceiling 1, and ``known`` False.
    """

    floor: float = 0.0
    ceiling: float = 1.0
    known: bool = False

    def normalize(self, cosine: float) -> float:
        """0 for an unrelated person, 1 for a reference image."""
        return (cosine - self.floor) / (self.ceiling - self.floor)


@dataclass(frozen=True)
class ImageMetrics:
    """Metrics of one image of one subject; definitions in `celebctl.evaluation.metrics`.

    Attributes:
        identity_similarity: Cosine with the reference, 0 without a face.
        likeness: The cosine between floor and ceiling, where those are known.
        found: Whether all expected faces were found.
        prompt_fidelity: Share of the attributes the prompt states, or the CLIP score.
        identity_assignment, left_right_accuracy, identity_leakage: Of two people with references, else None.
    """

    sample: Sample
    prompt: Prompt
    identity_similarity: float
    likeness: float | None
    found: bool
    prompt_fidelity: float | None
    identity_assignment: float | None = None
    left_right_accuracy: float | None = None
    identity_leakage: float | None = None


def statements_met(states: Mapping[str, str], people: int, attributes: Mapping[str, str]) -> list[bool]:
    """Whether the image shows the number of people, and then each stated attribute."""
    count = attributes["two"] == ("two" if people == 2 else "one")
    return [count, *(attributes.get(name) == value for name, value in states.items())]


def prompt_fidelity(prompt: Prompt, scores: ImageScores) -> float | None:
    """Share of the statements that the attribute reader confirms, else the CLIP score, else None."""
    if "two" in scores.attributes:
        return float(np.mean(statements_met(prompt.states, prompt.people, scores.attributes)))
    return scores.clip_score


def match_faces(cosines: NDArray[np.floating]) -> tuple[int, ...]:
    """The name (column) of each face (row) that maximizes the sum of cosines (Hungarian algorithm)."""
    _, columns = _optimize.linear_sum_assignment(cosines, maximize=True)
    return tuple(int(column) for column in columns)


def single_scale(records: Sequence[SubjectRecord], prompt: int) -> Scale:
    """Floor and ceiling of a one-person prompt over a cohort; unknown for photos and for a single subject."""
    references = [[s.scores.first_face for s in record.references if s.prompt == prompt] for record in records]
    if any(len(rows) < 2 for rows in references) or len(records) < 2:
        return Scale()
    first, second = ([rows[r] for rows in references] for r in range(2))
    shifts = range(1, min(len(records), _SHIFTS))
    floor = float(np.mean([np.mean(_cosines(first, second[k:] + second[:k], 0.0)) for k in shifts]))
    return Scale(floor, float(np.mean(_cosines(first, second, floor))), True)


def _cosines(a: Sequence[Floats | None], b: Sequence[Floats | None], missing: float) -> list[float]:
    return [missing if x is None or y is None else float(x @ y) for x, y in zip(a, b, strict=True)]


def score_single(sample: Sample, prompt: Prompt, references: Sequence[Floats | None], scale: Scale) -> ImageMetrics:
    """An image of one person."""
    face = sample.scores.first_face
    cosine = float(np.mean(_cosines([face] * len(references), references, scale.floor if scale.known else 0.0)))
    return ImageMetrics(
        sample, prompt, cosine if face is not None else 0.0, scale.normalize(cosine) if scale.known else None,
        face is not None, prompt_fidelity(prompt, sample.scores),
    )  # fmt: skip


@dataclass(frozen=True)
class PairReference:
    """Two people in the reference images of a prompt.

    Attributes:
        features: (2, F), mean over the reference images.
        similarity: Cosine between the two people.
        scale: Floor and ceiling from these two people.
    """

    features: Floats
    similarity: float
    scale: Scale


def pair_reference(record: SubjectRecord, prompt: int) -> PairReference | None:
    """The two people of a prompt; None when a reference lacks one of the faces."""
    references = [sample.scores.features for sample in record.references if sample.prompt == prompt]
    if not references or any(len(rows) < 2 for rows in references):
        return None
    features = np.mean(references, axis=0)
    if len(references) == 1:
        return PairReference(features, float(features[0] @ features[1]), Scale())
    a, b = references[0], references[1]
    floor = float((a[0] @ b[1] + a[1] @ b[0]) / 2)
    return PairReference(features, floor, Scale(floor, float((a * b).sum(1).mean()), True))


def score_pair(sample: Sample, prompt: Prompt, reference: PairReference, pooled: Scale) -> ImageMetrics:
    """An image of two people with references. ``pooled``: mean floor and ceiling over the pairs of a cohort."""
    fidelity = prompt_fidelity(prompt, sample.scores)
    if len(sample.scores.features) < 2:
        likeness = 0.0 if pooled.known else None
        return ImageMetrics(
            sample, prompt, 0.0, likeness, False, fidelity, identity_assignment=0.0, left_right_accuracy=0.0
        )
    cosines = sample.scores.features @ reference.features.T  # (faces, names)
    order = match_faces(cosines)
    own = np.array([cosines[i, k] for i, k in enumerate(order)])
    other = np.array([cosines[i, 1 - k] for i, k in enumerate(order)])
    span = pooled.ceiling - pooled.floor
    # beside a celebrity only the face of the learned person counts
    identity = float(own.mean() if prompt.category == "pair" else own[order.index(0)])
    return ImageMetrics(
        sample, prompt, identity,
        (identity - reference.similarity) / span if pooled.known else None,
        True, fidelity,
        identity_assignment=float((own > other).all()),
        left_right_accuracy=float(cosines[0, 0] > cosines[0, 1] and cosines[1, 1] > cosines[1, 0]),
        identity_leakage=float(other.mean() - reference.similarity) / span,
    )  # fmt: skip


def score_with_celebrity(sample: Sample, prompt: Prompt, feature: Floats) -> ImageMetrics:
    """An image with a celebrity without a reference: the face nearer to the subject counts as theirs."""
    features = sample.scores.features
    cosines = cast("list[float]", (features @ feature).tolist()) if len(features) else []
    identity = max(cosines, default=0.0)
    return ImageMetrics(sample, prompt, identity, None, len(cosines) == 2, prompt_fidelity(prompt, sample.scores))
