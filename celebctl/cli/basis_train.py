"""basis train: a model's mapper from faces to people, trained on a folder of photos."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from celebctl_runtime.errors import InvalidInputError, NotFoundError, UsageError

from . import options
from .celebrity_renders import in_words
from .console import CliConsole
from .loading import face_folder, make_room, open_model

if TYPE_CHECKING:
    from celebctl.basis.basis import CelebBasis
    from celebctl.learning.mapper import PretrainedMapper
    from celebctl.library import Library
    from celebctl.mapper_training.photo_dataset import FaceDatasetBuilder
    from celebctl.mapper_training.trainer import FaceDataset, MapperTrainer, MapperTrainingConfig, TrainStep
    from celebctl_models.checkpoints.diffusion import DiffusionParts

WORK = "celeb-basis-mapper"  # what is locked while a mapper is trained
_PEOPLE = "people in the folder are not learned: what is kept is the mapper alone; use photos you may use"


def train(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Photos of many people, one in each; subfolders are read too.", metavar="FOLDER")
    ],
    steps: Annotated[int | None, typer.Option("--steps", help="How many steps.", show_default="2400")] = None,
    people: Annotated[
        int | None, typer.Option("--people", help="At most so many photos, chosen at random.", show_default="all")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where Ctrl-C stopped.")] = False,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Same seed, same mapper.")] = 0,
    model: options.Model = None,
    face_models: options.FaceModels = None,
    device: options.Device = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Slower, in a third of the memory: for large models.")
    ] = False,
    force: options.Force = False,
) -> None:
    """Train the mapper from faces to people that `learn` begins with, and `learn --instant` ends with.

    Takes nothing but photos: several hundred people at least. Part of them is held back, to measure on.
    """
    from celebctl.library import Library
    from celebctl.settings import Settings

    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    config = configure(steps, people, seed)
    chosen = str(settings.text("model", model))
    with requires_extra("learn", "training a mapper"):
        from celebctl.mapper_training.photo_dataset import list_photos

        files = list_photos(folder, seed)
        faces = face_folder(settings, chosen, face_models)
        parts = open_model(console, chosen, str(settings.text("device", device)))
        course = TrainingRun.open(console, library, parts, faces)
        course.refuse_taken(force)
        together = make_room(console, course.parts, config.batch_size, low_memory)
        with library.reserve([WORK], course.model_key):
            course.begin(resume, force)
            try:
                crowd, gathering = course.gather(files, people, seed)
                school = course.school(crowd, config, together, resume)
                fitted = course.train(school)
            except InvalidInputError:
                course.clear()
                raise
            except KeyboardInterrupt:
                course.say_how_to_resume()
                raise
            path = course.keep(fitted, school)
            course.clear()
    course.close(school, gathering, path)


def configure(steps: int | None, people: int | None, seed: int) -> "MapperTrainingConfig":
    """The settings with what was asked for on top. Raises UsageError."""
    from celebctl.mapper_training.trainer import MIN_PEOPLE, MapperTrainingConfig

    if steps is not None and not 1 <= steps <= 1_000_000:
        raise UsageError(f"--steps {steps} is out of range", "use 1 to 1000000")
    if people is not None and people < MIN_PEOPLE:
        raise UsageError(f"--people {people} is too few", f"use at least {MIN_PEOPLE}; several hundred are a good start")
    if not 0 <= seed < 2**62:
        raise UsageError(f"--seed {seed} is out of range", "use 0 to 4611686018427387903")
    return MapperTrainingConfig(seed=seed) if steps is None else MapperTrainingConfig(seed=seed, steps=steps)


@dataclass(frozen=True)
class TrainingRun:
    """One call of `basis train`. parts: with its names settled and the celebrities' faces, if they were measured."""

    console: CliConsole
    library: "Library"
    parts: "DiffusionParts"
    basis: "CelebBasis"
    faces: Path
    model_key: str
    brings: bool

    @classmethod
    def open(cls, console: CliConsole, library: "Library", parts: "DiffusionParts", faces: Path) -> "TrainingRun":
        """Settle names and basis, as learning does."""
        from celebctl.basis.basis import build_basis
        from celebctl.basis.celebrities import with_faces
        from celebctl.basis.names import ChosenNames, with_names
        from celebctl.library import format_model_key

        model_key = format_model_key(parts.family, parts.table_hash)
        named = with_names(parts, ChosenNames(library.root, model_key).file)
        ready = with_faces(named, library.cache(), faces)
        basis, brings = build_basis(named, library.cache()), named.card.mapper_file is not None
        return cls(console, library, ready, basis, faces, model_key, brings)

    @property
    def work(self) -> Path:
        """The folder of unfinished work."""
        return self.library.root / "checkpoints" / self.model_key / "mapper"

    @property
    def checkpoint(self) -> Path:
        return self.work / "school.checkpoint"

    def refuse_taken(self, force: bool) -> None:
        """Raise UsageError when the model has a mapper and `force` is not given."""
        from celebctl.basis.name_filtering import hash_of_faces
        from celebctl.mapper_training.store import mapper_file

        path = mapper_file(self.library.cache(), self.basis, hash_of_faces(self.faces))
        if force:
            return
        if path.is_file():
            raise UsageError(f"a mapper was trained for this model already: {path}", "replace it with --force")
        if self.brings:
            raise UsageError(
                f"{self.parts.name} brings a mapper along, and one of yours would be used in its place",
                "--force trains it all the same",
            )

    def begin(self, resume: bool, force: bool) -> None:
        """See to what an earlier call left. Raises NotFoundError, or UsageError when it would be lost."""
        if resume:
            if not self.work.is_dir():
                raise NotFoundError("there is no training to resume for this model", "run the same command without --resume")
        elif self.work.is_dir() and not force:
            raise UsageError("a training for this model is unfinished", "--resume goes on, --force begins anew")
        else:
            self.clear()

    def gather(self, files: list[Path], most: int | None, seed: int) -> "tuple[FaceDataset, FaceDatasetBuilder]":
        """Find and encode the people."""
        from celebctl.basis.name_filtering import hash_of_faces
        from celebctl.mapper_training.photo_dataset import FaceDatasetBuilder, encoder_of
        from celebctl_models.faces.analysis import InsightFaceAnalyser

        analyser = InsightFaceAnalyser(self.faces)
        key = "|".join([self.parts.name, self.parts.table_hash, self.basis.hash, hash_of_faces(self.faces), str(seed)])
        gathering = FaceDatasetBuilder(
            analyser, encoder_of(self.parts, seed), self.work, key, smallest=analyser.settings.min_face
        )
        gathering.recall()
        self.console.info(f"{len(files):,} files; {_PEOPLE}")
        self._foretell(len(files) if most is None else min(most, len(files)))
        with self.console.progress("looking at photos") as report:
            crowd = gathering.build(files, most, lambda n, of: report(n, of, f"{gathering.kept:,} faces"))
        if gathering.left_out:
            self.console.info(f"left out: {gathering.said()}")
        return crowd, gathering

    def _foretell(self, photos: int) -> None:
        """Say what the views of so many photos take, in memory and on disk, where that is worth a word."""
        from celebctl.learning.device import free_memory
        from celebctl.mapper_training.photo_dataset import VIEWS, bytes_of_views

        needed, free = photos * bytes_of_views(self.parts), free_memory("cpu")
        if needed > 0.5 * free:
            self.console.warn(
                f"views of all photos take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"
            )
        elif needed > 1e8:
            self.console.info(
                f"{VIEWS} views of each photo take {needed / 1e9:.1f} GB of memory and disk while this lasts"
            )

    def school(self, crowd: "FaceDataset", config: "MapperTrainingConfig", together: int, resume: bool) -> "MapperTrainer":
        """Set the mapper to its start, or to where it was."""
        from celebctl.learning.config import CLEAN
        from celebctl.learning.denoising import DenoisingLoss
        from celebctl.mapper_training.trainer import MapperTrainer

        with self.console.status("measuring the start"):
            school = MapperTrainer(DenoisingLoss(self.parts, CLEAN.captions), self.basis, crowd, config, together)
        if resume and self.checkpoint.is_file():
            school.load(self.checkpoint)
        start = "the celebrities' faces" if school.start == "celebrities" else "the average celebrity"
        self.console.info(f"{len(school.taught):,} to learn from, {len(school.held):,} held back; begins with {start}")
        return school

    def train(self, school: "MapperTrainer") -> "PretrainedMapper":
        """Train to the end."""
        with self.console.progress("training the mapper") as report:
            return school.train(lambda now: report(now.step, now.steps, progress_line(now)), self.checkpoint)

    def keep(self, fitted: "PretrainedMapper", school: "MapperTrainer") -> Path:
        """Put the mapper where learning finds it. Raises InvalidInputError when it is of no use; the views then stay."""
        from celebctl.mapper_training.store import save_trained

        try:
            school.refuse_useless()
        except InvalidInputError:
            self.checkpoint.unlink(missing_ok=True)
            raise
        about = {key: str(value) for key, value in facts_of(school).items()}
        return save_trained(fitted, self.basis, self.library.cache(), self.faces, about)

    def clear(self) -> None:
        """Remove what is left of the photos."""
        import shutil

        from celebctl_runtime.files import translate_os_errors

        with translate_os_errors(self.work):
            if self.work.exists():
                shutil.rmtree(self.work)

    def say_how_to_resume(self) -> None:
        """After Ctrl-C."""
        if not self.work.is_dir():
            self.console.info("stopped before there was anything to keep")
            return
        words = [word for word in self.console.argv if word != "--resume"]
        self.console.info(f"stopped; what was done so far, encoded views of the photos included, is in {self.work}")
        self.console.suggest(shlex.join(["celebctl", *words, "--resume"]), "go on with")

    def close(self, school: "MapperTrainer", gathering: "FaceDatasetBuilder", path: Path) -> None:
        """Say what was made."""
        self.console.info(f"loss on people held back: {school.reached}")
        self.console.info("used from now on; remove the file to go back")
        left = {reason: len(names) for reason, names in gathering.left_out.items()}
        self.console.output([str(path)], {"mapper": str(path), **facts_of(school), "left_out": left})
        self.console.suggest("celebctl learn face.jpg --name alice --instant")


def facts_of(school: "MapperTrainer") -> dict[str, Any]:
    """What there is to say about a training, as plain numbers."""
    return {
        "people": len(school.taught),
        "held_back": len(school.held),
        "steps": school.step,
        "seed": school.config.seed,
        "start": school.start,
        "loss_average": round(school.reached.average, 6),
        "loss_another": round(school.reached.other, 6),
        "loss_own": round(school.reached.own, 6),
        "model": school.denoiser.parts.name,
    }


def progress_line(now: "TrainStep") -> str:
    """loss 0.213  held back 0.2312, as the average 0.2621  12 min left"""
    held = f"held back {now.validation.own:.4f}, as the average {now.validation.average:.4f}"
    return f"loss {now.loss:.3f}  {held}  {in_words(now.eta)} left"
