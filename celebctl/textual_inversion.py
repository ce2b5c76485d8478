"""Textual inversion files of other programs, and the files of the published release of Celeb Basis.

    tensors in the file        programs
    emb_params (n, D)          web UI, ComfyUI, InvokeAI, kohya's trainers
    clip_l, clip_g             the same, for Stable Diffusion XL and 3
    <alice> (n, D)             diffusers: the tensor's name is the token
    string_to_param            the web UI's own training and the textual inversion paper's code (.pt)
    a tensor without a name    scripts/extract_pt.py of Celeb Basis (.pt): id_embedding, id_coefficient, celeb_basis
    id_coefficients, ...       training checkpoints of Celeb Basis (.pt)

`save_textual_inversion` and `load_textual_inversion` are the public functions. Files are read as safetensors and, with
torch, as .pt and .bin; they are written as safetensors only. No file runs code: the imports of a pickle are checked
before torch opens it, and torch opens it with weights_only.
"""

from __future__ import annotations

import io
import json
import logging
import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from celebctl import __version__
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.files import atomic_write, read_regular, refuse_existing, sha256_file
from celebctl_runtime.identity import TOKENS, Identity
from celebctl_runtime.strict_json import parse_json

if TYPE_CHECKING:
    from celebctl.basis.basis import CelebBasis
    from celebctl_models.checkpoints.text_encoders import TextEncoderParts

Floats = NDArray[np.float32]
_log = logging.getLogger(__name__)
Kind = Literal["identity", "embedding", "coefficients", "basis", "unknown"]

#: Programs whose textual inversion files can be written; all but diffusers read the same file.
FORMATS = ("diffusers", "webui", "comfyui", "invoke")
#: Widths of the text encoders' token tables, and the models known by them.
FAMILIES = {(768,): "Stable Diffusion 1.x", (1024,): "Stable Diffusion 2.x", (768, 1280): "Stable Diffusion XL or 3"}

_MAX_BYTES = 64 << 20  # an identity is some KiB, a celeb basis 3 MiB
_MAX_HEADER_BYTES = 1 << 20
_MAX_ROWS = 75  # of a prompt's 77 tokens
_TORCH_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt"}
_DOWNLOAD_AGAIN = "download or copy the file again"
# The imports of a pickle of tensors. ParameterDict is how the textual inversion paper's code keeps its one tensor.
_SAFE_IMPORTS = {
    "collections OrderedDict",
    "__builtin__ set",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch.nn.modules.container ParameterDict",
    *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int")),
}


@dataclass(frozen=True, eq=False)
class EmbeddingFile:
    """The content of a file.

    Attributes:
        kind: "embedding": token rows, arrays (n, D). "coefficients": one array (2, K), which needs the basis it was
            learned on. "basis": arrays (2, 1 + K, D), the mean first. "identity": celebctl's own. "unknown": others.
        layout: The file format in words.
        people: For each person one float32 array per text encoder, clip_l before clip_g.
        dtype: The dtype in the file.
        name: The name in the file, "" for none.
        origin: What celebctl wrote beside the rows: name, family, table_hash, basis_hash, digest.
        identity: For kind "identity".
    """

    kind: Kind
    layout: str
    people: tuple[tuple[Floats, ...], ...] = ()
    dtype: str = ""
    name: str = ""
    origin: Mapping[str, str] = field(default_factory=dict[str, str])
    identity: Identity | None = None


@dataclass(frozen=True, eq=False)
class _Tensor:
    """One tensor as float32; None when its dtype is not a floating-point one."""

    dtype: str
    array: Floats | None


# Writing.


