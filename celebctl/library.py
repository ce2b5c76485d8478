"""The identities and bundles of one user, on disk.

    <root>/identities/<family>-<table hash>/<name>.safetensors      identities, one folder per model
    <root>/bundles/<model>-<table hash>/                            exported bundles (.NAME.origin: the model exported)
    <root>/bundles/<model>-<table hash>-<LoRA>-<hash>/              bundles with LoRAs
    <root>/checkpoints/<model key>/<names>.checkpoint               interrupted learning
    <root>/sheets/<names>+sheet.png                                 contact sheets
    <root>/cache/, <root>/locks/
    <root>/cache/face-references/                                   mean features of drawn faces (drawn_faces.py)
    <root>/cache/engines/                                           what engines compiled (celebctl_runtime.backends)

An identity belongs to the token table it was learned for, so a name is unique per model. The *model key*, such as
"sd1-0123abcd", is the name of a model's folder. Files are written whole or not at all. A name that is being learned is
locked, and the operating system drops the lock with its process. Only the owner may read what is in a library
(celebctl_runtime.private_files), and a library with other modes is restricted when it is opened. Text from files
and users (family, hash, name, model, model key) becomes part of a path in ``Library._place`` only.
"""

import contextlib
import difflib
import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from celebctl_models.checkpoints.known_models import KNOWN
from celebctl_runtime.errors import BusyError, CelebctlError, IntegrityError, NotFoundError, UsageError
from celebctl_runtime.files import atomic_write, remove_leftovers, translate_os_errors
from celebctl_runtime.identity import Identity, check_key, check_name
from celebctl_runtime.paths import data_root, expanded
from celebctl_runtime.private_files import OWNER_ONLY, keep_private, make_folder

if TYPE_CHECKING:
    from celebctl_runtime.bundle.manifest import LoraInfo

SUFFIX = ".safetensors"
HASH_DIGITS = 8
#: The folders of a library that hold people, and the others.
AREAS = ("identities", "bundles", "checkpoints", "unfinished", "cache", "locks", "sheets")
OTHER_AREAS = ("names", "faces", "models", "wildcards")

_MODEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
_JOINED = re.compile(r"(.+)-sheet(-\d+)?")  # a contact sheet of an earlier version: the names, joined by hyphens
_MAX_MODEL = 100  # characters of a model's name in the name of its bundle
_PART = re.compile(r"\.?\w[\w.+ -]*")  # of a path: no separator, no way up, nothing that a shell or glob reads


def format_model_key(family: str, table_hash: str) -> str:
    """The model key, "FAMILY-HASH": the folder of a model's identities, with eight digits of the token table's hash.

    Raises IntegrityError for a family or hash that cannot be part of a file name.

    Example:
        >>> format_model_key("sd1", "0123456789abcdef")
        'sd1-01234567'
    """
    return f"{check_key('a model family', family)}-{check_key('a table hash', table_hash)[:HASH_DIGITS]}"


def is_model_key(name: str) -> bool:
    """Whether the name of a folder could be a model key."""
    return _MODEL_KEY.fullmatch(name) is not None


def check_model_key(model_key: str) -> str:
    """`model_key`, when it could be one. Raises UsageError otherwise."""
    if not is_model_key(model_key):
        raise UsageError(
            f"{model_key[:80]!r} is not a model key",
            "Library().entries() has the model keys in use",
            reason="invalid_model_key",
            model_key=model_key,
        )
    return model_key


@dataclass(frozen=True)
class IdentityFile:
    """The file of one identity."""

    name: str
    model_key: str
    path: Path

    def load(self) -> Identity:
        """Read the identity; the file's name wins over the name inside. Raises IntegrityError when it is damaged."""
        _refuse_outside(self.path, self.path.parent.parent)
        identity = Identity.load(self.path)
        return identity if identity.name == self.name else identity.renamed(self.name)


