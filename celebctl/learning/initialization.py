"""Initialization of the mapper, and framing of the training views, from what a model brings."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celebctl.basis.basis import read_tensors
from celebctl_models.faces.packs import face_models_name
from celebctl_runtime.errors import IntegrityError

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


def require_same_faces(model: PreparedModel[TokenTables], config: LearnConfig, face_models: str) -> None:
    """Raise IntegrityError when the initialization uses a file that was not made with the face models ``face_models``.

    A mapper reads the features of one recogniser. Trained mappers and measured faces in the cache are found by their
    face models; those in a model's folder belong to the face models there, or to those that the file names.
    """
    card, assets = model.parts.card, model.assets
    used = {"fitted": (assets.mapper, card.mapper_file), "celebrities": (assets.faces, card.features_file)}
    path, own = used.get(available_init(assets, config), (None, None))
    if path is None or path != own:
        return
    with contextlib.suppress(OSError, ValueError):  # a damaged file is reported where it is used
        made_with = read_tensors(path)[1].get("face_models") or (card.faces_dir and face_models_name(card.faces_dir))
        if made_with and made_with != face_models:
            raise IntegrityError(
                f"{path.name} of {model.parts.name} was made with the face models {made_with}, not {face_models}",
                "use the model's own face models, or train a mapper for the others",
                reason="mapper_of_other_faces", made_with=made_with, face_models=face_models, model=model.parts.name,
            )  # fmt: skip


def with_model_framing(config: LearnConfig, model: PreparedModel[TokenTables]) -> LearnConfig:
    """The config with its missing framing values taken from the model."""
    framing = model.framing[0].as_dict()
    values: dict[str, Any] = {name: value for name, value in framing.items() if getattr(config, name) is None}
    return replace(config, **values)


def describe_framing(config: LearnConfig, model: PreparedModel[TokenTables]) -> str:
    """Where the views of a complete config show faces, and where that comes from, for the provenance."""
    used, (known, source) = framing_from_config(config), model.framing
    return f"{used} ({source if used == known else 'configured'})"
