"""Copy-paste: how much nearer an image is to the photo it was learned from than to other photos of the person.

With angles a(.,.) between unit features of a recogniser, the generated image g, the photo learned from r and another
photo of the same person t, the measure is (a(g, t) - a(g, r)) / a(t, r): 1 for a copy of the photo, 0 for an image as
near to the one as to the other, negative if it is nearer to the other. Source: WithAnyone, MultiID-Bench (2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from .prompts import Prompt
    from .results import SubjectRecord
    from .scorers import Scorer

Floats = NDArray[np.float32]
_SMALLEST_ANGLE = 1e-3  # radians: nearer photos are the same photo


def copy_paste(generated: Floats, photo: Floats, other: Floats) -> float | None:
    """The measure of one image, in -1 to 1.

    Args:
        generated: (F,) unit feature of the image's face.
        photo: (F,) unit feature of the photo that was learned from.
        other: (F,) unit feature of another photo of the same person.

    Returns:
        None where the two photos have the same feature.

    Example:
        >>> photo, other = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
        >>> copy_paste(photo, photo, other), copy_paste(other, photo, other)
        (1.0, -1.0)
    """
    between = angle(other, photo)
    if between < _SMALLEST_ANGLE:
        return None
    return (angle(generated, other) - angle(generated, photo)) / between


def angle(one: Floats, two: Floats) -> float:
    """The angle between two unit vectors in radians, 0 to pi."""
    return float(np.arccos(np.clip(np.dot(one, two), -1.0, 1.0)))


def copy_paste_of(
    records: Sequence[SubjectRecord],
    prompts: Sequence[Prompt],
    scorer: Scorer,
    photos: Sequence[Image],
    others: Sequence[Sequence[Image]],
) -> dict[str, float | None]:
    """The mean measure of each person by name, over their images alone and their other photos.

    Args:
        records: Scored images of each person.
        prompts: Of the records; those with one person count.
        scorer: The scorer of the records.
        photos: The photo that each was learned from.
        others: Other photos of each; without any, or where no face is found, the value is None.
    """
    values: dict[str, float | None] = {}
    for record, photo, further in zip(records, photos, others, strict=True):
        source = scorer.embed_face(np.asarray(photo.convert("RGB"), np.uint8))
        targets = [scorer.embed_face(np.asarray(one.convert("RGB"), np.uint8)) for one in further]
        faces = [one.scores.first_face for one in record.samples if prompts[one.prompt].people == 1]
        scores = [
            copy_paste(face, source, target)
            for face in faces
            for target in targets
            if face is not None and source is not None and target is not None
        ]
        known = [score for score in scores if score is not None]
        values[record.name] = float(np.mean(known)) if known else None
    return values
