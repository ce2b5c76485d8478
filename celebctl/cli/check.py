"""check: is this a photo to learn somebody from?"""

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
    photo: Annotated[str, typer.Argument(help="The photo to look at.", metavar="PHOTO")],
    face: Annotated[
        int | None, typer.Option("--face", help="Which face, from the left, where there are several.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the photo with the findings on it.", metavar="FILE.png")
    ] = None,
    force: options.Force = False,
    model: options.Model = None,
    face_models: options.FaceModels = None,
) -> None:
    """Grade a photo for learning: size, sharpness, pose, light, framing, and what to do about each."""
    from celebctl.consent import refuse_minor
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_models.faces.packs import choose_face_models

    console = ctx.ensure_object(CliConsole)
    settings = Settings.read()
    if out is not None:
        refuse_place(out, force)
    chosen = str(settings.text("model", model))
    folder = choose_face_models(settings.text("face_models", face_models), chosen, Library().root)
    report = examine(console, photo, face, folder, native_size(chosen), out)
    refuse_minor(report.face, photo)
    if not report.usable:
        turn_down(console, photo, report)
    tell(console, photo, report, out)


def examine(console: CliConsole, photo: str, face: int | None, folder: Path, native: int, out: Path | None) -> "Report":
    """Find, grade, and draw the findings to `out`. Raises InvalidInputError without a face, UsageError without that one.

    The picture is written even when no face is found: it shows what the detector was shown.
    """
    from celebctl.photo_quality import check_face
    from celebctl_models.faces.analysis import InsightFaceAnalyser, select_face
    from celebctl_models.faces.photos import open_photo

    picture = open_photo(photo)
    analyser = InsightFaceAnalyser(folder)
    faces = analyser.analyse(picture)
    if not faces:
        draw(console, picture, None, out)
    if not faces or face is not None:
        select_face(faces, photo, face)
    least = analyser.settings.min_face
    report = check_face(picture, faces, face, least=least, native=native, recognise=analyser.recognise)
    draw(console, picture, report, out)
    return report


def draw(console: CliConsole, picture: "Image", report: "Report | None", out: Path | None) -> None:
    """Write the annotated picture, if one was asked for."""
    if out is None:
        return
    from celebctl.photo_quality import annotate
    from celebctl_runtime.files import atomic_write

    atomic_write(out, annotate(picture, report).save)
    console.info(f"annotated: {out}")


def turn_down(console: CliConsole, photo: str, report: "Report") -> NoReturn:
    """Raise InvalidInputError for a face that learning would refuse, after saying what there is to say about it."""
    from celebctl_runtime.errors import InvalidInputError

    for grade in report.grades:
        console.info(f"{grade.verdict}  {grade.what}: {grade.says}")
    raise InvalidInputError(f"the face in {photo} is {report.summary}", "use a larger photo, or one taken from nearer")


def tell(console: CliConsole, photo: str, report: "Report", out: Path | None) -> None:
    """The grades as lines, table or document."""
    rows = [(grade.what, grade.verdict, grade.says) for grade in report.grades]
    for number, one in enumerate(report.faces if len(report.faces) > 1 else (), 1):
        console.info(f"face {number}: {one}{', graded here' if number == report.number else ''}")
    console.output_table(
        [f"{verdict}  {what}: {says}" for what, verdict, says in rows],
        document(photo, report, out),
        lambda: console.table(f"face {report.number} of {photo}", ("what", "verdict", "finding"), rows),
    )
    console.info(f"{report.verdict}: {report.summary}")
    pick = ["--face", str(report.number)] if len(report.faces) > 1 else []
    console.suggest(shlex.join(["celebctl", "learn", photo, *pick, "--name", "alice"]))


def document(photo: str, report: "Report", out: Path | None) -> dict[str, Any]:
    """What --json gives."""
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
            {"what": grade.what, "verdict": grade.verdict, "says": grade.says, "measured": dict(grade.measured)}
            for grade in report.grades
        ],
        "annotated": None if out is None else str(out),
    }


def refuse_place(path: Path, force: bool) -> None:
    """Refuse, before the work, a place where the annotated picture cannot go. Raises UsageError."""
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"-o {path} is no picture file", "end it in .png")
    refuse_existing(path, force)


def native_size(model: str) -> int:
    """The side in px of the pictures a model draws; of most models, where nothing on this machine tells."""
    from celebctl.photo_quality import NATIVE
    from celebctl_models.checkpoints.registry import card_for, locate

    place = locate(model)
    return card_for(place.path, place.name, place.source).native_size if place.kind == "folder" else NATIVE
