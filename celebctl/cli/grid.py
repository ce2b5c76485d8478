"""grid and sheet: one prompt with settings that vary along two axes, and contact sheets of images. Torch-free."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .console import CliConsole

AXIS_HELP = (
    "{} NAME=VALUE,VALUE: seed, steps, guidance, likeness, strength, sampler; person=alice,bob replaces {{person}} in"
    " the prompt; text=beach,forest replaces the first of its values."
)
CellSize = Annotated[int, typer.Option("--cell-size", help="Longer side of an image on the sheet, in pixels.")]


def grid(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to draw.", metavar="PROMPT")],
    x: Annotated[str, typer.Option("--x", help=AXIS_HELP.format("What varies along a row,"), metavar="AXIS")],
    y: Annotated[
        str | None, typer.Option("--y", help="What varies from row to row, in the same form.", metavar="AXIS")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The sheet: FILE.png.")] = Path("grid.png"),
    separate: Annotated[
        Path | None,
        typer.Option("--separate", help="Keep the single images in this folder; those there are not drawn again."),
    ] = None,
    cell_size: CellSize = 256,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", "--cfg", help="Classifier-free guidance scale.")
    ] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help=options.SAMPLERS + ".")] = None,
    negative: Annotated[str | None, typer.Option("--negative", "--neg", help="Negative prompt.")] = None,
    likeness: options.Likeness = None,
    layout: options.Layout = None,
    size: Annotated[str | None, typer.Option("--size", help="Pixels drawn, before enlarging: WxH or N.")] = None,
    init_image: Annotated[
        Path | None, typer.Option("--from", help="Start from this image (img2img).", metavar="SOURCE")
    ] = None,
    strength: Annotated[
        float | None, typer.Option("--strength", help="With --from: how much may change.", show_default="0.6")
    ] = None,
    force: options.Force = False,
    model: options.Model = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Draw a prompt with settings that vary along two axes, on one labelled sheet of up to 100 images."""
    from celebctl.grid import check_cells
    from celebctl.jobs.axes import MAX_CELLS, grid_jobs, parse_axis
    from celebctl.library import Library
    from celebctl.marks import user_marks
    from celebctl.prompt_grid import GridOptions, draw_grid
    from celebctl.settings import Settings

    from .gen import open_or_export, open_pipeline
    from .run import track_pace
    from .safety import choose_checker

    console = ctx.ensure_object(CliConsole)
    check_png(out, force)
    given: dict[str, Any] = {
        "prompt": prompt, "seed": seed, "steps": steps, "guidance": guidance,
        "sampler": sampler, "negative": negative, "likeness": likeness, "layout": layout, "size": size,
        "from": None if init_image is None else str(init_image), "strength": strength,
    }  # fmt: skip
    settings = {key: value for key, value in given.items() if value is not None}
    axes = [parse_axis(axis) for axis in (x, y) if axis is not None]
    check_cells(len(grid_jobs(settings, *axes).lines), cell_size, MAX_CELLS)
    user, library = Settings.read(), Library()
    saving: GridOptions = {"overwrite": force, "marks": user_marks(library), "checker": choose_checker(user)}
    opened = open_or_export(console, library, str(user.text("model", model)), bundle)
    pipe = open_pipeline(library, opened, device, threads, add_people=bundle is None)
    with track_pace(console, "drawing") as progress:
        drawn = draw_grid(pipe, settings, axes, folder=separate, progress=progress, **saving)
    drawn.save(out, cell=cell_size, overwrite=force)
    varies = any(axis.name == "seed" for axis in axes)
    console.info(f"{len(drawn.requests)} images" + ("" if varies else f", seed {drawn.settings['seed']}"))
    requests = [request.to_json() for request in drawn.requests]
    document = {"path": str(out), "separate": None if separate is None else str(separate), "requests": requests}
    console.output([str(out)], document)


def sheet(
    ctx: typer.Context,
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP files.", metavar="IMAGE...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The sheet: .png, .jpg or .webp.")] = Path("sheet.png"),
    columns: Annotated[
        int | None, typer.Option("--columns", min=1, help="Images in a row.", show_default="about as many as rows")
    ] = None,
    cell_size: CellSize = 256,
    force: options.Force = False,
) -> None:
    """Make a contact sheet of images, each with its seed and prompt, or with its file name."""
    from celebctl.prompt_grid import contact_sheet
    from celebctl_runtime.files import atomic_write

    from .basis import check_picture
    from .sample_photo import FORMATS

    console = ctx.ensure_object(CliConsole)
    check_picture(out, force)
    made = contact_sheet(images, columns=columns, cell=cell_size)
    atomic_write(out, lambda path: made.save(path, FORMATS[out.suffix.lower()]), overwrite=force)
    console.info(f"{len(images)} images")
    console.output([str(out)], {"path": str(out), "images": [str(path) for path in images]})


def check_png(out: Path, force: bool) -> None:
    """Raise UsageError, before anything is drawn, for a file that a grid cannot be written to."""
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    if out.suffix.lower() != ".png":
        raise UsageError(f"output {out} must end in .png", f"use --out {shlex.quote(str(out.with_suffix('.png')))}")
    refuse_existing(out, force)
