"""check: whether a photo is good to learn a person from."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.photo_quality import Report


def check(
    ctx: typer.Context,
    photo: Annotated[str, typer.Argument(help="The photo to check.", metavar="PHOTO")],
    face: Annotated[
        int | None, typer.Option("--face", help="The face to check, counted from the left, when there are several.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the annotated photo.", metavar="FILE.png")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite what exists; grade pictures that the model does not know.")
    ] = False,
    model: options.Model = None,
    face_models: options.FaceModels = None,
) -> None:
    """Check a photo before learning: size, sharpness, pose, light and framing, with advice."""
    from celebctl.consent import refuse_minor, training_forbidden
    from celebctl.library import Library
    from celebctl.picture_kind import other_kind
    from celebctl.settings import Settings
    from celebctl_models.checkpoints.registry import find_card
    from celebctl_models.faces.packs import choose_face_models
    from celebctl_models.faces.photos import read_photo

    console = ctx.ensure_object(CliConsole)
    settings = Settings.read()
    if out is not None:
        check_output(out, force)
    chosen = str(settings.text("model", model))
    folder = choose_face_models(settings.text("face_models", face_models), chosen, Library().root)
    report = examine(console, photo, face, folder, native_size(chosen), out)
    refuse_minor(report.face, photo)
    file = read_photo(photo)
    kind = other_kind(find_card(chosen), file.image, report.face, folder, photo)
    for refused in filter(None, (training_forbidden(file.content, photo), kind)):
        if not force:
            raise refused
        console.warn(refused.problem)
    if not report.usable:
        raise_unusable(console, photo, report)
    show_report(console, photo, report, out)


def examine(console: CliConsole, photo: str, face: int | None, folder: Path, native: int, out: Path | None) -> "Report":
    """Find and grade a face, and draw the findings to `out`.

    Raises InvalidInputError when there is no face, UsageError when `face` is not among them. The annotated photo is
    written even when no face is found.
    """
    from celebctl.photo_quality import check_face
    from celebctl_models.faces.analysis import OnnxFaceAnalyser, select_face
    from celebctl_models.faces.photos import open_photo

    picture = open_photo(photo)
    analyser = OnnxFaceAnalyser(folder)
    faces = analyser.analyse(picture)
    if not faces:
        draw(console, picture, None, out)
    if not faces or face is not None:
        select_face(faces, photo, face)
    min_face = analyser.settings.min_face
    report = check_face(picture, faces, face, min_face=min_face, native=native, recognise=analyser.recognise)
    draw(console, picture, report, out)
    return report


def draw(console: CliConsole, picture: "Image", report: "Report | None", out: Path | None) -> None:
    """Write the annotated photo to `out`, if given."""
    if out is None:
        return
    from celebctl.photo_quality import annotate
    from celebctl_runtime.files import atomic_write

    atomic_write(out, annotate(picture, report).save)
    console.info(f"annotated: {out}")


def raise_unusable(console: CliConsole, photo: str, report: "Report") -> NoReturn:
    """Print the grades of a face that learning refuses, and raise InvalidInputError."""
    from celebctl_runtime.errors import InvalidInputError

    for grade in report.grades:
        console.info(f"{grade.verdict}  {grade.name}: {grade.finding}")
    raise InvalidInputError(f"the face in {photo} is {report.summary}", "use a larger photo, or one taken from closer")


def show_report(console: CliConsole, photo: str, report: "Report", out: Path | None) -> None:
    """Print the grades as lines, table or document."""
    rows = [(grade.name, grade.verdict, grade.finding) for grade in report.grades]
    for number, one in enumerate(report.faces if len(report.faces) > 1 else (), 1):
        console.info(f"face {number}: {one}{', graded' if number == report.number else ''}")
    console.output_table(
        [f"{verdict}  {name}: {finding}" for name, verdict, finding in rows],
        document(photo, report, out),
        lambda: console.table(f"face {report.number} of {photo}", ("grade", "verdict", "finding"), rows),
    )
    console.info(f"{report.verdict}: {report.summary}")
    pick = ["--face", str(report.number)] if len(report.faces) > 1 else []
    console.suggest(shlex.join(["celebctl", "learn", photo, *pick, "--name", "alice"]))


def document(photo: str, report: "Report", out: Path | None) -> dict[str, Any]:
    """The document of --json."""
    return {
        "photo": photo,
        "verdict": report.verdict,
        "summary": report.summary,
        "usable": report.usable,
        "face": report.number,
        "faces": [
            {
                "number": number,
                "box": [round(float(edge), 1) for edge in one.box],
                "landmarks": [[round(float(value), 1) for value in point] for point in one.landmarks],
                "score": round(one.score, 4),
            }
            for number, one in enumerate(report.faces, 1)
        ],
        "grades": [
            {"name": grade.name, "verdict": grade.verdict, "finding": grade.finding, "measured": dict(grade.measured)}
            for grade in report.grades
        ],
        "annotated": None if out is None else str(out),
    }


def check_output(path: Path, force: bool) -> None:
    """Raise UsageError when the annotated photo cannot be written to `path`."""
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"{path} is not an image file name", "use a name that ends in .png")
    refuse_existing(path, force)


def native_size(model: str) -> int:
    """The side in pixels of the images a model draws; 512 when the model is not on this machine."""
    from celebctl.photo_quality import NATIVE
    from celebctl_models.checkpoints.registry import find_card

    card = find_card(model)
    return NATIVE if card is None else card.native_size
