"""mix and interpolate: a person between learned people, and images on the way from one to another. Torch-free."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_FRAMES = 60
PLACEHOLDER = "{}"  # in a prompt: where the person goes
STEP_SECONDS, REST_SECONDS = 0.14, 0.7  # of a frame of the animation: on the way, and at both ends

TwoOrMore = Annotated[list[str], typer.Argument(help="Two or more learned people.", metavar="NAME...")]


def mix(
    ctx: typer.Context,
    people: TwoOrMore,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the mix.", show_default="alice-bob")] = None,
    weight: Annotated[
        float | None,
        typer.Option(
            "--weight", help="Of two people: 0 is the first, 1 the second.", metavar="FRACTION", show_default="0.5"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="The weight of each, such as 2,1,1.", show_default="equal weights"),
    ] = None,
    model_key: options.ForModel = None,
    force: options.Force = False,
) -> None:
    """Mix learned people into a new one."""
    from celebctl.basis.identity_vectors import mix as mix_identities
    from celebctl.basis.identity_vectors import mixing_weights
    from celebctl.library import Library
    from celebctl_runtime.errors import UsageError

    from .naming import listed, name_of_mix, name_person

    console = ctx.ensure_object(CliConsole)
    library, wanted = Library(), None if name is None else name_person(name)
    if weight is not None and weights is not None:
        raise UsageError("--weight and --weights contradict each other", "give one of them")
    fractions = mixing_weights(len(people), weight if weight is not None else _numbers(weights))
    parents = [library.load(parent, model_key) for parent in people]
    new_name = wanted or name_of_mix([parent.name for parent in parents], library.names())
    identity = mix_identities(parents, fractions, name=new_name)
    path = library.save(identity, overwrite=force)
    parts = list(zip(parents, fractions, strict=True))
    console.info(f"{new_name} is {listed([f'{100 * share:.3g} % {parent.name}' for parent, share in parts if share])}")
    documents = [{"name": parent.name, "weight": share, "digest": parent.digest} for parent, share in parts]
    facts = {"name": new_name, "path": str(path), "digest": identity.digest, "parents": documents}
    console.output([str(path)], facts)
    console.suggest(f'celebctl gen "{new_name} on the beach"')


def interpolate(
    ctx: typer.Context,
    people: TwoOrMore,
    frames: Annotated[int, typer.Option("--frames", help="Number of images.")] = 7,
    prompt: Annotated[
        str, typer.Option("--prompt", help="What to draw, with {} for the person.")
    ] = f"a photo of {PLACEHOLDER}",
    out: Annotated[Path, typer.Option("--out", "-o", help="The strip: .png, .jpg or .webp.")] = Path("strip.png"),
    gif: Annotated[
        Path | None,
        typer.Option("--gif", help="The animation, forth and back.", show_default="the strip's name, ending in .gif"),
    ] = None,
    no_gif: Annotated[bool, typer.Option("--no-gif", help="Write no animation.")] = False,
    seed: options.Seed = None,
    steps: options.Steps = None,
    force: options.Force = False,
    model: options.Model = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Draw one person turning into another: a strip of images, and an animation."""
    from celebctl.animation import Timing, animate, keyframes
    from celebctl.bundles import model_key_of
    from celebctl.interpolation_strip import labels, weights_of
    from celebctl.library import Library
    from celebctl.pipeline import random_seed
    from celebctl.settings import Settings
    from celebctl_runtime.prompting.weights import WEIGHTED
    from celebctl_runtime.prompting.wildcards import expand_request
    from celebctl_runtime.request import Request

    from .gen import open_or_export, open_pipeline

    console = ctx.ensure_object(CliConsole)
    library = Library()
    gif = _animation(out, gif, no_gif)
    _check_people(len(people), frames, prompt)
    _check_outputs(out, gif, force)
    opened = open_or_export(console, library, str(Settings.read().text("model", model)), bundle)
    ends = [library.load(name, model_key_of(opened)).name for name in people]
    timing = Timing(frames, route="once", easing="linear")
    weights = weights_of(keyframes(len(ends), timing), len(ends))
    seed, count = random_seed() if seed is None else seed, options.positive(steps, "--steps")
    pipe = open_pipeline(library, opened, device, threads)
    request = Request("", seed=seed, steps=count, syntax=WEIGHTED)
    keys = [replace(request, prompt=prompt.replace(PLACEHOLDER, f"<{name}>")) for name in ends]
    prompts = [expand_request(key, pipe.wildcards)[0].prompt for key in keys]
    with console.track(f"drawing {frames} images") as progress:
        animation = animate(pipe, request, prompts, timing, progress)
    images = _enlarged([one.image for one in animation.images], pipe.bundle.manifest.size.display_scale)
    files = _write(images, labels(ends, weights), out, gif)
    console.info(f"{frames} images from {ends[0]} to {ends[-1]}, seed {seed}")
    facts = {"people": ends, "weights": weights, "prompt": prompt, "seed": seed}
    console.output(files, {"strip": str(out), "gif": None if gif is None else str(gif), **facts})
    console.suggest(f"celebctl mix {ends[0]} {ends[-1]}", "to save a mix of them")


