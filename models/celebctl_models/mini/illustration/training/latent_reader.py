"""Stage 3: a reader of latents for a perceptual loss on details, as mini's (see its latent_reader module)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from celebctl_models.mini.illustration.scenes import PEOPLE
from celebctl_models.mini.training.latent_reader import disturb
from celebctl_models.mini.training.trainer import TimeBox, TrainingContext, run_stage

from .data import (
    STATEMENTS,
    Drawn,
    UnnamedScenes,
    car_looks_of,
    class_loss,
    looks_of,
    random_rows,
    statements,
    step_generator,
)
from .networks import LatentReader

STAGE = 3
#: Seed and sizes of its population: large enough that hardly anyone is seen twice.
POPULATION, PEOPLE_COUNT, CARS_COUNT = 73, 400_000, 60_000
HELD_BACK = 512


def subjects_of(unnamed: UnnamedScenes) -> tuple[Tensor, Tensor]:
    """Standardised looks (N, 3 * A + C) of the people and the car of each scene, and which of them are there, bool."""
    count = len(unnamed.scenes)
    people = looks_of(unnamed.scenes.factors.flatten(0, 1))
    people = ((people - people.mean(0)) / people.std(0).clamp_min(1e-3)).view(count, -1)
    cars = car_looks_of(unnamed.scenes.car_factors)
    here = cars[unnamed.scenes.car]
    cars = (cars - here.mean(0)) / here.std(0).clamp_min(1e-3)
    there = torch.arange(PEOPLE)[None] < unnamed.scenes.count[:, None]
    width = people.shape[1] // PEOPLE
    chosen = [there.repeat_interleave(width, 1), unnamed.scenes.car[:, None].expand(-1, cars.shape[1])]
    return torch.cat([people, cars], 1), torch.cat(chosen, 1)


def train(run: TrainingContext, unnamed: UnnamedScenes, drawn: Drawn, minutes: float, batch: int = 128) -> LatentReader:
    """Train on looks and statements of disturbed latents; returns the frozen network."""
    torch.manual_seed(run.seed + STAGE)  # pyright: ignore[reportUnknownMemberType]
    looks = looks_of(unnamed.scenes.factors[:1, 0]).shape[1]
    car_looks = car_looks_of(unnamed.scenes.car_factors[:1]).shape[1]
    fresh = LatentReader(looks, car_looks, sum(STATEMENTS.values())).to(run.device)
    network: LatentReader = cast(Any, fresh).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.03)
    facts = statements(unnamed.scenes)
    wanted, there = subjects_of(unnamed)
    held_back = min(HELD_BACK, len(facts) // 4)

    def error(rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(squared error of the standardised looks of those who are there, cross-entropy of the statements)"""
        _, _, seen, scene = network(x.contiguous(memory_format=torch.channels_last))
        apart = (seen.float() - wanted[rows].to(run.device)) ** 2
        chosen = there[rows].to(run.device)
        return (apart * chosen).sum() / chosen.sum(), class_loss(scene, facts[rows].to(run.device), STATEMENTS)

    def step(box: TimeBox) -> dict[str, float]:
        generator = step_generator(run, STAGE, box.steps)
        rows = random_rows(len(facts) - held_back, batch, generator)
        with run.autocast():
            latents = drawn.latents[rows.to(drawn.latents.device)].float().to(run.device)
            apart, scene = error(rows, disturb(latents, generator))
        (apart + 0.05 * scene).backward()  # pyright: ignore[reportUnknownMemberType]
        return {"looks": apart.item(), "statements": scene.item()}

    run_stage(run, ("latent_reader", minutes), {"network": network}, optimiser, step)
    network.eval().requires_grad_(False)
    with torch.no_grad():
        rows = torch.arange(len(facts) - held_back, len(facts))
        apart, scene = error(rows, drawn.latents[-held_back:].float().to(run.device))
    run.say(f"latent reader, held back: variance of looks unread {apart:.3f}, statements {scene:.3f}")
    return network
