"""The people and bundles of one user, on disk.

    <root>/identities/<family>-<table hash>/<name>.safetensors      people, one shelf per model
    <root>/bundles/<model>-<table hash>/                            what `celebctl export` makes (.origin: of what)
    <root>/unfinished/<shelf>/<names>.checkpoint                    what an interrupted `celebctl learn` leaves
    <root>/cache/, <root>/locks/
    <root>/cache/engines/                                           TensorRT engines, see celebctl_runtime.backends.engines

A person belongs to the token table they were learned for, so a name is unique on its shelf, not everywhere. Files are
written whole or not at all; a name that is being learned is locked, and the system drops the lock with its process.
What a file or a user says (family, hash, name, model, shelf) becomes part of a path in ``Library._place`` only.
What this module does not know: torch, how people are learned, what is inside a bundle.
"""

import contextlib
import difflib
import re
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from celebctl_models.checkpoints.known_models import KNOWN
from celebctl_runtime.errors import BusyError, IntegrityError, NotFoundError, UsageError
from celebctl_runtime.files import atomic_write, translate_os_errors
from celebctl_runtime.identity import Identity, check_key, check_name
from celebctl_runtime.paths import data_root

SUFFIX = ".safetensors"
HASH_DIGITS = 8

_SHELF = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
_MAX_MODEL = 100  # characters of a model's name in the name of its bundle
_PART = re.compile(r"\.?\w[\w.+ -]*")  # of a path: no separator, no way up, nothing that a shell or glob reads


def format_model_key(family: str, table_hash: str) -> str:
    """The folder name of a model's people: short, and safe on every file system.

    Raises IntegrityError for a family or hash that cannot be part of a file name.
    """
    return f"{check_key('a model family', family)}-{check_key('a table hash', table_hash)[:HASH_DIGITS]}"


def check_shelf(model_key: str) -> str:
    """``shelf`` when it could be a folder of people. Raises UsageError: it is what a user typed."""
    if not _SHELF.fullmatch(model_key):
        raise UsageError(f"{model_key[:80]!r} cannot be a model of people", "celebctl list shows those there are")
    return model_key


@dataclass(frozen=True)
class IdentityFile:
    """Where one person is kept."""

    name: str
    model_key: str
    path: Path

    def load(self) -> Identity:
        """Read the file; its own name wins over the one inside. Raises IntegrityError when it is damaged."""
        _refuse_outside(self.path, self.path.parent.parent)
        identity = Identity.load(self.path)
        return identity if identity.name == self.name else identity.renamed(self.name)


