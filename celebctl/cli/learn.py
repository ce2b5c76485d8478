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
from .console import CliConsole
from .loading import face_folder, make_room, open_model, open_tables, prepared

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.learning.config import LearnConfig
    from celebctl.learning.trainer import LearnStep
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.checkpoints.token_tables import TokenTables
    from celebctl_models.faces.analysis import FaceOverrides
    from celebctl_runtime.identity import Identity

ALIKE = 0.6  # cosine of two features above which pictures are likely to mix two people up
DOUBTFUL = 0.6  # detector's score below which a face is likely turned away, covered or blurred


@dataclass(frozen=True)
class LearnInput:
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
    from celebctl.library import Library, format_model_key
    from celebctl.settings import Settings

    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    started = time.monotonic()
    settings, library = Settings.read(), Library()
    inputs, agreed = match_inputs(photos, names, faces), {"consent": consent_record(consent)}
    chosen_model, on = str(settings.text("model", model)), str(settings.text("device", device))
    check_sheet(sheet, force)
    with requires_extra("learn", "learning"):
        pictures = open_photos(console, inputs)
        folder = face_folder(settings, chosen_model, face_models)
        analyser = analyse_faces(console, inputs, pictures, folder)
        config = configure(settings, preset, steps, seed, instant, resume)
        opened = open_tables(console, settings, chosen_model) if instant else open_model(console, chosen_model, on)
        model_key = format_model_key(opened.family, opened.table_hash)
        parts = prepared(opened, library, model_key, folder)
        session = Session(console, library, inputs, model_key)
        with session.names_held(force):
            if instant:
                learned = session.answer(parts, analyser, pictures, config)
            else:
                learned = session.fit(parts, analyser, pictures, config, low_memory, resume)
            people, files = session.keep(learned, agreed, force)
        page = None
        if not no_sheet and (sheet or not instant):
            page = session.draw_sheet(open_model(console, chosen_model, on) if instant else parts, people, pictures, sheet)
    session.close(people, files, page, time.monotonic() - started)


def match_inputs(photos: Sequence[str], names: Sequence[str] | None, faces: Sequence[int] | None) -> list[LearnInput]:
    """Match photos, names and face numbers. Raises UsageError when they do not add up."""
    from celebctl_runtime.errors import UsageError

    from .naming import name_from_file, name_person

    if names and len(names) != len(photos):
        raise UsageError(
            f"{_count(photos, 'photo')} and {_count(names, 'name')} do not match",
            "give one --name for each photo, in the same order; each person is learned from one photo",
        )
    if faces and len(faces) != len(photos):
        raise UsageError(
            f"{_count(photos, 'photo')} and {_count(faces, '--face')} do not match",
            "give one --face for each photo, in the same order",
        )
    called = [name_person(name) for name in names] if names else [name_from_file(photo) for photo in photos]
    for name in called:
        if called.count(name) > 1:
            raise UsageError(f"two people would be called {name}", "give each a --name of their own")
    return [
        LearnInput(photo, name, face)
        for photo, name, face in zip(photos, called, faces or [None] * len(photos), strict=True)
    ]


def check_sheet(path: Path | None, force: bool) -> None:
    """Refuse, before the work and not after it, a place where the contact sheet cannot go. Raises UsageError."""
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    if path is None:
        return
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"--sheet {path} is no picture file", "end it in .png")
    refuse_existing(path, force)


def open_photos(console: CliConsole, inputs: Sequence[LearnInput]) -> "list[Image]":
    """The photos as upright RGB images."""
    from celebctl_models.faces.photos import open_photo

    return [open_photo(sitter.photo) for sitter in inputs]


def analyse_faces(console: CliConsole, inputs: Sequence[LearnInput], pictures: "Sequence[Image]", folder: Path) -> "FaceOverrides":
    """Settle on one face in each photo, before anything slow begins. Raises PolicyError for a likely minor."""
    from celebctl.consent import refuse_minor
    from celebctl_models.faces.analysis import FaceOverrides, InsightFaceAnalyser, select_face

    analyser = InsightFaceAnalyser(folder)
    chosen = FaceOverrides(analyser)
    found: list[Any] = []
    for sitter, picture in zip(inputs, pictures, strict=True):
        face = select_face(analyser.analyse(picture), sitter.photo, sitter.face, analyser.settings.min_face)
        refuse_minor(face, sitter.photo)
        chosen.choose(picture, face)
        found.append(face.feature)
        console.info(f"{sitter.name}: face of {face}")
        if face.score < DOUBTFUL:
            console.warn(f"the face in {sitter.photo} is hard to see; celebctl check {sitter.photo} says more")
    for (one, a), (other, b) in combinations(zip(inputs, found, strict=True), 2):
        if (alike := float(a @ b)) > ALIKE:
            console.warn(f"{one.name} and {other.name} look alike ({alike:.2f}); a picture of both may mix them up")
    return chosen


def configure(
    settings: "Settings", preset: str | None, steps: int | None, seed: int | None, instant: bool, resume: bool
) -> "LearnConfig":
    """The preset with what was asked for on top. Raises UsageError."""
    from celebctl.learning.config import PRESETS
    from celebctl_runtime.errors import UsageError

    config = PRESETS[str(settings.text("preset", preset))]
    if steps is not None and not 1 <= steps <= 100_000:
        raise UsageError(f"--steps {steps} is out of range", "use 1 to 100000")
    if seed is not None and not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed} is out of range", "use 0 to 9223372036854775807")
    if steps is not None and instant:
        raise UsageError("--instant takes no --steps", "leave one of them out")
    if resume and instant:
        raise UsageError("--instant takes no --resume", "leave one of them out")
    if steps is not None or instant:
        config = replace(config, steps=steps or 0)
    return config if seed is None else replace(config, seed=seed)


