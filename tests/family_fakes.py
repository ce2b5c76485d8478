"""Small random members of every family, in the diffusers layout: the published models' structure, a few channels wide.

Levels, kinds of blocks, heads and projections are those of the published UNets, with one layer a block instead of two,
for time; text encoders have two layers; autoencoders have four levels, 8 pixels a latent pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import SCHEDULER, write_pipeline, write_xl_pipeline

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