def save_textual_inversion(
    identity: Identity, path: Path | str, format: str = "diffusers", *, overwrite: bool = False
) -> Path:
    """Write an identity as a textual inversion in safetensors; returns the path.

    Args:
        identity: The learned person.
        path: The file, ending in .safetensors.
        format: The program that reads it: "diffusers", "webui", "comfyui" or "invoke".
        overwrite: Replace an existing file.

    Raises:
        UsageError: Unknown format, another suffix, or an existing file.
        SetupError: The file cannot be written.

    Example:
        >>> path = save_textual_inversion(identity, folder / "alice.safetensors", format="webui")
        >>> read_contents(path).layout
        'emb_params'
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise UsageError(f"{path} must end in .safetensors", f"use {path.with_suffix('.safetensors')}")
    content = embedding_file(identity, format)
    refuse_existing(path, overwrite)
    atomic_write(path, content)
    return path


def embedding_tensors(identity: Identity, format: str) -> dict[str, Floats]:
    """The tensors of a textual inversion file, by name: one (2, D) alone, or clip_l and clip_g for two text encoders.

    The file must hold nothing else: diffusers takes a file of one entry only and reads the token from its name
    (loaders/textual_inversion.py), the web UI asserts that it is one (modules/textual_inversion/textual_inversion.py),
    ComfyUI takes whichever comes first (comfy/sd1_clip.py). InvokeAI finds the width by the names emb_params and
    clip_g; under any other it takes the number of vectors for it (model_manager/configs/textual_inversion.py).
    """
    alone = f"<{identity.name}>" if format == "diffusers" else "emb_params"
    names = ("clip_l", "clip_g") if len(identity.embeddings) > 1 else (alone,)
    return dict(zip(names, identity.embeddings, strict=True))


def embedding_file(identity: Identity, format: str) -> bytes:
    """The safetensors file of :func:`embedding_tensors`. Equal identities give equal bytes.

    Raises UsageError for a format that is not in FORMATS.
    """
    from safetensors.numpy import save

    if format not in FORMATS:
        raise UsageError(
            f"unknown format {format!r}", f"use one of {', '.join(FORMATS)}", reason="unknown_format", format=format
        )
    facts = {
        "name": identity.name,
        "family": identity.family,
        "table_hash": identity.table_hash,
        "basis_hash": identity.basis_hash,
        "digest": identity.digest,
    }
    # One entry: the library writes several in random order.
    return save(embedding_tensors(identity, format), metadata={"celebctl": json.dumps(facts, sort_keys=True)})


# Reading.


def read_contents(path: Path) -> EmbeddingFile:
    """Read the file at ``path`` without running code from it. A valid file of another kind is "unknown".

    Raises NotFoundError when it cannot be opened, IntegrityError when it is damaged or a pickle of more than tensors.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            return EmbeddingFile("unknown", f"larger than {_MAX_BYTES >> 20} MiB, too large for an embedding")
        raw = read_regular(path)
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", "check the path", reason="missing_file") from error
    suffix = path.suffix.lower()
    if suffix == ".safetensors" or (raw[8:9] == b"{" and int.from_bytes(raw[:8], "little") <= len(raw) - 8):
        return _from_safetensors(raw, path)
    if raw[:2] == b"PK" or raw[:1] == b"\x80":  # a zip archive, or a bare pickle
        return _from_object(_load_pickle(raw, path))
    if suffix in _TORCH_SUFFIXES:
        _damaged(path, "it was not written by torch")
    return EmbeddingFile("unknown", "not a file of tensors")


def _from_safetensors(raw: bytes, path: Path) -> EmbeddingFile:
    tensors, metadata = _safe_tensors(raw, path)
    if "celebctl.schema" in metadata:
        identity = Identity.load(path)
        return EmbeddingFile(
            "identity", "celebctl identity", (identity.embeddings,), "float32", identity.name, identity=identity
        )
    return replace(_from_tensors(tensors), origin=_origin(metadata))


def _safe_tensors(raw: bytes, path: Path) -> tuple[dict[str, _Tensor], dict[str, str]]:
    """Tensors and metadata. The library checks offsets, sizes and repeated names."""
    import safetensors  # without types of its own

    deserialize: Any = cast(Any, safetensors).deserialize
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > min(_MAX_HEADER_BYTES, len(raw) - 8):
        _damaged(path, f"its header of {length} bytes does not fit")
    try:
        found = cast("list[tuple[str, dict[str, Any]]]", deserialize(raw))
        header = cast("dict[str, Any]", parse_json(raw[8 : 8 + length]))
    except (safetensors.SafetensorError, ValueError) as error:
        _damaged(path, str(error), error)
    return {name: _decoded(facts) for name, facts in found}, dict(header.get("__metadata__") or {})


