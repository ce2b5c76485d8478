"""One file over HTTP, resumed where an earlier attempt stopped, in place only when size and SHA-256 are right."""

import contextlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path

from celebctl_runtime.errors import BusyError, CelebctlError, IntegrityError, NotFoundError, SetupError
from celebctl_runtime.files import sha256_file, translate_os_errors
from celebctl_runtime.paths import data_root

BLOCK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
PATIENCE = 4  # attempts in a row that bring nothing
_PAUSE = 0.5  # seconds before the second attempt; doubles
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers that another attempt may change


def refuse_offline(what: str, target: str) -> None:
    """Raise SetupError when HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise SetupError(
            f"{what} is not on this machine, and HF_HUB_OFFLINE forbids fetching it",
            f"unset HF_HUB_OFFLINE, or bring it along: celebctl setup {target} --from DIR",
        )


def download(url: str, path: Path, *, size: int, sha256: str, report: Callable[[int], object] = id) -> None:
    """Fetch `url` to `path`, resuming from `path`.part when an earlier attempt left one.

    `size` in bytes and `sha256` in hex are checked before the file gets its name. `report` is called with the bytes on
    disk. Raises NotFoundError (404), SetupError (no network, no permission, no disk), Busy (another process
    downloads it), or IntegrityError (other bytes than promised; they are removed).
    """
    part = path.with_name(f"{path.name}.part")
    with _lock(path), translate_os_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        if _length(part) > size:
            part.unlink()
        _fetch(url, part, size, report)
        if _length(part) != size or sha256_file(part) != sha256:
            part.unlink()
            raise IntegrityError(
                f"{url} does not have the {size} bytes with SHA-256 {sha256}",
                "run the same command again; the damaged download is removed",
            )
        part.replace(path)


@contextlib.contextmanager
def _lock(path: Path) -> Generator[None]:
    """Two processes must not append to one file."""
    from filelock import FileLock, Timeout

    lock = data_root() / "locks" / f"fetch.{path.name}.lock"
    with translate_os_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise BusyError(f"another celebctl is fetching {path.name}", "wait for it to finish") from None


def _fetch(url: str, part: Path, size: int, report: Callable[[int], object]) -> None:
    """Repeat the request until the file is long enough; only attempts that bring nothing count against PATIENCE."""
    idle = 0
    while (before := _length(part)) < size:
        reason = "the connection was cut"
        try:
            _append(url, part, before, report)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the published file is shorter than `size`: the caller's check refuses it
                return
            if error.code not in _TRANSIENT:
                raise _refusal(url, error) from error
            reason = f"the server says {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and cut connections
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        idle = 0 if _length(part) > before else idle + 1
        if idle >= PATIENCE:
            hint = "check the network, then run the same command again: it goes on where it stopped"
            raise SetupError(f"cannot fetch {url}: {reason}", hint)
        time.sleep(_PAUSE * 2**idle)


def _append(url: str, part: Path, have: int, report: Callable[[int], object]) -> None:
    """One request for what is missing; a server without ranges sends the whole file again."""
    request = urllib.request.Request(url, headers={"User-Agent": "celebctl", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        resumed = answer.status == 206 and str(answer.headers.get("Content-Range")).startswith(f"bytes {have}-")
        have = have if resumed else 0
        with translate_os_errors(part):
            file = part.open("ab" if have else "wb")
        with file:
            while block := answer.read(BLOCK):
                with translate_os_errors(part):  # only trouble with the disk is final; the network's is retried
                    file.write(block)
                    file.flush()
                have += len(block)
                report(have)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _refusal(url: str, error: urllib.error.HTTPError) -> CelebctlError:
    if error.code in (404, 410):
        return NotFoundError(f"there is nothing at {url}", "it may have moved: look for a newer celebctl, or use --from DIR")
    return SetupError(f"cannot fetch {url}: {error.code} {error.reason}", "try again later, or use --from DIR")
