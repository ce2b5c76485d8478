"""What no input may do: end with an unknown error, write elsewhere, run a program, take too long or too much memory."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

from celebctl_runtime.errors import CelebctlError

SECONDS = 10.0  # for one input
MEGABYTES = 600  # by which one input may raise the process's peak
CODES = frozenset({0, 2, 3, 4, 5, 6, 7, 8, 9})
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1, "shutil.rmtree": 1, "shutil.move": 2,
}  # fmt: skip
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pty.spawn")


class _Watch:
    """An audit hook, which cannot be removed: it looks while `place` is set."""

    place: Path | None = None
    seen: list[str]
    installed = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    place = _Watch.place
    if place is None:
        return
    if event in _PROGRAMS:
        _Watch.seen.append(f"{event} {arguments[:2]!r:.200}")
    elif event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITES:
            _check(place, event, path)
    elif event in _CHANGES:
        for path in arguments[: _CHANGES[event]]:
            _check(place, event, path)


def _check(place: Path, event: str, path: object) -> None:
    if isinstance(path, str | bytes | Path):
        real = os.path.realpath(os.fsdecode(path))
        if not real.startswith(f"{place}{os.sep}") and real not in (str(place), os.devnull):
            _Watch.seen.append(f"{event} {real}")


class TooSlow(BaseException):
    """Raised by the alarm; no handler of Exception takes it."""


@contextmanager
def _alarm() -> Generator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooSlow

    if not hasattr(signal, "setitimer"):
        yield
        return
    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _peak() -> float:
    """The process's peak memory in MB; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fault_of(run: Callable[[], object], place: Path) -> str:
    """Run something on a hostile input; what is wrong about it, "" for nothing.

    A CelebctlError with a documented exit code is right, and so is a result. An int is an exit code.
    """
    if not _Watch.installed:
        sys.addaudithook(_audit)
        _Watch.installed = True
    _Watch.seen, _Watch.place = [], place.resolve()
    before, started = _peak(), time.monotonic()
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.StringIO()
    fault = ""
    try:
        with _alarm(), redirect_stdout(out), redirect_stderr(err):
            code = run()
        if isinstance(code, int) and code not in CODES:
            fault = f"exit code {code}: {err.getvalue()[:500]} ... {err.getvalue()[-1500:]}"
    except CelebctlError as error:
        fault = "" if error.exit_code in CODES - {0} else f"exit code {error.exit_code}: {error}"
    except TooSlow:
        fault = f"longer than {SECONDS:.0f} s\n{traceback.format_exc()[-3000:]}"
    except KeyboardInterrupt:
        raise
    except BaseException:
        fault = traceback.format_exc()[-4000:]
    finally:
        _Watch.place = None
    if not fault and _Watch.seen:
        fault = "it did what it must not: " + "; ".join(_Watch.seen[:3])
    if not fault and time.monotonic() - started > SECONDS:
        fault = f"longer than {SECONDS:.0f} s"
    if not fault and _peak() - before > MEGABYTES:
        fault = f"more than {MEGABYTES} MB of memory"
    return fault
