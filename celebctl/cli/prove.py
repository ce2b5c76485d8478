"""prove: everything on this machine with one model, as a report to send to the project."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import CliConsole


def prove(
    ctx: typer.Context,
    model: options.Model = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            "--photos",
            help="Folder of NAME.jpg for each of up to four people, and NAME-2.jpg for further photos.",
            metavar="DIR",
            show_default="two drawn people",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report; continues there.")] = Path("proof"),
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device", help="cpu, cuda, trt, cuda:1, ...; repeat it for several.", show_default="all that work"
        ),
    ] = None,
    face_models: options.FaceModels = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="Another face pack or folder, which scores.", metavar="PACK|DIR")
    ] = None,
    steps: options.Steps = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Images of each program in the speed comparison.")] = 10,
    minutes: Annotated[float, typer.Option("--minutes", help="Begin no stage later than this.")] = 25.0,
    force: options.Force = False,
) -> None:
    """Learn, export, draw, time and score on this machine; write a page and a JSON document to send.

    Stages that are finished are not repeated. The exit code is 8 when a stage failed.
    """
    from celebctl.library import Library
    from celebctl.prove import ProveOptions
    from celebctl.prove import prove as run_stages
    from celebctl.settings import Settings
    from celebctl_runtime.errors import PartialBatchError

    from .extras import check_installed, requires_extra

    console, settings = ctx.ensure_object(CliConsole), Settings.read()
    check_installed("eval", "the report", "jinja2", "matplotlib", "scipy")
    source, learning_faces = str(settings.text("model", model)), settings.text("face_models", face_models)
    learning_steps = options.positive(steps, "--steps") or None
    chosen = ProveOptions(source, photos, tuple(device or ()), learning_faces, judge, learning_steps, rounds, minutes)
    with requires_extra("learn", "this run"), console.progress("proving") as bar:
        run = run_stages(
            out, chosen, library=Library(), overwrite=force, progress=lambda p: bar(p.step, p.total, p.stage)
        )
    for name, stage in run.stages.items():
        cause = stage.get("problem") or stage.get("reason")
        console.info(f"{name}: {stage['status']}, {stage['seconds']:.1f} s" + (f": {cause}" if cause else ""))
    console.output([str(run.file.with_suffix(".html")), str(run.file)], {"folder": str(out), **run.document})
    if run.failed:
        problem = f"{len(run.failed)} of {len(run.stages)} stages failed: {', '.join(run.failed)}"
        raise PartialBatchError(problem, f"see {out / 'report.html'}")
