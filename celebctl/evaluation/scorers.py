"""Scorers: what networks that learning never uses read from an image.

`WorldScorer` is a model's own scoring folder: a second face recogniser and a reader of attributes. `PhotoScorer` is a
face pack other than the one people were learned with, and CLIP where weights are at hand.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from celebctl.photo_quality import pose
from celebctl_runtime.errors import IntegrityError, NotFoundError
from celebctl_runtime.files import read_regular
from celebctl_runtime.strict_json import parse_json

if TYPE_CHECKING:
    from celebctl_models.faces.analysis import Face, FaceAnalyser, OnnxFaceAnalyser

    from .clip import ClipScorer

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_BATCH = 64
_SCORING_FILES = ("judge.onnx", "attributes.onnx", "attributes.json")


@dataclass(frozen=True, eq=False)
class ImageScores:
    """What a scorer reads from one image.

    Attributes:
        features: (k, F) float32 unit rows of the recogniser, one per face, left to right.
        poses: (k, 3) float32: roll, yaw and pitch of each face in degrees.
        attributes: What the image shows by attribute, such as ``{"place": "beach"}``; {} without an attribute reader.
        clip_score: Cosine of image and prompt, -1 to 1; None without CLIP.
    """

    features: Floats
    poses: Floats
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    clip_score: float | None = None

    @property
    def first_face(self) -> Floats | None:
        """Feature (F,) of the leftmost face, None without one."""
        return self.features[0] if len(self.features) else None


class Scorer(Protocol):
    """Scores images (H, W, 3) uint8."""

    @property
    def description(self) -> str:
        """Which networks score, for the report."""
        ...

    def score(self, images: Sequence[Pixels], texts: Sequence[str], faces: int) -> list[ImageScores]:
        """Scores of each image, with at most the ``faces`` largest faces. texts: prompts without learned names."""
        ...

    def embed_face(self, photo: Pixels) -> Floats | None:
        """Feature (F,) of the largest face of a photo of any size, None without one."""
        ...


def largest_faces(finder: FaceAnalyser, image: Pixels, count: int) -> list[Face]:
    """The ``count`` largest faces, left to right."""
    from PIL import Image

    largest = sorted(finder.analyse(Image.fromarray(image)), key=lambda face: -face.size)[:count]
    return sorted(largest, key=lambda face: float(face.box[0] + face.box[2]))


def _poses(faces: Sequence[Face]) -> Floats:
    return np.array([pose(face.landmarks) for face in faces], np.float32).reshape(-1, 3)


class WorldScorer:
    """The scoring networks of a model folder: ``judge.onnx``, a recogniser that learning does not use, and
    ``attributes.onnx`` with its vocabulary, which reads a scene back into words.

    Args:
        folder: The model's scoring folder.
        finder: Finds and crops faces.

    Raises:
        NotFoundError: A file of the folder is missing.
        IntegrityError: A file is damaged.
    """

    description = "the model's own recogniser and attribute reader"

    def __init__(self, folder: Path, finder: FaceAnalyser) -> None:
        import onnxruntime

        ort: Any = onnxruntime  # which has no usable types
        for name in _SCORING_FILES:
            if not (folder / name).is_file():
                hint = "use a model folder with a complete scoring folder"
                raise NotFoundError(f"{folder / name} is missing", hint, reason="scoring_incomplete", folder=folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        try:
            self._recogniser, self._reader = (
                ort.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"], enable_fallback=0)
                for name in _SCORING_FILES[:2]
            )
            self.vocabulary: dict[str, list[str]] = {
                str(key): [str(word) for word in words]
                for key, words in parse_json(read_regular(folder / _SCORING_FILES[2])).items()
            }
        except Exception as error:  # onnxruntime's errors have no common base class
            hint = "use a model folder with a complete scoring folder"
            raise IntegrityError(f"{folder} cannot be used: {error}", hint, reason="scoring_damaged") from error
        self._finder = finder

    def score(self, images: Sequence[Pixels], texts: Sequence[str] = (), faces: int = 1) -> list[ImageScores]:
        """See `Scorer.score`; the attribute reader needs no texts."""
        del texts
        rows = [largest_faces(self._finder, image, faces) for image in images]
        features = self._features([face.crop112 for row in rows for face in row])
        ends = np.cumsum([len(row) for row in rows])
        return [
            ImageScores(features[end - len(row) : end], _poses(row), attributes)
            for row, end, attributes in zip(rows, ends, self._attributes(images), strict=True)
        ]

    def embed_face(self, photo: Pixels) -> Floats | None:
        """See `Scorer.embed_face`."""
        faces = largest_faces(self._finder, photo, 1)
        return self._features([faces[0].crop112])[0] if faces else None

    def attribute_logits(self, images: Sequence[Pixels]) -> list[dict[str, Floats]]:
        """Logits (words,) of each image (H, W, 3) and attribute, in the order of ``vocabulary``."""
        logits: list[dict[str, Floats]] = []
        ends = np.cumsum([len(words) for words in self.vocabulary.values()])
        for batch in _batches(images):
            output = cast(Floats, self._reader.run(None, {"pixels": batch})[0])
            parts = np.split(output, ends[:-1], axis=1)
            logits += [dict(zip(self.vocabulary, row, strict=True)) for row in zip(*parts, strict=True)]
        return logits

    def _features(self, crops: Sequence[Pixels]) -> Floats:
        rows = [np.zeros((0, 1), np.float32)] if not crops else []
        rows += [cast(Floats, self._recogniser.run(None, {"pixels": batch})[0]) for batch in _batches(crops)]
        return np.concatenate(rows)

    def _attributes(self, images: Sequence[Pixels]) -> list[dict[str, str]]:
        return [
            {name: words[int(logits[name].argmax())] for name, words in self.vocabulary.items()}
            for logits in self.attribute_logits(images)
        ]


def _batches(images: Sequence[Pixels]) -> list[Floats]:
    """Images (H, W, 3) of one size as float batches (B, 3, H, W)."""
    starts = range(0, len(images), _BATCH)
    return [np.stack(images[i : i + _BATCH]).astype(np.float32).transpose(0, 3, 1, 2) for i in starts]


class PhotoScorer:
    """Two face packs, one that finds faces and one that recognises them, and CLIP if given.

    Args:
        finder: Finds and crops faces.
        recogniser: Embeds the crops.
        clip: Scores prompts; None leaves prompt fidelity out.
        circular: The recogniser is the one that people are learned with, so its cosines are too high.
    """

    def __init__(
        self, finder: FaceAnalyser, recogniser: OnnxFaceAnalyser, clip: ClipScorer | None, *, circular: bool
    ) -> None:
        self._finder, self._recogniser, self._clip = finder, recogniser, clip
        note = ", which learning also uses" if circular else ""
        self.description = f"faces by {recogniser.folder.name}{note}{', prompts by CLIP' if clip else ''}"

    def score(self, images: Sequence[Pixels], texts: Sequence[str], faces: int) -> list[ImageScores]:
        """See `Scorer.score`."""
        clip_scores = [None] * len(images) if self._clip is None else self._clip.score(images, texts)
        scores: list[ImageScores] = []
        for image, clip_score in zip(images, clip_scores, strict=True):
            row = largest_faces(self._finder, image, faces)
            features: Any = [self._recogniser.recognise(face.crop112) for face in row]
            stacked = np.array(features, np.float32).reshape(len(row), -1) if row else np.zeros((0, 1), np.float32)
            scores.append(ImageScores(stacked, _poses(row), {}, clip_score))
        return scores

    def embed_face(self, photo: Pixels) -> Floats | None:
        """See `Scorer.embed_face`."""
        faces = largest_faces(self._finder, photo, 1)
        return self._recogniser.recognise(faces[0].crop112) if faces else None
