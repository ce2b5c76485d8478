"""The face models that insightface publishes: what they are, their licence, where they lie, how they are put there.

celebctl ships none of them and fetches none here. They are for non-commercial research only, however they were
obtained, so each is used only after somebody has accepted that, once; `licences.json` in the library keeps the answer.
An existing ~/.insightface/models is read, never written. What this module does not know: networks, downloads.
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

from celebctl_models.checkpoints.registry import card_for, locate
from celebctl_runtime.errors import IntegrityError, NotFoundError, PolicyError
from celebctl_runtime.files import atomic_directory, atomic_write, translate_os_errors

DEFAULT_PACK = "buffalo_l"
LICENCES_FILE = "licences.json"
LICENCE = (
    "The pretrained models that come with insightface are available for non-commercial research purposes only, whether"
    " they were downloaded by a program or by hand. Other uses need a licence from their authors."
)
LICENCE_SOURCE = "https://github.com/deepinsight/insightface/tree/master/model_zoo"

_RELEASES = "https://github.com/deepinsight/insightface/releases/download"
_MAX_MEMBERS = 64  # the published archives hold five files
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PackFile:
    """One network of a pack. size: bytes. sha256: hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Pack:
    """A published archive of face models and those of its files that celebctl uses.

    size, sha256: of the published archive, in bytes and hex. files: detector, recogniser, and the small network that
    estimates ages. The other networks in the archives (dense landmarks) are left there: insightface would load 150 MB
    only to set them aside.
    """

    name: str
    about: str
    size: int
    sha256: str
    files: tuple[PackFile, ...]
    licence: str = LICENCE
    licence_source: str = LICENCE_SOURCE

    @property
    def urls(self) -> tuple[str, str]:
        """Where the archive is published: the release insightface 2.x itself uses, then the older one. Same bytes."""
        return f"{_RELEASES}/model-zoo/{self.name}.zip", f"{_RELEASES}/v0.7/{self.name}.zip"

    @property
    def licence_sha256(self) -> str:
        """Of the licence's text: another text asks again."""
        return hashlib.sha256(self.licence.encode()).hexdigest()


# Sizes and hashes as published with the release's assets; the files' own were compared between several projects that
# pin them. Both archives hold one and the same detector under two names, and the same estimator of ages.
_DETECTOR = 16_923_827, "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"
_AGES = PackFile("genderage.onnx", 1_322_532, "4fde69b1c810857b88c64a335084f1c3fe8f01246c9a191b48c7bb756d6652fb")
PACKS: dict[str, Pack] = {
    pack.name: pack
    for pack in (
        Pack(
            "buffalo_l",
            "SCRFD-10GF detector, ResNet-50 recogniser trained on WebFace600K",
            288_621_354,
            "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
            (
                PackFile("det_10g.onnx", *_DETECTOR),
                PackFile(
                    "w600k_r50.onnx", 174_383_860, "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43"
                ),
                _AGES,
            ),
        ),
        Pack(
            "antelopev2",
            "SCRFD-10GF detector, ResNet-100 recogniser trained on Glint360K",
            360_662_982,
            "8e182f14fc6e80b3bfa375b33eb6cff7ee05d8ef7633e738d1c89021dcf0c5c5",
            (
                PackFile("scrfd_10g_bnkps.onnx", *_DETECTOR),
                PackFile(
                    "glintr100.onnx", 260_665_334, "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf"
                ),
                _AGES,
            ),
        ),
    )
}


def known_pack(name: str) -> Pack:
    """The pack called `name`. Raises NotFoundError for any other name."""
    if name not in PACKS:
        raise NotFoundError(f"there is no pack of face models called {name!r}", f"known packs: {', '.join(PACKS)}")
    return PACKS[name]


# Where packs lie.


def pack_folder(name: str, root: Path) -> Path:
    """Where the library below `root` keeps a pack."""
    return root / "faces" / name


def find_pack(name: str, root: Path, home: Path | None = None) -> Path:
    """The folder that holds a pack's files: the library's below `root`, or insightface's own in `home`.

    Names and sizes are looked at, contents are not. `home`: default the user's. Raises NotFoundError with the command that
    brings the pack.
    """
    pack = known_pack(name)
    theirs = (home or Path.home()) / ".insightface" / "models" / name
    # insightface unpacks antelopev2's archive, which has a folder of its own, one level too deep for itself.
    for folder in (pack_folder(name, root), theirs, theirs / name):
        if _holds(folder, pack):
            return folder
    megabytes = pack.size / 1e6
    raise NotFoundError(f"the face models {name} are not on this machine", f"celebctl setup {name}  ({megabytes:.0f} MB)")


def pack_in(folder: Path) -> Pack | None:
    """The known pack whose files lie in `folder`, by names and sizes; None for face models of other origin."""
    return next((pack for pack in PACKS.values() if _holds(folder, pack)), None)


def choose_face_models(said: str | None, model: str | Path, root: Path, home: Path | None = None) -> Path:
    """The folder of face models for learning with `model`.

    `said` is what somebody set: the name of a pack or a folder. Otherwise the models that the diffusion model brings
    along, otherwise the default pack. Raises NotFoundError when there are none, PolicyError when they are a published
    pack whose licence nobody has accepted.
    """
    if said is None:
        place = locate(model)
        brought = card_for(place.path, place.name, place.source).faces_dir if place.kind == "folder" else None
        if brought is not None:
            return brought
    name = said or DEFAULT_PACK
    folder = find_pack(name, root, home) if name in PACKS else Path(name).expanduser()
    pack = pack_in(folder)
    if pack is not None:
        require_accepted(pack.name, root)
    return folder


