"""Where learning computes: the device, the precision of the frozen network, and how much memory that takes.

The coefficients and the mapper are float32 everywhere; only the frozen UNet and autoencoder are ever smaller.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from celebctl_models.checkpoints.diffusion import latents_from_pixels, pixels_from_latents
from celebctl_runtime.errors import SetupError

from .memory_tracker import MemoryTracker, storage_key

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

_FEW_PIXELS = 32  # side of a latent


@dataclass(frozen=True)
class DeviceConfig:
    """device: "cpu", "cuda" or "cuda:1". dtype: of UNet and autoencoder."""

    device: str
    dtype: torch.dtype


def select_device(wanted: str = "auto") -> DeviceConfig:
    """The best place there is: a CUDA device in bfloat16 (float16 before Ampere), else the CPU in float32.

    Raises SetupError when CUDA is asked for and torch has none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return DeviceConfig("cpu", torch.float32)
    if not torch.cuda.is_available():
        raise SetupError(
            f"torch {torch.__version__} finds no CUDA device", "install a CUDA build of torch, or use --device cpu"
        )
    return DeviceConfig("cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether autocasting a float32 network to bfloat16 pays: without units for it, it would be slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


def select_attention(parts: DiffusionParts) -> None:
    """On a CPU, attention over few pixels learns 1.4 times faster as plain products than through the fused kernel.

    Plain products keep a weight for every pair of pixels, so large latents stay with the kernel.
    """
    from diffusers.models.attention_processor import AttnProcessor

    if next(parts.unet.parameters()).device.type == "cpu" and parts.native_size[0] // parts.vae_factor <= _FEW_PIXELS:
        parts.unet.set_attn_processor(AttnProcessor())


def free_memory(device: str) -> int:
    """Bytes that may be taken on a device without harm."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 << 30


def max_micro_batch(parts: DiffusionParts, views: int, limit: int, *, checkpointing: bool = False) -> tuple[int, int]:
    """How many of ``views`` views fit into ``limit`` bytes at once, and the bytes they take; the networks are there
    already and not counted. At least one view, whether it fits or not."""
    one = estimate_memory(parts, 1, checkpointing=checkpointing)
    together = max(1, min(views, int(limit / max(1.0, MARGIN * one.step))))
    return together, int(MARGIN * max(together * one.step, one.picture))


MARGIN = 1.2  # of what tensors take: workspaces of kernels, and fragmentation


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. weights: of all networks. saved: what one learning step keeps for its way back; step: the most it holds at
    once, there and back. picture: the most that encoding or decoding one picture holds. total: with a margin."""

    weights: int
    saved: int
    step: int
    picture: int

    @property
    def activations(self) -> int:
        """What learning takes beside the weights, and a fifth of it for workspaces and fragmentation."""
        return int(MARGIN * max(self.step, self.picture))

    @property
    def total(self) -> int:
        """Weights and activations."""
        return self.weights + self.activations


def estimate_memory(parts: DiffusionParts, batch: int, *, checkpointing: bool = False) -> MemoryEstimate:
    """What a learning step on ``batch`` views takes, counted on copies of the networks that have shapes and no numbers.

    With ``checkpointing`` the UNet keeps the inputs of its blocks only, and one block at a time is run again.
    """
    saved, step = _step_bytes(parts, batch, checkpointing)
    return MemoryEstimate(weight_bytes(parts), saved, step, _picture_bytes(parts))


def weight_bytes(parts: DiffusionParts) -> int:
    """Bytes of the weights of all networks, as they are loaded."""
    networks = (*parts.text_encoders, parts.unet, parts.vae)
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


def _step_bytes(parts: DiffusionParts, batch: int, checkpointing: bool) -> tuple[int, int]:
    """Bytes that autograd holds after the UNet's forward pass, each tensor once; and the most that live at once on the
    way there and back. Weights are not counted."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    config, dtype = dict(parts.unet.config), parts.unet.dtype
    size, width, pooled_width = parts.native_size[0] // parts.vae_factor, parts.context_width, parts.pooled_width
    # not torch's "meta" device: there attention takes another path, which keeps a weight for every pair of pixels
    with FakeTensorMode():
        unet = _built_as(type(parts.unet), config, dtype)
        x = torch.empty(batch, parts.latent_channels, size, size, dtype=dtype)
        context = torch.empty(batch, parts.max_length, width, dtype=dtype, requires_grad=True)
        options: dict[str, Any] = {}
        if pooled_width:
            pooled = torch.empty(batch, pooled_width, dtype=dtype)
            options["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.empty(batch, 6, dtype=dtype)}
        if checkpointing:
            unet.train()
            unet.enable_gradient_checkpointing()
        kept: dict[int, int] = {}
        own = {storage_key(p) for p in unet.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if storage_key(tensor) not in own:
                kept[storage_key(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        with MemoryTracker(unet.parameters()) as live:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                zero = torch.zeros((), dtype=torch.long)
                (out,) = unet(x, zero, encoder_hidden_states=context, return_dict=False, **options)
            saved = sum(kept.values())
            torch.autograd.backward(out.float().square().sum())
    return saved, live.peak


@torch.no_grad()
def _picture_bytes(parts: DiffusionParts) -> int:
    """The most bytes that encoding or decoding one picture holds at once, weights not counted."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    (height, width), dtype = parts.native_size, parts.vae.dtype
    with FakeTensorMode():
        vae = _built_as(type(parts.vae), dict(parts.vae.config), dtype)
        with MemoryTracker(vae.parameters()) as encoding:
            latents = latents_from_pixels(vae, torch.empty(1, 3, height, width, dtype=dtype))
        with MemoryTracker(vae.parameters()) as decoding:
            pixels_from_latents(vae, latents)
    return max(encoding.peak, decoding.peak)


def _built_as(kind: Any, config: dict[str, Any], dtype: torch.dtype) -> Any:
    """A frozen network of this configuration; tensors without numbers cannot be converted, only made in a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return kind.from_config(config).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