class Library:
    """A user's identities and bundles below one folder, which is created when something is saved.

    Args:
        root: The folder; default: $CELEBCTL_HOME, or celebctl's folder in the user's data folder.

    Example:
        >>> library = Library(folder / "new library")
        >>> library.names()
        []
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else data_root()
        # Without identities it may be a project's folder that CELEBCTL_HOME names for the first time.
        keep_private(self.root, AREAS if (self.root / "identities").is_dir() else (), OTHER_AREAS)

    @property
    def engines(self) -> Path:
        """The cache folder of TensorRT engines; it may not exist yet."""
        return self.root / "cache" / "engines"

    # Identities. `model_key` limits a call to one model; without it a name must be unique over all models.

    def entries(self, model_key: str | None = None) -> list[IdentityFile]:
        """All identities, sorted by name, then model key. Files without a valid name are ignored.

        Raises UsageError for an invalid `model_key`.
        """
        place = self.root / "identities"
        model_keys = [path.name for path in _listed(place) if is_model_key(path.name)]
        if model_key is not None:
            model_keys = [name for name in model_keys if name == check_model_key(model_key)]
        files = [path for name in model_keys for path in _listed(place / name) if _is_identity_file(path)]
        files.sort(key=lambda path: (path.stem, path.parent.name))
        return [IdentityFile(path.stem, path.parent.name, path) for path in files]

    def names(self, model_key: str | None = None) -> list[str]:
        """The names, sorted, each once."""
        return list(dict.fromkeys(entry.name for entry in self.entries(model_key)))

    def find(self, name: str, model_key: str | None = None) -> IdentityFile:
        """The entry of `name`.

        Raises:
            NotFoundError: There is none (reason "unknown_identity"; the hint has similar names).
            UsageError: The name is invalid, or exists for several models (reason "ambiguous_identity").
        """
        wanted = check_name(name)
        found = [entry for entry in self.entries(model_key) if entry.name == wanted]
        if not found:
            self._not_found(wanted, model_key)
        if len(found) > 1:
            model_keys = ", ".join(entry.model_key for entry in found)
            raise UsageError(
                f"{wanted!r} exists for several models: {model_keys}",
                f"pass model_key={found[0].model_key!r}",
                reason="ambiguous_identity",
                name=wanted,
                model_key=found[0].model_key,
            )
        return found[0]

    def load(self, name: str, model_key: str | None = None) -> Identity:
        """The identity called `name`; raises as `find`, and IntegrityError for a damaged file."""
        return self.find(name, model_key).load()

    def save(self, identity: Identity, overwrite: bool = False) -> Path:
        """Save an identity under its model; returns the file.

        Raises:
            UsageError: The name is taken and `overwrite` is false (reason "name_taken").
            BusyError: Another process is learning or changing this name.
            SetupError: The file cannot be written.
        """
        model_key = format_model_key(identity.family, identity.table_hash)
        with self.reserve([identity.name], model_key):
            if not overwrite:
                self.require_free([identity.name], model_key)
            path = self._path(identity.name, model_key)
            self._remove_face_references(path)
            identity.save(path)
        return path

    def remove(self, name: str, model_key: str | None = None) -> Path:
        """Delete an identity and its checkpoints; returns the path of the file deleted. Raises as `find` and `save`."""
        entry = self.find(name, model_key)
        with self.reserve([entry.name], entry.model_key), translate_os_errors(entry.path):
            self._remove_face_references(entry.path)
            # The identity last: as long as it is there, an interrupted call can be repeated.
            self._remove_checkpoints(entry.name, entry.model_key)
            self._path(entry.name, entry.model_key).unlink(missing_ok=True)
        return entry.path

    def rename(
        self, old: str, new: str, model_key: str | None = None, copied: Callable[[Identity], object] | None = None
    ) -> Path:
        """Rename an identity and the library's contact sheets of it; returns the new file. Raises as `find` and `save`.

        Checkpoints under the old name are deleted. A crash may leave both names; then the same call finishes what it
        began.

        Args:
            old: The present name.
            new: The new one.
            model_key: Of the identity's model, when `old` exists for several.
            copied: Called with the identity under its new name while both names exist, for what else knows the old one.
        """
        entry = self.find(old, model_key)
        wanted = check_name(new)
        if wanted == entry.name:
            raise UsageError(f"the name is already {wanted!r}", "choose a different name")
        with self.reserve([entry.name, wanted], entry.model_key), translate_os_errors(entry.path):
            path, identity = self._path(wanted, entry.model_key), entry.load().renamed(wanted)
            if not _is_copy(path, identity):
                self.require_free([wanted], entry.model_key)
                identity.save(path)
            if copied is not None:
                copied(identity)
            self._remove_checkpoints(entry.name, entry.model_key)
            self._rename_sheets(entry.name, wanted)
            entry.path.unlink(missing_ok=True)
        return path

    def require_free(self, names: Iterable[str], model_key: str) -> None:
        """Raise UsageError (reason "name_taken") when one of `names` exists for the model."""
        for name in names:
            if self._path(name, model_key).exists():
                raise UsageError(
                    f"the name {name!r} is taken",
                    "choose another name, or pass overwrite=True",
                    reason="name_taken",
                    name=name,
                )

    @contextlib.contextmanager
    def reserve(self, names: Sequence[str], model_key: str) -> Generator[None]:
        """Lock `names` of a model for the length of a `with` block. Raises BusyError when another process holds one.

        May be nested within a process. The locks end with the process, however it ends.
        """
        from filelock import FileLock, Timeout

        with contextlib.ExitStack() as held:
            for name in sorted(set(names)):  # the same order everywhere prevents deadlocks
                path = self._place("locks", f"{check_model_key(model_key)}.{name}.lock")
                with translate_os_errors(path):
                    make_folder(path.parent)
                    lock = FileLock(path, timeout=0, mode=OWNER_ONLY, is_singleton=True)
                    try:
                        held.enter_context(lock)
                    except Timeout:
                        raise BusyError(
                            f"another process is working on {name!r}", "wait until it ends, or use another name"
                        ) from None
            for folder in (self.root, *self.root.glob("*/"), *self.root.glob("*/*/")):
                remove_leftovers(folder)
            yield

    def checkpoint(self, names: Sequence[str], model_key: str) -> Path:
        """The checkpoint file of learning `names` together."""
        return self._place("checkpoints", check_model_key(model_key), f"{'+'.join(names)}.checkpoint")

    def sheet(self, names: Sequence[str]) -> Path:
        """A free path for the contact sheet of these people."""
        return _free_path(self._place("sheets", f"{'+'.join(names)}+sheet.png"))

    def sheets_of(self, name: str, known: Iterable[str] = ()) -> list[Path]:
        """The contact sheets of a person in the library, sorted.

        Earlier versions joined names by hyphens: "alice-2-sheet.png" is of alice-2 where such a person is known, else
        of alice.

        Args:
            name: The person.
            known: More names of people than the library has.
        """
        known = {*self.names(), *known}
        return [path for path in sorted((self.root / "sheets").glob("*.png")) if name in _people_of(path, name, known)]

    def _rename_sheets(self, old: str, new: str) -> None:
        """Put a new name on the contact sheets of a person, beside the old one while another model has that."""
        names = [old, new] if len([entry for entry in self.entries() if entry.name == old]) > 1 else [new]
        known = set(self.names())
        for path in self.sheets_of(old):
            joined = None if "+" in path.stem else _JOINED.fullmatch(path.stem)
            if joined is None:
                people = [name for each in path.stem.split("+")[:-1] for name in (names if each == old else [each])]
                path.rename(self.sheet(list(dict.fromkeys(people))))
            else:
                text = re.sub(_any_of({old, *known}), lambda m: "-".join(names) if m[0] == old else m[0], joined[1])
                path.rename(_free_path(path.with_name(f"{text}-sheet.png")))

    def _remove_checkpoints(self, name: str, model_key: str) -> None:
        for checkpoint in self.checkpoint([name], model_key).parent.glob("*.checkpoint"):
            if name in checkpoint.stem.split("+"):
                checkpoint.unlink(missing_ok=True)

    # Bundles and caches.

    def bundle_path(self, model: str, table_hash: str, loras: "Sequence[LoraInfo]" = ()) -> Path:
        """The default folder for a model's bundle; characters unsafe in a file name become ``_``.

        Each set of LoRAs and weights has a folder of its own, named after the first file.
        """
        names = [model, *(Path(lora.file).stem for lora in loras[:1])]
        model, *more = (re.sub(r"^[^\w]+|[^\w.+ -]", "_", name)[:_MAX_MODEL] or "_" for name in names)
        folder = f"{model}-{check_key('a table hash', table_hash)[:HASH_DIGITS]}"
        for lora in more:
            digest = hashlib.sha256(repr([(each.sha256, each.weight) for each in loras]).encode()).hexdigest()
            folder += f"-{lora}-{digest[:HASH_DIGITS]}"
        return self._place("bundles", folder)

    def bundles(self) -> list[Path]:
        """The folders with a manifest, the newest export first."""
        folders = [path.parent for path in (self.root / "bundles").glob("[!.]*/manifest.json")]
        return sorted(folders, key=_exported_at, reverse=True)

    def remember_origin(self, bundle: Path, model: str) -> None:
        """Store beside a bundle which `model` it was exported from: two model folders may have the same name."""
        atomic_write(self._origin(bundle), origin_of(model).encode(errors="surrogatepass"))

    def origin(self, bundle: Path) -> str | None:
        """The model a bundle was exported from; None for a bundle copied here by other means, or when damaged."""
        try:
            return self._origin(bundle).read_text(encoding="utf-8", errors="surrogatepass")
        except (OSError, ValueError):  # missing or damaged
            return None

    def cache(self) -> Path:
        """The folder for what can be recomputed, such as a celeb basis; created when missing."""
        path = self.root / "cache"
        with translate_os_errors(path):
            make_folder(path)
        return path

    def face_reference(self, digest: str, settings: str) -> Path:
        """The file of what a drawn person's face is recognised by; both arguments are hexadecimal digests."""
        return self._place("cache", "face-references", f"{digest[:32]}-{settings[:32]}.npy")

    def face_references(self, digest: str) -> list[Path]:
        """The files of `face_reference` of one person, sorted."""
        return sorted((self.root / "cache" / "face-references").glob(f"{digest[:32]}-*.npy"))

    def _remove_face_references(self, identity: Path) -> None:
        """Delete what a person is recognised by; nothing for a file that is missing or damaged."""
        with contextlib.suppress(CelebctlError):
            for path in self.face_references(Identity.load(identity).digest):
                path.unlink(missing_ok=True)

    def _path(self, name: str, model_key: str) -> Path:
        return self._place("identities", check_model_key(model_key), f"{check_name(name)}{SUFFIX}")

    def _place(self, area: str, *parts: str) -> Path:
        """A path below `area`, a folder of the library. Raises IntegrityError when it would lie elsewhere."""
        for part in parts:
            if not _PART.fullmatch(part):
                raise IntegrityError(f"{part[:80]!r} cannot be part of a file name", "restore the file it comes from")
        path = self.root.joinpath(area, *parts)
        _refuse_outside(path.parent, self.root / area)
        return path

    def _origin(self, bundle: Path) -> Path:
        return bundle.with_name(f".{bundle.name}.origin")

    def _not_found(self, name: str, model_key: str | None) -> NoReturn:
        known = self.names(model_key)
        near = difflib.get_close_matches(name, known, n=1)
        problem = f"there is no identity {name!r}"
        if not known:
            raise NotFoundError(
                problem, "learn one: Model.load().learn(photo, name=...)", reason="empty_library", name=name
            )
        names = f"{', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
        hint = f"did you mean {near[0]}?" if near else f"known: {names}"
        raise NotFoundError(problem, hint, reason="unknown_identity", name=name)


