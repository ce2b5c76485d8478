"""The celebrity names behind a basis: two words of one token each (paper, section 3.2).

The release kept the first two *tokens* of every name, so that fragments of surnames and repeated tokens entered its
basis; ``distinct`` drops those and reports why. Names come from a file: the one chosen for the model, else the model's
own, else celebctl's list of well-known people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celebctl_models.names import WELL_KNOWN
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError
from celebctl_runtime.files import atomic_write, read_regular, translate_os_errors
from celebctl_runtime.strict_json import parse_json

if TYPE_CHECKING:
    from celebctl_models.checkpoints.token_tables import TokenTables

SAME_TOKENS = "the same tokens as another name"
OTHER_TOKENIZER = "dropped for the other text encoder"
_QUALIFIERS = re.compile(r"(\s*\([^()]*\))+\s*$")
_SCORE = re.compile(r"\t-?[0-9.]+\s*$")
_FORMAT = 'give a text file (UTF-8) with one "first last" per line'


@dataclass(frozen=True)
class TokenPairs:
    """A tokenized list of names.

    Attributes:
        names: (n,) kept names, lower case, sorted.
        pairs: (n, 2) token ids of first and last name.
        dropped: Name to the reason it was dropped.
        first_only: Names of a single token with its id. The release uses them as first names; otherwise dropped.
    """

    names: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    dropped: dict[str, str]
    first_only: tuple[tuple[str, int], ...] = ()

    def column(self, position: int) -> tuple[int, ...]:
        """Every token id of one position, repeats included: 0 for first names, 1 for last names."""
        alone = tuple(token for _, token in self.first_only) if position == 0 else ()
        return tuple(pair[position] for pair in self.pairs) + alone


def token_pairs(tokenizer: Any, names: Sequence[str], *, release: bool = False) -> TokenPairs:
    """Tokenise names for the basis.

    Args:
        tokenizer: the checkpoint's CLIPTokenizer.
        names: "first last", any case; empty lines and repeats are ignored.
        release: take the first two tokens of whatever the name splits into, as the published code does.
    """
    unique = _unique(names)
    encoded: list[list[int]] = tokenizer(unique, add_special_tokens=False).input_ids if unique else []
    special = frozenset(getattr(tokenizer, "all_special_ids", ()))
    kept: dict[str, tuple[int, int]] = {}
    dropped: dict[str, str] = {}
    first_only: list[tuple[str, int]] = []
    seen: set[tuple[int, int]] = set()
    for name, ids in zip(unique, encoded, strict=True):
        pair = (ids[0], ids[1]) if len(ids) > 1 else (-1, -1)
        reason = _reason(name, ids, special, release)
        if not reason and not release and pair in seen:
            reason = SAME_TOKENS
        if reason:
            dropped[name] = reason
        elif len(ids) == 1:
            first_only.append((name, ids[0]))
        else:
            kept[name] = pair
            seen.add(pair)
    return TokenPairs(tuple(kept), tuple(kept.values()), dropped, tuple(first_only))


def shared_pairs(tokenizers: Sequence[Any], names: Sequence[str], *, release: bool = False) -> tuple[TokenPairs, ...]:
    """``token_pairs`` for a model with several text encoders: of every tokenizer, the names that all of them keep."""
    found = [token_pairs(tokenizer, names, release=release) for tokenizer in tokenizers]
    common = set(found[0].names).intersection(*(one.names for one in found))
    alone = set(dict(found[0].first_only)).intersection(*(dict(one.first_only) for one in found))
    return tuple(_only(one, common, alone) for one in found)


@dataclass(frozen=True)
class NameReport:
    """Counts over a list of names for one tokenizer: read = used + first_only + repeated + dropped.

    Attributes:
        read: Names in the list.
        used: Names with a first and a last token.
        first_only: See `TokenPairs`.
        repeated: Repetitions of earlier names.
        dropped: Reason to names, the most frequent reason first.
    """

    read: int
    used: int
    first_only: int
    repeated: int
    dropped: dict[str, tuple[str, ...]]

    def counts(self) -> dict[str, int]:
        """Reason -> how many names were left out for it; repeats are a reason too."""
        counts = {reason: len(names) for reason, names in self.dropped.items()}
        return {**({"repeated in the list": self.repeated} if self.repeated else {}), **counts}

    def without(self, reasons: dict[str, str]) -> NameReport:
        """The report after a further filter. reasons: dropped name to reason."""
        return replace(self, used=self.used - len(reasons), dropped={**self.dropped, **_by_reason(reasons)})


def name_report(names: Sequence[str], pairs: TokenPairs) -> NameReport:
    """Account for the ``names`` that were given to ``token_pairs``."""
    read = sum(bool(name.strip()) for name in names)
    return NameReport(
        read, len(pairs.names), len(pairs.first_only), read - len(_unique(names)), _by_reason(pairs.dropped)
    )


def read_name_list(path: Path) -> list[str]:
    """The names in a text file: one a line, UTF-8 with or without BOM; lines that begin with ``#`` are comments.

    A number after a tab is a score, as a probe of the names writes it. Danbooru tags are read as the names that they
    stand for, see ``plain_name``.

    Raises NotFoundError without the file, InvalidInputError when it cannot be read or holds no name.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(f"there is no list of names at {path}", _FORMAT) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"the list of names {path} cannot be read: {error}", _FORMAT) from error
    lines = (_SCORE.sub("", line) for line in text.splitlines() if not line.lstrip().startswith("#"))
    names = [name for name in map(plain_name, lines) if name]
    if not names:
        raise InvalidInputError(f"the list of names {path} holds no name", _FORMAT)
    return names


