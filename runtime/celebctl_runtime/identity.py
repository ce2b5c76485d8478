"""A person as numbers: coefficients on the celeb basis, and the two token embeddings that they stand for.

One small safetensors file holds both, so that baking a person into a bundle needs neither torch nor the basis. The file
carries provenance (settings, scores, versions) and never a photo. What this module does *not* know: how an identity is
learned, and which bundle it goes into.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from .errors import CelebctlError, IntegrityError, NotFoundError, UsageError
from .files import atomic_write

SCHEMA = 1
TOKENS = 2  # first name, last name

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DEVICES = frozenset({"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)})
_MAX_FILE = 64 << 20  # bytes; a real identity is a few KiB
_MAX_HEADER = 1 << 20


def check_name(name: str) -> str:
    """The canonical form of a person's name: NFKC, case-folded, ``[a-z][a-z0-9_-]{0,31}``, no Windows device.

    Raises UsageError with the value and the rule when there is no such form.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    if not _NAME.fullmatch(folded):
        raise UsageError(
            f"{name[:80]!r} cannot be a person's name",
            "use 1 to 32 of the characters a-z 0-9 _ -, starting with a letter, for example --name alice",
        )
    if folded in _DEVICES:
        raise UsageError(f"{name!r} is a reserved file name on Windows", f"use another name, for example {folded}_1")
    return folded


def check_key(what: str, value: object) -> str:
    """``value``, fit to be part of a file name: ``[A-Za-z0-9][A-Za-z0-9_-]{0,63}``, as families and hashes are.

    Raises IntegrityError naming ``what`` it is.
    """
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise IntegrityError(
            f"{str(value)[:80]!r} cannot be {what}", "it is 1 to 64 of the characters A-Z a-z 0-9 _ -: restore the file"
        )
    return value


@dataclass(frozen=True, eq=False)
class Identity:
    """One learned person. E text encoders (1 for SD 1.x, 2 for SDXL), 2 token positions, K components, width D.

    ``coefficients``: E arrays (2, K_e) float32. ``embeddings``: E arrays (2, D_e) float32, equal to the basis's
    ``embed(coefficients)`` unless the person was imported. The hashes name the basis and the token table (model) that
    they belong to. Arrays are copied and read-only. Raises IntegrityError for NaN, infinity, a zero row or a wrong
    shape, or a family or hash that :func:`check_key` refuses, UsageError for a name that :func:`check_name` changes.
    """

    name: str
    coefficients: tuple[NDArray[np.float32], ...]
    embeddings: tuple[NDArray[np.float32], ...]
    basis_hash: str
    family: str
    table_hash: str
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if check_name(self.name) != self.name:
            raise UsageError(f"{self.name!r} is not in canonical form", f"use {check_name(self.name)!r}")
        for what in ("family", "table_hash", "basis_hash"):
            check_key(f"the {what} of an identity", getattr(self, what))
        if not self.embeddings or len(self.coefficients) != len(self.embeddings):
            raise IntegrityError(
                f"identity {self.name!r} has {len(self.coefficients)} coefficient and {len(self.embeddings)} embedding"
                " arrays; it needs one of each per text encoder"
            )
        object.__setattr__(
            self, "coefficients", tuple(_checked(self.name, "coefficients", a) for a in self.coefficients)
        )
        object.__setattr__(self, "embeddings", tuple(_checked(self.name, "embeddings", a) for a in self.embeddings))
        object.__setattr__(self, "provenance", dict(self.provenance))

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the tensors (kind, encoder, shape and little-endian bytes). The name is not part of it."""
        digest = hashlib.sha256()
        for kind, arrays in (("coefficients", self.coefficients), ("embeddings", self.embeddings)):
            for encoder, array in enumerate(arrays):
                digest.update(f"{kind}.{encoder}:{array.shape}".encode())
                digest.update(array.astype("<f4").tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        return self.digest == other.digest and self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash((self.name, self.digest))

    def renamed(self, name: str) -> Identity:
        """The same person under another name (checked)."""
        return replace(self, name=check_name(name))

    def save(self, path: Path) -> None:
        """Write the identity to ``path`` atomically. Raises SetupError when the place cannot be written."""
        tensors: dict[str, NDArray[np.float32]] = {}
        for encoder, (coefficients, embeddings) in enumerate(zip(self.coefficients, self.embeddings, strict=True)):
            tensors[f"coefficients.{encoder}"] = coefficients
            tensors[f"embeddings.{encoder}"] = embeddings
        metadata = {f"celebctl.{key}": value for key, value in self._facts().items()}
        metadata["celebctl.schema"] = str(SCHEMA)
        atomic_write(path, _safetensors(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read an identity file.

        Raises NotFoundError when there is none, IntegrityError when it is damaged, newer than this celebctl, or not an
        identity at all.
        """
        raw = _read(path)
        header = _header(raw, path)
        metadata = cast("dict[str, str]", header.pop("__metadata__", {}))
        _check_schema(metadata, path)
        tensors = _tensors(raw, path)
        try:
            provenance = cast("dict[str, str]", json.loads(metadata["celebctl.provenance"]))
            return cls(
                name=metadata["celebctl.name"],
                coefficients=_numbered_tensors(tensors, "coefficients"),
                embeddings=_numbered_tensors(tensors, "embeddings"),
                basis_hash=metadata["celebctl.basis_hash"],
                family=metadata["celebctl.family"],
                table_hash=metadata["celebctl.table_hash"],
                provenance={str(key): str(value) for key, value in provenance.items()},
            )
        except CelebctlError as error:
            _reject(path, error.problem, error)
        except KeyError as error:
            _reject(path, f"the entry {error} is missing", error)
        except (ValueError, AttributeError) as error:
            _reject(path, "its provenance cannot be read", error)

    def _facts(self) -> dict[str, str]:
        return {
            "name": self.name,
            "basis_hash": self.basis_hash,
            "family": self.family,
            "table_hash": self.table_hash,
            "provenance": json.dumps(dict(self.provenance), sort_keys=True, ensure_ascii=False),
        }


