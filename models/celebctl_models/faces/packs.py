"""The published face model packs: contents, licence, location, and installation.

celebctl contains none of them. insightface's packs are for non-commercial research only, so one is used only after its
licence was accepted, once; `licences.json` in the library records that. An existing ~/.insightface/models is read,
never written. `yunet_sface`, from OpenCV's model zoo, is free for any use.
"""

import contextlib
import hashlib
import json
import stat
import zipfile
import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from celebctl_models.checkpoints.registry import find_card
from celebctl_runtime.errors import IntegrityError, NotFoundError, PolicyError
from celebctl_runtime.files import atomic_directory, atomic_write, read_regular, sha256_file, translate_os_errors
from celebctl_runtime.paths import expanded
from celebctl_runtime.private_files import OWNER_ONLY, make_folder
from celebctl_runtime.strict_json import parse_json

DEFAULT_PACK = "buffalo_l"
LICENCES_FILE = "licences.json"
LICENCE = (
    "The pretrained models that come with insightface are available for non-commercial research purposes only, whether"
    " they were downloaded by a program or by hand. Other uses need a licence from their authors."
)
LICENCE_SOURCE = "https://github.com/deepinsight/insightface/tree/master/model_zoo"

_RELEASES = "https://github.com/deepinsight/insightface/releases/download"
#: The commit of OpenCV's model zoo; its files are in Git LFS, whose pointers state size and SHA-256.
_ZOO = "https://media.githubusercontent.com/media/opencv/opencv_zoo/47534e27c9851bb1128ccc0102f1145e27f23f98/models"
_MAX_NAME = 100  # characters of the name in a faces.json
_MAX_MEMBERS = 64  # the published archives hold five files
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PackFile:
    """One file of a pack: name, size in bytes, hexadecimal SHA-256, and the URLs that have these bytes, best first."""

    name: str
    size: int
    sha256: str
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pack:
    """Published face models.

    Attributes:
        name: As its publisher names it; "yunet_sface" after its two networks.
        about: One line on its networks.
        files: Those that celebctl uses: detector, recogniser and, in some packs, age estimator. insightface's archives
            also contain dense landmark networks, which insightface would load (150 MB) and not use.
        archive_size: Bytes of the zip file that has the files; 0 where they are published one by one.
        archive_sha256: Of the zip file, hexadecimal.
        licence: Its text.
        licence_source: URL of that text.
        terms: What the licence permits, in a few words.
        restricts: Whether the user must accept the licence before the pack is used.
    """

    name: str
    about: str
    files: tuple[PackFile, ...]
    archive_size: int = 0
    archive_sha256: str = ""
    licence: str = LICENCE
    licence_source: str = LICENCE_SOURCE
    terms: str = "non-commercial research only"
    restricts: bool = True

    @property
    def downloads(self) -> tuple[PackFile, ...]:
        """What is downloaded: the archive, or the files."""
        if not self.archive_size:
            return self.files
        # The release insightface 2.x itself uses, then the older one. Same bytes.
        urls = tuple(f"{_RELEASES}/{release}/{self.name}.zip" for release in ("model-zoo", "v0.7"))
        return (PackFile(f"{self.name}.zip", self.archive_size, self.archive_sha256, urls),)

    @property
    def size(self) -> int:
        """Bytes of the download."""
        return sum(file.size for file in self.downloads)

    @property
    def licence_sha256(self) -> str:
        """SHA-256 of the licence's text: a new text must be accepted again."""
        return hashlib.sha256(self.licence.encode()).hexdigest()


# Sizes and hashes as published: with insightface's release assets (the files' own were compared between several
# projects that pin them), and in the Git LFS pointers of OpenCV's model zoo. insightface's archives contain the same
# detector, under two names, and the same age estimator.
_DETECTOR = 16_923_827, "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"
_AGES = PackFile("genderage.onnx", 1_322_532, "4fde69b1c810857b88c64a335084f1c3fe8f01246c9a191b48c7bb756d6652fb")
PACKS: dict[str, Pack] = {
    pack.name: pack
    for pack in (
        Pack(
            "buffalo_l",
            "SCRFD-10GF detector, ResNet-50 recogniser trained on WebFace600K",
            (
                PackFile("det_10g.onnx", *_DETECTOR),
                PackFile(
                    "w600k_r50.onnx", 174_383_860, "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43"
                ),
                _AGES,
            ),
            288_621_354,
            "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
        ),
        Pack(
            "antelopev2",
            "SCRFD-10GF detector, ResNet-100 recogniser trained on Glint360K",
            (
                PackFile("scrfd_10g_bnkps.onnx", *_DETECTOR),
                PackFile(
                    "glintr100.onnx", 260_665_334, "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf"
                ),
                _AGES,
            ),
            360_662_982,
            "8e182f14fc6e80b3bfa375b33eb6cff7ee05d8ef7633e738d1c89021dcf0c5c5",
        ),
        Pack(
            "yunet_sface",
            "YuNet detector and SFace recogniser of OpenCV's model zoo; estimates no age",
            (
                PackFile(
                    "face_detection_yunet_2023mar.onnx",
                    232_589,
                    "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
                    (f"{_ZOO}/face_detection_yunet/face_detection_yunet_2023mar.onnx",),
                ),
                PackFile(
                    "face_recognition_sface_2021dec.onnx",
                    38_696_353,
                    "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
                    (f"{_ZOO}/face_recognition_sface/face_recognition_sface_2021dec.onnx",),
                ),
            ),
            licence="YuNet is under the MIT licence, SFace under Apache-2.0.",
            licence_source="https://github.com/opencv/opencv_zoo",
            terms="free for any use",
            restricts=False,
        ),
    )
}


