"""mix and strip: somebody between people you know, and the way from one to another as pictures. Torch-free."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.library import Library
    from celebctl_runtime.backends.base import Backend
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.identity import Identity
    from celebctl_runtime.request import Request

MOST_FRAMES = 60
PLACE = "{}"  # in a prompt: where the person goes
FRAME = "strip-frame-{}"  # what the people of a strip are called while it is drawn

TwoOrMore = Annotated[list[str], typer.Argument(help="Two or more people you know.", metavar="NAME...")]


def mix(
    ctx: typer.Context,
    people: TwoOrMore,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="What to call the mix.", show_default="alice-bob")
    ] = None,
    weight: Annotated[
        float | None, typer.Option("--t", help="Of two: 0 is the first, 1 the second.", show_default="0.5")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="How much each counts, for example 2,1,1.", show_default="all the same"),
    ] = None,
    model_key: options.ForModel = None,
    force: options.Force = False,
) -> None:
    """Make somebody who is between people you know."""
    from celebctl.basis.identity_vectors import mix as mix_identities
    from celebctl.basis.identity_vectors import mixing_weights
    from celebctl.library import Library
    from celebctl_runtime.errors import UsageError

    from .naming import listed, name_of_mix, name_person

    console = ctx.ensure_object(CliConsole)
    library, given = Library(), None if name is None else name_person(name)
    if weight is not None and weights is not None:
        raise UsageError("--weight and --weights contradict each other", "give one of them")
    shares = mixing_weights(len(people), weight if weight is not None else _numbers(weights))
    parents = [library.load(one, model_key) for one in people]
    called = given or name_of_mix([parent.name for parent in parents], library.names())
    person = mix_identities(parents, shares, name=called)
    path = library.save(person, overwrite=force)
    both = list(zip(parents, shares, strict=True))
    console.info(f"{called} is {listed([f'{100 * share:.3g} % {parent.name}' for parent, share in both if share])}")
    parts = [{"name": parent.name, "weight": share, "digest": parent.digest} for parent, share in both]
    console.output([str(path)], {"name": called, "path": str(path), "digest": person.digest, "parents": parts})
    console.suggest(f'celebctl gen "{called} on the beach"')


def interpolate(
    ctx: typer.Context,
    people: TwoOrMore,
    frames: Annotated[int, typer.Option("--frames", help="How many pictures.")] = 7,
    prompt: Annotated[
        str, typer.Option("--prompt", help="What to draw, with {} for the person.")
    ] = f"a photo of {PLACE}",
    out: Annotated[Path, typer.Option("--out", "-o", help="The strip: .png, .jpg or .webp.")] = Path("strip.png"),
    gif: Annotated[
        Path | None,
        typer.Option("--gif", help="The animation, there and back.", show_default="beside the strip, ending in .gif"),
    ] = None,
    still: Annotated[bool, typer.Option("--no-gif", help="No animation.")] = False,
    seed: options.Seed = None,
    steps: options.Steps = None,
    force: options.Force = False,
    model: options.Model = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Draw one person turning into another: a strip of pictures, and an animation."""
    from celebctl.interpolation_strip import keyframes, labels
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.request import Request

    from .bundles import model_key_of
    from .gen import given, open_backend, open_bundle, random_seed

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    gif = _animation(out, gif, still)
    _check(people, frames, prompt, out, gif, force)
    opened = open_bundle(console, library, str(settings.text("model", model)), bundle, [])
    ends = [library.load(one, model_key_of(opened)) for one in people]
    weights = keyframes(len(ends), frames)
    cast = _cast(ends, weights)
    chosen, many = random_seed() if seed is None else seed, given(steps, "--steps")
    wanted = [Request(prompt.replace(PLACE, f"<{person.name}>"), seed=chosen, steps=many) for person in cast]
    backend = open_backend(console, library, opened, settings, device, threads)
    drawn = _draw(console, opened, backend, wanted, cast, _others(library, opened, prompt))
    written = _write(drawn, labels([end.name for end in ends], weights), out, gif)
    console.info(f"{frames} pictures from {ends[0].name} to {ends[-1].name}, seed {chosen}")
    facts = {"people": [end.name for end in ends], "weights": weights, "prompt": prompt, "seed": chosen}
    console.output(written, {"strip": str(out), "gif": None if gif is None else str(gif), **facts})
    console.suggest(f"celebctl mix {ends[0].name} {ends[-1].name}", "keep somebody of them")


