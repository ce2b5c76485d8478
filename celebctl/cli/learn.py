"""learn: from a photo of a person to a name that prompts understand."""

import shlex
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import Desk
from .opening import face_folder, make_room, open_model, open_tables, prepared

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.library import Library
    from celebctl.method import LearnConfig, LearnStep
    from celebctl.settings import Settings
    from celebctl_models.diffusion import DiffusionParts
    from celebctl_models.faces import ChosenFaces
    from celebctl_models.tables import HasTables
    from celebctl_runtime.identity import Identity

ALIKE = 0.6  # cosine of two features above which pictures are likely to mix two people up
DOUBTFUL = 0.6  # detector's score below which a face is likely turned away, covered or blurred


@dataclass(frozen=True)
class Sitter:
    """A person about to be learned: the photo's path as typed, the name, and which face, from the left, if several."""

    photo: str
    name: str
    face: int | None


def learn(
    ctx: typer.Context,
    photos: Annotated[list[str], typer.Argument(help="A photo of each person.", metavar="PHOTO...")],
    names: Annotated[
        list[str] | None,
        typer.Option("--name", "-n", help="Their names, in the photos' order.", show_default="the file's name"),
    ] = None,
    faces: Annotated[
        list[int] | None, typer.Option("--face", help="Which face, from the left, where a photo shows several.")
    ] = None,
    model: options.Model = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="clean, or faithful to the published release.", show_default="clean")
    ] = None,
    steps: options.Steps = None,
    instant: Annotated[
        bool,
        typer.Option(
            "--instant", help="No training: what the model's mapper makes of the face. Draws no sheet by itself."
        ),
    ] = False,
    seed: options.Seed = None,
    force: options.Force = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where Ctrl-C stopped.")] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Where the contact sheet goes.", show_default="./NAME-sheet.png")
    ] = None,
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Draw no contact sheet.")] = False,
    face_models: options.FaceModels = None,
    device: options.Device = None,
    low_memory: options.LowMemory = False,
    consent: Annotated[
        str | None,
        typer.Option("--consent", help="Kept with the person: self, synthetic or signed:FILE.", metavar="HOW"),
    ] = None,
) -> None:
    """Learn people from one photo each. Several photos in one call are learned together."""
    from celebctl.consent import consent_record
    from celebctl.library import Library, shelf_name
    from celebctl.settings import Settings

    from .extras import needs

    desk = ctx.ensure_object(Desk)
    started = time.monotonic()
    settings, library = Settings.read(), Library()
    sitters, agreed = seat(photos, names, faces), {"consent": consent_record(consent)}
    chosen_model, on = str(settings.text("model", model)), str(settings.text("device", device))
    check_sheet(sheet, force)
    with needs("learn", "learning"):
        pictures = open_photos(desk, sitters)
        folder = face_folder(settings, chosen_model, face_models)
        analyser = look(desk, sitters, pictures, folder)
        config = configure(settings, preset, steps, seed, instant, resume)
        opened = open_tables(desk, settings, chosen_model) if instant else open_model(desk, chosen_model, on)
        shelf = shelf_name(opened.family, opened.table_hash)
        parts = prepared(opened, library, shelf, folder)
        session = Session(desk, library, sitters, shelf)
        with session.names_held(force):
            if instant:
                learned = session.answer(parts, analyser, pictures, config)
            else:
                learned = session.fit(parts, analyser, pictures, config, low_memory, resume)
            people, files = session.keep(learned, agreed, force)
        page = None
        if not no_sheet and (sheet or not instant):
            page = session.draw_sheet(open_model(desk, chosen_model, on) if instant else parts, people, pictures, sheet)
    session.close(people, files, page, time.monotonic() - started)


def seat(photos: Sequence[str], names: Sequence[str] | None, faces: Sequence[int] | None) -> list[Sitter]:
    """Match photos, names and face numbers. Raises UsageProblem when they do not add up."""
    from celebctl_runtime.errors import UsageProblem

    from .naming import name_from_file, name_person

    if names and len(names) != len(photos):
        raise UsageProblem(
            f"{_count(photos, 'photo')} and {_count(names, 'name')} do not match",
            "give one --name for each photo, in the same order; each person is learned from one photo",
        )
    if faces and len(faces) != len(photos):
        raise UsageProblem(
            f"{_count(photos, 'photo')} and {_count(faces, '--face')} do not match",
            "give one --face for each photo, in the same order",
        )
    called = [name_person(name) for name in names] if names else [name_from_file(photo) for photo in photos]
    for name in called:
        if called.count(name) > 1:
            raise UsageProblem(f"two people would be called {name}", "give each a --name of their own")
    return [
        Sitter(photo, name, face)
        for photo, name, face in zip(photos, called, faces or [None] * len(photos), strict=True)
    ]


