"""Features of the celebrities' faces, and the framing of faces in a model's images.

The model draws every name of its basis and the recogniser measures the images (name_filtering.py). The mean feature of
a name and its coefficients are one pair of the ridge fit that initializes a mapper; where the faces are in the images
is where training views place them. Files come with the model or are measured once per text encoder and recogniser.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl_models.faces.framing import Framing, measure_framing
from celebctl_runtime.errors import IntegrityError, InvalidInputError, SetupError
from celebctl_runtime.files import atomic_write
from celebctl_runtime.strict_json import parse_json

from .basis import CelebBasis, read_tensors
from .name_filtering import RenderedName, face_models_hash
from .names import read_name_list, token_pairs

if TYPE_CHECKING:
    from celebctl_models.checkpoints.token_tables import TokenTables

_HINT = "measure the celebrities' faces of this model"
_REASON = "measure_faces"
_MIN_PAIRS = 3  # pairs that a fit needs


@dataclass(frozen=True, eq=False)
class CelebrityFaces:
    """What the recogniser sees in images of celebrities.

    Attributes:
        names: (n,), lower case.
        features: (n, 512) float32 of unit length, the mean over each name's images.
        framing: Where faces are in the images, None when it was not measured.
    """

    names: tuple[str, ...]
    features: NDArray[np.float32]
    framing: Framing | None = None


def faces_from_renders(rendered: Sequence[RenderedName]) -> CelebrityFaces:
    """The mean feature of each name that has an image with exactly one face.

    Raises InvalidInputError when fewer than three names have one.
    """
    kept = [name for name in rendered if len(name.features)]
    if len(kept) < _MIN_PAIRS:
        raise InvalidInputError(
            f"only {len(kept)} of {len(rendered)} names give an image with one face",
            "check that the model draws faces and that the face models fit it",
        )
    features = np.stack([name.features.sum(0) for name in kept])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    framing = measure_framing(np.concatenate([name.places for name in kept]))
    return CelebrityFaces(tuple(name.name for name in kept), features.astype(np.float32), framing)


def save_faces(faces: CelebrityFaces, table_hash: str, path: Path) -> None:
    """Write features (float16), names and framing. table_hash: of the text encoder they were drawn with."""
    from safetensors.numpy import save

    metadata = {"names": "\n".join(faces.names), "table_hash": table_hash}
    if faces.framing is not None:
        metadata["framing"] = json.dumps(faces.framing.as_dict())
    atomic_write(path, save({"features": faces.features.astype(np.float16)}, metadata=metadata))


def load_faces(path: Path, table_hash: str) -> CelebrityFaces:
    """Read what `save_faces` wrote.

    Raises IntegrityError: damaged, or measured with a text encoder of another table hash.
    """
    try:
        tensors, metadata = read_tensors(path)
        features = tensors["features"].astype(np.float32)
        names = tuple(metadata["names"].split("\n"))
        framing = Framing.from_dict(parse_json(metadata["framing"])) if "framing" in metadata else None
    except (OSError, KeyError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", _HINT, reason=_REASON) from error
    if metadata.get("table_hash") != table_hash:
        raise IntegrityError(f"{path.name} was measured with another text encoder", _HINT, reason=_REASON)
    return CelebrityFaces(names, features / np.linalg.norm(features, axis=1, keepdims=True), framing)


def cached_faces_path(cache: Path, table_hash: str, face_models: Path) -> Path:
    """Where measured faces are, or would be. Fine-tuned models with the same text encoder share the file."""
    key = hashlib.sha256(f"{table_hash}:{face_models_hash(face_models)}".encode()).hexdigest()[:16]
    return cache / f"faces-{key}.safetensors"


def has_measured_faces(cache: Path) -> bool:
    """Whether faces were measured for any model."""
    return next(cache.glob("faces-*.safetensors"), None) is not None


def measured_faces(parts: TokenTables, names: Path, cache: Path, face_models: Path) -> Path | None:
    """The cached file of faces measured for a model; None without one, or when it has too few of ``names``."""
    if not has_measured_faces(cache):
        return None  # without hashing the face models, up to 190 MB
    path = cached_faces_path(cache, parts.table_hash, face_models)
    if not path.is_file():
        return None
    used = token_pairs(parts.tokenizers[0], read_name_list(names)).names
    return path if len(set(load_faces(path, parts.table_hash).names).intersection(used)) >= _MIN_PAIRS else None


def celebrity_coefficients(
    parts: TokenTables, basis: CelebBasis, faces: CelebrityFaces | None, names: Path
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features (n, 512) and normalized coefficients (n, S) of the celebrities in ``names`` with a measured face.

    Raises SetupError when there are none or too few.
    """
    if faces is None:
        raise SetupError(f"the model {parts.name} has no celebrity faces", _HINT, reason=_REASON)
    pairs = token_pairs(parts.tokenizers[0], read_name_list(names))
    ids_of = dict(zip(pairs.names, pairs.pairs, strict=True))
    chosen = [index for index, name in enumerate(faces.names) if name in ids_of]
    if len(chosen) < _MIN_PAIRS:
        raise SetupError(f"only {len(chosen)} names of the basis have measured faces", _HINT, reason=_REASON)
    ids = np.array([ids_of[faces.names[index]] for index in chosen])
    return faces.features[chosen], normalized_coefficients(parts, basis, ids)


def normalized_coefficients(parts: TokenTables, basis: CelebBasis, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Coefficients (n, S) of token pairs (n, 2) over all text encoders, in celebrity standard deviations."""
    found: list[NDArray[np.float32]] = []
    for encoder, spread in enumerate(basis.spread):
        coefficients = basis.project(parts.token_rows(encoder)[ids], encoder) / np.maximum(spread, 1e-12)
        found.append(coefficients.reshape(len(ids), -1).astype(np.float32))
    return np.concatenate(found, axis=1)
