"""The library: unique names per model, locks, atomic changes, nothing lost."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from celebctl.library import Library, format_model_key
from celebctl_runtime.errors import BusyError, IntegrityError, NotFoundError, SetupError, UsageError
from celebctl_runtime.identity import Identity
from celebctl_runtime.paths import data_root

TABLE = "0123456789abcdef" * 4
MODEL_KEY = format_model_key("sd", TABLE)


def person(name: str, seed: int = 0, table: str = TABLE) -> Identity:
    random = np.random.default_rng(seed)
    arrays = [random.normal(size=(2, width)).astype(np.float32) for width in (4, 8)]
    return Identity(name, (arrays[0],), (arrays[1],), "basis", "sd", table, {"preset": "clean"})


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "home")


def test_saved_identities_are_loaded(library: Library) -> None:
    alice = person("alice")
    path = library.save(alice)
    assert path == library.root / "identities" / MODEL_KEY / "alice.safetensors"
    assert library.load("alice") == alice
    assert library.names() == ["alice"]


def test_an_empty_library_has_no_names_and_no_folder(library: Library) -> None:
    assert library.names() == [] and library.bundles() == []
    assert not library.root.exists()
    with pytest.raises(NotFoundError) as error:
        library.load("alice")
    assert error.value.reason == "empty_library"


def test_a_taken_name_is_refused_and_kept(library: Library) -> None:
    library.save(person("alice", 1))
    with pytest.raises(UsageError) as error:
        library.save(person("alice", 2))
    assert (error.value.reason, error.value.values["name"]) == ("name_taken", "alice")
    assert library.load("alice") == person("alice", 1)
    library.save(person("alice", 2), overwrite=True)
    assert library.load("alice") == person("alice", 2)


def test_near_names_are_suggested(library: Library) -> None:
    library.save(person("alice"))
    with pytest.raises(NotFoundError, match="alcie") as error:
        library.find("alcie")
    assert "alice" in error.value.hint


def test_one_name_may_exist_for_two_models(library: Library) -> None:
    other = "f" * 64
    library.save(person("alice", 1))
    library.save(person("alice", 2, other))
    with pytest.raises(UsageError) as error:
        library.load("alice")
    assert error.value.reason == "ambiguous_identity"
    assert library.load("alice", format_model_key("sd", other)) == person("alice", 2, other)
    assert library.names() == ["alice"]


def test_remove_deletes_checkpoints_too(library: Library) -> None:
    library.save(person("alice"))
    library.save(person("bob"))
    for names in (["alice"], ["alice", "bob"], ["bob"]):
        checkpoint = library.checkpoint(names, MODEL_KEY)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(b"numbers")
    library.remove("alice")
    assert library.names() == ["bob"]
    assert [path.stem for path in (library.root / "checkpoints" / MODEL_KEY).iterdir()] == ["bob"]


def test_rename_keeps_the_numbers(library: Library) -> None:
    library.save(person("alice"))
    library.save(person("carol", 3))
    with pytest.raises(UsageError, match="carol"):
        library.rename("alice", "carol")
    library.rename("alice", "Bob")
    assert library.names() == ["bob", "carol"]
    assert library.load("bob").digest == person("alice").digest
    assert library.load("carol") == person("carol", 3)


def test_an_interrupted_rename_can_be_repeated(library: Library) -> None:
    library.save(person("alice"))
    library.save(person("zoe", 5))

    def stop(_: Identity) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.rename("alice", "bob", copied=stop)
    assert library.names() == ["alice", "bob", "zoe"]
    seen: list[Identity] = []
    library.rename("alice", "bob", copied=seen.append)
    assert library.names() == ["bob", "zoe"] and seen == [person("bob")]
    with pytest.raises(UsageError):
        library.rename("bob", "zoe", copied=stop)


def test_an_interrupted_removal_can_be_repeated(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    library.save(person("alice"))
    checkpoint = library.checkpoint(["alice"], MODEL_KEY)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"numbers")

    def stop(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".safetensors":
            raise KeyboardInterrupt
        os.unlink(path)  # noqa: PTH108

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", stop)
        library.remove("alice")
    assert library.names() == ["alice"] and not checkpoint.exists()
    library.remove("alice")
    assert library.names() == []


def test_a_change_cleans_all_folders_of_the_library(library: Library) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    old = [
        library.root / place / f".x.celebctl-{process.pid}-0123abcd.pem"
        for place in ("", "bundles", "bundles/mini-0123abcd", "cache")
    ]
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    library.save(person("alice"))
    assert not any(path.exists() for path in old)


def test_a_file_renamed_by_hand_answers_to_its_new_name(library: Library) -> None:
    path = library.save(person("alice"))
    path.rename(path.with_name("zoe.safetensors"))
    assert library.load("zoe").name == "zoe"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\0b", "a\nb", "con", "x" * 300, "", "álice", "аlice", "nul"])
def test_invalid_names_never_reach_the_disk(library: Library, name: str) -> None:
    library.save(person("alice"))
    with pytest.raises(UsageError):
        library.find(name)
    with pytest.raises(UsageError):
        library.remove(name)
    with pytest.raises(UsageError):
        library.rename("alice", name)
    assert library.names() == ["alice"]


def test_a_damaged_file_is_named(library: Library) -> None:
    path = library.save(person("alice"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(IntegrityError, match="alice"):
        library.load("alice")


def test_a_name_held_elsewhere_is_busy(library: Library, tmp_path: Path) -> None:
    """Another process learns alice: here she can be neither learned nor deleted; bob can."""
    library.save(person("alice"))
    with HeldElsewhere(library.root, "alice"):
        for act in (lambda: library.save(person("alice", 2), overwrite=True), lambda: library.remove("alice")):
            with pytest.raises(BusyError, match="alice"):
                act()
        library.save(person("bob"))
    library.remove("alice")  # the other process was killed, and its lock went with it


def test_reserving_may_nest(library: Library) -> None:
    with library.reserve(["alice", "bob"], MODEL_KEY):
        library.save(person("alice"))
        library.save(person("bob"))
    assert library.names() == ["alice", "bob"]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_leaves_everything_as_it_was(
    library: Library, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    library.save(person("alice", 1))

    def refuse(*paths: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(SetupError, match="cannot write") as error:
        library.save(person("alice", 2), overwrite=True)
    assert error.value.hint
    with pytest.raises(SetupError):
        library.rename("alice", "bob")
    assert library.load("alice") == person("alice", 1)
    assert [path.name for path in (library.root / "identities" / MODEL_KEY).iterdir()] == ["alice.safetensors"]


def test_a_root_below_a_file_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError):
        Library(tmp_path / "file" / "home").save(person("alice"))


def test_bundles_are_found_last_exported_first(library: Library) -> None:
    """Adding a person renews only the manifest, which does not make an old bundle new."""
    for age, name in ((20, "old"), (10, "new"), (0, ".half-written")):
        folder = library.root / "bundles" / name
        folder.mkdir(parents=True)
        for file in ("manifest.json", "step.onnx"):
            (folder / file).write_text("{}")
            os.utime(folder / file, (time.time() - age, time.time() - age))
    os.utime(library.root / "bundles" / "old" / "manifest.json")
    assert [path.name for path in library.bundles()] == ["new", "old"]


def test_home_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("CELEBCTL_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert "celebctl" in str(data_root())


class HeldElsewhere:
    """Another process that holds a name, until the block ends and it is killed."""

    def __init__(self, root: Path, name: str, model_key: str = MODEL_KEY) -> None:
        self._code = (
            "import sys; from pathlib import Path; from celebctl.library import Library\n"
            f"with Library(Path({str(root)!r})).reserve([{name!r}], {model_key!r}):\n"
            "    print('held', flush=True); sys.stdin.read()"
        )

    def __enter__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-c", self._code], stdin=pipe, stdout=pipe)
        assert self._process.stdout is not None and self._process.stdout.readline() == b"held\n"

    def __exit__(self, *problem: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_damaged_origin_is_none(tmp_path: Path) -> None:
    library = Library(tmp_path)
    bundle = library.bundle_path("mini", "0" * 16)
    library.remember_origin(bundle, "mini")
    bundle.with_name(f".{bundle.name}.origin").write_bytes(b"\xff\xfe")
    assert library.origin(bundle) is None