class Library:
    """The user's people and bundles below one folder; an empty library needs no folder yet."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else data_root()

    @property
    def engines(self) -> Path:
        """The cache folder of TensorRT engines, which may not exist yet."""
        return self.root / "cache" / "engines"

    # People. `shelf` limits a call to one model; without it a name must be unique over all of them.

    def entries(self, model_key: str | None = None) -> list[IdentityFile]:
        """Everybody, sorted by name, then shelf. Files with names that no person can have are left alone.

        Raises UsageError when `shelf` cannot be one.
        """
        place = self.root / "identities"
        model_keys = [path.name for path in _listed(place) if _SHELF.fullmatch(path.name)]
        if model_key is not None:
            model_keys = [name for name in model_keys if name == check_shelf(model_key)]
        files = [path for name in model_keys for path in _listed(place / name) if _is_person(path)]
        files.sort(key=lambda path: (path.stem, path.parent.name))
        return [IdentityFile(path.stem, path.parent.name, path) for path in files]

    def names(self, model_key: str | None = None) -> list[str]:
        """Names in alphabetical order, each once."""
        return list(dict.fromkeys(entry.name for entry in self.entries(model_key)))

    def find(self, name: str, model_key: str | None = None) -> IdentityFile:
        """The entry called `name`. Raises NotFoundError with near names, UsageError when several models know one."""
        wanted = check_name(name)
        found = [entry for entry in self.entries(model_key) if entry.name == wanted]
        if not found:
            self._not_found(wanted, model_key)
        if len(found) > 1:
            model_keys = ", ".join(entry.model_key for entry in found)
            hint = f"say which: --shelf {found[0].model_key}"
            raise UsageError(f"several models have a person {wanted}: {model_keys}", hint)
        return found[0]

    def load(self, name: str, model_key: str | None = None) -> Identity:
        """The person called `name`."""
        return self.find(name, model_key).load()

    def save(self, identity: Identity, overwrite: bool = False) -> Path:
        """Keep a person on the shelf of their model; returns the file.

        Raises UsageError when the name is taken and `overwrite` is not given, Busy when another process has it.
        """
        model_key = format_model_key(identity.family, identity.table_hash)
        with self.reserve([identity.name], model_key):
            if not overwrite:
                self.require_free([identity.name], model_key)
            path = self._path(identity.name, model_key)
            identity.save(path)
        return path

    def forget(self, name: str, model_key: str | None = None) -> Path:
        """Delete a person and what unfinished learning left of them; returns where the file was."""
        entry = self.find(name, model_key)
        with self.reserve([entry.name], entry.model_key), translate_os_errors(entry.path):
            self._path(entry.name, entry.model_key).unlink(missing_ok=True)
            for checkpoint in self.checkpoint([entry.name], entry.model_key).parent.glob("*.checkpoint"):
                if entry.name in checkpoint.stem.split("+"):
                    checkpoint.unlink(missing_ok=True)
        return entry.path

    def rename(self, old: str, new: str, model_key: str | None = None) -> Path:
        """Give a person another name; returns the new file. A crash between the two steps leaves both names."""
        entry = self.find(old, model_key)
        wanted = check_name(new)
        if wanted == entry.name:
            raise UsageError(f"{wanted} is the name already", "give a different one")
        with self.reserve([entry.name, wanted], entry.model_key), translate_os_errors(entry.path):
            self.require_free([wanted], entry.model_key)
            path = self._path(wanted, entry.model_key)
            entry.load().renamed(wanted).save(path)
            entry.path.unlink(missing_ok=True)
        return path

    def require_free(self, names: Iterable[str], model_key: str) -> None:
        """Raise UsageError when one of `names` is on the shelf already."""
        for name in names:
            if self._path(name, model_key).exists():
                raise UsageError(
                    f"you already know {name}",
                    f"take another name, or replace the old one with --force (celebctl show {name} tells who it is)",
                )

    @contextlib.contextmanager
    def reserve(self, names: Sequence[str], model_key: str) -> Generator[None]:
        """Hold `names` on a shelf while something long goes on. Raises Busy when another process holds one.

        May be nested within a process. The lock is the system's: it ends with the process, however that ends.
        """
        from filelock import FileLock, Timeout

        with contextlib.ExitStack() as held:
            for name in sorted(set(names)):  # one order for everybody, so that no two processes wait for each other
                path = self._place("locks", f"{check_shelf(model_key)}.{name}.lock")
                with translate_os_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    lock = FileLock(path, timeout=0, is_singleton=True)
                    try:
                        held.enter_context(lock)
                    except Timeout:
                        raise BusyError(
                            f"another celebctl is working on {name}", "wait for it to finish, or use another name"
                        ) from None
            yield

    def checkpoint(self, names: Sequence[str], model_key: str) -> Path:
        """Where learning `names` together keeps its place."""
        return self._place("unfinished", check_shelf(model_key), f"{'+'.join(names)}.checkpoint")

    # Bundles and what can be made again.

    def bundle_path(self, model: str, table_hash: str) -> Path:
        """Where the bundle of a model is made. Of the model's name, what a file name had better not hold is ``_``."""
        name = re.sub(r"^[^\w]+|[^\w.+ -]", "_", model)[:_MAX_MODEL]
        return self._place("bundles", f"{name or '_'}-{check_key('a table hash', table_hash)[:HASH_DIGITS]}")

    def bundles(self) -> list[Path]:
        """Folders with a manifest, the one exported last first."""
        folders = [path.parent for path in (self.root / "bundles").glob("[!.]*/manifest.json")]
        return sorted(folders, key=_exported_at, reverse=True)

    def remember_origin(self, bundle: Path, model: str) -> None:
        """Keep beside a bundle of the library what `model` it was made of: two folders may have the same name."""
        atomic_write(self._origin(bundle), origin_of(model).encode())

    def origin(self, bundle: Path) -> str | None:
        """What was remembered; None for a bundle that was brought here by other means."""
        try:
            return self._origin(bundle).read_text(encoding="utf-8")
        except OSError:
            return None

    def cache(self) -> Path:
        """For what can be made again, such as a celeb basis. Made when it is missing."""
        path = self.root / "cache"
        with translate_os_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def _path(self, name: str, model_key: str) -> Path:
        return self._place("identities", check_shelf(model_key), f"{check_name(name)}{SUFFIX}")

    def _place(self, area: str, *parts: str) -> Path:
        """A path below `area`, a folder of the library. Raises IntegrityError when it would lie anywhere else."""
        for part in parts:
            if not _PART.fullmatch(part):
                raise IntegrityError(f"{part[:80]!r} cannot be a file name", "restore the file that says so")
        path = self.root.joinpath(area, *parts)
        _refuse_outside(path.parent, self.root / area)
        return path

    def _origin(self, bundle: Path) -> Path:
        return bundle.with_name(f".{bundle.name}.origin")

    def _not_found(self, name: str, model_key: str | None) -> NoReturn:
        known = self.names(model_key)
        near = difflib.get_close_matches(name, known, n=1)
        if near:
            hint = f"did you mean {near[0]}?"
        elif known:
            hint = f"you know {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
        else:
            hint = f"you know nobody yet: celebctl learn face.jpg --name {name}"
        raise NotFoundError(f"you know nobody called {name}", hint)


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder; nothing when there is no such folder."""
    return list(folder.iterdir()) if folder.is_dir() else []


def _is_person(path: Path) -> bool:
    try:
        return path.suffix == SUFFIX and check_name(path.stem) == path.stem and path.is_file()
    except UsageError:
        return False


def _refuse_outside(path: Path, folder: Path) -> None:
    """Raise IntegrityError when links lead from `path` out of `folder` (which may be a link itself)."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise IntegrityError(f"{path} leads out of the library", "put the file itself in the place of the link")


def origin_of(model: str) -> str:
    """`model` such that it means the same from every folder: an absolute path, unless it is a name or a hub id."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() and model not in KNOWN else model


def _exported_at(bundle: Path) -> float:
    """The age of the oldest file: people who move in or out renew the manifest, only an export renews everything."""
    return min((path.stat().st_mtime for path in bundle.iterdir() if path.is_file()), default=0.0)
