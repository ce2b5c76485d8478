"""Stages 5, 6 and 9: the recogniser, the judge that only scores, and the recogniser of cars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celebctl_models.mini.training.networks import Judge, Recogniser
from celebctl_models.mini.training.recogniser import ArcFaceMargin
from celebctl_models.mini.training.trainer import TimeBox, TrainingContext, run_stage

from .data import random_rows, step_generator
from .subjects import Subjects, crops


@dataclass(frozen=True)
class RecogniserOptions:
    """Name and number of the stage, minutes, batch size, and whether it is the judge's build (CosFace, 256 numbers)."""

    name: str
    stage: int
    minutes: float
    batch: int = 128
    judge: bool = False


@torch.no_grad()
def verification(network: nn.Module, held_out: Subjects, run: TrainingContext) -> str:
    """Same-subject and other-subject cosines, and TAR at FAR 1e-3, on up to 1,500 of people or cars never seen."""
    network.eval()
    generator = torch.Generator().manual_seed(1)
    index = torch.randperm(len(held_out.rows), generator=generator)[:1500]
    parts = [crops(held_out, part, generator).to(run.device) for part in torch.split(index, 100)]
    feature = torch.cat([F.normalize(network(part).float(), dim=1).cpu() for part in parts])
    who = held_out.who[index]
    upper = torch.ones(len(index), len(index)).triu(1).bool()
    cosine, same = (feature @ feature.T)[upper], (who[:, None] == who[None])[upper]
    if not same.any():
        return "no one is seen twice"
    others = cosine[~same].sort().values
    accepted = (cosine[same] > others[int(0.999 * (len(others) - 1))]).float().mean()
    return f"same {cosine[same].mean():.3f} other {others.mean():.3f}+-{others.std():.3f} TAR@1e-3 {accepted:.3f}"


def train(run: TrainingContext, subjects: Subjects, held_out: Subjects, options: RecogniserOptions) -> nn.Module:
    """Train to tell the population apart, and to have its looks read off the feature, which the mapper draws from."""
    torch.manual_seed(run.seed + options.stage)  # pyright: ignore[reportUnknownMemberType]
    fresh = Judge() if options.judge else Recogniser()
    network: nn.Module = cast(Any, fresh.to(run.device)).to(memory_format=torch.channels_last)
    width = 256 if options.judge else 512
    seed = run.seed + 100 + options.stage
    margin = ArcFaceMargin(subjects.looks, width, additive=options.judge, seed=seed).to(run.device)
    optimiser = torch.optim.AdamW([*network.parameters(), *margin.parameters()], lr=2e-3, weight_decay=0.02)

    def step(box: TimeBox) -> dict[str, float]:
        generator = step_generator(run, options.stage, box.steps)
        index = random_rows(len(subjects.rows), options.batch, generator)
        crop: Tensor = crops(subjects, index, generator).to(run.device)
        with run.autocast():
            feature = network(crop)
        strength, reading = 0.35 * min(1.0, box.share * 4), max(0.6, 4.0 - 6.0 * box.share)
        loss = margin(feature, subjects.who[index].to(run.device), strength, reading)
        loss.backward()
        return {"loss": loss.item()}

    run_stage(run, (options.name, options.minutes), {"network": network, "margin": margin}, optimiser, step)
    run.say(f"{options.name}: {verification(network, held_out, run)}")
    return network.eval().requires_grad_(False)
