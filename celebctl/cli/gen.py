"""gen and regen: pictures from prompts, and pictures from pictures' own recipes. Torch-free."""

import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.backends.base import Backend
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.picture import GeneratedImage
    from celebctl_runtime.pipeline import Progress
    from celebctl_runtime.request import Request
    from celebctl_runtime.sampling.init_image import InitImage

MOST = 10_000  # pictures in one call
STDOUT = Path("-")
STRENGTH = 0.6  # of the picture to begin with, how much may change


def gen(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to draw: names you learned, and plain words.", metavar="PROMPT")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many; picture k has seed + k.")] = 1,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", "--cfg", help="How closely to follow the prompt.")
    ] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help=options.SAMPLERS + ".")] = None,
    negative: Annotated[str, typer.Option("--negative", "--neg", help="What not to draw.")] = "",
    likeness: options.Likeness = None,
    layout: options.Layout = None,
    size: Annotated[str | None, typer.Option("--size", help="Pixels of the model, before enlarging: WxH or N.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Begin with this picture instead of noise.")] = None,
    strength: Annotated[
        float | None, typer.Option("--strength", help="With --from: how much may change, up to 1.", show_default="0.6")
    ] = None,
    scale: Annotated[int | None, typer.Option("--scale", help="Enlarge so many times.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="FILE.png, a folder, or - for stdout.", show_default="./PROMPT-SEED.png"),
    ] = None,
    force: options.Force = False,
    metadata: Annotated[bool, typer.Option("--metadata/--no-metadata", help="Keep the recipe in the PNG.")] = True,
    model: options.Model = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Make pictures of the people you learned."""
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.prompting.layout import normalize_layout
    from celebctl_runtime.prompting.likeness import FULL_LIKENESS, parse_likeness
    from celebctl_runtime.request import Request, batch

    console = ctx.ensure_object(CliConsole)
    started = time.monotonic()
    settings, library = Settings.read(), Library()
    first = random_seed() if seed is None else seed
    check_count(count, first)
    width, height = options.parse_size(size)
    dial = FULL_LIKENESS if likeness is None else parse_likeness(likeness)
    wanted = Request(
        prompt, negative, first, given(steps, "--steps"), guidance, sampler or "", width, height,
        likeness=dial, layout=normalize_layout(layout or ""),
    )  # fmt: skip
    wanted, sources = with_init_image(source, strength, wanted)
    requests = batch(wanted, count)
    target = OutputTarget.choose(out, prompt, [request.seed for request in requests], force, console.json)
    opened = open_bundle(console, library, str(settings.text("model", model)), bundle, [prompt, negative])
    backend = open_backend(console, library, opened, settings, device, threads)
    enlarge = opened.manifest.size.display_scale if scale is None else given(scale, "--scale")
    made: list[dict[str, Any]] = []
    for picture in draw(console, opened, backend, requests, sources):
        path = target.save(console, picture, metadata=metadata, scale=enlarge)
        if not made:
            _comment(console, picture)
        made.append({"path": path, "request": picture.request.to_json(), "record": dict(picture.record)})
        if not (console.json or target.to_stdout):
            console.output([path], {})
    seconds = time.monotonic() - started
    console.info(f"seed {first}{f' to {first + count - 1}' if count > 1 else ''}, {seconds:.1f} s")
    if console.json:
        console.output([], {"pictures": made, "bundle": str(opened.path), "scale": enlarge, "seconds": round(seconds, 3)})
    if not target.to_stdout and metadata:
        console.suggest(shlex.join(["celebctl", "regen", made[0]["path"]]), "draw it again")


def regen(
    ctx: typer.Context,
    picture: Annotated[Path, typer.Argument(help="A PNG that celebctl made.", metavar="PICTURE")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="FILE.png, a folder, or - for stdout.", show_default="./NAME-regen.png"),
    ] = None,
    force: options.Force = False,
    source: Annotated[Path | None, typer.Option("--from", help="The picture that this one began with.")] = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Draw a picture again from the recipe it carries, and say whether the pixels are the same."""
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.picture import png_bytes, read_request

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    request, record = read_request(picture)
    target = OutputTarget.choose(out, f"{picture.stem}-regen", [request.seed], force, console.json, plain=True)
    opened = find_source_bundle(console, library, record, bundle)
    add_recorded_people(console, opened, library, record)
    backend = open_backend(console, library, opened, settings, device, threads)
    enlarge = int(record.get("scale", 1))
    _, sources = with_init_image(source, request.strength, request)
    (again,) = draw(console, opened, backend, [request], sources)
    identical = same_pixels(picture.read_bytes(), png_bytes(again, scale=enlarge))
    path = target.save(console, again, metadata=True, scale=enlarge)
    if identical:
        console.info("the same, to the last pixel")
    else:
        console.warn(f"not the same pixels; {_difference(record, again.record)}")
    if not target.to_stdout:
        document = {"path": path, "identical": identical, "request": again.request.to_json(), "record": again.record}
        console.output([path], document)


def with_init_image(path: Path | None, strength: float | None, request: "Request") -> "tuple[Request, list[InitImage]]":
    """The request with the picture that it is to begin with, and that picture; as it is, and none, without one."""
    from dataclasses import replace

    if path is None:
        return (request if strength is None else replace(request, strength=strength)), []
    from celebctl_runtime.sampling.init_image import InitImage

    source = InitImage.read(path)
    return replace(request, source=source.digest, strength=STRENGTH if strength is None else strength), [source]


def random_seed() -> int:
    """A seed nobody chose, short enough to type."""
    return secrets.randbelow(2**32)


def check_count(count: int, seed: int) -> None:
    """Raise UsageError for a count, or seeds, that there cannot be."""
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.request import MAX_SEED

    if not 1 <= count <= MOST:
        raise UsageError(f"-n {count} is out of range", f"use 1 to {MOST}")
    if not 0 <= seed <= MAX_SEED - count + 1:
        raise UsageError(f"seed {seed} is out of range", f"use 0 to {MAX_SEED - count + 1}")


def open_bundle(
    console: CliConsole, library: "Library", model: str, given: Path | None, prompts: Sequence[str], dtype: str = "fp32"
) -> "Bundle":
    """The bundle that was given, as it is; or the model's own, made in `dtype` if need be, with everybody the prompts
    name."""
    from celebctl_runtime.bundle.bundle import Bundle

    from .bundles import add_mentioned_people, find_bundle, people_of_other_models
    from .naming import listed

    if given is not None:
        return Bundle.open(given, verify="quick")
    place = find_bundle(library, model)
    if place is None:
        from .export import export_options, make_bundle

        console.info(f"there is no bundle of {model} yet; making one, once")
        place = make_bundle(console, library, model, settings=export_options(dtype)).path
    bundle = Bundle.open(place, verify="quick")
    if new := add_mentioned_people(bundle, library, prompts):
        console.info(f"added {listed(new)} to the bundle")
    for name, model_key in people_of_other_models(bundle, library, prompts):
        console.warn(f"{name} was learned for another model ({model_key}); here the name is a plain word")
    return bundle


def open_backend(
    console: CliConsole, library: "Library", bundle: "Bundle", settings: "Settings", device: str | None, threads: int | None
) -> "Backend":
    """The engine, as flags and settings say, for a bundle that is found to be whole."""
    from celebctl.bundle_verification import verify_once
    from celebctl_runtime.backends.base import choose_backend
    from celebctl_runtime.backends.ort_session import parse_cuda_options

    verify_once(library, bundle)
    name, count = str(settings.text("device", device)), settings.number("threads", threads) or None
    options = parse_cuda_options(settings.text("cuda_options") or "")
    return choose_backend(bundle, name, engines=library.engines, threads=count, cuda_options=options)


def draw(
    console: CliConsole, bundle: "Bundle", backend: "Backend", requests: "Sequence[Request]", sources: "Sequence[InitImage]" = ()
) -> "Iterator[GeneratedImage]":
    """Pictures as they are finished, with live progress. As many are drawn at once as the engine takes."""
    from celebctl_runtime.pipeline import generate

    for first in range(0, len(requests), backend.batch_limit):
        group = requests[first : first + backend.batch_limit]
        title = "drawing" if len(requests) == 1 else f"drawing {first + len(group)} of {len(requests)}"
        with console.progress(title) as report:
            pictures = generate(bundle, backend, group, partial(_pass_on, report), init_images=sources)
        yield from pictures


def _pass_on(report: "Callable[[int, int, str], None]", now: "Progress") -> None:
    report(now.step, now.steps, "")


@dataclass(frozen=True)
class OutputTarget:
    """Where pictures go: to one `file`, into a `folder`, or to stdout when both are None."""

    file: Path | None
    folder: Path | None
    stem: str
    many: bool
    force: bool
    plain: bool

    @property
    def to_stdout(self) -> bool:
        """Whether pictures go to stdout."""
        return self.file is None and self.folder is None

    @classmethod
    def choose(
        cls, out: Path | None, title: str, seeds: Sequence[int], force: bool, as_json: bool, plain: bool = False
    ) -> "OutputTarget":
        """Settle where pictures go before they are drawn. `plain` names leave out the seed. Raises UsageError."""
        from celebctl_runtime.errors import UsageError
        from celebctl_runtime.files import refuse_existing

        from .naming import slug_of

        many = len(seeds) > 1
        stem = title if plain else slug_of(title)
        if out == STDOUT:
            if many or as_json:
                besides = "a JSON document besides" if as_json else f"{len(seeds)}"
                raise UsageError(f"-o - holds one picture, not {besides}", "use -o FOLDER")
            return cls(None, None, stem, many, force, plain)
        if out is None or out.is_dir() or not out.suffix:
            return cls(None, out or Path(), stem, many, force, plain)
        if out.suffix.lower() != ".png":
            raise UsageError(f"{out} is no PNG", "end it in .png: a PNG carries the recipe of its picture")
        outlet = cls(out, None, stem, many, force, plain)
        for path in map(outlet.path, seeds):
            refuse_existing(path, force)
        return outlet

    def path(self, seed: int) -> Path:
        """Where the picture of one seed goes."""
        from .naming import free_path

        if self.file is not None:
            return self.file.with_stem(f"{self.file.stem}-{seed}") if self.many else self.file
        path = (self.folder or Path()) / f"{self.stem}{'' if self.plain else f'-{seed}'}.png"
        return path if self.force else free_path(path)

    def save(self, console: CliConsole, picture: "GeneratedImage", *, metadata: bool, scale: int) -> str:
        """Write one picture; returns its path, or "-"."""
        from celebctl_runtime.picture import png_bytes, save_image

        if self.to_stdout:
            console.output_bytes(png_bytes(picture, metadata=metadata, scale=scale))
            return str(STDOUT)
        path = self.path(picture.request.seed)
        return str(save_image(picture, path, metadata=metadata, scale=scale, overwrite=self.force))


def find_source_bundle(console: CliConsole, library: "Library", record: dict[str, Any], given: Path | None) -> "Bundle":
    """The bundle that drew a picture, or the nearest there is. Raises NotFoundError when there is none of its model."""
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.errors import NotFoundError

    from .bundles import find_bundle

    candidates = [given] if given is not None else library.bundles()
    for path in candidates:
        bundle = Bundle.open(path, verify="none")
        if bundle.manifest.fingerprint == record.get("bundle"):
            bundle.verify("quick")
            return bundle
    model = str(record.get("model", ""))
    place = given or find_bundle(library, model)
    if place is None:
        raise NotFoundError(f"there is no bundle of {model or 'the model that drew it'}", f"celebctl export --model {model}")
    console.warn("the bundle that drew it is gone; using another export of the model")
    return Bundle.open(place, verify="quick")


def add_recorded_people(console: CliConsole, bundle: "Bundle", library: "Library", record: dict[str, Any]) -> None:
    """Put the people of a record into the bundle, with the numbers they had then where those are still known."""
    from .bundles import add_people, model_key_of

    entries = {entry.name: entry for entry in library.entries(model_key_of(bundle))}
    for name, digest in dict(record.get("identities", {})).items():
        baked = bundle.manifest.identities.get(name)
        if baked is not None and baked.digest == digest:
            continue
        known = entries[name].load() if name in entries else None
        if known is not None and (baked is None or known.digest == digest):
            add_people(bundle, [known])
        if known is None or known.digest != digest:
            console.warn(f"{name} is not who {name} was in this picture")


def same_pixels(one: bytes, other: bytes) -> bool:
    """Whether two PNG files show exactly the same."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(one)) as a, Image.open(io.BytesIO(other)) as b:
        return a.size == b.size and a.convert("RGB").tobytes() == b.convert("RGB").tobytes()


def _comment(console: CliConsole, picture: "GeneratedImage") -> None:
    """Once per call: what ran, and what of the prompt did not fit."""
    from .naming import listed

    request, dropped = picture.request, picture.record.get("dropped_text")
    who = listed(request.identities or ()) or "nobody you know"
    wishes = f", likeness {_shares(request)}" if request.likeness != 1.0 else ""
    wishes += f", layout {request.layout}" if request.layout not in ("", "none") else ""
    console.info(f"{who}; {request.steps} steps of {request.sampler}, guidance {request.guidance:g}{wishes}")
    if dropped:
        console.warn(f"this did not fit into the prompt and was left out: {dropped}")


def _shares(request: "Request") -> str:
    """The likeness that was asked for, as it is typed."""
    if isinstance(request.likeness, tuple):
        return ",".join(f"{name}={share:g}" for name, share in request.likeness)
    return f"{request.likeness:g}"


def _difference(then: dict[str, Any], now: Any) -> str:
    """What changed between two records, in words: equal pixels are promised for an equal record only."""
    named = {"bundle": "the bundle", "backend": "the engine", "identities": "the people", "dtype": "the precision"}
    changed = [words for key, words in named.items() if then.get(key) != now.get(key)]
    return f"changed since: {', '.join(changed)}" if changed else "though nothing that matters is known to have changed"


def given(number: int | None, flag: str) -> int:
    """A number somebody typed, 0 for none: the runtime reads 0 as its default, so a typed 0 must not get there."""
    if number is None:
        return 0
    if number < 1:
        from celebctl_runtime.errors import UsageError

        raise UsageError(f"{flag} {number} is out of range", "use 1 or more")
    return number