def plain_name(line: str) -> str:
    """The name that a Danbooru tag stands for: without underscores, escapes and trailing qualifiers in parentheses.

    Example:
        >>> plain_name(r"artoria_pendragon_\\(fate\\)"), plain_name("Hatsune  Miku (append) (cosplay)")
        ('artoria pendragon', 'Hatsune Miku')
    """
    text = line.replace("\\(", "(").replace("\\)", ")").replace("_", " ")
    return " ".join(_QUALIFIERS.sub("", text).split())


def names_file(parts: TokenTables, chosen: Path | None = None) -> Path:
    """The list for a model: ``chosen``, else its own, else the well-known people.

    Raises IntegrityError when the model declares a list that is missing.
    """
    if chosen is not None:
        return chosen
    own: Path | None = parts.card.names_file
    if own is not None and not own.is_file():
        raise IntegrityError(f"the model {parts.name} lacks its list of names, {own.name}", "download the model again")
    return own or WELL_KNOWN


def read_names(parts: TokenTables, chosen: Path | None = None) -> list[str]:
    """The names for a loaded model, see ``names_file`` and ``read_name_list``."""
    return read_name_list(names_file(parts, chosen))


@dataclass(frozen=True)
class ChosenNames:
    """The list of names chosen for a model key, in the library's folder.

    A text file of names, and beside it a JSON file with their source and the reports of a check by rendering.
    """

    library: Path
    model_key: str

    @property
    def path(self) -> Path:
        """Where the list is, or would be."""
        return self.library / "names" / f"{self.model_key}.txt"

    @property
    def file(self) -> Path | None:
        """The list, or None when none was chosen."""
        return self.path if self.path.is_file() else None

    def save(self, names: Sequence[str], source: Path, reports: Sequence[NameReport] = ()) -> None:
        """Replace the list. Raises SetupError when the library cannot be written."""
        origin = {"source": str(source.resolve()), "reports": [asdict(report) for report in reports]}
        atomic_write(self._origin, (json.dumps(origin, ensure_ascii=False, indent=1) + "\n").encode())
        atomic_write(self.path, "".join(f"{name}\n" for name in names).encode())

    def origin(self) -> tuple[Path, list[NameReport]]:
        """The file that the list was made from, and the reports of a check by rendering, [] without one.

        Raises IntegrityError when it cannot be read.
        """
        try:
            values = parse_json(read_regular(self._origin))
            return Path(values["source"]), [_report_from(report) for report in values["reports"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{self._origin} cannot be read: {error}", "choose the names again", reason="choose_names"
            ) from error

    def remove(self) -> None:
        """Go back to the model's own names. Raises SetupError when the library cannot be written."""
        with translate_os_errors(self.path):
            self.path.unlink(missing_ok=True)
            self._origin.unlink(missing_ok=True)

    @property
    def _origin(self) -> Path:
        return self.path.with_suffix(".json")


def _report_from(values: Mapping[str, Any]) -> NameReport:
    dropped = {str(reason): tuple(str(name) for name in names) for reason, names in values["dropped"].items()}
    read, used, first_only, repeated = (int(values[name]) for name in ("read", "used", "first_only", "repeated"))
    return NameReport(read, used, first_only, repeated, dropped)


def _unique(names: Sequence[str]) -> list[str]:
    return sorted({" ".join(name.split()).lower() for name in names if name.strip()})


def _reason(name: str, ids: list[int], special: frozenset[int], release: bool) -> str:
    if special.intersection(ids):
        return "contains a special token"
    if not ids or (len(ids) < 2 and not release):
        return "fewer than two tokens"
    if release:
        return ""
    if len(name.split()) != 2:
        return "not two words"
    return "" if len(ids) == 2 else f"splits into {len(ids)} tokens"


def _only(found: TokenPairs, names: Set[str], alone: Set[str]) -> TokenPairs:
    kept = {name: pair for name, pair in zip(found.names, found.pairs, strict=True) if name in names}
    first_only = tuple((name, token) for name, token in found.first_only if name in alone)
    lost = {*found.names, *(name for name, _ in found.first_only)} - kept.keys() - alone
    dropped = found.dropped | dict.fromkeys(sorted(lost), OTHER_TOKENIZER)
    return TokenPairs(tuple(kept), tuple(kept.values()), dropped, first_only)


def _by_reason(dropped: dict[str, str]) -> dict[str, tuple[str, ...]]:
    reasons: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        reasons.setdefault(reason, []).append(name)
    return {reason: tuple(names) for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))}
