"""Stages 7 and 8: networks that only score. What a picture states, and the features of the people and cars in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from celebctl_models.mini.illustration.cars import CAR_FEATURES
from celebctl_models.mini.illustration.people import FEATURES
from celebctl_models.mini.training.faces import augment
from celebctl_models.mini.training.trainer import TimeBox, TrainingContext, run_stage

from .data import STATEMENTS, UNSTATED, as_input, class_loss, random_rows, step_generator
from .networks import FeatureReader, StatementReader
from .subjects import Subjects, crops

#: How much more than ArcFace's crop the reader of people's features sees, so that hair is in it.
WIDEN = 1.9
FEATURE_SIZES = {name: len(options) for name, options in FEATURES.items()}
CAR_FEATURE_SIZES = {name: len(options) for name, options in CAR_FEATURES.items()}


@dataclass(frozen=True)
class ReaderData:
    """What a reader of classes learns from.

    sizes: number of classes by name; wanted: (M, len(sizes)) classes, UNSTATED where there is nothing to read; inputs:
    gives the pictures of some rows.
    """

    sizes: dict[str, int]
    wanted: Tensor
    inputs: Callable[[Tensor, torch.Generator], Tensor]


def feature_data(subjects: Subjects, *, cars: bool) -> ReaderData:
    """Features of people, or of cars, from crops."""
    sizes, widen = (CAR_FEATURE_SIZES, 1.0) if cars else (FEATURE_SIZES, WIDEN)
    return ReaderData(sizes, subjects.features, lambda index, generator: crops(subjects, index, generator, widen))


def statement_data(pixels: Tensor, wanted: Tensor) -> ReaderData:
    """What whole pictures (N, 3, 128, 128) uint8 state."""

    def inputs(rows: Tensor, generator: torch.Generator) -> Tensor:
        return augment(as_input(pixels[rows.to(pixels.device)]), generator)

    return ReaderData(STATEMENTS, wanted, inputs)


def train(run: TrainingContext, data: ReaderData, name: str, stage: int, schedule: tuple[float, int]) -> nn.Module:
    """Train a reader and print how often it is right on a sixteenth held back; ``schedule``: minutes, batch size."""
    torch.manual_seed(run.seed + stage)  # pyright: ignore[reportUnknownMemberType]
    outputs = sum(data.sizes.values())
    fresh = StatementReader(outputs) if data.sizes is STATEMENTS else FeatureReader(outputs)
    network: nn.Module = cast(Any, fresh.to(run.device)).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    minutes, batch = schedule
    count = len(data.wanted)
    held_back = min(1024, max(1, count // 16))

    def step(box: TimeBox) -> dict[str, float]:
        generator = step_generator(run, stage, box.steps)
        rows = random_rows(count - held_back, batch, generator)
        image = data.inputs(rows, generator).to(run.device, memory_format=torch.channels_last)
        with run.autocast():
            logits = network(image)
        loss = class_loss(logits, data.wanted[rows].to(run.device), data.sizes)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return {"loss": loss.item()}

    run_stage(run, (name, minutes), {"network": network}, optimiser, step)
    network.eval().requires_grad_(False)
    run.say(f"{name}, held back: {accuracies(network, data, torch.arange(count - held_back, count), run)}")
    return network


@torch.no_grad()
def accuracies(network: nn.Module, data: ReaderData, rows: Tensor, run: TrainingContext) -> str:
    """Share of right classes by name, of those that can be read."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.cat([network(data.inputs(part, generator).to(run.device)).cpu() for part in torch.split(rows, 64)])
    said: list[str] = []
    for i, (name, part) in enumerate(zip(data.sizes, torch.split(logits, list(data.sizes.values()), 1), strict=True)):
        wanted = data.wanted[rows, i]
        right = (part.argmax(1) == wanted)[wanted != UNSTATED].float().mean()
        said.append(f"{name} {right:.3f}")
    return "  ".join(said)
