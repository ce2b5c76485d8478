"""How a family's training adds noise to latents, and what its denoiser is trained to predict of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from celebctl_runtime.sampling.schedule import FLOW, ScheduleConfig

from .timestep_sampling import REFERENCE_SIDE, TimestepSampler, max_timestep, stratified

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

_special = cast(Any, torch.special)  # its functions are untyped


class Noising(Protocol):
    """The noising process of a family. x0 and noise are (B, C, h, w) float32, timesteps t are (B,)."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps (count,) as the denoiser takes them."""
        ...

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noisy latents at t."""
        ...

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should predict at t."""
        ...


def noising_of(parts: DiffusionParts, max_noise_sigma: float, device: torch.device) -> Noising:
    """The noising process that a model was trained with.

    Args:
        parts: The model.
        max_noise_sigma: Highest noise-to-signal ratio that is drawn (LearnConfig); 0 draws all.
        device: Of latents and timesteps.
    """
    side = parts.native_size[0] // parts.vae_factor
    if parts.prediction_type == FLOW:
        return FlowNoising(parts.schedule, max_noise_sigma * side / REFERENCE_SIDE, device)
    alphas_cumprod = torch.as_tensor(parts.schedule.alphas_cumprod()).float().to(device)
    return DiffusionNoising(alphas_cumprod, parts.prediction_type, max_timestep(alphas_cumprod, max_noise_sigma, side))


class DiffusionNoising:
    """z_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise (Ho et al. 2020, equation 4), with t drawn uniformly in [0, end).

    Args:
        alphas_cumprod: (T,), a_t.
        prediction_type: "epsilon", "v_prediction" or "sample".
        end: How many of the T timesteps are drawn.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str, end: int) -> None:
        self.alphas_cumprod, self.prediction_type = alphas_cumprod, prediction_type
        self.timesteps = TimestepSampler(end, alphas_cumprod.device)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps (count,) int64."""
        return self.timesteps.draw(count, generator)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noisy latents at t."""
        alpha = self._alpha(t)
        return alpha.sqrt() * x0 + (1.0 - alpha).sqrt() * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the UNet is trained to predict."""
        alpha = self._alpha(t)
        if self.prediction_type == "v_prediction":
            return alpha.sqrt() * noise - (1.0 - alpha).sqrt() * x0
        return noise if self.prediction_type == "epsilon" else x0

    def _alpha(self, t: Tensor) -> Tensor:
        return self.alphas_cumprod[t].view(-1, 1, 1, 1)


class FlowNoising:
    """Rectified flow as Stable Diffusion 3 is trained (Esser et al. 2024, arXiv 2403.03206).

    z = (1 - sigma) x0 + sigma noise, and the target is noise - x0 (section 3). The level is sigmoid(n) with n standard
    normal, which stands for a weight of the loss (section 3.1; the paper's best, "rf/lognorm(0.00, 1.00)"), and sigma
    is that level shifted for large images (section 5.3.2). The timestep is 1000 sigma.

    Args:
        schedule: The model's, with its shift.
        max_ratio: Highest sigma / (1 - sigma) that is drawn; 0 draws all.
        device: Of latents and timesteps.
    """

    def __init__(self, schedule: ScheduleConfig, max_ratio: float, device: torch.device) -> None:
        self.schedule, self.device = schedule, device
        self.end = 1.0  # share of the levels that is drawn
        if max_ratio:  # shifting multiplies the ratio of noise to signal by the shift
            self.end = float(_special.ndtr(torch.tensor(max_ratio / schedule.shift).double().log()))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps (count,) float32, one from each of ``count`` equal shares of the distribution, in random order."""
        shares = stratified(count, generator).double() * self.end
        levels: Tensor = _special.ndtri(shares).sigmoid()
        sigma = torch.as_tensor(self.schedule.shifted(levels.numpy()))
        return (sigma * self.schedule.num_train_timesteps).float().to(self.device)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noisy latents at t."""
        sigma = (t / self.schedule.num_train_timesteps).view(-1, 1, 1, 1)
        return (1.0 - sigma) * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The flow from image to noise, the same at every t."""
        return noise - x0
