"""The training data of stage 4: seeded shards of unnamed people with landmarks, and the aligned crops cut from them.

The people are neither celebrities nor used in evaluation. A share of the pictures has been through
the autoencoder, as photographs have been through JPEG, so that decoded pictures are familiar ground.
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
from torch import Tensor

from celebctl_models.mini.people import sample_people, uniform_from_normal
from celebctl_models.mini.scenes import random_scenes, render

from .data import facts_of
from .trainer import TrainingContext

IDENTITIES, FACE_SHARD = 3600, 3000
TWO = 0.55  # share of scenes with two people
PORTRAIT_SHARD, PORTRAIT_SIZE = 1200, 128
#: ArcFace's 112 x 112 template (insightface `face_align.arcface_dst`), px.
TEMPLATE = torch.tensor(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def make_face_shard(path: Path, seed: int, draw: int, identities: int) -> None:
    """One shard of scenes with landmarks. ``draw`` seeds the population of ``identities`` people."""
    if path.with_suffix(".npz").exists():
        return
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    z = sample_people(identities, draw)
    who = torch.randint(0, identities, (FACE_SHARD, 2), generator=generator)
    factors = torch.as_tensor(uniform_from_normal(z))[who]
    scenes = random_scenes(factors, torch.rand(FACE_SHARD, generator=generator) < TWO, generator)
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
    known = {"who": who.numpy(), "two": scenes.two.numpy(), "points": points, "boxes": boxes, "facts": facts_of(scenes)}
    np.savez(path.with_suffix(".npz"), **known)  # pyright: ignore[reportArgumentType]


@dataclass
class Faces:
    """Scenes of unnamed people.

    images: (N, 3, 64, 64) uint8; who: (N, 2) identity; two: (N,); points: (N, 2, 5, 2) px; boxes: (N, 2, 4) px;
    facts: (N, 6) as data.FACTS; z: (I, F).
    """

    images: NDArray[np.uint8]
    who: NDArray[np.int64]
    two: NDArray[np.bool_]
    points: NDArray[np.float32]
    boxes: NDArray[np.float32]
    facts: NDArray[np.int64]
    z: NDArray[np.float32]

    def slots(self) -> NDArray[np.int64]:
        """(M, 2) of (picture, person) for every person present."""
        rows = np.arange(len(self.two))
        return np.concatenate(
            [np.stack([rows, np.zeros_like(rows)], 1), np.stack([rows, np.ones_like(rows)], 1)[self.two]]
        )


def load_faces(run: TrainingContext, name: str, draw: int, shards: int, identities: int = IDENTITIES) -> Faces:
    """All shards of a population joined; missing shards are rendered first."""
    folder = run.path(f"faces-{name}")
    folder.mkdir(exist_ok=True)
    paths = [folder / f"shard-{i:02d}" for i in range(shards)]
    missing = [(p, 1000 * draw + i) for i, p in enumerate(paths) if not p.with_suffix(".npz").exists()]
    if missing:
        run.say(f"drawing {len(missing) * FACE_SHARD} scenes of unnamed people ({name})")
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            each = ([draw] * len(missing), [identities] * len(missing))
            list(pool.map(make_face_shard, [p for p, _ in missing], [s for _, s in missing], *each))
    known = [np.load(p.with_suffix(".npz")) for p in paths]
    joined = {key: np.concatenate([k[key] for k in known]) for key in ("who", "two", "points", "boxes", "facts")}
    images = np.concatenate([np.load(p.with_suffix(".npy")) for p in paths])
    return Faces(images=images, z=sample_people(identities, draw), **joined)


def make_portrait_shard(path: Path, seed: int, draw: int) -> None:
    """Portraits of the same population at twice the size: photographs are sharper than what the model draws."""
    if path.with_suffix(".npz").exists():
        return
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    who = torch.randint(0, IDENTITIES, (PORTRAIT_SHARD,), generator=generator)
    factors = torch.as_tensor(uniform_from_normal(sample_people(IDENTITIES, draw)))[who][:, None].expand(-1, 2, -1)
    scenes = random_scenes(factors, torch.zeros(PORTRAIT_SHARD, dtype=torch.bool), generator)
    images = np.empty((PORTRAIT_SHARD, 3, PORTRAIT_SIZE, PORTRAIT_SIZE), np.uint8)
    points = np.empty((PORTRAIT_SHARD, 5, 2), np.float32)
    with torch.no_grad():
        for start in range(0, PORTRAIT_SHARD, 20):
            part = slice(start, start + 20)
            drawn = render(scenes[part], PORTRAIT_SIZE, crop=(0.0, 0.0, 0.86))
            images[part] = (drawn.image * 255 + 0.5).to(torch.uint8).numpy()
            points[part] = ((drawn.landmarks[:, 0] / (PORTRAIT_SIZE / 2) - 1.0) / 0.86 + 1.0) * (PORTRAIT_SIZE / 2)
    np.save(path.with_suffix(".npy"), images)
    np.savez(path.with_suffix(".npz"), who=who.numpy(), points=points)


@dataclass
class Portraits:
    """images: (N, 3, 128, 128) uint8; who: (N,) identity; points: (N, 5, 2) px."""

    images: NDArray[np.uint8]
    who: NDArray[np.int64]
    points: NDArray[np.float32]


def load_portraits(run: TrainingContext, name: str, draw: int, shards: int) -> Portraits:
    """All portrait shards of a population joined; missing shards are rendered first."""
    folder = run.path(f"portraits-{name}")
    folder.mkdir(exist_ok=True)
    paths = [folder / f"shard-{i:02d}" for i in range(shards)]
    run.say(f"portraits of unnamed people ({name})")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        seeds = [2000 * draw + i for i in range(shards)]
        list(pool.map(make_portrait_shard, paths, seeds, [draw] * shards))
    known = [np.load(p.with_suffix(".npz")) for p in paths]
    return Portraits(
        images=np.concatenate([np.load(p.with_suffix(".npy")) for p in paths]),
        who=np.concatenate([k["who"] for k in known]),
        points=np.concatenate([k["points"] for k in known]),
    )


@torch.no_grad()
def add_decoded(faces: Faces, vae: Any, run: TrainingContext, name: str) -> None:
    """Replace every third picture by its trip through the autoencoder (cached)."""
    path = run.path(f"faces-{name}-decoded.npy")
    chosen = np.arange(0, len(faces.images), 3)
    if not path.exists():
        made = np.empty((len(chosen), 3, 64, 64), np.uint8)
        for start in range(0, len(chosen), 32):
            image = torch.as_tensor(faces.images[chosen[start : start + 32]]).float().div(127.5).sub(1).to(run.device)
            with run.autocast():
                decoded = vae.decode(
                    vae.encode(image.contiguous(memory_format=torch.channels_last)).latent_dist.mean
                ).sample
            made[start : start + 32] = ((decoded.float().clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8).cpu().numpy()
        np.save(path, made)
    faces.images[chosen] = np.load(path)


def similarity(points: Tensor) -> Tensor:
    """Least-squares similarity from the 112 template to picture pixels (Umeyama without reflection).

    (B, 5, 2) -> (B, 2, 3).
    """
    source = TEMPLATE.to(points)
    ms, mp = source.mean(0), points.mean(1, keepdim=True)
    s, p = source - ms, points - mp
    scale = (s**2).sum()
    a = (p * s).sum((1, 2)) / scale
    b = (s[:, 0] * p[..., 1] - s[:, 1] * p[..., 0]).sum(1) / scale
    linear = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], 1)
    return torch.cat([linear, (mp[:, 0] - (linear @ ms))[..., None]], -1)


def crop_112(image: Tensor, points: Tensor, side: int = 112) -> Tensor:
    """Aligned crops by bilinear sampling; outside is black (-1).

    image (B, 3, S, S), points (B, 5, 2) px -> (B, 3, side, side).
    """
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
