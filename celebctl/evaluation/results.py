"""What was seen of one person: every judged picture with its thumbnail, and the truth beside it, in one file.

A record holds no figures: those are computed from all records together, so a changed definition costs no new picture.
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

from .scorers import ImageScores

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture. prompt: its number in the list of prompts. draw: which of the seeds, or of the true pictures.

    picture: the thumbnail as WebP, empty for true pictures.
    """

    prompt: int
    draw: int
    seen: ImageScores
    picture: bytes = b""


@dataclass(frozen=True, eq=False)
class SubjectRecord:
    """One person. made: pictures the model drew. truth: what faces in them are compared with.

    photo: what they were learned from, WebP, empty for celebrities. seconds, bytes: what learning took and left, None
    where nobody measured it.
    """

    name: str
    made: tuple[Sample, ...]
    truth: tuple[Sample, ...]
    photo: bytes = b""
    seconds: float | None = None
    bytes: int | None = None

    def save(self, path: Path) -> None:
        """One safetensors file, written whole or not at all."""
        from safetensors.numpy import save

        shots = [*self.made, *self.truth]
        width = max((shot.seen.features.shape[1] for shot in shots), default=1)
        features = [shot.seen.features for shot in shots if len(shot.seen.features)]
        facts = {
            "name": self.name, "made": len(self.made), "seconds": self.seconds, "bytes": self.bytes,
            "shots": [[s.prompt, s.draw, len(s.seen.features), dict(s.seen.said), s.seen.agreement] for s in shots],
        }  # fmt: skip
        blobs = [self.photo, *(shot.picture for shot in shots)]
        tensors = {
            "features": np.concatenate(features) if features else np.zeros((0, width), np.float32),
            "poses": np.concatenate([shot.seen.poses for shot in shots] or [np.zeros((0, 3), np.float32)]),
            "sizes": np.array([len(blob) for blob in blobs], np.int64),
            "pictures": np.frombuffer(b"".join(blobs), np.uint8),
        }
        atomic_write(path, save(tensors, metadata={"facts": json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path) -> SubjectRecord | None:
        """A saved record; None when there is none or it is damaged: the person is simply looked at again."""
        try:
            tensors, metadata = read_tensors(path)
            facts: Any = json.loads(metadata["facts"])
            blobs = _split(tensors["pictures"].tobytes(), tensors["sizes"].tolist())
            shots = _shots(facts["shots"], tensors["features"], tensors["poses"], blobs[1:])
            made = int(facts["made"])
            seconds, size = facts["seconds"], facts["bytes"]
            return cls(str(facts["name"]), tuple(shots[:made]), tuple(shots[made:]), blobs[0], seconds, size)
        except (OSError, KeyError, ValueError, IndexError, TypeError):
            return None


def _split(joined: bytes, sizes: Sequence[int]) -> list[bytes]:
    ends = np.cumsum(sizes).tolist()
    return [joined[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _shots(facts: Sequence[Any], features: Floats, poses: Floats, pictures: Sequence[bytes]) -> list[Sample]:
    ends = np.cumsum([count for _, _, count, _, _ in facts]).tolist()
    return [
        Sample(prompt, draw, ImageScores(features[end - count : end], poses[end - count : end], said, agreement), picture)
        for (prompt, draw, count, said, agreement), end, picture in zip(facts, ends, pictures, strict=True)
    ]
