"""Verification of bundles, once per file, so that no image is drawn with damaged weights.

Hashing a large bundle takes seconds, so a verified file is remembered by its size, time and inode and is hashed again
only when they change, as they do by a copy, an edit or a broken transfer. Damage that changes none of them, such as a
bad disk, is not noticed here.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, cast

from celebctl.library import Library
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import SetupError
from celebctl_runtime.files import atomic_write, read_regular
from celebctl_runtime.strict_json import parse_json

_FOLDER = "verified"


def verify_once(library: Library, bundle: Bundle) -> list[str]:
    """Hash the files of a bundle that changed since they were last verified; returns their names.

    Raises IntegrityError naming the first file that differs from the export.
    """
    cache = library.root / "cache" / _FOLDER / f"{_key(bundle.path)}.json"
    known = _read(cache)
    now = {name: _signature(bundle.file(name), facts.sha256) for name, facts in bundle.manifest.files.items()}
    changed = sorted(name for name, signature in now.items() if known.get(name) != signature)
    if changed:
        bundle.verify_files(changed)
        with contextlib.suppress(SetupError):  # without a writable cache every call verifies
            atomic_write(cache, json.dumps(now).encode())
    return changed


def _key(path: Path) -> str:
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def _signature(path: Path, sha256: str) -> list[Any]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ino, sha256]


def _read(path: Path) -> dict[str, Any]:
    try:
        data: object = parse_json(read_regular(path))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", data) if isinstance(data, dict) else {}
