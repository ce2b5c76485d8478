"""Initialization of the mapper, and framing of the training views, from what a model brings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .config import framing_from_config

if TYPE_CHECKING:
    from celebctl_models.checkpoints.token_tables import TokenTables

    from .config import LearnConfig
    from .mapper import CoefficientMapper
    from .prepared import ModelAssets, PreparedModel


def available_init(assets: ModelAssets, config: LearnConfig) -> str:
    """The initialization the config asks for, or the next simpler one the model has files for."""
    init = config.init
    if init == "fitted" and (assets.mapper is None or config.names == "release"):
        init = "celebrities"
    if init == "celebrities" and assets.faces is None:
        init = "average"
    return init


def initialize(mapper: CoefficientMapper, model: PreparedModel[TokenTables]) -> None:
    """Initialize a new mapper; "random" keeps the weights it was created with."""
    init = available_init(model.assets, mapper.config)
    if init == "fitted" and model.assets.mapper is not None:
        from celebctl.mapper_training.mapper_store import load_mapper

        mapper.init_from_pretrained(load_mapper(model.assets.mapper, model.basis))
    elif init == "celebrities":
        mapper.fit_linear(*model.celebrity_pairs())
    elif init == "average":
        mapper.init_from_average()


def with_model_framing(config: LearnConfig, model: PreparedModel[TokenTables]) -> LearnConfig:
    """The config with its missing framing values taken from the model."""
    framing = model.framing[0].as_dict()
    values: dict[str, Any] = {name: value for name, value in framing.items() if getattr(config, name) is None}
    return replace(config, **values)


def describe_framing(config: LearnConfig, model: PreparedModel[TokenTables]) -> str:
    """Where the views of a complete config show faces, and where that comes from, for the provenance."""
    used, (known, source) = framing_from_config(config), model.framing
    return f"{used} ({source if used == known else 'configured'})"
