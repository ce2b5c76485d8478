"""Where the mapper begins: what the model's people already tell about faces, before a new one is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .celebrities import has_faces, load_faces, pairs_for_fit

if TYPE_CHECKING:
    from celebctl_models.tables import HasTables

    from .basis import CelebBasis
    from .config import LearnConfig
    from .mapper import CoefficientMapper


def start_of(parts: HasTables, config: LearnConfig) -> str:
    """The start that this model can give: the wanted one, or the next simpler."""
    wanted = config.start
    file = parts.card.mapper_file
    if wanted == "fitted" and (file is None or not file.is_file() or config.names == "release"):
        wanted = "celebrities"
    if wanted == "celebrities" and not has_faces(parts):
        wanted = "average"
    return wanted


def set_start(mapper: CoefficientMapper, parts: HasTables, basis: CelebBasis) -> None:
    """Set a fresh mapper to its start; one that is drawn stays as it was drawn."""
    start = start_of(parts, mapper.config)
    if start == "fitted" and parts.card.mapper_file is not None:
        from .pretrain import load_mapper  # and torch, which asking for a start must not need

        mapper.start_from_fitted(load_mapper(parts.card.mapper_file, basis))
    elif start == "celebrities":
        mapper.start_from(*pairs_for_fit(parts, basis, load_faces(parts)))
    elif start == "average":
        mapper.start_from_average()
