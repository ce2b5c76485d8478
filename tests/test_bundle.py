"""Adding and removing people: no graph changes, and no reader or kill sees a partial change."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from numpy.typing import NDArray

import celebctl_runtime.bundle.bundle as bundle_module
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import FileEntry, IdentityEntry, Manifest
from celebctl_runtime.errors import BusyError, IntegrityError, NotFoundError, SetupError, UsageError
from celebctl_runtime.files import atomic_write, flush, sha256_file


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle")


def spare_rows(bundle: Bundle) -> NDArray[Any]:
    """(spare_rows, width) as stored on disk."""
    table = bundle.manifest.token_tables[0]
    rows = np.fromfile(bundle.file(table.file), dtype=table.dtype).reshape(table.rows, table.width)
    return rows[table.first_spare_row :]


def rows_of(bundle: Bundle, name: str) -> NDArray[Any]:
    first, second = bundle.manifest.identities[name].rows[0]
    start = bundle.manifest.token_tables[0].first_spare_row
    return spare_rows(bundle)[[first - start, second - start]]


def edit(bundle: Bundle, entry: str, value: object) -> None:
    """Set one entry of the manifest file, given by its keys with slashes between; None removes it."""
    path = bundle.file("manifest.json")
    data: Any = json.loads(path.read_text())
    *parents, last = entry.split("/")
    node = data
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    if isinstance(node, list):
        node[int(last)] = value
    elif value is None:
        del node[last]
    else:
        node[last] = value
    path.write_text(json.dumps(data))


def test_an_added_person_is_in_the_reopened_bundle(bundle: Bundle) -> None:
    alice = make_identity("alice")
    bundle.add(alice)
    again = Bundle.open(bundle.path, verify="full")
    assert again.names == ("alice",) and again.manifest == bundle.manifest
    assert np.array_equal(rows_of(again, "alice"), alice.embeddings[0])
    assert again.token_ids["alice"] == again.manifest.identities["alice"].rows[0]
    assert again.manifest.identities["alice"].digest == alice.digest


def test_adding_changes_only_manifest_and_spare_rows(bundle: Bundle) -> None:
    before = {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()}
    fingerprint = bundle.manifest.fingerprint
    bundle.add(make_identity("alice"))
    after = {path: path.read_bytes() for path in before}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed == {"manifest.json", "token_table.bin"}
    assert bundle.manifest.fingerprint == fingerprint
    vocabulary = bundle.manifest.files["token_table.bin"].covers
    table = bundle.file("token_table.bin")
    assert before[table][:vocabulary] == after[table][:vocabulary]


def test_removing_zeroes_the_rows(bundle: Bundle) -> None:
    bundle.add(make_identity("alice", 1))
    bundle.add(make_identity("bob", 2))
    bundle.remove("alice")
    assert bundle.names == ("bob",) and np.count_nonzero(spare_rows(bundle).any(axis=1)) == 2
    assert np.array_equal(rows_of(bundle, "bob"), make_identity("bob", 2).embeddings[0])
    Bundle.open(bundle.path, verify="full")


def test_adding_the_same_identity_again_is_a_no_op(bundle: Bundle) -> None:
    bundle.add(make_identity("alice"))
    before = bundle.file("manifest.json").stat().st_mtime_ns
    bundle.add(make_identity("alice"))
    assert bundle.file("manifest.json").stat().st_mtime_ns == before


def test_a_taken_name_needs_replace(bundle: Bundle) -> None:
    bundle.add(make_identity("alice", 1))
    with pytest.raises(UsageError) as caught:
        bundle.add(make_identity("alice", 2))
    assert caught.value.reason == "name_taken_in_bundle" and caught.value.values == {"name": "alice"}
    old = bundle.token_ids["alice"]
    bundle.replace(make_identity("alice", 2))
    assert np.array_equal(rows_of(bundle, "alice"), make_identity("alice", 2).embeddings[0])
    assert bundle.token_ids["alice"] != old, "a row that may be in use is never overwritten"
    assert np.count_nonzero(spare_rows(bundle).any(axis=1)) == 2
    Bundle.open(bundle.path, verify="full")


def test_freed_rows_are_reused_last(bundle: Bundle) -> None:
    taken: list[tuple[int, ...]] = []
    for turn in range(4):
        bundle.add(make_identity("dave", turn + 1))
        taken.append(bundle.token_ids["dave"])
        bundle.remove("dave")
    assert len(set(taken)) == 4, "four slots, used in turn"


def test_a_full_bundle_raises_until_a_person_is_removed(bundle: Bundle) -> None:
    for number, name in enumerate(("alice", "bob", "carol", "dave")):
        bundle.add(make_identity(name, number))
    with pytest.raises(SetupError) as caught:
        bundle.add(make_identity("eve", 9))
    assert caught.value.reason == "bundle_full" and caught.value.values["spare_rows"] == 32
    bundle.remove("bob")
    bundle.add(make_identity("eve", 9))
    assert bundle.names == ("alice", "carol", "dave", "eve")
    Bundle.open(bundle.path, verify="full")


def test_a_bundle_without_spare_rows_is_full(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        write_bundle(tmp_path / "bundle", spare_rows=0).add(make_identity("alice"))
    assert caught.value.reason == "bundle_full"


def test_people_of_another_model_are_refused(bundle: Bundle) -> None:
    two_rows = np.ones((2, 8), np.float32)
    for identity in (
        make_identity("alice", table_hash="other"),
        replace(make_identity("alice"), family="sd2"),
        make_identity("alice", width=12),
        replace(make_identity("alice"), coefficients=(two_rows, two_rows), embeddings=(two_rows, two_rows)),
    ):
        with pytest.raises(IntegrityError) as caught:
            bundle.add(identity)
        assert caught.value.reason == "other_model" and caught.value.values["name"] == "alice"
    assert bundle.names == ()


def test_removing_an_unknown_name_raises(bundle: Bundle) -> None:
    bundle.add(make_identity("alice"))
    with pytest.raises(NotFoundError) as caught:
        bundle.remove("bob")
    assert caught.value.reason == "not_in_bundle"
    assert caught.value.values == {"name": "bob", "names": ("alice",)}


def test_adding_is_fast(bundle: Bundle) -> None:
    bundle.add(make_identity("warm-up", 5))
    times: list[float] = []
    for number, name in enumerate(("alice", "bob", "carol")):
        start = time.perf_counter()
        bundle.add(make_identity(name, number))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5, "typically 0.03 s, most of it flushing to disk"


def test_half_precision_tables_hold_half_precision_rows(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "half", dtype="float16")
    bundle.add(make_identity("alice"))
    assert np.array_equal(rows_of(bundle, "alice"), make_identity("alice").embeddings[0].astype(np.float16))
    Bundle.open(bundle.path, verify="full")


def test_seal_hashes_the_rows_of_people_already_in_the_tables(bundle: Bundle) -> None:
    bundle.add(make_identity("alice"))
    entry = bundle.manifest.identities["alice"]
    bare = replace(bundle.manifest, files={}, identities={"alice": IdentityEntry(entry.rows, entry.digest)})
    bundle.file("manifest.json").unlink()
    assert Bundle.seal(bundle.path, bare).manifest == bundle.manifest


@pytest.mark.parametrize("damaged", ["token_table.bin", "step.onnx", "tokenizer/tokenizer.json"])
def test_one_flipped_byte_anywhere_is_found_and_named(bundle: Bundle, damaged: str) -> None:
    bundle.add(make_identity("alice"))
    path = bundle.file(damaged)
    raw = bytearray(path.read_bytes())
    for position in {0, len(raw) // 2, len(raw) - 1, len(raw) - 8 * 32, len(raw) - 8 * 32 + 64}:
        raw[position] ^= 1
        path.write_bytes(raw)
        with pytest.raises(IntegrityError, match=path.name):
            Bundle.open(bundle.path, verify="full")
        raw[position] ^= 1
    path.write_bytes(raw)
    Bundle.open(bundle.path, verify="full")


def test_quick_verification_finds_missing_and_truncated_files(bundle: Bundle) -> None:
    path = bundle.file("step.onnx")
    path.write_bytes(path.read_bytes()[:-1])
    for damage in (lambda: None, path.unlink):
        damage()
        with pytest.raises(IntegrityError) as caught:
            Bundle.open(bundle.path)
        assert caught.value.reason == "bundle_damaged" and caught.value.values["path"] == path
    Bundle.open(bundle.path, verify="none")


def test_no_bundle_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(NotFoundError) as caught:
            Bundle.open(path)
        assert caught.value.reason == "no_bundle" and caught.value.values["path"] == path


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("model", None),
        ("model/table_hash", None),
        ("model/name", 3),
        ("size/native", [64]),
        ("size/native", "64x64"),
        ("size/multiple", True),
        ("defaults/guidance", "high"),
        ("graphs", []),
        ("token_tables", []),
        ("token_tables/0/dtype", "int8"),
        ("token_tables/0/spare_rows", 9),
        ("graphs/step/file", "../step.onnx"),
        ("graphs/step/data", ["/etc/passwd"]),
        ("graphs/step/inputs/state/shape", [1.5]),
        ("tokenizer/file", "C:\\x"),
        ("files/a\\..\\..\\b", {"sha256": "", "bytes": 0}),
        ("identities/eve", {"rows": [[0, 1]], "digest": ""}),
        ("identities/eve", {"rows": [], "digest": ""}),
        ("identities/eve", "the rows of alice"),
        ("identities/alice/rows/0", [1, 0]),
        ("schema_version", "1"),
    ],
)
def test_a_damaged_manifest_is_refused_with_a_hint(bundle: Bundle, entry: str, value: object) -> None:
    """``value`` None leaves the entry out."""
    bundle.add(make_identity("alice"))
    identities: Any = json.loads(bundle.file("manifest.json").read_text())["identities"]
    edit(bundle, entry, identities["alice"] if value == "the rows of alice" else value)
    with pytest.raises(IntegrityError) as caught:
        Bundle.open(bundle.path, verify="none")
    assert caught.value.reason == "bundle_damaged" and caught.value.hint


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_manifest_that_is_not_a_json_object_is_refused(bundle: Bundle, raw: bytes) -> None:
    bundle.file("manifest.json").write_bytes(raw)
    with pytest.raises(IntegrityError):
        Bundle.open(bundle.path)


def test_a_newer_format_is_refused(bundle: Bundle) -> None:
    edit(bundle, "schema_version", 2)
    with pytest.raises(IntegrityError) as caught:
        Bundle.open(bundle.path)
    assert caught.value.reason == "newer_format" and caught.value.values == {"version": 2}


def test_unknown_entries_are_kept(bundle: Bundle) -> None:
    edit(bundle, "engines", {"sm90": "x"})
    bundle.refresh()
    bundle.add(make_identity("alice"))
    assert json.loads(bundle.file("manifest.json").read_text())["engines"] == {"sm90": "x"}


def test_manifest_bytes_round_trip(bundle: Bundle) -> None:
    bundle.add(make_identity("alice"))
    assert Manifest.from_bytes(bundle.manifest.to_bytes()) == bundle.manifest


def test_refresh_reads_changes_of_another_process(bundle: Bundle) -> None:
    other = Bundle.open(bundle.path)
    assert not other.refresh() and other.is_current()
    bundle.add(make_identity("alice"))
    assert other.names == () and not other.is_current()
    assert other.refresh() and other.names == ("alice",)
    other.add(make_identity("bob", 2))
    bundle.add(make_identity("carol", 3))
    assert bundle.names == ("alice", "bob", "carol")


def test_two_writers_take_turns(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr(bundle_module, "_LOCK_SECONDS", 0.05)
    with FileLock(bundle.file("manifest.json.lock")), pytest.raises(BusyError):
        bundle.add(make_identity("alice"))
    bundle.add(make_identity("alice"))


class Killed(BaseException):
    """Simulates SIGKILL: nothing catches it, nothing cleans up."""


@pytest.mark.parametrize("act", ["add", "replace", "remove"])
def test_a_kill_at_any_write_leaves_a_complete_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Killed before each write in turn: the published state is complete, and the next change cleans up."""
    original = write_bundle(tmp_path / "original")
    original.add(make_identity("alice", 1))
    original.add(make_identity("bob", 2))
    actions: dict[str, Callable[[Bundle], None]] = {
        "add": lambda b: b.add(make_identity("carol", 3)),
        "replace": lambda b: b.replace(make_identity("alice", 4)),
        "remove": lambda b: b.remove("alice"),
    }
    finished = False
    for write_number in range(20):
        path = tmp_path / f"{act}-{write_number}"
        shutil.copytree(original.path, path)
        bundle = Bundle.open(path)
        with monkeypatch.context() as patch:
            countdown(patch, write_number)
            try:
                actions[act](bundle)
                finished = True
            except Killed:
                pass
        again = Bundle.open(path, verify="full")
        assert np.array_equal(rows_of(again, "bob"), make_identity("bob", 2).embeddings[0])
        if "alice" in again.names:
            digest = again.manifest.identities["alice"].digest
            assert any(
                make_identity("alice", s).digest == digest
                and np.array_equal(rows_of(again, "alice"), make_identity("alice", s).embeddings[0])
                for s in (1, 4)
            )
        again.add(make_identity("dave", 5))
        assert again.manifest.pending_slots == ()
        assert np.count_nonzero(spare_rows(again).any(axis=1)) == 2 * len(again.names)
        if finished:
            return
    pytest.fail("the change never finished")


def countdown(patch: pytest.MonkeyPatch, write_number: int) -> None:
    """Raise Killed before the ``write_number``-th operation that changes the disk."""
    left = [write_number]

    def killed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*arguments, **options)

        return call

    patch.setattr(bundle_module, "atomic_write", killed(atomic_write))
    patch.setattr(bundle_module, "flush", killed(flush))


def test_a_full_disk_changes_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.add(make_identity("alice"))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(SetupError) as caught:
            bundle.add(make_identity("bob"))
        assert caught.value.reason == "disk_full"
    assert Bundle.open(bundle.path, verify="full").names == ("alice",)


def test_files_without_covers_are_hashed_whole(bundle: Bundle) -> None:
    path = bundle.file("step.onnx")
    assert bundle.manifest.files["step.onnx"] == FileEntry(sha256_file(path), path.stat().st_size, 0)
