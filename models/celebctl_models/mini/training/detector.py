"""Stage 4: the detector of mini's world, trained on zoomed and shifted scenes."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .faces import Faces, augment
from .networks import Detector
from .trainer import TimeBox, TrainingContext, batches, run_stage


def detector_batch(
    faces: Faces, index: NDArray[np.int64], side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Randomly zoomed and shifted scenes at ``side`` px.

    image (B, 3, side, side) in [-1, 1], boxes, points, present (B, 2).
    """
    count = len(index)
    zoom = torch.exp(torch.empty(count).uniform_(-0.75, 0.35, generator=generator))  # < 1 shrinks the scene
    shift = torch.empty(count, 2).uniform_(-0.25, 0.25, generator=generator)
    image = torch.as_tensor(faces.images[index]).float().div_(127.5)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0 / zoom
    theta[:, :, 2] = -shift / zoom[:, None]
    where = F.affine_grid(theta, [count, 3, side, side], align_corners=False)
    picture = F.grid_sample(image, where, align_corners=False) - 1.0

    def move(px: Tensor) -> Tensor:  # (B, 2, n, 2) in 64-px pixels -> side px
        unit = px / 32.0 - 1.0
        return ((unit * zoom.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 2)) + 1.0) * (side / 2)

    boxes = move(torch.as_tensor(faces.boxes[index]).view(count, 2, 2, 2)).reshape(count, 2, 4)
    points = move(torch.as_tensor(faces.points[index]))
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = ((centre > 0) & (centre < side)).all(-1)
    present = torch.stack([torch.ones(count, dtype=torch.bool), torch.as_tensor(faces.two[index])], 1) & inside
    return picture, boxes, points, present


def detector_loss(maps: list[Tensor], boxes: Tensor, points: Tensor, present: Tensor) -> tuple[Tensor, float]:
    """Focal loss on scores, L1 on distances and offsets at the cells near a face's centre.

    The level is chosen by face height.
    """
    height = boxes[..., 3] - boxes[..., 1]
    level = (height > 36).long() + (height > 76).long()
    people = present.sum().clamp_min(1)
    total, hits = torch.zeros((), device=boxes.device), 0.0
    for k, (raw, stride) in enumerate(zip(maps, Detector.STRIDES, strict=True)):
        raw = raw.float()
        rows, columns = raw.shape[2:]
        y, x = torch.meshgrid(
            torch.arange(rows, device=raw.device) * stride,
            torch.arange(columns, device=raw.device) * stride,
            indexing="ij",
        )
        cell = torch.stack([x, y], -1).float()  # (h, w, 2)
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        near = (cell[None, None] - centre[:, :, None, None]).abs().amax(-1) <= 0.75 * stride
        mine = near & (present & (level == k))[:, :, None, None]  # (B, 2, h, w)
        taken = mine.any(1)
        score = raw[:, 0]
        p = score.sigmoid()
        focal = F.binary_cross_entropy_with_logits(score, taken.float(), reduction="none") * torch.where(
            taken, (1 - p) ** 2, 0.6 * p**2
        )
        total = total + focal.sum() / people
        b, person, i, j = mine.nonzero(as_tuple=True)
        if len(b):
            at = cell[i, j]
            box, point = boxes[b, person], points[b, person]
            want = torch.cat([at - box[:, :2], box[:, 2:] - at, (point - at[:, None]).flatten(1)], 1) / stride
            total = total + 0.5 * F.smooth_l1_loss(raw[b, 1:, i, j], want, beta=0.1) * len(b) / people
            hits += p[taken].mean().item()
    return total, hits / 3


def train_detector(run: TrainingContext, faces: Faces, minutes: float) -> Detector:
    """Train on random zooms and shifts of the scenes."""
    torch.manual_seed(run.seed + 41)  # pyright: ignore[reportUnknownMemberType]
    network: Detector = cast(Any, Detector().to(run.device)).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(run.seed + 42)
    stream = batches(len(faces.images), 48, generator)

    def step(_: TimeBox) -> dict[str, float]:
        picture, boxes, points, present = detector_batch(faces, next(stream).numpy(), 128, generator)
        picture = augment(picture, generator).to(run.device, memory_format=torch.channels_last) * (127.5 / 128)
        with run.autocast():
            maps = network.maps(picture)
        loss, sure = detector_loss(maps, boxes.to(run.device), points.to(run.device), present.to(run.device))
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return {"loss": loss.item(), "confidence": sure}

    run_stage(run, ("detector", minutes), {"network": network}, optimiser, step)
    return network.eval()