def check_sheet(path: Path | None, force: bool) -> None:
    """Refuse, before the work and not after it, a place where the contact sheet cannot go. Raises UsageProblem."""
    from celebctl_runtime.errors import UsageProblem
    from celebctl_runtime.files import refuse_existing

    if path is None:
        return
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageProblem(f"--sheet {path} is no picture file", "end it in .png")
    refuse_existing(path, force)


def open_photos(desk: Desk, sitters: Sequence[Sitter]) -> "list[Image]":
    """The photos as upright RGB images."""
    from celebctl_models.photos import open_photo

    return [open_photo(sitter.photo, desk.note) for sitter in sitters]


def look(desk: Desk, sitters: Sequence[Sitter], pictures: "Sequence[Image]", folder: Path) -> "ChosenFaces":
    """Settle on one face in each photo, before anything slow begins. Raises PolicyRefusal for a likely minor."""
    from celebctl.consent import refuse_minor
    from celebctl_models.faces import ChosenFaces, InsightFaceAnalyser, the_face

    analyser = InsightFaceAnalyser(folder)
    chosen = ChosenFaces(analyser)
    found: list[Any] = []
    for sitter, picture in zip(sitters, pictures, strict=True):
        face = the_face(analyser.analyse(picture), sitter.photo, sitter.face, analyser.settings.min_face)
        refuse_minor(face, sitter.photo)
        chosen.choose(picture, face)
        found.append(face.feature)
        desk.tell(f"{sitter.name}: face of {face}")
        if face.score < DOUBTFUL:
            desk.note(f"the face in {sitter.photo} is hard to see; celebctl check {sitter.photo} says more")
    for (one, a), (other, b) in combinations(zip(sitters, found, strict=True), 2):
        if (alike := float(a @ b)) > ALIKE:
            desk.note(f"{one.name} and {other.name} look alike ({alike:.2f}); a picture of both may mix them up")
    return chosen


def configure(
    settings: "Settings", preset: str | None, steps: int | None, seed: int | None, instant: bool, resume: bool
) -> "LearnConfig":
    """The preset with what was asked for on top. Raises UsageProblem."""
    from celebctl.method import PRESETS
    from celebctl_runtime.errors import UsageProblem

    config = PRESETS[str(settings.text("preset", preset))]
    if steps is not None and not 1 <= steps <= 100_000:
        raise UsageProblem(f"--steps {steps} is out of range", "use 1 to 100000")
    if seed is not None and not 0 <= seed < 2**63:
        raise UsageProblem(f"--seed {seed} is out of range", "use 0 to 9223372036854775807")
    if steps is not None and instant:
        raise UsageProblem("--instant takes no --steps", "leave one of them out")
    if resume and instant:
        raise UsageProblem("--instant takes no --resume", "leave one of them out")
    if steps is not None or instant:
        config = replace(config, steps=steps or 0)
    return config if seed is None else replace(config, seed=seed)


def require_mapper(parts: "HasTables", config: "LearnConfig") -> None:
    """Raises UsageProblem when nothing is trained and the model brings no mapper either."""
    if config.steps:
        return
    from celebctl.method.starts import start_of
    from celebctl_runtime.errors import UsageProblem

    if start_of(parts, config) not in ("fitted", "celebrities"):
        raise UsageProblem(
            f"{parts.name} brings no mapper that knows faces, so --instant would give everybody the same face",
            "train one on a folder of photos, celebctl basis train FOLDER, or leave out --instant",
        )


