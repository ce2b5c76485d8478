"""A learned person: coefficients on the celeb basis, and the two token embeddings computed from them.

One small safetensors file holds both, so that adding a person to a bundle needs neither torch nor the basis. The file
carries provenance (settings, scores, versions) and never a photo. This module does not know how an identity is learned.
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
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .errors import CelebctlError, IntegrityError, InvalidInputError, NotFoundError, UsageError
from .files import atomic_write, read_regular
from .strict_json import parse_json

SCHEMA = 1
TOKENS = 2  # first name, last name

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DEVICES = frozenset({"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)})
_MAX_FILE = 64 << 20  # bytes; a real identity is a few KiB
_MAX_HEADER = 1 << 20


def check_name(name: str) -> str:
    """The canonical form of a person's name: NFKC, case-folded, ``[a-z][a-z0-9_-]{0,31}``, no Windows device.

    Raises UsageError when there is no such form.

    Example:
        >>> check_name("Anna-2")
        'anna-2'
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    if not _NAME.fullmatch(folded):
        raise UsageError(
            f"{name[:80]!r} cannot be a person's name",
            "use 1 to 32 of the characters a-z 0-9 _ -, starting with a letter, for example alice",
            reason="invalid_name",
            name=name[:80],
        )
    if folded in _DEVICES:
        raise UsageError(
            f"{name!r} is a reserved file name on Windows",
            f"use another name, for example {folded}_1",
            reason="invalid_name",
            name=name,
        )
    return folded


def check_key(what: str, value: object) -> str:
    """``value`` if it can be part of a file name: ``[A-Za-z0-9][A-Za-z0-9_-]{0,63}``, as families and hashes are.

    Raises IntegrityError naming ``what`` it is otherwise.
    """
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise IntegrityError(
            f"{str(value)[:80]!r} cannot be {what}", "it is 1 to 64 of the characters A-Z a-z 0-9 _ -: restore the file"
        )
    return value


@dataclass(frozen=True, eq=False)
class Identity:
    """One learned person, for a model with E text encoders (1 for SD 1.x, 2 for SDXL). Arrays are copied, read-only.

    Args:
        name: Canonical, see :func:`check_name`.
        coefficients: E arrays (2, K) float32: weights of K basis components, for the first and last name token.
        embeddings: E arrays (2, D) float32: token embeddings of width D, ``CelebBasis.embed(coefficients)`` unless the
            person was imported.
        basis_hash: Hash of the celeb basis.
        family: Model family, such as "sd1".
        table_hash: Hash of the model's token tables; a bundle accepts only identities with its own.
        provenance: How the person was learned: settings, scores, versions.

    Raises:
        UsageError: When the name is not canonical.
        IntegrityError: For NaN, infinity, a zero embedding, a wrong shape, or an invalid family or hash.

    Example:
        >>> import tempfile
        >>> rows = (np.ones((2, 8), np.float32),)
        >>> alice = Identity("alice", rows, rows, basis_hash="b0", family="toy", table_hash="t0")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     alice.save(Path(folder) / "alice.safetensors")
        ...     Identity.load(Path(folder) / "alice.safetensors") == alice
        True
        >>> alice.renamed("anna").name
        'anna'
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
        for kind in ("coefficients", "embeddings"):
            object.__setattr__(self, kind, tuple(_checked(self.name, kind, array) for array in getattr(self, kind)))
        object.__setattr__(self, "provenance", dict(self.provenance))

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the tensors (kind, encoder, shape and little-endian bytes). The name is not part of it."""
        digest = hashlib.sha256()
        for key, array in self._tensors().items():
            digest.update(f"{key}:{array.shape}".encode())
            digest.update(array.astype("<f4").tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        return self.digest == other.digest and self._text_fields() == other._text_fields()

    def __hash__(self) -> int:
        return hash((self.name, self.digest))

    def renamed(self, name: str) -> Identity:
        """The same person under another name (checked)."""
        return replace(self, name=check_name(name))

    def save(self, path: Path) -> None:
        """Write a safetensors file atomically; the same identity always gives the same bytes. Raises SetupError."""
        metadata = {f"celebctl.{key}": value for key, value in self._text_fields().items()}
        metadata["celebctl.schema"] = str(SCHEMA)
        atomic_write(path, _safetensors(self._tensors(), metadata))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read an identity file.

        Raises:
            NotFoundError: When there is no such file.
            IntegrityError: When it is damaged, not an identity, or was written by a newer version.
        """
        raw = _read(path)
        header = _header(raw, path)
        metadata = cast("dict[str, str]", header.pop("__metadata__", {}))
        _check_schema(metadata, path)
        tensors = _tensors(raw, path)
        try:
            provenance = cast("dict[str, str]", parse_json(metadata["celebctl.provenance"]))
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
            raise _unusable(path, error.problem) from error
        except KeyError as error:
            raise _unusable(path, f"the entry {error} is missing") from error
        except (ValueError, AttributeError) as error:
            raise _unusable(path, "its provenance cannot be read") from error

    def _tensors(self) -> dict[str, NDArray[np.float32]]:
        kinds = {"coefficients": self.coefficients, "embeddings": self.embeddings}
        return {f"{kind}.{i}": array for kind, arrays in kinds.items() for i, array in enumerate(arrays)}

    def _text_fields(self) -> dict[str, str]:
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
    """A safetensors file of float32 tensors with sorted metadata; the library's own writer does not fix the order."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    content = b""
    for name, array in sorted(tensors.items()):
        data = array.astype("<f4").tobytes()
        offsets = [len(content), len(content) + len(data)]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        content += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to 8 bytes
    return len(text).to_bytes(8, "little") + text + content


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _MAX_FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"there is no identity file {path}", "check the path", reason="no_identity_file", path=path
        ) from error
    except InvalidInputError as error:
        raise _unusable(path, f"it is larger than {_MAX_FILE >> 20} MiB") from error
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", "name an identity file") from error


def _header(raw: bytes, path: Path) -> dict[str, object]:
    """The JSON header of a safetensors file; refuses what parsers disagree about: duplicate keys, absurd lengths."""
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > min(_MAX_HEADER, len(raw) - 8):
        raise _unusable(path, f"its header of {length} bytes does not fit")
    try:
        header: object = parse_json(raw[8 : 8 + length])
    except ValueError as error:
        raise _unusable(path, f"its header is not valid ({error})") from error
    metadata = cast("dict[str, object]", header).get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise _unusable(path, "its header is not a JSON object")
    return cast("dict[str, object]", header)


def _check_schema(metadata: Mapping[str, str], path: Path) -> None:
    schema = str(metadata.get("celebctl.schema", ""))
    if not (schema.isascii() and schema.isdecimal() and len(schema) < 10):
        raise _unusable(path, "it is a tensor file without celebctl's metadata")
    if int(schema) > SCHEMA:
        raise IntegrityError(
            f"{path} has identity format {schema}; this celebctl reads up to {SCHEMA}",
            "upgrade celebctl",
            reason="newer_format",
            version=int(schema),
        )


def _tensors(raw: bytes, path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(raw)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _unusable(path, str(error)) from error


def _numbered_tensors(tensors: Mapping[str, NDArray[Any]], kind: str) -> tuple[NDArray[Any], ...]:
    count = sum(key.startswith(f"{kind}.") for key in tensors)
    return tuple(tensors[f"{kind}.{encoder}"] for encoder in range(count))


def _unusable(path: Path, problem: str) -> IntegrityError:
    hint = "learn the person again, or restore the file from a backup"
    return IntegrityError(f"{path} is not a usable identity: {problem}", hint, reason="identity_damaged", path=path)
