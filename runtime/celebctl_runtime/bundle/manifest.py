"""``manifest.json`` of a bundle as frozen dataclasses, checked entry by entry when read.

Only the manifest says which rows of the token tables belong to which person, so publishing a new manifest is what adds
or removes a person. The field names below are the keys of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, cast, get_args, get_origin, get_type_hints

import numpy as np

from celebctl_runtime.errors import IntegrityError, UsageError
from celebctl_runtime.identity import TOKENS, check_key, check_name
from celebctl_runtime.strict_json import parse_json

SCHEMA = 1
FILE_NAME = "manifest.json"

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_MAX_PATH = 200
_MAX_SIDE = 1 << 16  # pixels, steps, numbers in a row; far above every real model
_MAX_ROWS = 1 << 24
#: Largest magnitude of the weight of a LoRA.
MAX_LORA_WEIGHT = 4.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelInfo:
    """The model the bundle was exported from. ``family`` and ``table_hash`` must equal those of an identity.

    ``clip_skip``: the layer of the text encoders that is read, counted from the last, 1; 0 when unknown. ``vae``: the
    file name of an autoencoder that replaced the model's own, else "".
    """

    name: str
    family: str
    source: str
    table_hash: str
    clip_skip: int = 0
    vae: str = ""


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA that is part of the bundle's weights: the file's name and SHA-256, and the factor it was added with."""

    file: str
    sha256: str
    weight: float


@dataclass(frozen=True)
class SizeInfo:
    """Image sizes in pixels: ``native`` is (height, width), both sides must be multiples of ``multiple``, and a latent
    element covers ``vae_factor`` pixels. ``display_scale``: the default enlargement of saved images. ``max_side``: the
    largest height and width, for networks that have one."""

    native: tuple[int, int]
    multiple: int
    vae_factor: int
    latent_channels: int = 4
    display_scale: int = 1
    max_side: int = _MAX_SIDE


