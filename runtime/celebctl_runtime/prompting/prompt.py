"""Find the people named in a prompt.

``alice`` and ``<alice>`` name a person, ``\\alice`` is the plain word. Names match whole words only, in any case, the
longest first, so ``ann`` and ``anna`` never collide; a hyphen or an underscore belongs to the word (``ann-marie`` is
not ``ann``). This module does not know tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from celebctl_runtime.errors import NotFoundError

_MARKS = "\u0300-\u036f"  # combining accents follow their letter
_BRACKETED = r"<[A-Za-z][A-Za-z0-9_-]*>"
_JOINING = re.compile(r"\s*(?:,?\s*(?:and|with)\b|[,&])?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class PlainText:
    """Ordinary text of a prompt."""

    text: str


@dataclass(frozen=True)
class Mention:
    """A mention of a person, by canonical name."""

    name: str


def split_prompt(prompt: str, names: Collection[str]) -> list[PlainText | Mention]:
    """Split a prompt into plain text and mentions of people.

    Args:
        prompt: The prompt.
        names: Canonical names of the people who may be mentioned.

    Raises:
        NotFoundError: For ``<carol>`` when that is not one of the names.

    Example:
        >>> split_prompt("a photo of Alice", {"alice"})
        [PlainText(text='a photo of '), Mention(name='alice')]
    """
    parts: list[PlainText | Mention] = []
    plain, start = "", 0
    for match in _pattern(names).finditer(prompt):
        plain += prompt[start : match.start()]
        start = match.end()
        if match["literal"]:
            plain += match["literal"]
            continue
        if plain:
            parts.append(PlainText(plain))
        plain = ""
        parts.append(Mention(_known(match["mention"].strip("<>").casefold(), names)))
    plain += prompt[start:]
    return [*parts, PlainText(plain)] if plain else parts


def mentioned(prompt: str, names: Collection[str]) -> list[str]:
    """The people that a prompt mentions, in order, each once; a ``<carol>`` who is not one of the names is ignored."""
    mentions = (match["mention"] for match in _pattern(names).finditer(prompt))
    found = (mention.strip("<>").casefold() for mention in mentions if mention)
    return list(dict.fromkeys(name for name in found if name in names))


def leave_out_others(prompt: str, names: Collection[str], name: str) -> str:
    """The prompt without all people but one, and without the words that join their names.

    Args:
        prompt: The prompt.
        names: Canonical names of the people it may mention.
        name: The person who stays.

    Raises:
        NotFoundError: As :func:`split_prompt`.

    Example:
        >>> leave_out_others("Alice, <bob> and carol smiling", {"alice", "bob", "carol"}, "bob")
        '<bob> smiling'
    """
    text, end, kept = "", 0, None  # kept: whether the mention before stays
    for match in _pattern(names).finditer(prompt):
        if not match["mention"]:
            continue
        between = prompt[end : match.start()]
        stays = _known(match["mention"].strip("<>").casefold(), names) == name
        joins = kept is not None and not (kept and stays) and _JOINING.fullmatch(between)
        text += ("" if joins else between) + (match[0] if stays else "")
        end, kept = match.end(), stays
    return " ".join((text + prompt[end:]).split())


def _pattern(names: Collection[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    known = "|".join(map(re.escape, longest_first)) or r"(?!)"
    word = rf"(?<!\w)(?<!\w-)(?:{known})(?![\w{_MARKS}])(?!-\w)"
    return re.compile(rf"\\(?P<literal>{_BRACKETED}|{word})|(?P<mention>{_BRACKETED}|{word})", re.IGNORECASE)


def _known(name: str, names: Collection[str]) -> str:
    if name in names:
        return name
    import difflib  # needed for the error only

    similar = difflib.get_close_matches(name, names, n=1)
    suggestion = f"did you mean <{similar[0]}>?" if similar else "learn the person first,"
    known = f"known people: {', '.join(sorted(names)[:20])}" if names else "no people are known"
    raise NotFoundError(
        f"the prompt names <{name}>, who is unknown",
        f"{suggestion} or write \\<{name}> for plain text; {known}",
        reason="similar_person" if similar else "unknown_person",
        name=name,
        similar=f"<{similar[0]}>" if similar else "",
        known=known,
    )
