"""The people a loaded model knows by name, as token rows; and which directions of theirs a face can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityProblem

from .instant import read_layers
from .names import read_names, shared_pairs
from .vectors import Celebrities

if TYPE_CHECKING:
    from celebctl_models.tables import HasTables

    from .basis import CelebBasis

_NOTHING = 1e-4  # of the largest singular value: rounding of the mapper's file


def celebrities_of(parts: HasTables) -> Celebrities:
    """Everybody the basis is made of, with the rows of all text encoders."""
    pairs = shared_pairs(parts.tokenizers, read_names(parts))
    tables = [parts.token_rows(encoder) for encoder in range(len(pairs))]
    rows = tuple(table[np.array(one.pairs)] for table, one in zip(tables, pairs, strict=True))
    return Celebrities(pairs[0].names, rows)


def face_directions(parts: HasTables, basis: CelebBasis) -> NDArray[np.float32] | None:
    """What a face decides of a person's coefficients: (S, r) orthonormal columns, coefficients in standard deviations.

    Whatever the model's mapper answers lies in them, apart from its average answer. None for a model without a mapper
    for this basis.
    """
    file = parts.card.mapper_file
    if file is None or not file.is_file():
        return None
    try:
        weight = read_layers(file, basis)["up.weight"]
    except IntegrityProblem:
        return None  # it goes with the model's own names, and others were chosen
    directions, strength, _ = np.linalg.svd(weight, full_matrices=False)
    return directions[:, strength > _NOTHING * strength[0]]
