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
        bool, typer.Option("--faces", help="Draw every name, and start learning from their faces.")
    ] = False,
    model: options.Model = None,
    prediction: options.Prediction = None,
    zero_snr: options.ZeroSnr = None,
    clip_skip: options.ClipSkip = None,
    vae: options.Vae = None,
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
    checkpoint = CheckpointOptions(prediction, zero_snr, clip_skip, vae)
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


@app.command()
def probe(
    ctx: typer.Context,
    names: Annotated[
        Path | None,
        typer.Option("--names", help="A text file with one name a line.", show_default="the model's own"),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What to draw, with {} for the name.", show_default="a photo of {}")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File of the names kept.", show_default="./MODEL-names.txt")
    ] = None,
    model: options.Model = None,
    prediction: options.Prediction = None,
    zero_snr: options.ZeroSnr = None,
    clip_skip: options.ClipSkip = None,
    vae: options.Vae = None,
    face_models: options.FaceModels = None,
    device: options.Device = None,
    force: options.Force = False,
) -> None:
    """Find out which names the model draws as one person each, four images a name; nothing is chosen.

    The file lists them with their separation: how much more alike the faces of a name are than to those of the most
    similar names. `basis build --names` reads it. An interrupted run continues where it stopped.
    """
    from celebctl.basis.names import read_name_list
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_models.checkpoints.checkpoint_options import CheckpointOptions
    from celebctl_runtime.files import atomic_write, refuse_existing

    from .extras import requires_extra

    console, library = ctx.ensure_object(CliConsole), Library()
    checkpoint = CheckpointOptions(prediction, zero_snr, clip_skip, vae)
    if names is not None:
        read_name_list(names)
    if out is not None:
        refuse_existing(out, force)
    with requires_extra("learn", "the names probe"):
        from celebctl.basis.choose import LOCK, probe_names
        from celebctl.basis.name_filtering import PROMPT

        chosen = choose_model(Settings.read(), library, model, device, face_models, checkpoint)
        path = out or Path(f"{chosen.name}-names.txt")
        refuse_existing(path, force)
        with console.status(f"loading {chosen.source}"):
            chosen.prepare()
        try:
            with library.reserve([LOCK], chosen.key), progress_bar(console, "drawing the names") as progress:
                probed = probe_names(chosen, names, prompt=PROMPT if prompt is None else prompt, progress=progress)
        except KeyboardInterrupt:
            console.info("stopped; finished names are kept, and the same command continues")
            raise
    atomic_write(path, probed.text().encode())
    result = probed.result
    console.info(f"{len(result.kept)} of {len(result.kept) + len(result.dropped)} names drawn are kept")
    scores = {name: round(value, 4) for name, value in result.separation.items()}
    facts = {"kept": list(result.kept), "dropped": result.dropped, "separation": scores}
    console.output([str(path)], {"path": str(path), "min_separation": round(result.min_separation, 4), **facts})
    console.suggest(f"celebctl basis build --names {path}{'' if model is None else f' --model {model}'}")


def check_picture(path: Path, force: bool) -> None:
    """Raise UsageError, before the work, for a file that an image cannot be written to."""
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    from .sample_photo import FORMATS

    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path} is not an image file that celebctl writes", f"end it in {', '.join(FORMATS)}")
    refuse_existing(path, force)