def _decoded(facts: Mapping[str, Any]) -> _Tensor:
    """One tensor of a safetensors file. numpy has no bfloat16: it is float32 without the lower half."""
    kind, data, shape = str(facts["dtype"]), facts["data"], facts["shape"]
    if kind == "BF16":
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return _Tensor("bfloat16", wide.view(np.float32).reshape(shape))
    dtype = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}.get(kind)
    if dtype is None:
        return _Tensor(kind.lower(), None)
    array = np.frombuffer(data, dtype).reshape(shape)
    return _Tensor(array.dtype.name, _float32(array))


def _origin(metadata: Mapping[str, str]) -> dict[str, str]:
    """What :func:`embedding_file` wrote beside the rows; {} for other files."""
    try:
        facts = cast("dict[str, Any]", parse_json(metadata.get("celebctl", "{}")))
        return {key: str(value) for key, value in facts.items()}
    except (ValueError, AttributeError):
        return {}


def _load_pickle(raw: bytes, path: Path) -> Any:
    """The object in a torch file, after checking that it consists of tensors, numbers and text."""
    try:
        imports = _pickled_imports(raw)
    except Exception as error:  # zipfile and pickletools raise anything from ValueError to zlib.error
        _damaged(path, str(error), error)
    if imports - _SAFE_IMPORTS:
        raise IntegrityError(
            f"{path} holds more than tensors; opening it would run {', '.join(sorted(imports - _SAFE_IMPORTS))[:200]}",
            "it was not opened; do not open it with other programs unless you trust where it comes from",
        )
    import torch

    try:
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):
            return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # from EOFError to RuntimeError, with texts that suggest weights_only=False
        _damaged(path, "torch cannot read its tensors", error)


def _pickled_imports(raw: bytes) -> set[str]:
    """The imports ("module name") of the pickles in a torch file, read without unpickling."""
    if raw[:2] != b"PK":
        # The format before torch 1.6: five pickles in a row (serialization.py, _legacy_save), then the data.
        stream = io.BytesIO(raw)
        return {name for _ in range(5) for name in _imports_of(stream)}
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
            raise ValueError(f"unpacked it is larger than {_MAX_BYTES >> 20} MiB")
        pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
        return {found for name in pickles for found in _imports_of(io.BytesIO(archive.read(name)))}


def _imports_of(stream: io.BytesIO) -> set[str]:
    """The imports of one pickle. torch writes GLOBAL only; other opcodes that import are reported by their name."""
    found: set[str] = set()
    texts: list[str] = []
    if stream.tell() == len(stream.getbuffer()):
        return found
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            found.add(str(argument))
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            found.add(f"{' '.join(texts[-2:])} ({opcode.name})")
        elif isinstance(argument, str):
            texts.append(argument)
    return found


def _from_object(value: Any) -> EmbeddingFile:
    """The content of a .pt file: a tensor, or a dict of one of the known kinds."""
    if not isinstance(value, dict):
        tensor = _plain(value)
        return _from_one("", tensor, "one tensor without a name") if tensor else _unknown(f"a {type(value).__name__}")
    entries = cast("dict[str, Any]", value)
    for key in ("id_embeddings", "id_coefficients"):
        if isinstance(entries.get(key), list):
            return _from_checkpoint(key, entries[key])
    if "meta_id_net" in entries:
        return _unknown("a Celeb Basis checkpoint with the mapper only, without a person")
    if "string_to_param" in entries:
        return _from_terms(entries["string_to_param"], entries.get("name"))
    tensors = {str(key): _plain(entry) for key, entry in entries.items()}
    if None in tensors.values():
        return _unknown(f"a dict of {len(tensors)} entries, not all of them tensors")
    return _from_tensors(cast("dict[str, _Tensor]", tensors))


