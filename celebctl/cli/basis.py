"""basis: which celebrity names are behind a model's celeb basis, and what the basis looks like."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .basis_train import train
from .console import CliConsole
from .loading import choose_model, progress_bar

app = typer.Typer(
    help="The celeb basis of a model: the names behind it, and what it looks like.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.command()(train)


@app.command()
def show(
    ctx: typer.Context,
    model: options.Model = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="clean, or faithful to the published release.", show_default="clean")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a chart of the spectrum: .png, .jpg or .webp.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Names used and dropped, rank, explained variance and hash of a model's celeb basis."""
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.files import atomic_write

    from .extras import check_installed, requires_extra

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    if picture is not None:
        check_picture(picture, force)
        check_installed("eval", "drawing the spectrum", "matplotlib")
    with requires_extra("learn", "the celeb basis"):
        from celebctl.basis.report import basis_report

        tables = choose_model(settings, library, model).tables
        report = basis_report(tables, library, release=settings.text("preset", preset) == "faithful")
        facts, rows = report.facts, report.rows()
        if picture is not None:
            atomic_write(picture, report.chart().save)
            facts, rows = {**facts, "picture": str(picture)}, [*rows, ("picture", str(picture))]
    lines = [f"{key}: {value}" for key, value in rows]
    title, columns = f"celeb basis of {facts['model']}", ("property", "value")
    console.output_table(lines, facts, lambda: console.table(title, columns, rows))


@app.command()
def build(
    ctx: typer.Context,
    names: Annotated[
        Path | None,
        typer.Option("--names", help='A text file with one "first last" a line.', show_default="the model's own"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check-by-rendering", help="Draw every name; keep those the model has a face for.")
    ] = False,
    faces: Annotated[
        bool, typer.Option("--faces", help="Draw every name, and initialize learning from their faces.")
    ] = False,
    model: options.Model = None,
    prediction: options.Prediction = None,
    zero_snr: options.ZeroSnr = None,
    face_models: options.FaceModels = None,
    device: options.Device = None,
    force: options.Force = False,
) -> None:
    """Choose the names behind a model's celeb basis and build it. People learned from now on use it.

    Drawing every name takes thousands of images; an interrupted run continues where it stopped.
    """
    from celebctl.basis.names import read_name_list
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_models.checkpoints.checkpoint_options import CheckpointOptions

    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    checkpoint = CheckpointOptions(prediction, zero_snr)
    library, measured = Library(), None
    if names is not None:
        read_name_list(names)  # errors in it are reported before anything slow begins
    with requires_extra("learn", "the celeb basis"):
        from celebctl.basis.choose import LOCK, choose_names, measure_faces, require_faces_useful
        from celebctl.basis.report import basis_report

        chosen = choose_model(Settings.read(), library, model, device, face_models, checkpoint)
        if check or faces:
            with console.status(f"loading {chosen.source}"):
                chosen.prepare()
        try:
            with library.reserve([LOCK], chosen.key), progress_bar(console, "drawing the names") as progress:
                if faces:
                    require_faces_useful(chosen, names, overwrite=force)
                if names is not None or check or not faces:
                    choose_names(chosen, names, check=check, overwrite=force, progress=progress)
                report = basis_report(chosen.tables, library)
                if faces:
                    measured = measure_faces(chosen, progress=progress)
        except KeyboardInterrupt:
            console.info("stopped; finished names are kept, and the same command continues")
            raise
    for line in report.name_lines():
        console.info(line)
    files = [report.file, *([str(measured)] if measured else [])]
    console.output(files, {**report.facts, **({"faces": str(measured)} if measured else {})})
    console.suggest(f"celebctl basis show{'' if model is None else f' --model {model}'} -o spectrum.png")


def check_picture(path: Path, force: bool) -> None:
    """Raise UsageError, before the work, for a file that an image cannot be written to."""
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    from .sample_photo import FORMATS

    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path} is not an image file that celebctl writes", f"end it in {', '.join(FORMATS)}")
    refuse_existing(path, force)
