"""The denoising loss of a frozen diffusion model (paper, equation 1) as a function of token embeddings.

Both trainers minimise it: `PersonTrainer` for the people in a few photos, `MapperTrainer` for many people at once. This
module knows neither where the embeddings come from nor who the people are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from celebctl_models.checkpoints.diffusion import UNetConditioning, latents_from_pixels, network_output, read_texts

from .captions import encode_templates
from .device import autocast_dtype, full_precision, has_bfloat16_units, select_attention
from .noising import noising_of
from .views import make_views

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.basis.basis import CelebBasis
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.faces.analysis import Face

    from .config import LearnConfig

#: Person index (b,) to token embeddings, (b, 2, D) for every text encoder.
TokenEmbeddings = Callable[[Tensor], list[Tensor]]


class IdentityEmbeddings:
    """Coefficients to token embeddings, differentiably: `CelebBasis.embed` in torch (paper, equation 3).

    Attributes:
        mean: (2, D) float32 for every text encoder.
        components: (2, K, D) float32 for every text encoder.
    """

    def __init__(self, basis: CelebBasis, device: torch.device) -> None:
        self.mean = [torch.as_tensor(mean).to(device) for mean in basis.mean]
        self.components = [torch.as_tensor(components).to(device) for components in basis.components]

    def __call__(self, coefficients: Sequence[Tensor]) -> list[Tensor]:
        """embedding = mean + coefficients x components: (P, 2, K) to (P, 2, D) for every text encoder."""
        parts = zip(coefficients, self.mean, self.components, strict=True)
        return [mean + torch.einsum("pjk,jkd->pjd", x, components) for x, mean, components in parts]


@dataclass(frozen=True)
class Batch:
    """B views to denoise.

    Attributes:
        x0: Latents (B, C, h, w).
        weight: Loss weights (B, 1, h, w).
        person_index: (B,) int64.
        t: Timesteps (B,) as the denoiser takes them.
        noise: (B, C, h, w), standard normal.
        ids: Token ids of the captions, (B, 77).
        positions: Where the two tokens of the person are in the captions, (B, 2).
    """

    x0: Tensor
    weight: Tensor
    person_index: Tensor
    t: Tensor
    noise: Tensor
    ids: Tensor
    positions: Tensor

    def split(self, size: int) -> list[Batch]:
        """Micro batches of at most ``size`` views."""
        tensors = (self.x0, self.weight, self.person_index, self.t, self.noise, self.ids, self.positions)
        return [Batch(*parts) for parts in zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)]


class DenoisingLoss:
    """Equation 1 of the paper, weighted per latent pixel: E ||w (eps - eps_theta(z_t, t, c(embeddings)))||^2.

    In place of the noise eps stands what the model predicts, and z_t is noised as the model was trained (noising.py).

    Args:
        parts: The frozen model, on its device.
        captions: Kind of caption templates, "photo" or "imagenet".
        max_noise_sigma: Highest noise-to-signal ratio that is sampled (LearnConfig); 0 samples all timesteps.

    Attributes:
        noising: The model's noising process.
        autocast: Whether the networks compute in bfloat16 (float32 weights on hardware with bfloat16 units).
        loss_scale: Factor on gradients, which would underflow in a float16 network below 6e-8.
    """

    def __init__(self, parts: DiffusionParts, captions: str, max_noise_sigma: float = 0.0) -> None:
        self.parts = parts
        self.device: torch.device = next(parts.denoiser.parameters()).device
        self.captions = encode_templates(parts.tokenizers[0], parts.max_length, captions)
        self.noising = noising_of(parts, max_noise_sigma, self.device)
        self.autocast = parts.denoiser.dtype == torch.float32 and has_bfloat16_units(self.device)
        self.loss_scale = 1024.0 if parts.denoiser.dtype == torch.float16 else 1.0
        select_attention(parts)

    def sample_batch(self, x0: Tensor, weight: Tensor, person_index: Tensor, generator: torch.Generator) -> Batch:
        """Draw a timestep, noise and a caption for every view."""
        t = self.noising.draw(len(person_index), generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        ids, positions = self.captions.draw(len(person_index), generator)
        return Batch(x0, weight, person_index, t, noise, ids.to(self.device), positions.to(self.device))

    def backward(self, batch: Batch, embeddings: TokenEmbeddings, micro_batch_size: int) -> float:
        """Accumulate the gradient of the loss times ``loss_scale``; returns the loss.

        The network sees ``micro_batch_size`` views at once; the result does not depend on it beyond rounding.
        """
        norm = (batch.weight.sum() * batch.x0.shape[1]).clamp_min(1e-6)
        total = 0.0
        for part in batch.split(micro_batch_size):
            loss = (self.squared_error(part, embeddings(part.person_index)) * part.weight).sum() / norm
            torch.autograd.backward(loss * self.loss_scale)
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def evaluate(self, batch: Batch, embeddings: TokenEmbeddings, micro_batch_size: int) -> Tensor:
        """The loss of every view, (B,)."""
        losses: list[Tensor] = []
        for part in batch.split(micro_batch_size):
            error = (self.squared_error(part, embeddings(part.person_index)) * part.weight).mean(1).sum((1, 2))
            losses.append(error / part.weight.sum((1, 2, 3)).clamp_min(1e-6))
        return torch.cat(losses)

    def squared_error(self, batch: Batch, embeddings: list[Tensor]) -> Tensor:
        """||target - unet(z_t, t, c)||^2 per latent pixel, (B, C, h, w), with ``embeddings`` in the captions."""
        z_t = self.noising.add_noise(batch.x0, batch.noise, batch.t)
        guidance = torch.full((1,), float(self.parts.card.defaults["guidance"]), device=self.device)
        with torch.autocast(self.device.type, autocast_dtype(self.parts.denoiser), enabled=self.autocast):
            context, pooled = read_texts(self.parts, batch.ids, embeddings, batch.positions)
            extras = UNetConditioning(pooled, self.parts.size_ids(*self.parts.native_size), guidance)
            unet = self.parts.denoiser
            predicted = network_output(unet, z_t.to(unet.dtype), batch.t, context.to(unet.dtype), extras)
        return (predicted.float() - self.noising.target(batch.x0, batch.noise, batch.t)) ** 2


@torch.no_grad()
def encode_views(
    parts: DiffusionParts, photo: Image, face: Face, count: int, config: LearnConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents (V, C, h, w) and loss weights (V, 1, h, w), float32, of ``count`` views of the face in a photo."""
    device = next(parts.denoiser.parameters()).device
    views = make_views(photo.convert("RGB"), face, parts.card.native_size, count, config, generator)
    noise = torch.Generator().manual_seed(config.seed)  # on the CPU: the same noise on every device
    with full_precision(parts.vae):
        parts_of_views = torch.split(views.pixels.to(device), 16)
        latents = torch.cat([latents_from_pixels(parts.vae, pixels, noise) for pixels in parts_of_views])
    return latents, F.adaptive_avg_pool2d(views.weight, (latents.shape[-2], latents.shape[-1])).to(device)
