"""Stage 4: the UNet2DConditionModel, trained on cached latents with the text encoder frozen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from celebctl_models.mini.names import name_book

from .data import Pictures, captions_for
from .latent_reader import closeness
from .networks import LatentReader
from .text import LENGTH, WIDTH
from .trainer import ExponentialMovingAverage, TimeBox, TrainingContext, batches, run_stage

WORKERS = 8  # processes that write captions for a GPU
CHANNELS = (96, 192)
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
}


def build(channels: tuple[int, int] = CHANNELS, latent_channels: int = 4) -> Any:
    """Attention at 8 x 8 only: at 16 x 16 it costs half the speed on a CPU (76 against 115 pictures a second)."""
    from diffusers.models.attention_processor import AttnProcessor
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = cast(Any, UNet2DConditionModel)(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=tuple(width // 32 for width in channels),  # numbers of heads
        norm_num_groups=16,
    )
    unet.set_attn_processor(AttnProcessor())  # plain matmuls: the fused kernel's backward is slower here
    return unet


@torch.no_grad()
def standardise_latents(vae: Any, pictures: Pictures, run: TrainingContext) -> None:
    """``fold_statistics`` of the latents of 1,024 pictures."""
    index = np.arange(0, len(pictures), max(1, len(pictures) // 1024))[:1024]
    means = torch.cat(
        [vae.encode(pictures.images(part).to(run.device)).latent_dist.mean for part in np.array_split(index, 16)]
    )
    mu, sd = fold_statistics(vae, means)
    run.say(f"latents standardised: mean {mu.tolist()}, sd {sd.tolist()}")  # pyright: ignore[reportUnknownMemberType]


@torch.no_grad()
def fold_statistics(vae: Any, means: Tensor) -> tuple[Tensor, Tensor]:
    """Fold zero mean and unit variance per channel into the convolutions beside the latent, so scaling_factor is 1.

    Both convolutions are 1 x 1. ``means``: (N, C, H, W) latent means of pictures. Returns their means and deviations.
    """
    mu, sd = means.mean((0, 2, 3)), means.std((0, 2, 3))
    count = len(mu)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:count] /= sd.view(-1, 1, 1, 1)
    quant.bias[:count] = (quant.bias[:count] - mu) / sd
    quant.bias[count:] -= 2.0 * sd.log()
    post.bias += (post.weight * mu.view(1, -1, 1, 1)).sum((1, 2, 3))
    post.weight *= sd.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)
    return mu, sd


@torch.no_grad()
def encode_pictures(vae: Any, pictures: Pictures, run: TrainingContext) -> Tensor:
    """Latent means of all pictures, (N, 4, 16, 16) float16, cached on disk."""
    path = run.path("latents.pt")
    if path.exists():
        return torch.load(path, weights_only=True)
    latents = torch.empty(len(pictures), 4, 16, 16, dtype=torch.float16)
    for start in range(0, len(pictures), 64):
        index = np.arange(start, min(start + 64, len(pictures)))
        image = pictures.images(index).to(run.device, memory_format=torch.channels_last)
        with run.autocast():
            latents[start : start + 64] = vae.encode(image).latent_dist.mean.to("cpu", torch.float16)
        if start % 8192 == 0:
            run.say(f"encoding {start}/{len(pictures)}")
    torch.save(latents, path)
    return latents


def alphas_cumprod() -> Tensor:
    """Cumulative products of the schedule above, (1000,) float32."""
    betas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, 0).float()


def face_emphasis(boxes: NDArray[np.float32]) -> Tensor:
    """(B, 1, 16, 16) loss weights, mean 1 per picture; faces and the hair around them count about three times."""
    grid = (torch.arange(16) + 0.5) * 4
    box = torch.as_tensor(boxes)[..., None]
    grow = 0.2 * (box[:, :, 2] - box[:, :, 0])
    inside_x = (grid > box[:, :, 0] - grow) & (grid < box[:, :, 2] + grow)
    inside_y = (grid > box[:, :, 1] - 2 * grow) & (grid < box[:, :, 3] + grow)
    weight = 1.0 + 2.0 * (inside_y[:, :, :, None] & inside_x[:, :, None, :]).any(1, keepdim=True).float()
    return weight / weight.mean((1, 2, 3), keepdim=True)


class CaptionedLatents(IterableDataset[Any]):
    """Endless batches of scenes with fresh captions; every worker shuffles on its own.

    Yields index (B,), ids (B, 77), whether the caption is not empty (B,), loss weights (B, 1, 16, 16).
    """

    def __init__(self, pictures: Pictures, tokenizer: Any, batch: int, seed: int) -> None:
        self.pictures, self.tokenizer, self.batch, self.seed = pictures, tokenizer, batch, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        book, worker = name_book(), get_worker_info()
        mine = self.seed if worker is None else self.seed + 1000 * worker.id
        rng = np.random.Generator(np.random.PCG64(mine + 1))
        for index in batches(len(self.pictures), self.batch, torch.Generator().manual_seed(mine)):
            texts = captions_for(book, self.pictures, index.numpy(), rng)
            texts = ["" if rng.random() < 0.1 else t for t in texts]
            ids = self.tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
            captioned = torch.tensor([t != "" for t in texts])
            yield index, ids, captioned, face_emphasis(self.pictures.boxes[index.numpy()])


@dataclass(frozen=True)
class DenoiserData:
    """Scenes with their latents (N, 4, 16, 16), the frozen text encoder with its tokenizer, and the latent reader."""

    pictures: Pictures
    latents: Tensor
    tokenizer: Any
    text: Any
    reader: LatentReader


@dataclass(frozen=True)
class DenoiserOptions:
    """Minutes to train, batch size, peak learning rate, and the weight of the perceptual loss."""

    minutes: float
    batch: int = 32
    learning_rate: float = 7e-4
    perceptual_weight: float = 0.5


def train(
    run: TrainingContext, data: DenoiserData, options: DenoiserOptions, start: dict[str, Tensor] | None = None
) -> Any:
    """v-prediction with stratified timesteps, captions reworded every time, 10 % of them empty for guidance.

    The perceptual loss compares what the latent reader reads off the predicted clean latent and off the true one. It is
    weighted by the share of signal: a prediction from pure noise has no details.
    """
    latents, batch, reader = data.latents, options.batch, data.reader
    torch.manual_seed(run.seed + 5)  # pyright: ignore[reportUnknownMemberType]
    unet = build().to(run.device).to(memory_format=torch.channels_last)
    if start is not None:
        unet.load_state_dict(start)
    rate = options.learning_rate
    optimiser = torch.optim.AdamW(unet.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    abar, workers = alphas_cumprod().to(run.device), WORKERS if run.device.type == "cuda" else 0
    captioned = CaptionedLatents(data.pictures, data.tokenizer, batch, run.seed + 6)
    stream = iter(DataLoader(captioned, batch_size=None, num_workers=workers))

    def step(box: TimeBox) -> dict[str, float]:
        index, ids, has_caption, emphasis = next(stream)
        x0 = latents[index].float().to(run.device)
        t = ((torch.arange(batch) + torch.rand(batch)) * (1000 / batch)).long().to(run.device)
        noise = torch.randn_like(x0)
        a = abar[t].view(-1, 1, 1, 1)
        noisy, target = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
        with run.autocast():
            with torch.no_grad():
                context = data.text(input_ids=ids.to(run.device)).last_hidden_state
            v = unet(noisy.contiguous(memory_format=torch.channels_last), t, context).sample
            clean = (a.sqrt() * noisy - (1 - a).sqrt() * v.float()).contiguous(memory_format=torch.channels_last)
            apart = closeness(reader, clean, x0) * abar[t] * has_caption.to(run.device)
        error = (v.float() - target) ** 2
        loss = (error * emphasis.to(run.device)).mean()
        (loss + options.perceptual_weight * apart.mean()).backward()
        return {"loss": loss.item(), "v_mse": error.mean().item(), "apart": apart.mean().item()}

    average = ExponentialMovingAverage(0.9985)
    run.compile(unet)
    run_stage(run, ("denoiser", options.minutes), {"unet": unet}, optimiser, step, averages={"unet": average})
    average.copy_to(unet)
    return unet.eval()