def known_pack(name: str) -> Pack:
    """The pack named `name`. Raises NotFoundError for any other name."""
    if name not in PACKS:
        raise NotFoundError(f"there is no face model pack named {name!r}", f"known packs: {', '.join(PACKS)}")
    return PACKS[name]


# Location.


def pack_folder(name: str, root: Path) -> Path:
    """The folder of a pack in the library `root`; it need not exist."""
    return root / "faces" / name


def find_pack(name: str, root: Path, home: Path | None = None) -> Path:
    """The folder with a pack's files: in the library `root`, or insightface's own in `home` (default: the user's).

    Names and sizes are checked, contents are not. Raises NotFoundError.
    """
    pack = known_pack(name)
    shared = (home or Path.home()) / ".insightface" / "models" / name
    # antelopev2's archive contains a folder of its own name, so insightface unpacks it one level deeper.
    for folder in (pack_folder(name, root), shared, shared / name):
        if _has_files(folder, pack):
            return folder
    problem = f"the face models {name} ({pack.size / 1e6:.0f} MB) are not on this machine"
    raise NotFoundError(problem, "install them with install_pack", reason="face_models_missing", name=name)


def pack_in(folder: Path) -> Pack | None:
    """The known pack whose files are in `folder`, by names and sizes; None for other face models."""
    return next((pack for pack in PACKS.values() if _has_files(folder, pack)), None)


def face_models_name(folder: Path) -> str:
    """The name of the face models in a folder, recorded with what is made with them.

    A pack's name, else that in faces.json, else the folder's with the first 8 digits of the networks' SHA-256.
    """
    pack = pack_in(folder)
    if pack is not None:
        return pack.name
    with contextlib.suppress(OSError, ValueError, AttributeError):
        name: object = parse_json(read_regular(folder / "faces.json")).get("name")
        if isinstance(name, str) and name.isprintable() and 0 < len(name) <= _MAX_NAME:
            return name
    digest = hashlib.sha256("".join(sha256_file(path) for path in sorted(folder.glob("*.onnx"))).encode())
    return f"{folder.name}-{digest.hexdigest()[:8]}"


def choose_face_models(choice: str | None, model: str | Path, root: Path, home: Path | None = None) -> Path:
    """The folder of face models to use with a diffusion model.

    Args:
        choice: A pack or a folder; None: the model's own face models, else the default pack.
        model: A known name, a diffusers folder, a checkpoint file or a hub id.
        root: The library.
        home: The user's home folder.

    Raises:
        NotFoundError: The pack is not installed.
        PolicyError: The licence of the pack has not been accepted.
    """
    if choice is None:
        card = find_card(model)
        if card is not None and card.faces_dir is not None:
            return card.faces_dir
    name = choice or DEFAULT_PACK
    folder = find_pack(name, root, home) if name in PACKS else expanded(name)
    pack = pack_in(folder)
    if pack is not None:
        require_accepted(pack.name, root)
    return folder


# Licences.


def accepted_at(name: str, root: Path) -> datetime | None:
    """When the pack's licence, in its present text, was accepted in the library `root`; None when it was not."""
    pack = known_pack(name)
    entry = _licences(root).get(name)
    if not isinstance(entry, dict):
        return None
    fields = cast(dict[str, Any], entry)
    if fields.get("text_sha256") != pack.licence_sha256:
        return None
    try:
        return datetime.fromisoformat(str(fields.get("accepted")))
    except ValueError as error:
        raise _broken_licences(root / LICENCES_FILE, f"{name}: {error}") from error


def accept(name: str, root: Path, now: datetime | None = None) -> None:
    """Record that the user accepted the pack's licence. Other entries of the file are kept."""
    from filelock import FileLock

    pack = known_pack(name)
    path = root / LICENCES_FILE
    lock = root / "locks" / f"{LICENCES_FILE}.lock"
    with translate_os_errors(lock):
        make_folder(lock.parent)
        with FileLock(lock, mode=OWNER_ONLY):
            entry = {
                "licence": pack.licence,
                "source": pack.licence_source,
                "text_sha256": pack.licence_sha256,
                "accepted": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
            }
            atomic_write(path, json.dumps({**_licences(root), name: entry}, indent=2).encode())


