"""Face model packs: the table, location, licences, and checked installation."""

import hashlib
import json
import shutil
import stat
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from face_fakes import photo_of, write_face_models
from PIL import Image

from celebctl_models.faces import packs
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.faces.packs import (
    DEFAULT_PACK,
    LICENCES_FILE,
    PACKS,
    Pack,
    PackFile,
    accept,
    accepted_at,
    choose_face_models,
    find_pack,
    install_pack,
    pack_folder,
    pack_in,
    require_accepted,
)
from celebctl_runtime.errors import IntegrityError, NotFoundError, PolicyError

TOY = "toy"
NAMES = ("detector.onnx", "recogniser.onnx")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_face_models(tmp_path_factory.mktemp("unpacked") / TOY)


@pytest.fixture(autouse=True)
def toy(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Pack:
    """A pack as small as a test needs, in the table beside the published ones."""

    def entry(name: str) -> PackFile:
        data = (unpacked / name).read_bytes()
        return PackFile(name, len(data), hashlib.sha256(data).hexdigest())

    pack = Pack(TOY, "doubles", (entry(NAMES[0]), entry(NAMES[1])), 1_000_000, "0" * 64)
    monkeypatch.setattr(packs, "PACKS", {**PACKS, TOY: pack})
    return pack


def whole(folder: Path) -> bool:
    """Whether a folder holds the toy pack's files, byte for byte."""
    files = packs.PACKS[TOY].files
    return all(hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256 for file in files)


def zipped(folder: Path, path: Path, names: Sequence[str] = NAMES, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / Path(name).name, f"{inside}{name}")
    return path


# The table.


def test_the_table_is_complete() -> None:
    assert set(PACKS) == {"buffalo_l", "antelopev2", "yunet_sface"} and DEFAULT_PACK in PACKS
    for name in ("buffalo_l", "antelopev2"):
        pack = PACKS[name]
        (archive,) = pack.downloads
        assert pack.name == name and "non-commercial" in pack.licence and pack.restricts
        assert all(url.startswith("https://github.com/deepinsight/insightface/releases/") for url in archive.urls)
        assert all(url.endswith(f"/{name}.zip") for url in archive.urls) and archive.size == pack.size
        for digest in (archive.sha256, *(file.sha256 for file in pack.files)):
            assert len(bytes.fromhex(digest)) == 32
        assert sum(file.size for file in pack.files) < pack.size  # what is left in the archive is the larger part
    assert len({file.sha256 for pack in PACKS.values() for file in pack.files}) == 6  # one detector under two names


# Finding.


def test_a_pack_is_found_in_the_library_then_in_insightfaces_folder(tmp_path: Path, unpacked: Path) -> None:
    root, home = tmp_path / "library", tmp_path / "home"
    with pytest.raises(NotFoundError) as error:
        find_pack(TOY, root, home)
    assert (error.value.reason, error.value.values["name"]) == ("face_models_missing", TOY)
    shared = home / ".insightface" / "models" / TOY
    nested = Path(shutil.copytree(unpacked, shared / TOY))  # as insightface itself unpacks antelopev2
    assert find_pack(TOY, root, home) == nested
    shutil.copytree(unpacked, shared, dirs_exist_ok=True)
    assert find_pack(TOY, root, home) == shared
    installed = Path(shutil.copytree(unpacked, pack_folder(TOY, root)))
    assert find_pack(TOY, root, home) == installed
    assert pack_in(installed) is not None and pack_in(root) is None


def test_an_incomplete_pack_is_not_found(tmp_path: Path, unpacked: Path) -> None:
    folder = Path(shutil.copytree(unpacked, pack_folder(TOY, tmp_path)))
    (folder / NAMES[1]).write_bytes((folder / NAMES[1]).read_bytes()[:-1])  # a download that was cut short
    with pytest.raises(NotFoundError):
        find_pack(TOY, tmp_path, tmp_path)


def test_an_unknown_pack_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as error:
        find_pack("buffalo_x", tmp_path)
    assert "buffalo_l" in error.value.hint


# Licences.


def test_a_licence_is_accepted_once(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as error:
        require_accepted(TOY, tmp_path)
    assert (error.value.reason, error.value.values["name"]) == ("licence_not_accepted", TOY)
    assert "non-commercial" in error.value.problem
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    accept(TOY, tmp_path, when)
    require_accepted(TOY, tmp_path)
    assert accepted_at(TOY, tmp_path) == when
    assert accepted_at("buffalo_l", tmp_path) is None


def test_a_new_licence_text_must_be_accepted_again(tmp_path: Path, toy: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(TOY, tmp_path)
    monkeypatch.setitem(packs.PACKS, TOY, replace(toy, licence="Other terms."))
    with pytest.raises(PolicyError):
        require_accepted(TOY, tmp_path)


def test_accepting_keeps_other_entries(tmp_path: Path) -> None:
    path = tmp_path / LICENCES_FILE
    path.write_text('{"sd15": {"anything": 1}}')
    accept(TOY, tmp_path)
    accept("buffalo_l", tmp_path)
    entries = json.loads(path.read_text())
    assert set(entries) == {"sd15", TOY, "buffalo_l"} and entries["sd15"] == {"anything": 1}
    assert "non-commercial" in entries[TOY]["licence"]


@pytest.mark.parametrize("text", ["{", "[]", '"yes"'])
def test_a_broken_licence_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / LICENCES_FILE).write_text(text)
    for use in (lambda: require_accepted(TOY, tmp_path), lambda: accept(TOY, tmp_path)):
        with pytest.raises(IntegrityError, match=LICENCES_FILE):
            use()
    assert (tmp_path / LICENCES_FILE).read_text() == text


def test_an_invalid_date_is_an_error(tmp_path: Path, toy: Pack) -> None:
    entry = {"text_sha256": toy.licence_sha256, "accepted": "yesterday"}
    (tmp_path / LICENCES_FILE).write_text(json.dumps({TOY: entry}))
    with pytest.raises(IntegrityError):
        accepted_at(TOY, tmp_path)


# Choosing.


def test_the_choice_wins_then_the_models_own_then_the_default(
    tmp_path: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = choose_face_models(None, "mini", tmp_path, tmp_path)
    assert (bundled / "detector.onnx").is_file() and "mini" in bundled.parts
    assert choose_face_models(str(bundled), "owner/model", tmp_path, tmp_path) == bundled
    with pytest.raises(NotFoundError, match="buffalo_l"):
        choose_face_models(None, "owner/model", tmp_path, tmp_path)
    monkeypatch.setattr(packs, "DEFAULT_PACK", TOY)
    install_pack(TOY, unpacked, tmp_path)
    for choice in (None, TOY, str(unpacked)):  # a known pack needs its licence in any folder
        with pytest.raises(PolicyError):
            choose_face_models(choice, "owner/model", tmp_path, tmp_path)
    accept(TOY, tmp_path)
    assert choose_face_models(None, "owner/model", tmp_path, tmp_path) == pack_folder(TOY, tmp_path)
    assert choose_face_models(str(unpacked), "mini", tmp_path, tmp_path) == unpacked


# Installing.


@pytest.mark.parametrize("layout", ["flat", "nested", "folder", "folder in folder", "windows"])
def test_every_layout_gives_the_same_folder_and_it_works(tmp_path: Path, unpacked: Path, layout: str) -> None:
    if layout == "folder":
        source = unpacked
    elif layout == "folder in folder":
        source = unpacked.parent
    else:
        inside = {"flat": "", "nested": "toy/", "windows": "toy\\"}[layout]
        source = zipped(unpacked, tmp_path / "toy.zip", inside=inside)
        with zipfile.ZipFile(source, "a") as archive:
            archive.writestr(f"{inside}genderage.onnx", b"not needed")
    folder = install_pack(TOY, source, tmp_path / "library")
    assert folder == pack_folder(TOY, tmp_path / "library")
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert whole(folder)
    assert [path.name for path in folder.parent.iterdir()] == [TOY]
    if layout == "flat":
        photo = photo_of((1, 1)).resize((256, 256), Image.Resampling.NEAREST)
        assert len(OnnxFaceAnalyser(folder).analyse(photo)) == 1


def with_extra_member(name: str, link: bool = False) -> Callable[[Path, Path], None]:
    """An archive that is right but for one member more."""

    def write(folder: Path, path: Path) -> None:
        zipped(folder, path)
        with zipfile.ZipFile(path, "a") as archive:
            member = zipfile.ZipInfo(name)
            member.external_attr = ((stat.S_IFLNK if link else stat.S_IFREG) | 0o644) << 16
            archive.writestr(member, b"../../etc/passwd" if link else b"hello")

    return write


def altered(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    """An archive whose detector differs from the published one."""

    def write(folder: Path, path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(NAMES[0], change((folder / NAMES[0]).read_bytes()))
            archive.write(folder / NAMES[1], NAMES[1])

    return write


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    """An archive whose bytes were changed after it was made."""

    def write(folder: Path, path: Path) -> None:
        path.write_bytes(change(zipped(folder, path).read_bytes()))

    return write


def encrypted(data: bytes) -> bytes:
    """Set the flag of the first member, in its own header and in the directory."""
    central = data.index(b"PK\x01\x02")
    changed = bytearray(data)
    changed[6] |= 1
    changed[central + 8] |= 1
    return bytes(changed)


HOSTILE: dict[str, Callable[[Path, Path], object]] = {
    "leads up": with_extra_member("../outside.txt"),
    "leads up with backslashes": with_extra_member("..\\outside.txt"),
    "absolute": with_extra_member("/outside.txt"),
    "a drive": with_extra_member("C:/outside.txt"),
    "a link": with_extra_member("toy/link", link=True),
    "twice": with_extra_member("toy/detector.onnx"),
    "other content": altered(lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "shorter": altered(lambda data: data[:-1]),
    "longer": altered(lambda data: data + b"\0"),
    "a zip bomb": altered(lambda data: data + bytes(8_000_000)),
    "one file missing": lambda folder, path: zipped(folder, path, NAMES[:1]),
    "too deep": lambda folder, path: zipped(folder, path, inside="a/b/"),
    "cut": damaged(lambda data: data[: len(data) // 2]),
    "flipped": damaged(lambda data: data[:5000] + bytes(64) + data[5064:]),
    "encrypted": damaged(encrypted),
    "no zip": lambda folder, path: path.write_bytes(b"<html>404</html>"),
    "empty": lambda folder, path: path.write_bytes(b""),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_wrong_archive_is_refused_and_nothing_changes(tmp_path: Path, unpacked: Path, kind: str) -> None:
    root, archive = tmp_path / "in" / "library", tmp_path / "toy.zip"
    before = install_pack(TOY, unpacked, root)
    HOSTILE[kind](unpacked, archive)
    with pytest.raises(IntegrityError, match=r"toy\.zip") as error:
        install_pack(TOY, archive, root)
    assert "download" in error.value.hint
    assert whole(before)  # what was there before still stands, and nothing else
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted([*NAMES, "toy.zip"])


def test_an_archive_with_too_many_files_is_refused(tmp_path: Path, unpacked: Path) -> None:
    path = zipped(unpacked, tmp_path / "toy.zip")
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(100):
            archive.writestr(f"{number}.txt", b"")
    with pytest.raises(IntegrityError, match="102 files"):
        install_pack(TOY, path, tmp_path)


def test_a_missing_archive_hints_at_its_url(tmp_path: Path) -> None:
    for source in (tmp_path / "toy.zip", tmp_path):
        with pytest.raises(NotFoundError) as error:
            install_pack(TOY, source, tmp_path / "library")
        assert "https://github.com/deepinsight/insightface" in error.value.hint
    assert not (tmp_path / "library").exists()
