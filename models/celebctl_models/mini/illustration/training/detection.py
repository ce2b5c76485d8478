"""Stages 5 and 9: detectors of faces and of cars, SCRFD-shaped, on zoomed and shifted pictures."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from celebctl_models.mini.training.detector import detector_loss
from celebctl_models.mini.training.faces import augment
from celebctl_models.mini.training.networks import Detector
from celebctl_models.mini.training.trainer import TimeBox, TrainingContext, run_stage

from .data import SIZE, random_rows, step_generator
from .subjects import Subjects


def detector_batch(
    subjects: Subjects, rows: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Randomly zoomed and shifted pictures.

    image (B, 3, 128, 128) in [-1, 1], black outside; boxes (B, P, 4), points (B, P, 5, 2) and present (B, P).
    """
    count, device = len(rows), subjects.pixels.device
    zoom = torch.exp(torch.empty(count).uniform_(-0.75, 0.35, generator=generator))  # < 1 shrinks the scene
    shift = torch.empty(count, 2).uniform_(-0.25, 0.25, generator=generator)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0 / zoom
    theta[:, :, 2] = -shift / zoom[:, None]
    where = F.affine_grid(theta, [count, 3, SIZE, SIZE], align_corners=False).to(device)
    image = subjects.pixels[rows.to(device)].float().div_(127.5)
    picture = F.grid_sample(image, where, align_corners=False) - 1.0

    def move(px: Tensor) -> Tensor:  # (B, P, n, 2)
        unit = px / (SIZE / 2) - 1.0
        return ((unit * zoom.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 2)) + 1.0) * (SIZE / 2)

    corners = subjects.boxes[rows].reshape(count, -1, 2, 2)
    boxes = move(corners).flatten(-2)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = ((centre > 0) & (centre < SIZE)).all(-1)
    return picture, boxes, move(subjects.landmarks[rows]), subjects.present[rows] & inside


def train(run: TrainingContext, subjects: Subjects, name: str, stage: int, schedule: tuple[float, int]) -> Detector:
    """Train a detector; ``schedule``: minutes and batch size."""
    torch.manual_seed(run.seed + stage)  # pyright: ignore[reportUnknownMemberType]
    network: Detector = cast(Any, Detector().to(run.device)).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    minutes, batch = schedule

    def step(box: TimeBox) -> dict[str, float]:
        generator = step_generator(run, stage, box.steps)
        rows = random_rows(len(subjects.pixels), batch, generator)
        picture, boxes, points, present = detector_batch(subjects, rows, generator)
        picture = augment(picture, generator).to(run.device, memory_format=torch.channels_last) * (127.5 / 128)
        with run.autocast():
            maps = network.maps(picture)
        loss, sure = detector_loss(maps, boxes.to(run.device), points.to(run.device), present.to(run.device))
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return {"loss": loss.item(), "confidence": sure}

    run_stage(run, (name, minutes), {"network": network}, optimiser, step)
    return network.eval().requires_grad_(False)
