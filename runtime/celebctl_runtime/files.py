"""Atomic writes, safe opening and hashing of files.

A file or folder is written under a hidden name beside its destination, flushed to the disk and renamed, so a reader
sees either the old content or the new. A full disk, a read-only file system or a missing permission becomes a
:class:`SetupError`, and the old content stays. Modes are those of private_files.py. What a killed process leaves under
a hidden name is removed by the first process that writes to the same folder a day later.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from .errors import IntegrityError, InvalidInputError, SetupError, UsageError
from .private_files import is_private, make_folder, restrict, restrict_tree

#: errno -> (reason, hint)
_WRITE_ERRORS = {
    errno.ENOSPC: ("disk_full", "free some space and try again"),
    errno.EDQUOT: ("disk_full", "free some space and try again"),
    errno.EROFS: ("not_writable", "choose a folder that can be written to"),
    errno.EACCES: ("not_writable", "choose a folder that can be written to"),
    errno.EPERM: ("not_writable", "choose a folder that can be written to"),
    errno.ENOTDIR: ("invalid_path", "a part of the path is a file: choose another path"),
    errno.EEXIST: ("invalid_path", "there is a file where a directory is needed: choose another path"),
    errno.EISDIR: ("invalid_path", "the path is a directory: name a file inside it"),
    errno.ENAMETOOLONG: ("invalid_path", "choose a shorter path"),
    errno.ELOOP: ("invalid_path", "the path runs through a loop of links: choose another path"),
    errno.EINVAL: ("invalid_path", "choose another path"),
    errno.EFBIG: ("file_too_large", "raise the limit on file sizes (ulimit -f)"),
}
_OTHER_WRITE_ERROR = ("not_writable", "choose another folder, and check the disk")
MAX_FILE = 256 << 20  # bytes read at once from a file of unknown origin
#: Matches the hidden names of this module; groups: stem (its first 64 characters), process.
TEMPORARY = re.compile(r"\.(?P<stem>.+)\.celebctl-(?P<process>\d+)-[0-9a-f]{8}(\.[^.]*)?", re.DOTALL)
_LEFTOVER_AGE = 86_400.0  # seconds
_cleaned: set[Path] = set()  # folders that this process has looked through
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def translate_os_errors(path: Path) -> Generator[None]:
    """Turn an OSError raised while writing ``path`` into a SetupError with a hint."""
    try:
        yield
    except OSError as error:
        reason, hint = _WRITE_ERRORS.get(error.errno or 0, _OTHER_WRITE_ERROR)
        problem = f"cannot write {path}: {error.strerror or error}"
        raise SetupError(problem, hint, reason=reason, path=path) from error


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise UsageError when ``path`` exists, even as a dangling link, unless ``overwrite`` is set."""
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)


def require_writable(folder: Path) -> None:
    """Raise SetupError unless files can be written into ``folder``, or it can be made: before long work."""
    with translate_os_errors(folder):
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a part of the path is a file", str(place))
        trial = _temporary_path(place / "trial")
        trial.touch(exist_ok=False)
        trial.unlink()


def _exists(path: Path) -> UsageError:
    hint = "choose another name, or pass overwrite=True"
    return UsageError(f"{path} exists already", hint, reason="file_exists", path=path)


