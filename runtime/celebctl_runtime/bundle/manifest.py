"""What a bundle says about itself: ``manifest.json`` as frozen dataclasses, checked entry by entry when read.

The manifest is the single truth about a bundle. Which rows of the token table belong to whom is decided here and
nowhere else, so publishing a new manifest is what adds or removes a person.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, NoReturn, Union, cast, get_args, get_origin, get_type_hints

from celebctl_runtime.errors import IntegrityError, UsageError
from celebctl_runtime.identity import check_key, check_name

SCHEMA = 1
FILE_NAME = "manifest.json"

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_MAX_PATH = 200
_MAX_SIDE = 1 << 16  # pixels, steps, numbers in a row; far above every real model
_MAX_ROWS = 1 << 24


@dataclass(frozen=True)
class ModelInfo:
    """Which model the bundle was made from. ``table_hash`` is what an identity must agree with."""

    name: str
    family: str
    source: str
    table_hash: str


@dataclass(frozen=True)
class SizeInfo:
    """Pixels: ``native`` (height, width), both sides of a picture a multiple of ``multiple``, ``vae_factor`` pixels per
    latent element; ``display_scale``: how much a picture is enlarged when nothing is said."""

    native: tuple[int, int]
    multiple: int
    vae_factor: int
    latent_channels: int = 4
    display_scale: int = 1


@dataclass(frozen=True)
class Defaults:
    """What a request that leaves a choice open gets. ``layout``: "auto" or "none", see layout.py."""

    steps: int
    guidance: float
    sampler: str
    layout: str = "none"


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer file and its special ids; ``more_pads``: the padding of every further text encoder."""

    file: str
    max_length: int
    bos: int
    eos: int
    pad: int
    more_pads: tuple[int, ...] = ()


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph: dtype by numpy's name, sizes or names of dynamic axes."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphInfo:
    """One ONNX graph, its external data files, and what goes in and out."""

    file: str
    data: tuple[str, ...]
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class TokenTable:
    """A raw little-endian (rows, width) array, one per text encoder: the vocabulary, then ``spare_rows`` spare rows
    from ``first_spare_row`` to the end. People live in the spare rows only, two by two from the first."""

    file: str
    rows: int
    width: int
    dtype: str
    first_spare_row: int
    spare_rows: int

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return self.width * (4 if self.dtype == "float32" else 2)


@dataclass(frozen=True)
class IdentityEntry:
    """A person in a bundle: two token rows per text encoder, the identity's digest, and the SHA-256 of the rows' bytes
    ("" when whoever wrote the rows did not say)."""

    rows: tuple[tuple[int, int], ...]
    digest: str
    rows_sha256: str = ""


