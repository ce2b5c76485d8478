"""Folders whose files only their owner may read: 0700 for folders and 0600 for files, whatever the umask is.

`keep_private` names such a folder for this process; what celebctl_runtime.files writes below it is restricted before it
gets its name. Elsewhere the umask decides. Windows has no such modes: there a user's folders are private anyway.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

OWNER_ONLY = 0o600  # of a file
_OTHERS = 0o077  # the permission bits of group and others
_folders: set[str] = set()


def keep_private(folder: Path, areas: Iterable[str] = (), others: Iterable[str] = ()) -> None:
    """Restrict what this process writes below a folder to its owner, and restrict what others may read there now.

    Args:
        folder: It need not exist yet.
        areas: Names of its private folders. When ``folder`` contains no folders but these and ``others``, each that
            group or others can enter is restricted with all its files, and ``folder`` itself. A folder that contains
            more may be a project's, with folders of the same names. Links and the files of other users are left alone.
        others: Names of folders whose modes stay.

    Example:
        >>> keep_private(folder / "library", ["identities"])
        >>> is_private(folder / "library" / "identities" / "alice.safetensors")
        True
    """
    _folders.add(os.path.realpath(folder))
    if os.name != "posix":
        return
    names = set(areas)
    with contextlib.suppress(OSError):
        if names and {entry.name for entry in os.scandir(folder) if entry.is_dir()} <= names.union(others):
            for name in names:
                restrict_tree(folder / name)
            restrict(folder)


def is_private(path: Path) -> bool:
    """Whether a path, existing or not, is a folder of `keep_private` or lies below one."""
    real = os.path.realpath(path)
    return any(real == folder or real.startswith(folder + os.sep) for folder in _folders)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents; private ones with mode 0700. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        private = is_private(folder)
        folder.mkdir(0o700 if private else 0o777, exist_ok=True)
        if private:
            restrict(folder)  # a umask may leave the owner without rights, too
    path.mkdir(exist_ok=True)  # raises for a file of this name


def restrict(path: Path) -> None:
    """Take the permissions of group and others from a file or folder. Raises OSError."""
    mode = stat.S_IMODE(path.stat().st_mode)
    owner = 0o700 if path.is_dir() else OWNER_ONLY
    if os.name == "posix" and (mode & _OTHERS or mode & owner != owner):
        path.chmod(mode & ~_OTHERS | owner)


def restrict_tree(folder: Path, *, always: bool = False) -> None:
    """`restrict` a folder that group or others can enter, its content first: after an interruption it starts over.

    ``always``: also one that they cannot enter.
    """
    with contextlib.suppress(OSError):  # another user's, or a read-only file system
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or not (always or status.st_mode & _OTHERS):
            return
        for place, folders, files in os.walk(folder, topdown=False):
            for name in (*files, *folders):
                path = Path(place, name)
                if not path.is_symlink():
                    with contextlib.suppress(OSError):
                        restrict(path)
        restrict(folder)
