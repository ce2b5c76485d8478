"""Generate and score the samples of a cohort, subject by subject; finished subjects are kept and not repeated."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from celebctl.learning.sampling import People, draw
from celebctl_runtime.errors import UsageError
from celebctl_runtime.files import atomic_write
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress

from .prompts import Prompt
from .references import Reference
from .results import Sample, SubjectRecord
from .scorers import Scorer

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

Pixels = NDArray[np.uint8]

#: Pixels per batch: 48 images of 64 x 64, or one of 512 x 512.
_BATCH_PIXELS = 48 * 64 * 64
_THUMBNAIL = 160  # px; smaller images are kept as they are
SETTINGS_FILE = "settings.json"

logger = logging.getLogger(__name__)


class ImageGenerator(Protocol):
    """Anything that generates images from prompts."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Pixels]:
        """One image (H, W, 3) uint8 per prompt and seed."""
        ...


@dataclass(frozen=True)
class ModelGenerator:
    """The torch networks of a model, with the token embeddings of people by name."""

    parts: DiffusionParts
    people: People

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Pixels]:
        """See `ImageGenerator.generate`; at the model's native size and default settings."""
        height, width = self.parts.native_size
        size = max(1, _BATCH_PIXELS // (height * width))
        images: list[Pixels] = []
        for start in range(0, len(prompts), size):
            images += list(draw(self.parts, prompts[start : start + size], seeds[start : start + size], self.people))
        return images


@dataclass(frozen=True)
class Subject:
    """One person of a cohort.

    Attributes:
        name: Name in tables and files.
        prompt_name: Name in prompts: plain, or ``<name>`` for a learned person.
        celebrity: Prompt name of the celebrity they are shown with.
        photo: WebP, for the report; empty without one.
    """

    name: str
    prompt_name: str
    celebrity: str = ""
    photo: bytes = b""


@dataclass(frozen=True)
class Cohort:
    """People who are evaluated together.

    Attributes:
        title: What tables call them.
        subjects: The people.
        partners: Index of the person beside each subject in pair prompts.
        reference: What their faces are compared with.
    """

    title: str
    subjects: Sequence[Subject]
    partners: Sequence[int]
    reference: Reference


@dataclass(frozen=True)
class SubjectGenerators:
    """What generates a subject's images.

    Attributes:
        single: For prompts without the partner.
        pair: For prompts with the partner of the cohort.
        learn_seconds: Time of learning, None where unknown.
        size_bytes: Size of the identity file, None where there is none.
    """

    single: ImageGenerator
    pair: ImageGenerator
    learn_seconds: float | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class EvalConfig:
    """What is generated for each subject, and who scores it. class_noun: stands for names in CLIP's prompts."""

    prompts: Sequence[Prompt]
    images_per_prompt: int
    scorer: Scorer
    class_noun: str = "person"


def ring_partners(count: int) -> list[int]:
    """The partner of each subject: the next one, for the last one the first."""
    return [(i + 1) % count for i in range(count)]


def noise_seed(people: int, prompt: int, index: int, subject: int) -> int:
    """Seed of image ``index`` of prompt number ``prompt`` among those with ``people`` people."""
    if people == 1:
        return 500 + 97 * index + 13 * prompt + 1009 * subject
    return 900 + 89 * index + 17 * prompt + 1013 * subject


def evaluate_subject(config: EvalConfig, cohort: Cohort, index: int, generators: SubjectGenerators) -> SubjectRecord:
    """Generate and score the images of one subject."""
    subject = cohort.subjects[index]
    samples = [
        *_samples(config, cohort, index, generators.single, people=1, pair=False),
        *_samples(config, cohort, index, generators.single, people=2, pair=False),
        *_samples(config, cohort, index, generators.pair, people=2, pair=True),
    ]
    references = [
        Sample(p, i, scores)
        for p, row in enumerate(cohort.reference.scores(index, config.prompts))
        for i, scores in enumerate(row)
    ]
    ordered = tuple(sorted(samples, key=lambda sample: (sample.prompt, sample.index)))
    return SubjectRecord(
        subject.name, ordered, tuple(references), subject.photo, generators.learn_seconds, generators.size_bytes
    )


def _samples(
    config: EvalConfig, cohort: Cohort, subject: int, generator: ImageGenerator, *, people: int, pair: bool
) -> list[Sample]:
    """Samples of the prompts with this number of people, with the partner or without."""
    same = [p for p, prompt in enumerate(config.prompts) if prompt.people == people]
    numbered = [(k, p) for k, p in enumerate(same) if (config.prompts[p].category == "pair") == pair]
    jobs = [(k, p, i) for i in range(config.images_per_prompt) for k, p in numbered]
    if not jobs:
        return []
    prompts = [config.prompts[p] for _, p, _ in jobs]
    seeds = [noise_seed(people, k, i, subject) for k, _, i in jobs]
    images = generator.generate([_prompt_text(prompt, cohort, subject) for prompt in prompts], seeds)
    texts = [_plain_text(prompt, cohort, subject, config.class_noun) for prompt in prompts]
    return [
        Sample(p, i, scores, thumbnail(image))
        for (_, p, i), image, scores in zip(jobs, images, config.scorer.score(images, texts, people), strict=True)
    ]


def _prompt_text(prompt: Prompt, cohort: Cohort, index: int) -> str:
    subject, partner = cohort.subjects[index], cohort.subjects[cohort.partners[index]]
    return prompt.format(subject.prompt_name, partner.prompt_name if prompt.category == "pair" else subject.celebrity)


def _plain_text(prompt: Prompt, cohort: Cohort, index: int, noun: str) -> str:
    """The prompt in words that CLIP knows."""
    return prompt.format(
        f"a {noun}", f"another {noun}" if prompt.category == "pair" else cohort.subjects[index].celebrity
    )


def thumbnail(image: Pixels | Image.Image, side: int = _THUMBNAIL) -> bytes:
    """WebP of at most ``side`` px."""
    small = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=86, method=4)
    return buffer.getvalue()


