"""People for one run: rows that stand in for those of the token tables, while the bundle's files stay as they are.

A guest is somebody who does not live in the bundle, or somebody who does with other rows than usual (likeness.py). The
text encoder reads its table from memory then, with a guest's rows in places of nobody who is named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import EnvironmentProblem
from .identity import TOKENS, Identity
from .manifest import Manifest, TokenTable

if TYPE_CHECKING:
    from .bundle import Bundle


@dataclass(frozen=True, eq=False)
class Guest:
    """Whose ``embeddings``, E arrays (2, D) float32, stand in ``rows``, one pair of row numbers per token table."""

    rows: tuple[tuple[int, int], ...]
    embeddings: tuple[NDArray[np.float32], ...]

    @cached_property
    def digest(self) -> str:
        """Tells guests apart from each other, and from people in the bundle."""
        content = b"".join(array.astype("<f4").tobytes() for array in self.embeddings)
        return f"guest {hashlib.sha256(content).hexdigest()}"


def seat(bundle: Bundle, people: Sequence[Identity]) -> dict[str, Guest]:
    """Places for people who do not live in the bundle, by name.

    Raises IntegrityProblem for somebody of another model, EnvironmentProblem when there are too few free places.
    """
    free = bundle.free_rows()
    if len(people) > len(free):
        raise EnvironmentProblem(
            f"the bundle {bundle.path} has free places for {len(free)} more people, not for {len(people)}",
            f"celebctl export --spare-rows {4 * TOKENS * len(people) + 2 * TOKENS * len(bundle.names)}",
        )
    for person in people:
        bundle.check_fits(person)
    return {person.name: Guest(rows, person.embeddings) for person, rows in zip(people, free, strict=False)}


def digests(manifest: Manifest, guests: Sequence[Guest]) -> dict[int, str]:
    """Row of the first token table -> digest of whom a text encoder with these guests finds there."""
    people = {row: resident.digest for resident in manifest.identities.values() for row in resident.rows[0]}
    return {**people, **{row: guest.digest for guest in guests for row in guest.rows[0]}}


def table_with_guests(path: Path, table: TokenTable, number: int, guests: Sequence[Guest]) -> NDArray[Any]:
    """Token table ``number`` (rows, D) in its own dtype with the guests in it.

    A private view of the file: only pages that hold guests take memory, and nothing is ever written back.
    """
    view: NDArray[Any] = np.memmap(path, np.dtype(table.dtype), mode="c", shape=(table.rows, table.width))
    for guest in guests:
        view[list(guest.rows[number])] = guest.embeddings[number]
    return view
