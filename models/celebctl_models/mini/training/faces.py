"""Stage 4: the recogniser and the detector of mini's world, and the judge that only scores.

Their people are strangers: neither celebrities nor anyone used in evaluation. The judge gets another network, another
seed and another draw of people. A share of the pictures has been through the autoencoder, as photographs have been
through JPEG, so that decoded pictures are familiar ground.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from celebctl_models.mini.people import strangers, uniform_from_normal
from celebctl_models.mini.scenes import random_scenes, render

from .networks import Detector, Judge, Recogniser
from .text import appearance
from .workshop import TimeBox, Workshop, batches, run_stage

IDENTITIES, FACE_SHARD = 3600, 3000
#: ArcFace's 112 x 112 template (insightface `face_align.arcface_dst`), px.
TEMPLATE = torch.tensor(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def make_face_shard(path: Path, seed: int, draw: int) -> None:
    """One shard of scenes with landmarks. ``draw`` picks the population of strangers."""
    if path.with_suffix(".npz").exists():
        return
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    z = strangers(IDENTITIES, draw)
    who = torch.randint(0, IDENTITIES, (FACE_SHARD, 2), generator=generator)
    factors = torch.from_numpy(uniform_from_normal(z))[who]
    scenes = random_scenes(factors, torch.rand(FACE_SHARD, generator=generator) < 0.55, generator)
    images, points, boxes = (
        np.empty((FACE_SHARD, 3, 64, 64), np.uint8),
        np.empty((FACE_SHARD, 2, 5, 2), np.float32),
        np.empty((FACE_SHARD, 2, 4), np.float32),
    )
    with torch.no_grad():
        for start in range(0, FACE_SHARD, 30):
            drawn = render(scenes[slice(start, start + 30)], 64)
            part = slice(start, start + 30)
            images[part] = (drawn.image * 255 + 0.5).to(torch.uint8).numpy()
            points[part], boxes[part] = drawn.landmarks.numpy(), drawn.boxes.numpy()
    np.save(path.with_suffix(".npy"), images)
    np.savez(path.with_suffix(".npz"), who=who.numpy(), two=scenes.two.numpy(), points=points, boxes=boxes)


@dataclass
class Faces:
    """images: (N, 3, 64, 64) uint8; who: (N, 2) identity; two: (N,); points: (N, 2, 5, 2) px; boxes: (N, 2, 4) px; z: (I, F)."""

    images: NDArray[np.uint8]
    who: NDArray[np.int64]
    two: NDArray[np.bool_]
    points: NDArray[np.float32]
    boxes: NDArray[np.float32]
    z: NDArray[np.float32]

    def slots(self) -> NDArray[np.int64]:
        """(M, 2) of (picture, person) for everyone who is there."""
        rows = np.arange(len(self.two))
        return np.concatenate(
            [np.stack([rows, np.zeros_like(rows)], 1), np.stack([rows, np.ones_like(rows)], 1)[self.two]]
        )


def load_faces(shop: Workshop, name: str, draw: int, shards: int) -> Faces:
    folder = shop.path(f"faces-{name}")
    folder.mkdir(exist_ok=True)
    paths = [folder / f"shard-{i:02d}" for i in range(shards)]
    missing = [(p, 1000 * draw + i) for i, p in enumerate(paths) if not p.with_suffix(".npz").exists()]
    if missing:
        shop.say(f"drawing {len(missing) * FACE_SHARD} scenes of strangers ({name})")
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            list(pool.map(make_face_shard, [p for p, _ in missing], [s for _, s in missing], [draw] * len(missing)))
    known = [np.load(p.with_suffix(".npz")) for p in paths]
    joined = {key: np.concatenate([k[key] for k in known]) for key in ("who", "two", "points", "boxes")}
    return Faces(
        images=np.concatenate([np.load(p.with_suffix(".npy")) for p in paths]), z=strangers(IDENTITIES, draw), **joined
    )


@torch.no_grad()
def add_decoded(faces: Faces, vae: Any, shop: Workshop, name: str) -> None:
    """Replace every third picture by its trip through the autoencoder (cached)."""
    path = shop.path(f"faces-{name}-decoded.npy")
    chosen = np.arange(0, len(faces.images), 3)
    if not path.exists():
        made = np.empty((len(chosen), 3, 64, 64), np.uint8)
        for start in range(0, len(chosen), 32):
            image = torch.from_numpy(faces.images[chosen[start : start + 32]]).float().div(127.5).sub(1).to(shop.device)
            with shop.autocast():
                decoded = vae.decode(
                    vae.encode(image.contiguous(memory_format=torch.channels_last)).latent_dist.mean
                ).sample
            made[start : start + 32] = ((decoded.float().clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8).cpu().numpy()
        np.save(path, made)
    faces.images[chosen] = np.load(path)


def similarity(points: Tensor) -> Tensor:
    """Least-squares similarity from the 112 template to picture pixels: (B, 5, 2) -> (B, 2, 3), Umeyama without reflection."""
    source = TEMPLATE.to(points)
    ms, mp = source.mean(0), points.mean(1, keepdim=True)
    s, p = source - ms, points - mp
    scale = (s**2).sum()
    a = (p * s).sum((1, 2)) / scale
    b = (s[:, 0] * p[..., 1] - s[:, 1] * p[..., 0]).sum(1) / scale
    linear = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], 1)
    return torch.cat([linear, (mp[:, 0] - (linear @ ms))[..., None]], -1)


def crop_112(image: Tensor, points: Tensor, side: int = 112) -> Tensor:
    """Aligned crops by bilinear sampling: (B, 3, S, S), points (B, 5, 2) px -> (B, 3, side, side); outside is black (-1)."""
    theta = similarity(points)
    step = 112.0 / side
    grid = (torch.arange(side, device=image.device) + 0.5) * step - 0.5
    v, u = torch.meshgrid(grid, grid, indexing="ij")
    place = torch.stack([u, v, torch.ones_like(u)], -1).view(1, -1, 3) @ theta.transpose(1, 2)
    size = image.shape[-1]
    where = ((place + 0.5) * (2.0 / size) - 1.0).view(-1, side, side, 2)
    return F.grid_sample(image + 1.0, where, align_corners=False) - 1.0


def augment(crop: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, blur and noise, per picture."""
    count = len(crop)

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)).to(crop)

    crop = crop * uniform(0.85, 1.15) + uniform(-0.12, 0.12)
    soft = F.avg_pool2d(F.pad(crop, (2, 2, 2, 2), mode="replicate"), 5, 1)
    crop = torch.lerp(crop, soft, uniform(0.0, 1.0))
    return (crop + uniform(0.0, 0.08) * torch.randn_like(crop)).clamp(-1, 1)


