"""Who is measured: the model's own celebrities, strangers of its world, or people of the user's library."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl.method.sampling import rows_of
from celebctl_models.mini.names import name_book
from celebctl_models.mini.world import draw_portrait, person, portrait_of
from celebctl_runtime.errors import CelebctlError, InputRejected
from celebctl_runtime.files import atomic_write
from celebctl_runtime.identity import Identity

from .panel import Panel
from .session import Cast, ModelArtist, Sitter, neighbours, thumbnail
from .truth import PhotoTruth, WorldTruth

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.method import LearnConfig, LearnStep
    from celebctl.method.basis import CelebBasis
    from celebctl_models.diffusion import DiffusionParts
    from celebctl_models.faces import FaceAnalyser

Floats = NDArray[np.float32]

FIRST_STRANGER = 1000  # seeds of the strangers that are scored; benchmarks/baselines.py takes others, never looked at
_CAST_SEED, _BESIDE_SEED = 5, 7
_PORTRAIT = 160  # px


@dataclass(frozen=True)
class Learned:
    """A stranger after learning. seconds: their share of the call that learned them. bytes: of their file."""

    identity: Identity
    seconds: float
    bytes: int


def celebrity_cast(panel: Panel, count: int) -> Cast:
    """Celebrities of the world by name, the same for the same count: what the model can do at all."""
    book = name_book()
    order: list[int] = np.random.Generator(np.random.PCG64(_CAST_SEED)).permutation(len(book.names)).tolist()
    chosen, others = order[:count], (order * 2)[count : 2 * count]
    z = book.celebrities()
    beside = [book.names[i] for i in others]
    sitters = [
        Sitter(book.names[i], book.names[i], other, thumbnail(portrait_of(z[i], i, _PORTRAIT)))
        for i, other in zip(chosen, beside, strict=True)
    ]
    partners = neighbours(count)
    return Cast("the model's own celebrities", sitters, partners, WorldTruth(panel, z[chosen], partners, z[others]))


def stranger_cast(panel: Panel, seeds: Sequence[int], partners: Sequence[int], title: str) -> Cast:
    """Strangers of the world, spoken of as ``<p1000>``."""
    book = name_book()
    shuffled: list[int] = np.random.Generator(np.random.PCG64(_BESIDE_SEED)).permutation(len(book.names)).tolist()
    order = shuffled[: len(seeds)]
    sitters = [
        Sitter(stranger_name(seed), f"<{stranger_name(seed)}>", book.names[other], thumbnail(draw_portrait(seed)))
        for seed, other in zip(seeds, order, strict=True)
    ]
    z = np.stack([person(seed) for seed in seeds])
    return Cast(title, sitters, partners, WorldTruth(panel, z, partners, book.celebrities()[order]))


def stranger_name(seed: int) -> str:
    """What the stranger of a seed is called."""
    return f"p{seed}"


def learn_strangers(
    parts: DiffusionParts, analyser: FaceAnalyser, config: LearnConfig, basis: CelebBasis, seeds: Sequence[int],
    together: int, folder: Path, on_step: Callable[[int, int, LearnStep], None],
) -> list[Learned]:  # fmt: skip
    """Learn strangers from one portrait each, ``together`` in a call; whole calls that are in ``folder`` are not done
    again. ``on_step`` hears the number of the call, of all calls, and how it goes."""
    calls = [seeds[start : start + together] for start in range(0, len(seeds), together)]
    learned: list[Learned] = []
    for number, group in enumerate(calls):
        kept = _kept(folder, group)
        if kept is None:
            kept = _learn(
                parts, analyser, config, basis, group, folder, lambda now, n=number: on_step(n, len(calls), now)
            )
        learned += kept
    return learned


def _learn(
    parts: DiffusionParts, analyser: FaceAnalyser, config: LearnConfig, basis: CelebBasis, seeds: Sequence[int],
    folder: Path, on_step: Callable[[LearnStep], None],
) -> list[Learned]:  # fmt: skip
    from celebctl.method.learn import learn_people

    names = [stranger_name(seed) for seed in seeds]
    begun = time.monotonic()
    people = learn_people(
        parts, analyser, [draw_portrait(seed) for seed in seeds], names, config,
        basis=basis, on_step=on_step,
    )  # fmt: skip
    seconds = (time.monotonic() - begun) / len(seeds)
    for identity in people:
        identity.save(_file(folder, identity.name))
    atomic_write(_seconds_file(folder, seeds), json.dumps(seconds).encode())
    return [Learned(identity, seconds, _file(folder, identity.name).stat().st_size) for identity in people]


def _kept(folder: Path, seeds: Sequence[int]) -> list[Learned] | None:
    try:
        seconds = float(json.loads(_seconds_file(folder, seeds).read_text()))
        files = [_file(folder, stranger_name(seed)) for seed in seeds]
        return [Learned(Identity.load(file), seconds, file.stat().st_size) for file in files]
    except (OSError, ValueError, CelebctlError):
        return None  # not finished, or damaged: learned again


def _file(folder: Path, name: str) -> Path:
    return folder / "learned" / f"{name}.safetensors"


def _seconds_file(folder: Path, seeds: Sequence[int]) -> Path:
    return folder / "learned" / f"{stranger_name(seeds[0])}-{len(seeds)}.seconds.json"


def artist_of(parts: DiffusionParts, people: Sequence[Identity]) -> ModelArtist:
    """The model with people as its rows."""
    return ModelArtist(parts, {one.name: rows_of(one) for one in people})


def library_cast(panel: Panel, people: Sequence[Identity], photos: Sequence[Image], names: Sequence[str]) -> Cast:
    """People of a library with their photos. names: celebrities the model knows.

    Raises InputRejected for a photo in which the judge finds no face.
    """
    looks: list[Floats] = []
    for one, photo in zip(people, photos, strict=True):
        look = panel.know(cast(Any, np.asarray(photo.convert("RGB"), np.uint8)))
        if look is None:
            raise InputRejected(
                f"no face was found in the photo of {one.name}", "give the photo they were learned from"
            )
        looks.append(look)
    sitters = [
        Sitter(one.name, f"<{one.name}>", names[(37 * i + 11) % len(names)], thumbnail(photo))
        for i, (one, photo) in enumerate(zip(people, photos, strict=True))
    ]
    partners = neighbours(len(people))
    return Cast("people of the library", sitters, partners, PhotoTruth(looks, partners))
