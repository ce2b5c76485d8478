"""Compares a face with photos of public figures that the user supplies. Torch-free.

celebctl ships no such photos. The recogniser's threshold decides: it misses some, and mistakes others.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from celebctl_models.faces.photos import open_photo
from celebctl_runtime.errors import InvalidInputError, NotFoundError, PolicyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from celebctl.learning.subject import Subject
    from celebctl_models.faces.analysis import FaceAnalyser

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".bmp", ".tif", ".tiff")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Reference:
    """A photo of a public figure.

    Attributes:
        name: The file's name without its ending.
        feature: The recogniser's feature of the largest face, (F,), of length 1.
    """

    name: str
    feature: NDArray[np.float32]


def read_references(folder: Path, analyser: FaceAnalyser) -> list[Reference]:
    """The faces in the photos of a folder; a photo without a face, or a damaged one, is skipped with a warning.

    Args:
        folder: Photos named after the person in them, such as ``jane-doe.jpg``; folders inside are read, too.
        analyser: Finds the faces; a subject's feature must come from the same face models.

    Raises:
        NotFoundError: There is no such folder, or no photo with a face in it (reason "no_references").
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    references: list[Reference] = []
    for path in files:
        try:
            faces = analyser.analyse(open_photo(path))
        except InvalidInputError as error:
            _log.warning("skipped: %s", error.problem)
            continue
        if faces:
            references.append(Reference(path.stem, max(faces, key=lambda face: face.size).feature))
        else:
            _log.warning("skipped: there is no face in %s", path)
    if not references:
        raise NotFoundError(
            f"there is no photo with a face in {folder}",
            "name a folder with photos named after the people in them",
            reason="no_references",
            folder=folder,
        )
    return references


def check_public_figure(subject: Subject, references: Sequence[Reference], limit: float, *, force: bool) -> Subject:
    """The subject, with a remark when it was forced.

    Args:
        subject: The person to learn.
        references: At least one.
        limit: Cosine above which two faces count as one person's, `FaceSettings.similar`.
        force: Log a warning instead of the error.

    Raises:
        PolicyError: The face is likely that of a reference (reason "public_figure", with the values ``name``,
            ``reference``, ``cosine`` and ``limit``).
    """
    cosines = [float(subject.face.feature @ reference.feature) for reference in references]
    cosine = max(cosines)
    if cosine <= limit:
        return subject
    reference = references[cosines.index(cosine)].name
    problem = f"{subject.name} looks like {reference} (similarity {cosine:.2f}, limit {limit:g})"
    if not force:
        raise PolicyError(
            problem,
            "learn public figures with their consent only",
            reason="public_figure",
            name=subject.name,
            reference=reference,
            cosine=round(cosine, 3),
            limit=limit,
        )
    _log.warning("%s", problem)
    remark = f"public_figure: {reference}, similarity {cosine:.2f}, limit {limit:g}"
    return replace(subject, remark="; ".join(filter(None, (subject.remark, remark))))