def _checked(name: str, kind: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """A read-only float32 copy of a (2, n) array with finite, nonzero rows."""
    if array.ndim != 2 or array.shape[0] != TOKENS or array.shape[1] == 0:
        raise IntegrityError(f"{kind} of {name!r} have shape {array.shape}; (2, n) is needed")
    copy = np.array(array, dtype=np.float32, order="C")
    if not np.isfinite(copy).all():
        raise IntegrityError(f"{kind} of {name!r} contain NaN or infinity", "learn the person again")
    if kind == "embeddings" and not copy.any(axis=1).all():
        raise IntegrityError(f"{kind} of {name!r} have a zero row", "learn the person again")
    copy.setflags(write=False)
    return copy


def _safetensors(tensors: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]) -> bytes:
    """The safetensors file of float32 tensors. The library's own writer puts metadata in random order; here the same
    person always gives the same bytes."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    content = b""
    for name, array in sorted(tensors.items()):
        data = array.astype("<f4").tobytes()
        offsets = [len(content), len(content) + len(data)]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        content += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors to begin on a multiple of 8
    return len(text).to_bytes(8, "little") + text + content


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE:
            _reject(path, f"it is larger than {_MAX_FILE >> 20} MiB")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"there is no identity file {path}", "celebctl list shows who is known") from error
    except (IsADirectoryError, PermissionError) as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", "name an identity file") from error


def _header(raw: bytes, path: Path) -> dict[str, object]:
    """The JSON header of a safetensors file, refusing what parsers disagree about: duplicate keys, absurd lengths."""
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > min(_MAX_HEADER, len(raw) - 8):
        _reject(path, f"its header of {length} bytes does not fit")
    try:
        header: object = json.loads(raw[8 : 8 + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _reject(path, f"its header is not valid ({error})", error)
    metadata = cast("dict[str, object]", header).get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        _reject(path, "its header is not a JSON object")
    return cast("dict[str, object]", header)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _check_schema(metadata: Mapping[str, str], path: Path) -> None:
    schema = str(metadata.get("celebctl.schema", ""))
    if not schema.isdecimal():
        _reject(path, "it is a tensor file without celebctl's metadata")
    if int(schema) > SCHEMA:
        raise IntegrityError(
            f"{path} has identity format {schema}; this celebctl reads up to {SCHEMA}", "pip install --upgrade celebctl"
        )


def _tensors(raw: bytes, path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(raw)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        _reject(path, str(error), error)


def _numbered_tensors(tensors: Mapping[str, NDArray[Any]], kind: str) -> tuple[NDArray[Any], ...]:
    count = sum(key.startswith(f"{kind}.") for key in tensors)
    return tuple(tensors[f"{kind}.{encoder}"] for encoder in range(count))


def _reject(path: Path, reason: str, cause: BaseException | None = None) -> NoReturn:
    raise IntegrityError(
        f"{path} is not a usable identity: {reason}", "learn the person again, or restore the file from a backup"
    ) from cause