def _numbers(text: str | None) -> list[float] | None:
    """Comma-separated numbers. Raises UsageError."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        from celebctl_runtime.errors import UsageError

        raise UsageError(f"--weights {text!r} are no numbers", "write them like --weights 2,1,1") from error


def _animation(out: Path, gif: Path | None, still: bool) -> Path | None:
    """Where the animation goes, None for nowhere. Raises UsageError for two answers."""
    from celebctl_runtime.errors import UsageError

    if gif is not None and still:
        raise UsageError(f"--gif {gif} and --no-gif contradict each other", "leave one of them out")
    return None if still else gif or out.with_suffix(".gif")


def _check(people: Sequence[str], frames: int, prompt: str, out: Path, gif: Path | None, force: bool) -> None:
    """Raise UsageError before the work for what cannot come out well."""
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    from .basis import check_picture

    if len(people) < 2:
        raise UsageError("a strip goes from one person to another", "name two: celebctl strip alice bob")
    if not 2 <= len(people) <= frames <= MOST_FRAMES:
        raise UsageError(f"--frames {frames} is out of range", f"use {len(people)} to {MOST_FRAMES}")
    if PLACE not in prompt:
        raise UsageError(f"the prompt {prompt!r} has no place for the person", 'write {}: --prompt "{} on the beach"')
    check_picture(out, force)
    if gif is not None and gif.suffix.lower() != ".gif":
        raise UsageError(f"{gif} is no GIF", "end it in .gif")
    if gif is not None:
        refuse_existing(gif, force)


def _cast(ends: "Sequence[Identity]", weights: Sequence[Sequence[float]]) -> "list[Identity]":
    """The people of a strip, in order."""
    from celebctl.basis.identity_vectors import mix as mix_identities

    return [mix_identities(ends, shares, name=FRAME.format(number)) for number, shares in enumerate(weights, 1)]


def _others(library: "Library", bundle: "Bundle", prompt: str) -> "list[Identity]":
    """Whom a prompt names besides: they are there for the strip only, too."""
    from celebctl_runtime.prompting.prompt import Mention, split_prompt

    from .bundles import model_key_of

    entries = {entry.name: entry for entry in library.entries(model_key_of(bundle))}
    found = {part.name for part in split_prompt(prompt, {*entries, *bundle.names}) if isinstance(part, Mention)}
    return [entries[name].load() for name in sorted(found & entries.keys())]


def _draw(
    console: CliConsole,
    bundle: "Bundle",
    backend: "Backend",
    wanted: "Sequence[Request]",
    cast: "Sequence[Identity]",
    others: "Sequence[Identity]",
) -> "list[Image]":
    """One picture for each of `cast`, enlarged as the model's pictures are; as many at once as there is room for."""
    from PIL.Image import Resampling

    from celebctl_runtime.pipeline import generate

    room, scale = max(1, len(bundle.free_rows()) - len(others)), bundle.manifest.size.display_scale
    pictures: list[Image] = []
    with console.progress(f"drawing {len(wanted)} pictures") as report:
        for first in range(0, len(wanted), room):
            part = slice(first, first + room)
            made = generate(
                bundle, backend, wanted[part],
                lambda now, first=first: report((first + now.first) * now.steps + now.step * now.count,
                                                len(wanted) * now.steps, ""),
                overrides=[*cast[part], *others],
            )  # fmt: skip
            pictures += [picture.image for picture in made]
    return [picture.resize((picture.width * scale, picture.height * scale), Resampling.LANCZOS) for picture in pictures]


def _write(drawn: "Sequence[Image]", said: Sequence[str], out: Path, gif: Path | None) -> list[str]:
    from celebctl.interpolation_strip import lay_out, save_animation
    from celebctl_runtime.files import atomic_write

    from .sample_photo import FORMATS

    sheet = lay_out(drawn, said)
    atomic_write(out, lambda place: sheet.save(place, FORMATS[out.suffix.lower()]))
    if gif is not None:
        atomic_write(gif, lambda place: save_animation(drawn, place))
    return [str(path) for path in (out, gif) if path is not None]
