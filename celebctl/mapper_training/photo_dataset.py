"""Photos of many people in a folder, as a mapper is trained on them: sifted and encoded, piece by piece.

A photo counts that can be read and shows one face, large enough and of somebody who is not likely a child; the same
picture counts once. What is kept of it are the recogniser's feature and a few encoded views, in a work folder that
lasts as long as the training, so that stopping loses one piece at most.
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

from .trainer import FaceDataset

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.faces.analysis import Face, FaceAnalyser

VIEWS = 4  # encoded of each photo
PIECE, OFTEN = 32, 20.0  # photos, or seconds, after which what is done is written
SAME_PICTURE = 0.995  # cosine of features: saved again or resized, it is still the same picture

UNREADABLE, NO_FACE, SEVERAL = "no photo that can be read", "no face found", "more than one face"
SMALL, MINOR, AGAIN = "the face is too small", "likely younger than 18", "the same picture as another"

#: Latents (V, 4, h, w) and loss weights (V, 1, h, w) of a photo's views; the text seeds what is random about them.
Encode = Callable[["Image", "Face", str], tuple[Tensor, Tensor]]


def list_photos(folder: Path, seed: int = 0) -> list[Path]:
    """Every file below a folder but hidden ones, in a random order that is the same each time.

    Raises NotFoundError without the folder, InvalidInputError when it is empty.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise NotFoundError(f"{folder} {what}; a mapper is trained on a folder of photos", "name a folder")
    try:
        inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise NotFoundError(f"{folder} cannot be listed: {error.strerror}", "check its permissions") from error
    files = [folder / path for path in inside if not any(part.startswith(".") for part in path.parts)]
    if not files:
        raise InvalidInputError(f"{folder} holds no files", "give a folder with photos of many people, one in each")
    order: list[int] = np.random.Generator(np.random.PCG64(seed)).permutation(len(files)).tolist()
    return [files[i] for i in order]


def encoder_of(parts: DiffusionParts, seed: int) -> Encode:
    """Views of a photo through the model's autoencoder, as learning a person has them."""

    def encode(photo: Image, face: Face, key: str) -> tuple[Tensor, Tensor]:
        own = int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:7], "big")
        return encode_views(parts, photo, face, VIEWS, with_model_framing(CLEAN, parts), torch.Generator().manual_seed(own))

    return encode


def bytes_of_views(parts: DiffusionParts) -> int:
    """What the views of one photo take in float16."""
    side = parts.card.native_size // parts.vae_factor
    return 2 * VIEWS * (parts.latent_channels + 1) * side * side


