"""What is known before anybody is learned: where the mapper begins, and where the model draws faces."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from celebctl.basis.celebrities import has_faces, load_faces, pairs_for_fit
from celebctl_models.faces.framing import PHOTOGRAPHS, Framing

from .config import framing_from_config

if TYPE_CHECKING:
    from celebctl.basis.basis import CelebBasis
    from celebctl_models.checkpoints.token_tables import TokenTables

    from .config import LearnConfig
    from .mapper import CoefficientMapper


def available_init(parts: TokenTables, config: LearnConfig) -> str:
    """The start that this model can give: the wanted one, or the next simpler."""
    wanted = config.init
    file = parts.card.mapper_file
    if wanted == "fitted" and (file is None or not file.is_file() or config.names == "release"):
        wanted = "celebrities"
    if wanted == "celebrities" and not has_faces(parts):
        wanted = "average"
    return wanted


def mapper_digest(parts: TokenTables) -> str:
    """Which mapper a model brings or was given, in 16 hexadecimal digits, for telling results apart; "" without one."""
    file = parts.card.mapper_file
    return "" if file is None or not file.is_file() else hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def initialize(mapper: CoefficientMapper, parts: TokenTables, basis: CelebBasis) -> None:
    """Set a fresh mapper to its start; one that is drawn stays as it was drawn."""
    start = available_init(parts, mapper.config)
    if start == "fitted" and parts.card.mapper_file is not None:
        from celebctl.mapper_training.pretraining import (
            load_mapper,  # and torch, which asking for a start must not need
        )

        mapper.init_from_pretrained(load_mapper(parts.card.mapper_file, basis))
    elif start == "celebrities":
        mapper.fit_linear(*pairs_for_fit(parts, basis, load_faces(parts)))
    elif start == "average":
        mapper.init_from_average()


def framing_of(parts: TokenTables) -> tuple[Framing, str]:
    """Where this model draws faces, and how that is known: "declared" by the model, "measured" with the celebrities'
    faces, or "assumed" for photographs."""
    if parts.card.framing is not None:
        return parts.card.framing, "declared"
    measured = load_faces(parts).framing if has_faces(parts) else None
    return (measured, "measured") if measured is not None else (PHOTOGRAPHS, "assumed")


def with_model_framing(config: LearnConfig, parts: TokenTables) -> LearnConfig:
    """The config with faces where the model draws them, as far as it does not say itself where they are to stand."""
    wanted = framing_of(parts)[0].as_dict()
    return replace(config, **{name: share for name, share in wanted.items() if getattr(config, name) is None})


def describe_framing(config: LearnConfig, parts: TokenTables) -> str:
    """Where views of a ``placed`` config show faces, and how that came about, for a person's provenance."""
    used, (known, how) = framing_from_config(config), framing_of(parts)
    return f"{used} ({how if used == known else 'asked for'})"
