"""Wildcards in a prompt, replaced before it is read: by the seed, so that the same seed gives the same prompt.

    {red|green|blue}    one of these texts; {} without a | are plain characters
    __colour__          one line of the file colour.txt in the folder of wildcards

What is inserted may hold further wildcards. In a file, empty lines and lines that begin with # are left out. Choice
number n of a prompt, from 0, is the option whose index is SHA-256("SEED n"), read as a big-endian number, modulo the
number of options; for negative prompts SHA-256("SEED n negative"). So it depends on no version of any library.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from celebctl_runtime.errors import InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.files import read_regular

from .weights import PLAIN

if TYPE_CHECKING:
    from celebctl_runtime.request import Request

MAX_FILE = 1 << 20  # bytes
MAX_CHOICES = 1000  # of one prompt

_WILDCARD = re.compile(r"\{(?P<options>[^{}|]*\|[^{}]*)\}|(?<!\w)__(?P<name>[^\s_](?:\S{0,100}?[^\s_])?)__(?!\w)")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Choice:
    """A wildcard as written, and the text chosen for it."""

    wildcard: str
    text: str


def expand_wildcards(template: str, seed: int, folder: Path, purpose: str = "") -> tuple[str, tuple[Choice, ...]]:
    """A prompt with all its wildcards replaced, and the choices in the order made.

    Args:
        template: The prompt.
        seed: Of the image.
        folder: Where the files of ``__name__`` are; read only if there is one.
        purpose: "negative" for negative prompts, so that their choices are independent.

    Raises:
        UsageError: A name is not that of a file in the folder (reason "invalid_wildcard"), or there are more than 1000
            choices ("too_many_wildcards").
        NotFoundError: There is no such file ("no_wildcard_file").
        InvalidInputError: It has no lines or is no UTF-8 text ("invalid_wildcard_file"), or has more than 1 MiB
            ("file_too_large").

    Example:
        >>> expand_wildcards("a {red|green|blue} hat", 7, Path("wildcards"))
        ('a red hat', (Choice(wildcard='{red|green|blue}', text='red'),))
    """
    choices: list[Choice] = []
    while match := _WILDCARD.search(template):
        if len(choices) == MAX_CHOICES:
            raise UsageError(
                f"the prompt has more than {MAX_CHOICES} wildcards",
                "use fewer, and no file of wildcards that names itself",
                reason="too_many_wildcards",
            )
        options = _read_options(match["name"], folder) if match["name"] else _split_options(match["options"])
        digest = hashlib.sha256(f"{seed} {len(choices)} {purpose}".strip().encode()).digest()
        text = options[int.from_bytes(digest, "big") % len(options)]
        choices.append(Choice(match[0], text))
        template = template[: match.start()] + text + template[match.end() :]
    return template, tuple(choices)


def expand_request(request: Request, folder: Path) -> tuple[Request, tuple[Choice, ...]]:
    """A request with the wildcards of both prompts replaced, and the choices; raises as :func:`expand_wildcards`.

    In the plain syntax nothing is a wildcard.
    """
    if request.syntax == PLAIN:
        return request, ()
    prompt, choices = expand_wildcards(request.prompt, request.seed, folder)
    negative, more = expand_wildcards(request.negative, request.seed, folder, "negative")
    template = request.prompt if choices else request.template
    return replace(request, prompt=prompt, negative=negative, template=template), choices + more


def _split_options(text: str) -> Sequence[str]:
    """The texts between | that are not inside square brackets, which mean alternation."""
    options, depth = [""], 0
    for character in text:
        depth = max(0, depth + (character == "[") - (character == "]"))
        if character == "|" and not depth:
            options.append("")
        else:
            options[-1] += character
    return options


def _read_options(name: str, folder: Path) -> Sequence[str]:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not the name of a file of wildcards",
            "use letters, digits and _ . - only, without folders",
            reason="invalid_wildcard",
            name=name,
        )
    path = folder / f"{name}.txt"
    try:
        raw = read_regular(path, MAX_FILE)
    except OSError as error:
        raise NotFoundError(
            f"there is no file {path} for the wildcard __{name}__",
            "write it, one option per line, or name another folder",
            reason="no_wildcard_file",
            name=name,
            folder=folder,
            path=path,
        ) from error
    try:
        lines = [line.strip() for line in raw.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise _invalid_file(path, "is not UTF-8 text") from error
    options = [line for line in lines if line and not line.startswith("#")]
    if not options:
        raise _invalid_file(path, "has no lines to choose from")
    return options


def _invalid_file(path: Path, problem: str) -> InvalidInputError:
    hint = "write one option per line"
    return InvalidInputError(f"{path} {problem}", hint, reason="invalid_wildcard_file", path=path)
