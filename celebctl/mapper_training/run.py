"""Training a mapper from a folder of photos to a file in the library's cache, resumably: what `basis train` calls."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celebctl.basis.name_filtering import face_models_hash
from celebctl.learning.device import choose_micro_batch, free_memory
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_runtime.errors import InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.files import translate_os_errors
from celebctl_runtime.progress import ProgressCallback, ignore_progress

from .mapper_store import cached_mapper_path, save_trained
from .photo_dataset import VIEWS, FaceDatasetBuilder, bytes_per_photo, list_photos, view_encoder
from .trainer import MIN_PEOPLE, FaceDataset, MapperTrainer, MapperTrainingConfig

if TYPE_CHECKING:
    from celebctl.model import Model

LOCK = "celeb-basis-mapper"  # held while a mapper is trained

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MapperRunOptions:
    """How a mapper is trained.

    Attributes:
        people: Use at most so many photos, chosen at random; None uses all.
        resume: Continue an interrupted run.
        overwrite: Replace a trained mapper, or train although the model has its own.
        low_memory: Gradient checkpointing and one view at a time.
    """

    people: int | None = None
    resume: bool = False
    overwrite: bool = False
    low_memory: bool = False


@dataclass(frozen=True)
class MapperResult:
    """path: of the mapper. facts: figures of the training. skipped: number of files by reason."""

    path: Path
    facts: dict[str, Any]
    skipped: dict[str, int]


def mapper_config(seed: int = 0, steps: int | None = None) -> MapperTrainingConfig:
    """The default settings with a seed and a number of steps. Raises UsageError for values out of range."""
    if steps is not None and not 1 <= steps <= 1_000_000:
        raise UsageError(f"steps {steps} is out of range", "use 1 to 1000000", reason="mapper_steps", steps=steps)
    if not 0 <= seed < 2**62:
        raise UsageError(f"seed {seed} is out of range", f"use 0 to {2**62 - 1}", reason="mapper_seed", seed=seed)
    return MapperTrainingConfig(seed=seed) if steps is None else MapperTrainingConfig(seed=seed, steps=steps)


def train_mapper(
    model: Model,
    folder: Path,
    config: MapperTrainingConfig,
    options: MapperRunOptions | None = None,
    progress: ProgressCallback = ignore_progress,
) -> MapperResult:
    """Train a mapper on a folder of photos and store it in the library's cache, where learning finds it.

    Args:
        model: The model it is trained for.
        folder: Photos of several hundred people, one in each; subfolders included.
        config: Settings of the training.
        options: What to do about earlier runs and mappers, and memory use.
        progress: Reading photos, then training.

    Raises:
        UsageError: A mapper exists, or a run is unfinished, and ``overwrite`` is not given.
        InvalidInputError: Too few usable photos, or the mapper does not help unseen people.
        NotFoundError: Nothing to resume, or no such folder.
    """
    options = options or MapperRunOptions()
    if options.people is not None and options.people < MIN_PEOPLE:
        raise UsageError(
            f"people {options.people} is too few", f"use at least {MIN_PEOPLE}; several hundred are a good start"
        )
    files = list_photos(folder, config.seed)
    model.prepare()
    run = _Run(model, model.library.root / "unfinished" / model.key / "mapper", config, options)
    run.require_not_trained()
    micro_batch_size = choose_micro_batch(model.parts, config.batch_size, low_memory=options.low_memory)
    with model.library.reserve([LOCK], model.key):
        run.begin()
        try:
            dataset, skipped = run.build_dataset(files, progress)
            return run.train(dataset, skipped, micro_batch_size, progress)
        except InvalidInputError as error:
            if error.reason != "mapper_not_better":  # then the encoded photos serve a longer training
                run.clear()
            raise


@dataclass(frozen=True)
class _Run:
    """One call of `train_mapper`. work: the folder of encoded photos and the checkpoint."""

    model: Model
    work: Path
    config: MapperTrainingConfig
    options: MapperRunOptions

    @property
    def checkpoint(self) -> Path:
        return self.work / "mapper.checkpoint"

    def require_not_trained(self) -> None:
        """Raise UsageError when the model has a mapper already."""
        if self.options.overwrite:
            return
        path = cached_mapper_path(self.model.library.cache(), self.model.basis, self.model.face_models)
        if path.is_file():
            raise UsageError(
                f"a mapper was trained for this model already: {path}", "pass overwrite=True to replace it",
                reason="mapper_exists", path=path,
            )  # fmt: skip
        if self.model.prepared().assets.mapper is not None:
            raise UsageError(
                f"{self.model.name} has its own mapper, which a trained one would replace",
                "pass overwrite=True to train one nevertheless", reason="model_has_mapper",
            )  # fmt: skip

    def begin(self) -> None:
        """Continue, refuse or discard what an earlier run left."""
        if self.options.resume:
            if not self.work.is_dir():
                raise NotFoundError(
                    "there is no unfinished training for this model", "start without resuming", reason="no_checkpoint"
                )
        elif self.work.is_dir() and not self.options.overwrite:
            raise UsageError(
                "a training for this model is unfinished", "pass resume=True, or overwrite=True to discard it",
                reason="training_unfinished",
            )  # fmt: skip
        else:
            self.clear()

    def build_dataset(self, files: Sequence[Path], progress: ProgressCallback) -> tuple[FaceDataset, dict[str, int]]:
        """Filter and encode the photos."""
        model, analyser = self.model.prepared(), OnnxFaceAnalyser(self.model.face_models)
        parts, seed = self.model.parts, str(self.config.seed)
        face_models = face_models_hash(self.model.face_models)
        key = "|".join([parts.name, parts.table_hash, model.basis.hash, face_models, seed])
        encode = view_encoder(self.model.trainable(), self.config.seed)
        builder = FaceDatasetBuilder(analyser, encode, self.work, key, analyser.settings.min_face)
        builder.load_shards()
        _log.info("%d files; only the mapper is kept, not the people; use photos you may use", len(files))
        self._log_memory(len(files) if self.options.people is None else min(self.options.people, len(files)))
        dataset = builder.build(files, self.options.people, progress)
        if builder.skipped:
            _log.info("skipped: %s", builder.skipped_summary())
        return dataset, {reason: len(names) for reason, names in builder.skipped.items()}

    def train(
        self, dataset: FaceDataset, skipped: dict[str, int], micro_batch_size: int, progress: ProgressCallback
    ) -> MapperResult:
        """Train, validate and store the mapper; removes the work folder."""
        trainer = MapperTrainer(self.model.trainable(), dataset, self.config, micro_batch_size)
        if self.options.resume and self.checkpoint.is_file():
            trainer.load(self.checkpoint)
        people, held_out = len(trainer.train_idx), len(trainer.val_idx)
        _log.info("%d people to train on, %d held out; initialized from %s", people, held_out, trainer.init)
        mapper = trainer.train(self.checkpoint, progress)
        try:
            trainer.require_improvement()
        except InvalidInputError:
            self.checkpoint.unlink(missing_ok=True)
            raise
        facts = trainer.facts()
        metadata = {name: str(value) for name, value in facts.items()}
        path = save_trained(mapper, self.model.basis, self.model.library.cache(), self.model.face_models, metadata)
        self.clear()
        self.model.refresh()
        _log.info("loss on held-out people: %s", trainer.best)
        return MapperResult(path, facts, skipped)

    def clear(self) -> None:
        """Remove the work folder."""
        with translate_os_errors(self.work):
            if self.work.exists():
                shutil.rmtree(self.work)

    def _log_memory(self, photos: int) -> None:
        needed, free = photos * bytes_per_photo(self.model.parts), free_memory("cpu")
        if needed > 0.5 * free:
            _log.warning("views of all photos take %.1f GB; %.1f GB of memory are free", needed / 1e9, free / 1e9)
        elif needed > 1e8:
            _log.info("%d views per photo take %.1f GB of memory and disk during training", VIEWS, needed / 1e9)
