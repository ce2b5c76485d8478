"""People into a bundle's token tables: the checks that should come before minutes of exporting, and the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from celebctl_runtime.errors import IntegrityError, UsageError
from celebctl_runtime.identity import TOKENS

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.identity import Identity


def check_identities(parts: DiffusionParts, identities: Sequence[Identity], spare_rows: int) -> None:
    """Raise UsageError for a name given twice or too many people, IntegrityError for people of another model."""
    twice = [name for name, count in Counter(identity.name for identity in identities).items() if count > 1]
    if twice:
        raise UsageError(f"two people are called {twice[0]!r}", f"celebctl rename {twice[0]} NEW_NAME")
    needed = TOKENS * len(identities)
    if needed > spare_rows:
        raise UsageError(
            f"{len(identities)} people need {needed} rows, not {spare_rows}", f"use --spare-rows {needed}"
        )
    for identity in identities:
        if (identity.family, identity.table_hash) != (parts.family, parts.table_hash):
            raise IntegrityError(
                f"{identity.name!r} was learned for another model ({identity.family}, {identity.table_hash[:8]})"
                f" than {parts.name} ({parts.family}, {parts.table_hash[:8]})",
                f"learn {identity.name} again for {parts.name}",
            )


def add_people(bundle: Bundle, identities: Iterable[Identity]) -> None:
    """Let the people move into a freshly written bundle, by the same door that is used ever after."""
    for identity in identities:
        bundle.add(identity)
