"""The average celebrity of a model: the origin from which likeness is scaled."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import CelebctlError

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl_models.checkpoints.token_tables import TokenTables

_log = logging.getLogger(__name__)


def average_embeddings(parts: TokenTables, library: Library) -> tuple[NDArray[np.float32], ...] | None:
    """The mean of the model's celeb basis, of the names chosen for it in the library: (2, D) for each text encoder.

    None, with a warning, for a model that has no basis: a bundle without the average cannot scale likeness.
    """
    from celebctl.basis.basis import build_basis
    from celebctl.basis.names import ChosenNames
    from celebctl.library import format_model_key

    names = ChosenNames(library.root, format_model_key(parts.family, parts.table_hash))
    try:
        return build_basis(parts, library.cache(), names=names.file).mean
    except CelebctlError as error:
        _log.warning("%s; the likeness of people cannot be scaled with this bundle", error.problem)
        return None
