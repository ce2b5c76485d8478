"""Bundles whose every byte was checked once, so that a picture is never drawn with damaged weights.

Hashing a large bundle takes seconds, so a file that was found whole is remembered by what a copy, an edit or a broken
transfer changes (size, time, inode), and is hashed again only when that is another. What this module does not know:
what is in a bundle. Damage that changes none of these, such as a bad disk, is not noticed here.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, cast

from celebctl.library import Library
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import SetupError
from celebctl_runtime.files import atomic_write

_FOLDER = "checked"


def verify_once(library: Library, bundle: Bundle) -> list[str]:
    """Hash the files of a bundle that were not checked as they are now; returns their names.

    Raises IntegrityError naming the first that is not what was exported.
    """
    place = library.root / "cache" / _FOLDER / f"{_key(bundle.path)}.json"
    known = _read(place)
    now = {name: _signature(bundle.file(name), facts.sha256) for name, facts in bundle.manifest.files.items()}
    open_ones = sorted(name for name, signature in now.items() if known.get(name) != signature)
    if open_ones:
        bundle.verify_files(open_ones)
        with contextlib.suppress(SetupError):  # where nothing can be kept, every picture is checked for
            atomic_write(place, json.dumps(now).encode())
    return open_ones


def _key(path: Path) -> str:
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def _signature(path: Path, sha256: str) -> list[Any]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ino, sha256]


def _read(place: Path) -> dict[str, Any]:
    try:
        data: object = json.loads(place.read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", data) if isinstance(data, dict) else {}
