"""The journal of a run: which images of an output folder are finished, and what they were drawn from.

One file of JSON lines, ``.celebctl-run.jsonl`` in the output folder, which is only appended to. Each line is on the
disk before the next image is begun:

    {"format": 1, "seed": 7}                                                           the seed of the run
    {"file": "0001-alice-5.png", "line": 1, "digest": "9f...", "bytes": 8123}          a finished image
    {"file": "0002-alice-6.png", "line": 2, "digest": "1c...", "error": {"code": ..., "problem": ...}}

The last line may be torn by a crash; it is ignored, and the image is recognised by its recipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast

from celebctl_runtime.errors import BusyError, IntegrityError, SetupError
from celebctl_runtime.files import flush, flush_directory, open_regular, read_regular, translate_os_errors
from celebctl_runtime.strict_json import parse_json

FILE_NAME = ".celebctl-run.jsonl"
_LOCK_NAME = ".celebctl-run.lock"
_FORMAT = 1
_MAX_BYTES = 256 << 20


class Journal:
    """The journal of an output folder, open for appending. Use `open_journal`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seed: int | None = None
        self.finished: dict[str, tuple[str, int]] = {}  # file -> digest, bytes
        self._lock = threading.Lock()
        content = _read(path)
        self._torn = not content.endswith(b"\n") and bool(content)
        for entry in _entries(content):
            try:
                self._add_entry(entry)
            except (KeyError, TypeError, ValueError) as error:
                problem, hint = f"{path} is not a journal of celebctl", "choose another folder, or remove the file"
                raise IntegrityError(problem, hint, reason="not_a_journal", path=path) from error

    def begin(self, seed: int) -> None:
        """Record the start of a run with this seed."""
        self._append({"format": _FORMAT, "seed": seed})

    def add(self, file: str, line: int, digest: str, size: int) -> None:
        """Record a finished image of `size` bytes."""
        self._append({"file": file, "line": line, "digest": digest, "bytes": size})

    def add_failure(self, file: str, line: int, digest: str, error: Mapping[str, str]) -> None:
        """Record an image that could not be drawn or written."""
        self._append({"file": file, "line": line, "digest": digest, "error": error})

    def _add_entry(self, entry: Mapping[str, Any]) -> None:
        if "format" in entry:
            if (version := int(entry["format"])) > _FORMAT:
                problem = f"{self.path} has format {version}; this celebctl reads up to {_FORMAT}"
                raise IntegrityError(problem, "upgrade celebctl", reason="newer_format", version=version)
            self.seed = int(entry["seed"])
        elif "error" not in entry:
            self.finished[str(entry["file"])] = str(entry["digest"]), int(entry["bytes"])

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self._lock, translate_os_errors(self.path):
            is_new = not self.path.exists()
            with self.path.open("xb") if is_new else open_regular(self.path, "rb+") as file:
                file.seek(0, os.SEEK_END)
                file.write(b"\n" + line if self._torn else line)
                self._torn = True  # until all of the line is written
                flush(file)
            self._torn = False
            if is_new:
                flush_directory(self.path.parent)


@contextlib.contextmanager
def open_journal(folder: Path) -> Generator[Journal]:
    """Lock an output folder, which is created when missing, and read its journal.

    Raises:
        BusyError: Another process draws into the folder (reason "folder_busy").
        SetupError: The folder cannot be written.
        IntegrityError: The journal is not one, or a newer version's.
    """
    from filelock import FileLock, Timeout

    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK_NAME, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise BusyError(
                f"another process draws into {folder}", "wait until it ends", reason="folder_busy", path=folder
            ) from None
    try:
        yield Journal(folder / FILE_NAME)
    finally:
        lock.release()


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _MAX_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}", "check its permissions", path=path) from error


def _entries(content: bytes) -> list[dict[str, Any]]:
    """The lines of a journal; lines torn by a crash are left out."""
    entries: list[dict[str, Any]] = []
    for line in filter(None, content.split(b"\n")):
        with contextlib.suppress(ValueError):
            entry = parse_json(line)
            if isinstance(entry, dict):
                entries.append(cast("dict[str, Any]", entry))
    return entries
