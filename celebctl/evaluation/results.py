"""What was scored of one subject: every image with its thumbnail, and the references beside them, in one file.

A record holds no metrics: those are computed from all records together, so a changed definition costs no new image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celebctl.basis.basis import read_tensors
from celebctl_runtime.files import atomic_write
from celebctl_runtime.strict_json import parse_json

from .scorers import ImageScores

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Sample:
    """One scored image.

    Attributes:
        prompt: Index in the list of prompts.
        index: Which of the images of this prompt (or of its reference images).
        scores: What the scorer read.
        thumbnail: WebP; empty for reference images.
    """

    prompt: int
    index: int
    scores: ImageScores
    thumbnail: bytes = b""


@dataclass(frozen=True, eq=False)
class SubjectRecord:
    """One subject's samples.

    Attributes:
        name: The subject's name.
        samples: Images that the model generated.
        references: What faces in them are compared with.
        photo: The photo the subject was learned from, WebP; empty for celebrities.
        learn_seconds: Time of learning; None where unknown.
        size_bytes: Size of the identity file; None where there is none.
    """

    name: str
    samples: tuple[Sample, ...]
    references: tuple[Sample, ...]
    photo: bytes = b""
    learn_seconds: float | None = None
    size_bytes: int | None = None

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically."""
        from safetensors.numpy import save

        rows = [*self.samples, *self.references]
        width = max((row.scores.features.shape[1] for row in rows), default=1)
        features = [row.scores.features for row in rows if len(row.scores.features)]
        header = {
            "name": self.name, "samples": len(self.samples), "learn_seconds": self.learn_seconds,
            "size_bytes": self.size_bytes,
            "rows": [
                [s.prompt, s.index, len(s.scores.features), dict(s.scores.attributes), s.scores.clip_score]
                for s in rows
            ],
        }  # fmt: skip
        blobs = [self.photo, *(row.thumbnail for row in rows)]
        tensors = {
            "features": np.concatenate(features) if features else np.zeros((0, width), np.float32),
            "poses": np.concatenate([row.scores.poses for row in rows] or [np.zeros((0, 3), np.float32)]),
            "sizes": np.array([len(blob) for blob in blobs], np.int64),
            "images": np.frombuffer(b"".join(blobs), np.uint8),
        }
        atomic_write(path, save(tensors, metadata={"record": json.dumps(header)}))

    @classmethod
    def load(cls, path: Path) -> SubjectRecord | None:
        """A saved record; None when there is none or it is damaged, so that the subject is evaluated again."""
        try:
            tensors, metadata = read_tensors(path)
            header: Any = parse_json(metadata["record"])
            blobs = _split(tensors["images"].tobytes(), tensors["sizes"].tolist())
            rows = _samples(header["rows"], tensors["features"], tensors["poses"], blobs[1:])
            count = int(header["samples"])
            seconds, size = header["learn_seconds"], header["size_bytes"]
            return cls(str(header["name"]), tuple(rows[:count]), tuple(rows[count:]), blobs[0], seconds, size)
        except (OSError, KeyError, ValueError, IndexError, TypeError, AttributeError):
            return None


def _split(joined: bytes, sizes: Sequence[int]) -> list[bytes]:
    ends = np.cumsum(sizes).tolist()
    return [joined[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _samples(rows: Sequence[Any], features: Floats, poses: Floats, thumbnails: Sequence[bytes]) -> list[Sample]:
    ends = np.cumsum([count for _, _, count, _, _ in rows]).tolist()
    return [
        Sample(prompt, index, ImageScores(features[end - n : end], poses[end - n : end], attributes, clip), thumbnail)
        for (prompt, index, n, attributes, clip), end, thumbnail in zip(rows, ends, thumbnails, strict=True)
    ]
