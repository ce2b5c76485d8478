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

from celebctl.learning.sampling import rows_of
from celebctl_models.mini.names import name_book
from celebctl_models.mini.world import draw_portrait, person, portrait_of
from celebctl_runtime.errors import CelebctlError, InvalidInputError
from celebctl_runtime.files import atomic_write
from celebctl_runtime.identity import Identity

from .references import PhotoReference, WorldReference
from .runner import Cohort, ModelGenerator, Subject, neighbours, thumbnail
from .scorers import Scorer

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.learning.config import LearnConfig
    from celebctl.learning.prepared import PreparedModel
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.faces.analysis import FaceAnalyser
    from celebctl_runtime.progress import Progress

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


def celebrity_cohort(panel: Scorer, count: int) -> Cohort:
    """Celebrities of the world by name, the same for the same count: what the model can do at all."""
    book = name_book()
    order: list[int] = np.random.Generator(np.random.PCG64(_CAST_SEED)).permutation(len(book.names)).tolist()
    chosen, others = order[:count], (order * 2)[count : 2 * count]
    z = book.celebrities()
    beside = [book.names[i] for i in others]
    inputs = [
        Subject(book.names[i], book.names[i], other, thumbnail(portrait_of(z[i], i, _PORTRAIT)))
        for i, other in zip(chosen, beside, strict=True)
    ]
    partners = neighbours(count)
    return Cohort("the model's own celebrities", inputs, partners, WorldReference(panel, z[chosen], partners, z[others]))


def unseen_people_cohort(panel: Scorer, seeds: Sequence[int], partners: Sequence[int], title: str) -> Cohort:
    """Strangers of the world, spoken of as ``<p1000>``."""
    book = name_book()
    shuffled: list[int] = np.random.Generator(np.random.PCG64(_BESIDE_SEED)).permutation(len(book.names)).tolist()
    order = shuffled[: len(seeds)]
    inputs = [
        Subject(unseen_name(seed), f"<{unseen_name(seed)}>", book.names[other], thumbnail(draw_portrait(seed)))
        for seed, other in zip(seeds, order, strict=True)
    ]
    z = np.stack([person(seed) for seed in seeds])
    return Cohort(title, inputs, partners, WorldReference(panel, z, partners, book.celebrities()[order]))


def unseen_name(seed: int) -> str:
    """What the stranger of a seed is called."""
    return f"p{seed}"


def learn_unseen_people(
    model: PreparedModel[DiffusionParts], analyser: FaceAnalyser, config: LearnConfig, seeds: Sequence[int],
    together: int, folder: Path, on_step: Callable[[int, int, Progress], None],
) -> list[Learned]:  # fmt: skip
    """Learn strangers from one portrait each, ``together`` in a call; whole calls that are in ``folder`` are not done
    again. ``on_step`` hears the number of the call, of all calls, and how it goes."""
    calls = [seeds[start : start + together] for start in range(0, len(seeds), together)]
    learned: list[Learned] = []
    for number, group in enumerate(calls):
        kept = _kept(folder, group)
        if kept is None:
            kept = _learn(
                model, analyser, config, group, folder, lambda now, n=number: on_step(n, len(calls), now)
            )
        learned += kept
    return learned


def _learn(
    model: PreparedModel[DiffusionParts], analyser: FaceAnalyser, config: LearnConfig, seeds: Sequence[int],
    folder: Path, on_step: Callable[[Progress], None],
) -> list[Learned]:  # fmt: skip
    from celebctl.learning.subject import analyse_photo
    from celebctl.learning.trainer import learn_people

    begun = time.monotonic()
    subjects = [analyse_photo(analyser, draw_portrait(seed), unseen_name(seed)) for seed in seeds]
    people = learn_people(model, subjects, config, analyser, progress=on_step)
    seconds = (time.monotonic() - begun) / len(seeds)
    for identity in people:
        identity.save(_file(folder, identity.name))
    atomic_write(_seconds_file(folder, seeds), json.dumps(seconds).encode())
    return [Learned(identity, seconds, _file(folder, identity.name).stat().st_size) for identity in people]


def _kept(folder: Path, seeds: Sequence[int]) -> list[Learned] | None:
    try:
        seconds = float(json.loads(_seconds_file(folder, seeds).read_text()))
        files = [_file(folder, unseen_name(seed)) for seed in seeds]
        return [Learned(Identity.load(file), seconds, file.stat().st_size) for file in files]
    except (OSError, ValueError, CelebctlError):
        return None  # not finished, or damaged: learned again


def _file(folder: Path, name: str) -> Path:
    return folder / "learned" / f"{name}.safetensors"


def _seconds_file(folder: Path, seeds: Sequence[int]) -> Path:
    return folder / "learned" / f"{unseen_name(seeds[0])}-{len(seeds)}.seconds.json"


def generator_for(parts: DiffusionParts, people: Sequence[Identity]) -> ModelGenerator:
    """The model with people as its rows."""
    return ModelGenerator(parts, {one.name: rows_of(one) for one in people})


def library_cohort(panel: Scorer, people: Sequence[Identity], photos: Sequence[Image], names: Sequence[str]) -> Cohort:
    """People of a library with their photos. names: celebrities the model knows.

    Raises InvalidInputError for a photo in which the judge finds no face.
    """
    looks: list[Floats] = []
    for one, photo in zip(people, photos, strict=True):
        look = panel.embed_face(cast(Any, np.asarray(photo.convert("RGB"), np.uint8)))
        if look is None:
            raise InvalidInputError(
                f"no face was found in the photo of {one.name}", "give the photo they were learned from"
            )
        looks.append(look)
    inputs = [
        Subject(one.name, f"<{one.name}>", names[(37 * i + 11) % len(names)], thumbnail(photo))
        for i, (one, photo) in enumerate(zip(people, photos, strict=True))
    ]
    partners = neighbours(len(people))
    return Cohort("people of the library", inputs, partners, PhotoReference(looks, partners))
