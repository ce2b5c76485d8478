"""The columns of an evaluation's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .metrics import CohortMetrics


@dataclass(frozen=True)
class Column:
    """A column of the table. key: the metric; digits: after the decimal point; meaning: one line for readers."""

    key: str
    heading: str
    digits: int
    meaning: str


COLUMNS = (
    Column("likeness", "likeness", 3, "0: like an unrelated person, 1: like a reference image of the person"),
    Column("identity_similarity", "identity", 3, "cosine of the scoring recogniser; 0 where no face is found"),
    Column("identity_detected", "where found", 3, "the same over images in which a face is found"),
    Column("detection_rate", "face found", 3, "share of images with the expected faces"),
    Column("prompt_fidelity", "prompt", 3, "share of what the prompt states, or the CLIP score"),
    Column(
        "identity_assignment",
        "assigned",
        3,
        "two people: share of images in which each face is nearest to its own name",
    ),
    Column("left_right_accuracy", "left/right", 3, "two people: the same, and the first name on the left"),
    Column("identity_leakage", "leakage", 3, "two people: how far a face moves towards the other one; 0 is none"),
    Column("pose_spread", "pose °", 1, "spread of roll and yaw"),
    Column("expression_diversity", "expressions", 2, "probability that two images show different expressions"),
    Column("learn_seconds", "learning s", 1, "seconds of learning per person"),
    Column("size_bytes", "size on disk", 0, "bytes of the identity file"),
)


def used_columns(cohorts: Sequence[CohortMetrics]) -> list[Column]:
    """The ``COLUMNS`` for which any cohort has a value."""
    return [column for column in COLUMNS if any(one.summary.get(column.key) is not None for one in cohorts)]