class Margin(nn.Module):
    """ArcFace (Deng et al. 2019): cos(theta + m) for the true class, scale s; ``additive`` makes it CosFace (cos - m)."""

    def __init__(self, z: NDArray[np.float32], features: int, *, additive: bool, seed: int) -> None:
        super().__init__()
        looks = appearance(z)
        projection = torch.randn(looks.shape[1], features, generator=torch.Generator().manual_seed(seed))
        # random class centres never get going with thousands of classes; centres laid out by looks do
        self.centres = nn.Parameter(F.normalize((looks - looks.mean(0)) @ projection, dim=1))
        self.read = nn.Linear(features, looks.shape[1])
        self.register_buffer("looks", looks)
        self.additive = additive

    def forward(self, feature: Tensor, who: Tensor, margin: float, help_weight: float) -> Tensor:
        unit = F.normalize(feature.float(), dim=1)
        cosine = unit @ F.normalize(self.centres, dim=1).T
        true = cosine.gather(1, who[:, None]).clamp(-0.999, 0.999)
        moved = true - margin if self.additive else torch.cos((torch.acos(true) + margin).clamp(max=3.1))
        logits = 24.0 * cosine.scatter(1, who[:, None], moved)
        loss = F.cross_entropy(logits, who)
        return loss + help_weight * F.mse_loss(self.read(unit) * 4.0, self.looks[who])


@torch.no_grad()
def verification(network: nn.Module, faces: Faces, shop: Workshop) -> str:
    """Same-person and other-person cosines and TAR at FAR 1e-3 on 1,500 faces (figures for the model card)."""
    network.eval()
    slots = faces.slots()[np.random.Generator(np.random.PCG64(1)).permutation(len(faces.slots()))[:1500]]
    who = torch.from_numpy(faces.who[slots[:, 0], slots[:, 1]])
    image = torch.from_numpy(faces.images[slots[:, 0]]).float().div(127.5).sub(1)
    points = torch.from_numpy(faces.points[slots[:, 0], slots[:, 1]])
    feature = torch.cat(
        [
            F.normalize(network(crop_112(i, p).to(shop.device)).float(), dim=1).cpu()
            for i, p in zip(image.split(100), points.split(100), strict=True)
        ]
    )
    cosine, same = feature @ feature.T, who[:, None] == who[None]
    upper = torch.ones_like(cosine).triu(1).bool()
    positive, negative = cosine[same & upper], cosine[~same & upper]
    threshold = (
        negative.quantile(0.999)
        if len(negative) < 1.5e7
        else negative[::2].sort().values[int(0.999 * len(negative[::2]))]
    )
    network.train()
    return f"same {positive.mean():.3f} other {negative.mean():.3f}+-{negative.std():.3f} TAR@1e-3 {(positive > threshold).float().mean():.3f}"


