"""Token rows that replace those of a bundle for one run, while the bundle's files stay unchanged.

An override stands for a person who is not stored in the bundle, or for one who is, with scaled rows (likeness.py). The
text encoder then reads a copy of its token table in memory, with the override's rows in place of the file's.
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
    """``embeddings``, E arrays (2, D) float32, to use in ``rows``, one pair of row numbers per token table."""

    rows: tuple[tuple[int, int], ...]
    embeddings: tuple[NDArray[np.float32], ...]

    @cached_property
    def digest(self) -> str:
        """Identifies the embeddings; never equal to the digest of a stored identity."""
        content = b"".join(array.astype("<f4").tobytes() for array in self.embeddings)
        return f"override {hashlib.sha256(content).hexdigest()}"


def assign_rows(bundle: Bundle, identities: Sequence[Identity]) -> dict[str, EmbeddingOverride]:
    """Free spare rows for identities that are not stored in the bundle, by name.

    Raises:
        IntegrityError: When an identity was learned for another model.
        SetupError: When the bundle has too few free rows.
    """
    free = bundle.free_rows()
    if len(identities) > len(free):
        rows = 4 * TOKENS * len(identities) + 2 * TOKENS * len(bundle.names)
        raise SetupError(
            f"the bundle {bundle.path} has spare rows for {len(free)} more people, not for {len(identities)}",
            f"export the bundle with spare_rows={rows}",
            reason="bundle_full",
            path=bundle.path,
            spare_rows=rows,
        )
    for identity in identities:
        bundle.check_fits(identity)
    return {
        identity.name: EmbeddingOverride(rows, identity.embeddings)
        for identity, rows in zip(identities, free, strict=False)
    }


@dataclass(frozen=True, eq=False)
class PromptPeople:
    """The people that prompts may name: their token ids, their digests for the record, and the overrides, by name."""

    ids: dict[str, tuple[int, ...]]
    digests: dict[str, str]
    overrides: dict[str, EmbeddingOverride]

    @classmethod
    def resolve(cls, bundle: Bundle, identities: Sequence[Identity]) -> PromptPeople:
        """The bundle's people and ``identities``, which take precedence. Raises as :func:`assign_rows` does."""
        overrides = assign_rows(bundle, identities)
        stored = {name: entry.digest for name, entry in bundle.manifest.identities.items()}
        return cls(
            {**bundle.token_ids, **{name: override.rows[0] for name, override in overrides.items()}},
            {**stored, **{identity.name: identity.digest for identity in identities}},
            overrides,
        )

    def overrides_for(self, bundle: Bundle, names: Collection[str], likeness: Likeness) -> list[EmbeddingOverride]:
        """All overrides, with the people in ``names`` scaled to ``likeness``.

        Raises IntegrityError when scaling needs the average celebrity and the bundle lacks it.
        """
        overrides = dict(self.overrides)
        for name in sorted(names):
            scale = likeness_for(likeness, name)
            if scale < FULL_LIKENESS:
                known = overrides.get(name)
                rows = bundle.manifest.identities[name].rows if known is None else known.rows
                embeddings = bundle.embeddings(name) if known is None else known.embeddings
                overrides[name] = EmbeddingOverride(
                    rows, scale_identity(embeddings, bundle.average_embeddings(), scale)
                )
        return list(overrides.values())


def digests_by_row(manifest: Manifest, overrides: Sequence[EmbeddingOverride]) -> dict[int, str]:
    """Row of the first token table -> digest of the embeddings a text encoder with these overrides reads there."""
    stored = {row: entry.digest for entry in manifest.identities.values() for row in entry.rows[0]}
    return {**stored, **{row: override.digest for override in overrides for row in override.rows[0]}}


def overridden_table(
    path: Path, table: TokenTable, number: int, overrides: Sequence[EmbeddingOverride]
) -> NDArray[Any]:
    """Token table ``number`` (rows, D) in its own dtype, with the overrides applied.

    A copy-on-write view of the file: only pages with overrides take memory, and nothing is written back.
    """
    view: NDArray[Any] = np.memmap(path, np.dtype(table.dtype), mode="c", shape=(table.rows, table.width))
    for override in overrides:
        view[list(override.rows[number])] = override.embeddings[number]
    return view
