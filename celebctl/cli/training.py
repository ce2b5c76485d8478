"""basis train: a model's mapper from faces to people, trained on a folder of photos."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from celebctl_runtime.errors import InputRejected, NotFound, UsageProblem

from . import options
from .console import Desk
from .opening import face_folder, make_room, open_model
from .rendering import in_words

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl.method import CelebBasis
    from celebctl.method.crowd import Gathering
    from celebctl.method.mapper import FittedMapper
    from celebctl.method.school import Crowd, School, SchoolConfig, SchoolStep
    from celebctl_models.diffusion import DiffusionParts

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

    from .extras import needs

    desk = ctx.ensure_object(Desk)
    settings, library = Settings.read(), Library()
    config = configure(steps, people, seed)
    chosen = str(settings.text("model", model))
    with needs("learn", "training a mapper"):
        from celebctl.method.crowd import list_photos

        files = list_photos(folder, seed)
        faces = face_folder(settings, chosen, face_models)
        parts = open_model(desk, chosen, str(settings.text("device", device)))
        course = Course.open(desk, library, parts, faces)
        course.refuse_taken(force)
        together = make_room(desk, course.parts, config.people, low_memory)
        with library.reserve([WORK], course.shelf):
            course.begin(resume, force)
            try:
                crowd, gathering = course.gather(files, people, seed)
                school = course.school(crowd, config, together, resume)
                fitted = course.train(school)
            except InputRejected:
                course.clear()
                raise
            except KeyboardInterrupt:
                course.say_how_to_resume()
                raise
            path = course.keep(fitted, school)
            course.clear()
    course.close(school, gathering, path)


def configure(steps: int | None, people: int | None, seed: int) -> "SchoolConfig":
    """The settings with what was asked for on top. Raises UsageProblem."""
    from celebctl.method.school import FEWEST, SchoolConfig

    if steps is not None and not 1 <= steps <= 1_000_000:
        raise UsageProblem(f"--steps {steps} is out of range", "use 1 to 1000000")
    if people is not None and people < FEWEST:
        raise UsageProblem(f"--people {people} is too few", f"use at least {FEWEST}; several hundred are a good start")
    if not 0 <= seed < 2**62:
        raise UsageProblem(f"--seed {seed} is out of range", "use 0 to 4611686018427387903")
    return SchoolConfig(seed=seed) if steps is None else SchoolConfig(seed=seed, steps=steps)


@dataclass(frozen=True)
class Course:
    """One call of `basis train`. parts: with its names settled and the celebrities' faces, if they were measured."""

    desk: Desk
    library: "Library"
    parts: "DiffusionParts"
    basis: "CelebBasis"
    faces: Path
    shelf: str
    brings: bool

    @classmethod
    def open(cls, desk: Desk, library: "Library", parts: "DiffusionParts", faces: Path) -> "Course":
        """Settle names and basis, as learning does."""
        from celebctl.library import shelf_name
        from celebctl.method import build_basis
        from celebctl.method.celebrities import with_faces
        from celebctl.method.names import ChosenNames, with_names

        shelf = shelf_name(parts.family, parts.table_hash)
        named = with_names(parts, ChosenNames(library.root, shelf).file)
        ready = with_faces(named, library.cache(), faces)
        basis, brings = build_basis(named, library.cache()), named.card.mapper_file is not None
        return cls(desk, library, ready, basis, faces, shelf, brings)

    @property
    def work(self) -> Path:
        """The folder of unfinished work."""
        return self.library.root / "unfinished" / self.shelf / "mapper"

    @property
    def checkpoint(self) -> Path:
        return self.work / "school.checkpoint"

    def refuse_taken(self, force: bool) -> None:
        """Raise UsageProblem when the model has a mapper and `force` is not given."""
        from celebctl.method.rendered_names import hash_of_faces
        from celebctl.method.trained import mapper_file

        path = mapper_file(self.library.cache(), self.basis, hash_of_faces(self.faces))
        if force:
            return
        if path.is_file():
            raise UsageProblem(f"a mapper was trained for this model already: {path}", "replace it with --force")
        if self.brings:
            raise UsageProblem(
                f"{self.parts.name} brings a mapper along, and one of yours would be used in its place",
                "--force trains it all the same",
            )

    def begin(self, resume: bool, force: bool) -> None:
        """See to what an earlier call left. Raises NotFound, or UsageProblem when it would be lost."""
        if resume:
            if not self.work.is_dir():
                raise NotFound("there is no training to resume for this model", "run the same command without --resume")
        elif self.work.is_dir() and not force:
            raise UsageProblem("a training for this model is unfinished", "--resume goes on, --force begins anew")
        else:
            self.clear()

    def gather(self, files: list[Path], most: int | None, seed: int) -> "tuple[Crowd, Gathering]":
        """Find and encode the people."""
        from celebctl.method.crowd import Gathering, encoder_of
        from celebctl.method.rendered_names import hash_of_faces
        from celebctl_models.faces import InsightFaceAnalyser

        analyser = InsightFaceAnalyser(self.faces)
        key = "|".join([self.parts.name, self.parts.table_hash, self.basis.hash, hash_of_faces(self.faces), str(seed)])
        gathering = Gathering(
            analyser, encoder_of(self.parts, seed), self.work, key, smallest=analyser.settings.min_face
        )
        gathering.recall()
        self.desk.tell(f"{len(files):,} files; {_PEOPLE}")
        self._foretell(len(files) if most is None else min(most, len(files)))
        with self.desk.progress("looking at photos") as report:
            crowd = gathering.gather(files, most, lambda n, of: report(n, of, f"{gathering.kept:,} faces"))
        if gathering.left_out:
            self.desk.tell(f"left out: {gathering.said()}")
        return crowd, gathering

    def _foretell(self, photos: int) -> None:
        """Say what the views of so many photos take, in memory and on disk, where that is worth a word."""
        from celebctl.method.crowd import VIEWS, bytes_of_views
        from celebctl.method.places import free_memory

        needed, free = photos * bytes_of_views(self.parts), free_memory("cpu")
        if needed > 0.5 * free:
            self.desk.note(
                f"views of all photos take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"
            )
        elif needed > 1e8:
            self.desk.tell(
                f"{VIEWS} views of each photo take {needed / 1e9:.1f} GB of memory and disk while this lasts"
            )

    def school(self, crowd: "Crowd", config: "SchoolConfig", together: int, resume: bool) -> "School":
        """Set the mapper to its start, or to where it was."""
        from celebctl.method.config import CLEAN
        from celebctl.method.denoising import Denoiser
        from celebctl.method.school import School

        with self.desk.working("measuring the start"):
            school = School(Denoiser(self.parts, CLEAN.captions), self.basis, crowd, config, together)
        if resume and self.checkpoint.is_file():
            school.load(self.checkpoint)
        start = "the celebrities' faces" if school.start == "celebrities" else "the average celebrity"
        self.desk.tell(f"{len(school.taught):,} to learn from, {len(school.held):,} held back; begins with {start}")
        return school

    def train(self, school: "School") -> "FittedMapper":
        """Train to the end."""
        with self.desk.progress("training the mapper") as report:
            return school.train(lambda now: report(now.step, now.steps, progress_line(now)), self.checkpoint)

    def keep(self, fitted: "FittedMapper", school: "School") -> Path:
        """Put the mapper where learning finds it. Raises InputRejected when it is of no use; the views then stay."""
        from celebctl.method.trained import save_trained

        try:
            school.refuse_useless()
        except InputRejected:
            self.checkpoint.unlink(missing_ok=True)
            raise
        about = {key: str(value) for key, value in facts_of(school).items()}
        return save_trained(fitted, self.basis, self.library.cache(), self.faces, about)

    def clear(self) -> None:
        """Remove what is left of the photos."""
        import shutil

        from celebctl_runtime.files import disk_problems

        with disk_problems(self.work):
            if self.work.exists():
                shutil.rmtree(self.work)

    def say_how_to_resume(self) -> None:
        """After Ctrl-C."""
        if not self.work.is_dir():
            self.desk.tell("stopped before there was anything to keep")
            return
        words = [word for word in self.desk.words if word != "--resume"]
        self.desk.tell(f"stopped; what was done so far, encoded views of the photos included, is in {self.work}")
        self.desk.next(shlex.join(["celebctl", *words, "--resume"]), "go on with")

    def close(self, school: "School", gathering: "Gathering", path: Path) -> None:
        """Say what was made."""
        self.desk.tell(f"loss on people held back: {school.reached}")
        self.desk.tell("used from now on; remove the file to go back")
        left = {reason: len(names) for reason, names in gathering.left_out.items()}
        self.desk.give([str(path)], {"mapper": str(path), **facts_of(school), "left_out": left})
        self.desk.next("celebctl learn face.jpg --name alice --instant")


def facts_of(school: "School") -> dict[str, Any]:
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


def progress_line(now: "SchoolStep") -> str:
    """loss 0.213  held back 0.2312, as the average 0.2621  12 min left"""
    held = f"held back {now.held.own:.4f}, as the average {now.held.average:.4f}"
    return f"loss {now.loss:.3f}  {held}  {in_words(now.eta)} left"