def _numbers(text: str | None) -> list[float] | None:
    """Comma-separated numbers. Raises UsageError."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        from celebctl_runtime.errors import UsageError

        raise UsageError(f"invalid --weights {text!r}", "use numbers, such as --weights 2,1,1") from error


def _animation(out: Path, gif: Path | None, no_gif: bool) -> Path | None:
    """The file of the animation, None for no animation. Raises UsageError for contradicting options."""
    from celebctl_runtime.errors import UsageError

    if gif is not None and no_gif:
        raise UsageError(f"--gif {gif} and --no-gif contradict each other", "leave one of them out")
    return None if no_gif else gif or out.with_suffix(".gif")


def _check_people(people: int, frames: int, prompt: str) -> None:
    """Raise UsageError when there is nothing to interpolate."""
    from celebctl_runtime.errors import UsageError

    if people < 2:
        raise UsageError("interpolation needs at least two people", "name two: celebctl interpolate alice bob")
    if not people <= frames <= MAX_FRAMES:
        raise UsageError(f"--frames {frames} is out of range", f"use {people} to {MAX_FRAMES}")
    if PLACEHOLDER not in prompt:
        raise UsageError(f"the prompt {prompt!r} has no {{}}", 'write {} for the person: --prompt "{} on the beach"')


def _check_outputs(out: Path, gif: Path | None, force: bool) -> None:
    """Raise UsageError when the files cannot be written as asked."""
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    from .basis import check_picture

    check_picture(out, force)
    if gif is not None and gif.suffix.lower() != ".gif":
        raise UsageError(f"animation {gif} must end in .gif", "choose another file name")
    if gif is not None:
        refuse_existing(gif, force)


def _enlarged(images: "Sequence[Image]", scale: int) -> "list[Image]":
    from PIL.Image import Resampling

    return [image.resize((image.width * scale, image.height * scale), Resampling.LANCZOS) for image in images]


def _write(images: "Sequence[Image]", texts: Sequence[str], out: Path, gif: Path | None) -> list[str]:
    """Write the strip and the animation; returns the files."""
    from celebctl.animation_files import write_frames
    from celebctl.interpolation_strip import fit, lay_out
    from celebctl_runtime.files import atomic_write

    from .sample_photo import FORMATS

    sheet = lay_out(images, texts)
    atomic_write(out, lambda path: sheet.save(path, FORMATS[out.suffix.lower()]))
    if gif is not None:
        order = [*range(len(images)), *range(len(images) - 2, 0, -1)]
        seconds = [REST_SECONDS if number in (0, len(images) - 1) else STEP_SECONDS for number in order]
        cells = [fit(image) for image in images]
        atomic_write(gif, lambda path: write_frames(cells, (order, seconds), path, "GIF"))
    return [str(path) for path in (out, gif) if path is not None]