@dataclass
class ResultsStore:
    """A folder of records.

    Attributes:
        folder: Where records and ``settings.json`` are kept.
        settings: Everything that decides a number; results of other settings are refused.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    def open(self, overwrite: bool = False) -> None:
        """Create the folder, or continue in it.

        Raises:
            UsageError: It holds results of other settings and ``overwrite`` is False.
        """
        file = self.folder / SETTINGS_FILE
        text = json.dumps(self.settings, indent=1, sort_keys=True) + "\n"
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            if not overwrite:
                raise UsageError(
                    f"{self.folder} holds an evaluation with other settings",
                    "choose another folder, or pass overwrite=True",
                    reason="evaluation_settings_differ", folder=self.folder,
                )  # fmt: skip
            for old in (*self.folder.glob("*/*.record"), *self.folder.glob("learned/*")):
                old.unlink()  # people learned with other settings as well as images of them
        atomic_write(file, text.encode())

    def run(
        self, config: EvalConfig, cohort: Cohort, generators: Callable[[int], SubjectGenerators], *,
        group: str = "", only: Collection[int] | None = None, progress: ProgressCallback = ignore_progress,
    ) -> list[SubjectRecord]:  # fmt: skip
        """Records of the cohort, read from the folder where they are there.

        Args:
            generators: Called with the index of each subject who has no record yet.
            group: Subfolder of the records; default: the cohort's title.
            only: Indices of the subjects to evaluate; default: all.
            progress: Called with stage "evaluating" before each subject and at the end.
        """
        records: list[SubjectRecord] = []
        total = len(cohort.subjects)
        for index, subject in enumerate(cohort.subjects):
            if only is not None and index not in only:
                continue
            progress(Progress(f"evaluating {cohort.title}", index, total))
            path = self.folder / (group or cohort.title) / f"{file_stem(subject.name)}.record"
            record = SubjectRecord.load(path)
            if record is None:
                record = evaluate_subject(config, cohort, index, generators(index))
                record.save(path)
                logger.debug("evaluated %s", subject.name)
            records.append(record)
        progress(Progress(f"evaluating {cohort.title}", total, total))
        return records


def file_stem(name: str) -> str:
    """A file name: the words of a name, and a digest where it has more than letters and digits."""
    plain = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    return plain if plain == name else f"{plain[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
