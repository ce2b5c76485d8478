"""Which timesteps the denoising loss samples."""

from __future__ import annotations

import torch
from torch import Tensor

REFERENCE_SIDE = 16  # latent side that `LearnConfig.max_noise_sigma` refers to


class TimestepSampler:
    """Stratified timesteps in [0, end) as tensors on ``device``."""

    def __init__(self, end: int, device: torch.device) -> None:
        self.end, self.device = end, device

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps (count,) int64, one from each of ``count`` equal intervals, in random order."""
        u = stratified(count, generator)
        return (u * self.end).long().clamp(max=self.end - 1).to(self.device)


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """Numbers (count,) in [0, 1), one from each of ``count`` equal intervals, in random order."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return u[torch.randperm(count, generator=generator)]


def max_timestep(alphas_cumprod: Tensor, max_noise_sigma: float, side: int) -> int:
    """How many timesteps have a noise-to-signal ratio of at most ``max_noise_sigma`` x side / 16; at least one.

    A larger latent averages over more pixels, so the same detail survives proportionally more noise (Hoogeboom et al.
    2023, arXiv 2301.11093, section 3.1). 0 means all timesteps.
    """
    if not max_noise_sigma:
        return len(alphas_cumprod)
    sigma = ((1.0 - alphas_cumprod) / alphas_cumprod).sqrt()
    return max(1, int((sigma <= max_noise_sigma * side / REFERENCE_SIDE).sum()))
