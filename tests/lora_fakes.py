"""LoRA files of random numbers for the small models, in the layouts of kohya's trainers and of diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

Layout = Literal["kohya", "diffusers"]
#: Attention, feed-forward and convolutional layers of the UNet; attention and feed-forward of the text encoders.
_ENDS = (".to_q", ".to_k", ".to_out.0", ".ff.net.2", ".conv1", ".q_proj", ".out_proj", ".fc1")
RANK = 2


def layers_of(parts: DiffusionParts) -> Iterator[tuple[int, str, Any]]:
    """(-1 for the denoiser or the number of a text encoder, name as in files, module)."""
    networks = {-1: parts.denoiser, **dict(enumerate(parts.text_encoders))}
    for number, network in networks.items():
        for name, module in network.named_modules():
            if name.endswith(_ENDS):
                trimmed = name.removeprefix("text_model.")
                yield number, f"text_model.{trimmed}" if number >= 0 else name, module


def write_lora(path: Path, parts: DiffusionParts, layout: Layout, *, seed: int = 0, only: str = "") -> Path:
    """Write a LoRA of rank 2 over the layers whose names contain `only`; kohya's has alpha 1, half of its rank."""
    import torch
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    generator = torch.Generator().manual_seed(seed)
    several = len(parts.text_encoders) > 1
    tensors: dict[str, Any] = {}
    for number, name, module in layers_of(parts):
        if only not in name:
            continue
        outputs, inputs, *kernel = cast("tuple[int, ...]", tuple(module.weight.shape))
        down = torch.randn(RANK, inputs, *kernel, generator=generator) * 0.3
        up = torch.randn(outputs, RANK, *(1 for _ in kernel), generator=generator) * 0.3
        if layout == "kohya":
            prefix = "lora_unet" if number < 0 else f"lora_te{number + 1}" if several else "lora_te"
            key = f"{prefix}_{name.replace('.', '_')}"
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        else:
            prefix = _denoiser(parts) if number < 0 else ("text_encoder", "text_encoder_2")[number]
            key = f"{prefix}.{name}"
            tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    save_file(tensors, str(path))
    return path


def _denoiser(parts: DiffusionParts) -> str:
    return "transformer" if type(parts.denoiser).__name__ == "SD3Transformer2DModel" else "unet"
