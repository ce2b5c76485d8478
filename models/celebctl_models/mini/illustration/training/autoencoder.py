"""Stage 1: the AutoencoderKL between 128 x 128 pictures and 16 x 16 x 16 latents.

No scene is seen twice: each step draws its own. In the first 60 % of the time three steps of four learn from windows,
several cut from each scene, half of them around a face or a car; the others, and all later ones, from whole pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from celebctl_models.mini.illustration.cars import CAR_FACTORS
from celebctl_models.mini.illustration.people import FACTORS
from celebctl_models.mini.illustration.scenes import PEOPLE, draw, random_scenes
from celebctl_models.mini.illustration.styles import STYLES
from celebctl_models.mini.training.autoencoder import build, face_weights, reconstruction_loss, tone_weights
from celebctl_models.mini.training.denoiser import fold_statistics
from celebctl_models.mini.training.trainer import ExponentialMovingAverage, TimeBox, TrainingContext, run_stage

from .data import LATENT, SIZE, random_company, step_generator, to_device

STAGE = 1
#: Block widths. Decoding one picture takes 51 ms on one core in float32, 26 ms in bfloat16 (3.3 M parameters, the
#: decoder 2.05 M); (16, 32, 64, 96) takes 30 and 17 ms, (32, 64, 96, 128) 73 and 40 ms.
CHANNELS = (32, 48, 96, 128)
WINDOW, WINDOWS = 64, 4  # px of a window and windows per scene


@dataclass(frozen=True)
class AutoencoderOptions:
    """Minutes to train, scenes a step, block widths (multiples of 8)."""

    minutes: float
    batch: int = 4
    channels: tuple[int, ...] = CHANNELS


def draw_batch(run: TrainingContext, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, 128, 128) in [-1, 1], loss weights (B, 1, 128, 128), middle (B, 2) of a face or a car in px."""
    people, with_car = random_company(count, generator)
    factors = torch.rand(count, PEOPLE, len(FACTORS), generator=generator)
    cars = torch.rand(count, len(CAR_FACTORS), generator=generator)
    scenes = random_scenes(factors, people, generator, torch.where(with_car[:, None], cars, torch.nan))
    with torch.no_grad():
        drawn = draw(to_device(scenes, run.device), SIZE)
        image = (drawn.image * 255 + 0.5).floor().div(127.5).sub(1.0)  # as many shades as a file has
    weight = loss_weights(image, drawn.boxes, scenes.style.to(run.device))
    chosen = (torch.rand(count, generator=generator) * people.clamp_min(1)).long().to(run.device)
    box = drawn.boxes[torch.arange(count, device=run.device), chosen]
    middle = (box[:, :2] + box[:, 2:]) / 2
    where_cars_are = torch.tensor([0.5, 0.7], device=run.device) * SIZE
    return image, weight, torch.where((people == 0)[:, None].to(run.device), where_cars_are, middle)


def loss_weights(image: Tensor, boxes: Tensor, style: Tensor) -> Tensor:
    """(B, 1, 128, 128): faces count six times, hair and ears around them three and a half times, dark places more.

    A pencil drawing counts .3: its grain is noise that no latent can hold, and would be most of the error.
    """
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    grow = torch.stack([-0.25 * width, -0.35 * height, 0.25 * width, 0.15 * height], -1)
    grain = torch.where(style == STYLES.index("pencil"), 0.3, 1.0).view(-1, 1, 1, 1)
    near = (face_weights(boxes, SIZE) + face_weights(boxes + grow, SIZE)) / 2
    return near * tone_weights(image) * grain


def cut_windows(
    batch: tuple[Tensor, Tensor, Tensor], windows: int, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``windows`` squares of each image and its weights; the first half of them around the middle given, shaken."""
    image, weight, middle = batch
    count, room = len(image), SIZE - side
    pixels: list[Tensor] = []
    for k in range(windows):
        anywhere = torch.rand(count, 2, generator=generator) * room
        around = middle.cpu() - side / 2 + (torch.rand(count, 2, generator=generator) - 0.5) * side / 2
        corner = (around if k < windows // 2 else anywhere).clamp(0, room).round().long()
        joined = torch.cat([image, weight], 1)
        for one, (x, y) in zip(joined, corner, strict=True):
            left, top = int(x), int(y)
            pixels.append(one[:, top : top + side, left : left + side])
    cut = torch.stack(pixels)
    return cut[:, :3], cut[:, 3:]


def train(run: TrainingContext, options: AutoencoderOptions) -> Any:
    """The averaged network with standardised latents; KL weight 1e-6."""
    torch.manual_seed(run.seed + STAGE)  # pyright: ignore[reportUnknownMemberType]
    vae = build(options.channels, LATENT, SIZE).to(run.device).to(memory_format=torch.channels_last)
    with torch.no_grad():
        # latents start near zero: noise of deviation 1, as usual, would drown them for hundreds of steps
        vae.quant_conv.bias[LATENT:] = -6.0
    optimiser = torch.optim.AdamW(vae.parameters(), lr=1.2e-3, betas=(0.9, 0.98), weight_decay=0.0)
    average = ExponentialMovingAverage(0.998)
    run.compile(vae.encoder, vae.decoder)

    def step(box: TimeBox) -> dict[str, float]:
        generator = step_generator(run, STAGE, box.steps)
        batch = draw_batch(run, options.batch, generator)
        image, weight = batch[:2]
        if box.share < 0.6 and box.steps % 4:
            image, weight = cut_windows(batch, WINDOWS, WINDOW, generator)
        image = image.contiguous(memory_format=torch.channels_last)
        with run.autocast():
            posterior = vae.encode(image).latent_dist
            made = vae.decode(posterior.sample()).sample.float()
        loss = reconstruction_loss(made, image, weight) + 1e-6 * posterior.kl().mean()
        loss.backward()
        mse = F.mse_loss(made, image)
        faces = ((weight * (made - image) ** 2).mean() / weight.mean()).detach()
        decibels = 10 * torch.log10(4.0 / torch.stack([mse.detach(), faces]))
        return {
            "loss": loss.item(), "psnr": decibels[0].item(), "weighted_psnr": decibels[1].item(),
            "latent_sd": posterior.mean.detach().float().std().item(), "scenes": float((box.steps + 1) * options.batch),
        }  # fmt: skip

    run_stage(run, ("autoencoder", options.minutes), {"vae": vae}, optimiser, step, averages={"vae": average})
    average.copy_to(vae)
    return standardised(vae.eval().requires_grad_(False), run)


@torch.no_grad()
def standardised(vae: Any, run: TrainingContext) -> Any:
    """The same autoencoder with latents of mean 0 and deviation 1 per channel, from 64 scenes."""
    generator = torch.Generator().manual_seed(run.seed + STAGE)
    images = [draw_batch(run, 32, generator)[0].contiguous(memory_format=torch.channels_last) for _ in range(2)]
    fold_statistics(vae, torch.cat([vae.encode(image).latent_dist.mean for image in images]))
    return vae
