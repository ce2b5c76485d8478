"""Scenes to learn from, drawn from seeds: of named people and cars with captions, or of unnamed ones to tell apart.

Place, act, worn and style are never a held-out combination, because ``random_scenes`` draws none. Everything about a
scene but its pixels follows from the seed, so only pixels, latents, boxes and landmarks are kept in files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from celebctl_models.mini.illustration.captions import (
    ACT_WORDS,
    ANYONE,
    ITEM_WORDS,
    VOCABULARIES,
    WORN_WORDS,
    caption,
    facts_of,
)
from celebctl_models.mini.illustration.cars import CAR_FACTORS, CAR_FEATURES, PAINT, car_book, car_classes
from celebctl_models.mini.illustration.figure import WORN
from celebctl_models.mini.illustration.people import FACTORS, FEATURES, HAIR, SKIN, feature_classes
from celebctl_models.mini.illustration.scenes import (
    ACTS,
    ITEMS,
    PEOPLE,
    Scenes,
    car_boxes,
    choose,
    draw,
    random_scenes,
)
from celebctl_models.mini.names import NameBook, name_book
from celebctl_models.mini.training.trainer import TrainingContext

SIZE, LATENT = 128, 16
#: Pictures of one file; a stage that is stopped while it draws loses at most one.
SHARD = 2048
#: Shares of scenes with 0 to 3 people; those without people show a car.
_COUNTS = [0.10, 0.45, 0.30, 0.15]
_CAR_BESIDE = 0.20  # share of scenes of one or two people in which a car stands beside them
#: What a scene states, by column of ``statements``, and how many values each statement has.
STATEMENTS: dict[str, int] = {name: len(words) for name, words in VOCABULARIES.items()} | {
    "count": PEOPLE + 1,
    "car": 2,
}
#: In place of the value of a statement that does not apply to a scene; cross-entropy leaves it out.
UNSTATED = -100


@cache
def people_book() -> NameBook:
    """The celebrities of the illustrated world: the names of mini's, looks of this world."""
    return name_book(factors=len(FACTORS))


@cache
def car_names() -> NameBook:
    """The cars of the illustrated world."""
    return car_book()


@dataclass(frozen=True)
class NamedScenes:
    """Scenes and who is in them.

    people: (B, 3, 2) indices of first and last names, -1 for people without a name; cars: (B, 2) of make and model.
    """

    scenes: Scenes
    people: NDArray[np.int64]
    cars: NDArray[np.int64]


@dataclass(frozen=True)
class UnnamedScenes:
    """Scenes of a population of unnamed people and cars: who (B, 3) and cars (B,) are rows of its tables."""

    scenes: Scenes
    who: Tensor
    cars: Tensor