# Licences.


def accepted_at(name: str, root: Path) -> datetime | None:
    """When the pack's licence, as it reads now, was accepted in the library below `root`; None when it was not."""
    pack = known_pack(name)
    entry = _licences(root).get(name)
    if not isinstance(entry, dict):
        return None
    said = cast(dict[str, Any], entry)
    if said.get("text_sha256") != pack.licence_sha256:
        return None
    try:
        return datetime.fromisoformat(str(said.get("accepted")))
    except ValueError as error:
        raise _broken(root / LICENCES_FILE, f"{name}: {error}") from error


def accept(name: str, root: Path, now: datetime | None = None) -> None:
    """Note that somebody has accepted the pack's licence. Other entries of the file stay as they are."""
    from filelock import FileLock

    pack = known_pack(name)
    path = root / LICENCES_FILE
    lock = root / "locks" / f"{LICENCES_FILE}.lock"
    with translate_os_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            entry = {
                "licence": pack.licence,
                "source": pack.licence_source,
                "text_sha256": pack.licence_sha256,
                "accepted": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
            }
            atomic_write(path, json.dumps({**_licences(root), name: entry}, indent=2).encode())


def require_accepted(name: str, root: Path) -> None:
    """Raise PolicyError, with the licence and the command that accepts it, unless it has been accepted."""
    if accepted_at(name, root) is None:
        raise PolicyError(
            f"the face models {name} may be used for non-commercial research only, and nobody has accepted that yet",
            f"celebctl setup {name} --accept-licence  (the terms: {known_pack(name).licence_source})",
        )


def _licences(root: Path) -> dict[str, Any]:
    path = root / LICENCES_FILE
    try:
        said: object = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(said, dict):
        raise _broken(path, "no JSON object")
    return cast(dict[str, Any], said)


def _broken(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(f"{path} cannot be used: {reason}", "delete it and accept the licences again")


# Putting a pack in its place.


def install_pack(name: str, archive: Path, root: Path) -> Path:
    """Put a pack's files into the library below `root`; returns their folder. Replaces an older one in one step.

    `archive` is the published zip file or a folder into which it was unpacked; in both the files may lie one folder
    deep, as antelopev2's do. Nothing is taken over but the files the table names, each with its stated size and
    SHA-256. Raises NotFoundError when there is no such archive, IntegrityError for one that is damaged, is of another
    pack, or holds paths or links that no honest archive holds.
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
    """Yield a function that opens one of the pack's files, wherever in the archive or folder it lies."""
    if archive.is_dir():
        place = _place_in(archive, pack)
        yield lambda name: (place / name).open("rb")
        return
    if not archive.is_file():
        raise NotFoundError(f"there is no archive at {archive}", f"it is published at {pack.urls[0]}")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened.infolist(), archive, pack)
            yield lambda name: opened.open(members[name])
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # zipfile says RuntimeError for an encrypted member and NotImplementedError for an unknown compression.
        raise _refused(archive, pack, f"it is no readable zip file: {error}") from error


def _place_in(folder: Path, pack: Pack) -> Path:
    for place in (folder, folder / pack.name):
        if _holds(place, pack):
            return place
    wanted = " and ".join(file.name for file in pack.files)
    raise NotFoundError(f"{folder} does not hold {wanted} as {pack.name} has them", f"unpack {pack.urls[0]} there")


def _members(infos: Sequence[zipfile.ZipInfo], archive: Path, pack: Pack) -> dict[str, zipfile.ZipInfo]:
    """The archive's members that are the pack's files, by file name. Raises IntegrityError for an odd archive."""
    wanted = {file.name for file in pack.files}
    found: dict[str, zipfile.ZipInfo] = {}
    if len(infos) > _MAX_MEMBERS:
        raise _refused(archive, pack, f"it holds {len(infos)} files")
    for info in infos:
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in info.filename:
            raise _refused(archive, pack, f"{info.filename!r} leads out of it")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _refused(archive, pack, f"{info.filename!r} is a link")
        if path.name in wanted and len(path.parts) <= 2 and not info.is_dir():
            if path.name in found:
                raise _refused(archive, pack, f"it holds {path.name} twice")
            found[path.name] = info
    if missing := sorted(wanted - set(found)):
        raise _refused(archive, pack, f"{' and '.join(missing)} not in it")
    return found


def _copy_checked(source: IO[bytes], path: Path, file: PackFile, archive: Path) -> None:
    """Copy one file and hold it against the table; never more bytes than it may have are written."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as copy:
        while size <= file.size and (block := source.read(_BLOCK)):
            size += len(block)
            digest.update(block)
            if size <= file.size:
                copy.write(block)
    if size != file.size or digest.hexdigest() != file.sha256:
        raise IntegrityError(
            f"{file.name} in {archive} is not the file that was published", "download the archive again"
        )


def _holds(folder: Path, pack: Pack) -> bool:
    """Whether the pack's files lie in `folder`, by names and sizes."""
    try:
        return all((folder / file.name).stat().st_size == file.size for file in pack.files)
    except OSError:
        return False


def _refused(archive: Path, pack: Pack, reason: str) -> IntegrityError:
    return IntegrityError(f"{archive} is not the archive of {pack.name}: {reason}", "download it again")
