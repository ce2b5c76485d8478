"""People for one run: rows that stand in for those of the token tables, while the bundle's files stay as they are.

A guest is somebody who does not live in the bundle, or somebody who does with other rows than usual (likeness.py). The
text encoder reads its table from memory then, with a guest's rows in places of nobody who is named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import SetupError
from celebctl_runtime.identity import TOKENS, Identity
from celebctl_runtime.prompting.likeness import FULL_LIKENESS, Likeness, likeness_for, scale_identity

from .manifest import Manifest, TokenTable

if TYPE_CHECKING:
    from .bundle import Bundle


@dataclass(frozen=True, eq=False)
class EmbeddingOverride:
    """Whose ``embeddings``, E arrays (2, D) float32, stand in ``rows``, one pair of row numbers per token table."""

    rows: tuple[tuple[int, int], ...]
    embeddings: tuple[NDArray[np.float32], ...]

    @cached_property
    def digest(self) -> str:
        """Tells guests apart from each other, and from people in the bundle."""
        content = b"".join(array.astype("<f4").tobytes() for array in self.embeddings)
        return f"guest {hashlib.sha256(content).hexdigest()}"


def assign_rows(bundle: Bundle, people: Sequence[Identity]) -> dict[str, EmbeddingOverride]:
    """Places for people who do not live in the bundle, by name.

    Raises IntegrityError for somebody of another model, SetupError when there are too few free places.
    """
    free = bundle.free_rows()
    if len(people) > len(free):
        raise SetupError(
            f"the bundle {bundle.path} has free places for {len(free)} more people, not for {len(people)}",
            f"celebctl export --spare-rows {4 * TOKENS * len(people) + 2 * TOKENS * len(bundle.names)}",
        )
    for person in people:
        bundle.check_fits(person)
    return {person.name: EmbeddingOverride(rows, person.embeddings) for person, rows in zip(people, free, strict=False)}


@dataclass(frozen=True, eq=False)
class PromptPeople:
    """Who may be named in a run: ids that stand for each person, digests for the record, and the guests by name."""

    ids: dict[str, tuple[int, ...]]
    digests: dict[str, str]
    overrides: dict[str, EmbeddingOverride]

    @classmethod
    def resolve(cls, bundle: Bundle, guests: Sequence[Identity]) -> PromptPeople:
        """Everybody in the bundle, and ``guests``, who go before people of the same name. Raises as :func:`seat`."""
        seated = assign_rows(bundle, guests)
        residents = {name: resident.digest for name, resident in bundle.manifest.identities.items()}
        return cls(
            {**bundle.token_ids, **{name: guest.rows[0] for name, guest in seated.items()}},
            {**residents, **{person.name: person.digest for person in guests}},
            seated,
        )

    def overrides_for(self, bundle: Bundle, named: Collection[str], likeness: Likeness) -> list[EmbeddingOverride]:
        """The guests when those who are ``named`` are as like themselves as ``likeness`` says.

        Raises IntegrityError when that takes the average celebrity, whom the bundle does not know.
        """
        found = dict(self.overrides)
        for name in sorted(named):
            share = likeness_for(likeness, name)
            if share < FULL_LIKENESS:
                rows = found[name].rows if name in found else bundle.manifest.identities[name].rows
                usual = found[name].embeddings if name in found else bundle.embeddings(name)
                found[name] = EmbeddingOverride(rows, scale_identity(usual, bundle.average(), share))
        return list(found.values())


def digests_by_row(manifest: Manifest, guests: Sequence[EmbeddingOverride]) -> dict[int, str]:
    """Row of the first token table -> digest of whom a text encoder with these guests finds there."""
    people = {row: resident.digest for resident in manifest.identities.values() for row in resident.rows[0]}
    return {**people, **{row: guest.digest for guest in guests for row in guest.rows[0]}}


def overridden_table(path: Path, table: TokenTable, number: int, guests: Sequence[EmbeddingOverride]) -> NDArray[Any]:
    """Token table ``number`` (rows, D) in its own dtype with the guests in it.

    A private view of the file: only pages that hold guests take memory, and nothing is ever written back.
    """
    view: NDArray[Any] = np.memmap(path, np.dtype(table.dtype), mode="c", shape=(table.rows, table.width))
    for guest in guests:
        view[list(guest.rows[number])] = guest.embeddings[number]
    return view
