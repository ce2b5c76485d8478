"""What a training step really takes, to compare estimates with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts


def really_saved(parts: DiffusionParts, batch: int) -> int:
    """Bytes of distinct tensors that autograd keeps in a real forward pass, weights not counted."""
    import torch as any_torch

    from celebctl_models.checkpoints.diffusion import UNetConditioning, network_output

    torch: Any = any_torch
    size = parts.native_size[0] // parts.vae_factor
    context = torch.randn(batch, 77, parts.context_width, requires_grad=True)
    pooled = torch.randn(batch, parts.pooled_width) if parts.pooled_width else None
    weights = {p.untyped_storage().data_ptr() for p in parts.denoiser.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    def keep_not(tensor: Any) -> Any:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, keep_not):
        extras = UNetConditioning(pooled, parts.size_ids(*parts.native_size))
        x = torch.randn(batch, parts.latent_channels, size, size)
        network_output(parts.denoiser, x, torch.tensor(5), context, extras)
    return sum(storage.nbytes() for storage in kept.values())
