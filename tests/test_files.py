"""Files are replaced completely or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import celebctl_runtime.files as files
from celebctl_runtime.errors import SetupError, UsageError
from celebctl_runtime.files import atomic_directory, atomic_write, refuse_existing, sha256_file


def names(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir()]


def never(*_: object) -> bool:
    return False


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_write_makes_parents_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, b"old")
    atomic_write(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert names(path.parent) == ["b.txt"]


def test_the_writer_sees_the_same_suffix_in_the_same_directory(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        temporary.touch()

    atomic_write(tmp_path / "picture.png", write)
    assert seen[0].suffix == ".png" and seen[0].parent == tmp_path


@pytest.mark.parametrize("content", [b"new", lambda path: path.write_text("new")])  # pyright: ignore
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / "kept"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(SetupError) as caught:
        atomic_write(path, content)
    assert caught.value.reason == "disk_full" and caught.value.values["path"] == path
    assert path.read_text() == "old" and names(tmp_path) == ["kept"]


def test_an_exception_in_the_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        atomic_write(path, fail)
    assert path.read_text() == "old" and names(tmp_path) == ["kept"]


def test_directories_and_paths_below_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "x"):
        with pytest.raises(SetupError) as caught:
            atomic_write(path, b"")
        assert caught.value.reason == "invalid_path"


def test_existing_files_are_refused_unless_overwritten(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "free", overwrite=False)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UsageError) as caught:
        refuse_existing(tmp_path / "link", overwrite=False)
    assert caught.value.reason == "file_exists" and caught.value.values["path"] == tmp_path / "link"
    refuse_existing(tmp_path / "link", overwrite=True)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", never)
    target = tmp_path / "bundle"
    for content in ("old", "new"):
        with atomic_directory(target) as temporary:
            assert temporary.parent == tmp_path
            (temporary / "sub").mkdir()
            (temporary / "sub" / content).touch()
            assert content == "old" or (target / "sub" / "old").exists()
        assert names(target / "sub") == [content]
    assert names(tmp_path) == ["bundle"]


def test_a_failure_keeps_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(SetupError), atomic_directory(target) as temporary:
        (temporary / "half").touch()
        full_disk()
    assert names(tmp_path) == ["bundle"] and names(target) == ["old"]


def test_a_failing_rename_puts_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = tmp_path / "bundle", Path.rename
    target.mkdir()
    (target / "old").touch()

    def fail_for_the_new_directory(self: Path, to: Path) -> Path:
        if to == target and not (self / "old").exists():
            full_disk()
        return rename(self, to)

    monkeypatch.setattr(files, "_exchange", never)
    monkeypatch.setattr(Path, "rename", fail_for_the_new_directory)
    with pytest.raises(SetupError), atomic_directory(target) as temporary:
        (temporary / "new").touch()
    assert names(tmp_path) == ["bundle"] and names(target) == ["old"]


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leftover(folder: Path, name: str, days: float) -> Path:
    """A file, or for a name that ends in a number a folder with a file in it, of some age."""
    path = folder / name
    if path.suffix in (".png", ".txt"):
        path.write_bytes(b"half")
    else:
        path.mkdir()
        (path / "step.onnx").write_bytes(b"half")
    then = time.time() - days * 86_400
    os.utime(path, (then, then))
    return path


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path, dead: int) -> None:
    kept = {
        leftover(tmp_path, f".young.celebctl-{dead}-0123abcd.png", 0.9).name,
        leftover(tmp_path, f".future.celebctl-{dead}-0123abcd.png", -400).name,
        leftover(tmp_path, f".running.celebctl-{os.getpid()}-0123abcd.png", 2).name,
        leftover(tmp_path, f"visible.celebctl-{dead}-0123abcd.png", 2).name,
        leftover(tmp_path, f".other.celebctl-{dead}-0123abc.png", 2).name,
    }
    leftover(tmp_path, f".old.celebctl-{dead}-0123abcd.png", 1.1)
    atomic_write(tmp_path / "a.txt", b"")
    assert set(names(tmp_path)) == {*kept, "a.txt"}


@pytest.mark.parametrize("name", [".notes.20240101-20240131", ".backup.2024-deadbeef", ".old.4194305-0123abcd.png"])
def test_hidden_files_of_users_stay(tmp_path: Path, name: str) -> None:
    leftover(tmp_path, name, 400)
    atomic_write(tmp_path / "a.txt", b"")
    assert set(names(tmp_path)) == {name, "a.txt"}


@pytest.mark.parametrize("name", ["a.txt", "sd3.5-medium-0123abcd", "a", "x" * 200 + ".png"])
def test_temporary_names_match_their_pattern(tmp_path: Path, name: str) -> None:
    with atomic_directory(tmp_path / name) as temporary:
        match = files.TEMPORARY.fullmatch(temporary.name)
    assert match is not None and int(match["process"]) == os.getpid() and name.startswith(match["stem"])


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path, dead: int) -> None:
    leftover(tmp_path, f".bundle.celebctl-{dead}-0123abcd", 2)
    with atomic_directory(tmp_path / "bundle") as temporary:
        assert set(names(tmp_path)) == {temporary.name}
    assert names(tmp_path) == ["bundle"]


def test_a_folder_is_looked_through_once(tmp_path: Path, dead: int) -> None:
    atomic_write(tmp_path / "a.txt", b"")
    late = leftover(tmp_path, f".late.celebctl-{dead}-0123abcd.txt", 2)
    atomic_write(tmp_path / "a.txt", b"")
    assert late.exists()


def test_a_leftover_that_is_a_link_loses_the_link_only(tmp_path: Path, dead: int) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / f".bundle.celebctl-{dead}-0123abcd"
    link.symlink_to(outside)
    os.utime(link, (0, 0), follow_symlinks=False)
    atomic_write(tmp_path / "folder" / "a.txt", b"")
    assert names(tmp_path / "folder") == ["a.txt"] and names(outside) == ["kept"]


def test_sha256_of_a_file_and_of_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "data"
    data = bytes(range(256)) * 9000
    path.write_bytes(data)
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()
    assert sha256_file(path, 1_500_000) == hashlib.sha256(data[:1_500_000]).hexdigest()
