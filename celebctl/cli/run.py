"""run: many images from a job file, or from the job files that are dropped into a folder. Torch-free."""

import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.jobs.job_file import JobFile
    from celebctl.jobs.run import JobResult, RunOptions, RunReport
    from celebctl.jobs.watch import WatchedFile
    from celebctl.pipeline import Pipeline
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.progress import Progress, ProgressCallback

STDIN = "-"
MAX_SHOWN = 50  # invalid lines


def run(
    ctx: typer.Context,
    file: Annotated[
        str | None,
        typer.Argument(
            help="The job file, or - for stdin: one prompt a line, JSONL, or CSV with a header. Entries: prompt,"
            " negative, seed, count, steps, guidance, sampler, size (or width and height), likeness, layout, from,"
            " strength, scale, name.",
            metavar="FILE|-",
            show_default=False,
        ),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="text, jsonl or csv.", show_default="by the suffix or the first character"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of the images.", show_default="./NAME of the file; with --watch FOLDER/images"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="Pattern of file names: {line}, {index} (among the images of a line), {seed}, {slug} (of the prompt).",
            show_default="{line:04}-{slug}-{seed}",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            "-s",
            help="Gives seeds to lines without one.",
            show_default="of the first run into the folder, there random",
        ),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", "-k", help="Draw the valid lines when others are invalid.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite files that hold other images than the lines describe.")
    ] = False,
    watch: Annotated[
        Path | None,
        typer.Option("--watch", help="Draw the job files that are dropped into this folder.", metavar="FOLDER"),
    ] = None,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="With --watch: end when no job file is left.")
    ] = False,
    model: options.Model = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Draw many images from a file. The same command again draws what is missing.

    The exit code is 8 when some images could not be drawn.
    """
    from celebctl.jobs.job_file import check_format
    from celebctl.jobs.names import DEFAULT_PATTERN, check_pattern
    from celebctl.library import Library
    from celebctl.marks import user_marks
    from celebctl.settings import Settings
    from celebctl_runtime.errors import UsageError

    from .gen import open_or_export, open_pipeline
    from .safety import choose_checker

    console = ctx.ensure_object(CliConsole)
    if (file is None) == (watch is None):
        problem = "there is no job file" if file is None else f"{file} and --watch {watch} contradict each other"
        raise UsageError(problem, "name one: celebctl run prompts.txt, or celebctl run --watch FOLDER")
    if until_empty and watch is None:
        raise UsageError("--until-empty goes with --watch", "leave it out, or add --watch FOLDER")
    chosen: RunOptions = {
        "name": check_pattern(name or DEFAULT_PATTERN), "seed": seed, "overwrite": force, "keep_going": keep_going,
        "marks": user_marks(), "checker": choose_checker(Settings.read()),
    }  # fmt: skip
    jobs = None if file is None else read_jobs(file, check_format(file_format))
    library = Library()
    opened = open_or_export(console, library, str(Settings.read().text("model", model)), bundle)
    pipe = open_pipeline(library, opened, device, threads, add_people=bundle is None)
    if watch is not None:
        watch_folder(console, pipe, watch, out, until_empty, chosen)
    elif file is not None and jobs is not None:
        run_file(console, pipe, jobs, out or default_folder(file), chosen)


def run_file(console: CliConsole, pipe: "Pipeline", jobs: "JobFile", folder: Path, chosen: "RunOptions") -> None:
    """Draw the jobs of a file, and print the images."""
    from celebctl_runtime.errors import PartialBatchError

    report = draw_jobs(console, pipe, jobs, folder, chosen)
    describe(console, report)
    console.output([str(folder)] if _hides_paths(console) else [], report.to_json())
    if not report.is_complete:
        raise typer.Exit(PartialBatchError.exit_code)


def watch_folder(
    console: CliConsole, pipe: "Pipeline", folder: Path, out: Path | None, until_empty: bool, chosen: "RunOptions"
) -> None:
    """Draw job files as they appear. Exit code 8 when one of them failed."""
    from celebctl.jobs.watch import watch
    from celebctl_runtime.errors import PartialBatchError

    from .hints import hint_for

    results: list[WatchedFile] = []

    def draw(jobs: "JobFile", target: Path) -> "RunReport":
        return draw_jobs(console, pipe, jobs, target, chosen)

    def finished(result: "WatchedFile") -> None:
        results.append(result)
        if result.report is not None:
            describe(console, result.report)
        if result.error is not None:
            console.warn(f"{result.error.problem} ({hint_for(result.error)})")
        console.info(f"{result.path}")

    console.info(f"watching {folder}" + ("" if until_empty else "; end with Ctrl-C"))
    watch(draw, folder, out=out, until_empty=until_empty, finished=finished)
    console.output([], {"files": [result.to_json() for result in results]})
    if not all(result.report is not None and result.report.is_complete for result in results):
        raise typer.Exit(PartialBatchError.exit_code)


def draw_jobs(
    console: CliConsole, pipe: "Pipeline", jobs: "JobFile", folder: Path, chosen: "RunOptions"
) -> "RunReport":
    """Draw with a progress bar, and print the path of each image as soon as it is written."""
    from celebctl.jobs.run import run_jobs
    from celebctl_runtime.errors import UsageError

    finished: list[JobResult] = []

    def show(result: "JobResult") -> None:
        finished.append(result)
        if result.status != "failed" and not console.json and not _hides_paths(console):
            console.output([str(result.path)], {})

    try:
        with track_pace(console, f"drawing {jobs.source}") as progress:
            return run_jobs(pipe, jobs, folder, progress=progress, finished=show, **chosen)
    except UsageError as error:
        _list_lines(console, error)
        raise
    except KeyboardInterrupt:
        if finished:
            console.warn(f"{len(finished)} images are in {folder}; the same command draws the others")
        raise


def describe(console: CliConsole, report: "RunReport") -> None:
    """Print what was drawn, and what was not and why."""
    from .hints import hint_for
    from .naming import counted

    for line in report.invalid:
        console.warn(f"not drawn: {line}")
    for image in report.failed:
        if image.error is not None:
            problem = f"{image.error.problem} ({hint_for(image.error)})"
            console.warn(f"not drawn: line {image.line}, {image.path.name}: {problem}")
    if report.unfinished:
        console.warn(f"stopped after too many errors of this machine; {report.unfinished} images were not begun")
    drawn, kept = len(report.drawn), len(report.kept)
    rate = f", {60 * drawn / report.seconds:.1f} a minute" if drawn > 1 and report.seconds else ""
    parts = [f"{counted(drawn, 'image')} drawn in {report.seconds:.1f} s{rate}" if drawn else "no image drawn"]
    parts += [f"{kept} kept"] if kept else []
    parts += [f"{len(report.failed)} failed"] if report.failed else []
    console.info(f"{'; '.join(parts)}; seed {report.seed}")


def read_jobs(file: str, file_format: Any) -> "JobFile":
    """The job file, or stdin for "-"."""
    from celebctl.jobs.job_file import MAX_BYTES, parse_job_file, read_job_file

    if file == STDIN:
        return parse_job_file(sys.stdin.buffer.read(MAX_BYTES + 1), "stdin", Path(), file_format)
    return read_job_file(Path(file), file_format)


def default_folder(file: str) -> Path:
    """./NAME of a job file, or ./NAME-images where NAME is a file."""
    folder = Path("run" if file == STDIN else Path(file).stem)
    return folder.with_name(f"{folder.name}-images") if folder.is_file() else folder


def _hides_paths(console: CliConsole) -> bool:
    """On a terminal, the progress bar stands where paths would be printed; the folder is printed at the end."""
    return console.interactive and sys.stdout.isatty()


@contextmanager
def track_pace(console: CliConsole, title: str) -> "Generator[ProgressCallback]":
    """Yield a progress callback for `run_jobs`: a bar, or lines, with images per minute and the time left."""
    with console.progress(title) as report:

        def show(event: "Progress") -> None:
            report(event.step, event.total, pace_text(event.metrics))

        yield show


def pace_text(metrics: Mapping[str, float]) -> str:
    """Images per minute and the time left, such as "41 images/min, 3:20 left"; "" before the first step."""
    if not metrics:
        return ""
    left = round(metrics["seconds_left"])
    hours, minutes = divmod(left // 60, 60)
    time_left = f"{hours}:{minutes:02}:{left % 60:02}" if hours else f"{minutes}:{left % 60:02}"
    return f"{metrics['images_per_minute']:.3g} images/min, {time_left} left"


def _list_lines(console: CliConsole, error: "UsageError") -> None:
    """Print the invalid lines, where the error itself names only some."""
    lines: Any = error.values.get("errors", [])
    if len(lines) > 1:
        for line in lines[:MAX_SHOWN]:
            console.warn(str(line))
