"""Finding people in a prompt.

``alice`` and ``<alice>`` name a person, ``\\alice`` is the plain word. Names match whole words only, in any case, the
longest first, so ``ann`` and ``anna`` never collide; a hyphen or an underscore belongs to the word (``ann-marie`` is
not ``ann``). What this module does *not* know: tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from celebctl_runtime.errors import NotFoundError

_MARKS = "\u0300-\u036f"  # accents written after their letter
_BRACKETED = r"<[A-Za-z][A-Za-z0-9_-]*>"


@dataclass(frozen=True)
class Words:
    """A stretch of ordinary text."""

    text: str


@dataclass(frozen=True)
class Mention:
    """A person, by canonical name."""

    name: str


def split_prompt(prompt: str, names: Collection[str]) -> list[Words | Mention]:
    """Cut a prompt into ordinary text and people; ``names`` are canonical.

    Raises NotFoundError with suggestions for ``<carol>`` when nobody is called that.
    """
    parts: list[Words | Mention] = []
    plain, start = "", 0
    for match in _pattern(names).finditer(prompt):
        plain += prompt[start : match.start()]
        start = match.end()
        if match["literal"]:
            plain += match["literal"]
            continue
        if plain:
            parts.append(Words(plain))
        plain = ""
        parts.append(Mention(_known(match["found"].strip("<>").casefold(), names)))
    plain += prompt[start:]
    return [*parts, Words(plain)] if plain else parts


def _pattern(names: Collection[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    known = "|".join(map(re.escape, longest_first)) or r"(?!)"
    word = rf"(?<!\w)(?<!\w-)(?:{known})(?![\w{_MARKS}])(?!-\w)"
    return re.compile(rf"\\(?P<literal>{_BRACKETED}|{word})|(?P<found>{_BRACKETED}|{word})", re.IGNORECASE)


def _known(name: str, names: Collection[str]) -> str:
    if name in names:
        return name
    import difflib  # only for a good error

    near = difflib.get_close_matches(name, names, n=1)
    known = f"known: {', '.join(sorted(names)[:20])}" if names else "nobody is known here yet"
    advice = f"did you mean <{near[0]}>? " if near else f"learn the person (celebctl learn face.jpg --name {name}), "
    raise NotFoundError(
        f"the prompt asks for <{name}>, but nobody here has that name",
        f"{advice}{'' if near else 'or '}write \\<{name}> for plain text; {known}",
    )
