"""Files that are no files, JSON made to confuse, damaged rows of people, and several writers of one name."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_fakes import make_identity
from console_fakes import CommandLine, refused, toy_bundle
from PIL import Image

from celebctl_models.checkpoints.registry import read_json
from celebctl_models.faces.photos import open_photo
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import Manifest
from celebctl_runtime.errors import CelebctlError, IntegrityError, InvalidInputError, SetupError, UsageError
from celebctl_runtime.files import atomic_write, read_regular, translate_os_errors
from celebctl_runtime.identity import Identity
from celebctl_runtime.picture import read_request
from celebctl_runtime.sampling.init_image import InitImage
from celebctl_runtime.strict_json import MAX_DEPTH, MAX_DIGITS, parse_json

posix = pytest.mark.skipif(os.name == "nt", reason="devices and pipes have no names on Windows")

# What Python's own parser accepts or fails on in another way than with ValueError.
HOSTILE_JSON = {
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a little too deep": "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2),
    "long number": "9" * 5000,
    "number": "9" * (MAX_DIGITS + 1),
    "duplicate key": '{"a": 1, "a": 2}',
    "half a surrogate pair": '"\\ud800"',
    "half a surrogate pair in a key": '{"\\udfff": 1}',
    "NUL": '"a\\u0000b"',
    "NaN": "NaN",
    "infinity": "[-Infinity]",
    "invalid UTF-8": b'"\xff"',
    "empty": "",
    "text after it": "{} {}",
}


@pytest.mark.parametrize("text", HOSTILE_JSON.values(), ids=HOSTILE_JSON.keys())
def test_hostile_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_within_the_limits_is_read_as_python_reads_it() -> None:
    nested: Any = json.loads("[" * 60 + "]" * 60)
    mixed: dict[str, Any] = {"a": [1, -2.5, "é\n😀", None, True], "b": dict[str, int]()}
    values: list[Any] = [mixed, int("9" * MAX_DIGITS), nested]
    for value in values:
        assert parse_json(json.dumps(value)) == value
    assert parse_json(b'"\\ud83d\\ude00"') == "😀"


Door = Callable[[Path], object]
DOORS: dict[str, Door] = {
    "identity": Identity.load,
    "photo": open_photo,
    "init image": InitImage.read,
    "recipe": read_request,
    "model folder": read_json,
}


def special_files(folder: Path) -> list[Path]:
    """A pipe, a socket, a device, a folder and a loop of links."""
    pipe, loop, directory = folder / "pipe", folder / "loop", folder / "directory"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    directory.mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "s"))
    server.close()
    return [pipe, loop, directory, folder / "s", Path("/dev/zero"), Path("/dev/stdin")]


@posix
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_regular_file_is_refused_at_once(door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    for path in special_files(Path()):
        if path == Path("/dev/stdin") and path.is_file():
            continue
        with pytest.raises(CelebctlError) as caught:
            DOORS[door](path)
        assert caught.value.exit_code in (3, 4, 5), path


@posix
@pytest.mark.parametrize(
    "words", [["inspect"], ["import"], ["regen"], ["check"], ["gen", "beach", "--from"]], ids=" ".join
)
def test_commands_refuse_them_with_3_4_or_5(console: CommandLine, words: list[str]) -> None:
    toy_bundle(console.library)
    for path in special_files(Path()):
        if path == Path("/dev/stdin") and path.is_file():
            continue
        if path.is_dir() and words == ["inspect"]:
            continue  # which describes folders, too
        answer = console(*words, path)
        assert answer.code in (3, 4, 5), (path, answer.err)


@pytest.mark.parametrize(
    "text", [text for text in HOSTILE_JSON.values() if text], ids=[k for k, v in HOSTILE_JSON.items() if v]
)
def test_hostile_json_in_a_file_is_code_5(text: str | bytes, tmp_path: Path, console: CommandLine) -> None:
    raw = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(IntegrityError):
        Manifest.from_bytes(raw)
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(IntegrityError):
        read_json(tmp_path / "config.json")
    info = Image.new("RGB", (8, 8))
    from PIL.PngImagePlugin import PngInfo

    chunk = PngInfo()
    chunk.add_text("celebctl", raw.decode("latin-1"))
    info.save(console.folder / "x.png", pnginfo=chunk)
    assert console("regen", "x.png").code in (3, 5)
    header = b'{"__metadata__": {"celebctl.schema": "1"}, "x": ' + raw + b"}"
    (console.folder / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert console("import", "x.safetensors").code == 5
    assert console("inspect", "x.safetensors").code == 5


@pytest.mark.parametrize("schema", ["9" * 5000, "²", "٣", "-1", "", "1.0"])
def test_an_odd_version_is_code_5(schema: str, tmp_path: Path) -> None:
    make_identity("alice").save(tmp_path / "a.safetensors")
    raw = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["celebctl.schema"] = schema
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(IntegrityError):
        Identity.load(tmp_path / "a.safetensors")


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_regular(tmp_path / "x", 5) == b"12345"
    with pytest.raises(InvalidInputError) as caught:
        read_regular(tmp_path / "x", 4)
    assert caught.value.values["limit"] == 4


# Rows of people.


def test_damaged_rows_of_a_person_are_found_before_anything_is_drawn(console: CommandLine) -> None:
    bundle = toy_bundle(console.library, make_identity("alice"), make_identity("bob", seed=2))
    table = bundle.manifest.token_tables[0]
    file = bundle.file(table.file)
    raw = bytearray(file.read_bytes())
    first = bundle.manifest.identities["bob"].rows[0][0] * table.row_bytes
    raw[first + 3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(IntegrityError) as caught:
        Bundle.open(bundle.path)
    assert caught.value.reason == "bundle_damaged"
    refused(console("gen", "alice smiling"), 5, "bob")
    assert not list(console.folder.glob("*.png"))
    raw[first + 3] ^= 1
    file.write_bytes(raw)
    assert console("gen", "alice smiling").code == 0


# Writers.


def write_new(arguments: tuple[str, int]) -> bool:
    """Write a file that must not exist; whether this process was the one."""
    path, number = arguments
    try:
        atomic_write(Path(path), f"{number}".encode(), overwrite=False)
    except UsageError:
        return False
    return True


def test_of_several_writers_of_a_new_file_one_succeeds(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            wrote = pool.map(write_new, [(str(tmp_path / name), number) for number in range(24)], chunksize=1)
        assert wrote.count(True) == 1
        assert (tmp_path / name).read_text() == str(wrote.index(True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]  # and no temporary file


@pytest.mark.parametrize("failure", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_hard_links_replaces_nothing_either(
    failure: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(os, "link", refuse)
    atomic_write(tmp_path / "a", b"1", overwrite=False)
    with pytest.raises(UsageError) as caught:
        atomic_write(tmp_path / "a", b"2", overwrite=False)
    assert caught.value.reason == "file_exists"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"1")]


def test_a_free_name_that_another_process_takes_is_followed_by_the_next(
    console: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_bundle(console.library)
    foreign = console.folder / "beach-7.png"
    genuine: Any = os.link

    def link(source: Any, target: Any) -> None:
        if not foreign.exists():
            foreign.write_bytes(b"foreign")
        genuine(source, target)

    monkeypatch.setattr(os, "link", link)
    answer = console("gen", "beach", "--seed", "7")
    assert (answer.code, answer.out.split()) == (0, ["beach-7-2.png"])
    assert foreign.read_bytes() == b"foreign"


@pytest.mark.parametrize(
    "number",
    [errno.EFBIG, errno.EACCES, errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENAMETOOLONG, errno.ESTALE],
)
def test_every_failure_to_write_is_a_setup_error_that_names_the_file(number: int) -> None:
    with pytest.raises(SetupError) as caught, translate_os_errors(Path("x.png")):
        raise OSError(number, os.strerror(number))
    assert caught.value.values["path"] == Path("x.png")
    assert os.strerror(number) in caught.value.problem
