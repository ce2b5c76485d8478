"""Stage 3: a reader of latents, for a perceptual loss on details that the squared error hardly notices.

An ear or a brow is a few latent numbers out of a thousand; the squared error of a picture without them is almost that
of a picture with them. A network that reads the world's factors off a latent weighs them all alike. It is trained on
unnamed people, one scene each: with celebrities it would infer the ear by recognising the person.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attributes import attribute_loss
from .faces import Faces
from .networks import LatentReader
from .text import SIZES, appearance
from .trainer import TimeBox, TrainingContext, batches, run_stage

#: Population of its own, large enough that hardly anyone is seen twice.
DRAW, IDENTITIES, SHARDS = 73, 200_000, 14


@torch.no_grad()
def encode_faces(vae: Any, faces: Faces, run: TrainingContext) -> Tensor:
    """Latent means (N, 4, 16, 16) float16 of the scenes, cached on disk."""
    path = run.path("latents-unique.pt")
    if path.exists():
        return torch.load(path, weights_only=True)
    made: list[Tensor] = []
    for start in range(0, len(faces.images), 64):
        image = torch.as_tensor(faces.images[start : start + 64]).float().div(127.5).sub(1.0).to(run.device)
        with run.autocast():
            mean = vae.encode(image.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        made.append(mean.to("cpu", torch.float16))
    latents = torch.cat(made)
    torch.save(latents, path)
    return latents


def disturb(x: Tensor, generator: torch.Generator) -> Tensor:
    """What predictions of an unfinished denoiser look like: noise up to sd 0.4, and blur."""
    uniform = [torch.rand(len(x), 1, 1, 1, generator=generator).to(x) for _ in range(2)]
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.lerp(x, soft, 0.7 * uniform[0] ** 2) + 0.4 * uniform[1] ** 2 * torch.randn_like(x)


def train(run: TrainingContext, faces: Faces, latents: Tensor, minutes: float, batch: int = 128) -> LatentReader:
    """Train on attributes and scene facts of disturbed latents; returns the frozen network."""
    looks = appearance(faces.z)
    mean, sd = looks.mean(0), looks.std(0)
    torch.manual_seed(run.seed + 61)  # pyright: ignore[reportUnknownMemberType]
    network: LatentReader = cast(Any, LatentReader(looks.shape[1], SIZES).to(run.device)).to(
        memory_format=torch.channels_last
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.03)
    generator = torch.Generator().manual_seed(run.seed + 62)
    held = len(latents) - 1024
    stream = batches(held, batch, generator)

    def error(index: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(squared error per standardised look of those who are there, cross-entropy of the facts)"""
        _, _, person, scene = network(x.contiguous(memory_format=torch.channels_last))
        who = torch.as_tensor(faces.who[index.numpy()])
        wanted = ((looks[who] - mean) / sd).to(run.device)
        there = torch.stack([torch.ones(len(index)), torch.as_tensor(faces.two[index.numpy()]).float()], 1).bool()
        facts = torch.as_tensor(faces.facts[index.numpy()]).to(run.device)
        return ((person.float() - wanted) ** 2)[there.to(run.device)].mean(0), attribute_loss(scene.float(), facts)

    def step(_: TimeBox) -> dict[str, float]:
        index = next(stream)
        with run.autocast():
            person, scene = error(index, disturb(latents[index].float().to(run.device), generator))
        loss = person.mean() + 0.1 * scene
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return {"looks": person.mean().item(), "facts": scene.item()}

    run_stage(run, ("latent_reader", minutes), {"network": network}, optimiser, step)
    network.eval().requires_grad_(False)
    with torch.no_grad():
        index = torch.arange(held, len(latents))
        person, scene = error(index, latents[index].float().to(run.device))
    run.say(f"latent reader, held out: variance of looks unread {person.mean():.3f}, facts {scene:.3f}")
    return network


def closeness(network: nn.Module, made: Tensor, true: Tensor) -> Tensor:
    """(B,) how differently the reader sees two batches of latents: looks, scene and its inner maps, squared."""
    with torch.no_grad():
        wanted = network(true)
    found = network(made)
    apart = torch.zeros(len(made), device=made.device)
    for a, b, share in zip(found, wanted, (0.5, 0.5, 1.0, 0.05), strict=True):
        a, b = a.float().flatten(1), b.float().flatten(1)
        # the inner maps have no unit of their own
        unit = b.var().clamp_min(1e-6) if share == 0.5 else torch.ones((), device=b.device)
        apart = apart + share * ((a - b) ** 2).mean(1) / unit
    return apart


__all__ = ["DRAW", "IDENTITIES", "SHARDS", "closeness", "encode_faces", "train"]
