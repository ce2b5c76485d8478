"""Mapper files: reading and writing them, and where trained ones are cached.

A mapper belongs to one celeb basis, whose coefficients it predicts, and to one recogniser, whose features it reads.
Fine-tuned models with the same text encoder and names share a basis, and so a mapper. A mapper that the user trained
takes precedence over one that came with the model. Reading needs no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from celebctl.basis.basis import CelebBasis, read_tensors
from celebctl.basis.name_filtering import face_models_hash
from celebctl_models.faces.packs import face_models_name
from celebctl_runtime.errors import IntegrityError
from celebctl_runtime.files import atomic_write

if TYPE_CHECKING:
    from celebctl.learning.mapper import PretrainedMapper

Floats = NDArray[np.float32]

#: Names in the file for names in `PretrainedMapper`, where they differ.
FILE_NAMES = {"code_cov_sqrt": "code_root"}


@dataclass(frozen=True)
class TrainedMapper:
    """A mapper in the cache. metadata: of its training, as text."""

    path: Path
    metadata: dict[str, str]

    def __str__(self) -> str:
        people, steps = self.metadata.get("people", "?"), self.metadata.get("steps", "?")
        return f"trained on {people} people in {steps} steps"


def read_layers(path: Path, basis: CelebBasis) -> dict[str, Floats]:
    """The tensors of a mapper file by their names in `PretrainedMapper`, float32.

    Raises:
        IntegrityError: The file is damaged or was made for another basis.
    """
    try:
        tensors, metadata = read_tensors(path)
        layers = {name: tensors[FILE_NAMES.get(name, name)].astype(np.float32) for name in _attributes(tensors)}
        code, hidden = len(layers["code_mean"]), len(layers["middle.bias"])
        features = layers["down.weight"].shape[-1]
        shapes = {"down.weight": (code, features), "code_cov_sqrt": (code, code), "up.weight": (basis.size, hidden)}
        fits = all(layers[name].shape == shape for name, shape in shapes.items())
    except (OSError, KeyError, ValueError) as error:
        raise IntegrityError(f"the mapper {path.name} cannot be read: {error}", "download the model again") from error
    if metadata.get("basis") != basis.hash:
        raise IntegrityError(
            f"the mapper {path.name} was made for another celeb basis",
            "use the names that came with the model, or train a mapper for the chosen ones",
            reason="mapper_of_other_basis", path=path,
        )  # fmt: skip
    if not fits:
        raise IntegrityError(f"the mapper {path.name} has layers of another shape", "download the model again")
    return layers


def load_mapper(path: Path, basis: CelebBasis) -> PretrainedMapper:
    """A mapper as a frozen float32 module. Raises IntegrityError as `read_layers` does."""
    import torch

    from celebctl.learning.mapper import PretrainedMapper

    layers = read_layers(path, basis)
    code, features = layers["down.weight"].shape
    mapper = PretrainedMapper(basis.size, code, len(layers["middle.bias"]), features)
    mapper.load_state_dict({name: torch.as_tensor(array) for name, array in layers.items()})
    return mapper.eval().requires_grad_(False)


def save_mapper(
    mapper: PretrainedMapper, basis: CelebBasis, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a mapper's layers in float16, with the hash of its basis and further ``metadata``."""
    from safetensors.numpy import save

    tensors = {
        FILE_NAMES.get(name, name): tensor.detach().numpy().astype(np.float16)
        for name, tensor in mapper.state_dict().items()
    }
    atomic_write(path, save(tensors, metadata={**(metadata or {}), "basis": basis.hash}))


def cached_mapper_path(cache: Path, basis: CelebBasis, face_models: Path) -> Path:
    """Where the mapper trained for a basis and a recogniser is, or would be."""
    digest = hashlib.sha256(face_models_hash(face_models).encode()).hexdigest()[:16]
    return cache / f"mapper-{basis.hash[:16]}-{digest}.safetensors"


def save_trained(
    mapper: PretrainedMapper, basis: CelebBasis, cache: Path, face_models: Path, metadata: Mapping[str, str]
) -> Path:
    """Write a trained mapper into the cache; returns the file."""
    path = cached_mapper_path(cache, basis, face_models)
    save_mapper(mapper, basis, path, {**metadata, "face_models": face_models_name(face_models)})
    return path


def trained_mappers(cache: Path, basis: CelebBasis) -> list[TrainedMapper]:
    """All mappers trained for a basis, the latest last. Damaged files are left out."""
    found: list[TrainedMapper] = []
    for path in sorted(cache.glob(f"mapper-{basis.hash[:16]}-*.safetensors"), key=lambda path: path.stat().st_mtime):
        try:
            metadata = read_tensors(path)[1]
        except (OSError, ValueError):
            continue
        if metadata.get("basis") == basis.hash:
            found.append(TrainedMapper(path, metadata))
    return found


def trained_mapper(basis: CelebBasis, cache: Path, face_models: Path) -> Path | None:
    """The mapper trained for a basis and a recogniser, None without one."""
    if not trained_mappers(cache, basis):
        return None  # without hashing the face models, up to 190 MB
    path = cached_mapper_path(cache, basis, face_models)
    return path if path.is_file() else None


def _attributes(tensors: Mapping[str, Any]) -> list[str]:
    attributes = {file: attribute for attribute, file in FILE_NAMES.items()}
    return [attributes.get(name, name) for name in tensors]
