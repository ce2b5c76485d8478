"""A folder of photos of many people as a training set for a mapper: filtered, encoded and stored shard by shard.

A photo is used when it can be read and shows one face, large enough and not likely a minor's; duplicates are used once.
Of each photo only the recogniser's feature and a few encoded views are kept, in a work folder that lasts as long as the
training, so that an interruption loses at most one shard.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from celebctl.basis.basis import read_tensors
from celebctl.consent import refuse_minor
from celebctl.learning.config import CLEAN
from celebctl.learning.denoising import encode_views
from celebctl.learning.initialization import with_model_framing
from celebctl_models.faces.photos import open_photo
from celebctl_runtime.errors import CelebctlError, IntegrityError, InvalidInputError, NotFoundError, PolicyError
from celebctl_runtime.files import atomic_write
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress
from celebctl_runtime.strict_json import parse_json

from .trainer import FaceDataset

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.learning.prepared import PreparedModel
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.faces.analysis import Face, FaceAnalyser

VIEWS = 4  # encoded per photo
SHARD_SIZE, FLUSH_SECONDS = 32, 20.0  # photos, or seconds, after which a shard is written
SAME_PICTURE = 0.995  # cosine of features: resized or saved again, it is the same photo

UNREADABLE, NO_FACE, SEVERAL = "not a readable photo", "no face found", "more than one face"
SMALL, MINOR, DUPLICATE = "face too small", "likely younger than 18", "duplicate of another photo"

#: Latents (V, 4, h, w) and loss weights (V, 1, h, w) of a photo's views; the text seeds the randomness.
Encode = Callable[["Image", "Face", str], tuple[Tensor, Tensor]]


def list_photos(folder: Path, seed: int = 0) -> list[Path]:
    """All files below a folder but hidden ones, in a random order that depends only on ``seed`` and relative paths.

    Raises NotFoundError without the folder, InvalidInputError when it is empty.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise NotFoundError(f"{folder} {problem}; a mapper is trained on a folder of photos", "give a folder")
    try:
        inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise NotFoundError(f"{folder} cannot be listed: {error.strerror}", "check its permissions") from error
    files = [folder / path for path in inside if not any(part.startswith(".") for part in path.parts)]
    if not files:
        raise InvalidInputError(f"{folder} contains no files", "give a folder with photos of many people, one in each")
    order: list[int] = np.random.Generator(np.random.PCG64(seed)).permutation(len(files)).tolist()
    return [files[i] for i in order]


def view_encoder(model: PreparedModel[DiffusionParts], seed: int) -> Encode:
    """Encodes views of a photo with the model's autoencoder, as `PersonTrainer` does."""
    config = with_model_framing(CLEAN, model)

    def encode(photo: Image, face: Face, key: str) -> tuple[Tensor, Tensor]:
        own = int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:7], "big")
        return encode_views(model.parts, photo, face, VIEWS, config, torch.Generator().manual_seed(own))

    return encode


def bytes_per_photo(parts: DiffusionParts) -> int:
    """Bytes of one photo's views in float16."""
    side = parts.card.native_size // parts.vae_factor
    return 2 * VIEWS * (parts.latent_channels + 1) * side * side