def train_recogniser(shop: Workshop, faces: Faces, held_out: Faces, minutes: float, *, judge: bool) -> nn.Module:
    """The recogniser (ArcFace) or the judge (CosFace)."""
    name = "judge" if judge else "recogniser"
    torch.manual_seed(shop.seed + (31 if judge else 21))
    network: nn.Module = (Judge() if judge else Recogniser()).to(shop.device).to(memory_format=torch.channels_last)
    margin = Margin(faces.z, 256 if judge else 512, additive=judge, seed=shop.seed + (32 if judge else 22)).to(
        shop.device
    )
    optimiser = torch.optim.AdamW([*network.parameters(), *margin.parameters()], lr=2e-3, weight_decay=0.02)
    generator = torch.Generator().manual_seed(shop.seed + (33 if judge else 23))
    slots, stream = faces.slots(), None
    stream = batches(len(slots), 128, generator)

    def step(box: TimeBox) -> dict[str, float]:
        at = slots[next(stream).numpy()]
        image = torch.from_numpy(faces.images[at[:, 0]]).float().div_(127.5).sub_(1.0)
        points = torch.from_numpy(faces.points[at[:, 0], at[:, 1]])
        points = points + 0.35 * torch.randn(points.shape, generator=generator)
        crop = F.interpolate(
            augment(crop_112(image, points, 56), generator), size=112, mode="bilinear", align_corners=False
        )
        crop = crop.to(shop.device, memory_format=torch.channels_last)
        with shop.autocast():
            feature = network(crop)
        who = torch.from_numpy(faces.who[at[:, 0], at[:, 1]]).to(shop.device)
        loss = margin(feature, who, 0.35 * min(1.0, box.share * 4), 4.0 * max(0.05, 1.0 - 1.5 * box.share))
        loss.backward()
        return {"loss": loss.item()}

    run_stage(shop, name, {"network": network, "margin": margin}, optimiser, minutes, step)
    shop.say(f"{name}: {verification(network, held_out, shop)}")
    return network.eval()


def detector_batch(
    faces: Faces, index: NDArray[np.int64], side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Randomly zoomed and shifted scenes at ``side`` px: image (B, 3, side, side) in [-1, 1], boxes, points, present (B, 2)."""
    count = len(index)
    zoom = torch.exp(torch.empty(count).uniform_(-0.75, 0.35, generator=generator))  # < 1 shrinks the scene
    shift = torch.empty(count, 2).uniform_(-0.25, 0.25, generator=generator)
    image = torch.from_numpy(faces.images[index]).float().div_(127.5)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0 / zoom
    theta[:, :, 2] = -shift / zoom[:, None]
    picture = (
        F.grid_sample(image, F.affine_grid(theta, [count, 3, side, side], align_corners=False), align_corners=False)
        - 1.0
    )

    def move(px: Tensor) -> Tensor:  # (B, 2, n, 2) in 64-px pixels -> side px
        unit = px / 32.0 - 1.0
        return ((unit * zoom.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 2)) + 1.0) * (side / 2)

    boxes = move(torch.from_numpy(faces.boxes[index]).view(count, 2, 2, 2)).reshape(count, 2, 4)
    points = move(torch.from_numpy(faces.points[index]))
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = ((centre > 0) & (centre < side)).all(-1)
    present = torch.stack([torch.ones(count, dtype=torch.bool), torch.from_numpy(faces.two[index])], 1) & inside
    return picture, boxes, points, present


def detector_loss(maps: list[Tensor], boxes: Tensor, points: Tensor, present: Tensor) -> tuple[Tensor, float]:
    """Focal loss on scores, L1 on distances and offsets at the cells near a face's centre, level chosen by face height."""
    height = boxes[..., 3] - boxes[..., 1]
    level = (height > 36).long() + (height > 76).long()
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
        total = total + focal.sum() / present.sum().clamp_min(1)
        b, person, i, j = mine.nonzero(as_tuple=True)
        if len(b):
            at = cell[i, j]
            box, point = boxes[b, person], points[b, person]
            want = torch.cat([at - box[:, :2], box[:, 2:] - at, (point - at[:, None]).flatten(1)], 1) / stride
            total = total + 0.5 * F.smooth_l1_loss(raw[b, 1:, i, j], want, beta=0.1) * len(b) / present.sum().clamp_min(
                1
            )
            hits += p[taken].mean().item()
    return total, hits / 3


def train_detector(shop: Workshop, faces: Faces, minutes: float) -> Detector:
    torch.manual_seed(shop.seed + 41)
    network = Detector().to(shop.device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(shop.seed + 42)
    stream = batches(len(faces.images), 48, generator)

    def step(_: TimeBox) -> dict[str, float]:
        picture, boxes, points, present = detector_batch(faces, next(stream).numpy(), 128, generator)
        picture = augment(picture, generator).to(shop.device, memory_format=torch.channels_last) * (127.5 / 128)
        with shop.autocast():
            maps = network.maps(picture)
        loss, sure = detector_loss(maps, boxes.to(shop.device), points.to(shop.device), present.to(shop.device))
        loss.backward()
        return {"loss": loss.item(), "confidence": sure}

    run_stage(shop, "detector", {"network": network}, optimiser, minutes, step)
    return network.eval()