@dataclass(frozen=True)
class FileEntry:
    """SHA-256 of a file, or of its first ``covers`` bytes when that is not 0, and its whole size in bytes."""

    sha256: str
    bytes: int
    covers: int = 0


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime knows about a bundle.

    ``graphs``: text_encoder (and text_encoder_2), step, step_nocfg, vae_decoder, and maybe vae_encoder. ``ort_graphs``:
    what ONNX Runtime runs in place of the graph of the same name; and ``reader``, whose outputs are further inputs of
    its steps, the same for all of them. ``guidance_is_embedded``: the network is told the guidance and never run twice.
    ``zero_empty_prompt``: an empty negative prompt is zeros, not a text.
    ``average``: a file with the token rows of the average celebrity, (2, D) float32 of each table in turn, or "".
    ``next_slot`` and ``pending_slots`` belong to the bookkeeping of spare rows (see bundle.py). ``extra`` keeps entries
    of the file that this version does not know.
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
    zero_empty_prompt: bool = False
    average: str = ""
    next_slot: int = 0
    pending_slots: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the hashes of all files: the same whoever lives in the bundle, another for every export."""
        lines = [f"{name} {facts.sha256}" for name, facts in sorted(self.files.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file's content: UTF-8 JSON."""
        data = asdict(self)
        data.update(data.pop("extra"))
        return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Check and structure a parsed manifest. Raises IntegrityError naming the entry that is wrong."""
        version = data.get("schema_version")
        if isinstance(version, int) and version > SCHEMA:
            raise IntegrityError(
                f"the bundle has format {version}; this celebctl reads up to {SCHEMA}", "pip install --upgrade celebctl"
            )
        names = {item.name for item in fields(cls)} - {"extra"}
        known = {key: value for key, value in data.items() if key in names}
        known["extra"] = {key: value for key, value in data.items() if key not in names}
        manifest = cast("Manifest", _structure(cls, known, ""))
        _check(manifest)
        return manifest

    @classmethod
    def from_bytes(cls, raw: bytes) -> Manifest:
        """The inverse of :meth:`to_bytes`. Raises IntegrityError."""
        try:
            data: object = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(
                f"{FILE_NAME} is damaged: {error}", "celebctl export makes a fresh bundle"
            ) from error
        if not isinstance(data, dict):
            _wrong("", "a JSON object")
        return cls.from_json(cast("dict[str, Any]", data))


def _structure(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``kind``: dataclasses, tuples, mappings, unions and plain JSON values."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _structure_dataclass(cast("type", kind), value, where)
    if origin in (Union, UnionType):
        choices = tuple(arguments)
        return value if isinstance(value, choices) and not isinstance(value, bool) else _wrong(where, kind)
    if origin is tuple:
        return _structure_tuple(arguments, value, where)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            _wrong(where, "an object")
        entries = cast("Mapping[Any, Any]", value)
        return {str(key): _structure(arguments[1], item, f"{where}.{key}") for key, item in entries.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if type(value) is kind else _wrong(where, kind.__name__)


def _structure_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        _wrong(where, "an object")
    entries, hints = cast("Mapping[str, Any]", value), get_type_hints(kind)
    values: dict[str, Any] = {}
    for item in fields(kind):
        path = f"{where}.{item.name}".lstrip(".")
        if item.name in entries:
            values[item.name] = _structure(hints[item.name], entries[item.name], path)
        elif item.default is MISSING and item.default_factory is MISSING:
            _wrong(path, "an entry")
    return kind(**values)


def _structure_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        _wrong(where, "a list")
    items = cast("list[Any]", value)
    kinds = (arguments[0],) * len(items) if arguments[-1] is Ellipsis else arguments
    if len(kinds) != len(items):
        _wrong(where, f"{len(kinds)} values")
    return tuple(
        _structure(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, items, strict=True))
    )


def _wrong(where: str, expected: object) -> NoReturn:
    raise IntegrityError(
        f"{FILE_NAME} is damaged: {where or 'its content'} should be {expected}", "celebctl export makes a fresh bundle"
    )


def _check(manifest: Manifest) -> None:
    """What types cannot say: names stay inside the bundle, numbers in their ranges, people in rows of their own."""
    _check_model(manifest)
    _check_paths(manifest)
    _check_numbers(manifest)
    if len(manifest.token_tables) != 1 + len(manifest.tokenizer.more_pads):
        _wrong("token_tables", "one table per text encoder")
    for number, table in enumerate(manifest.token_tables):
        _check_table(manifest, number, table)
    _check_slots(manifest)


def _check_model(manifest: Manifest) -> None:
    for what in ("family", "table_hash"):
        check_key(f"model.{what} in {FILE_NAME}", getattr(manifest.model, what))
    for name in manifest.identities:
        try:
            canonical = check_name(name)
        except UsageError:
            canonical = None
        if name != canonical:
            _wrong(f"the name {name[:80]!r}", "one that celebctl gives")


def _check_paths(manifest: Manifest) -> None:
    """Every file is named by plain words joined by slashes: nothing absolute, hidden, or with a way up."""
    tables = [table.file for table in manifest.token_tables]
    paths = [*manifest.files, manifest.tokenizer.file, *tables, *filter(None, [manifest.average])]
    for graph in (*manifest.graphs.values(), *manifest.ort_graphs.values()):
        paths += [graph.file, *graph.data]
    for path in paths:
        if not _PATH.fullmatch(path) or len(path) > _MAX_PATH:
            _wrong(f"the path {path[:80]!r}", "inside the bundle")
    if len(set(tables)) != len(tables):
        _wrong("token_tables", "one file each")


def _check_numbers(manifest: Manifest) -> None:
    size, defaults, tokenizer = manifest.size, manifest.defaults, manifest.tokenizer
    sizes = {
        "size.native": min(size.native),
        "size.multiple": size.multiple,
        "size.vae_factor": size.vae_factor,
        "size.latent_channels": size.latent_channels,
        "size.display_scale": size.display_scale,
        "defaults.steps": defaults.steps,
        "tokenizer.max_length": tokenizer.max_length,
    }
    for where, value in {**sizes, "size.native ": max(size.native)}.items():
        if not 1 <= value <= _MAX_SIDE:
            _wrong(where.strip(), f"1 to {_MAX_SIDE}")
    for where, number in (("defaults.guidance", defaults.guidance), ("scaling_factor", manifest.scaling_factor)):
        if not math.isfinite(number):
            _wrong(where, "a finite number")
    pads = dict(enumerate((tokenizer.pad, *tokenizer.more_pads)))
    for number, table in enumerate(manifest.token_tables):
        if any(not 0 <= token < table.rows for token in (tokenizer.bos, tokenizer.eos, pads.get(number, 0))):
            _wrong("tokenizer", f"token ids that {table.file} has rows for")
    for name, facts in manifest.files.items():
        if not 0 <= facts.covers <= facts.bytes:
            _wrong(f"files.{name}", "of a size that is not negative and not smaller than what is covered")


def _check_table(manifest: Manifest, number: int, table: TokenTable) -> None:
    where = f"token_tables[{number}]"
    if table.dtype not in ("float32", "float16") or table.first_spare_row + table.spare_rows != table.rows:
        _wrong(where, "float32 or float16 with the spare rows at its end")
    if not 1 <= table.width <= _MAX_SIDE or not 0 <= table.first_spare_row <= table.rows <= _MAX_ROWS:
        _wrong(where, f"at most {_MAX_ROWS} rows of 1 to {_MAX_SIDE} numbers")
    facts = manifest.files.get(table.file)
    if manifest.files and (facts is None or facts.bytes != table.rows * table.row_bytes):
        _wrong(where, f"as large as files.{table.file} says")
    pairs = [resident.rows[number : number + 1] for resident in manifest.identities.values()]
    if not all(len(pair) == 1 and _is_slot(*pair[0], table) for pair in pairs) or len(set(pairs)) != len(pairs):
        _wrong("identities", f"two neighbouring spare rows each, shared with nobody, in {table.file}")


def _check_slots(manifest: Manifest) -> None:
    """Slots are numbered from 0 in all tables alike, and a pending one is nobody's: it will be zeroed."""
    tables = manifest.token_tables
    count = min(table.spare_rows for table in tables) // 2
    taken: set[int] = set()
    for resident in manifest.identities.values():
        slots = {(rows[0] - t.first_spare_row) // 2 for rows, t in zip(resident.rows, tables, strict=True)}
        if len(slots) != 1:
            _wrong("identities", "in the same spare rows of every table")
        taken |= slots
    if not 0 <= manifest.next_slot <= count:
        _wrong("next_slot", f"0 to {count}")
    pending = manifest.pending_slots
    if len(set(pending)) != len(pending) or not taken.isdisjoint(pending):
        _wrong("pending_slots", "slots of nobody, each once")
    if any(not 0 <= slot < count for slot in pending):
        _wrong("pending_slots", f"0 to {count - 1}")


def _is_slot(first: int, second: int, table: TokenTable) -> bool:
    start = first - table.first_spare_row
    return start >= 0 and start % 2 == 0 and second == first + 1 and second < table.rows
