"""Drawing and judging people, one after the other; what is finished is kept and not done again."""

from __future__ import annotations

import hashlib
import io
import json
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

from .prompts import Prompt
from .references import Reference
from .results import Sample, SubjectRecord
from .scorers import ImageScores, Scorer

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

Pixels = NDArray[np.uint8]

#: Pixels of pictures that are drawn at once: 48 of 64 x 64, or one of 512 x 512.
_AT_ONCE = 48 * 64 * 64
_THUMBNAIL = 160  # px; smaller pictures are kept as they are
SETTINGS_FILE = "settings.json"


class ImageGenerator(Protocol):
    """Whoever can draw prompts."""

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Pixels]:
        """One picture (H, W, 3) uint8 per prompt and seed."""
        ...


@dataclass(frozen=True)
class ModelGenerator:
    """The torch networks of a model, with people as rows."""

    parts: DiffusionParts
    rows: People

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Pixels]:
        height, width = self.parts.native_size
        size = max(1, _AT_ONCE // (height * width))
        made: list[Pixels] = []
        for start in range(0, len(prompts), size):
            made += list(draw(self.parts, prompts[start : start + size], seeds[start : start + size], self.rows))
        return made


@dataclass(frozen=True)
class Subject:
    """One person of a cast. spoken: what prompts call them: a name, or ``<name>`` for a row of the artist's.

    beside: the spoken name of the celebrity they are drawn with. photo: WebP, for the report.
    """

    name: str
    spoken: str
    beside: str = ""
    photo: bytes = b""


@dataclass(frozen=True)
class Cohort:
    """People who are measured together. title: what the table calls them.

    partners: index of the one beside each in pairs; nobody is their own partner unless alone in the cast.
    """

    title: str
    inputs: Sequence[Subject]
    partners: Sequence[int]
    truth: Reference


@dataclass(frozen=True)
class SubjectGenerators:
    """Somebody ready to be drawn. alone, pair: who draws prompts without and with their partner of the cast.

    seconds: of learning; bytes: what is kept of the person; None where nobody measured it.
    """

    alone: ImageGenerator
    pair: ImageGenerator
    seconds: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class EvalConfig:
    """What is drawn of everybody. noun: a learned person in plain words, for CLIP."""

    prompts: Sequence[Prompt]
    seeds: int
    panel: Scorer
    noun: str = "person"


def neighbours(count: int) -> list[int]:
    """The partner of each in a ring."""
    return [(i + 1) % count for i in range(count)]


def noise_seed(people: int, number: int, draw: int, person: int) -> int:
    """Seed of a picture: prompt ``number`` of those with so many people (benchmarks/likeness.py's formulas)."""
    if people == 1:
        return 500 + 97 * draw + 13 * number + 1009 * person
    return 900 + 89 * draw + 17 * number + 1013 * person


def evaluate(plan: EvalConfig, cast: Cohort, person: int, easel: SubjectGenerators) -> SubjectRecord:
    """Draw and judge one person."""
    sitter = cast.inputs[person]
    made: dict[tuple[int, int], Sample] = {}
    for people, pair in ((1, False), (2, False), (2, True)):
        same = [i for i, prompt in enumerate(plan.prompts) if prompt.people == people]
        numbers = [(k, i) for k, i in enumerate(same) if (plan.prompts[i].category == "pair") == pair]
        jobs = [(k, i, s) for s in range(plan.seeds) for k, i in numbers]
        if not jobs:
            continue
        texts = [_say(plan.prompts[i], cast, person) for _, i, _ in jobs]
        seeds = [noise_seed(people, k, s, person) for k, _, s in jobs]
        pictures = (easel.pair if pair else easel.alone).draw(texts, seeds)
        plain = [_plainly(plan.prompts[i], cast, person, plan.noun) for _, i, _ in jobs]
        for (_, i, s), picture, seen in zip(jobs, pictures, plan.panel.score(pictures, plain, people), strict=True):
            made[i, s] = Sample(i, s, seen, thumbnail(picture))
    truth = [
        Sample(i, r, seen) for i, row in enumerate(cast.truth.see(person, plan.prompts)) for r, seen in enumerate(row)
    ]
    ordered = tuple(made[key] for key in sorted(made))
    return SubjectRecord(sitter.name, ordered, tuple(truth), sitter.photo, easel.seconds, easel.bytes)


def _say(prompt: Prompt, cast: Cohort, person: int) -> str:
    sitter = cast.inputs[person]
    partner = cast.inputs[cast.partners[person]]
    return prompt.say(sitter.spoken, partner.spoken if prompt.category == "pair" else sitter.beside)


def _plainly(prompt: Prompt, cast: Cohort, person: int, noun: str) -> str:
    return prompt.say(f"a {noun}", f"another {noun}" if prompt.category == "pair" else cast.inputs[person].beside)


def thumbnail(picture: Pixels | Image.Image, side: int = _THUMBNAIL) -> bytes:
    """WebP of at most ``side`` px."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=86, method=4)
    return buffer.getvalue()


@dataclass
class ResultsStore:
    """A folder of records. settings: everything that decides a number; a folder of other settings is refused."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    def open(self, force: bool = False) -> None:
        """Make the folder, or go on in it. Raises UsageError when it holds results of other settings."""
        file = self.folder / SETTINGS_FILE
        text = json.dumps(self.settings, indent=1, sort_keys=True) + "\n"
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            if not force:
                raise UsageError(
                    f"{self.folder} holds an evaluation with other settings", "choose another -o, or add --force"
                )
            for old in (*self.folder.glob("*/*.record"), *self.folder.glob("learned/*")):
                old.unlink()  # people learned with other settings as well as pictures of them
        atomic_write(file, text.encode())

    def run(
        self,
        plan: EvalConfig,
        cast: Cohort,
        ready: Callable[[int], SubjectGenerators],
        on_person: Callable[[int, int, str], object] = lambda done, all_, name: None,
        group: str = "",
        only: Collection[int] | None = None,
    ) -> list[SubjectRecord]:
        """Everybody's record, from the folder where it is there; ``ready`` is asked only for those who are not.
        only: indices of those who are wanted, everybody without."""
        records: list[SubjectRecord] = []
        for person, sitter in enumerate(cast.inputs):
            if only is not None and person not in only:
                continue
            on_person(person, len(cast.inputs), sitter.name)
            path = self.folder / (group or cast.title) / f"{slug(sitter.name)}.record"
            record = SubjectRecord.load(path)
            if record is None:
                record = evaluate(plan, cast, person, ready(person))
                record.save(path)
            records.append(record)
        on_person(len(cast.inputs), len(cast.inputs), "")
        return records


def slug(name: str) -> str:
    """A file name: the words of a name, and a digest where more than letters and digits were in it."""
    plain = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    return plain if plain == name else f"{plain[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


__all__ = [
    "Cohort",
    "EvalConfig",
    "ImageGenerator",
    "ImageScores",
    "ModelGenerator",
    "ResultsStore",
    "Subject",
    "SubjectGenerators",
    "evaluate",
    "neighbours",
    "thumbnail",
]
