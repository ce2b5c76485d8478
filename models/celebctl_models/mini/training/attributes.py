"""Stage 5: the reader of attributes that scores captions, trained on the scenes and their decoded copies."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .data import FACTS, Pictures
from .faces import augment
from .networks import AttributeReader
from .text import SIZES
from .trainer import TimeBox, TrainingContext, batches, run_stage


def attribute_loss(logits: Tensor, facts: Tensor) -> Tensor:
    """Sum of the cross-entropies of all attributes; facts: (B, 6) as data.FACTS."""
    return sum(
        (F.cross_entropy(part, facts[:, i]) for i, part in enumerate(torch.split(logits, list(SIZES), 1))),
        torch.zeros((), device=logits.device),
    )


def train(run: TrainingContext, pictures: Pictures, latents: Tensor, vae: Any, minutes: float) -> AttributeReader:
    """Train on scenes, a third of each batch decoded from its latent."""
    torch.manual_seed(run.seed + 51)  # pyright: ignore[reportUnknownMemberType]
    network: AttributeReader = cast(Any, AttributeReader(SIZES).to(run.device)).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    generator = torch.Generator().manual_seed(run.seed + 52)
    trained = len(pictures) - 1024  # the last pictures are never trained on
    stream = batches(trained, 96, generator)

    def batch(index: NDArray[np.int64]) -> Tensor:
        image = pictures.images(index)
        with torch.no_grad(), run.autocast():
            third = len(index) // 3
            image[:third] = vae.decode(latents[index[:third]].float().to(run.device)).sample.float().clamp(-1, 1).cpu()
        return image

    def step(_: TimeBox) -> dict[str, float]:
        index = next(stream).numpy()
        image = augment(batch(index), generator).to(run.device, memory_format=torch.channels_last)
        with run.autocast():
            logits = network(image)
        loss = attribute_loss(logits.float(), torch.as_tensor(pictures.facts[index]).to(run.device))
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return {"loss": loss.item()}

    run_stage(run, ("attributes", minutes), {"network": network}, optimiser, step)
    network.eval()
    with torch.no_grad():
        index = np.arange(trained, len(pictures))
        parts = network(pictures.images(index).to(run.device)).split(SIZES, 1)
        right = {
            name: float((part.argmax(1).cpu() == torch.as_tensor(pictures.facts[index, i])).float().mean())
            for i, (name, part) in enumerate(zip(FACTS, parts, strict=True))
        }
    run.say("attributes on 1,024 held-out scenes: " + "  ".join(f"{k} {v:.3f}" for k, v in right.items()))
    return network
