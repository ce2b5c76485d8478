"""TOML from files of unknown origin."""

import tomllib
from typing import Any

from celebctl_runtime.strict_json import check_values


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a TOML document with the limits of `celebctl_runtime.strict_json`.

    Raises ValueError: invalid TOML; more than 64 levels; a NUL or half a surrogate pair in a string.

    Example:
        >>> parse_toml('device = "cpu"')
        {'device': 'cpu'}
    """
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    check_values(values)
    return values
