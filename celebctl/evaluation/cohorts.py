"""Cohorts: the model's own celebrities, unseen people of mini's world, or people of a library."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
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
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress
from celebctl_runtime.strict_json import parse_json

from .references import PhotoReference, WorldReference
from .runner import Cohort, ModelGenerator, Subject, ring_partners, thumbnail

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.learning.config import LearnConfig
    from celebctl.learning.prepared import PreparedModel
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.faces.analysis import FaceAnalyser

    from .scorers import Scorer

Floats = NDArray[np.float32]

FIRST_UNSEEN_SEED = 1000  # seeds of the people that are scored; benchmarks/baselines takes others, never used before
_CELEBRITY_SEED, _PARTNER_SEED = 5, 7
_PORTRAIT = 160  # px


def celebrity_cohort(scorer: Scorer, count: int) -> Cohort:
    """Celebrities of mini's world by name, the same for the same count: an upper reference for learned people."""
    book = name_book()
    order: list[int] = np.random.Generator(np.random.PCG64(_CELEBRITY_SEED)).permutation(len(book.names)).tolist()
    chosen, others = order[:count], (order * 2)[count : 2 * count]
    z = book.celebrities()
    subjects = [
        Subject(book.names[i], book.names[i], book.names[other], thumbnail(portrait_of(z[i], i, _PORTRAIT)))
        for i, other in zip(chosen, others, strict=True)
    ]
    partners = ring_partners(count)
    reference = WorldReference(scorer, z[chosen], partners, z[others])
    return Cohort("the model's own celebrities", subjects, partners, reference)


def unseen_people_cohort(scorer: Scorer, seeds: Sequence[int], partners: Sequence[int], title: str) -> Cohort:
    """People of mini's world who are not celebrities, one per seed, named ``<p1000>`` in prompts."""
    book = name_book()
    shuffled: list[int] = np.random.Generator(np.random.PCG64(_PARTNER_SEED)).permutation(len(book.names)).tolist()
    order = shuffled[: len(seeds)]
    subjects = [
        Subject(unseen_name(seed), f"<{unseen_name(seed)}>", book.names[other], thumbnail(draw_portrait(seed)))
        for seed, other in zip(seeds, order, strict=True)
    ]
    z = np.stack([person(seed) for seed in seeds])
    return Cohort(title, subjects, partners, WorldReference(scorer, z, partners, book.celebrities()[order]))


def unseen_name(seed: int) -> str:
    """Name of the unseen person of a seed."""
    return f"p{seed}"


def library_cohort(scorer: Scorer, people: Sequence[Identity], photos: Sequence[Image], names: Sequence[str]) -> Cohort:
    """Learned people with their photos. names: celebrities the model knows.

    Raises:
        InvalidInputError: The scorer finds no face in a photo.
    """
    features: list[Floats] = []
    for one, photo in zip(people, photos, strict=True):
        feature = scorer.embed_face(cast(Any, np.asarray(photo.convert("RGB"), np.uint8)))
        if feature is None:
            hint = "pass the photo that the person was learned from"
            raise InvalidInputError(
                f"no face was found in the photo of {one.name}", hint, reason="no_face_in_reference", name=one.name
            )
        features.append(feature)
    subjects = [
        Subject(one.name, f"<{one.name}>", names[(37 * i + 11) % len(names)], thumbnail(photo))
        for i, (one, photo) in enumerate(zip(people, photos, strict=True))
    ]
    partners = ring_partners(len(people))
    return Cohort("people of the library", subjects, partners, PhotoReference(features, partners))


def generator_for(parts: DiffusionParts, people: Sequence[Identity]) -> ModelGenerator:
    """The model with the token embeddings of people."""
    return ModelGenerator(parts, {one.name: rows_of(one) for one in people})


@dataclass(frozen=True)
class LearnedPerson:
    """An unseen person after learning. learn_seconds: share of the joint call. size_bytes: of the identity file."""

    identity: Identity
    learn_seconds: float
    size_bytes: int


@dataclass(frozen=True)
class PeopleLearner:
    """Learns unseen people from one portrait each.

    Attributes:
        model: The prepared model.
        analyser: Finds and embeds faces.
        config: Learning settings.
        batch_size: People learned in one call.
    """

    model: PreparedModel[DiffusionParts]
    analyser: FaceAnalyser
    config: LearnConfig
    batch_size: int = 8

    def learn(
        self, seeds: Sequence[int], folder: Path, progress: ProgressCallback = ignore_progress
    ) -> list[LearnedPerson]:
        """Learn the people of ``seeds``; complete calls whose identities are in ``folder`` are read from there."""
        calls = [seeds[start : start + self.batch_size] for start in range(0, len(seeds), self.batch_size)]
        learned: list[LearnedPerson] = []
        for number, group in enumerate(calls):

            def on_step(now: Progress, number: int = number) -> None:
                done = number * now.total + now.step
                progress(Progress("learning unseen people", done, len(calls) * now.total, now.metrics))

            learned += _load_learned(folder, group) or self._learn(group, folder, on_step)
        return learned

    def _learn(self, seeds: Sequence[int], folder: Path, on_step: ProgressCallback) -> list[LearnedPerson]:
        from celebctl.learning.subject import analyse_photo
        from celebctl.learning.trainer import learn_people

        start = time.monotonic()
        subjects = [analyse_photo(self.analyser, draw_portrait(seed), unseen_name(seed)) for seed in seeds]
        people = learn_people(self.model, subjects, self.config, self.analyser, progress=on_step)
        seconds = (time.monotonic() - start) / len(seeds)
        for identity in people:
            identity.save(_identity_file(folder, identity.name))
        atomic_write(_seconds_file(folder, seeds), json.dumps(seconds).encode())
        return [LearnedPerson(one, seconds, _identity_file(folder, one.name).stat().st_size) for one in people]


def _load_learned(folder: Path, seeds: Sequence[int]) -> list[LearnedPerson] | None:
    try:
        seconds = float(parse_json(_seconds_file(folder, seeds).read_bytes()))
        files = [_identity_file(folder, unseen_name(seed)) for seed in seeds]
        return [LearnedPerson(Identity.load(file), seconds, file.stat().st_size) for file in files]
    except (OSError, ValueError, TypeError, CelebctlError):
        return None  # incomplete or damaged: learned again


def _identity_file(folder: Path, name: str) -> Path:
    return folder / "learned" / f"{name}.safetensors"


def _seconds_file(folder: Path, seeds: Sequence[int]) -> Path:
    return folder / "learned" / f"{unseen_name(seeds[0])}-{len(seeds)}.seconds.json"
