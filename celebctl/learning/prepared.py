"""A model prepared for learning: its networks or token tables, its celeb basis and the files that go with them.

Prepared once per model; everything in this package takes a `PreparedModel` and looks nothing up again. No torch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from celebctl.basis.basis import CelebBasis, build_basis
from celebctl.basis.celebrities import (
    CelebrityFaces,
    celebrity_coefficients,
    has_measured_faces,
    load_faces,
    measured_faces,
)
from celebctl.basis.names import names_file
from celebctl.mapper_training.mapper_store import trained_mapper, trained_mappers
from celebctl_models.faces.framing import PHOTOGRAPHS, Framing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from celebctl_models.checkpoints.token_tables import TokenTables

Parts = TypeVar("Parts", bound="TokenTables", covariant=True)


@dataclass(frozen=True)
class ModelAssets:
    """Files beside a model's weights that learning uses.

    Attributes:
        names: The names behind the celeb basis.
        faces: Features of the celebrities' faces (celebrities.py), None where they were not measured.
        mapper: A pretrained mapper for the basis, None without one.
    """

    names: Path
    faces: Path | None = None
    mapper: Path | None = None

    @classmethod
    def of(cls, parts: TokenTables) -> ModelAssets:
        """The files that came with a model."""
        card = parts.card
        return cls(names_file(parts), _existing(card.features_file), _existing(card.mapper_file))

    @property
    def mapper_digest(self) -> str:
        """The first 16 hexadecimal digits of the mapper's SHA-256, to tell results apart; "" without a mapper."""
        return "" if self.mapper is None else hashlib.sha256(self.mapper.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class PreparedModel(Generic[Parts]):
    """What learning takes from a model. parts: `DiffusionParts` for training, `TokenTables` suffice without."""

    parts: Parts
    basis: CelebBasis
    assets: ModelAssets

    @cached_property
    def celebrity_faces(self) -> CelebrityFaces | None:
        """Features and framing of the celebrities' faces, where they were measured."""
        faces = self.assets.faces
        return None if faces is None else load_faces(faces, self.parts.table_hash)

    def celebrity_pairs(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Celebrities with a measured face: features (n, 512) and coefficients (n, S) in standard deviations.

        Raises SetupError when none or too few were measured.
        """
        return celebrity_coefficients(self.parts, self.basis, self.celebrity_faces, self.assets.names)

    @cached_property
    def framing(self) -> tuple[Framing, str]:
        """Where the model draws faces, and how that is known: "declared" by the model, "measured" with the
        celebrities' faces, or "assumed" as in photographs."""
        if self.parts.card.framing is not None:
            return self.parts.card.framing, "declared"
        measured = self.celebrity_faces.framing if self.celebrity_faces else None
        return (measured, "measured") if measured is not None else (PHOTOGRAPHS, "assumed")


def prepare(
    parts: Parts,
    cache: Path | None = None,
    *,
    names: Path | None = None,
    face_models: Callable[[], Path] | Path | None = None,
    release: bool = False,
) -> PreparedModel[Parts]:
    """Build the basis of a loaded model, or read it from ``cache``, and find the files that go with it.

    Args:
        parts: The model, or its token tables.
        cache: Folder of cached bases, measured faces and trained mappers; None uses what came with the model.
        names: The names chosen for the model; None uses its own.
        face_models: The recogniser's folder, or a function that finds it and is called only when the cache has faces
            or mappers, which belong to one recogniser.
        release: The basis of the published release, for ``LearnConfig.names == "release"``.

    Raises:
        InvalidInputError: Too few names remain.
        IntegrityError: A file of the model is missing or damaged.
    """
    own = ModelAssets.of(parts)
    # a mapper is fitted to one basis: the one that came with the model does not fit other names
    chosen, faces, mapper = names or own.names, own.faces, own.mapper if names is None else None
    basis = build_basis(parts, cache, names=chosen, release=release)
    if cache is not None and face_models is not None and (has_measured_faces(cache) or trained_mappers(cache, basis)):
        folder = face_models() if callable(face_models) else face_models
        faces = faces or measured_faces(parts, chosen, cache, folder)
        mapper = trained_mapper(basis, cache, folder) or mapper
    return PreparedModel(parts, basis, ModelAssets(chosen, faces, mapper))


def _existing(path: Path | None) -> Path | None:
    return path if path is not None and path.is_file() else None
