"""Scenes drawn where they are learned from. A GPU paints a scene in microseconds, so that hardly any is seen twice and
nothing but latents is kept: no shards, no disk.

They are the same worlds as the shards' (data.py, faces.py), drawn from seeds of their own.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from celebctl_models.mini.names import name_book
from celebctl_models.mini.people import sample_people, uniform_from_normal
from celebctl_models.mini.scenes import Scenes, random_scenes, render

from .data import TWO, Pictures, draw_people, facts_of
from .faces import TWO as TWO_STRANGERS
from .faces import Faces
from .trainer import TrainingContext

AT_ONCE = 1024  # scenes on a GPU; 32 on a CPU stay in its cache
_SEED = 30_240


@torch.no_grad()
def _paint(run: TrainingContext, vae: Any, scenes: Scenes) -> tuple[Tensor, NDArray[np.float32]]:
    """Latent means (N, 4, 16, 16) float16 on the device, and boxes (N, 2, 4) px, -1 where a person is absent."""
    latents = torch.empty(len(scenes), 4, 16, 16, dtype=torch.float16, device=run.device)
    boxes = np.empty((len(scenes), 2, 4), np.float32)
    size = AT_ONCE if run.device.type == "cuda" else 32
    for start in range(0, len(scenes), size):
        part = scenes[slice(start, start + size)]
        part = replace(part, **{f.name: getattr(part, f.name).to(run.device) for f in fields(part)})
        drawn = render(part, 64)
        image = (drawn.image * 255 + 0.5).floor().div(127.5).sub(1.0)  # as many shades as a file has
        with run.autocast():
            mean = vae.encode(image.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        latents[start : start + size] = mean.half()
        boxes[start : start + size] = torch.where(drawn.present[..., None], drawn.boxes, -1.0).cpu().numpy()
    return latents, boxes


def draw_pictures(run: TrainingContext, vae: Any, count: int) -> tuple[Pictures, Tensor]:
    """What data.load_pictures and denoiser.encode_pictures give, without pixels: scenes of named people and latents."""
    run.say(f"drawing and encoding {count} scenes on {run.device}")
    rng = np.random.Generator(np.random.PCG64([_SEED, run.seed]))
    people = draw_people(name_book(), count, rng)
    generator = torch.Generator().manual_seed(_SEED + run.seed)
    two = torch.rand(count, generator=generator) < TWO
    scenes = random_scenes(torch.as_tensor(uniform_from_normal(people.z)), two, generator)
    latents, boxes = _paint(run, vae, scenes)
    return Pictures([], people, facts_of(scenes), boxes), latents


def draw_faces(run: TrainingContext, vae: Any, count: int, draw: int, identities: int) -> tuple[Faces, Tensor]:
    """What faces.load_faces and latent_reader.encode_faces give, without pixels and landmarks."""
    run.say(f"drawing and encoding {count} scenes of unnamed people on {run.device}")
    generator = torch.Generator().manual_seed(_SEED + 1000 * draw + run.seed)
    z = sample_people(identities, draw)
    who = torch.randint(0, identities, (count, 2), generator=generator)
    two = torch.rand(count, generator=generator) < TWO_STRANGERS
    scenes = random_scenes(torch.as_tensor(uniform_from_normal(z))[who], two, generator)
    latents, boxes = _paint(run, vae, scenes)
    points = np.zeros((0, 2, 5, 2), np.float32)
    return Faces(
        np.zeros((0, 3, 64, 64), np.uint8), who.numpy(), two.numpy(), points, boxes, facts_of(scenes), z
    ), latents
