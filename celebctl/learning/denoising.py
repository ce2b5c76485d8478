"""The frozen model as the judge of token rows: the denoising loss (paper, equation 1) on encoded views of people.

Who the people are and where their rows come from is not known here: learning a person and training a mapper on many
people both ask this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from celebctl_models.checkpoints.diffusion import UNetConditioning, latents_from_pixels, network_output, read_texts
from celebctl_runtime.sampling.schedule import ScheduleConfig

from .captions import Captions, encode_templates
from .device import has_bfloat16_units, select_attention
from .timestep_sampling import TimestepSampler, max_timestep
from .views import make_views

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.basis.basis import CelebBasis
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.faces.analysis import Face

    from .config import LearnConfig

#: Person index (b,) to their token rows, (b, 2, D) for every text encoder.
TokenEmbeddings = Callable[[Tensor], list[Tensor]]


class IdentityEmbeddings:
    """The basis as tensors on a device: coefficients to token rows.

    mean, components: (2, D) and (2, K, D) per text encoder.
    """

    def __init__(self, basis: CelebBasis, device: torch.device) -> None:
        self.mean = [torch.as_tensor(mean).to(device) for mean in basis.mean]
        self.components = [torch.as_tensor(components).to(device) for components in basis.components]

    def __call__(self, coefficients: Sequence[Tensor]) -> list[Tensor]:
        """(P, 2, K) to (P, 2, D) per text encoder: mean + coefficients x components (paper, equation 3)."""
        parts = zip(coefficients, self.mean, self.components, strict=True)
        return [mean + torch.einsum("pjk,jkd->pjd", given, components) for given, mean, components in parts]


@dataclass(frozen=True)
class Batch:
    """B views to be denoised. x0: latents (B, 4, h, w); weight: of the loss, (B, 1, h, w); who: person index (B,);
    t: timesteps (B,); noise: as x0; ids: captions (B, 77); positions: of the person's two rows in them (B, 2)."""

    x0: Tensor
    weight: Tensor
    person_index: Tensor
    t: Tensor
    noise: Tensor
    ids: Tensor
    positions: Tensor

    def select(self, at: Tensor) -> Batch:
        """Some of the views."""
        given = (self.x0, self.weight, self.person_index, self.t, self.noise, self.ids, self.positions)
        return Batch(*(one[at] for one in given))


class DenoisingLoss:
    """A loaded model with captions, on the device where its UNet is.

    fast: the network computes in bfloat16, where the processor has units for it. loudness: what gradients are
    multiplied by on their way through a float16 network, where they would vanish below 6e-8. levels: the noise.
    """

    def __init__(self, parts: DiffusionParts, captions: str, most_noise: float = 0.0) -> None:
        self.parts = parts
        self.device: torch.device = next(parts.unet.parameters()).device
        self.captions: Captions = encode_templates(parts.tokenizers[0], parts.max_length, captions)
        schedule = ScheduleConfig.from_dict(parts.scheduler_config)
        self.alphas = torch.as_tensor(schedule.alphas_cumprod()).float().to(self.device)
        reach = max_timestep(self.alphas, most_noise, parts.native_size[0] // parts.vae_factor)
        self.levels = TimestepSampler(reach, self.device)
        self.fast = parts.unet.dtype == torch.float32 and has_bfloat16_units(self.device)
        self.loss_scale = 1024.0 if parts.unet.dtype == torch.float16 else 1.0
        select_attention(parts)

    def batch(self, x0: Tensor, weight: Tensor, who: Tensor, generator: torch.Generator) -> Batch:
        """Views with a timestep, noise and a caption each."""
        t = self.levels.draw(len(who), generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        ids, positions = self.captions.draw(len(who), generator)
        return Batch(x0, weight, who, t, noise, ids.to(self.device), positions.to(self.device))

    def backward(self, batch: Batch, rows: TokenEmbeddings, together: int) -> float:
        """Add the gradient of the weighted loss, times ``loudness``, to what ``rows`` are made of; returns the loss.

        The network sees ``together`` views at once; the result is the same however the batch is cut.
        """
        mass = (batch.weight.sum() * batch.x0.shape[1]).clamp_min(1e-6)
        total = 0.0
        for at in torch.split(torch.arange(len(batch.person_index), device=self.device), together):
            part = batch.select(at)
            loss = (self.error(part, rows(part.person_index)) * part.weight).sum() / mass
            torch.autograd.backward(loss * self.loss_scale)
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def loss(self, batch: Batch, rows: TokenEmbeddings, together: int) -> Tensor:
        """The weighted loss of every view on its own, (B,)."""
        found: list[Tensor] = []
        for at in torch.split(torch.arange(len(batch.person_index), device=self.device), together):
            part = batch.select(at)
            error = (self.error(part, rows(part.person_index)) * part.weight).mean(1).sum((1, 2))
            found.append(error / part.weight.sum((1, 2, 3)).clamp_min(1e-6))
        return torch.cat(found)

    def error(self, batch: Batch, rows: list[Tensor]) -> Tensor:
        """Squared error (B, 4, h, w) of what the UNet predicts with ``rows`` in the captions."""
        unet, alpha, device = self.parts.unet, self.alphas[batch.t].view(-1, 1, 1, 1), self.device
        noisy = alpha.sqrt() * batch.x0 + (1.0 - alpha).sqrt() * batch.noise
        with torch.autocast(device.type, torch.bfloat16, enabled=self.fast):
            context, pooled = read_texts(self.parts, batch.ids, rows, batch.positions)
        guidance = torch.full((1,), float(self.parts.card.defaults["guidance"]), device=device)
        extras = UNetConditioning(pooled, self.parts.size_ids(*self.parts.native_size), guidance)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.fast):
            predicted = network_output(unet, noisy.to(unet.dtype), batch.t, context.to(unet.dtype), extras)
        return (predicted.float() - self._target(batch.x0, batch.noise, alpha)) ** 2

    def _target(self, x0: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
        kind = self.parts.prediction_type
        if kind == "v_prediction":
            return alpha.sqrt() * noise - (1.0 - alpha).sqrt() * x0
        return noise if kind == "epsilon" else x0


@torch.no_grad()
def encode_views(
    parts: DiffusionParts, photo: Image, face: Face, count: int, config: LearnConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents (V, 4, h, w) and loss weights (V, 1, h, w), float32, of ``count`` views of the face in a photo."""
    device = next(parts.unet.parameters()).device
    views = make_views(photo.convert("RGB"), face, parts.card.native_size, count, config, generator)
    noise = torch.Generator(device).manual_seed(config.seed)
    pixels = views.pixels.to(device, parts.vae.dtype)
    latents = torch.cat([latents_from_pixels(parts.vae, part, noise) for part in torch.split(pixels, 16)]).float()
    return latents, F.adaptive_avg_pool2d(views.weight, (latents.shape[-2], latents.shape[-1])).to(device)
