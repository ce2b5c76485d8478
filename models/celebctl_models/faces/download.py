"""Downloads one file over HTTP: resumed after an interruption, renamed only when size and SHA-256 are right."""

import contextlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import IO

from celebctl_runtime.errors import BusyError, CelebctlError, IntegrityError, NotFoundError, SetupError
from celebctl_runtime.files import sha256_file, translate_os_errors
from celebctl_runtime.paths import data_root
from celebctl_runtime.private_files import OWNER_ONLY, is_private, make_folder, restrict
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress

BLOCK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
MAX_ATTEMPTS = 4  # in a row without a byte
_PAUSE = 0.5  # seconds before the second attempt; doubles
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP status codes that are tried again


def refuse_offline(what: str, name: str) -> None:
    """Raise SetupError when HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise SetupError(
            f"{what} is not on this machine, and HF_HUB_OFFLINE forbids downloads",
            "unset HF_HUB_OFFLINE, or install it from a folder",
            reason="offline",
            name=name,
        )


def download(url: str, path: Path, *, size: int, sha256: str, progress: ProgressCallback = ignore_progress) -> None:
    """Download a file; an earlier incomplete download, `path`.part, is continued.

    Args:
        url: http or https.
        path: The file to write. It gets this name when it is complete and checked.
        size: Bytes the file must have.
        sha256: Its SHA-256, hexadecimal.
        progress: Gets the bytes on disk.

    Raises:
        NotFoundError: The server has no such file (404, 410).
        SetupError: No network, no permission, no disk space, or a redirect from https to another scheme.
        BusyError: Another process downloads the file.
        IntegrityError: Size or SHA-256 is wrong; the file is deleted.
    """
    part = path.with_name(f"{path.name}.part")
    with _lock(path), translate_os_errors(part):
        make_folder(part.parent)
        if _length(part) > size:
            part.unlink()
        _fetch(url, part, size, progress)
        if _length(part) != size or sha256_file(part) != sha256:
            part.unlink()
            raise IntegrityError(
                f"{url} does not have the {size} bytes with SHA-256 {sha256}",
                "download again: the damaged file is deleted",
            )
        if is_private(path):
            restrict(part)
        part.replace(path)


@contextlib.contextmanager
def _lock(path: Path) -> Generator[None]:
    """Lock a download: two processes must not append to one file."""
    from filelock import FileLock, Timeout

    lock = data_root() / "locks" / f"fetch.{path.name}.lock"
    with translate_os_errors(lock):
        make_folder(lock.parent)
    try:
        with FileLock(lock, timeout=0, mode=OWNER_ONLY):
            yield
    except Timeout:
        raise BusyError(f"another process is downloading {path.name}", "wait for it to finish") from None


def _fetch(url: str, part: Path, size: int, progress: ProgressCallback) -> None:
    """Repeat the request until the file is complete, or MAX_ATTEMPTS in a row brought no byte."""
    idle = 0
    while (before := _length(part)) < size:
        cause = "the connection was closed"
        try:
            _append(url, part, before, size, progress)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the file is shorter than `size`: the caller checks that
                return
            if error.code not in _TRANSIENT:
                raise _http_error(url, error) from error
            cause = f"HTTP {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and cut connections
            cause = str(getattr(error, "reason", "") or error or type(error).__name__)
        idle = 0 if _length(part) > before else idle + 1
        if idle >= MAX_ATTEMPTS:
            hint = "check the network and download again: the incomplete file is continued"
            raise SetupError(f"cannot download {url}: {cause}", hint)
        time.sleep(_PAUSE * 2**idle)


def _append(url: str, part: Path, have: int, size: int, progress: ProgressCallback) -> None:
    """One request for the missing bytes; a server without ranges sends the whole file again."""
    request = urllib.request.Request(url, headers={"User-Agent": "celebctl", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as response:
        resumed = response.status == 206 and str(response.headers.get("Content-Range")).startswith(f"bytes {have}-")
        have = have if resumed else 0
        with translate_os_errors(part):
            file = part.open("ab" if have else "wb")
        with file:
            while block := response.read(BLOCK):
                with translate_os_errors(part):  # disk errors are final, network errors are retried
                    file.write(block)
                    file.flush()
                have += len(block)
                progress(Progress(part.stem, have, size))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but none from https to another scheme."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request for ``newurl``, as urllib asks for it. Raises SetupError."""
        require_https(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def require_https(url: str, target: str) -> None:
    """Raise SetupError (reason "insecure_redirect") when `url` is https and `target`, its redirect, is not."""
    if url.lower().startswith("https:") and not target.lower().startswith("https:"):
        problem = f"{url.partition('?')[0]} redirects to {target.partition('?')[0]}, which is not encrypted"
        hint = "check the proxy and the network, or install the files from a folder"
        raise SetupError(problem, hint, reason="insecure_redirect")


def _length(path: Path) -> int:
    """Bytes in a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _http_error(url: str, error: urllib.error.HTTPError) -> CelebctlError:
    """The error for an HTTP status that is not tried again."""
    if error.code in (404, 410):
        hint = "install a newer celebctl, or install the files from a folder"
        return NotFoundError(f"there is no file at {url}", hint, reason="download_moved")
    hint = "try again later, or install the files from a folder"
    return SetupError(f"cannot download {url}: HTTP {error.code} {error.reason}", hint, reason="download_refused")