@dataclass
class FaceDatasetBuilder:
    """Builds a `FaceDataset` from files, by way of a work folder.

    Attributes:
        key: Identifies everything but the photos that determines the result; other keys' shards are not continued.
        min_size: Smallest side of a face in pixels.
        skipped: Reason to file names, filled while files are read.
    """

    analyser: FaceAnalyser
    encode: Encode
    work: Path
    key: str
    min_size: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    _hashes: set[str] = field(default_factory=set[str])
    _seen: set[str] = field(default_factory=set[str])
    _features: list[Tensor] = field(default_factory=list[Tensor])
    _latents: list[Tensor] = field(default_factory=list[Tensor])
    _weights: list[Tensor] = field(default_factory=list[Tensor])
    _unsaved: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    _shards: int = 0
    _flushed: float = field(default_factory=time.monotonic)

    @property
    def count(self) -> int:
        """People so far."""
        return len(self._features)

    def build(
        self, files: Sequence[Path], limit: int | None = None, progress: ProgressCallback = ignore_progress
    ) -> FaceDataset:
        """Read all files, or until ``limit`` people are found, after those that ``load_shards`` restored.

        ``progress`` counts files; its metric is ``faces``. Raises InvalidInputError when no file is usable.
        """
        for number, path in enumerate(files, 1):
            if limit is not None and self.count >= limit:
                break
            if str(path) not in self._seen:
                self._read(path)
                if len(self._unsaved) >= SHARD_SIZE or time.monotonic() - self._flushed > FLUSH_SECONDS:
                    self._write_shard()
            progress(Progress("reading photos", number, len(files), {"faces": self.count}))
        self._write_shard()
        if not self.count:
            raise InvalidInputError(
                f"none of {len(files):,} files is a photo of one face ({self.skipped_summary()})",
                "give a folder with photos of many people, one person in each",
            )
        return FaceDataset(torch.stack(self._features), torch.stack(self._latents), torch.stack(self._weights))

    def load_shards(self) -> None:
        """Restore what an interrupted run wrote. Raises IntegrityError for damaged shards or another run's."""
        for path in sorted(self.work.glob("shard-*.safetensors")):
            try:
                tensors, metadata = read_tensors(path)
                files: list[list[str]] = parse_json(metadata["files"])
                same = metadata["key"] == self.key
            except (OSError, KeyError, ValueError) as error:
                raise IntegrityError(
                    f"{path} cannot be read: {error}", "start again without resuming", reason="checkpoint_damaged"
                ) from error
            if not same:
                raise IntegrityError(
                    f"{path.name} belongs to another model or other settings", "start again without resuming",
                    reason="checkpoint_mismatch",
                )  # fmt: skip
            for name, digest, reason in files:
                self._record(name, digest, reason)
            if "features" in tensors:
                self._features += torch.as_tensor(tensors["features"]).unbind()
                self._latents += torch.as_tensor(tensors["latents"]).unbind()
                self._weights += torch.as_tensor(tensors["weights"]).unbind()
            self._shards, self._flushed = self._shards + 1, time.monotonic()
        self._unsaved.clear()

    def skipped_summary(self) -> str:
        """Such as "3 no face found, 1 more than one face"."""
        counts = Counter({reason: len(names) for reason, names in self.skipped.items()})
        return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())

    def _read(self, path: Path) -> None:
        digest = ""
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found = DUPLICATE if digest in self._hashes else self._find_face(open_photo(path))
        except (CelebctlError, OSError):
            found = UNREADABLE
        if isinstance(found, str):
            self._record(str(path), digest, found)
            return
        latents, weights = self.encode(*found, digest)
        self._features.append(torch.as_tensor(found[1].feature))
        # contiguous, as they come back from the disk: rounding depends on the memory layout
        self._latents.append(latents.cpu().half().contiguous())
        self._weights.append(weights.cpu().half().contiguous())
        self._record(str(path), digest, "")

    def _find_face(self, photo: Image) -> tuple[Image, Face] | str:
        """The photo and its one face, or why it is skipped."""
        faces = self.analyser.analyse(photo)
        if len(faces) != 1:
            return SEVERAL if faces else NO_FACE
        face = faces[0]
        if face.size < self.min_size:
            return SMALL
        try:
            refuse_minor(face, "the photo")
        except PolicyError:
            return MINOR
        if self._features and float((torch.stack(self._features) @ torch.as_tensor(face.feature)).max()) > SAME_PICTURE:
            return DUPLICATE
        return photo, face

    def _record(self, name: str, digest: str, reason: str) -> None:
        """Note a finished file. reason: why it was skipped, "" for a usable one."""
        self._seen.add(name)
        self._hashes.add(digest)
        self._unsaved.append((name, digest, reason))
        if reason:
            self.skipped.setdefault(reason, []).append(name)

    def _write_shard(self) -> None:
        """Write the files since the last shard."""
        from safetensors.numpy import save

        if not self._unsaved:
            return
        new = sum(not reason for _, _, reason in self._unsaved)
        tensors: dict[str, NDArray[Any]] = {}
        if new:
            kept = {"features": self._features, "latents": self._latents, "weights": self._weights}
            tensors = {name: np.ascontiguousarray(torch.stack(rows[-new:]).numpy()) for name, rows in kept.items()}
        metadata = {"key": self.key, "files": json.dumps(self._unsaved)}
        atomic_write(self.work / f"shard-{self._shards:05d}.safetensors", save(tensors, metadata=metadata))
        self._shards, self._flushed = self._shards + 1, time.monotonic()
        self._unsaved.clear()