def atomic_write(path: Path, content: bytes | Callable[[Path], object], *, overwrite: bool = True) -> None:
    """Write ``path`` in one step; missing parent directories are created.

    Args:
        path: The file to write.
        content: Its bytes, or a function that writes the path it is given (same suffix, same directory).
        overwrite: Replace a file that exists. If False, of several processes that write ``path`` at the same time one
            succeeds.

    Raises:
        UsageError: ``path`` exists and ``overwrite`` is False (reason "file_exists").
        SetupError: When the file cannot be written. Then ``path`` is unchanged.
    """
    temporary = _temporary_path(path)
    with translate_os_errors(path):
        make_folder(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
        remove_leftovers(path.parent)
        try:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                content(temporary)
            if is_private(path):
                restrict(temporary)
            _flush_file(temporary)
            if overwrite:
                temporary.replace(path)
            else:
                _rename_new(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_directory(path.parent)


@contextmanager
def atomic_directory(path: Path) -> Generator[Path]:
    """Yield an empty temporary directory; when the block succeeds it becomes ``path``, otherwise it is removed.

    A directory already at ``path`` stays complete and readable until then. It is replaced by one system call where the
    system can exchange two directories (Linux), elsewhere by two renames, undone on failure.

    Raises:
        SetupError: When the directory cannot be written.
    """
    temporary = _temporary_path(path)
    with translate_os_errors(path):
        make_folder(temporary)
        remove_leftovers(path.parent)
        try:
            yield temporary
            for written in temporary.rglob("*"):
                if written.is_file():
                    _flush_file(written)
            if is_private(path):
                restrict_tree(temporary, always=True)
            _replace_directory(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush_directory(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that no longer run left half-written in a folder more than a day ago.

    Only files and folders under the hidden names of this module. A process looks through a folder once. The age
    protects what a process on another machine is writing, the process what is being written while a clock jumps.
    Nothing is raised: what stays is tried again by the next process.
    """
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    with suppress(OSError):
        for entry in os.scandir(folder):
            match = TEMPORARY.fullmatch(entry.name)
            if match is None or _is_running(int(match["process"])):
                continue
            if time.time() - entry.stat(follow_symlinks=False).st_mtime < _LEFTOVER_AGE:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def regular_path(folder: Path, name: str) -> Path:
    """The path of the file ``name`` in ``folder``, free of symbolic links and a regular file if it exists.

    ``folder`` itself may be a link, because the user named it. Raises IntegrityError otherwise.
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


def read_regular(path: Path, limit: int = MAX_FILE) -> bytes:
    """The content of a file that the user named; links are followed.

    Raises:
        OSError: It cannot be read. A directory, device, pipe or socket is refused at once instead of blocking.
        InvalidInputError: It has more than ``limit`` bytes.
    """
    flags = os.O_RDONLY
    for flag in ("O_NONBLOCK", "O_BINARY", "O_CLOEXEC"):  # no system has all three
        flags |= getattr(os, flag, 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, "the path contains a NUL character") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ENXIO, "it is a device or pipe", str(path))
        content = b"" if status.st_size > limit else _read_up_to(descriptor, limit)
    finally:
        os.close(descriptor)
    if status.st_size > limit or len(content) > limit:
        problem = f"{path} has {status.st_size / 1e6:,.0f} MB; the limit is {limit / 1e6:,.0f} MB"
        raise InvalidInputError(problem, "name a smaller file", reason="file_too_large", path=path, limit=limit)
    return content


def _read_up_to(descriptor: int, limit: int) -> bytes:
    """The bytes of an open file, at most one more than ``limit``: it may grow meanwhile, and /proc tells no size."""
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read(limit + 1)


def open_regular(path: Path, mode: Literal["rb", "rb+"] = "rb") -> IO[bytes]:
    """Open an existing regular file without following a link; for writing, a file without a second hard link.

    A FIFO or a device is refused at once instead of blocking. Raises IntegrityError, and OSError as ``open`` does.
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
            "replace it with a copy of the file",
            reason="irregular_file",
            path=path,
        )
    return file


def _irregular(path: Path, expected: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is not {expected}",
        "links, devices and pipes are not followed: replace it with a copy",
        reason="irregular_file",
        path=path,
    )


def sha256_file(path: Path, count: int | None = None) -> str:
    """Hex SHA-256 of a file, or of its first ``count`` bytes."""
    digest = hashlib.sha256()
    remaining = sys.maxsize if count is None else count
    with path.open("rb") as file:
        while remaining > 0 and (block := file.read(min(remaining, 1 << 20))):
            digest.update(block)
            remaining -= len(block)
    return digest.hexdigest()


def flush(file: IO[bytes]) -> None:
    """Flush an open file to the disk, so that its content survives a power cut."""
    file.flush()
    os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Flush the entries of a directory to the disk. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_new(temporary: Path, path: Path) -> None:
    """Give a file its name unless that is taken. Raises UsageError."""
    try:
        if os.name == "nt":
            temporary.rename(path)  # which replaces nothing there
            return
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # a file system without hard links
            temporary.replace(path)
            return
        temporary.unlink()
    except FileExistsError as error:
        raise _exists(path) from error


def _temporary_path(path: Path) -> Path:
    # Writers such as Pillow read the format from the suffix.
    return path.with_name(f".{path.stem[:64]}.celebctl-{os.getpid()}-{os.urandom(4).hex()}{path.suffix}")


def _is_running(process: int) -> bool:
    """Whether there is a process of this number. Windows cannot tell without ending it: there, the age decides."""
    if os.name == "nt":
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


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
    """Exchange two paths in one system call; False where the system or file system has no such call."""
    if sys.platform != "linux":
        return False
    import ctypes  # slow to import, and needed only here

    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _swap_by_renames(new: Path, path: Path) -> None:
    old = _temporary_path(path)
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
