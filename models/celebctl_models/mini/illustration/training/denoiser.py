"""Stage 4: the UNet2DConditionModel on cached latents, text encoder frozen, with the latent reader's loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from celebctl_models.mini.training.denoiser import CHANNELS, WORKERS, alphas_cumprod, build, face_emphasis
from celebctl_models.mini.training.latent_reader import closeness
from celebctl_models.mini.training.text import LENGTH
from celebctl_models.mini.training.trainer import ExponentialMovingAverage, TimeBox, TrainingContext, run_stage

from .data import LATENT, Drawn, NamedScenes, captions_of, random_rows, step_generator
from .networks import LatentReader

STAGE = 4


class CaptionedBatches(Dataset[Any]):
    """What each step learns from, by number of the step, so that any number of workers gives the same batches.

    Item: rows (B,), ids (B, 77), whether the caption is not empty (B,), loss weights (B, 1, 16, 16).
    """

    def __init__(self, named: NamedScenes, boxes: Tensor, tokenizer: Any, batch: int, seed: int) -> None:
        self.named, self.boxes, self.tokenizer, self.batch, self.seed = named, boxes.cpu(), tokenizer, batch, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.Generator(np.random.PCG64([self.seed, step]))
        rows = random_rows(len(self.boxes), self.batch, torch.Generator().manual_seed(int(rng.integers(2**62))))
        texts = [text if rng.random() >= 0.1 else "" for text in captions_of(self.named, rows, rng)]
        ids = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).input_ids
        weights = face_emphasis((self.boxes[rows] / 2).numpy())  # its pixels are those of 64 px pictures
        return rows, ids, torch.tensor([text != "" for text in texts]), weights


@dataclass(frozen=True)
class DenoiserData:
    """Scenes with their latents, tokenizer and frozen text encoder, and the latent reader."""

    named: NamedScenes
    drawn: Drawn
    tokenizer: Any
    text: Any
    reader: LatentReader


@dataclass(frozen=True)
class DenoiserOptions:
    """Minutes to train, batch size, peak learning rate, widths, and the weight of the perceptual loss.

    With the default widths a guided step of one picture takes 61 ms on one core in float32 (41 ms in bfloat16); mini's
    takes 67 and 34 ms.
    """

    minutes: float
    batch: int = 32
    learning_rate: float = 7e-4
    channels: tuple[int, int] = CHANNELS
    perceptual_weight: float = 0.5


def train(run: TrainingContext, data: DenoiserData, options: DenoiserOptions) -> Any:
    """v-prediction with stratified timesteps, captions reworded every time, 10 % of them empty for guidance."""
    latents, batch = data.drawn.latents, options.batch
    torch.manual_seed(run.seed + STAGE)  # pyright: ignore[reportUnknownMemberType]
    unet = build(options.channels, LATENT).to(run.device).to(memory_format=torch.channels_last)
    rate = options.learning_rate
    optimiser = torch.optim.AdamW(unet.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    abar, workers = alphas_cumprod().to(run.device), WORKERS if run.device.type == "cuda" else 0
    captioned = CaptionedBatches(data.named, data.drawn.boxes, data.tokenizer, batch, run.seed + STAGE)
    stream: list[Iterator[Any]] = []

    def step(box: TimeBox) -> dict[str, float]:
        if not stream:  # only now is it known at which step the stage goes on
            steps: Any = range(box.steps, 10_000_000)
            stream.append(iter(DataLoader(captioned, batch_size=None, sampler=steps, num_workers=workers)))
        rows, ids, has_caption, emphasis = next(stream[0])
        step_generator(run, STAGE, box.steps)
        x0 = latents[rows.to(latents.device)].float().to(run.device)
        t = ((torch.arange(batch) + torch.rand(batch)) * (1000 / batch)).long().to(run.device)
        noise = torch.randn_like(x0)
        a = abar[t].view(-1, 1, 1, 1)
        noisy, target = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
        with run.autocast():
            with torch.no_grad():
                context = data.text(input_ids=ids.to(run.device)).last_hidden_state
            v = unet(noisy.contiguous(memory_format=torch.channels_last), t, context).sample
            clean = (a.sqrt() * noisy - (1 - a).sqrt() * v.float()).contiguous(memory_format=torch.channels_last)
            # a prediction from pure noise has no details
            apart = closeness(data.reader, clean, x0) * abar[t] * has_caption.to(run.device)
        error = (v.float() - target) ** 2
        loss = (error * emphasis.to(run.device)).mean()
        (loss + options.perceptual_weight * apart.mean()).backward()
        return {"loss": loss.item(), "v_mse": error.mean().item(), "apart": apart.mean().item()}

    average = ExponentialMovingAverage(0.9985)
    run.compile(unet)
    run_stage(run, ("denoiser", options.minutes), {"unet": unet}, optimiser, step, averages={"unet": average})
    average.copy_to(unet)
    return unet.eval().requires_grad_(False)
