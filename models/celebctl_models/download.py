"""One file over HTTP: going on where an earlier attempt was cut off, and under its name only when its bytes are right.

The standard library's client, nothing else. What this module does not know: models, hubs, licences.
"""

import contextlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Any

from celebctl_runtime.errors import Busy, CelebctlError, EnvironmentProblem, IntegrityProblem, NotFound
from celebctl_runtime.files import disk_problems, sha256_file
from celebctl_runtime.paths import data_root

BLOCK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
PATIENCE = 4  # attempts in a row that bring nothing
_PAUSE = 0.5  # seconds before the second attempt; doubles
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers that another attempt may change
_ON = {"1", "ON", "YES", "TRUE"}  # the hub client's words for a set flag


def offline() -> bool:
    """Whether HF_HUB_OFFLINE (or transformers' older word for it) forbids the network."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in _ON


def refuse_offline(what: str, target: str) -> None:
    """Raise EnvironmentProblem when the network is forbidden."""
    if offline():
        raise EnvironmentProblem(
            f"{what} is not on this machine, and HF_HUB_OFFLINE forbids fetching it",
            f"unset HF_HUB_OFFLINE, or bring it along: celebctl setup {target} --from DIR",
        )


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    token: str | None = None,
    report: Callable[[int], object] = id,
) -> None:
    """Fetch `url` to `path`, going on from `path`.part when an earlier attempt left one.

    `size` in bytes and `sha256` in hex are checked before the file gets its name. `token` goes to the host of `url`
    only, never to one it redirects to. `report` is told the bytes on disk. Raises NotFound (404), EnvironmentProblem
    (no network, no permission, no disk), Busy, or IntegrityProblem (other bytes than promised; they are removed).
    """
    part = path.with_name(f"{path.name}.part")
    with _alone(path), disk_problems(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        _persist(url, part, size, token, report)
        problem = _difference(part, size, sha256)
        if problem:
            part.unlink(missing_ok=True)
            raise IntegrityProblem(f"{url} {problem}", "run the same command again; the damaged download is removed")
        part.replace(path)


@contextlib.contextmanager
def _alone(path: Path) -> Generator[None]:
    """Two processes must not append to one file. Raises Busy when another celebctl fetches it."""
    from filelock import FileLock, Timeout

    lock = data_root() / "locks" / f"fetch.{path.name}.lock"
    with disk_problems(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise Busy(f"another celebctl is fetching {path.name}", "wait for it to finish") from None


def _persist(url: str, part: Path, size: int | None, token: str | None, report: Callable[[int], object]) -> None:
    """Attempt until the file is whole. Only attempts that bring nothing count against patience."""
    idle, pause = 0, _PAUSE
    while True:
        before = _length(part)
        try:
            if _continue(url, part, size, token, report):
                return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code not in _PASSING:
                raise _refused(url, error) from error
            reason = f"the server says {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and cut connections
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        idle, pause = (0, _PAUSE) if _length(part) > before else (idle + 1, pause)
        if idle >= PATIENCE:
            hint = "check the network, then run the same command again: it goes on where it stopped"
            raise EnvironmentProblem(f"cannot fetch {url}: {reason}", hint)
        time.sleep(pause)
        pause = min(2 * pause, 30.0)


def _continue(url: str, part: Path, size: int | None, token: str | None, report: Callable[[int], object]) -> bool:
    """One request for what is missing. True when the file is as long as the server, or the table, says."""
    have = _length(part)
    if size is not None and have == size:
        return True
    if size is not None and have > size:
        part.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "celebctl", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink(missing_ok=True)  # what we have is longer than the file: begin again
        return False
    with answer:
        if answer.status != 206 or not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            have = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        whole = size if size is not None else have + int(length) if length else None
        with disk_problems(part):
            file = part.open("ab" if have else "wb")
        with file:
            have = _copy(answer, file, part, have, report)
    return whole is None or have >= whole  # too much is no matter of patience: the caller compares


def _copy(source: Any, file: IO[bytes], part: Path, have: int, report: Callable[[int], object]) -> int:
    """Write what comes; returns the bytes on disk. Only trouble with the disk ends as EnvironmentProblem."""
    while block := source.read(BLOCK):
        with disk_problems(part):
            file.write(block)
            file.flush()
        have += len(block)
        report(have)
    return have


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _difference(part: Path, size: int | None, sha256: str | None) -> str:
    found = _length(part)
    if size is not None and found != size:
        return f"has {found} bytes, not {size}"
    if sha256 is not None and (digest := sha256_file(part)) != sha256:
        return f"has SHA-256 {digest}, not {sha256}"
    return ""


def _refused(url: str, error: urllib.error.HTTPError) -> CelebctlError:
    if error.code in (401, 403):
        return EnvironmentProblem(f"{url} may not be fetched ({error.code})", "set HF_TOKEN to a token that may")
    if error.code in (404, 410):
        return NotFound(f"there is nothing at {url}", "it may have moved: look for a newer celebctl, or use --from DIR")
    return EnvironmentProblem(f"cannot fetch {url}: {error.code} {error.reason}", "try again later, or use --from DIR")