def _from_terms(terms: Any, name: object) -> EmbeddingFile:
    terms = getattr(terms, "_parameters", terms)  # of a ParameterDict
    if not isinstance(terms, dict):
        return _unknown("string_to_param that is not a dict")
    values = list(cast("dict[str, Any]", terms).values())
    if len(values) != 1:
        return _unknown(f"string_to_param of {len(values)} terms")
    found = _from_one("", _plain(values[0]), "string_to_param")
    return replace(found, name=name if isinstance(name, str) else "")


def _plain(value: Any) -> _Tensor | None:
    """A torch tensor as an array; None for anything else."""
    import torch

    if not isinstance(value, torch.Tensor):
        return None
    kind = str(value.dtype).removeprefix("torch.")
    # With strides of zero a small file can describe a huge tensor.
    usable = value.is_floating_point() and value.numel() <= _MAX_BYTES // 4
    return _Tensor(kind, _float32(value.detach().double().numpy()) if usable else None)


def _float32(array: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # becomes infinity, which is reported as such
        return array.astype(np.float32)


def _from_tensors(tensors: Mapping[str, _Tensor]) -> EmbeddingFile:
    if set(tensors) == {"clip_l", "clip_g"}:
        both = [_from_one("", tensors[key], "clip_l and clip_g") for key in ("clip_l", "clip_g")]
        if all(part.kind == "embedding" for part in both):
            return replace(both[0], people=(both[0].people[0] + both[1].people[0],))
    if set(tensors) == {"emb_params"}:
        return _from_one("", tensors["emb_params"], "emb_params")
    if len(tensors) == 1:
        (key,) = tensors
        return _from_one(key, tensors[key], "one tensor, named by its token")
    return _unknown(f"{len(tensors)} tensors: {', '.join(sorted(tensors)[:3])}, ..." if tensors else "no tensors")


def _from_one(key: str, tensor: _Tensor | None, layout: str) -> EmbeddingFile:
    """A single tensor, recognised by its shape: rows (n, D) or (D,), coefficients (2, 1, K), basis (2, 1 + K, D)."""
    array = None if tensor is None else tensor.array
    if tensor is None or array is None:
        return _unknown(f"{layout}, but of {tensor.dtype} numbers" if tensor else f"{layout}, but not a tensor")
    if array.size and (array.ndim == 1 or (array.ndim == 2 and len(array) <= _MAX_ROWS)):
        return EmbeddingFile("embedding", layout, ((np.atleast_2d(array),),), tensor.dtype, key)
    if array.size and array.ndim == 3 and len(array) == TOKENS:
        if array.shape[1] == 1:
            return EmbeddingFile("coefficients", "Celeb Basis coefficients", ((array[:, 0],),), tensor.dtype)
        return EmbeddingFile("basis", "Celeb Basis celeb_basis", ((array,),), tensor.dtype)
    return _unknown(f"{layout}, of shape {array.shape}")


def _from_checkpoint(key: str, slots: Sequence[Any]) -> EmbeddingFile:
    """The people of a training checkpoint (ldm/modules/embedding_manager.py). It always has ten slots, equal at
    first; unused slots still are."""
    found = [_from_one("", _plain(slot), key) for slot in slots]
    arrays = [part.people[0][0] for part in found if part.people]
    if len(arrays) != len(slots):
        return _unknown(f"{key} that are not all tensors of floating-point numbers")
    learned = [
        array
        for number, array in enumerate(arrays)
        if not any(np.array_equal(array, other) for at, other in enumerate(arrays) if at != number)
    ]
    if not learned:
        return _unknown(f"{key} without a learned person")
    people = tuple((array,) for array in learned)
    return EmbeddingFile(found[0].kind, f"Celeb Basis checkpoint, {key}", people, found[0].dtype)


def _unknown(what: str) -> EmbeddingFile:
    return EmbeddingFile("unknown", what)


def _damaged(path: Path, reason: str, cause: BaseException | None = None) -> NoReturn:
    raise IntegrityError(f"{path} is damaged: {reason[:200]}", _DOWNLOAD_AGAIN) from cause


# From a file to an identity.


def load_textual_inversion(
    path: Path | str,
    model: str | Path = "mini",
    *,
    name: str | None = None,
    which: int | None = None,
    basis: Path | str | None = None,
    cache: Path | None = None,
) -> Identity:
    """Read a textual inversion of two vectors, or a person of the Celeb Basis release, as an identity of a model.

    The token rows are kept as they are; the coefficients are those of the nearest point in the model's celeb basis.

    Args:
        path: The file. An identity file of celebctl is returned as it is, whatever the model.
        model: Known name, diffusers folder, checkpoint file or Hub id.
        name: Name of the identity; None: the name in the file, or else the file's.
        which: The person to take, from 1, where the file holds several.
        basis: The release's celeb_basis.pt, for a file of coefficients.
        cache: Folder for the celeb basis, see `Library.cache`; None: it is computed each time.

    Returns:
        The identity; its provenance has the share of the embedding outside the celeb basis ("outside_basis", 0 to 1).

    Raises:
        NotFoundError: A file is missing.
        InvalidInputError: The file holds no person, or not two vectors.
        IntegrityError: The file is damaged or unsafe, or its vectors have another width than the model's.
        UsageError: `which`, `basis` or `name` is needed or invalid.
    """
    path = Path(path)
    contents = read_contents(path)
    name = name or contents.origin.get("name") or contents.name.strip("<>") or path.stem
    if contents.identity is not None:
        return contents.identity.renamed(name)
    rows = token_rows(contents, path, which=which, basis=None if basis is None else read_contents(Path(basis)))
    from celebctl.basis.basis import build_basis
    from celebctl_models.checkpoints.text_encoders import load_texts

    parts = load_texts(model)
    made_for = contents.origin.get("table_hash", parts.table_hash)
    if made_for != parts.table_hash:
        _log.warning("%s was made for another text encoder than that of %s: the person may differ", path, parts.name)
    provenance = {
        "celebctl": __version__,
        "model": parts.name,
        "origin": "imported",
        "format": contents.layout,
        "file_sha256": sha256_file(path),
    }
    identity = person_of(rows, name, parts, build_basis(parts, cache), provenance)
    outside = float(identity.provenance["outside_basis"])
    _log.info("%.0f %% of %s is outside the celeb basis of %s; it is kept", 100 * outside, name, parts.name)
    return identity


def token_rows(
    contents: EmbeddingFile, path: Path, *, which: int | None = None, basis: EmbeddingFile | None = None
) -> tuple[Floats, ...]:
    """The token rows of one person in a file, an array (2, D) per text encoder.

    Args:
        contents: The content of ``path``; the path is for messages.
        which: The person to take, from 1, where the file holds several.
        basis: The release's celeb basis, for a file of coefficients: row_j = mean_j + coefficients_j @ components_j.

    Raises:
        InvalidInputError: The file holds no person, or not two vectors.
        UsageError: ``which`` or ``basis`` is needed, or does not fit.
        IntegrityError: NaN, infinity or a zero row; coefficients and basis that do not belong together.
    """
    if contents.kind == "basis":
        raise InvalidInputError(f"{path} is a celeb basis, not a person", "pass it as the basis of a person's file")
    if not contents.people:
        raise InvalidInputError(f"{path} holds no person: {contents.layout}", "use a textual inversion or an identity")
    person = _chosen(contents.people, path, which)
    if basis is not None:
        person = (_through(basis, person, path),)
    elif contents.kind == "coefficients":
        raise UsageError(
            f"{path} holds coefficients, which need the basis they were learned on",
            "pass basis: extract_pt.py of the release writes celeb_basis.pt beside them",
            reason="basis_needed",
        )
    for rows in person:
        _check_rows(rows, path)
    return person


def _chosen(people: Sequence[tuple[Floats, ...]], path: Path, which: int | None) -> tuple[Floats, ...]:
    if which is None and len(people) > 1:
        raise UsageError(
            f"{path} holds {len(people)} people",
            f"pass which=1 to which={len(people)}",
            reason="select_person",
            count=len(people),
        )
    if which is not None and not 1 <= which <= len(people):
        raise UsageError(
            f"there is no person {which} in {path}",
            f"pass which=1 to which={len(people)}",
            reason="select_person",
            count=len(people),
        )
    return people[(which or 1) - 1]


def _through(basis: EmbeddingFile, person: tuple[Floats, ...], path: Path) -> Floats:
    """Coefficients (2, K) to rows (2, D) by the release's celeb_basis (2, 1 + K, D) (scripts/extract_pt.py)."""
    if basis.kind != "basis":
        raise UsageError(
            f"the basis file is not a celeb basis: {basis.layout}",
            "pass the release's celeb_basis.pt",
            reason="not_a_basis",
        )
    mean, components = basis.people[0][0][:, 0], basis.people[0][0][:, 1:]
    if len(person) != 1 or person[0].shape != components.shape[:2]:
        raise IntegrityError(
            f"{path} holds an array of shape {person[0].shape}, but the basis takes {components.shape[:2]}",
            "pass the celeb basis they were learned on; embeddings need none",
            reason="basis_mismatch",
        )
    return (mean + np.einsum("jk,jkd->jd", person[0].astype(np.float64), components)).astype(np.float32)


def _check_rows(rows: Floats, path: Path) -> None:
    if len(rows) != TOKENS:
        raise InvalidInputError(
            f"{path} holds {len(rows)} vector{'' if len(rows) == 1 else 's'}; an identity has two",
            "adding or removing vectors would change the person; use the file where it was made, or learn from a photo",
        )
    for flaw in flaws(rows):
        raise IntegrityError(f"{path} cannot be used: {flaw}", _DOWNLOAD_AGAIN)


def person_of(
    rows: Sequence[Floats], name: str, parts: TextEncoderParts, basis: CelebBasis, provenance: Mapping[str, str]
) -> Identity:
    """An identity of the model ``parts`` from token rows, E arrays (2, D).

    Provenance gains "outside_basis", see :func:`outside_basis`. Raises IntegrityError when the widths differ.
    """
    widths = tuple(array.shape[1] for array in rows)
    wanted = tuple(parts.token_table(encoder).shape[1] for encoder in range(len(parts.text_encoders)))
    if widths != wanted:
        raise IntegrityError(
            f"the vectors are {format_widths(widths)} wide, but those of {parts.name} are {format_widths(wanted)}",
            f"they fit {FAMILIES.get(widths, 'a model of that width')}: choose such a model",
            reason="model_mismatch",
            family=FAMILIES.get(widths, "a model of that width"),
        )
    coefficients = tuple(basis.project(array[None], encoder)[0] for encoder, array in enumerate(rows))
    provenance = {**provenance, "outside_basis": f"{outside_basis(rows, coefficients, basis):.4f}"}
    return Identity(name, coefficients, tuple(rows), basis.hash, parts.family, parts.table_hash, provenance)


def outside_basis(rows: Sequence[Floats], coefficients: Sequence[Floats], basis: CelebBasis) -> float:
    """The share, 0 to 1, of the squared distance from the mean that lies outside the span of the basis."""
    near = basis.embed(tuple(coefficients))
    left = sum(float(np.square(row - reached).sum(dtype=np.float64)) for row, reached in zip(rows, near, strict=True))
    whole = sum(float(np.square(row - mean).sum(dtype=np.float64)) for row, mean in zip(rows, basis.mean, strict=True))
    return min(1.0, left / whole) if whole else 0.0


def flaws(array: Floats) -> list[str]:
    """Why rows, or coefficients, are unusable; [] for usable ones."""
    if not np.isfinite(array).all():
        return ["it contains NaN or infinity"]
    return [] if array.any(axis=-1).all() else ["a row is all zero"]


def format_widths(widths: Sequence[int]) -> str:
    """768, or 768 + 1280"""
    return " + ".join(map(str, widths))
