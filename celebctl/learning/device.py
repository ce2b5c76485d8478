"""Device, precision and memory of training.

Coefficients and mapper are always float32; only the frozen UNet and autoencoder may be in half precision.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from celebctl_models.checkpoints.diffusion import (
    UNetConditioning,
    latents_from_pixels,
    network_output,
    pixels_from_latents,
)
from celebctl_runtime.backends.device import parse_device
from celebctl_runtime.backends.nvidia_driver import driver_cuda_version, driver_error
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
    """device: "cpu", "cuda" or "cuda:1". dtype: of UNet and autoencoder."""

    device: str
    dtype: torch.dtype


def select_device(wanted: str = "auto") -> DeviceConfig:
    """CUDA in bfloat16 (float16 before Ampere) where available, else the CPU in float32.

    ``wanted``: "cpu", "cuda" or "cuda:1" (or "trt", which needs it); other devices only draw, and count as "auto".
    Raises SetupError when CUDA is required and torch finds none, no GPU of that number, or one that is too old for it.
    """
    spec = parse_device(wanted)
    if spec.kind == "cpu" or (spec.kind not in ("cuda", "trt") and not torch.cuda.is_available()):
        return DeviceConfig("cpu", torch.float32)
    if not torch.cuda.is_available():
        raise _no_cuda()
    spec.check_index(torch.cuda.device_count())
    device = torch.device("cuda", spec.index)
    _check_capability(device)
    return DeviceConfig(str(replace(spec, kind="cuda")), torch.bfloat16 if _has_bfloat16(device) else torch.float16)


def _no_cuda() -> SetupError:
    """Why torch finds no CUDA device: its build, the driver or the GPU."""
    built_for: str | None = cast(Any, torch).version.cuda
    if built_for is None:
        problem = f"torch {torch.__version__} is a build without CUDA"
        return SetupError(problem, "install a CUDA build of torch, or use the CPU", reason="torch_without_cuda")
    major, minor = (int(part) for part in built_for.split(".")[:2])
    required, supported = 1000 * major + 10 * minor, driver_cuda_version()
    if supported is None or supported // 1000 < major:
        return driver_error(required)
    problem = f"torch {torch.__version__} finds no GPU, though the driver supports CUDA {built_for}"
    return SetupError(problem, "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU", reason="cuda_failed")


def _check_capability(device: torch.device) -> None:
    """Raise SetupError for a GPU older than all that torch was built for."""
    built_for = [int(name[3:].rstrip("af")) for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    if not built_for:
        return
    oldest, (major, minor) = min(built_for), torch.cuda.get_device_capability(device)
    if 10 * major + minor < oldest:
        raise SetupError(
            f"{torch.cuda.get_device_name(device)} is too old: its compute capability is {major}.{minor}, and torch"
            f" {torch.__version__} needs {oldest // 10}.{oldest % 10}",
            "install a torch that was built for it, or use the CPU", reason="gpu_too_old",
        )  # fmt: skip


def autocast_dtype(network: Any) -> torch.dtype:
    """The half precision to compute in: bfloat16, or float16 for a float16 network or a GPU without bfloat16 units."""
    device: torch.device = next(network.parameters()).device
    emulated = device.type == "cuda" and not has_bfloat16_units(device)
    return torch.float16 if emulated or network.dtype == torch.float16 else torch.bfloat16


@contextmanager
def full_precision(network: Any) -> Generator[None]:
    """A network in float32 within a `with` block; its weights are the same afterwards.

    bfloat16 has three digits: an autoencoder in it adds its rounding to every latent that learning looks at.
    """
    dtype: torch.dtype = network.dtype
    torch.nn.Module.to(network, torch.float32)  # diffusers' own method warns of every cast
    try:
        yield
    finally:
        torch.nn.Module.to(network, dtype)


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively, so that autocasting a float32 network is faster."""
    if device.type == "cuda":
        return _has_bfloat16(device)
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


def _has_bfloat16(device: torch.device) -> bool:
    """Natively: torch counts emulation too unless asked not to, and that is slower than float16."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def select_attention(parts: DiffusionParts) -> None:
    """On a CPU, use unfused attention for small latents, which trains a UNet 1.4 times faster.

    It stores a weight for every pair of pixels, so large latents keep the fused kernel. Joint attention has no other.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    small = parts.native_size[0] // parts.vae_factor <= _SMALL_LATENT
    fused = all(isinstance(processor, AttnProcessor2_0) for processor in parts.denoiser.attn_processors.values())
    if small and fused and next(parts.denoiser.parameters()).device.type == "cpu":
        parts.denoiser.set_attn_processor(AttnProcessor())


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
        parts.denoiser.enable_gradient_checkpointing()
    elif sum(weight.numel() for weight in parts.denoiser.parameters()) < SMALL_UNET:
        return SMALL_BATCH
    parts.vae.enable_slicing()
    free = free_memory(str(next(parts.denoiser.parameters()).device))
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
    networks = (*parts.text_encoders, parts.denoiser, parts.vae)
    tensors = (tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _step_bytes(parts: DiffusionParts, batch: int, checkpointing: bool) -> tuple[int, int]:
    """Bytes saved by autograd after the denoiser's forward pass, and the peak of both passes, without the weights."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    config, dtype = dict(parts.denoiser.config), parts.denoiser.dtype
    size, width, pooled_width = parts.native_size[0] // parts.vae_factor, parts.context_width, parts.pooled_width
    # not torch's "meta" device: there attention takes another path, which keeps a weight for every pair of pixels
    with FakeTensorMode():
        unet = _fake_network(type(parts.denoiser), config, dtype)
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
