"""Which celebrity names make the basis: two words the model knows, one token each (paper, section 3.2).

The release kept the first two *tokens* of every name, so that fragments of surnames and repeated tokens entered its
basis; ``distinct`` drops those and says what it dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TokenPairs:
    """names: (n,) those kept; pairs: (n, 2) token ids of first and last name; dropped: name -> why."""

    names: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    dropped: dict[str, str]


def token_pairs(tokenizer: Any, names: Sequence[str], *, release: bool = False) -> TokenPairs:
    """Tokenise names for the basis.

    Args:
        tokenizer: the checkpoint's CLIPTokenizer.
        names: "first last", any case; empty lines and repeats are ignored.
        release: take the first two tokens of whatever the name splits into, as the published code does.
    """
    unique = sorted({" ".join(name.split()).lower() for name in names if name.strip()})
    encoded: list[list[int]] = tokenizer(unique, add_special_tokens=False).input_ids if unique else []
    kept: dict[str, tuple[int, int]] = {}
    dropped: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    for name, ids in zip(unique, encoded, strict=True):
        reason = _reason(name, ids, release)
        pair = (ids[0], ids[1]) if len(ids) > 1 else (-1, -1)
        if not reason and not release and pair in seen:
            reason = "the same tokens as another name"
        if reason:
            dropped[name] = reason
        else:
            kept[name] = pair
            seen.add(pair)
    return TokenPairs(tuple(kept), tuple(kept.values()), dropped)


def _reason(name: str, ids: list[int], release: bool) -> str:
    if len(ids) < 2:
        return "fewer than two tokens"
    if release:
        return ""
    if len(name.split()) != 2:
        return "not two words"
    return "" if len(ids) == 2 else f"splits into {len(ids)} tokens"
