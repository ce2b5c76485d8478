"""Names for people and for image files, and small rules of wording; no state."""

import re
import unicodedata
from collections.abc import Collection, Sequence
from itertools import count
from pathlib import Path

from celebctl.jobs.names import slug_of as slug_of
from celebctl_runtime.errors import CelebctlError, UsageError
from celebctl_runtime.identity import check_name

from .console import printable

# A person named like one of these words would change the meaning of nearly every prompt.
_COMMON_WORDS = frozenset(
    "a an and the of in on at with by to for from is are as who person people man woman boy girl photo picture".split()
)
# File names that cameras, phones and programs give; they do not identify a person.
_GENERIC_STEM = re.compile(
    r"(img|image|pic|picture|photo|pxl|dsc[nf]?|mvimg|face|portrait|selfie|me|person|screenshot|untitled|download)"
    r"([-_]?\d.*)?"
)
#: Letters without a decomposition in Unicode, as they are written in names of passports.
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i", "ħ": "h"})
_MAX_NAME = 32  # as check_name


def name_person(name: str) -> str:
    """The canonical form of a name. Raises UsageError when it cannot be used in prompts or as a file name."""
    checked = check_name(name)
    if checked in _COMMON_WORDS:
        raise UsageError(
            f"{checked!r} is a common word in prompts", f"choose another name, such as {checked}_1", name=checked
        )
    return checked


def name_from_file(photo: str) -> str:
    """The name in a file name: alice.jpg is alice. Raises UsageError when the file name does not contain one."""
    found = name_from_text(Path(photo).stem)
    if found is not None:
        return found
    raise UsageError(f"cannot derive a name from {photo}", "pass a name", reason="no_name_in_file", photo=photo)


def name_from_text(text: str) -> str | None:
    """The name in a text: José Müller is jose_muller, emb_1.5 is emb_1_5; None when there is none."""
    folded = unicodedata.normalize("NFKD", text.casefold().translate(_LETTERS))
    plain = "".join(letter for letter in folded if not unicodedata.combining(letter))
    slug = re.sub(r"[^a-z0-9_-]+", "_", plain).strip("_-")
    try:
        return name_person(slug) if slug and not _GENERIC_STEM.fullmatch(slug) else None
    except CelebctlError:
        return None


def names_folder(path: Path) -> bool:
    """Whether an output path is a folder: one that exists, or has no suffix; v1.5 has none."""
    return path.is_dir() or not path.suffix or path.suffix[1:].isdecimal()


def suggested_name(photo: str, taken: Collection[str]) -> str:
    """The name in the file name, or alice; numbered when it is taken."""
    try:
        name = name_from_file(photo)
    except UsageError:
        name = "alice"
    return name_of_mix([name], taken)


def name_of_mix(parents: Sequence[str], taken: Collection[str]) -> str:
    """alice-bob, or the first of alice-bob-2, alice-bob-3, ... that is not taken; cut to a name's length."""
    joined = "-".join(parents)
    names = (f"{joined[: _MAX_NAME - len(end)]}{end}" for end in ("", *(f"-{n}" for n in range(2, len(taken) + 3))))
    return next(name for name in names if name not in taken)


def next_sample_name(taken: Collection[str]) -> str:
    """The first of sample-1, sample-2, ... that is not taken."""
    return next(name for name in (f"sample-{n}" for n in count(1)) if name not in taken)


def free_path(path: Path) -> Path:
    """`path`, or its first numbered variant that does not exist: alice.png, alice-2.png, ..."""
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate


def prompt_idea(names: Sequence[str]) -> str:
    """An example prompt with these people."""
    if not names:
        return "a person on the beach"
    return f"{names[0]} and {names[1]} playing chess" if len(names) > 1 else f"{names[0]} on the beach"


def listed(names: Sequence[str]) -> str:
    """alice, bob and carol"""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def counted(number: int, noun: str) -> str:
    """1 step, 2 steps"""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def one_line(text: str) -> str:
    """Text of unknown origin for one line: what a terminal obeys is escaped, and so are line ends and tabs."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