def _people_of(sheet: Path, name: str, known: set[str]) -> list[str]:
    """The people in the name of a contact sheet; only the known ones for a sheet of an earlier version."""
    if "+" in sheet.stem:
        return sheet.stem.split("+")[:-1]
    joined = _JOINED.fullmatch(sheet.stem)
    return [] if joined is None else re.findall(_any_of({name, *known}), joined[1])


def _any_of(names: set[str]) -> str:
    """The pattern of a name between hyphens, the longest where several match."""
    return rf"(?<![^-])(?:{'|'.join(sorted(names, key=len, reverse=True))})(?![^-])"


def _free_path(path: Path) -> Path:
    """`path`, or its first numbered variant that does not exist."""
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate


def _listed(folder: Path) -> list[Path]:
    """The entries of a folder; none when there is no such folder."""
    return list(folder.iterdir()) if folder.is_dir() else []


def _is_identity_file(path: Path) -> bool:
    try:
        return path.suffix == SUFFIX and check_name(path.stem) == path.stem and path.is_file()
    except UsageError:
        return False


def _is_copy(path: Path, identity: Identity) -> bool:
    """Whether a file holds this identity and nothing else."""
    try:
        return path.is_file() and Identity.load(path) == identity
    except IntegrityError:
        return False


def _refuse_outside(path: Path, folder: Path) -> None:
    """Raise IntegrityError when links lead from `path` out of `folder` (which may be a link itself)."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise IntegrityError(f"{path} leads out of the library", "replace the link by the file itself")


def origin_of(model: str) -> str:
    """`model` independent of the current folder: an absolute path, unless it is a known name or a hub id."""
    path = expanded(model)
    try:
        return str(path.resolve()) if path.exists() and model not in KNOWN else model
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return model


def _exported_at(bundle: Path) -> float:
    """The time of the oldest file: adding people renews the manifest, only an export renews every file."""
    return min((path.stat().st_mtime for path in bundle.iterdir() if path.is_file()), default=0.0)
