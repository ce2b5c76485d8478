"""At which noise levels learning asks the model, and how much each answer counts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

TURN = 0.6  # share of the training steps from which on the two-phase loss is the noise's (StableIdentity, 2401.15975)
BINS = 8  # levels that importance is measured in
EVEN = 0.25  # share of the draws that stay even, so that no answer counts more than 1 / EVEN
_HEARD = 2  # answers of every bin before draws follow them
SIDE = 16  # latent pixels along a side of the model that `most_noise` is told for


class NoiseLevels:
    """Draws timesteps, and says what the squared error at each is multiplied by.

    loss: "noise" takes the error of what the network predicts as it is; "two-phase" that of the noise where there is
    much, else that of the clean latents (StableIdentity), both scaled to a mean of 1 over all timesteps. times: "even",
    or "important" in proportion to the gradients that came from a level so far, each weighed by the inverse of its
    chance (Katharopoulos and Fleuret, 1803.00942), which leaves the expected gradient as it is. reach: timesteps from
    there on are never drawn.
    """

    def __init__(
        self,
        alphas: Tensor,
        prediction: str,
        loss: Literal["noise", "two-phase"] = "noise",
        times: Literal["even", "important"] = "even",
        reach: int | None = None,
    ) -> None:
        """alphas: cumulative products (T,), on the device of the answers. prediction: what the network predicts."""
        self.alphas, self.times = alphas, times
        self.reach = len(alphas) if reach is None else reach
        self.factor = two_phases(alphas, prediction) if loss == "two-phase" else None
        self.heard = torch.zeros(2, BINS, dtype=torch.float64)  # sum of squared gradients, and how many

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Timesteps (count,), stratified over the batch so that every batch sees all levels, and what the squared
        error at each is multiplied by, (count,); None where that is 1."""
        total, device = self.reach, self.alphas.device
        spot = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        order = torch.randperm(count, generator=generator)
        spot, worth = spot[order], None
        if self.times == "important" and bool((self.heard[1] >= _HEARD).all()):
            spot, worth = self._bend(spot)
            worth = worth.to(device)
        t = (spot * total).long().clamp(max=total - 1).to(device)
        if self.factor is None:
            return t, worth
        return t, self.factor[t] if worth is None else worth * self.factor[t]

    def chances(self) -> Tensor:
        """How likely each bin is asked, (BINS,) float64, of sum 1: the root mean square of its gradients, evened."""
        size = (self.heard[0] / self.heard[1].clamp_min(1.0)).sqrt()
        mean = float(size.mean())
        shares = size / (BINS * mean) if mean > 0 else torch.full_like(size, 1.0 / BINS)
        return EVEN / BINS + (1.0 - EVEN) * shares

    def hear(self, t: Tensor, gradients: Tensor) -> None:
        """Sizes (count,) of the gradients of single errors at timesteps ``t`` (count,), before they were weighed."""
        at = (t.cpu() * BINS // self.reach).long()
        self.heard[0].index_add_(0, at, gradients.detach().cpu().double() ** 2)
        self.heard[1].index_add_(0, at, torch.ones(len(at), dtype=torch.float64))

    def _bend(self, spot: Tensor) -> tuple[Tensor, Tensor]:
        """Even numbers in [0, 1) to numbers of the bins' chances, and the inverse of their density."""
        chances = self.chances()
        ends = chances.cumsum(0)
        at = torch.bucketize(spot.double(), ends, right=True).clamp(max=BINS - 1)
        inside = (spot.double() - (ends[at] - chances[at])) / chances[at]
        return ((at + inside.clamp(0.0, 1.0)) / BINS).float(), (1.0 / (BINS * chances[at])).float()


def reach_of(alphas: Tensor, most_noise: float, side: int) -> int:
    """How many timesteps have no more noise than ``most_noise`` (config.py) for latents of ``side`` pixels a side.

    A part of a picture has more latent pixels where the latents are larger, and its mean drowns in so much more noise:
    deviations count in proportion to the side (Hoogeboom et al., 2301.11093). At least one; 0 asks for all.
    """
    if not most_noise:
        return len(alphas)
    noise = ((1.0 - alphas) / alphas).sqrt()
    return max(1, int((noise <= most_noise * side / SIDE).sum()))


def two_phases(alphas: Tensor, prediction: str) -> Tensor:
    """What turns the squared error of a ``prediction`` into that of the noise, from TURN on, or of the clean latents,
    before it; (T,), of mean 1."""
    noise, signal = 1.0 - alphas, alphas
    of_noise, of_latents = {
        "epsilon": (torch.ones_like(alphas), noise / signal),
        "v_prediction": (signal, noise),
        "sample": (signal / noise, torch.ones_like(alphas)),
    }[prediction]
    late = torch.arange(len(alphas), device=alphas.device) >= TURN * len(alphas)
    factor = torch.where(late, of_noise, of_latents)
    return factor / factor.mean()
