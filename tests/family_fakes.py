"""Small random members of every family, in the diffusers layout: the published models' structure, a few channels wide.

Levels, kinds of blocks, heads and projections are those of the published UNets, with one layer a block instead of two,
for time; text encoders have two layers; autoencoders have four levels, 8 pixels a latent pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from conftest import SCHEDULER, WORDS, build_tokenizer, write_json, write_pipeline, write_xl_pipeline

TRAILING = {**SCHEDULER, "_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
LCM = {"_class_name": "LCMScheduler", "original_inference_steps": 50}
VAE = (8, 8, 16, 16)
SD2_UNET: dict[str, Any] = {
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "block_out_channels": (16, 24, 32, 32),
    "attention_head_dim": (2, 4, 8, 8),
    "use_linear_projection": True,
}
SD1_UNET = {**SD2_UNET, "attention_head_dim": 8, "use_linear_projection": False}
OPEN_CLIP = {"hidden_act": "gelu", "projection_dim": 24}


def sd1(folder: Path) -> None:
    write_pipeline(folder, "epsilon", vae_channels=VAE, unet=SD1_UNET)


def sd2(folder: Path, **text: Any) -> None:
    """`text` goes over the configuration of the text encoder, OpenCLIP's."""
    write_pipeline(folder, "v_prediction", vae_channels=VAE, unet=SD2_UNET, text={**OPEN_CLIP, **text})


def sd_turbo(folder: Path) -> None:
    """2.1, distilled for 1 to 4 steps from trailing timesteps, without guidance (its model card)."""
    write_pipeline(folder, "epsilon", vae_channels=VAE, scheduler=TRAILING, unet=SD2_UNET, text=OPEN_CLIP)


def lcm(folder: Path) -> None:
    """1.5 with one more input: the guidance scale is an input of its UNet."""
    write_pipeline(folder, "epsilon", vae_channels=VAE, scheduler=LCM, unet={**SD1_UNET, "time_cond_proj_dim": 16})


def xl(folder: Path) -> None:
    write_xl_pipeline(folder, vae_channels=VAE)


def xl_v(folder: Path) -> None:
    """A fine-tuned relative of XL that predicts v."""
    write_xl_pipeline(folder, vae_channels=VAE, scheduler={**SCHEDULER, "prediction_type": "v_prediction"})


def xl_turbo(folder: Path) -> None:
    """XL, distilled as SD-Turbo (diffusers' page "SDXL Turbo")."""
    write_xl_pipeline(folder, vae_channels=VAE, scheduler=TRAILING)


#: SD3.5's own, but for the autoencoder's channels and `layers_per_block`.
SD3_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": VAE,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
#: As SD3.5-medium's: dual attention in the first half of the blocks, and normalized queries and keys.
SD3_TRANSFORMER: dict[str, Any] = {
    "sample_size": 16,
    "num_layers": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "caption_projection_dim": 32,
    "joint_attention_dim": 96,
    "pooled_projection_dim": 32 + 40,
    "pos_embed_max_size": 48,
    "dual_attention_layers": (0, 1),
    "qk_norm": "rms_norm",
}
SD3_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


def sd3(folder: Path, *, scheduler: dict[str, Any] | None = None, **transformer: Any) -> None:
    """Stable Diffusion 3.5 without T5, which its index lists as the published one does; text widths 32 and 48.

    `scheduler` and `transformer` go over the configurations of these parts.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    tokenizer = build_tokenizer(WORDS)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    tokenizer.pad_token = "!"
    tokenizer.save_pretrained(str(folder / "tokenizer_2"))
    common: dict[str, Any] = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 77}
    common |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "initializer_factor": 4.0}
    first = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_attention_heads=2, projection_dim=32, **common)
    common["hidden_act"] = "gelu"
    second = CLIPTextConfig(hidden_size=48, intermediate_size=96, num_attention_heads=3, projection_dim=40, **common)
    for name, config in (("text_encoder", first), ("text_encoder_2", second)):
        cast(Any, CLIPTextModelWithProjection(config)).save_pretrained(str(folder / name))
    denoiser = cast(Any, SD3Transformer2DModel)(**{**SD3_TRANSFORMER, **transformer})
    denoiser.save_pretrained(str(folder / "transformer"))
    cast(Any, AutoencoderKL)(**SD3_VAE).save_pretrained(str(folder / "vae"))
    write_json(folder / "scheduler" / "scheduler_config.json", {**SD3_SCHEDULER, **(scheduler or {})})
    clip = ["transformers", "CLIPTextModelWithProjection"]
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": clip,
        "text_encoder_2": clip,
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
