"""Names of image files from a pattern, safe on every operating system."""

from __future__ import annotations

import re
import string
import unicodedata

from celebctl_runtime.errors import UsageError

DEFAULT_PATTERN = "{line:04}-{slug}-{seed}"
#: The fields of a pattern and examples of their values.
PATTERN_FIELDS: dict[str, int | str] = {"line": 1, "index": 1, "seed": 1, "slug": "alice"}
MAX_NAME = 150  # characters; with a suffix and the marks of a temporary file below the 255 bytes of file systems
_MAX_SLUG = 60
_MAX_BYTES = 200
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def check_pattern(pattern: str) -> str:
    """`pattern`, once it is known to be one of `PATTERN_FIELDS` with numeric formats. Raises UsageError.

    Example:
        >>> check_pattern("{line:04}-{slug}")
        '{line:04}-{slug}'
    """
    try:
        parts = list(string.Formatter().parse(pattern))
        for _, name, spec, conversion in parts:
            if name is None:
                continue
            if name not in PATTERN_FIELDS:
                raise ValueError(f"there is no field {{{name}}}")
            allowed = r"0?[1-9]?" if isinstance(PATTERN_FIELDS[name], int) else ""
            if conversion or not re.fullmatch(allowed, spec or ""):
                raise ValueError(f"{{{name}}} cannot have this format")
        check_name(pattern.format_map(PATTERN_FIELDS))
    except (ValueError, IndexError) as error:
        known = ", ".join(f"{{{name}}}" for name in PATTERN_FIELDS)
        raise UsageError(
            f"invalid pattern {pattern[:80]!r} for file names: {error}",
            f"use {known}; numbers may be padded, as {{line:04}}",
            reason="invalid_name_pattern",
            pattern=pattern,
        ) from error
    return pattern


def check_name(name: str) -> str:
    """`name`, a file name without its suffix. Raises ValueError when some system cannot store it.

    Example:
        >>> check_name("alice-1")
        'alice-1'
    """
    if unsafe := _UNSAFE.search(name):
        raise ValueError(f"a file name cannot contain {unsafe[0]!r}")
    if not name or name.startswith(".") or name.endswith((".", " ")):
        raise ValueError("a file name cannot be empty, begin with a dot, or end in a dot or space")
    if _RESERVED.fullmatch(name):
        raise ValueError(f"{name!r} is the name of a device on Windows")
    if len(name) > MAX_NAME or len(name.encode()) > _MAX_BYTES:
        raise ValueError(f"a file name has up to {MAX_NAME} characters and {_MAX_BYTES} bytes")
    return name


def name_key(name: str) -> str:
    """What two names have in common when a file system that ignores case or composition holds them for one."""
    return unicodedata.normalize("NFC", name).casefold()


def slug_of(prompt: str) -> str:
    """Words of a prompt for a file name: lower case, joined by dashes, up to 60 characters; "image" for none."""
    slug = re.sub(r"[^\w]+", "-", prompt.casefold()).strip("-_")[:_MAX_SLUG]
    while len(slug.encode()) > _MAX_BYTES // 2:
        slug = slug[:-1]
    return slug.rstrip("-_") or "image"
