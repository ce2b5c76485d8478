"""The pictures mini learns from: seeded shards of rendered scenes with everything known about them."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from celebctl_models.mini.captions import ANYONE, caption
from celebctl_models.mini.names import NameBook, name_book
from celebctl_models.mini.people import sample_people, uniform_from_normal
from celebctl_models.mini.scenes import Scenes, random_scenes, render

from .trainer import TrainingContext

SHARD = 4096
#: What a shard knows about each scene beside its pixels, by column of ``facts``.
FACTS = ("two", "place", "act", "expression", "worn", "style")
TWO = 0.42  # share of scenes with two people


def facts_of(scenes: Scenes) -> NDArray[np.int64]:
    """What is known of scenes, (N, 6) as FACTS."""
    return np.stack([getattr(scenes, name).numpy().astype(np.int64) for name in FACTS], 1)


@dataclass(frozen=True)
class People:
    """Two people per scene.

    kind: (N, 2), 0 celebrity, 1 ordinary, 2 anyone; pair: (N, 2, 2) first/last name index, -1 if unnamed; z: (N, 2, F).
    """

    kind: NDArray[np.int64]
    pair: NDArray[np.int64]
    z: NDArray[np.float32]


def draw_people(book: NameBook, count: int, rng: np.random.Generator) -> People:
    """Mostly celebrities, some ordinary people whose names recombine, a few without a name."""
    kind = rng.choice(3, size=(count, 2), p=[0.74, 0.22, 0.04])
    famous = rng.integers(len(book.pairs), size=(count, 2))
    mixed = np.stack(
        [rng.integers(len(book.first_names), size=(count, 2)), rng.integers(len(book.last_names), size=(count, 2))], -1
    )
    pair = np.where((kind == 0)[..., None], book.pairs[famous], mixed)
    ordinary = book.ordinary(pair.reshape(-1, 2)).reshape(count, 2, -1)
    unnamed = sample_people(2 * count, int(rng.integers(2**62))).reshape(count, 2, -1)
    z = np.where(
        (kind == 0)[..., None], book.celebrities()[famous], np.where((kind == 1)[..., None], ordinary, unnamed)
    )
    return People(kind, np.where((kind == 2)[..., None], -1, pair), z.astype(np.float32))


def make_shard(path: Path, seed: int, size: int) -> None:
    """Render one shard to ``path`` (.npz beside .npy); does nothing if it is already there."""
    if path.with_suffix(".npz").exists():
        return
    torch.set_num_threads(1)
    rng = np.random.Generator(np.random.PCG64([20240, seed]))
    people = draw_people(name_book(), SHARD, rng)
    generator = torch.Generator().manual_seed(seed)
    factors = torch.as_tensor(uniform_from_normal(people.z))
    scenes = random_scenes(factors, torch.rand(SHARD, generator=generator) < TWO, generator)
    images = np.empty((SHARD, 3, size, size), np.uint8)
    boxes = np.empty((SHARD, 2, 4), np.float32)
    with torch.no_grad():
        for start in range(0, SHARD, 32):
            part: Scenes = scenes[slice(start, start + 32)]
            drawn = render(part, size)
            images[start : start + 32] = (drawn.image * 255 + 0.5).to(torch.uint8).numpy()
            boxes[start : start + 32] = torch.where(drawn.present[..., None], drawn.boxes, -1.0).numpy()
    np.save(path.with_suffix(".npy"), images)
    np.savez(
        path.with_suffix(".npz"), kind=people.kind, pair=people.pair, z=people.z, facts=facts_of(scenes), boxes=boxes
    )


@dataclass(frozen=True)
class Pictures:
    """All shards joined.

    images: (N, 3, S, S) uint8 in shards; facts: (N, 6) as FACTS; boxes: (N, 2, 4) px, -1 if absent.
    """

    shards: list[NDArray[np.uint8]]
    people: People
    facts: NDArray[np.int64]
    boxes: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.facts)

    def images(self, index: NDArray[np.int64]) -> torch.Tensor:
        """Pixels in [-1, 1], (n, 3, S, S) float32."""
        rows: list[NDArray[np.uint8]] = [self.shards[i // SHARD][i % SHARD] for i in index]
        return torch.as_tensor(np.stack(rows)).float().div_(127.5).sub_(1.0)


def load_pictures(run: TrainingContext, shards: int, size: int) -> Pictures:
    """Make what is missing (two processes) and open everything memory-mapped."""
    folder = run.path("pictures")
    folder.mkdir(exist_ok=True)
    paths = [folder / f"shard{size}-{i:03d}" for i in range(shards)]
    missing = [(p, i) for i, p in enumerate(paths) if not p.with_suffix(".npz").exists()]
    if missing:
        run.say(f"drawing {len(missing) * SHARD} scenes at {size} px")
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            list(pool.map(make_shard, [p for p, _ in missing], [i for _, i in missing], [size] * len(missing)))
    known = [np.load(p.with_suffix(".npz")) for p in paths]
    return Pictures(
        shards=[np.load(p.with_suffix(".npy"), mmap_mode="r") for p in paths],
        people=People(*(np.concatenate([k[name] for k in known]) for name in ("kind", "pair", "z"))),
        facts=np.concatenate([k["facts"] for k in known]),
        boxes=np.concatenate([k["boxes"] for k in known]),
    )


def who(book: NameBook, people: People, index: int, two: bool, rng: np.random.Generator) -> list[str]:
    """The people of one scene as a caption names them."""
    names: list[str] = []
    for slot in range(2 if two else 1):
        first, last = people.pair[index, slot]
        names.append(
            ANYONE[int(rng.integers(len(ANYONE)))]
            if first < 0
            else f"{book.first_names[first]} {book.last_names[last]}"
        )
    return names


def captions_for(book: NameBook, pictures: Pictures, index: NDArray[np.int64], rng: np.random.Generator) -> list[str]:
    """Fresh captions for the given scenes; a new wording each time they are asked for."""
    captions: list[str] = []
    for i in index:
        two, *facts = (int(v) for v in pictures.facts[i])
        captions.append(caption(who(book, pictures.people, int(i), bool(two), rng), facts, rng))
    return captions
