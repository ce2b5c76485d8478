"""Mutations of bytes and of JSON documents, the same for the same random generator.

atheris, the well-kept fuzzer of Python code, needs a build of its own for every interpreter; these mutations need
nothing, and JSON documents stay JSON so that their values reach the code behind the parser.
"""

from __future__ import annotations

import json
import random
from typing import Any, cast

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 255, 1 << 16, 1 << 31, 1 << 32, 1 << 53, 1 << 62, 1 << 63, -(1 << 63), 10**12, 10**299, 10**399,
    0.5, -0.5, 1e-300, 1e300, -1e300, True, False,
)  # fmt: skip
TEXTS: tuple[Any, ...] = (
    "", " ", ".", "..", "../../victim", "/tmp/victim", "a/b", "a\\b", "C:\\victim", "~root", "~nobody-at-all", "$HOME",
    "**", "-rf", "con", "a\nb", "\u202e", "\x1b[2J", "é", "李雷", "x" * 5000, "nan", "inf", "1e999", "{}", "%s",
    "{0.__class__}", "<alice>", "alice",
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, [], {}, [[]], [0], [None, None], {"a": 1}, [1, 2, 3, 4, 5], {"": {}})
# Pieces of text that a document can only have where a parser is lenient, or that make one slow.
SPLICES = (
    b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b'"\\u0000"', b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b"\xff\xfe",
    b"\0", b"\xef\xbb\xbf", b"\r\n", b"%s", b'"a":1,"a":2,',
)  # fmt: skip
LENGTHS = (0, 1, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def mutate_bytes(chance: random.Random, data: bytes) -> bytes:
    """`data` after one to four changes: flips, cuts, insertions, repetitions, and numbers in place of others."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at, end = sorted(chance.randrange(len(changed) + 1) for _ in range(2))
        match chance.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                del changed[at : min(end, at + chance.choice((1, 8, 64, len(changed))))]
            case 2:
                changed[at:at] = chance.choice(SPLICES)
            case 3:
                changed[at:at] = changed[at : min(end, at + 256)]
            case 4:  # a length field: they are little-endian in zip and safetensors, big-endian in PNG
                width = chance.choice((2, 4, 8))
                number = chance.choice(LENGTHS) & ((1 << 8 * width) - 1)
                place = chance.choice((0, at))
                changed[place : place + width] = number.to_bytes(width, chance.choice(("little", "big")))
            case _:
                changed[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(changed)


def mutate_json(chance: random.Random, text: bytes) -> bytes:
    """A JSON document after one to three changes of its values; sometimes no longer valid JSON."""
    value: Any = json.loads(text)
    for _ in range(chance.choice((1, 1, 2, 3))):
        value = _changed(chance, value)
    changed = json.dumps(value).encode()
    return mutate_bytes(chance, changed) if chance.random() < 0.1 else changed


def _changed(chance: random.Random, value: Any) -> Any:
    """The document with one value somewhere in it removed, replaced, repeated or renamed."""
    keys: list[Any] = []
    whole: Any = value
    if isinstance(value, dict):
        keys = list(cast("dict[str, Any]", value))
    elif isinstance(value, list):
        keys = list(range(len(cast("list[Any]", value))))
    if not keys or chance.random() < 0.1:
        return _other(chance, whole)
    key = chance.choice(keys)
    if isinstance(whole[key], dict | list) and chance.random() < 0.75:
        whole[key] = _changed(chance, whole[key])
        return whole
    match chance.randrange(6):
        case 0:
            whole.pop(key)
        case 1:
            whole[key] = whole[chance.choice(keys)]
        case 2 if isinstance(value, list):
            whole.append(whole[key])
        case 2:
            whole[chance.choice(TEXTS)] = whole[key]
        case _:
            whole[key] = _other(chance, whole[key])
    return whole


def _other(chance: random.Random, value: Any) -> Any:
    """Another value, more often than not of the same type."""
    same = TEXTS if isinstance(value, str) else NUMBERS if isinstance(value, int | float) else OTHERS
    choices = same if chance.random() < 0.6 else (*NUMBERS, *TEXTS, *OTHERS)
    return json.loads(json.dumps(chance.choice(choices)))
