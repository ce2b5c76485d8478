"""JSON from files of unknown origin."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn, cast

MAX_DEPTH = 64  # of nested lists and objects; the deepest of our own files has 8
MAX_DIGITS = 300  # of a whole number: every one is a float64 too


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON document (RFC 8259, UTF-8) and refuse what programs read differently or cannot handle.

    Args:
        text: The document; limit its size before.

    Returns:
        dict, list, str, int, float, bool or None.

    Raises:
        ValueError: Invalid JSON or UTF-8; NaN or Infinity; a repeated key; a number beyond float64 or of more than 300
            digits; more than 64 levels; a NUL or half a surrogate pair in a string.

    Example:
        >>> parse_json('{"a": [1, 2.5]}')
        {'a': [1, 2.5]}
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_refuse_constant,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    check_values(value)
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def check_values(value: object, depth: int = MAX_DEPTH) -> None:
    """Raise ValueError for what is nested deeper than ``depth``, and for text that cannot be printed or stored."""
    if depth < 0:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a text contains a NUL character")
        value.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair
    elif isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            check_values(key, depth)
            check_values(item, depth - 1)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            check_values(item, depth - 1)
