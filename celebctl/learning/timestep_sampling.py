"""At which noise levels learning asks the model."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE = 16  # latent pixels along a side of the model that `most_noise` is told for


class TimestepSampler:
    """Draws timesteps in [0, reach) as tensors on ``device``."""

    def __init__(self, reach: int, device: torch.device) -> None:
        self.reach, self.device = reach, device

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps (count,) int64, stratified over the batch so that every batch sees all levels."""
        spot = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        spot = spot[torch.randperm(count, generator=generator)]
        return (spot * self.reach).long().clamp(max=self.reach - 1).to(self.device)


def max_timestep(alphas: Tensor, most_noise: float, side: int) -> int:
    """How many timesteps have no more noise than ``most_noise`` (config.py) for latents of ``side`` pixels a side.

    A part of a picture has more latent pixels where the latents are larger, and its mean drowns in so much more noise:
    deviations count in proportion to the side (Hoogeboom et al., 2301.11093). At least one; 0 asks for all.
    """
    if not most_noise:
        return len(alphas)
    noise = ((1.0 - alphas) / alphas).sqrt()
    return max(1, int((noise <= most_noise * side / SIDE).sum()))
