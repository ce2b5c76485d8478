"""Draw the job files that are dropped into a folder, one after another.

    FOLDER/NAME.jsonl                     a job file; it is read once it has not changed for a second
    FOLDER/images/NAME/                   its images and their journal, unless another folder is given
    FOLDER/done/NAME.jsonl, failed/...    where it goes afterwards, with NAME.jsonl.report.json beside it

A process that is killed leaves the job file where it is; the next one draws what is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from celebctl_runtime.errors import BusyError, CelebctlError, NotFoundError
from celebctl_runtime.files import atomic_write, translate_os_errors

from .job_file import SUFFIXES, JobFile, read_job_file
from .run import RunReport, error_json

DONE, FAILED, IMAGES = "done", "failed", "images"
INTERVAL = 1.0  # seconds between looks into the folder; a file that did not change in between is complete
_LOCK_NAME = ".celebctl-watch.lock"


class DrawJobs(Protocol):
    """Draws the jobs of a file into a folder, as `run.run_jobs` does."""

    def __call__(self, jobs: JobFile, folder: Path, /) -> RunReport:
        """Draw. Raises CelebctlError."""
        ...


@dataclass(frozen=True)
class WatchedFile:
    """What became of one job file.

    Attributes:
        path: Where it is now: in ``done`` or ``failed``.
        report: What was drawn; None when nothing was.
        error: Why nothing was drawn.
    """

    path: Path
    report: RunReport | None
    error: CelebctlError | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready entries; those of its report file."""
        facts = {} if self.report is None else self.report.to_json()
        return {"file": str(self.path), **facts, **({} if self.error is None else {"error": error_json(self.error)})}


def watch(
    draw: DrawJobs,
    folder: Path,
    *,
    out: Path | None = None,
    until_empty: bool = False,
    finished: Callable[[WatchedFile], object] = lambda _: None,
) -> None:
    """Draw job files (.txt, .jsonl, .ndjson, .csv) as they appear in a folder, the oldest first.

    Args:
        draw: Draws one.
        folder: The folder to watch.
        out: A job file NAME.txt is drawn into ``out/NAME``; default: ``folder/images/NAME``.
        until_empty: Return when no job file is left; otherwise only an exception, such as KeyboardInterrupt, ends it.
        finished: Called for each file after it was moved.

    Raises:
        NotFoundError: There is no such folder.
        BusyError: Another process watches it.
        SetupError: It cannot be written.
    """
    seen: dict[Path, tuple[int, int]] = {}
    with _lock(folder):
        while True:
            waiting = _job_files(folder)
            ready = [path for path, stamp in waiting.items() if seen.get(path) == stamp]
            if until_empty and not waiting:
                return
            seen = waiting
            for path in ready:
                target = (folder / IMAGES if out is None else out) / path.stem
                if (result := _draw(draw, path, target)) is not None:
                    finished(result)
            if not ready:
                time.sleep(INTERVAL)


def _draw(draw: DrawJobs, path: Path, target: Path) -> WatchedFile | None:
    """Draw a job file and move it.

    None when it is to be tried again, because its folder is in use, or when it was deleted meanwhile.
    """
    report, error = None, None
    try:
        report = draw(read_job_file(path), target)
    except BusyError:
        time.sleep(INTERVAL)
        return None
    except CelebctlError as failure:
        error = failure
    if not path.exists():
        return None
    place = path.parent / (DONE if report is not None and report.is_complete else FAILED)
    with translate_os_errors(place):
        place.mkdir(exist_ok=True)
        moved = place / path.name
        number = 2
        while moved.exists():
            moved = place / f"{path.stem}-{number}{path.suffix}"
            number += 1
        result = WatchedFile(moved, report, error)
        atomic_write(
            moved.with_name(f"{moved.name}.report.json"),
            json.dumps(result.to_json(), ensure_ascii=False, indent=2).encode() + b"\n",
        )
        path.replace(moved)
    return result


def _job_files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Job files with size and time, the oldest first; without hidden ones."""
    stamps: dict[Path, tuple[int, int]] = {}
    for path in folder.iterdir():
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            with suppress(FileNotFoundError):  # deleted meanwhile
                status = path.stat()
                stamps[path] = (status.st_size, status.st_mtime_ns)
    return dict(sorted(stamps.items(), key=lambda item: (item[1][1], item[0])))


@contextmanager
def _lock(folder: Path) -> Generator[None]:
    from filelock import FileLock, Timeout

    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}", "create it", reason="no_folder", path=folder)
    lock = FileLock(folder / _LOCK_NAME, timeout=0)
    with translate_os_errors(folder):
        try:
            lock.acquire()
        except Timeout:
            problem = f"another process watches {folder}"
            raise BusyError(problem, "wait until it ends", reason="watch_busy", path=folder) from None
    try:
        yield
    finally:
        lock.release()
