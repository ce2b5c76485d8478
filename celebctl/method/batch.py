"""One batch of learning: noisy views, captions, and who is who."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """B views. x0: latents (B, 4, h, w); weight: of the loss (B, 1, h, w); who: person (B,); t: timesteps (B,); noise
    as x0; ids: captions (B, 77), which carry each person's two embeddings where positions (B, 2) say."""

    x0: Tensor
    weight: Tensor
    who: Tensor
    t: Tensor
    noise: Tensor
    ids: Tensor
    positions: Tensor

    def split(self, most: int) -> list[Batch]:
        """Parts of at most so many views."""
        return [Batch(*parts) for parts in zip(*(torch.split(tensor, most) for tensor in self), strict=True)]
