"""A single-file checkpoint as the original Stable Diffusion code names its tensors, made from a tiny diffusers model.

Three namings: 1.x (CLIP under "cond_stage_model.transformer"), 2.x (OpenCLIP under "cond_stage_model.model") and XL
(both, under "conditioner.embedders"). Levels and layers are read from the model's configs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

Rules = list[tuple[str, str]]

# (pattern in diffusers' names, name in the original code), applied in order, after the rules for the levels
_UNET: Rules = [
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
    (r"(put_blocks\.\d+\.0|middle_block\.[02])\.norm1\.", r"\1.in_layers.0."),
    (r"(put_blocks\.\d+\.0|middle_block\.[02])\.conv1\.", r"\1.in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"(put_blocks\.\d+\.0|middle_block\.[02])\.norm2\.", r"\1.out_layers.0."),
    (r"(put_blocks\.\d+\.0|middle_block\.[02])\.conv2\.", r"\1.out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
_VAE: Rules = [
    (r"\.down_blocks\.(\d)\.resnets\.(\d)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up\.(\d)\.resnets\.(\d)\.", r".up.\1.block.\2."),
    (r"\.up\.(\d)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
]
_OPEN_CLIP: Rules = [
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
]


def write_single_file(
    parts: DiffusionParts,
    path: Path,
    *,
    open_clip: bool = False,
    half: bool = False,
    vae: bool = True,
    marks: Sequence[str] = (),
) -> None:
    """Write the file. A model with two text encoders is written as XL.

    Args:
        parts: The model.
        path: The file.
        open_clip: Name the one text encoder as 2.x does.
        half: float16, with what trainers also leave in a file: position ids, OpenCLIP's logit scale, moving averages.
        vae: Include the autoencoder.
        marks: Names of empty tensors, which mark v-prediction and zero terminal SNR.
    """
    import torch
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in _unet(parts.denoiser).items()}
    if vae:
        tensors |= {f"first_stage_model.{name}": tensor for name, tensor in vae_tensors(parts.vae).items()}
    first, *others = parts.text_encoders
    if others:
        tensors |= _clip(first, "conditioner.embedders.0.transformer.")
        tensors |= _open_clip(others[0], "conditioner.embedders.1.model.")
    elif open_clip:
        tensors |= _open_clip(first, "cond_stage_model.model.")
        tensors |= _beyond_penultimate(tensors, "cond_stage_model.model.")
    else:
        tensors |= _clip(first, "cond_stage_model.transformer.")
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items()} | {
            "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
            "conditioner.embedders.1.model.logit_scale": torch.ones(()),
            "model_ema.num_updates": torch.zeros((), dtype=torch.int32),
        }
    tensors |= {mark: torch.zeros(0) for mark in marks}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, str(path))


def _unet(unet: Any) -> dict[str, Any]:
    """Levels are numbered through: each block of `layers` layers, and what changes the size, is one place."""
    config = unet.config
    layers, rules = int(config.layers_per_block), list[tuple[str, str]]()
    for level in range(len(config.block_out_channels)):
        first = 1 + level * (layers + 1)
        for layer in range(layers):
            rules += _layer(f"down_blocks.{level}", layer, f"input_blocks.{first + layer}")
        place = f"input_blocks.{first + layers}.0.op."
        rules.append((rf"^down_blocks\.{level}\.downsamplers\.0\.conv\.", place))
    for level, kind in enumerate(config.up_block_types):
        first = level * (layers + 1)
        for layer in range(layers + 1):
            rules += _layer(f"up_blocks.{level}", layer, f"output_blocks.{first + layer}")
        place = f"output_blocks.{first + layers}.{2 if 'Attn' in kind else 1}."
        rules.append((rf"^up_blocks\.{level}\.upsamplers\.0\.", place))
    return {_renamed(name, rules + _UNET): tensor for name, tensor in unet.state_dict().items()}


def _layer(block: str, layer: int, place: str) -> Rules:
    start = re.escape(block)
    return [(rf"^{start}\.resnets\.{layer}\.", f"{place}.0."), (rf"^{start}\.attentions\.{layer}\.", f"{place}.1.")]


def vae_tensors(vae: Any) -> dict[str, Any]:
    """The original counts the decoder's levels from the picture, and its projections are convolutions of one pixel."""
    last = len(vae.config.block_out_channels) - 1
    rules = [(rf"\.up_blocks\.{level}\.", f".up.{last - level}.") for level in range(last + 1)] + _VAE
    found: dict[str, Any] = {}
    for name, tensor in vae.state_dict().items():
        key = _renamed(name, rules)
        found[key] = tensor[:, :, None, None] if "attn_1" in key and tensor.ndim == 2 else tensor
    return found


def _clip(encoder: Any, prefix: str) -> dict[str, Any]:
    return {f"{prefix}text_model.{name}": tensor for name, tensor in _states(encoder).items()}


def _open_clip(encoder: Any, prefix: str) -> dict[str, Any]:
    """Queries, keys and values in one matrix, and a projection that is multiplied from the other side."""
    import torch

    found: dict[str, Any] = {}
    states = _states(encoder)
    for name, tensor in states.items():
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = tensor.T
        elif match := re.search(r"\.q_proj\.(weight|bias)$", name):
            whole = [states[name.replace(".q_proj.", f".{which}_proj.")] for which in "qkv"]
            place = _renamed(name[: match.start()] + ".", _OPEN_CLIP)
            found[f"{prefix}{place}in_proj_{match[1]}"] = torch.cat(whole)
        elif not re.search(r"\.[kv]_proj\.", name):
            found[prefix + _renamed(name, _OPEN_CLIP)] = tensor
    return found


def _beyond_penultimate(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    """What 2.x files also hold and never use: OpenCLIP's last layer (2.x reads the one before) and its projection."""
    import torch

    blocks = f"{prefix}transformer.resblocks."
    last = max(int(name.removeprefix(blocks).split(".")[0]) for name in tensors if name.startswith(blocks))
    old, new = f"{blocks}{last}.", f"{blocks}{last + 1}."
    unused = {name.replace(old, new): -tensor for name, tensor in tensors.items() if name.startswith(old)}
    width = tensors[f"{prefix}ln_final.weight"].shape[0]
    return {**unused, f"{prefix}text_projection": torch.eye(width), f"{prefix}logit_scale": torch.ones(())}


def _states(encoder: Any) -> dict[str, Any]:
    """transformers has CLIPTextModel with and without a "text_model" around it."""
    return {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
