"""animate: moving images of learned people. Torch-free."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl_runtime.bundle.bundle import Bundle


def animate(
    ctx: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            help="A learned person and states, such as: alice smiling crying; or two or more whole prompts.",
            metavar="PERSON STATE... | PROMPT...",
        ),
    ],
    frames: Annotated[int, typer.Option("--frames", help="Number of frames, 2 to 240.")] = 24,
    fps: Annotated[float, typer.Option("--fps", help="Frames per second, 0.1 to 60.")] = 12.0,
    route: Annotated[
        Literal["loop", "boomerang", "once"],
        typer.Option(
            "--route",
            help="After the last state: loop goes straight to the first, boomerang back through all; once stops.",
        ),
    ] = "loop",
    easing: Annotated[
        Literal["cosine", "linear"],
        typer.Option("--easing", help="cosine starts and arrives slowly at each state, linear does not."),
    ] = "cosine",
    hold: Annotated[float, typer.Option("--hold", help="Seconds to stay at each state, 0 to 10.")] = 0.0,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", "--cfg", help="Classifier-free guidance scale.")
    ] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help=options.SAMPLERS + ".")] = None,
    negative: Annotated[str, typer.Option("--negative", "--neg", help="Negative prompt: what not to draw.")] = "",
    likeness: options.Likeness = None,
    layout: options.Layout = None,
    size: Annotated[str | None, typer.Option("--size", help="Pixels drawn, before enlarging: WxH or N.")] = None,
    scale: Annotated[int | None, typer.Option("--scale", help="Enlarge by this factor.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="FILE.gif, .webp, .apng or .mp4, or a folder for one PNG per frame.",
            show_default="./WORDS-SEED.gif",
        ),
    ] = None,
    force: options.Force = False,
    plain_prompt: options.PlainPrompt = False,
    wildcards: options.Wildcards = None,
    model: options.Model = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Draw a person changing from one state to the next, as an animation."""
    from celebctl.animation import Timing, keyframes
    from celebctl.animation import animate as draw_animation
    from celebctl.animation_files import check_animation_path, save_animation
    from celebctl.library import Library
    from celebctl.marks import user_marks
    from celebctl.pipeline import as_likeness, random_seed, wildcard_folder
    from celebctl.settings import Settings
    from celebctl_runtime.prompting.layout import normalize_layout
    from celebctl_runtime.prompting.likeness import parse_likeness
    from celebctl_runtime.prompting.weights import PLAIN, WEIGHTED
    from celebctl_runtime.prompting.wildcards import expand_request
    from celebctl_runtime.request import Request

    from .gen import open_or_export, open_pipeline
    from .naming import counted, free_path, slug_of
    from .safety import choose_checker

    console = ctx.ensure_object(CliConsole)
    started, library = time.monotonic(), Library()
    timing = Timing(frames, fps, route, easing, hold)
    width, height = options.parse_size(size)
    request = Request(
        "",
        negative,
        random_seed() if seed is None else seed,
        options.positive(steps, "--steps"),
        guidance,
        sampler or "",
        width,
        height,
        likeness=as_likeness(None if likeness is None else parse_likeness(likeness)),
        layout=normalize_layout(layout or ""),
        syntax=PLAIN if plain_prompt else WEIGHTED,
    )
    settings, marks = Settings.read(), user_marks(library)
    checker = choose_checker(settings)
    folder = wildcard_folder(library, settings.text("wildcards", None if wildcards is None else str(wildcards)))
    target = out or free_path(Path(f"{slug_of(' '.join(words))}-{request.seed}.gif"))
    check_animation_path(target, force)
    opened = open_or_export(console, library, str(settings.text("model", model)), bundle)
    keys = [replace(request, prompt=prompt) for prompt in key_prompts(words, library, opened)]
    prompts = [expand_request(key, folder)[0].prompt for key in keys]
    request, _ = expand_request(request, folder)
    keyframes(len(prompts), timing)
    pipe = open_pipeline(library, opened, device, threads)
    enlarge = options.positive(scale, "--scale") or pipe.bundle.manifest.size.display_scale
    with console.track(f"drawing {frames} frames") as progress:
        animation = draw_animation(pipe, request, prompts, timing, progress)
    if checker is not None:
        for image in animation.images:
            checker.check(image.image)
    files = [str(path) for path in save_animation(animation, target, scale=enlarge, overwrite=force, marks=marks)]
    images, seconds = len(animation.images), time.monotonic() - started
    console.info(f"{frames} frames from {counted(images, 'image')}, seed {request.seed}, {seconds:.1f} s")
    requests = [animation.images[number].request.to_json() for number in animation.order]
    facts = {"prompts": prompts, "seed": request.seed, "images": images, "frames": requests, "scale": enlarge}
    console.output([str(target)], {"path": str(target), "files": files, **facts, "seconds": round(seconds, 3)})
    again = [files[0]] if len(files) > 1 else [str(target), "--frame", "1"]
    if target.suffix.lower() != ".mp4":
        console.suggest(shlex.join(["celebctl", "regen", *again]), "draw the first frame again")


def key_prompts(words: Sequence[str], library: "Library", bundle: "Bundle") -> list[str]:
    """The key prompts that `words` mean: as they are, or the person that the first word names in each state.

    The words are states when the first is the name of a learned person and no other is. A single state is reached from
    the person without one.

    Raises:
        UsageError: There is only one word.
    """
    from celebctl.bundles import model_key_of
    from celebctl_runtime.errors import UsageError

    known = {*bundle.names, *library.names(model_key_of(bundle))}
    are_people = [word.strip().strip("<>").casefold() in known for word in words]
    if len(words) < 2:
        person = words[0].strip() if are_people[0] else "alice"
        raise UsageError(
            f"{words[0]!r} alone does not move", "give another prompt", reason="one_key_prompt", person=person
        )
    if not are_people[0] or any(are_people[1:]):
        return [word.strip() for word in words]
    person, states = words[0].strip(), [word.strip() for word in words[1:]]
    return [f"{person} {state}".strip() for state in (states if len(states) > 1 else ["", *states])]
