"""What one picture is worth: the judges' cosines and words against the truth.

Cosines are those of the scoring recogniser. A face that is not found counts as a stranger's (world) or as 0 (photo).
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
_SHIFTS = 8  # other people that the floor is measured on, at most


@dataclass(frozen=True)
class Scale:
    """What cosines reach between two true pictures of one person (ceiling) and of two people (floor).

    Photos give no such scale: there floor is 0, ceiling 1, and `known` False.
    """

    floor: float = 0.0
    ceiling: float = 1.0
    known: bool = False

    def ratio(self, cosine: float) -> float:
        """0 for a stranger, 1 for a true picture."""
        return (cosine - self.floor) / (self.ceiling - self.floor)


@dataclass(frozen=True)
class ImageMetrics:
    """One picture of one person.

    identity: cosine with the truth, 0 without a face. likeness: its place between floor and ceiling, where there are
    such. found: whether all faces were. fidelity: share of what the prompt states, or CLIP's cosine. assigned, sides,
    bleeding: of two learned or known people, else None.
    """

    shot: Sample
    prompt: Prompt
    identity: float
    likeness: float | None
    found: bool
    prompt_fidelity: float | None
    identity_assignment: float | None = None
    left_right_accuracy: float | None = None
    identity_leakage: float | None = None


def statements_met(states: Mapping[str, str], people: int, said: Mapping[str, str]) -> list[bool]:
    """For how many people there should be and everything stated: is it what the picture shows?"""
    count = said["two"] == ("two" if people == 2 else "one")
    return [count, *(said.get(name) == value for name, value in states.items())]


def stated(prompt: Prompt, said: Mapping[str, str]) -> list[bool]:
    """`confirmed` for a prompt."""
    return statements_met(prompt.states, prompt.people, said)


def fidelity(prompt: Prompt, seen: ImageScores) -> float | None:
    """Share of stated things that a reader sees, else CLIP's cosine, else None."""
    return float(np.mean(stated(prompt, seen.said))) if "two" in seen.said else seen.agreement


def matching(cosine: NDArray[np.floating]) -> tuple[int, ...]:
    """Which name (column) each face (row) is given so that the sum of cosines is highest."""
    _, columns = _optimize.linear_sum_assignment(cosine, maximize=True)
    return tuple(int(column) for column in columns)


def alone_scale(records: Sequence[SubjectRecord], prompt: int) -> Scale:
    """Floor and ceiling of a prompt for one person over a cast; unknown for photos and for a single person."""
    truths = [_looks(record, prompt) for record in records]
    if any(len(rows) < 2 for rows in truths) or len(records) < 2:
        return Scale()
    first, second = ([rows[r] for rows in truths] for r in range(2))
    shifts = range(1, min(len(records), _SHIFTS))
    floor = float(np.mean([np.mean(_cosines(first, second[k:] + second[:k], 0.0)) for k in shifts]))
    return Scale(floor, float(np.mean(_cosines(first, second, floor))), True)


def _looks(record: SubjectRecord, prompt: int) -> list[Floats | None]:
    """True looks of the one person of a prompt, None where no face was found."""
    return [one(shot.seen) for shot in record.truth if shot.prompt == prompt]


def one(seen: ImageScores) -> Floats | None:
    """The (largest) face of a picture of one person."""
    return seen.features[0] if len(seen.features) else None


def _cosines(a: Sequence[Floats | None], b: Sequence[Floats | None], missing: float) -> list[float]:
    return [missing if x is None or y is None else float(x @ y) for x, y in zip(a, b, strict=True)]


def mark_alone(shot: Sample, prompt: Prompt, truths: Sequence[Floats | None], scale: Scale) -> ImageMetrics:
    """A picture of one person."""
    made = one(shot.seen)
    faces = [made] * len(truths)
    cosine = float(np.mean(_cosines(faces, truths, scale.floor if scale.known else 0.0)))
    return ImageMetrics(
        shot, prompt, cosine if made is not None else 0.0, scale.ratio(cosine) if scale.known else None,
        made is not None, fidelity(prompt, shot.seen),
    )  # fmt: skip


@dataclass(frozen=True)
class PairMetrics:
    """Two people as they truly are in a prompt. looks: (2, F) mean of the true pictures; scale: between the two."""

    looks: Floats
    alike: float
    scale: Scale


def couple_of(record: SubjectRecord, prompt: int) -> PairMetrics | None:
    """The two people of a prompt; None when a true picture does not show both faces or only one has a photo."""
    truths = [shot.seen.features for shot in record.truth if shot.prompt == prompt]
    if not truths or any(len(rows) < 2 for rows in truths):
        return None
    looks = np.mean(truths, axis=0)
    if len(truths) == 1:
        return PairMetrics(looks, float(looks[0] @ looks[1]), Scale())
    a, b = truths[0], truths[1]
    floor = float((a[0] @ b[1] + a[1] @ b[0]) / 2)
    return PairMetrics(looks, floor, Scale(floor, float((a * b).sum(1).mean()), True))


def mark_couple(shot: Sample, prompt: Prompt, couple: PairMetrics, pooled: Scale) -> ImageMetrics:
    """A picture of two people, both known. ``pooled`` holds the mean floor and ceiling of all couples of a cast."""
    told = fidelity(prompt, shot.seen)
    if len(shot.seen.features) < 2:
        likeness = 0.0 if pooled.known else None
        return ImageMetrics(shot, prompt, 0.0, likeness, False, told, identity_assignment=0.0, left_right_accuracy=0.0)
    cosine = shot.seen.features @ couple.looks.T  # (faces, names)
    order = matching(cosine)
    own = np.array([cosine[i, k] for i, k in enumerate(order)])
    other = np.array([cosine[i, 1 - k] for i, k in enumerate(order)])
    span = pooled.ceiling - pooled.floor
    # beside a celebrity only the learned person's face is theirs to answer for
    identity = float(own.mean() if prompt.category == "pair" else own[order.index(0)])
    return ImageMetrics(
        shot, prompt, identity,
        (identity - couple.alike) / span if pooled.known else None,
        True, told,
        identity_assignment=float((own > other).all()),
        left_right_accuracy=float(cosine[0, 0] > cosine[0, 1] and cosine[1, 1] > cosine[1, 0]),
        identity_leakage=float(other.mean() - couple.alike) / span,
    )  # fmt: skip


def mark_beside(shot: Sample, prompt: Prompt, look: Floats) -> ImageMetrics:
    """A picture with somebody who has no photo: the face that is nearer to the person counts as theirs."""
    cosines = cast("list[float]", (shot.seen.features @ look).tolist()) if len(shot.seen.features) else []
    identity = max(cosines, default=0.0)
    return ImageMetrics(shot, prompt, identity, None, len(cosines) == 2, fidelity(prompt, shot.seen))
