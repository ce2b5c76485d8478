"""Evaluation of one open model: unseen people of its world, or people with photos. No printing, no options.

`EvalContext` holds the model and its scorer. `WorldEvaluation` and `LibraryEvaluation` are the two kinds of runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celebctl.basis.names import read_names
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_runtime.errors import NotFoundError
from celebctl_runtime.progress import ProgressCallback, ignore_progress

from .cohorts import (
    FIRST_UNSEEN_SEED,
    PeopleLearner,
    celebrity_cohort,
    generator_for,
    library_cohort,
    unseen_people_cohort,
)
from .metrics import CohortResult, compute_metrics
from .prompts import PHOTO_PROMPTS, WORLD_PROMPTS, Prompt, check_states, read_prompts
from .references import has_rendered_references
from .runner import Cohort, EvalConfig, ResultsStore, SubjectGenerators, ring_partners
from .scorers import PhotoScorer, Scorer, WorldScorer

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.learning.config import LearnConfig
    from celebctl.model import Model
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_runtime.identity import Identity

logger = logging.getLogger(__name__)


def choose_scorer(
    parts: DiffusionParts, analyser: OnnxFaceAnalyser, recogniser: Path | None = None, clip: Path | None = None
) -> Scorer:
    """The model's own scoring folder where it has one and no ``recogniser`` is given, else face packs and CLIP.

    Args:
        recogniser: Folder of a face pack that learning does not use.
        clip: Folder of a CLIP model, for prompt fidelity.
    """
    if recogniser is None and parts.card.scoring_dir is not None:
        if clip is not None:
            logger.warning("%s has its own attribute reader, which scores prompts; CLIP is not used", parts.name)
        return WorldScorer(parts.card.scoring_dir, analyser)
    clip_scorer = None
    if clip is not None:
        from .clip import ClipScorer

        clip_scorer = ClipScorer(clip)
    if recogniser is None or recogniser.resolve() == analyser.folder.resolve():
        logger.warning("identity is scored by the recogniser that learning uses, so it is too high; choose another one")
        return PhotoScorer(analyser, analyser, clip_scorer, circular=True)
    return PhotoScorer(analyser, OnnxFaceAnalyser(recogniser), clip_scorer, circular=False)


@dataclass(frozen=True)
class EvalContext:
    """An open model with its scorer.

    Attributes:
        model: The model, with its face detector and recogniser.
        scorer: Scores images.
        clip: The CLIP folder that the scorer uses, for the settings.
    """

    model: Model
    scorer: Scorer
    clip: Path | None = None

    @property
    def parts(self) -> DiffusionParts:
        """The networks of the model."""
        return self.model.parts

    def configure(self, prompts: Path | None, images_per_prompt: int, *, with_pairs: bool = True) -> EvalConfig:
        """Prompts of a file, or the defaults of this kind of model, without pairs if asked."""
        vocabulary: Mapping[str, Sequence[str]] | None = getattr(self.scorer, "vocabulary", None)
        world = bool(vocabulary) and has_rendered_references(self.parts.card)
        chosen: Sequence[Prompt] = WORLD_PROMPTS if world else PHOTO_PROMPTS
        if prompts is not None:
            chosen = read_prompts(prompts)
            if vocabulary:
                check_states(chosen, vocabulary, prompts)
        kept = [prompt for prompt in chosen if with_pairs or prompt.category != "pair"]
        return EvalConfig(kept, images_per_prompt, self.scorer, self.parts.card.class_noun)

    def settings(self, config: EvalConfig) -> dict[str, Any]:
        """What decides the numbers, whoever is evaluated."""
        text = json.dumps([[p.category, p.text, dict(p.states)] for p in config.prompts])
        return {
            "model": self.parts.name, "token_table_hash": self.parts.table_hash[:16],
            "weights_digest": self.parts.weights_digest, "scorer": self.scorer.description,
            "prompts": len(config.prompts), "prompts_hash": hashlib.sha256(text.encode()).hexdigest()[:12],
            "images_per_prompt": config.images_per_prompt, "clip": str(self.clip) if self.clip else None,
        }  # fmt: skip


@dataclass(frozen=True)
class WorldEvaluation:
    """Unseen people of mini's world, learned for the evaluation, and the world's celebrities.

    Attributes:
        people: Number of unseen people, and of celebrities.
        batch_size: People learned in one call.
        celebrities: Whether to evaluate the model's own celebrities as well.

    Raises:
        NotFoundError: The model has no world of its own.
    """

    context: EvalContext
    config: EvalConfig
    learning: LearnConfig
    people: int = 12
    batch_size: int = 8
    celebrities: bool = True

    def __post_init__(self) -> None:
        parts = self.context.parts
        if not isinstance(self.context.scorer, WorldScorer) or not has_rendered_references(parts.card):
            hint = "evaluate people of your library with their photos"
            raise NotFoundError(
                f"{parts.name} has no world of unseen people", hint, reason="no_world", model=parts.name
            )

    def settings(self) -> dict[str, Any]:
        """What decides the numbers."""
        return self.context.settings(self.config) | {
            "people": self.people, "people_per_call": self.batch_size, "learning": self.learning.to_dict(),
            "mapper_digest": self.context.model.prepared().assets.mapper_digest or None,
        }  # fmt: skip

    def run(
        self, folder: Path, *, overwrite: bool = False, progress: ProgressCallback = ignore_progress
    ) -> list[CohortResult]:
        """Learn, generate and score; what is finished in ``folder`` is not repeated."""
        store = ResultsStore(folder, self.settings())
        store.open(overwrite)
        parts, scorer = self.context.parts, self.context.scorer
        prepared = self.context.model.trainable(release=self.learning.names == "release")
        learner = PeopleLearner(prepared, self.context.model.analyser, self.learning, self.batch_size)
        seeds = [FIRST_UNSEEN_SEED + i for i in range(self.people)]
        learned = learner.learn(seeds, folder, progress)
        model = generator_for(parts, [one.identity for one in learned])
        generators = [SubjectGenerators(model, model, one.learn_seconds, one.size_bytes) for one in learned]
        title = f"unseen people, {self.learning.preset}"
        unseen = unseen_people_cohort(scorer, seeds, ring_partners(self.people), title)
        results = [_evaluate(store, self.config, unseen, generators, "unseen", progress)]
        if self.celebrities:
            model = generator_for(parts, [])
            generators = [SubjectGenerators(model, model)] * self.people
            cohort = celebrity_cohort(scorer, self.people)
            results.append(_evaluate(store, self.config, cohort, generators, "celebrities", progress))
        return results


@dataclass(frozen=True)
class LibraryEvaluation:
    """Learned people, compared with their photos.

    Attributes:
        people: Identities of the context's model.
        photos: A photo of each, in the same order.
        sizes: Bytes of each identity file; None where it is not known.
    """

    context: EvalContext
    config: EvalConfig
    people: Sequence[Identity]
    photos: Sequence[Image]
    sizes: Sequence[int | None]

    def settings(self) -> dict[str, Any]:
        """What decides the numbers."""
        return self.context.settings(self.config) | {
            "people": ", ".join(f"{p.name} {p.digest[:12]}" for p in self.people)
        }

    def run(
        self, folder: Path, *, overwrite: bool = False, progress: ProgressCallback = ignore_progress
    ) -> list[CohortResult]:
        """Generate and score; what is finished in ``folder`` is not repeated."""
        parts = self.context.parts
        names = read_names(parts, self.context.model.chosen_names)
        cohort = library_cohort(self.context.scorer, self.people, self.photos, names)
        store = ResultsStore(folder, self.settings())
        store.open(overwrite)
        model = generator_for(parts, self.people)
        generators = [
            SubjectGenerators(model, model, learn_seconds(one), size)
            for one, size in zip(self.people, self.sizes, strict=True)
        ]
        return [_evaluate(store, self.config, cohort, generators, "library", progress)]


def _evaluate(
    store: ResultsStore, config: EvalConfig, cohort: Cohort, generators: Sequence[SubjectGenerators], group: str,
    progress: ProgressCallback,
) -> CohortResult:  # fmt: skip
    records = store.run(config, cohort, generators.__getitem__, group=group, progress=progress)
    return CohortResult(compute_metrics(cohort.title, records, config.prompts), records)


def learn_seconds(person: Identity) -> float | None:
    """Seconds of learning, where the identity's provenance has them."""
    try:
        return float(person.provenance["seconds"])
    except (KeyError, ValueError):
        return None


def find_photo(folder: Path, name: str) -> Path:
    """The photo of a person in a folder: their name with any suffix. Raises NotFoundError."""
    files = sorted(file for file in folder.glob("*") if file.is_file() and file.stem.casefold() == name)
    if not files:
        hint = f"save it as {folder / name}.jpg"
        raise NotFoundError(f"there is no photo of {name} in {folder}", hint, reason="photo_missing", name=name)
    return files[0]
