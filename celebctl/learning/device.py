"""Device, precision and memory of training.

Coefficients and mapper are always float32; only the frozen UNet and autoencoder may be in half precision.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from celebctl_models.checkpoints.diffusion import (
    UNetConditioning,
    latents_from_pixels,
    network_output,
    pixels_from_latents,
)
from celebctl_runtime.errors import SetupError

from .memory_tracker import MemoryTracker, storage_key

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

_SMALL_LATENT = 32  # side below which plain attention is faster on a CPU
SMALL_UNET, SMALL_BATCH = 100_000_000, 64  # UNets below so many parameters train on so many views at once anywhere
MARGIN = 1.2  # over the tensors' bytes: kernel workspaces and fragmentation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceConfig:
    """device: "cpu" or "cuda". dtype: of UNet and autoencoder."""

    device: str
    dtype: torch.dtype


def select_device(wanted: str = "auto") -> DeviceConfig:
    """CUDA in bfloat16 (float16 before Ampere) where available, else the CPU in float32.

    Raises SetupError when CUDA is required and torch finds none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return DeviceConfig("cpu", torch.float32)
    if not torch.cuda.is_available():
        raise SetupError(
            f"torch {torch.__version__} finds no CUDA device", "install a CUDA build of torch, or use the CPU",
            reason="torch_without_cuda",
        )  # fmt: skip
    return DeviceConfig("cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively, so that autocasting a float32 network is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


def select_attention(parts: DiffusionParts) -> None:
    """On a CPU, use unfused attention for small latents, which trains a UNet 1.4 times faster.

    It stores a weight for every pair of pixels, so large latents keep the fused kernel. Joint attention has no other.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    small = parts.native_size[0] // parts.vae_factor <= _SMALL_LATENT
    fused = all(isinstance(processor, AttnProcessor2_0) for processor in parts.unet.attn_processors.values())
    if small and fused and next(parts.unet.parameters()).device.type == "cpu":
        parts.unet.set_attn_processor(AttnProcessor())


def free_memory(device: str) -> int:
    """Free bytes of a device's memory."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 << 30


def choose_micro_batch(parts: DiffusionParts, views: int, *, low_memory: bool = False) -> int:
    """How many of ``views`` views to train on at once on the model's device; logs the memory that takes.

    Models with fewer than 100 M UNet parameters fit anywhere; for them nothing is measured. ``low_memory`` turns
    gradient checkpointing on and takes one view at a time. Larger models encode images one by one.
    """
    if low_memory:
        parts.unet.enable_gradient_checkpointing()
    elif sum(weight.numel() for weight in parts.unet.parameters()) < SMALL_UNET:
        return SMALL_BATCH
    parts.vae.enable_slicing()
    free = free_memory(str(next(parts.unet.parameters()).device))
    limit = int(0.8 * free)
    size, needed = max_micro_batch(parts, 1 if low_memory else views, limit, checkpointing=low_memory)
    message = memory_message(weight_bytes(parts), needed, free, f"{size} of {views} views at once")
    if needed > limit:
        _log.warning("%s: this may not fit%s", message, "" if low_memory else "; low_memory takes a third")
    else:
        _log.info(message)
    return size


def memory_message(model: int, training: int, free: int, views: str) -> str:
    """Memory of training and free memory, in bytes, as one line; ``free`` as measured with the model loaded."""
    total, model_gb, training_gb, free_gb = (f"{n / 1e9:.1f} GB" for n in (model + training, model, training, free))
    parts = f"{model_gb} the model, {training_gb} training, {views}"
    return f"memory: about {total} ({parts}); {free_gb} free beside the model"


def max_micro_batch(parts: DiffusionParts, views: int, limit: int, *, checkpointing: bool = False) -> tuple[int, int]:
    """How many of ``views`` views fit into ``limit`` bytes at once (at least 1), and the bytes they take beside the
    weights."""
    one = estimate_memory(parts, 1, checkpointing=checkpointing)
    size = max(1, min(views, int(limit / max(1.0, MARGIN * one.step))))
    return size, int(MARGIN * max(size * one.step, one.image))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes.

    Attributes:
        weights: Of all networks.
        saved: Activations that autograd saves in one training step.
        step: Peak of forward and backward.
        image: Peak of encoding or decoding one image.
    """

    weights: int
    saved: int
    step: int
    image: int

    @property
    def activations(self) -> int:
        """What training takes beside the weights, with a margin."""
        return int(MARGIN * max(self.step, self.image))

    @property
    def total(self) -> int:
        """Weights and activations."""
        return self.weights + self.activations


def estimate_memory(parts: DiffusionParts, batch: int, *, checkpointing: bool = False) -> MemoryEstimate:
    """Memory of a training step on ``batch`` views, measured on fake tensors (shapes without data).

    ``checkpointing``: with gradient checkpointing of the UNet.
    """
    saved, step = _step_bytes(parts, batch, checkpointing)
    return MemoryEstimate(weight_bytes(parts), saved, step, _image_bytes(parts))


def weight_bytes(parts: DiffusionParts) -> int:
    """Bytes of the weights of all networks, as they are loaded; with buffers, such as SD3's position embeddings."""
    networks = (*parts.text_encoders, parts.unet, parts.vae)
    tensors = (tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _step_bytes(parts: DiffusionParts, batch: int, checkpointing: bool) -> tuple[int, int]:
    """Bytes saved by autograd after the denoiser's forward pass, and the peak of both passes, without the weights."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    config, dtype = dict(parts.unet.config), parts.unet.dtype
    size, width, pooled_width = parts.native_size[0] // parts.vae_factor, parts.context_width, parts.pooled_width
    # not torch's "meta" device: there attention takes another path, which keeps a weight for every pair of pixels
    with FakeTensorMode():
        unet = _fake_network(type(parts.unet), config, dtype)
        x = torch.empty(batch, parts.latent_channels, size, size, dtype=dtype)
        context = torch.empty(batch, parts.max_length, width, dtype=dtype, requires_grad=True)
        pooled = torch.empty(batch, pooled_width, dtype=dtype) if pooled_width else None
        extras = UNetConditioning(pooled, parts.size_ids(*parts.native_size))
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
                out = network_output(unet, x, zero, context, extras)
            saved = sum(kept.values())
            torch.autograd.backward(out.float().square().sum())
    return saved, live.peak


@torch.no_grad()
def _image_bytes(parts: DiffusionParts) -> int:
    """Peak bytes of encoding or decoding one image, without the weights."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    (height, width), dtype = parts.native_size, parts.vae.dtype
    with FakeTensorMode():
        vae = _fake_network(type(parts.vae), dict(parts.vae.config), dtype)
        with MemoryTracker(vae.parameters()) as encoding:
            latents = latents_from_pixels(vae, torch.empty(1, 3, height, width, dtype=dtype))
        with MemoryTracker(vae.parameters()) as decoding:
            pixels_from_latents(vae, latents)
    return max(encoding.peak, decoding.peak)


def _fake_network(kind: Any, config: dict[str, Any], dtype: torch.dtype) -> Any:
    """A frozen network of this configuration; fake tensors cannot be converted, only created in a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return kind.from_config(config).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
