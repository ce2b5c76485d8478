"""learn: from a photo of a person to a name that prompts understand."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import Desk

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.library import Library
    from celebctl.method import LearnConfig, LearnStep
    from celebctl.settings import Settings
    from celebctl_models.diffusion import DiffusionParts
    from celebctl_models.faces import ChosenFaces
    from celebctl_runtime.identity import Identity

ALIKE = 0.6  # cosine of two features above which pictures are likely to mix two people up
SMALL, TOGETHER = 100_000_000, 64  # UNets below so many parameters learn from so many views at once
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
        bool, typer.Option("--instant", help="No training: what the model's own mapper makes of the face.")
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
    compiling: options.Compile = False,
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
    sitters = seat(photos, names, faces)
    agreed = {"consent": consent_record(consent)}
    if sheet is not None:
        check_sheet(sheet, force)
    check_compiling(compiling, low_memory, instant)
    chosen_model = str(settings.text("model", model))
    with needs("learn", "learning"):
        pictures = open_photos(desk, sitters)
        folder = face_folder(settings, chosen_model, face_models)
        analyser = look(desk, sitters, pictures, folder)
        config = configure(settings, preset, steps, seed, instant)
        parts, on = open_model(desk, chosen_model, str(settings.text("device", device)))
        together = make_room(desk, parts, on, config.views * len(sitters), low_memory)
        shelf = shelf_name(parts.family, parts.table_hash)
        parts = prepared(parts, library, shelf, folder)
        require_mapper(parts, config)
        if not force:
            library.refuse_taken([sitter.name for sitter in sitters], shelf)
        with library.reserve([sitter.name for sitter in sitters], shelf):
            session = Session(desk, library, sitters, parts, shelf, together, compiling)
            learned = session.fit(analyser, pictures, config, resume)
            people = [replace(person, provenance={**person.provenance, **agreed}) for person in learned]
            files = [library.save(person, overwrite=force) for person in people]
            session.checkpoint.unlink(missing_ok=True)
        page = None if no_sheet else session.draw_sheet(people, pictures, sheet)
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


def check_compiling(compiling: bool, low_memory: bool, instant: bool) -> None:
    """Raises UsageProblem for what cannot be compiled, or need not be."""
    from celebctl_runtime.errors import UsageProblem

    if compiling and low_memory:
        raise UsageProblem(
            "--compile and --low-memory do not go together",
            "a compiled step keeps more in memory: leave one of them out",
        )
    if compiling and instant:
        raise UsageProblem("--instant has no steps to compile", "leave out --compile")


def check_sheet(path: Path, force: bool) -> None:
    """Refuse, before the work and not after it, a place where the contact sheet cannot go. Raises UsageProblem."""
    from celebctl_runtime.errors import UsageProblem

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageProblem(f"--sheet {path} is no picture file", "end it in .png")
    if path.exists() and not force:
        raise UsageProblem(f"{path} exists already", "choose another place for the sheet, or add --force")


def face_folder(settings: "Settings", model: str, flag: str | None) -> Path:
    """Where the face models are: what was said, what the model brings along, or the default pack."""
    from celebctl.library import default_root
    from celebctl_models.face_packs import choose_face_models

    return choose_face_models(settings.text("face_models", flag), model, default_root())


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


def open_model(desk: Desk, model: str, device: str) -> "tuple[DiffusionParts, str]":
    """The model, and the device it computes on."""
    with desk.working(f"opening {model}"):
        from celebctl.method.places import choose_place
        from celebctl_models.diffusion import load_parts

        place = choose_place(device)
        return load_parts(model, dtype=place.dtype, device=place.device), place.device


def prepared(parts: "DiffusionParts", library: "Library", shelf: str, face_models: Path) -> "DiffusionParts":
    """The model with what `celebctl basis build` chose and measured for it."""
    from celebctl.method.celebrities import with_faces
    from celebctl.method.names import ChosenNames, with_names

    return with_faces(with_names(parts, ChosenNames(library.root, shelf).file), library.cache(), face_models)


def make_room(desk: Desk, parts: "DiffusionParts", device: str, views: int, low_memory: bool) -> int:
    """How many views to learn from at once on this device. Says what memory that takes where it is worth a word."""
    from celebctl.method.places import fit_batch, free_memory

    if low_memory:
        parts.unet.enable_gradient_checkpointing()
    elif sum(weight.numel() for weight in parts.unet.parameters()) < SMALL:
        return TOGETHER  # fits anywhere, and counting takes a second
    parts.vae.enable_slicing()  # one picture keeps a processor busy; sixteen take more memory than all of learning
    limit = int(0.8 * free_memory(device))
    together, taken = fit_batch(parts, 1 if low_memory else views, limit, checkpointing=low_memory)
    if taken > limit:
        desk.note(f"learning takes about {taken / 1e9:.1f} GB beside the model, and {limit / 1e9:.1f} GB are free")
    elif taken > 1e9:
        desk.tell(f"memory: about {taken / 1e9:.1f} GB beside the model, {together} of {views} views at once")
    return together


def configure(
    settings: "Settings", preset: str | None, steps: int | None, seed: int | None, instant: bool
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
    if steps is not None or instant:
        config = replace(config, steps=steps or 0)
    return config if seed is None else replace(config, seed=seed)


def require_mapper(parts: "DiffusionParts", config: "LearnConfig") -> None:
    """Raises UsageProblem when nothing is trained and the model brings no mapper either."""
    if config.steps:
        return
    from celebctl.method.starts import start_of
    from celebctl_runtime.errors import UsageProblem

    if start_of(parts, config) not in ("fitted", "celebrities"):
        raise UsageProblem(
            f"{parts.name} brings no mapper that knows faces, so --instant would give everybody the same face",
            "leave out --instant",
        )


@dataclass(frozen=True)
class Session:
    """One call of `learn` once everything is known: the model is open, the names are free and held."""

    desk: Desk
    library: "Library"
    sitters: Sequence[Sitter]
    parts: "DiffusionParts"
    shelf: str
    together: int
    compiling: bool = False

    @property
    def checkpoint(self) -> Path:
        """Where the method keeps its place."""
        return self.library.checkpoint([sitter.name for sitter in self.sitters], self.shelf)

    def fit(
        self, analyser: "ChosenFaces", pictures: "list[Image]", config: "LearnConfig", resume: bool
    ) -> "list[Identity]":
        """Run the method with live progress. Ctrl-C leaves the checkpoint and says how to go on."""
        from celebctl.method import build_basis, learn_people
        from celebctl_runtime.errors import NotFound
        from celebctl_runtime.files import disk_problems

        if resume and not self.checkpoint.exists():
            raise NotFound("there is nothing to resume for these names", "run the same command without --resume")
        with disk_problems(self.checkpoint):
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if self.compiling:
            self.desk.tell("compiling the network first, which takes a minute or more")
        try:
            with self.desk.progress(f"learning {self._who()}") as report:
                return learn_people(
                    self.parts,
                    analyser,
                    pictures,
                    [sitter.name for sitter in self.sitters],
                    config,
                    basis=build_basis(self.parts, self.library.cache(), release=config.names == "release"),
                    together=self.together,
                    compiling=self.compiling,
                    tell=self.desk.tell,
                    on_step=lambda now: report(now.step, now.steps, progress_line(now)),
                    resume_from=self.checkpoint if resume else None,
                    checkpoint=self.checkpoint,
                )
        except KeyboardInterrupt:
            self._say_how_to_resume()
            raise

    def draw_sheet(self, people: "Sequence[Identity]", pictures: "Sequence[Image]", given: Path | None) -> Path | None:
        """Draw the contact sheet here, or in the library when here cannot be written; returns where it is."""
        from celebctl.method import contact_sheet
        from celebctl_runtime.errors import EnvironmentProblem
        from celebctl_runtime.files import atomic_write

        from .naming import free_path

        with self.desk.working("drawing the contact sheet"):
            page = contact_sheet(self.parts, people, pictures)
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
        self.desk.tell(f"learned {self._who()} in {seconds:.0f} s")
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