def require_accepted(name: str, root: Path) -> None:
    """Raise PolicyError unless the pack's licence has been accepted or restricts nothing."""
    if known_pack(name).restricts and accepted_at(name, root) is None:
        terms = known_pack(name).licence_source
        raise PolicyError(
            f"the face models {name} are for {known_pack(name).terms}, and this licence has not been accepted",
            f"read {terms}, then accept it with packs.accept",
            reason="licence_not_accepted",
            name=name,
            terms=terms,
        )


def _licences(root: Path) -> dict[str, Any]:
    """The accepted licences by pack. Raises IntegrityError for a broken file."""
    path = root / LICENCES_FILE
    try:
        entries: object = parse_json(read_regular(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise _broken_licences(path, str(error)) from error
    if not isinstance(entries, dict):
        raise _broken_licences(path, "no JSON object")
    return cast(dict[str, Any], entries)


def _broken_licences(path: Path, cause: str) -> IntegrityError:
    """The error for a licences.json that cannot be used."""
    return IntegrityError(f"{path} cannot be used: {cause}", "delete it and accept the licences again")


# Installation.


def install_pack(name: str, archive: Path, root: Path) -> Path:
    """Install a pack's files in the library `root`, atomically; returns their folder. An older one is replaced.

    Args:
        name: The pack.
        archive: The published zip file, or a folder with its files. In both the files may be one folder deep, as in
            antelopev2. Only files in the table are copied, with size and SHA-256 checked.
        root: The library.

    Raises:
        NotFoundError: There is no such archive.
        IntegrityError: The archive is damaged, of another pack, or contains links or paths that lead out of it.
    """
    pack = known_pack(name)
    target = pack_folder(name, root)
    with _opened(archive, pack) as open_file, atomic_directory(target) as folder:
        for file in pack.files:
            with open_file(file.name) as source:
                _copy_checked(source, folder / file.name, file, archive)
    return target


@contextlib.contextmanager
def _opened(archive: Path, pack: Pack) -> Generator[Callable[[str], IO[bytes]]]:
    """Yield a function that opens one of the pack's files in the archive or folder."""
    if archive.is_dir():
        folder = _unpacked_folder(archive, pack)
        yield lambda name: (folder / name).open("rb")
        return
    if not archive.is_file():
        raise NotFoundError(f"there is no archive at {archive}", f"it is published at {pack.downloads[0].urls[0]}")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened.infolist(), archive, pack)
            yield lambda name: opened.open(members[name])
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # zipfile raises RuntimeError for an encrypted member and NotImplementedError for an unknown compression.
        raise _bad_archive(archive, pack, f"not a readable zip file: {error}") from error


def _unpacked_folder(folder: Path, pack: Pack) -> Path:
    """The folder with the pack's files: `folder` or the one in it with the pack's name. Raises NotFoundError."""
    for candidate in (folder, folder / pack.name):
        if _has_files(candidate, pack):
            return candidate
    names = " and ".join(file.name for file in pack.files)
    raise NotFoundError(f"{folder} does not contain {names} of {pack.name}", f"put {pack.downloads[0].urls[0]} there")


def _members(infos: Sequence[zipfile.ZipInfo], archive: Path, pack: Pack) -> dict[str, zipfile.ZipInfo]:
    """The archive's members that are the pack's files, by file name. Raises IntegrityError for a suspicious archive."""
    wanted = {file.name for file in pack.files}
    members: dict[str, zipfile.ZipInfo] = {}
    if len(infos) > _MAX_MEMBERS:
        raise _bad_archive(archive, pack, f"it contains {len(infos)} files")
    for info in infos:
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in info.filename:
            raise _bad_archive(archive, pack, f"{info.filename!r} leads out of it")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _bad_archive(archive, pack, f"{info.filename!r} is a link")
        if path.name in wanted and len(path.parts) <= 2 and not info.is_dir():
            if path.name in members:
                raise _bad_archive(archive, pack, f"it contains {path.name} twice")
            members[path.name] = info
    if missing := sorted(wanted - set(members)):
        raise _bad_archive(archive, pack, f"it lacks {' and '.join(missing)}")
    return members


def _copy_checked(source: IO[bytes], path: Path, file: PackFile, archive: Path) -> None:
    """Copy one file and compare it with the table; never more bytes than stated are written."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as copy:
        while size <= file.size and (block := source.read(_BLOCK)):
            size += len(block)
            digest.update(block)
            if size <= file.size:
                copy.write(block)
    if size != file.size or digest.hexdigest() != file.sha256:
        raise IntegrityError(f"{file.name} in {archive} is not the published file", "download the archive again")


def _has_files(folder: Path, pack: Pack) -> bool:
    """Whether the pack's files are in `folder`, by names and sizes."""
    try:
        return all((folder / file.name).stat().st_size == file.size for file in pack.files)
    except OSError:
        return False


def _bad_archive(archive: Path, pack: Pack, cause: str) -> IntegrityError:
    """The error for an archive that cannot be used."""
    return IntegrityError(f"{archive} is not the archive of {pack.name}: {cause}", "download it again")
