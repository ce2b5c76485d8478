"""Mappers that this user trained on folders of photos: where they are kept, and which one a model begins with.

They lie in the library's cache by celeb basis and face models, for they answer in the one and read the features of the
other. Fine-tuned relatives with the same text encoder and names share a mapper, as they share a basis: what token rows
mean to a text encoder is the same. One that the user trained goes before one that came with the model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celebctl.basis.basis import CelebBasis, build_basis, read_tensors
from celebctl.basis.celebrities import Model
from celebctl.basis.name_filtering import hash_of_faces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celebctl.learning.mapper import PretrainedMapper


@dataclass(frozen=True)
class TrainedMapper:
    """A mapper in the cache. about: what was told of its training, as text."""

    path: Path
    about: dict[str, str]

    def __str__(self) -> str:
        people, steps = self.about.get("people", "?"), self.about.get("steps", "?")
        return f"trained on {people} people in {steps} steps"


def mapper_file(cache: Path, basis: CelebBasis, face_models: str) -> Path:
    """Where a trained mapper is kept. face_models: their ``hash_of_faces``."""
    return cache / f"mapper-{basis.hash[:16]}-{_short(face_models)}.safetensors"


def save_trained(
    fitted: PretrainedMapper, basis: CelebBasis, cache: Path, face_models: Path, about: Mapping[str, str]
) -> Path:
    """Keep a mapper; returns the file."""
    from .pretraining import save_mapper  # and torch, which looking for a mapper must not need

    path = mapper_file(cache, basis, hash_of_faces(face_models))
    save_mapper(fitted, basis, path, {**about, "face_models": face_models.name})
    return path


def trained_for(cache: Path, basis: CelebBasis) -> list[TrainedMapper]:
    """The mappers trained for a basis, whatever the face models. Damaged files are left out."""
    found: list[TrainedMapper] = []
    for path in sorted(cache.glob(f"mapper-{basis.hash[:16]}-*.safetensors")):
        try:
            about = read_tensors(path)[1]
        except (OSError, ValueError):
            continue
        if about.get("basis") == basis.hash:
            found.append(TrainedMapper(path, about))
    return found


def with_mapper(parts: Model, cache: Path, face_models: Path) -> Model:
    """The same model, its names settled, with the mapper trained for it under ``cache``, if there is one."""
    if next(cache.glob("mapper-*.safetensors"), None) is None:
        return parts
    basis = build_basis(parts, cache)
    if not trained_for(cache, basis):
        return parts  # and the face models, 190 MB of them, are not read for nothing
    file = mapper_file(cache, basis, hash_of_faces(face_models))
    if not file.is_file():
        return parts
    return cast(Model, replace(cast(Any, parts), card=replace(parts.card, mapper_file=file)))


def with_latest(parts: Model, cache: Path, basis: CelebBasis) -> Model:
    """The same model with the mapper that was trained last for it, whatever the face models: for whoever asks it about
    no face."""
    found = trained_for(cache, basis)
    if not found:
        return parts
    last = max(found, key=lambda one: one.path.stat().st_mtime)
    return cast(Model, replace(cast(Any, parts), card=replace(parts.card, mapper_file=last.path)))


def _short(face_models: str) -> str:
    return hashlib.sha256(face_models.encode()).hexdigest()[:16]