def require_mapper(parts: "TokenTables", config: "LearnConfig") -> None:
    """Raises UsageError when nothing is trained and the model brings no mapper either."""
    if config.steps:
        return
    from celebctl.learning.initialization import available_init
    from celebctl_runtime.errors import UsageError

    if available_init(parts, config) not in ("fitted", "celebrities"):
        raise UsageError(
            f"{parts.name} brings no mapper that knows faces, so --instant would give everybody the same face",
            "train one on a folder of photos, celebctl basis train FOLDER, or leave out --instant",
        )


@dataclass(frozen=True)
class Session:
    """One call of `learn` once everything is known: the model is open, the names are free and held."""

    console: CliConsole
    library: "Library"
    inputs: Sequence[LearnInput]
    model_key: str

    @property
    def checkpoint(self) -> Path:
        """Where the method keeps its place."""
        return self.library.checkpoint([sitter.name for sitter in self.inputs], self.model_key)

    @contextmanager
    def names_held(self, force: bool) -> Generator[None]:
        """Nobody else takes the names meanwhile. Raises UsageError for a name that is taken, unless `force`."""
        names = [sitter.name for sitter in self.inputs]
        if not force:
            self.library.require_free(names, self.model_key)
        with self.library.reserve(names, self.model_key):
            yield

    def answer(
        self, parts: "TokenTables", analyser: "FaceOverrides", pictures: "list[Image]", config: "LearnConfig"
    ) -> "list[Identity]":
        """What the model's mapper makes of the faces, without training and without torch."""
        import numpy as np

        from celebctl.basis.basis import build_basis
        from celebctl.learning.instant import instant_people

        require_mapper(parts, config)
        features = np.stack([analyser.analyse(picture)[0].feature for picture in pictures])
        basis = build_basis(parts, self.library.cache(), release=config.names == "release")
        return instant_people(parts, basis, features, [sitter.name for sitter in self.inputs], config)

    def fit(
        self, parts: "DiffusionParts", analyser: "FaceOverrides", pictures: "list[Image]", config: "LearnConfig",
        low_memory: bool, resume: bool,
    ) -> "list[Identity]":  # fmt: skip
        """Run the method with live progress. Ctrl-C leaves the checkpoint and says how to go on."""
        from celebctl.basis.basis import build_basis
        from celebctl.learning.trainer import learn_people
        from celebctl_runtime.errors import NotFoundError
        from celebctl_runtime.files import translate_os_errors

        if resume and not self.checkpoint.exists():
            raise NotFoundError("there is nothing to resume for these names", "run the same command without --resume")
        together = make_room(self.console, parts, config.views * len(self.inputs), low_memory)
        with translate_os_errors(self.checkpoint):
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.console.progress(f"learning {self._who()}") as report:
                return learn_people(
                    parts,
                    analyser,
                    pictures,
                    [sitter.name for sitter in self.inputs],
                    config,
                    basis=build_basis(parts, self.library.cache(), release=config.names == "release"),
                    micro_batch_size=together,
                    tell=self.console.info,
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
        from celebctl.learning.contact_sheet import contact_sheet
        from celebctl_runtime.errors import SetupError
        from celebctl_runtime.files import atomic_write

        from .naming import free_path

        with self.console.status("drawing the contact sheet"):
            page = contact_sheet(parts, people, pictures)
        name = "-".join(person.name for person in people)[:64]
        path = given or free_path(Path(f"{name}-sheet.png"))
        try:
            atomic_write(path, page.save)
        except SetupError:
            if given is not None:
                raise
            path = free_path(self.library.root / "sheets" / f"{name}-sheet.png")
            atomic_write(path, page.save)
        return path

    def close(self, people: "Sequence[Identity]", files: Sequence[Path], page: Path | None, seconds: float) -> None:
        """Put the people into the model's bundle when there is one, and say what was made."""
        from celebctl_runtime.errors import CelebctlError

        from celebctl.bundles import add_people, bundles_of
        from .naming import prompt_idea

        bundles = bundles_of(self.library, self.model_key)
        for bundle in bundles:
            try:
                add_people(bundle, people)
            except CelebctlError as error:  # they are learned and kept; a full or locked bundle must not undo that
                self.console.warn(f"not in the bundle yet: {error.problem} ({error.hint})")
        self.console.info(f"learned {self._who()} in {seconds:.{0 if seconds >= 10 else 1}f} s")
        if page is not None:
            self.console.info(f"contact sheet: {page}")
        made = [
            {"name": person.name, "path": str(file), "digest": person.digest, "provenance": dict(person.provenance)}
            for person, file in zip(people, files, strict=True)
        ]
        sheet = None if page is None else str(page)
        self.console.output(
            [*map(str, files), *([sheet] if sheet else [])],
            {"people": made, "shelf": self.model_key, "sheet": sheet, "seconds": round(seconds, 3)},
        )
        names = [person.name for person in people]
        self.console.suggest(f'celebctl gen "{prompt_idea(names)}"' if bundles else "celebctl export")

    def _who(self) -> str:
        from .naming import listed

        return listed([sitter.name for sitter in self.inputs])

    def _say_how_to_resume(self) -> None:
        if not self.checkpoint.exists():
            self.console.info("stopped before there was anything to keep")
            return
        words = [word for word in self.console.argv if word != "--resume"]
        self.console.info("stopped; what was learned so far is kept")
        self.console.suggest(shlex.join(["celebctl", *words, "--resume"]), "go on with")


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
