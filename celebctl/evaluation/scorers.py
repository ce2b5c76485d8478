"""The judges: what networks that learning never uses see in a picture.

Two kinds of panel fill one contract. `WorldImageScorer` is a model's own scoring folder: a second recogniser and a reader of
attributes. `PhotoScorer` is a face pack other than the one people were learned with, and CLIP where weights are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from celebctl.evaluation.world_scorer import WorldScorer
from celebctl.photo_quality import pose

if TYPE_CHECKING:
    from celebctl_models.faces.analysis import Face, FaceAnalyser, InsightFaceAnalyser

    from .clip import ClipScorer

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ImageScores:
    """What the judges say about one picture.

    features: (k, F) float32 unit rows, one per face, left to right. poses: (k, 3) float32, roll, yaw and pitch in
    degrees. said: attribute -> what the picture shows. agreement: CLIP's cosine with the prompt, None without CLIP.
    """

    features: Floats
    poses: Floats
    said: Mapping[str, str] = field(default_factory=dict[str, str])
    agreement: float | None = None


class Scorer(Protocol):
    """Looks at pictures (H, W, 3) uint8. Of more than ``faces`` faces the largest count."""

    @property
    def names(self) -> str:
        """Who judges, for the report."""
        ...

    def score(self, pictures: Sequence[Pixels], texts: Sequence[str], faces: int) -> list[ImageScores]:
        """One answer per picture; ``texts`` are the prompts in plain words, without learned names."""
        ...

    def embed_face(self, photo: Pixels) -> Floats | None:
        """The look (F,) of the largest face of a photo of any size, None without one."""
        ...


def faces_of(finder: FaceAnalyser, picture: Pixels, most: int) -> list[Face]:
    """The largest faces, left to right."""
    from PIL import Image

    found = sorted(finder.analyse(Image.fromarray(picture)), key=lambda face: -face.size)[:most]
    return sorted(found, key=lambda face: float(face.box[0] + face.box[2]))


def _poses(faces: Sequence[Face]) -> Floats:
    return np.array([pose(face.landmarks) for face in faces], np.float32).reshape(-1, 3)


class WorldImageScorer(WorldScorer):
    """A model's own scoring folder (see `celebctl.evaluation.world_scorer`)."""

    names = "the model's own judge and attribute reader"

    def score(self, pictures: Sequence[Pixels], texts: Sequence[str], faces: int) -> list[ImageScores]:
        del texts  # the reader says what it sees and needs no prompt
        found = [faces_of(self._finder, picture, faces) for picture in pictures]
        features = self._features([face.crop112 for row in found for face in row])
        ends = np.cumsum([len(row) for row in found])
        return [
            ImageScores(features[end - len(row) : end], _poses(row), said)
            for row, end, said in zip(found, ends, self._attributes(pictures), strict=True)
        ]

    def embed_face(self, photo: Pixels) -> Floats | None:
        faces = faces_of(self._finder, photo, 1)
        return self._features([faces[0].crop112])[0] if faces else None


class PhotoScorer:
    """Any two face packs, one that finds and one that judges, and CLIP if given."""

    def __init__(
        self, finder: FaceAnalyser, judge: InsightFaceAnalyser, clip: ClipScorer | None, *, circular: bool
    ) -> None:
        self._finder, self._judge, self._clip = finder, judge, clip
        said = f"faces by {judge.folder.name}"
        self.names = said + (", which also learned them" if circular else "") + (", prompts by CLIP" if clip else "")

    def score(self, pictures: Sequence[Pixels], texts: Sequence[str], faces: int) -> list[ImageScores]:
        found = [faces_of(self._finder, picture, faces) for picture in pictures]
        agreed: Sequence[float | None] = (
            [None] * len(found) if self._clip is None else self._clip.agree(pictures, texts)
        )
        looks: list[ImageScores] = []
        for row, agreement in zip(found, agreed, strict=True):
            features: Any = [self._judge.recognise(face.crop112) for face in row]
            stacked = np.array(features, np.float32).reshape(len(row), -1) if row else np.zeros((0, 1), np.float32)
            looks.append(ImageScores(stacked, _poses(row), {}, agreement))
        return looks

    def embed_face(self, photo: Pixels) -> Floats | None:
        faces = faces_of(self._finder, photo, 1)
        return self._judge.recognise(faces[0].crop112) if faces else None
