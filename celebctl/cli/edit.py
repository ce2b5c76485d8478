"""edit: change what a new prompt says of an image, and keep the rest. Torch-free."""

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import CliConsole
from .gen import OutputTarget, SaveOptions, draw, open_or_export, open_pipeline, save_images
from .safety import choose_checker, screen

if TYPE_CHECKING:
    from PIL.Image import Image


def edit(
    ctx: typer.Context,
    image: Annotated[Path, typer.Argument(help="The image to change.", metavar="IMAGE")],
    prompt: Annotated[str, typer.Argument(help="What it should show, all of it.", metavar="PROMPT")],
    was: Annotated[
        str | None,
        typer.Option(
            "--was",
            help="What the image shows now, as a prompt.",
            metavar="PROMPT",
            show_default="the prompt of its recipe; empty without one",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            help="How different both prompts have to be where the image changes, above 0 to 1; larger changes less.",
            show_default="0.5",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", help="How much may change inside the mask, above 0 to 1.", show_default="0.8"),
    ] = None,
    mask_out: Annotated[
        Path | None,
        typer.Option("--mask-out", help="Also write the mask that was found: white is changed.", metavar="FILE.png"),
    ] = None,
    mask_blur: options.MaskBlur = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    sampler: options.Sampler = None,
    negative: options.Negative = "",
    likeness: options.Likeness = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", help="Pixels drawn, before enlarging: WxH or N.", show_default="of the recipe, else the model's"
        ),
    ] = None,
    scale: options.Scale = None,
    out: options.ImageOut = None,
    image_format: options.ImageFormat = None,
    quality: options.Quality = None,
    metadata: options.Metadata = True,
    watermark: options.Watermark = None,
    force: options.Force = False,
    model: options.Model = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Change an image where a new prompt differs from what it shows; place and clothes stay."""
    from celebctl.library import Library
    from celebctl.marks import user_marks
    from celebctl.pipeline import edit_request, find_source_bundle
    from celebctl.settings import Settings
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import atomic_write, refuse_existing
    from celebctl_runtime.prompting.likeness import parse_likeness

    console = ctx.ensure_object(CliConsole)
    started = time.monotonic()
    width, height = options.parse_size(size)
    request, source, record = edit_request(
        image,
        prompt,
        {
            "was": was,
            "threshold": threshold,
            "strength": strength,
            "mask_blur": mask_blur,
            "negative_prompt": negative,
            "seed": seed,
            "steps": options.positive(steps, "--steps") or None,
            "guidance_scale": guidance,
            "sampler": sampler,
            "width": width or None,
            "height": height or None,
            "likeness": None if likeness is None else parse_likeness(likeness),
        },
    )
    user, library = Settings.read(), Library()
    checker = choose_checker(user)
    marks = user_marks(library, watermark=watermark)
    saving = SaveOptions.choose(out, image_format, quality, marks, metadata=metadata, force=force)
    target = OutputTarget.choose(out, prompt, [request.seed], console.json, saving)
    if mask_out is not None:
        if mask_out.suffix.lower() != ".png":
            raise UsageError(f"the mask's file {mask_out} must end in .png", "name it FILE.png")
        refuse_existing(mask_out, force)
    if "bundle" in record and model is None and bundle is None:  # other programs name no bundle
        opened = find_source_bundle(library, record)
    else:
        opened = open_or_export(console, library, str(user.text("model", model)), bundle)
    pipe = open_pipeline(library, opened, device, threads, add_people=bundle is None)
    pipe.add_recorded_people(record)
    console.info(f"the image shows {request.was!r}" if request.was else "what the image shows is not known")
    (edited,) = screen(console, checker, draw(console, pipe, [request], [source]), [])
    enlarge = options.positive(scale, "--scale") or pipe.bundle.manifest.size.display_scale
    written = save_images(console, target, [edited], enlarge)
    if mask_out is not None and edited.mask is not None:
        atomic_write(
            mask_out, _png(edited.mask.resize([side * enlarge for side in edited.mask.size], 0)), overwrite=force
        )
    console.info(f"seed {request.seed}, {time.monotonic() - started:.1f} s")
    if console.json:
        console.output([], {"images": written, "bundle": str(pipe.bundle.path), "scale": enlarge})


def _png(image: "Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