@dataclass(frozen=True)
class Defaults:
    """Values for what a request leaves open. ``layout``: "auto" or "none", see layout.py."""

    steps: int
    guidance: float
    sampler: str
    layout: str = "none"


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer file and its special ids; ``more_pads``: the padding id of every further text encoder."""

    file: str
    max_length: int
    bos: int
    eos: int
    pad: int
    more_pads: tuple[int, ...] = ()


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph: numpy dtype name, and sizes or names of dynamic axes."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphInfo:
    """An ONNX graph with its external data files, inputs and outputs."""

    file: str
    data: tuple[str, ...]
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class TokenTable:
    """A raw little-endian (rows, width) array, one per text encoder: the vocabulary, then ``spare_rows`` spare rows
    from ``first_spare_row`` to the end. People use pairs of spare rows only."""

    file: str
    rows: int
    width: int
    dtype: str
    first_spare_row: int
    spare_rows: int

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        return self.width * (4 if self.dtype == "float32" else 2)

    @property
    def numpy_dtype(self) -> np.dtype[np.floating]:
        """The dtype in the file, little-endian float16 or float32."""
        return np.dtype(np.float32 if self.dtype == "float32" else np.float16).newbyteorder("<")


@dataclass(frozen=True)
class IdentityEntry:
    """A person in a bundle: two token rows per text encoder, the identity's digest, and the SHA-256 of the rows' bytes
    ("" when unknown)."""

    rows: tuple[tuple[int, int], ...]
    digest: str
    rows_sha256: str = ""


@dataclass(frozen=True)
class FileEntry:
    """Size of a file in bytes and its SHA-256, or the SHA-256 of its first ``covers`` bytes when that is not 0."""

    sha256: str
    bytes: int
    covers: int = 0


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        graphs: text_encoder (and text_encoder_2), step, step_nocfg, vae_decoder and, for init images, vae_encoder.
        ort_graphs: What ONNX Runtime runs in place of the graph of the same name, and ``reader``, whose outputs are
            further inputs of its steps, the same for all steps.
        guidance_is_embedded: The network takes the guidance as an input and never runs twice per step.
        guidance_rescale: How far the step graph scales guided outputs back (Lin et al. 2023, section 3.4).
        zero_empty_prompt: An empty negative prompt is encoded as zeros.
        autoencoder: diffusers' class of the VAE: the model's own, or AutoencoderTiny in its place.
        latent_rgb: For red, green and blue, a weight of each latent channel and a constant, which give the mean colour,
            in [-1, 1], of a latent element's pixels; () when unknown. For previews.
        loras: What was added to the model's weights.
        average: File with the token embeddings of the average celebrity, (2, D) float32 per table, or "".
        next_slot, pending_slots: Bookkeeping of spare rows, see bundle.py.
        extra: Entries of the file that this version does not know.
    """

    model: ModelInfo
    size: SizeInfo
    dtype: str
    scheduler: Mapping[str, Any]
    defaults: Defaults
    tokenizer: TokenizerInfo
    graphs: Mapping[str, GraphInfo]
    token_tables: tuple[TokenTable, ...]
    schema_version: int = SCHEMA
    created_by: Mapping[str, str] = field(default_factory=dict[str, str])
    scaling_factor: float = 1.0
    identities: Mapping[str, IdentityEntry] = field(default_factory=dict[str, IdentityEntry])
    parity: tuple[Any, ...] = ()
    files: Mapping[str, FileEntry] = field(default_factory=dict[str, FileEntry])
    ort_graphs: Mapping[str, GraphInfo] = field(default_factory=dict[str, GraphInfo])
    guidance_is_embedded: bool = False
    guidance_rescale: float = 0.0
    zero_empty_prompt: bool = False
    autoencoder: str = "AutoencoderKL"
    latent_rgb: tuple[tuple[float, ...], ...] = ()
    loras: tuple[LoraInfo, ...] = ()
    average: str = ""
    next_slot: int = 0
    pending_slots: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def slot_count(self) -> int:
        """How many people the bundle has room for."""
        return min(table.spare_rows for table in self.token_tables) // TOKENS

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the hashes of all files: unchanged by people, different for every export."""
        lines = [f"{name} {entry.sha256}" for name, entry in sorted(self.files.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file's content: UTF-8 JSON."""
        data = asdict(self)
        data.update(data.pop("extra"))
        return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Build and check a manifest from parsed JSON. Raises IntegrityError naming the entry that is wrong."""
        version = data.get("schema_version")
        if isinstance(version, int) and version > SCHEMA:
            raise IntegrityError(
                f"the bundle has format {version}; this celebctl reads up to {SCHEMA}",
                "upgrade celebctl",
                reason="newer_format",
                version=version,
            )
        names = {item.name for item in fields(cls)} - {"extra"}
        known = {key: value for key, value in data.items() if key in names}
        extra = {key: value for key, value in data.items() if key not in names}
        manifest: Manifest = _parse(cls, {**known, "extra": extra}, "")
        _check(manifest)
        return manifest

    @classmethod
    def from_bytes(cls, raw: bytes) -> Manifest:
        """The inverse of :meth:`to_bytes`. Raises IntegrityError."""
        try:
            data: Any = parse_json(raw)
        except ValueError as error:
            raise _damaged(str(error)) from error
        if not isinstance(data, dict):
            raise _wrong("", "a JSON object")
        return cls.from_json(cast("dict[str, Any]", data))


def _parse(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``kind``: dataclasses, tuples, mappings, unions and plain JSON values."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) or origin is Mapping:
        if not isinstance(value, Mapping):
            raise _wrong(where, "an object")
        entries = cast("Mapping[str, Any]", value)
        if origin is Mapping:
            return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in entries.items()}
        return _parse_dataclass(kind, entries, where)
    if origin is tuple:
        return _parse_tuple(arguments, value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) not in (arguments or (kind,)):
        raise _wrong(where, str(getattr(kind, "__name__", kind)))
    return value


def _parse_dataclass(kind: Any, entries: Mapping[str, Any], where: str) -> Any:
    hints, values = get_type_hints(kind), dict[str, Any]()
    for item in fields(kind):
        path = f"{where}.{item.name}".lstrip(".")
        if item.name in entries:
            values[item.name] = _parse(hints[item.name], entries[item.name], path)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise _wrong(path, "present")
    return kind(**values)


def _parse_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(where, "a list")
    items = cast("list[Any]", value)
    kinds = (arguments[0],) * len(items) if arguments[-1] is Ellipsis else arguments
    if len(kinds) != len(items):
        raise _wrong(where, f"{len(kinds)} values")
    return tuple(_parse(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, items, strict=True)))


def _damaged(problem: str) -> IntegrityError:
    return IntegrityError(f"{FILE_NAME} is damaged: {problem}", "export the bundle again", reason="bundle_damaged")


def _wrong(where: str, expected: str) -> IntegrityError:
    return _damaged(f"{where or 'its content'} should be {expected}")


def _check(manifest: Manifest) -> None:
    """Check what types cannot express: paths inside the bundle, numbers in range, rows that belong to one person."""
    _check_names(manifest)
    _check_paths(manifest)
    _check_numbers(manifest)
    _check_loras(manifest)
    if len(manifest.token_tables) != 1 + len(manifest.tokenizer.more_pads):
        raise _wrong("token_tables", "one table per text encoder")
    for number, table in enumerate(manifest.token_tables):
        _check_table(manifest, number, table)
    _check_slots(manifest)


def _check_names(manifest: Manifest) -> None:
    check_key(f"model.family in {FILE_NAME}", manifest.model.family)
    check_key(f"model.table_hash in {FILE_NAME}", manifest.model.table_hash)
    for name in manifest.identities:
        try:
            valid = check_name(name) == name
        except UsageError:
            valid = False
        if not valid:
            raise _wrong(f"the name {name[:80]!r}", "a canonical name")


def _check_paths(manifest: Manifest) -> None:
    """File names are plain words joined by slashes: not absolute, not hidden, without '..'."""
    tables = [table.file for table in manifest.token_tables]
    paths = [*manifest.files, manifest.tokenizer.file, *tables, *filter(None, [manifest.average])]
    for graph in (*manifest.graphs.values(), *manifest.ort_graphs.values()):
        paths += [graph.file, *graph.data]
    for path in paths:
        if not _PATH.fullmatch(path) or len(path) > _MAX_PATH:
            raise _wrong(f"the path {path[:80]!r}", "inside the bundle")
    if len(set(tables)) != len(tables):
        raise _wrong("token_tables", "one file each")


def _check_numbers(manifest: Manifest) -> None:
    size, tokenizer = manifest.size, manifest.tokenizer
    for where, value in (
        *(("size.native", side) for side in size.native),
        ("size.multiple", size.multiple),
        ("size.vae_factor", size.vae_factor),
        ("size.latent_channels", size.latent_channels),
        ("size.display_scale", size.display_scale),
        ("size.max_side", size.max_side),
        ("defaults.steps", manifest.defaults.steps),
        ("tokenizer.max_length", tokenizer.max_length),
    ):
        if not 1 <= value <= _MAX_SIDE:
            raise _wrong(where, f"1 to {_MAX_SIDE}")
    floats = manifest.defaults.guidance, manifest.scaling_factor, manifest.guidance_rescale
    if not all(map(math.isfinite, floats)):
        raise _wrong("defaults.guidance, scaling_factor and guidance_rescale", "finite")
    if manifest.latent_rgb and [len(row) for row in manifest.latent_rgb] != [size.latent_channels + 1] * 3:
        raise _wrong("latent_rgb", f"three rows of {size.latent_channels + 1} numbers")
    if not all(math.isfinite(weight) for row in manifest.latent_rgb for weight in row):
        raise _wrong("latent_rgb", "finite")
    pads = dict(enumerate((tokenizer.pad, *tokenizer.more_pads)))
    for number, table in enumerate(manifest.token_tables):
        if any(not 0 <= token < table.rows for token in (tokenizer.bos, tokenizer.eos, pads.get(number, 0))):
            raise _wrong("tokenizer", f"ids of rows in {table.file}")
    for name, entry in manifest.files.items():
        if not 0 <= entry.covers <= entry.bytes:
            raise _wrong(f"files.{name}", "0 <= covers <= bytes")


def _check_loras(manifest: Manifest) -> None:
    for number, lora in enumerate(manifest.loras):
        if not (lora.file.isprintable() and 0 < len(lora.file) <= _MAX_PATH and _SHA256.fullmatch(lora.sha256)):
            raise _wrong(f"loras[{number}]", "a file name and a SHA-256")
        if not -MAX_LORA_WEIGHT <= lora.weight <= MAX_LORA_WEIGHT:
            raise _wrong(f"loras[{number}].weight", f"{-MAX_LORA_WEIGHT:g} to {MAX_LORA_WEIGHT:g}")


def _check_table(manifest: Manifest, number: int, table: TokenTable) -> None:
    where = f"token_tables[{number}]"
    if table.dtype not in ("float32", "float16") or table.first_spare_row + table.spare_rows != table.rows:
        raise _wrong(where, "float32 or float16 with the spare rows at its end")
    if not 1 <= table.width <= _MAX_SIDE or not 0 <= table.first_spare_row <= table.rows <= _MAX_ROWS:
        raise _wrong(where, f"at most {_MAX_ROWS} rows of 1 to {_MAX_SIDE} numbers")
    entry = manifest.files.get(table.file)
    if manifest.files and (entry is None or entry.bytes != table.rows * table.row_bytes):
        raise _wrong(where, f"of the size in files.{table.file}")


def _check_slots(manifest: Manifest) -> None:
    """Each person has a slot of their own, the same in every table; pending slots, which will be zeroed, have none."""
    tables, count = manifest.token_tables, manifest.slot_count
    used: list[int] = []
    for name, identity in manifest.identities.items():
        slot = (identity.rows[0][0] - tables[0].first_spare_row) // TOKENS if identity.rows else -1
        firsts = [table.first_spare_row + TOKENS * slot for table in tables]
        if not 0 <= slot < count or identity.rows != tuple((first, first + 1) for first in firsts):
            raise _wrong(f"identities.{name}.rows", "two neighbouring spare rows, the same in every table")
        used.append(slot)
    if len(set(used)) != len(used):
        raise _wrong("identities", "in different rows")
    if not 0 <= manifest.next_slot <= count:
        raise _wrong("next_slot", f"0 to {count}")
    pending = manifest.pending_slots
    if len({*pending, *used}) != len(pending) + len(used) or any(not 0 <= slot < count for slot in pending):
        raise _wrong("pending_slots", f"free slots from 0 to {count - 1}, each once")
