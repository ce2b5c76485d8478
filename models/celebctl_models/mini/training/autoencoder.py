"""Stage 1: the AutoencoderKL that turns 64 x 64 pictures into 16 x 16 x 4 latents and back."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .data import Pictures
from .trainer import ExponentialMovingAverage, TimeBox, TrainingContext, batches, run_stage

CHANNELS = (32, 64, 96)  # 1.70 M parameters; narrower ones are no faster on a CPU with bf16 tiles


def build(channels: tuple[int, ...] = CHANNELS, latent_channels: int = 4, size: int = 64) -> Any:
    """An AutoencoderKL with these block widths, whose factor is 2 to the number of blocks less one."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return cast(Any, AutoencoderKL)(
        in_channels=3,
        out_channels=3,
        latent_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        sample_size=size,
    )


def face_weights(boxes: NDArray[np.float32] | Tensor, size: int) -> Tensor:
    """(n, 1, S, S) loss weights: faces count six times, because faces are what people look at.

    boxes: (n, P, 4) px; those without an area count nothing.
    """
    box = torch.as_tensor(boxes)[:, :, :, None]  # (n, P, 4, 1)
    grid = torch.arange(size, device=box.device) + 0.5
    inside_x = (grid > box[:, :, 0]) & (grid < box[:, :, 2])  # (n, P, S)
    inside_y = (grid > box[:, :, 1]) & (grid < box[:, :, 3])
    inside = (inside_y[:, :, :, None] & inside_x[:, :, None, :]).any(1, keepdim=True)
    return 1.0 + 5.0 * inside.float()


def reconstruction_loss(made: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 + squared error, and L1 of the gradients, which keeps the outlines crisp."""
    error = made - image
    pixel = (weight * (error.abs() + 2.0 * error**2)).mean()
    dx = (error[..., :, 1:] - error[..., :, :-1]).abs() * weight[..., :, 1:]
    dy = (error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]
    return pixel + 0.5 * (dx.mean() + dy.mean())


def tone_weights(image: Tensor) -> Tensor:
    """(n, 1, S, S), mean about 1: errors weigh as the eye sees them, relative to how dark the place is.

    Without it a frame or a birthmark on dark skin costs a third of what it costs on light skin, and is left out.
    """
    light = F.avg_pool2d(image.mean(1, keepdim=True), 5, 1, 2) * 0.5 + 0.5
    return 0.75 / (0.25 + light)


def random_crop(image: Tensor, weight: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same random square of images and weights."""
    top, left = (
        int(torch.randint(0, image.shape[-1] - side + 1, (1,), generator=generator)) // 4 * 4 for _ in range(2)
    )
    window = (..., slice(top, top + side), slice(left, left + side))
    return image[window], weight[window]


def train(run: TrainingContext, pictures: Pictures, minutes: float) -> Any:
    """Crops for the first 60 % of the time, full frames after; KL weight 1e-6 (2e-5 killed a latent channel)."""
    torch.manual_seed(run.seed + 8)  # pyright: ignore[reportUnknownMemberType]
    vae = build().to(run.device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=1.2e-3, betas=(0.9, 0.98), weight_decay=0.0)
    generator = torch.Generator().manual_seed(run.seed + 1)
    stream = batches(len(pictures), 32, generator)
    average = ExponentialMovingAverage(0.998)
    run.compile(vae.encoder, vae.decoder)

    def step(box: TimeBox) -> dict[str, float]:
        index = next(stream).numpy()
        image = pictures.images(index)
        weight = face_weights(pictures.boxes[index], 64) * tone_weights(image)
        if box.share < 0.6:
            image, weight = random_crop(image, weight, 32, generator)
        image, weight = image.to(run.device, memory_format=torch.channels_last), weight.to(run.device)
        with run.autocast():
            posterior = vae.encode(image).latent_dist
            made = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(made.float(), image, weight) + 1e-6 * posterior.kl().mean()
        loss.backward()
        mse = F.mse_loss(made.float(), image).item()
        return {"loss": loss.item(), "psnr": 10 * np.log10(4.0 / mse), "latent_sd": posterior.mean.float().std().item()}

    run_stage(run, ("autoencoder", minutes), {"vae": vae}, optimiser, step, averages={"vae": average})
    average.copy_to(vae)
    return vae.eval()
