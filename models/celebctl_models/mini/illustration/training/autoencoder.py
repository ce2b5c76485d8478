"""Stage 1: the AutoencoderKL between 128 x 128 pictures and 16 x 16 x 16 latents.

No scene is seen twice: each step draws its own. In the first 60 % of the time three steps of four learn from windows,
several cut from each scene, half of them around a face or a car; the others, and all later ones, from whole pictures.

The first steps teach encoder and decoder apart, a code between them given: 16 cosine coefficients of each 8 x 8 block.
Learned jointly from the start, the latents stayed one direction, brightness, for 300 steps (15.4 dB, without colours;
the first of their 16 principal components had .93 of the variance).
"""

from __future__ import annotations

import math
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
    """Minutes to train, scenes a step, block widths (multiples of 8), steps in which the code is given."""

    minutes: float
    batch: int = 4
    channels: tuple[int, ...] = CHANNELS
    code_steps: int = 500


class BlockCode:
    """Cosine coefficients of 8 x 8 blocks, as JPEG's: eight of brightness, four of each difference of colours.

    Image (B, 3, S, S) in [-1, 1] -> (B, 16, S / 8, S / 8), mean 0 and deviation 1 per channel over ``examples``.
    """

    COEFFICIENTS = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1))
    COLOURS = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))

    def __init__(self, examples: Tensor) -> None:
        at = torch.arange(8) + 0.5
        waves = torch.stack([torch.cos(math.pi / 8 * frequency * at) for frequency in range(3)])
        rows = [
            torch.tensor(colour).view(3, 1, 1) * waves[y][:, None] * waves[x]
            for colour, count in zip(self.COLOURS, (8, 4, 4), strict=True)
            for y, x in self.COEFFICIENTS[:count]
        ]
        self.kernel = torch.stack(rows).to(examples.device)
        code = F.conv2d(examples, self.kernel, stride=8)
        self.mean, self.sd = code.mean((0, 2, 3), keepdim=True), code.std((0, 2, 3), keepdim=True)

    def __call__(self, image: Tensor) -> Tensor:
        return (F.conv2d(image, self.kernel, stride=8) - self.mean) / self.sd


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
    block_code = BlockCode(draw_batch(run, 64, torch.Generator().manual_seed(run.seed))[0])
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
            given = block_code(image) if box.steps < options.code_steps else None
            made = vae.decode(posterior.sample() if given is None else given).sample.float()
        loss = reconstruction_loss(made, image, weight) + 1e-6 * posterior.kl().mean()
        if given is not None:
            loss = loss + F.mse_loss(posterior.mean.float(), given)
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