@dataclass(frozen=True)
class Session:
    """One call of `learn` once everything is known: the model is open, the names are free and held."""

    desk: Desk
    library: "Library"
    sitters: Sequence[Sitter]
    shelf: str

    @property
    def checkpoint(self) -> Path:
        """Where the method keeps its place."""
        return self.library.checkpoint([sitter.name for sitter in self.sitters], self.shelf)

    @contextmanager
    def names_held(self, force: bool) -> Generator[None]:
        """Nobody else takes the names meanwhile. Raises UsageProblem for a name that is taken, unless `force`."""
        names = [sitter.name for sitter in self.sitters]
        if not force:
            self.library.refuse_taken(names, self.shelf)
        with self.library.reserve(names, self.shelf):
            yield

    def answer(
        self, parts: "HasTables", analyser: "ChosenFaces", pictures: "list[Image]", config: "LearnConfig"
    ) -> "list[Identity]":
        """What the model's mapper makes of the faces, without training and without torch."""
        import numpy as np

        from celebctl.method import build_basis
        from celebctl.method.instant import instant_people

        require_mapper(parts, config)
        features = np.stack([analyser.analyse(picture)[0].feature for picture in pictures])
        basis = build_basis(parts, self.library.cache(), release=config.names == "release")
        return instant_people(parts, basis, features, [sitter.name for sitter in self.sitters], config)

    def fit(
        self, parts: "DiffusionParts", analyser: "ChosenFaces", pictures: "list[Image]", config: "LearnConfig",
        low_memory: bool, resume: bool,
    ) -> "list[Identity]":  # fmt: skip
        """Run the method with live progress. Ctrl-C leaves the checkpoint and says how to go on."""
        from celebctl.method import build_basis, learn_people
        from celebctl_runtime.errors import NotFound
        from celebctl_runtime.files import disk_problems

        if resume and not self.checkpoint.exists():
            raise NotFound("there is nothing to resume for these names", "run the same command without --resume")
        together = make_room(self.desk, parts, config.views * len(self.sitters), low_memory)
        with disk_problems(self.checkpoint):
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.desk.progress(f"learning {self._who()}") as report:
                return learn_people(
                    parts,
                    analyser,
                    pictures,
                    [sitter.name for sitter in self.sitters],
                    config,
                    basis=build_basis(parts, self.library.cache(), release=config.names == "release"),
                    together=together,
                    tell=self.desk.tell,
                    on_step=lambda now: report(now.step, now.steps, progress_line(now)),
                    resume_from=self.checkpoint if resume else None,
                    checkpoint=self.checkpoint,
                )
        except KeyboardInterrupt:
            self._say_how_to_resume()
            raise

    def keep(
        self, learned: "Sequence[Identity]", agreed: dict[str, str], force: bool
    ) -> "tuple[list[Identity], list[Path]]":
        """Put people into the library, with what they agreed to; the checkpoint has served."""
        people = [replace(person, provenance={**person.provenance, **agreed}) for person in learned]
        files = [self.library.save(person, overwrite=force) for person in people]
        self.checkpoint.unlink(missing_ok=True)
        return people, files

    def draw_sheet(
        self, parts: "DiffusionParts", people: "Sequence[Identity]", pictures: "Sequence[Image]", given: Path | None
    ) -> Path | None:
        """Draw the contact sheet here, or in the library when here cannot be written; returns where it is."""
        from celebctl.method import contact_sheet
        from celebctl_runtime.errors import EnvironmentProblem
        from celebctl_runtime.files import atomic_write

        from .naming import free_path

        with self.desk.working("drawing the contact sheet"):
            page = contact_sheet(parts, people, pictures)
        name = "-".join(person.name for person in people)[:64]
        path = given or free_path(Path(f"{name}-sheet.png"))
        try:
            atomic_write(path, page.save)
        except EnvironmentProblem:
            if given is not None:
                raise
            path = free_path(self.library.root / "sheets" / f"{name}-sheet.png")
            atomic_write(path, page.save)
        return path

    def close(self, people: "Sequence[Identity]", files: Sequence[Path], page: Path | None, seconds: float) -> None:
        """Put the people into the model's bundle when there is one, and say what was made."""
        from celebctl_runtime.errors import CelebctlError

        from .bundles import bundles_of, take_in
        from .naming import prompt_idea

        bundles = bundles_of(self.library, self.shelf)
        for bundle in bundles:
            try:
                take_in(bundle, people)
            except CelebctlError as error:  # they are learned and kept; a full or locked bundle must not undo that
                self.desk.note(f"not in the bundle yet: {error.problem} ({error.hint})")
        self.desk.tell(f"learned {self._who()} in {seconds:.{0 if seconds >= 10 else 1}f} s")
        if page is not None:
            self.desk.tell(f"contact sheet: {page}")
        made = [
            {"name": person.name, "path": str(file), "digest": person.digest, "provenance": dict(person.provenance)}
            for person, file in zip(people, files, strict=True)
        ]
        sheet = None if page is None else str(page)
        self.desk.give(
            [*map(str, files), *([sheet] if sheet else [])],
            {"people": made, "shelf": self.shelf, "sheet": sheet, "seconds": round(seconds, 3)},
        )
        names = [person.name for person in people]
        self.desk.next(f'celebctl gen "{prompt_idea(names)}"' if bundles else "celebctl export")

    def _who(self) -> str:
        from .naming import listed

        return listed([sitter.name for sitter in self.sitters])

    def _say_how_to_resume(self) -> None:
        if not self.checkpoint.exists():
            self.desk.tell("stopped before there was anything to keep")
            return
        words = [word for word in self.desk.words if word != "--resume"]
        self.desk.tell("stopped; what was learned so far is kept")
        self.desk.next(shlex.join(["celebctl", *words, "--resume"]), "go on with")


def progress_line(now: "LearnStep") -> str:
    """loss 0.213  likeness 0.71  12 s left"""
    parts = [f"loss {now.loss:.3f}"]
    if now.likeness is not None:
        parts.append(f"likeness {now.likeness:.2f}")
    if now.eta is not None:
        parts.append(f"{now.eta:.0f} s left")
    return "  ".join(parts)


def _count(things: Sequence[object], what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"