@dataclass
class FaceDatasetBuilder:
    """A crowd on its way from a folder into memory, by way of a work folder.

    key: names everything but the photos that decides the result; work of another key is not gone on with. left_out:
    reason -> names of files, filled as files are looked at.
    """

    analyser: FaceAnalyser
    encode: Encode
    work: Path
    key: str
    smallest: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    _hashes: set[str] = field(default_factory=set[str])
    _seen: set[str] = field(default_factory=set[str])
    _features: list[Tensor] = field(default_factory=list[Tensor])
    _latents: list[Tensor] = field(default_factory=list[Tensor])
    _weights: list[Tensor] = field(default_factory=list[Tensor])
    _told: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    _written: int = 0
    _when: float = field(default_factory=time.monotonic)

    @property
    def kept(self) -> int:
        """People so far."""
        return len(self._features)

    def build(
        self, files: Sequence[Path], most: int | None = None, on_photo: Callable[[int, int], None] = lambda n, of: None
    ) -> FaceDataset:
        """Look at all files, or until ``most`` are fit for use; goes on after what ``recall`` brought back.

        ``on_photo`` hears how many files were looked at and how many there are. Raises InvalidInputError when none is fit.
        """
        for number, path in enumerate(files, 1):
            if most is not None and self.kept >= most:
                break
            if str(path) not in self._seen:
                self._take(path)
                if len(self._told) >= PIECE or time.monotonic() - self._when > OFTEN:
                    self._write()
            on_photo(number, len(files))
        self._write()
        if not self.kept:
            raise InvalidInputError(
                f"none of {len(files):,} files is a photo of one face ({self.said()})",
                "give a folder with photos of many people, one person in each",
            )
        return FaceDataset(torch.stack(self._features), torch.stack(self._latents), torch.stack(self._weights))

    def recall(self) -> None:
        """Read what an earlier run left in the work folder. Raises IntegrityError when it is something else's."""
        for path in sorted(self.work.glob("piece-*.safetensors")):
            again = "run the same command without --resume"
            try:
                tensors, metadata = read_tensors(path)
                told: list[list[str]] = json.loads(metadata["told"])
                same = metadata["key"] == self.key
            except (OSError, KeyError, ValueError) as error:
                raise IntegrityError(f"{path} cannot be read: {error}", again) from error
            if not same:
                raise IntegrityError("what was interrupted had another model or other settings", again)
            for name, digest, reason in told:
                self._note(name, digest, reason)
            if "features" in tensors:
                self._features += torch.as_tensor(tensors["features"]).unbind()
                self._latents += torch.as_tensor(tensors["latents"]).unbind()
                self._weights += torch.as_tensor(tensors["weights"]).unbind()
            self._written, self._when = self._written + 1, time.monotonic()
        self._told.clear()

    def said(self) -> str:
        """ "3 no face found, 1 more than one face": how many files were left out for which reason."""
        counts = Counter({reason: len(names) for reason, names in self.left_out.items()})
        return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())

    def _take(self, path: Path) -> None:
        digest, reason = "", UNREADABLE
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found = AGAIN if digest in self._hashes else self._look(open_photo(path))
        except (CelebctlError, OSError):
            found = UNREADABLE
        if isinstance(found, str):
            reason = found
        else:
            reason = ""
            photo, face = found
            latents, weights = self.encode(photo, face, digest)
            self._features.append(torch.as_tensor(face.feature))
            # in the one order in which they come back from the disk: rounding depends on how they lie in memory
            self._latents.append(latents.cpu().half().contiguous())
            self._weights.append(weights.cpu().half().contiguous())
        self._note(str(path), digest, reason)

    def _look(self, photo: Image) -> tuple[Image, Face] | str:
        """The photo and its one face, or why it is left out."""
        faces = self.analyser.analyse(photo)
        if len(faces) != 1:
            return SEVERAL if faces else NO_FACE
        face = faces[0]
        if face.size < self.smallest:
            return SMALL
        try:
            refuse_minor(face, "the photo")
        except PolicyError:
            return MINOR
        if self._features and float((torch.stack(self._features) @ torch.as_tensor(face.feature)).max()) > SAME_PICTURE:
            return AGAIN
        return photo, face

    def _note(self, name: str, digest: str, reason: str) -> None:
        self._seen.add(name)
        self._hashes.add(digest)
        self._told.append((name, digest, reason))
        if reason:
            self.left_out.setdefault(reason, []).append(name)

    def _write(self) -> None:
        """Put what was looked at since the last piece into one of its own."""
        from safetensors.numpy import save

        if not self._told:
            return
        new = sum(not reason for _, _, reason in self._told)
        tensors: dict[str, NDArray[Any]] = {}
        if new:
            given = {"features": self._features, "latents": self._latents, "weights": self._weights}
            tensors = {name: np.ascontiguousarray(torch.stack(rows[-new:]).numpy()) for name, rows in given.items()}
        metadata = {"key": self.key, "told": json.dumps(self._told)}
        atomic_write(self.work / f"piece-{self._written:05d}.safetensors", save(tensors, metadata=metadata))
        self._written, self._when = self._written + 1, time.monotonic()
        self._told.clear()
