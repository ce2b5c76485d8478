"""learn: from a photo of a person to a name that prompts understand."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import options
from .console import CliConsole
from .loading import choose_model, progress_bar

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl.model import LearnOptions, Model, Subject
    from celebctl_runtime.errors import CelebctlError
    from celebctl_runtime.identity import Identity

SHEET_FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def learn(
    ctx: typer.Context,
    photos: Annotated[list[str], typer.Argument(help="A photo of each person.", metavar="PHOTO...")],
    names: Annotated[
        list[str] | None,
        typer.Option("--name", "-n", help="Their names, in the order of the photos.", show_default="the file's name"),
    ] = None,
    faces: Annotated[
        list[int] | None, typer.Option("--face", help="Which face, from the left, where a photo shows several.")
    ] = None,
    model: options.Model = None,
    prediction: options.Prediction = None,
    zero_snr: options.ZeroSnr = None,
    clip_skip: options.ClipSkip = None,
    vae: options.Vae = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="clean, or faithful to the published release.", show_default="clean")
    ] = None,
    steps: options.Steps = None,
    instant: Annotated[
        bool, typer.Option("--instant", help="No training: the mapper's output. Draws no sheet by default.")
    ] = False,
    seed: options.Seed = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            help="Overwrite what exists; learn pictures of another kind than the model knows, photos that forbid"
            " training, and public figures.",
        ),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue where Ctrl-C stopped.")] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="File of the contact sheet.", show_default="./NAME-sheet.png")
    ] = None,
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Draw no contact sheet.")] = False,
    face_models: options.FaceModels = None,
    device: options.Device = None,
    low_memory: options.LowMemory = False,
    public_figures: Annotated[
        Path | None,
        typer.Option(
            "--public-figures",
            help="Refuse people who look like those in this folder's photos, which are named after them.",
            metavar="DIR",
        ),
    ] = None,
    consent: Annotated[
        str | None,
        typer.Option(
            "--consent",
            help="Stored with the person: self, synthetic or signed:FILE.",
            metavar="SOURCE",
            show_default="asked for on a terminal",
        ),
    ] = None,
) -> None:
    """Learn people from one photo each. Several photos in one call are learned together."""
    from celebctl.consent import consent_record
    from celebctl.learning.config import config_for
    from celebctl.library import Library
    from celebctl.public_figures import check_public_figure, read_references
    from celebctl.settings import Settings
    from celebctl_models.checkpoints.checkpoint_options import CheckpointOptions

    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    checkpoint = CheckpointOptions(prediction, zero_snr, clip_skip, vae)
    started, settings, library = time.monotonic(), Settings.read(), Library()
    method: Literal["train", "instant"] = "instant" if instant else "train"
    called = names_for(photos, names, faces)
    config = config_for(str(settings.text("preset", preset)), steps=steps, seed=seed, method=method)
    consent_record(consent)
    check_sheet(sheet, force)
    with requires_extra("learn", "learning"):
        chosen = choose_model(settings, library, model, device, face_models, checkpoint)
        which = zip(photos, called, faces or [None] * len(photos), strict=True)
        subjects, refused = analyse_photos(console, chosen, list(which), force)
        called = [subject.name for subject in subjects]
        if public_figures is not None:
            references, limit = read_references(public_figures, chosen.analyser), chosen.analyser.settings.similar
            subjects = [check_public_figure(subject, references, limit, force=force) for subject in subjects]
        if consent is None:
            consent = ask_consent(console, called)
        with console.status(f"loading {chosen.source}"):
            chosen.prepare(method)
        learning: LearnOptions = {
            "method": method, "config": config, "consent": consent, "resume": resume, "low_memory": low_memory,
        }  # fmt: skip
        people, files = learn_and_save(console, chosen, subjects, learning, force)
        drawn = None
        if not no_sheet and (sheet or not instant):
            drawn = draw_sheet(console, chosen, people, subjects, sheet)
    report(console, chosen, people, files, drawn, time.monotonic() - started)
    if refused:
        from celebctl_runtime.errors import PartialBatchError

        raise typer.Exit(PartialBatchError.exit_code)


def analyse_photos(
    console: CliConsole, model: "Model", which: "Sequence[tuple[str, str, int | None]]", force: bool
) -> "tuple[list[Subject], list[CelebctlError]]":
    """The analysed photos, and the errors of those of another kind than the model knows. which: photo, name, face.

    Raises the error when it leaves no photo, and any other error.
    """
    from celebctl.picture_kind import REASONS
    from celebctl_runtime.errors import InvalidInputError

    from .hints import hint_for

    subjects: list[Subject] = []
    refused: list[CelebctlError] = []
    for photo, name, face in which:
        try:
            subjects.append(model.analyse(photo, name=name, face=face, force=force))
        except InvalidInputError as error:
            if error.reason not in REASONS:
                raise
            refused.append(error)
    if not subjects:
        raise refused[0]
    for error in refused:
        console.warn(f"not learned: {error.problem} ({hint_for(error)})")
    return subjects, refused


def ask_consent(console: CliConsole, names: Sequence[str]) -> str | None:
    """The consent typed at the terminal; None, with a message, where there is no terminal or nothing is stated."""
    from celebctl.consent import consent_record
    from celebctl_runtime.errors import CelebctlError

    from .naming import listed

    if console.interactive and not console.json and sys.stdin.isatty():
        console.info(f"Did {listed(names)} consent? The answer is stored with the date.")
        console.info("  self        yes: the photo shows me, or a person who agreed")
        console.info("  synthetic   the photo shows no real person")
        console.info("  signed:FILE yes, in writing: the SHA-256 of the file is stored")
        while answer := typer.prompt("consent, or Enter to state nothing", "", show_default=False, err=True).strip():
            try:
                consent_record(answer)
                return answer
            except CelebctlError as error:
                console.info(f"{error.problem}: {error.hint}")
    console.info(
        "consent: nothing was stated, which is recorded; state it with --consent self, synthetic or signed:FILE"
    )
    return None


def learn_and_save(
    console: CliConsole, model: "Model", subjects: "list[Subject]", learning: "LearnOptions", overwrite: bool
) -> "tuple[list[Identity], list[Path]]":
    """Learn people under their reserved names, with a checkpoint, and save them in the library."""
    library, names = model.library, [subject.name for subject in subjects]
    checkpoint = library.checkpoint(names, model.key)
    with library.reserve(names, model.key):
        if not overwrite:
            library.require_free(names, model.key)
        try:
            with progress_bar(console, f"learning {' and '.join(names)}") as progress:
                learning |= {"checkpoint": checkpoint, "progress": progress}
                people = model.learn(subjects, **learning)
        except KeyboardInterrupt:
            suggest_resume(console, checkpoint)
            raise
        files = [library.save(person, overwrite=overwrite) for person in people]
        checkpoint.unlink(missing_ok=True)
    return people, files


def names_for(photos: Sequence[str], names: Sequence[str] | None, faces: Sequence[int] | None) -> list[str]:
    """A name for each photo. Raises UsageError when photos, names and faces do not match."""
    from celebctl_runtime.errors import UsageError

    from .naming import name_from_file, name_person

    for option, values in (("--name", names), ("--face", faces)):
        if values and len(values) != len(photos):
            raise UsageError(
                f"the numbers of photos ({len(photos)}) and of {option} ({len(values)}) differ",
                f"give one {option} for each photo, in the same order",
            )
    called = [name_person(name) for name in names] if names else [name_from_file(photo) for photo in photos]
    repeated = [name for name in called if called.count(name) > 1]
    if repeated:
        raise UsageError(f"two people would be named {repeated[0]}", "give each a --name of their own")
    return called


def check_sheet(path: Path | None, force: bool) -> None:
    """Raise UsageError, before the work, for a file that the contact sheet cannot be written to."""
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    if path is not None and path.suffix.lower() not in SHEET_FORMATS:
        raise UsageError(f"--sheet {path} is not an image file", f"end it in {', '.join(SHEET_FORMATS)}")
    if path is not None:
        refuse_existing(path, force)


def draw_sheet(
    console: CliConsole, model: "Model", people: "Sequence[Identity]", subjects: "Sequence[Subject]", path: Path | None
) -> Path:
    """Draw the contact sheet, here or, where this folder is read-only, in the library; returns the file."""
    from celebctl_runtime import files
    from celebctl_runtime.errors import SetupError

    from .naming import free_path

    with console.status("drawing the contact sheet"):
        page = model.contact_sheet(people, [subject.image for subject in subjects])
    names = [person.name for person in people]
    target = path or free_path(Path(f"{'-'.join(names)[:64]}-sheet.png"))
    try:
        files.atomic_write(target, page.save)
    except SetupError:
        if path is not None:
            raise
        target = model.library.sheet(names)
        files.atomic_write(target, page.save)
    return target


def suggest_resume(console: CliConsole, checkpoint: Path) -> None:
    """After Ctrl-C."""
    if not checkpoint.exists():
        console.info("stopped before the first checkpoint")
        return
    words = [word for word in console.argv if word != "--resume"]
    console.info("stopped; the checkpoint is kept")
    console.suggest(shlex.join(["celebctl", *words, "--resume"]), "continue with")


def add_to_bundles(console: CliConsole, library: "Library", model_key: str, people: "Sequence[Identity]") -> bool:
    """Add people to the model's bundles in the library; returns whether there are any."""
    from celebctl.bundles import add_people, bundles_of
    from celebctl_runtime.errors import CelebctlError

    from .hints import hint_for

    bundles = bundles_of(library, model_key)
    for bundle in bundles:
        try:
            add_people(bundle, people)
        except CelebctlError as error:  # they are learned and saved; a full or locked bundle must not undo that
            console.warn(f"not added to the bundle: {error.problem} ({hint_for(error)})")
    return bool(bundles)


def report(
    console: CliConsole,
    model: "Model",
    people: "Sequence[Identity]",
    files: Sequence[Path],
    sheet: Path | None,
    seconds: float,
) -> None:
    """Print what was learned, after adding it to the model's bundles."""
    from .naming import listed, prompt_idea

    names, in_bundle = [person.name for person in people], add_to_bundles(console, model.library, model.key, people)
    console.info(f"learned {listed(names)} in {seconds:.{0 if seconds >= 10 else 1}f} s")
    if sheet is not None:
        console.info(f"contact sheet: {sheet}")
    made: list[dict[str, Any]] = [
        {"name": person.name, "path": str(file), "digest": person.digest, "provenance": dict(person.provenance)}
        for person, file in zip(people, files, strict=True)
    ]
    page = None if sheet is None else str(sheet)
    document = {"people": made, "model_key": model.key, "sheet": page, "seconds": round(seconds, 3)}
    console.output([*map(str, files), *([page] if page else [])], document)
    console.suggest(f'celebctl gen "{prompt_idea(names)}"' if in_bundle else "celebctl export")
