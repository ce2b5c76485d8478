"""Identity files are read back exactly, or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_fakes import make_identity
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from celebctl_runtime.errors import IntegrityError, NotFoundError, UsageError
from celebctl_runtime.identity import Identity, check_name

FIELDS: dict[str, Any] = {"basis_hash": "b", "family": "sd1", "table_hash": "t"}


def rows(*shape: int, value: float = 1.0) -> Any:
    return np.full(shape, value, np.float32)


def damage(path: Path, tensors: dict[str, Any] | None = None, **metadata: Any) -> None:
    """Write an identity file with some parts replaced; a metadata value "" leaves the entry out."""
    entries = {"schema": "1", "name": "alice", "provenance": "{}", **FIELDS, **metadata}
    default = {"coefficients.0": rows(2, 5), "embeddings.0": rows(2, 8)}
    content = {f"celebctl.{key}": value for key, value in entries.items() if value}
    path.write_bytes(save(default if tensors is None else tensors, metadata=content))


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [("alice", "alice"), ("Alice", "alice"), ("ＡＮＮ-Marie_2", "ann-marie_2"), ("x" * 32, "x" * 32)],
)
def test_names_have_one_canonical_form(typed: str, canonical: str) -> None:
    assert check_name(typed) == canonical


@pytest.mark.parametrize(
    "name",
    ["", "1st", "-a", "a b", "../x", "/etc", "a/b", "a\0", "a\n", "a.", "é", "аlice", "a" * 33, "con", "COM1", "nul"],
)
def test_other_names_are_refused_with_a_hint(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert caught.value.hint


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_a_checked_name_is_canonical_and_a_safe_file_name(name: str) -> None:
    try:
        checked = check_name(name)
    except UsageError:
        return
    assert check_name(checked) == checked and Path(checked).name == checked


def test_save_and_load_are_inverse(tmp_path: Path) -> None:
    two_encoders = Identity(
        "anna",
        coefficients=(rows(2, 4), rows(2, 6, value=2)),
        embeddings=(rows(2, 768), rows(2, 1280, value=3)),
        provenance={"preset": "clean", "note": "müde\n"},
        **FIELDS,
    )
    for identity in (make_identity("alice"), two_encoders):
        path = tmp_path / "library" / f"{identity.name}.safetensors"
        identity.save(path)
        loaded = Identity.load(path)
        assert loaded == identity and loaded.provenance == identity.provenance
        assert loaded.embeddings[0].dtype == np.float32 and not loaded.embeddings[0].flags.writeable


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_identity("alice").save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_digest_depends_on_the_numbers_only() -> None:
    alice, other = make_identity("alice", seed=1), make_identity("alice", seed=2)
    assert alice.digest == alice.renamed("bob").digest != other.digest
    assert alice != alice.renamed("bob") and alice != other and alice != "alice"
    assert len({alice, make_identity("alice", seed=1), other}) == 2


def test_arrays_are_copied() -> None:
    array = rows(2, 3)
    identity = Identity("a", (array,), (array,), **FIELDS)
    array[:] = 0
    assert identity.embeddings[0].all()


@pytest.mark.parametrize(
    ("coefficients", "embeddings", "reason"),
    [
        ((), (), "arrays"),
        ((rows(2, 4),), (rows(2, 8), rows(2, 8)), "arrays"),
        ((rows(4),), (rows(2, 8),), "shape"),
        ((rows(2, 4),), (rows(1, 8),), "shape"),
        ((rows(2, 4),), (rows(2, 0),), "shape"),
        ((rows(2, 4, value=np.nan),), (rows(2, 8),), "NaN"),
        ((rows(2, 4),), (rows(2, 8, value=np.inf),), "infinity"),
        ((rows(2, 4),), (np.array([[1, 2], [0, 0]]),), "zero row"),
    ],
)
def test_invalid_arrays_are_refused(coefficients: Any, embeddings: Any, reason: str) -> None:
    with pytest.raises(IntegrityError, match=reason):
        Identity("alice", coefficients, embeddings, **FIELDS)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        Identity.load(tmp_path / "missing.safetensors")
    assert caught.value.reason == "no_identity_file"
    assert caught.value.values["path"] == tmp_path / "missing.safetensors"
    with pytest.raises(NotFoundError):
        Identity.load(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"schema": ""}, "identity_damaged"),
        ({"name": ""}, "identity_damaged"),
        ({"name": "../alice"}, "identity_damaged"),
        ({"table_hash": ""}, "identity_damaged"),
        ({"provenance": "[1"}, "identity_damaged"),
        ({"provenance": "[1]"}, "identity_damaged"),
        ({"schema": "2"}, "newer_format"),
    ],
)
def test_damaged_metadata_is_refused(tmp_path: Path, metadata: dict[str, Any], reason: str) -> None:
    damage(tmp_path / "x", **metadata)
    with pytest.raises(IntegrityError) as caught:
        Identity.load(tmp_path / "x")
    assert caught.value.reason == reason and caught.value.hint


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"coefficients.0": rows(2, 5)},
        {"coefficients.0": rows(2, 5), "embeddings.1": rows(2, 8)},
        {"coefficients.0": rows(2, 5), "embeddings.0": rows(2, 8, value=np.nan)},
    ],
)
def test_damaged_tensors_are_refused(tmp_path: Path, tensors: dict[str, Any]) -> None:
    damage(tmp_path / "x", tensors)
    with pytest.raises(IntegrityError):
        Identity.load(tmp_path / "x")


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    damage(tmp_path / "x")
    raw = (tmp_path / "x").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip()
    entry = json.dumps(json.loads(header)["embeddings.0"]).encode()
    duplicated = header[:-1] + b', "embeddings.0": ' + entry + b"}"
    (tmp_path / "x").write_bytes(len(duplicated).to_bytes(8, "little") + duplicated + raw[8 + length :])
    with pytest.raises(IntegrityError):
        Identity.load(tmp_path / "x")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        b"\xff" * 8 + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{]",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        b"\x80\x04pickle",
    ],
)
def test_other_files_are_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(IntegrityError):
        Identity.load(tmp_path / "x")


def test_every_flipped_or_missing_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x"
    make_identity("alice").save(path)
    raw = path.read_bytes()
    for position in range(0, len(raw), 3):
        for broken in (raw[:position], raw[:position] + bytes([raw[position] ^ 0x40]) + raw[position + 1 :]):
            path.write_bytes(broken)
            try:
                Identity.load(path)
            except IntegrityError as error:
                assert error.hint
