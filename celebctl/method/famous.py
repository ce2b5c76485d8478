"""The people a loaded model knows by name, as token rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .names import read_names, shared_pairs
from .vectors import Celebrities

if TYPE_CHECKING:
    from celebctl_models.tables import HasTables


def celebrities_of(parts: HasTables) -> Celebrities:
    """Everybody the basis is made of, with the rows of all text encoders."""
    pairs = shared_pairs(parts.tokenizers, read_names(parts))
    tables = [parts.token_rows(encoder) for encoder in range(len(pairs))]
    rows = tuple(table[np.array(one.pairs)] for table, one in zip(tables, pairs, strict=True))
    return Celebrities(pairs[0].names, rows)
