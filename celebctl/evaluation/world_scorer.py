"""Judging pictures with networks that learning never uses.

A model folder may bring a ``scoring`` folder: ``judge.onnx``, a second recogniser of another build, and
``attributes.onnx`` with its vocabulary, which reads a scene back into words. Faces are found by the model's detector.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import NotFoundError

if TYPE_CHECKING:
    from celebctl_models.faces.analysis import FaceAnalyser

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Scores:
    """One picture. features: (faces, F) float32 unit rows, left to right; said: attribute -> what the picture shows."""

    features: Floats
    said: dict[str, str]


class WorldScorer:
    """The scoring networks of one folder. Raises NotFoundError when the folder is not complete."""

    def __init__(self, folder: Path, finder: FaceAnalyser) -> None:
        import onnxruntime

        ort: Any = onnxruntime  # which has no usable types
        for name in ("judge.onnx", "attributes.onnx", "attributes.json"):
            if not (folder / name).is_file():
                raise NotFoundError(f"{folder / name} is missing", "scoring needs a model that brings its own judges")
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        self._judge, self._reader = (
            ort.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"], enable_fallback=0)
            for name in ("judge.onnx", "attributes.onnx")
        )
        self._finder = finder
        self.vocabulary = cast(
            "dict[str, list[str]]", json.loads((folder / "attributes.json").read_text(encoding="utf-8"))
        )

    def look(self, pictures: Sequence[NDArray[np.uint8]], faces: int = 1) -> list[Scores]:
        """Judge pictures (H, W, 3) uint8. Of more faces than ``faces`` the largest are kept."""
        from PIL import Image

        crops: list[NDArray[np.uint8]] = []
        counts: list[int] = []
        for picture in pictures:
            found: list[Any] = sorted(self._finder.analyse(Image.fromarray(picture)), key=lambda f: -f.size)[:faces]
            found.sort(key=lambda face: float(face.box[0] + face.box[2]))
            crops += [face.crop112 for face in found]
            counts.append(len(found))
        features = self._features(crops)
        said = self._attributes(pictures)
        ends = np.cumsum(counts)
        return [
            Scores(features[end - count : end], words) for end, count, words in zip(ends, counts, said, strict=True)
        ]

    def _features(self, crops: Sequence[NDArray[np.uint8]]) -> Floats:
        rows = [np.zeros((0, 1), np.float32)] if not crops else []
        for start in range(0, len(crops), 64):
            batch = np.stack(crops[start : start + 64]).astype(np.float32).transpose(0, 3, 1, 2)
            rows.append(cast(Floats, self._judge.run(None, {"pixels": batch})[0]))
        return np.concatenate(rows)

    def _attributes(self, pictures: Sequence[NDArray[np.uint8]]) -> list[dict[str, str]]:
        return [
            {name: words[int(scores[name].argmax())] for name, words in self.vocabulary.items()}
            for scores in self.scores(pictures)
        ]

    def scores(self, pictures: Sequence[NDArray[np.uint8]]) -> list[dict[str, Floats]]:
        """Of each picture (H, W, 3) uint8 and attribute the reader's logits (words,), in the vocabulary's order."""
        told: list[dict[str, Floats]] = []
        ends = np.cumsum([len(words) for words in self.vocabulary.values()])
        for start in range(0, len(pictures), 64):
            batch = np.stack(pictures[start : start + 64]).astype(np.float32).transpose(0, 3, 1, 2)
            logits = cast(Floats, self._reader.run(None, {"pixels": batch})[0])
            parts = np.split(logits, ends[:-1], axis=1)
            told += [dict(zip(self.vocabulary, row, strict=True)) for row in zip(*parts, strict=True)]
        return told