def random_company(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """How many people are in each of ``count`` scenes, int64, and whether a car is, bool."""
    people = choose(generator, _COUNTS, count)
    beside = torch.rand(count, generator=generator) < _CAR_BESIDE
    return people, (people == 0) | ((people < PEOPLE) & beside)


def _without(cars: Tensor, there: Tensor) -> Tensor:
    """Rows of factors (B, C), NaN where no car is there."""
    return torch.where(there[:, None], cars, torch.nan)


def random_names(book: NameBook, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[NDArray[np.int64], Tensor]:
    """Mostly celebrities, else owners of recombined names: (*shape, 2) indices and (*shape, F) uniforms."""
    count = int(np.prod(shape))
    famous = rng.integers(len(book.pairs), size=count)
    mixed = np.stack([rng.integers(len(book.first_names), size=count), rng.integers(len(book.last_names), size=count)])
    celebrity = rng.random(count) < 0.77
    pairs = np.where(celebrity[:, None], book.pairs[famous], mixed.T)
    z = np.where(celebrity[:, None], book.celebrities()[famous], book.ordinary(pairs))
    uniform: Tensor = cast(Any, torch.special).ndtr(torch.as_tensor(z).double()).float()
    return pairs.reshape(*shape, 2), uniform.view(*shape, -1)


def named_scenes(count: int, seed: int) -> NamedScenes:
    """``count`` scenes of celebrities, people whose names recombine and, rarely, people without a name; and of cars."""
    rng, generator = np.random.Generator(np.random.PCG64([seed, 1])), torch.Generator().manual_seed(seed)
    pairs, factors = random_names(people_book(), (count, PEOPLE), rng)
    unnamed = torch.rand(count, PEOPLE, generator=generator) < 0.04
    factors = torch.where(unnamed[..., None], torch.rand(factors.shape, generator=generator), factors)
    names, cars = random_names(car_names(), (count,), rng)
    people, with_car = random_company(count, generator)
    scenes = random_scenes(factors, people, generator, _without(cars, with_car))
    return NamedScenes(scenes, np.where(unnamed.numpy()[..., None], -1, pairs), names)


@dataclass(frozen=True)
class Population:
    """Unnamed people and cars to tell apart, from a seed: factors of people (I, F) and of cars (J, C)."""

    people: Tensor
    cars: Tensor

    @classmethod
    def of(cls, seed: int, people: int, cars: int) -> Population:
        """The population of this seed."""
        generator = torch.Generator().manual_seed(seed)
        return cls(
            torch.rand(people, len(FACTORS), generator=generator),
            torch.rand(cars, len(CAR_FACTORS), generator=generator),
        )

    def scenes(self, count: int, seed: int, company: tuple[Tensor, Tensor] | None = None) -> UnnamedScenes:
        """``count`` scenes with these people and cars; ``company`` as random_company gives it."""
        generator = torch.Generator().manual_seed(seed)
        who = torch.randint(0, len(self.people), (count, PEOPLE), generator=generator)
        cars = torch.randint(0, len(self.cars), (count,), generator=generator)
        people, with_car = random_company(count, generator) if company is None else company
        scenes = random_scenes(self.people[who], people, generator, _without(self.cars[cars], with_car))
        return UnnamedScenes(scenes, who, cars)


def statements(scenes: Scenes) -> Tensor:
    """What can be read off each scene, (B, 12) int64 by the names in STATEMENTS; UNSTATED where it does not apply."""
    columns = {name: getattr(scenes, name).clone() for name in VOCABULARIES}
    people = scenes.count > 0
    tinted_act = torch.tensor([any("{" in text for text in ACT_WORDS.get(act, ())) for act in ACTS])
    tinted_item = torch.tensor([item in ITEM_WORDS for item in ITEMS])
    tinted_worn = torch.tensor([any("{" in text for text in WORN_WORDS.get(worn, ())) for worn in WORN])
    grey = (scenes.style == 1) | (scenes.style == 6)
    columns["worn_colour"][~tinted_worn[scenes.worn] | grey] = UNSTATED
    columns["item_colour"][~(tinted_act[scenes.act] | tinted_item[scenes.item]) | grey] = UNSTATED
    for name in ("expression", "worn", "distance", "view", "act", "item"):
        columns[name][~people] = UNSTATED
    return torch.stack([*columns.values(), scenes.count, scenes.car.long()], 1)


def _described(classes: dict[str, Tensor], features: dict[str, Any], hidden: dict[str, Tensor]) -> list[Tensor]:
    """One-hot classes times 2; zeros where a feature is hidden."""
    parts: list[Tensor] = []
    for name, index in classes.items():
        one = F.one_hot(index, len(features[name])).float() * 2.0
        parts.append(one * ~hidden[name][:, None] if name in hidden else one)
    return parts


def _free(factors: Tensor, names: tuple[str, ...], features: dict[str, Any]) -> Tensor:
    """Normals of the factors that choose no class."""
    chosen = [i for i, name in enumerate(names) if name not in features]
    return cast(Any, torch.special).ndtri(factors[:, chosen].clamp(1e-4, 1.0 - 1e-4))


def looks_of(factors: Tensor) -> Tensor:
    """What people (N, F) look like, as numbers a linear head can be asked for: classes, colours, proportions (N, A)."""
    kinds = feature_classes(factors)
    colours = [3.0 * (table[kinds[name]] - 0.5) for name, table in (("skin_tone", SKIN), ("hair_colour", HAIR))]
    described = _described(kinds, FEATURES, {"glasses_colour": kinds["glasses"] == 0})
    return torch.cat([_free(factors, FACTORS, FEATURES), *colours, *described], 1)


def car_looks_of(factors: Tensor) -> Tensor:
    """What cars (N, C) look like, (N, B), as ``looks_of``."""
    kinds = car_classes(factors)
    described = _described(kinds, CAR_FEATURES, {"second_colour": kinds["second"] == 0})
    return torch.cat([_free(factors, CAR_FACTORS, CAR_FEATURES), 3.0 * (PAINT[kinds["colour"]] - 0.5), *described], 1)


def who_is_there(named: NamedScenes, index: int, rng: np.random.Generator) -> tuple[list[str], str | None]:
    """The people of one scene from left to right and its car, as a caption names them."""
    people, cars = people_book(), car_names()
    names: list[str] = []
    for first, last in named.people[index, : int(named.scenes.count[index])]:
        anyone = ANYONE[int(rng.integers(len(ANYONE)))]
        names.append(anyone if first < 0 else f"{people.first_names[first]} {people.last_names[last]}")
    make, model = named.cars[index]
    return names, f"{cars.first_names[make]} {cars.last_names[model]}" if named.scenes.car[index] else None


def captions_of(named: NamedScenes, rows: Tensor, rng: np.random.Generator) -> list[str]:
    """Captions of the given scenes in a random wording."""
    facts = facts_of(named.scenes[rows])
    there = [who_is_there(named, i, rng) for i in map(int, rows)]
    return [caption(people, fact, rng, car) for (people, car), fact in zip(there, facts, strict=True)]


def to_device(scenes: Scenes, device: torch.device) -> Scenes:
    """The same scenes on another device."""
    return replace(scenes, **{field.name: getattr(scenes, field.name).to(device) for field in fields(scenes)})


def in_bytes(image: Tensor) -> Tensor:
    """[0, 1] to uint8, as files hold pictures."""
    return (image * 255 + 0.5).to(torch.uint8)


def as_input(pixels: Tensor) -> Tensor:
    """uint8 to what networks read: float32 in [-1, 1], channels last."""
    return pixels.float().div_(127.5).sub_(1.0).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Drawn:
    """What is kept of drawn scenes.

    pixels: (N, 3, 128, 128) uint8, empty where only latents are kept; latents: (N, 16, 16, 16) float16, empty without
    an autoencoder; boxes: (N, 3, 4) and points: (N, 3, 5, 2) px of people; cars: (N, 4) px.
    """

    pixels: Tensor
    latents: Tensor
    boxes: Tensor
    points: Tensor
    cars: Tensor


def load_drawn(run: TrainingContext, name: str, scenes: Scenes, paint: Callable[[Scenes], Drawn]) -> Drawn:
    """Draw what is missing and load the rest from the folder of this name; on a GPU nothing is written.

    Args:
        run: Where and on which device.
        name: Folder for the files.
        scenes: All scenes, on the CPU.
        paint: ``paint_pixels`` or ``paint_latents``, on the device.
    """
    parts: list[Drawn] = []
    for start in range(0, len(scenes), SHARD):
        part = scenes[slice(start, start + SHARD)]
        if run.device.type == "cuda":
            parts.append(paint(to_device(part, run.device)))
            continue
        path = run.path(name) / f"{start // SHARD:04d}-{len(part)}.pt"
        path.parent.mkdir(exist_ok=True)
        if not path.is_file():
            run.say(f"{name}: drawing {start} to {start + len(part)} of {len(scenes)}")
            done, partial = paint(part), path.with_suffix(".partial")
            torch.save({field.name: getattr(done, field.name) for field in fields(Drawn)}, partial)
            partial.replace(path)
        parts.append(Drawn(**torch.load(path, weights_only=True)))
    return Drawn(**{field.name: torch.cat([getattr(one, field.name) for one in parts]) for field in fields(Drawn)})


@torch.no_grad()
def encode(vae: Any, run: TrainingContext, pixels: Tensor) -> Tensor:
    """Latent means (N, 16, 16, 16) float16 of pixels uint8, a few at a time."""
    at_once = 1024 if run.device.type == "cuda" else 16
    with run.autocast():
        parts = [vae.encode(as_input(part.to(run.device))) for part in torch.split(pixels, at_once)]
        means = [part.latent_dist.mean.half() for part in parts]
    return torch.cat(means)


@torch.no_grad()
def decode(vae: Any, run: TrainingContext, latents: Tensor) -> Tensor:
    """Pixels (N, 3, 128, 128) uint8 of latents, a few at a time."""
    at_once = 1024 if run.device.type == "cuda" else 16
    with run.autocast():
        made = [vae.decode(part.float().to(run.device)).sample.float() for part in torch.split(latents, at_once)]
    return torch.cat([in_bytes((one.clamp(-1.0, 1.0) + 1.0) / 2) for one in made])


@torch.no_grad()
def paint(run: TrainingContext, scenes: Scenes, vae: Any = None, *, keep_pixels: bool = True) -> Drawn:
    """Draw scenes of the run's device.

    With an autoencoder and pixels, every third picture is its trip through the autoencoder, so that networks that look
    at pictures know what the model makes; without pixels, all latents are kept.
    """
    drawn = draw(scenes, SIZE)
    pixels = in_bytes(drawn.image)
    latents = torch.empty(0, LATENT, LATENT, LATENT, dtype=torch.float16, device=pixels.device)
    if not keep_pixels:
        latents, pixels = encode(vae, run, pixels), pixels[:0]
    elif vae is not None:
        pixels[::3] = decode(vae, run, encode(vae, run, pixels[::3]))
    return Drawn(pixels, latents, drawn.boxes, drawn.landmarks, car_boxes(scenes, SIZE))


def class_loss(logits: Tensor, wanted: Tensor, sizes: dict[str, int]) -> Tensor:
    """Sum of the cross-entropies of all classes; those that are UNSTATED are left out.

    logits: (B, sum of sizes); wanted: (B, len(sizes)) int64.
    """
    total = torch.zeros((), device=logits.device)
    for i, part in enumerate(torch.split(logits.float(), list(sizes.values()), 1)):
        loss = F.cross_entropy(part, wanted[:, i], ignore_index=UNSTATED, reduction="sum")
        total = total + loss / (wanted[:, i] != UNSTATED).sum().clamp_min(1)
    return total


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; 0 if there are none."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)


def step_generator(run: TrainingContext, stage: int, step: int) -> torch.Generator:
    """A generator for one step of one stage, and torch's own seeded alike.

    What a step draws thus depends on its number alone, and a stage goes on from a checkpoint as if it had not stopped.
    """
    seed = (run.seed * 100 + stage) * 10_000_000 + step
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    return torch.Generator().manual_seed(seed)


def random_rows(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """``batch`` row numbers below ``count``."""
    return torch.randint(0, count, (batch,), generator=generator)
