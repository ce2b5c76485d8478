"""Tokenizers and text encoders of a diffusion model, loaded without its UNet and autoencoder.

The celeb basis and the learned rows need nothing else: half a gigabyte of Stable Diffusion 1.5's four.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_models.checkpoints.checkpoint_io import (
    check_model_class,
    check_vocabularies,
    freeze,
    load_checkpoint_file,
    load_component,
    quiet_libraries,
    require_packages,
    tensor_shapes,
)
from celebctl_models.checkpoints.checkpoint_layout import Shapes, refuse_layout
from celebctl_models.checkpoints.hub_download import fetch_folder
from celebctl_models.checkpoints.known_models import class_of
from celebctl_models.checkpoints.model_types import TokenTables
from celebctl_models.checkpoints.registry import (
    INDEX_FILE,
    TEXT_FILES,
    Location,
    card_for,
    derive_card,
    locate,
    read_json,
)

if TYPE_CHECKING:
    from torch import Tensor

_BASE_VAE = {"block_out_channels": (128, 256, 512, 512)}  # of all Stable Diffusion models


@dataclass(frozen=True)
class TextEncoderParts(TokenTables):
    """Tokenizers and text encoders of a text-to-image model, frozen, in evaluation mode; an XL model has two of each.

    Attributes:
        text_encoders: transformers CLIPTextModel, always float32; the second one of an XL model, and both of Stable
            Diffusion 3, are a CLIPTextModelWithProjection.
        clip_skip: Which layer is read, counted from the last, 1; 0: the one that the denoiser was trained with.
    """

    text_encoders: tuple[Any, ...]
    clip_skip: int = field(default=0, kw_only=True)

    @property
    def context_layer(self) -> int:
        """The layer that the context is read from, counted from the last, 1. XL reads the last but one."""
        return self.clip_skip or len(self.text_encoders)

    @property
    def max_length(self) -> int:
        """Token ids per prompt, start and end included: 77 for CLIP."""
        return int(self.text_encoders[0].config.max_position_embeddings)

    @property
    def end_id(self) -> int:
        """The token id that ends a prompt. Configs of old text encoders have 2 for the largest id."""
        return int(self.tokenizers[0].eos_token_id)

    def token_table(self, encoder: int = 0) -> Tensor:
        """The token embedding table (V, D) of one text encoder, float32; a view of the weights, not a copy."""
        return cast("Tensor", self.text_encoders[encoder].get_input_embeddings().weight.detach())

    def token_rows(self, encoder: int = 0) -> NDArray[np.float32]:
        """The same table as an array (V, D), on the CPU."""
        return self.token_table(encoder).float().cpu().numpy()


def load_texts(model: str | Path) -> TextEncoderParts:
    """Load tokenizers and text encoders of a model on the CPU.

    UNet and autoencoder are neither downloaded nor read, except from a single-file checkpoint, which diffusers reads
    as a whole.

    Args:
        model: A known name, a diffusers folder, a checkpoint file or a hub id, as in `load_parts`.

    Raises:
        CelebctlError: The same errors as `load_parts`.
    """
    location = locate(model)
    require_packages()
    if location.kind == "file":
        return load_file(location, "cpu").texts
    folder = fetch_folder(location, TEXT_FILES) if location.kind == "hub" else location.path
    tokenizers, encoders = load_text_components(folder, "cpu")
    return TextEncoderParts(folder, tokenizers, card_for(folder, location.name, location.source), encoders)


def load_text_components(folder: Path, device: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Tokenizers and text encoders of a diffusers folder. Raises InvalidInputError for a model of another family."""
    import torch

    check_model_class(folder)
    with quiet_libraries():
        # Each class from its own module: the library's top-level names import far more than these.
        from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        fp32 = {"dtype": torch.float32, "use_safetensors": True}
        projects = class_of(read_json(folder / INDEX_FILE), "text_encoder") == CLIPTextModelWithProjection.__name__
        first = CLIPTextModelWithProjection if projects else CLIPTextModel
        tokenizers = [load_component(CLIPTokenizer, folder, "tokenizer")]
        encoders = [load_component(first, folder, "text_encoder", **fp32)]
        if (folder / "text_encoder_2").is_dir():
            tokenizers.append(load_component(CLIPTokenizer, folder, "tokenizer_2"))
            encoders.append(load_component(CLIPTextModelWithProjection, folder, "text_encoder_2", **fp32))
    check_vocabularies(tokenizers, folder.name)
    return tuple(tokenizers), tuple(freeze(encoder, device) for encoder in encoders)


@dataclass(frozen=True)
class CheckpointFile:
    """A single-file checkpoint, read.

    Attributes:
        texts: Its tokenizers and text encoders.
        pipe: The diffusers pipeline (float32) that holds the other networks; no autoencoder where the file has none.
        shapes: Names and shapes of its tensors.
    """

    texts: TextEncoderParts
    pipe: Any
    shapes: Shapes


def load_file(location: Location, device: str) -> CheckpointFile:
    """Read a single-file checkpoint. Its configs come from the folder of the same name beside it, else from the hub."""
    configs, shapes = location.path.with_suffix(""), tensor_shapes(location.path)
    refuse_layout(location.source, shapes)
    with quiet_libraries():
        pipe = load_checkpoint_file(location.path, configs if configs.is_dir() else None, shapes)
    tokenizers, encoders = [pipe.tokenizer], [pipe.text_encoder]
    if getattr(pipe, "text_encoder_2", None) is not None:
        tokenizers, encoders = [*tokenizers, pipe.tokenizer_2], [*encoders, pipe.text_encoder_2]
    if configs.is_dir():
        card = card_for(configs, location.name, location.source)
    else:
        unet, vae = dict(pipe.unet.config), dict(pipe.vae.config) if pipe.vae else _BASE_VAE
        card = derive_card(location.name, location.source, denoiser=unet, vae=vae, text_encoders=len(encoders))
    check_vocabularies(tokenizers, card.name)
    frozen = tuple(freeze(encoder, device) for encoder in encoders)
    return CheckpointFile(TextEncoderParts(location.path, tuple(tokenizers), card, frozen), pipe, shapes)
