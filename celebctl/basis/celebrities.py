"""What the celebrities look like to the recogniser, and where they stand: what learning starts from.

The model draws every name of its basis and the recogniser looks at the pictures (rendered_names.py). The mean feature
of a name and its coefficients on the basis are one pair of the fit; where the faces stand in the pictures is where
training views will put them. A model may bring the features beside its weights; for any other `celebctl basis build
--faces` measures them once and keeps them in the library's cache, by text encoder and face models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_models.faces.framing import Framing, measure_framing
from celebctl_runtime.errors import IntegrityError, InvalidInputError, SetupError
from celebctl_runtime.files import atomic_write

from .basis import CelebBasis, read_tensors
from .name_filtering import Rendered, hash_of_faces
from .names import read_names, token_pairs

if TYPE_CHECKING:
    from celebctl_models.checkpoints.token_tables import TokenTables

Model = TypeVar("Model", bound="TokenTables")

_MEASURE = "measure them once: celebctl basis build --faces"
_FEWEST = 3  # pairs that a fit can be made of


@dataclass(frozen=True, eq=False)
class CelebrityFaces:
    """names: (n,), lower case; features: (n, 512) float32 of unit length, what the recogniser sees in their
    pictures; framing: where the faces stand in those pictures, None when it was not measured."""

    names: tuple[str, ...]
    features: NDArray[np.float32]
    framing: Framing | None = None


def faces_of(rendered: Sequence[Rendered]) -> CelebrityFaces:
    """The mean feature of each name that has a picture with exactly one face; names without one are left out.

    Raises InvalidInputError when fewer than three names have a face.
    """
    kept = [one for one in rendered if len(one.features)]
    if len(kept) < _FEWEST:
        raise InvalidInputError(
            f"only {len(kept)} of {len(rendered)} names give a picture with one face",
            "check that the model draws faces and that the face models fit it",
        )
    features = np.stack([one.features.sum(0) for one in kept])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    framing = measure_framing(np.concatenate([one.places for one in kept]))
    return CelebrityFaces(tuple(one.name for one in kept), features.astype(np.float32), framing)


def save_faces(found: CelebrityFaces, table_hash: str, path: Path) -> None:
    from safetensors.numpy import save

    metadata = {"names": "\n".join(found.names), "table_hash": table_hash}
    if found.framing is not None:
        metadata["framing"] = json.dumps(found.framing.as_dict())
    atomic_write(path, save({"features": found.features.astype(np.float16)}, metadata=metadata))


def faces_file(cache: Path, table_hash: str, face_models: str) -> Path:
    """Where measured faces are kept: by text encoder and by face models (their ``hash_of_faces``).

    Fine-tuned relatives that share the text encoder share the file: what a name means to it is the same, and pictures
    are framed alike.
    """
    key = hashlib.sha256(f"{table_hash}:{face_models}".encode()).hexdigest()[:16]
    return cache / f"faces-{key}.safetensors"


def with_faces(parts: Model, cache: Path, face_models: Path) -> Model:
    """The same model with the faces measured for it under ``cache``, if it brings none itself.

    Faces of too few of its names are none: another list may have been chosen since.
    """
    if has_faces(parts) or next(cache.glob("faces-*.safetensors"), None) is None:
        return parts  # and the face models, 190 MB of them, are not read for nothing
    file = faces_file(cache, parts.table_hash, hash_of_faces(face_models))
    if not file.is_file():
        return parts
    measured = cast(Model, replace(cast(Any, parts), card=replace(parts.card, features_file=file)))
    known = set(load_faces(measured).names).intersection(_named_pairs(parts)[0])
    return measured if len(known) >= _FEWEST else parts


def has_faces(parts: TokenTables) -> bool:
    """Whether the model brings the celebrities' faces along."""
    return parts.card.features_file is not None and parts.card.features_file.is_file()


def load_faces(parts: TokenTables) -> CelebrityFaces:
    """The pairs' faces that come with a model, or were measured for it.

    Raises SetupError when it brings none, IntegrityError when they were measured on another text encoder.
    """
    path = parts.card.features_file
    if path is None or not path.is_file():
        raise SetupError(
            f"the model {parts.name} brings no celebrity faces to start from",
            _MEASURE,
        )
    try:
        tensors, metadata = read_tensors(path)
        features = tensors["features"].astype(np.float32)
        names = tuple(metadata["names"].split("\n"))
        framing = Framing.from_dict(json.loads(metadata["framing"])) if "framing" in metadata else None
    except (OSError, KeyError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", _MEASURE) from error
    if metadata.get("table_hash") != parts.table_hash:
        raise IntegrityError(f"{path.name} was measured on another text encoder", _MEASURE)
    return CelebrityFaces(names, features / np.linalg.norm(features, axis=1, keepdims=True), framing)


def pairs_for_fit(
    parts: TokenTables, basis: CelebBasis, found: CelebrityFaces
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features (n, 512) and coefficients (n, S) of all text encoders in standard deviations, name by name."""
    pairs = dict(zip(*_named_pairs(parts), strict=True))
    chosen = [i for i, name in enumerate(found.names) if name in pairs]
    if len(chosen) < _FEWEST:
        raise SetupError(f"only {len(chosen)} of the basis's names have measured faces", _MEASURE)
    ids = np.array([pairs[found.names[i]] for i in chosen])
    return found.features[chosen], units_of(parts, basis, ids)


def units_of(parts: TokenTables, basis: CelebBasis, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Coefficients (n, S) of token pairs (n, 2) over all text encoders, in celebrity standard deviations."""
    units: list[NDArray[np.float32]] = []
    for encoder, spread in enumerate(basis.spread):
        table = parts.token_rows(encoder)
        apart = basis.project(table[ids], encoder) / np.maximum(spread, 1e-12)
        units.append(apart.reshape(len(ids), -1).astype(np.float32))
    return np.concatenate(units, axis=1)


def _named_pairs(parts: TokenTables) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    kept = token_pairs(parts.tokenizers[0], read_names(parts))
    return kept.names, kept.pairs
