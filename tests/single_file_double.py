"""A single-file checkpoint as the original Stable Diffusion code names its tensors, made from a tiny diffusers model.

Knows just the shape of conftest's tiny pipeline: two UNet levels and three autoencoder levels of one layer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celebctl_models.diffusion import DiffusionParts

# (pattern in diffusers' names, name in the original code), applied in order
_UNET = [
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^down_blocks\.0\.resnets\.0\.", "input_blocks.1.0."),
    (r"^down_blocks\.0\.downsamplers\.0\.conv\.", "input_blocks.2.0.op."),
    (r"^down_blocks\.1\.resnets\.0\.", "input_blocks.3.0."),
    (r"^down_blocks\.1\.attentions\.0\.", "input_blocks.3.1."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
    (r"^up_blocks\.0\.resnets\.(\d)\.", r"output_blocks.\1.0."),
    (r"^up_blocks\.0\.attentions\.(\d)\.", r"output_blocks.\1.1."),
    (r"^up_blocks\.0\.upsamplers\.0\.", "output_blocks.1.2."),
    (r"^up_blocks\.1\.resnets\.0\.", "output_blocks.2.0."),
    (r"^up_blocks\.1\.resnets\.1\.", "output_blocks.3.0."),
    (r"(_blocks\.\d\.0|middle_block\.[02])\.norm1\.", r"\1.in_layers.0."),
    (r"(_blocks\.\d\.0|middle_block\.[02])\.conv1\.", r"\1.in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"(_blocks\.\d\.0|middle_block\.[02])\.norm2\.", r"\1.out_layers.0."),
    (r"(_blocks\.\d\.0|middle_block\.[02])\.conv2\.", r"\1.out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
_VAE = [
    (r"\.down_blocks\.(\d)\.resnets\.(\d)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.0\.", ".up.2."),
    (r"\.up_blocks\.2\.", ".up.0."),
    (r"\.up_blocks\.1\.", ".up.1."),
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


def write_single_file(parts: DiffusionParts, path: Path) -> None:
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    tensors: dict[str, Any] = {}
    for name, tensor in parts.unet.state_dict().items():
        tensors["model.diffusion_model." + _renamed(name, _UNET)] = tensor.contiguous()
    for name, tensor in parts.vae.state_dict().items():
        key = _renamed(name, _VAE)
        is_projection = "attn_1" in key and key.endswith("weight") and tensor.ndim == 2
        tensors["first_stage_model." + key] = (tensor[:, :, None, None] if is_projection else tensor).contiguous()
    for name, tensor in parts.text_encoders[0].state_dict().items():
        tensors["cond_stage_model.transformer.text_model." + name] = tensor.contiguous()
    save_file(tensors, str(path))


def _renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
