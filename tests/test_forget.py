"""forget: what is stored of a person goes, what is stored of others stays."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from console_fakes import MODEL_KEY, CommandLine, refused, toy_bundle
from filelock import FileLock

from celebctl import forgetting
from celebctl.forgetting import find_traces, forget
from celebctl.library import Library
from celebctl_runtime.bundle.bundle import Bundle

DEAD = 2**22 + 1  # no Linux process has this number
KINDS = ["interrupted write", "contact sheet", "checkpoint", "face reference", "bundle rows", "identity"]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """alice and bob in the library and its bundle, and every kind of trace of alice."""
    library = Library(tmp_path / "library")
    people = [make_identity(name, number) for number, name in enumerate(("alice", "bob"))]
    for person in people:
        library.save(person)
    toy_bundle(library, *people)
    for path in (
        library.root / "sheets" / "alice+bob+sheet-2.png",
        library.root / "sheets" / "alicia+sheet.png",
        library.checkpoint(["bob", "alice"], MODEL_KEY),
        library.checkpoint(["bob"], MODEL_KEY),
        library.root / "identities" / MODEL_KEY / f".alice.celebctl-{DEAD}-0123abcd.safetensors",
        library.root / "cache" / "basis.safetensors",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(person_bytes(library) if path.name.startswith(".") else b"x")
    for number, person in enumerate(people):
        add_reference(library, person.digest, number)
    return library


def add_reference(library: Library, digest: str, number: int) -> Path:
    path = library.face_reference(digest, "0" * 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.full(512, number + 0.5, np.float32))
    return path


def person_bytes(library: Library, name: str = "alice") -> bytes:
    return library.find(name).path.read_bytes()


def names_in(library: Library) -> set[str]:
    return {path.name for path in library.root.rglob("*") if path.is_file() and "alic" in path.name}


def test_every_trace_goes_and_others_stay(library: Library) -> None:
    row = library.load("alice").embeddings[0][1].tobytes()
    assert any(row in path.read_bytes() for path in library.bundles()[0].iterdir() if path.is_file())
    done = forget(library, "Alice")
    assert [trace.kind for trace in done.removed if trace.kind != "lock"] == KINDS
    assert done.searched_files > 5 and done.searched_bytes > 1000
    assert names_in(library) == {"alicia+sheet.png"}
    assert not any(row in path.read_bytes() for path in library.root.rglob("*") if path.is_file())
    bundle = Bundle.open(library.bundles()[0], verify="full")
    assert bundle.names == ("bob",) and library.names() == ["bob"]
    assert library.checkpoint(["bob"], MODEL_KEY).exists() and (library.root / "cache" / "basis.safetensors").exists()


@pytest.mark.parametrize("stop", range(len(KINDS)))
def test_a_call_that_was_interrupted_is_repeated(library: Library, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    remove = forgetting.__dict__["_remove"]

    def interrupted(trace: forgetting.Trace, name: str) -> None:
        if trace.kind == KINDS[stop]:
            raise KeyboardInterrupt
        remove(trace, name)

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "_remove", interrupted)
        with pytest.raises(KeyboardInterrupt):
            forget(library, "alice")
    assert forget(library, "alice").searched_files, "the identity is the last to go"
    assert not find_traces(library, "alice")


def test_face_references_of_bundles_go_and_copies_are_found(library: Library) -> None:
    bob = library.face_reference(library.load("bob").digest, "0" * 64)
    other = library.face_reference(make_identity("alice", 7).digest, "0" * 64)
    reference = library.face_references(library.load("alice").digest)[0]
    copy = library.root / "copy.npy"
    shutil.copy(reference, copy)
    write_bundle(library.root / "bundles" / "other").add(make_identity("alice", 7))
    add_reference(library, make_identity("alice", 7).digest, 7)
    listed = [trace.path for trace in find_traces(library, "alice") if trace.kind == "face reference"]
    assert sorted(listed) == sorted([reference, other])
    assert forget(library, "alice").left == [copy]
    assert bob.exists() and not other.exists() and not reference.exists()


@pytest.mark.parametrize(
    ("name", "sheets"),
    [
        ("alice", {"alice+sheet.png", "bob+alice+sheet-2.png", "alice-sheet.png", "alice-alice-2-sheet-3.png"}),
        ("alice-2", {"alice-2+sheet.png", "alice-2-sheet.png", "alice-alice-2-sheet-3.png", "alice-2-carol-sheet.png"}),
        ("carol", {"alice-2-carol-sheet.png"}),
    ],
)
def test_contact_sheets_of_similar_names_stay(tmp_path: Path, name: str, sheets: set[str]) -> None:
    library = Library(tmp_path / "library")
    others = {"alice+sheet.png", "bob+alice+sheet-2.png", "alice-sheet.png", "alice-alice-2-sheet-3.png"}
    others |= {"alice-2+sheet.png", "alice-2-sheet.png", "malice-sheet.png", "alice-2-carol-sheet.png"}
    (library.root / "sheets").mkdir(parents=True)
    for sheet in others:
        (library.root / "sheets" / sheet).touch()
    for number, person in enumerate(("alice", "alice-2")):
        library.save(make_identity(person, number))
    assert {path.name for path in library.sheets_of(name)} == sheets


def test_long_names_are_complete_in_the_name_of_a_sheet(tmp_path: Path) -> None:
    library, names = Library(tmp_path / "library"), [letter * 32 for letter in "abcd"]
    sheet = library.sheet(names)
    sheet.parent.mkdir(parents=True)
    sheet.touch()
    assert [trace.path for trace in find_traces(library, names[3])] == [sheet]
    assert library.sheet(names).name == f"{'+'.join(names)}+sheet-2.png"


@pytest.mark.parametrize(
    ("sheet", "renamed"),
    [("alice+bob+sheet.png", "anna+bob+sheet-2.png"), ("carol-dave-alice-sheet.png", "carol-dave-anna-sheet.png")],
)
def test_nothing_of_a_renamed_person_stays(library: Library, sheet: str, renamed: str) -> None:
    (library.root / "sheets" / sheet).touch()
    library.rename("alice", "anna")
    assert {path.name for path in library.sheets_of("anna")} == {"anna+bob+sheet.png", renamed}
    assert not library.checkpoint(["bob", "alice"], MODEL_KEY).exists()
    forget(library, "anna")
    assert {path.name for path in (library.root / "sheets").iterdir()} == {"alicia+sheet.png"}
    assert library.checkpoint(["bob"], MODEL_KEY).exists()


def test_a_sheet_keeps_a_name_that_another_model_has(library: Library) -> None:
    library.save(make_identity("alice", 7, table_hash="f" * 16))
    library.rename("alice", "anna", MODEL_KEY)
    assert library.sheets_of("alice") == library.sheets_of("anna") != []


def test_rows_that_a_killed_process_left_in_a_bundle_are_zeroed(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "_zero_pending", Mock())
        Bundle.open(library.bundles()[0]).remove("alice")
    assert "bundle rows" in {trace.kind for trace in forget(library, "alice").removed}


def test_a_copy_under_another_name_is_found(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    path = console.library.save(console.library.load("alice").renamed("anna"))
    result = console("forget", "alice", "--json")
    assert result.code == 5 and result.document["left"] == [str(path)] and str(path) in result.err
    assert console.library.names() == ["anna", "bob"]


def test_only_one_model(library: Library) -> None:
    other = library.save(make_identity("alice", 7, table_hash="f" * 16))
    forget(library, "alice", model_key=MODEL_KEY)
    assert [entry.path for entry in library.entries() if entry.name == "alice"] == [other]


def test_the_command_lists_what_it_removes(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    toy_bundle(console.library, console.library.load("alice"), console.library.load("bob"))
    console("mix", "alice", "bob", "--name", "carol")
    elsewhere = Path(shutil.copytree(console.library.bundles()[0], console.folder / "copy"))
    before = console("forget", "alice", "--dry-run", "--json").document
    assert before["dry_run"] and console.library.names() == ["alice", "bob", "carol"]
    result = console("forget", "alice", "--bundle", elsewhere)
    assert result.code == 0 and "out of reach" in result.err and "carol" in result.err
    kinds = [line.partition(":")[0] for line in result.lines if "lock" not in line]
    assert kinds == ["removed bundle rows", "removed bundle rows", "removed identity"]
    assert console.library.names() == ["bob", "carol"] and Bundle.open(elsewhere).names == ("bob",)
    refused(console("forget", "alice", "--bundle", elsewhere), 4, "alice")
    refused(console("forget", "bob", "--bundle", "nowhere"), 4, "nowhere")
    assert console("forget", "bob", "--json").document["searched_files"] > 0


def test_what_another_process_uses_is_left_alone(console: CommandLine) -> None:
    console.add_people("alice")
    with FileLock(console.library.root / "locks" / f"{MODEL_KEY}.alice.lock"):
        refused(console("forget", "alice"), 9, "alice")
    assert console.library.names() == ["alice"]


def test_a_file_that_cannot_be_read_is_reported(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    console.add_people("alice", "bob")
    path, opened = console.library.find("bob").path, cast("Any", Path.open)

    def refuse(self: Path, *given: Any, **named: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "denied", str(self))
        return opened(self, *given, **named)

    monkeypatch.setattr(Path, "open", refuse)
    result = console("forget", "alice", "--json")
    assert result.code == 5 and result.document["unsearched"] == [str(path)] and str(path) in result.err
    assert result.document["left"] == [] and console.library.names() == ["bob"]


def test_a_folder_that_cannot_be_read_is_reported(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(folder: Path, onerror: Callable[[OSError], object]) -> list[Any]:
        onerror(PermissionError(errno.EACCES, "denied", str(folder / "closed")))
        return []

    monkeypatch.setattr(os, "walk", walk)
    assert forget(library, "alice").unsearched == [library.root / "closed"]


def test_stray_folders_do_not_stop_it(library: Library) -> None:
    (library.root / "identities" / "old backup").mkdir()
    (library.root / "locks").mkdir(exist_ok=True)
    (library.root / "locks" / "old backup.alice.lock").touch()
    forget(library, "alice")
    assert library.names() == ["bob"]


def test_a_damaged_identity_is_removed_without_a_search(console: CommandLine) -> None:
    console.add_people("alice")
    console.library.find("alice").path.write_bytes(b"damaged")
    result = console("forget", "alice")
    assert result.code == 0 and "not searched" in result.err and not console.library.names()
