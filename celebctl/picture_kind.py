"""Whether a picture is of the kind that a model knows: drawn people of mini's world, or photographs.

A model that never saw such a face learns a person from it who looks like no-one. Only mini's drawn people are
recognised; other drawings count as photographs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celebctl_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from celebctl_models.checkpoints.registry import ModelCard
    from celebctl_models.faces.analysis import Face


REASONS = ("photograph_for_drawings", "drawing_for_photographs")


def other_kind(
    card: ModelCard | None, image: Image, face: Face, face_models: Path, photo: str
) -> InvalidInputError | None:
    """The error for a picture of another kind than the model knows; None where it fits or the model does not say.

    Args:
        card: The model's, None where it is not known.
        image: RGB.
        face: The chosen face.
        face_models: The folder of the face models that found it.
        photo: The picture's name in the message.

    Returns:
        An error with the reason "photograph_for_drawings" or "drawing_for_photographs" and the values ``photo``,
        ``model``, ``score`` and ``limit`` of `drawnness`.
    """
    if card is None or not card.pictures:
        return None
    from celebctl_models.mini.drawn import drawnness

    found = drawnness(image, face, face_models)
    if found.drawn == (card.pictures == "drawings"):
        return None
    kind, knows = ("drawing", "photographs") if found.drawn else ("photograph", "drawings")
    return InvalidInputError(
        f"{photo} looks like a {kind}, and {card.name} knows only {knows}",
        f"use a model of {kind}s, or force it",
        reason=f"{kind}_for_{knows}",
        photo=photo,
        model=card.name,
        score=round(found.score, 2),
        limit=found.limit,
    )
