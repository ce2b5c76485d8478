"""Files that are either the old ones or the new ones, never half of each.

Everything celebctl keeps is written to a sibling with a hidden name, flushed to the disk and renamed. A full disk, a
read-only place or a missing permission becomes an :class:`SetupError`; what stood there before still stands.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from .errors import IntegrityError, SetupError, UsageError

_DISK_HINTS = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EROFS: "the place is read-only: choose another one, for example with CELEBCTL_HOME or -o",
    errno.EACCES: "permission is missing: choose another place, for example with CELEBCTL_HOME or -o",
    errno.EPERM: "permission is missing: choose another place, for example with CELEBCTL_HOME or -o",
    errno.ENOTDIR: "a part of the path is a file: choose another place",
    errno.EEXIST: "a file stands where a directory is needed: choose another place",
    errno.EISDIR: "a directory stands there: name a file inside it",
    errno.ENAMETOOLONG: "the path is too long: choose a shorter one",
}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def translate_os_errors(path: Path) -> Generator[None]:
    """Turn the operating system's complaints about writing ``path`` into an SetupError with a cure."""
    try:
        yield
    except OSError as error:
        hint = _DISK_HINTS.get(error.errno or 0)
        if hint is None:
            raise
        raise SetupError(f"cannot write {path}: {error.strerror}", hint) from error


def refuse_existing(path: Path, force: bool) -> None:
    """Raise UsageError when ``path`` exists, even as a dangling link, and ``force`` is not set."""
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} exists already", "choose another name, or replace it with --force")


def atomic_write(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Put ``content`` at ``path`` in one step, replacing what is there; missing parent directories are made.

    ``content`` is the bytes, or a function that writes the file whose path it is given (same suffix, same directory).
    Raises SetupError when the place cannot be written; then ``path`` is as it was before.
    """
    temporary = _sibling(path)
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
        try:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                content(temporary)
            _flush_file(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_directory(path.parent)


@contextmanager
def atomic_directory(path: Path) -> Generator[Path]:
    """Yield an empty sibling directory; when the block succeeds it becomes ``path``, otherwise it is removed.

    A directory already at ``path`` stays whole and readable until that moment. Its replacement is one system call where
    the system can exchange two directories (Linux), and two renames with a way back elsewhere.
    Raises SetupError when the place cannot be written.
    """
    temporary = _sibling(path)
    with translate_os_errors(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for written in temporary.rglob("*"):
                if written.is_file():
                    _flush_file(written)
            _replace_directory(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush_directory(path.parent)


def regular_path(folder: Path, name: str) -> Path:
    """The path of the file ``name`` in ``folder``: no symbolic link on the way, and a regular file if it exists.

    ``folder`` itself may be a link, because the user named it. Raises IntegrityError.
    """
    path, parts = folder, PurePosixPath(name).parts
    for number, part in enumerate(parts, 1):
        path = path / part
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return folder / name
        if not (stat.S_ISREG(mode) if number == len(parts) else stat.S_ISDIR(mode)):
            raise _irregular(path, "a regular file" if number == len(parts) else "a directory")
    return path


def open_regular(path: Path, mode: Literal["rb", "rb+"] = "rb") -> IO[bytes]:
    """Open a regular file that exists, without following a link; for writing, one that has no second name.

    A FIFO or a device is refused at once instead of waiting for its other end. Raises IntegrityError, and OSError.
    """
    flags = os.O_RDONLY if mode == "rb" else os.O_RDWR
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # no system has all three
        flags |= getattr(os, flag, 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise _irregular(path, "a regular file") from error
        raise
    file = os.fdopen(descriptor, mode) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if file is None:
        os.close(descriptor)
        raise _irregular(path, "a regular file")
    if mode == "rb+" and os.fstat(descriptor).st_nlink > 1:
        file.close()
        raise IntegrityError(
            f"{path} is a hard link: the same file has another name, which would change too",
            "make a true copy of it in its place",
        )
    return file


def _irregular(path: Path, expected: str) -> IntegrityError:
    return IntegrityError(f"{path} is not {expected}", "a link, device or pipe is never followed: put a copy there")


def sha256_file(path: Path, count: int | None = None) -> str:
    """Hex SHA-256 of a file, or of its first ``count`` bytes."""
    digest = hashlib.sha256()
    left = count if count is not None else sys.maxsize
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def flush(file: IO[bytes]) -> None:
    """Make what was written to an open file survive a power cut."""
    file.flush()
    os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(path: Path) -> Path:
    # The suffix is kept because writers such as Pillow read the format from it.
    return path.with_name(f".{path.stem[:64]}.{os.getpid()}-{os.urandom(4).hex()}{path.suffix}")


def _flush_file(path: Path) -> None:
    with path.open("rb+") as file:
        flush(file)


def _replace_directory(new: Path, path: Path) -> None:
    if not os.path.lexists(path):
        new.rename(path)
    elif not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file", str(path))
    elif _exchange(new, path):
        shutil.rmtree(new, ignore_errors=True)
    else:
        _swap_by_renames(new, path)


def _exchange(first: Path, second: Path) -> bool:
    """Let two names trade places in one system call; False where the system or file system has no such call."""
    if sys.platform != "linux":
        return False
    import ctypes  # only when a directory is replaced: it is not free to import

    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _swap_by_renames(new: Path, path: Path) -> None:
    old = _sibling(path)
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
