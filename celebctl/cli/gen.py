"""gen and regen: images from prompts, and images from the recipes in other images. Torch-free."""

import io
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl.pipeline import Pipeline
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.picture import GeneratedImage
    from celebctl_runtime.request import Request
    from celebctl_runtime.sampling.init_image import InitImage

    from .export import Dtype
    from .preview import PreviewDisplay

STDOUT = Path("-")


def gen(
    ctx: typer.Context,
    prompt: Annotated[
        str, typer.Argument(help="What to draw: names of learned people, and plain text.", metavar="PROMPT")
    ],
    count: Annotated[int, typer.Option("--count", "-n", help="Number of images; image k has seed + k.")] = 1,
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
    init_image: Annotated[
        Path | None,
        typer.Option("--from", help="Start from this image instead of noise (img2img).", metavar="SOURCE"),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", help="With --from: how much may change, above 0 to 1.", show_default="0.6"),
    ] = None,
    scale: Annotated[int | None, typer.Option("--scale", help="Enlarge so many times.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="FILE.png, a folder, or - for stdout.", show_default="./PROMPT-SEED.png"),
    ] = None,
    force: options.Force = False,
    metadata: Annotated[bool, typer.Option("--metadata/--no-metadata", help="Store the recipe in the PNG.")] = True,
    preview: options.Preview = None,
    model: options.Model = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Draw images of learned people."""
    from celebctl.library import Library
    from celebctl.pipeline import as_likeness, make_requests, random_seed
    from celebctl.settings import Settings
    from celebctl_runtime.prompting.layout import normalize_layout
    from celebctl_runtime.prompting.likeness import parse_likeness
    from celebctl_runtime.request import Request

    from .continuing import suggest_continuing
    from .preview import choose_preview

    console = ctx.ensure_object(CliConsole)
    started = time.monotonic()
    width, height = options.parse_size(size)
    request = Request(
        prompt,
        negative,
        random_seed() if seed is None else seed,
        options.positive(steps, "--steps"),
        guidance,
        sampler or "",
        width,
        height,
        likeness=as_likeness(None if likeness is None else parse_likeness(likeness)),
        layout=normalize_layout(layout or ""),
    )
    requests, init_images = make_requests(request, count, init_image, strength)
    target = OutputTarget.choose(out, prompt, [request.seed for request in requests], force, console.json)
    display = choose_preview(console, str(Settings.read().text("preview", preview)), force)
    library = Library()
    opened = open_or_export(console, library, str(Settings.read().text("model", model)), bundle)
    pipe = open_pipeline(library, opened, device, threads, add_people=bundle is None)
    enlarge = options.positive(scale, "--scale") or pipe.bundle.manifest.size.display_scale
    with suggest_continuing(console, requests) as until_saved:
        images = until_saved(draw(console, pipe, requests, init_images, display))
        written = save_images(console, target, images, metadata, enlarge)
    seconds, last = time.monotonic() - started, requests[-1].seed
    console.info(f"seed {request.seed}{f' to {last}' if count > 1 else ''}, {seconds:.1f} s")
    if console.json:
        facts = {"bundle": str(pipe.bundle.path), "scale": enlarge, "seconds": round(seconds, 3)}
        console.output([], {"images": written, **facts})
    if not target.to_stdout and metadata:
        console.suggest(shlex.join(["celebctl", "regen", written[0]["path"]]), "draw it again")


def regen(
    ctx: typer.Context,
    image: Annotated[
        Path, typer.Argument(help="A PNG that celebctl drew, or with --frame an animation.", metavar="IMAGE")
    ],
    frame: Annotated[
        int | None, typer.Option("--frame", help="Draw this frame of a GIF, WebP or APNG animation, from 1.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="FILE.png, a folder, or - for stdout.", show_default="./NAME-regen.png"),
    ] = None,
    force: options.Force = False,
    init_image: Annotated[
        Path | None, typer.Option("--from", help="The image that this one started from.", metavar="SOURCE")
    ] = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Draw an image again from the recipe it carries, and compare the pixels."""
    from PIL import Image

    from celebctl.animation_files import read_frame
    from celebctl.library import Library
    from celebctl.pipeline import changed_since, find_source_bundle, make_requests, same_pixels
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.picture import png_bytes, read_request

    console = ctx.ensure_object(CliConsole)
    library = Library()
    request, record = read_request(image) if frame is None else read_frame(image, frame)
    title = f"{image.stem}-regen" if frame is None else f"{image.stem}-frame-{frame}"
    target = OutputTarget.choose(out, title, [request.seed], force, console.json, plain=True)
    opened = find_source_bundle(library, record) if bundle is None else Bundle.open(bundle)
    pipe = open_pipeline(library, opened, device, threads)
    pipe.add_recorded_people(record)
    requests, init_images = make_requests(request, 1, init_image, None if init_image is None else request.strength)
    (again,) = draw(console, pipe, requests, init_images)
    scale = int(record.get("scale", 1))
    identical = None  # a GIF and a WebP do not have the pixels that were drawn
    if frame is None:
        with Image.open(image) as before, Image.open(io.BytesIO(png_bytes(again, scale=scale))) as after:
            identical = same_pixels(before, after)
    path = target.save(console, again, metadata=True, scale=scale)
    if identical is None:
        console.info(f"frame {frame} of {image}")
    elif identical:
        console.info("the pixels are identical")
    else:
        changed = ", ".join(changed_since(record, again.record)) or "nothing in the record"
        console.warn(f"the pixels differ; changed since: {changed}")
    if not target.to_stdout:
        document = {"path": path, "identical": identical, "request": again.request.to_json(), "record": again.record}
        console.output([path], document)


def open_or_export(
    console: CliConsole, library: "Library", model: str, bundle: Path | None, dtype: "Dtype" = "fp32"
) -> "Bundle":
    """The bundle at `bundle`, or else the model's bundle in the library, exported in `dtype` if there is none yet."""
    from celebctl.bundles import find_bundle
    from celebctl_runtime.bundle.bundle import Bundle

    path = find_bundle(library, model) if bundle is None else bundle
    if path is None:
        from celebctl.model import Model

        from .export import make_bundle

        console.info(f"there is no bundle of {model} yet: exporting one")
        path = make_bundle(console, Model.load(model, library=library), dtype=dtype).path
    return Bundle.open(path)


def open_pipeline(
    library: "Library", bundle: "Bundle", device: str | None, threads: int | None, *, add_people: bool = False
) -> "Pipeline":
    """The pipeline with the device, threads and engine options of the command line and the settings."""
    from celebctl.pipeline import Pipeline
    from celebctl.settings import Settings
    from celebctl_runtime.backends.base import parse_options

    settings = Settings.read()
    return Pipeline(
        bundle,
        device=str(settings.text("device", device)),
        threads=settings.number("threads", threads) or None,
        library=library,
        add_people=add_people,
        cuda_options=parse_options(settings.text("cuda_options") or ""),
        openvino_options=parse_options(settings.text("openvino_options") or ""),
    )


def draw(
    console: CliConsole,
    pipe: "Pipeline",
    requests: "Sequence[Request]",
    init_images: "Sequence[InitImage]" = (),
    display: "PreviewDisplay | None" = None,
) -> "Iterator[GeneratedImage]":
    """Images as they are finished, with a progress bar or previews; as many at once as the engine takes."""
    done = 0
    for group in pipe.batches(requests):
        done += len(group)
        title = "drawing" if len(requests) == 1 else f"drawing {done} of {len(requests)}"
        with (display or console).track(title) as progress:
            images = pipe.generate(group, init_images=init_images, progress=progress)
        for image in images:
            if display is not None:
                display.finished(image.image)
            yield image


@dataclass(frozen=True)
class OutputTarget:
    """Where images go: to one `file`, into a `folder`, or to stdout when both are None."""

    file: Path | None
    folder: Path | None
    stem: str
    many: bool
    force: bool
    plain: bool

    @property
    def to_stdout(self) -> bool:
        """Whether images go to stdout."""
        return self.file is None and self.folder is None

    @classmethod
    def choose(
        cls, out: Path | None, title: str, seeds: Sequence[int], force: bool, as_json: bool, plain: bool = False
    ) -> "OutputTarget":
        """The target of images, checked before they are drawn. `plain` names leave out the seed. Raises UsageError."""
        from celebctl_runtime.errors import UsageError
        from celebctl_runtime.files import refuse_existing

        from .naming import slug_of

        many = len(seeds) > 1
        stem = title if plain else slug_of(title)
        if out == STDOUT:
            if many or as_json:
                content = "an image and a JSON document" if as_json else f"{len(seeds)} images"
                raise UsageError(f"-o - writes one image, not {content}", "use -o FOLDER")
            return cls(None, None, stem, many, force, plain)
        if out is None or out.is_dir() or not out.suffix:
            return cls(None, out or Path(), stem, many, force, plain)
        if out.suffix.lower() != ".png":
            raise UsageError(f"output {out} must end in .png", "only PNG files carry the recipe of an image")
        target = cls(out, None, stem, many, force, plain)
        for path in map(target.path, seeds):
            refuse_existing(path, force)
        return target

    def path(self, seed: int) -> Path:
        """The file for the image of one seed."""
        from .naming import free_path

        if self.file is not None:
            return self.file.with_stem(f"{self.file.stem}-{seed}") if self.many else self.file
        path = (self.folder or Path()) / f"{self.stem}{'' if self.plain else f'-{seed}'}.png"
        return path if self.force else free_path(path)

    def save(self, console: CliConsole, image: "GeneratedImage", *, metadata: bool, scale: int) -> str:
        """Write one image; returns its path, or "-"."""
        from celebctl_runtime.errors import UsageError
        from celebctl_runtime.picture import png_bytes, save_image

        if self.to_stdout:
            console.output_bytes(png_bytes(image, metadata=metadata, scale=scale))
            return str(STDOUT)
        while True:
            path = self.path(image.request.seed)
            try:
                return str(save_image(image, path, metadata=metadata, scale=scale, overwrite=self.force))
            except UsageError as error:
                if error.reason != "file_exists" or self.file is not None:
                    raise  # else another process took the free name meanwhile


def save_images(
    console: CliConsole, target: OutputTarget, images: "Iterable[GeneratedImage]", metadata: bool, scale: int
) -> list[dict[str, Any]]:
    """Write and print every image as soon as it is drawn; returns what --json tells of each."""
    written: list[dict[str, Any]] = []
    for image in images:
        path = target.save(console, image, metadata=metadata, scale=scale)
        if not written:
            _describe(console, image)
        written.append({"path": path, "request": image.request.to_json(), "record": dict(image.record)})
        if not (console.json or target.to_stdout):
            console.output([path], {})
    return written


def _describe(console: CliConsole, image: "GeneratedImage") -> None:
    """Print, once per command, what was drawn, and which text did not fit into the prompt."""
    from .naming import counted, listed

    request, dropped = image.request, image.record.get("dropped_text")
    people = listed(request.identities or ()) or "no learned people"
    extra = f", likeness {_likeness_text(request)}" if request.likeness != 1.0 else ""
    extra += f", layout {request.layout}" if request.layout not in ("", "none") else ""
    console.info(
        f"{people}; {counted(request.steps, 'step')} of {request.sampler}, guidance {request.guidance:g}{extra}"
    )
    if dropped:
        console.warn(f"the prompt is too long; left out: {dropped}")


def _likeness_text(request: "Request") -> str:
    """The likeness as it is typed."""
    if isinstance(request.likeness, tuple):
        return ",".join(f"{name}={fraction:g}" for name, fraction in request.likeness)
    return f"{request.likeness:g}"
