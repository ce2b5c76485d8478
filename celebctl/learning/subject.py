"""A photo that was analysed once: the image and the one face to learn from. No torch here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from celebctl.consent import refuse_minor
from celebctl_models.faces.analysis import select_face

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl_models.faces.analysis import Face, FaceAnalyser

LOW_SCORE = 0.6  # detector score below which a face is likely turned away, covered or blurred

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Subject:
    """A person to learn.

    Attributes:
        name: Their name in prompts.
        image: The photo, upright RGB.
        face: The face to learn from, with the recogniser's feature (F,).
        remark: Recorded with the identity: what the model was forced to learn.
    """

    name: str
    image: Image
    face: Face
    remark: str = ""


def analyse_photo(
    analyser: FaceAnalyser, image: Image, name: str, *, face: int | None = None, source: str = "", min_size: int = 0
) -> Subject:
    """Find the face to learn from in a photo.

    Args:
        analyser: Finds faces and computes their features.
        image: RGB, any size.
        name: The person's name in prompts.
        face: Which face, counted from 1 at the left, where there are several.
        source: Name of the photo in messages.
        min_size: Smallest side of a face in pixels.

    Raises:
        InvalidInputError: No face, several faces without ``face``, or a face that is too small.
        UsageError: There is no face number ``face``.
        PolicyError: The face is likely a minor's.
    """
    source = source or f"the photo of {name}"
    chosen = select_face(analyser.analyse(image), source, face, min_size)
    refuse_minor(chosen, source)
    _log.info("%s: face of %s", name, chosen)
    if chosen.score < LOW_SCORE:
        _log.warning("the face in %s is hard to see; celebctl.photo_quality lists what is wrong with it", source)
    return Subject(name, image, chosen)


def warn_about_similar(subjects: Sequence[Subject], cosine_limit: float) -> None:
    """Log a warning for every two people whose features have a cosine above ``cosine_limit``."""
    for one, other in combinations(subjects, 2):
        cosine = float(one.face.feature @ other.face.feature)
        if cosine > cosine_limit:
            _log.warning("%s and %s look alike (%.2f); an image of both may mix them up", one.name, other.name, cosine)
