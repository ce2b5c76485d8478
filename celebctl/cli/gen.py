"""gen and regen: images from prompts, and images from the recipes in other images. Torch-free."""

import contextlib
import math
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
    from celebctl.reproduction import Comparison
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.identity import Identity
    from celebctl_runtime.picture import GeneratedImage, ImageFormat, Marks
    from celebctl_runtime.recipes.recipe import Recipe
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
    guidance: options.Guidance = None,
    sampler: options.Sampler = None,
    negative: options.Negative = "",
    likeness: options.Likeness = None,
    layout: options.Layout = None,
    size: Annotated[str | None, typer.Option("--size", help="Pixels drawn, before enlarging: WxH or N.")] = None,
    init_image: Annotated[
        Path | None,
        typer.Option("--from", help="Start from this image instead of noise (img2img).", metavar="SOURCE"),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength", help="With --from: how much may change, above 0 to 1.", show_default="0.6; with a mask 1"
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            help="With --from: change only what is white in this greyscale image (inpainting).",
            metavar="MASK",
            show_default="the transparent parts of SOURCE",
        ),
    ] = None,
    mask_blur: options.MaskBlur = None,
    mask_invert: Annotated[
        bool, typer.Option("--mask-invert", help="Change what is black, keep what is white.")
    ] = False,
    hires: Annotated[
        str | None,
        typer.Option(
            "--hires", help="Enlarge and draw again from there, in a second pass: 2x, or WxH.", metavar="SIZE"
        ),
    ] = None,
    hires_strength: Annotated[
        float | None,
        typer.Option("--hires-strength", help="How much the second pass may change, above 0 to 1.", show_default="0.5"),
    ] = None,
    refine_faces: Annotated[
        bool, typer.Option("--refine-faces", help="Draw each small face again, larger and as that person alone.")
    ] = False,
    refine_strength: Annotated[
        float | None,
        typer.Option(
            "--refine-strength", help="With --refine-faces: how much may change, above 0 to 1.", show_default="0.2"
        ),
    ] = None,
    best_of: Annotated[
        int,
        typer.Option(
            "--best-of", help="Of N images, keep the one whose people look most like themselves.", metavar="N"
        ),
    ] = 1,
    face_models: options.FaceModels = None,
    scale: options.Scale = None,
    out: options.ImageOut = None,
    image_format: options.ImageFormat = None,
    quality: options.Quality = None,
    force: options.Force = False,
    metadata: options.Metadata = True,
    watermark: options.Watermark = None,
    plain_prompt: options.PlainPrompt = False,
    wildcards: options.Wildcards = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what was understood of the prompts, and draw nothing.")
    ] = False,
    preview: options.Preview = None,
    safety_checker: options.SafetyCheckerFile = None,
    model: options.Model = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Draw images of learned people."""
    from celebctl.library import Library
    from celebctl.marks import user_marks
    from celebctl.pipeline import as_likeness, make_requests, random_seed, refinement, wildcard_folder
    from celebctl.settings import Settings
    from celebctl_runtime.errors import PartialBatchError
    from celebctl_runtime.prompting.layout import normalize_layout
    from celebctl_runtime.prompting.likeness import parse_likeness
    from celebctl_runtime.prompting.weights import PLAIN, WEIGHTED
    from celebctl_runtime.prompting.wildcards import expand_request
    from celebctl_runtime.request import DEFAULT_HIRES_STRENGTH, Request

    from .continuing import suggest_continuing
    from .explain import print_explanation
    from .preview import choose_preview
    from .safety import choose_checker, screen

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
        mask_blur=mask_blur,
        mask_invert=mask_invert,
        hires=hires or "",
        hires_strength=DEFAULT_HIRES_STRENGTH if hires_strength is None else hires_strength,
        syntax=PLAIN if plain_prompt else WEIGHTED,
        **refinement(refine_faces, refine_strength),
    )
    requests, init_images = make_requests(request, count, init_image, strength, mask, best_of)
    seeds = range(request.seed, requests[-1].seed + best_of)
    settings, library = Settings.read(), Library()
    checker = choose_checker(settings, safety_checker)
    folder = wildcard_folder(library, settings.text("wildcards", None if wildcards is None else str(wildcards)))
    if explain:
        opened = open_or_export(console, library, str(settings.text("model", model)), bundle)
        pipe = open_pipeline(library, opened, device, threads, add_people=bundle is None)
        print_explanation(console, pipe.explain_request(requests[0], folder))
        return
    requests = [expand_request(one, folder)[0] for one in requests]
    marks = user_marks(library, watermark=watermark)
    saving = SaveOptions.choose(out, image_format, quality, marks, metadata=metadata, force=force)
    target = OutputTarget.choose(out, prompt, seeds if count > 1 else seeds[:1], console.json, saving)
    shown = str(settings.text("preview", preview))
    display = choose_preview(console, shown, force, screened=checker is not None)
    opened = open_or_export(console, library, str(settings.text("model", model)), bundle)
    pipe = open_pipeline(library, opened, device, threads, add_people=bundle is None, face_models=face_models)
    enlarge = options.positive(scale, "--scale") or pipe.bundle.manifest.size.display_scale
    refused: list[dict[str, Any]] = []
    images = draw_best(console, pipe, requests, init_images, best_of, display) if best_of > 1 else None
    with suggest_continuing(console, requests) as until_saved:
        images = until_saved(images or draw(console, pipe, requests, init_images, display))
        written = save_images(console, target, screen(console, checker, images, refused), enlarge)
    seconds = time.monotonic() - started
    console.info(f"seed {request.seed}{f' to {seeds[-1]}' if len(seeds) > 1 else ''}, {seconds:.1f} s")
    if console.json:
        facts = {"bundle": str(pipe.bundle.path), "scale": enlarge, "seconds": round(seconds, 3)}
        console.output([], {"images": written, "refused": refused, **facts})
    if metadata:
        note_unsigned(console, library, marks)
    if not target.to_stdout and metadata:
        console.suggest(shlex.join(["celebctl", "regen", written[0]["path"]]), "draw it again")
    if refused:
        raise typer.Exit(PartialBatchError.exit_code)


def regen(
    ctx: typer.Context,
    image: Annotated[
        Path,
        typer.Argument(
            help="An image that celebctl, a Stable Diffusion web UI or InvokeAI drew; with --frame an animation.",
            metavar="IMAGE",
        ),
    ],
    frame: Annotated[
        int | None, typer.Option("--frame", help="Draw this frame of a GIF, WebP or APNG animation, from 1.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="FILE.png, .jpg or .webp, a folder, or - for stdout.", show_default="./NAME-regen.png"
        ),
    ] = None,
    image_format: options.ImageFormat = None,
    quality: options.Quality = None,
    force: options.Force = False,
    init_image: Annotated[
        Path | None, typer.Option("--from", help="The image that this one started from.", metavar="SOURCE")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", help=f"In place of the recipe's sampler: {options.SAMPLERS}.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Draw with this model.", show_default="the recipe's")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="The mask that this image was drawn with.", metavar="MASK")
    ] = None,
    bundle: options.BundleDir = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Draw an image again from the recipe it carries, and compare the pixels."""
    from celebctl.animation_files import read_frame
    from celebctl.library import Library
    from celebctl.marks import user_marks
    from celebctl.pipeline import make_requests
    from celebctl.reproduction import compare_with_file, find_recipe_bundle, marks_of
    from celebctl.settings import Settings
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.image_files import read_image
    from celebctl_runtime.recipes.reading import recipe_in

    from .naming import one_line
    from .safety import choose_checker, screen

    console = ctx.ensure_object(CliConsole)
    library, checker = Library(), choose_checker(Settings.read())
    marks = user_marks(library)
    if frame is None:
        file = read_image(image)
        recipe, title = recipe_in(file, image), f"{image.stem}-regen"
        marks = marks_of(recipe, marks)
    else:
        file, recipe, title = None, read_frame(image, frame), f"{image.stem}-frame-{frame}"
    request = recipe.request(sampler or "")
    saving = SaveOptions.choose(out, image_format, quality, marks, force=force)
    target = OutputTarget.choose(out, title, [request.seed], console.json, saving, plain=True)
    opened = find_recipe_bundle(library, recipe, model) if bundle is None else Bundle.open(bundle)
    ours = recipe.format == "celebctl"
    pipe = open_pipeline(library, opened, device, threads, add_people=not ours and bundle is None)
    pipe.add_recorded_people(recipe.record)
    strength = request.strength if request.source else None
    requests, init_images = make_requests(request, 1, init_image, strength, mask)
    if recipe.ignored:
        console.warn(one_line(f"not reproduced: {', '.join(recipe.ignored)}"))
    if "seed" not in recipe.values:
        console.warn("the recipe states no seed; 0 is used")
    (again,) = screen(console, checker, draw(console, pipe, requests, init_images), [])
    scale = int(recipe.record.get("scale", 1)) if ours else opened.manifest.size.display_scale
    compared = None  # also for a frame: an animation can have other pixels than were drawn
    if file is not None and ours and not (sampler or model):
        compared = compare_with_file(file, recipe, again, marks)
    path = target.save(console, again, scale=scale)
    if frame is not None:
        console.info(f"frame {frame} of {image}")
    _say_how_alike(console, recipe, again, compared)
    if not target.to_stdout:
        document: dict[str, Any] = {"path": path, "identical": compared and compared.identical}
        document |= {"lossy": compared and compared.lossy, "recipe": recipe.format, "ignored": list(recipe.ignored)}
        console.output([path], document | {"request": again.request.to_json(), "record": dict(again.record)})


def _say_how_alike(
    console: CliConsole, recipe: "Recipe", again: "GeneratedImage", compared: "Comparison | None"
) -> None:
    """Print whether an image came out as it was; None when it could not."""
    from celebctl.pipeline import changed_since

    if compared is None:
        if recipe.format != "celebctl":
            console.info(
                f"drawn from the settings of {recipe.program}: noise and arithmetic differ between programs,"
                " so the image is another one"
            )
        return
    if compared.identical and compared.lossy:
        console.info("after the same lossy encoding the pixels are identical; before it they cannot be compared")
    elif compared.identical:
        console.info("the pixels are identical")
    else:
        alike = "" if compared.psnr is None or math.isinf(compared.psnr) else f" (PSNR {compared.psnr:.1f} dB)"
        changed = ", ".join(changed_since(recipe.record, again.record)) or "nothing in the record"
        note = "; the file is lossy, and may have been encoded again" if compared.lossy else ""
        console.warn(f"the pixels differ{alike}; changed since: {changed}{note}")


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
    library: "Library",
    bundle: "Bundle",
    device: str | None,
    threads: int | None,
    *,
    add_people: bool = False,
    face_models: str | None = None,
) -> "Pipeline":
    """The pipeline with the device, threads and engine options of the command line and the settings."""
    from celebctl.pipeline import Pipeline, wildcard_folder
    from celebctl.settings import Settings
    from celebctl_runtime.backends.base import parse_options

    settings = Settings.read()
    pipe = Pipeline(
        bundle,
        device=str(settings.text("device", device)),
        threads=settings.number("threads", threads) or None,
        library=library,
        add_people=add_people,
        cuda_options=parse_options(settings.text("cuda_options") or ""),
        openvino_options=parse_options(settings.text("openvino_options") or ""),
        face_models=settings.text("face_models", face_models),
    )
    pipe.wildcards = wildcard_folder(library, settings.text("wildcards"))
    return pipe


def draw(
    console: CliConsole,
    pipe: "Pipeline",
    requests: "Sequence[Request]",
    init_images: "Sequence[InitImage]" = (),
    display: "PreviewDisplay | None" = None,
    overrides: "Sequence[Identity]" = (),
) -> "Iterator[GeneratedImage]":
    """Images as they are finished, with a progress bar or previews; as many at once as the engine takes.

    `overrides` are people who are not added to the bundle.
    """
    done = 0
    for group in pipe.batches(requests):
        done += len(group)
        title = "drawing" if len(requests) == 1 else f"drawing {done} of {len(requests)}"
        with (display or console).track(title) as progress:
            images = pipe.generate(group, init_images=init_images, overrides=overrides, progress=progress)
        for image in images:
            if display is not None:
                display.finished(image.image)
            yield image


def draw_best(
    console: CliConsole,
    pipe: "Pipeline",
    requests: "Sequence[Request]",
    init_images: "Sequence[InitImage]",
    count: int,
    display: "PreviewDisplay | None" = None,
) -> "Iterator[GeneratedImage]":
    """For each request the best of `count` images."""
    for done, request in enumerate(requests, 1):
        with (display or console).track(f"drawing {done} of {len(requests)}") as progress:
            image = pipe.generate_best(request, count, init_images, progress)
        if display is not None:
            display.finished(image.image)
        console.info(f"kept seed {image.request.seed} of {count} images")
        yield image


@dataclass(frozen=True)
class SaveOptions:
    """How images are encoded, whether with their recipe, and whether they replace what exists."""

    image_format: "ImageFormat"
    quality: int | None
    metadata: bool
    force: bool
    marks: "Marks"

    @classmethod
    def choose(
        cls,
        out: Path | None,
        name: str | None,
        quality: int | None,
        marks: "Marks",
        *,
        metadata: bool = True,
        force: bool,
    ) -> "SaveOptions":
        """The options for -o and --format. Raises UsageError when they contradict, or do not fit the quality."""
        from celebctl_runtime.errors import UsageError
        from celebctl_runtime.picture import SUFFIXES, check_quality

        named = None if name is None else SUFFIXES.get(f".{name.lower().lstrip('.')}")
        if name is not None and named is None:
            formats = ", ".join(dict.fromkeys(SUFFIXES.values()))
            raise UsageError(f"there is no image format {name!r}", f"use --format {formats}")
        suffix = SUFFIXES.get(out.suffix.lower()) if out is not None and not out.is_dir() else None
        if named and suffix and named != suffix:
            raise UsageError(f"{out} is no {named} file", "leave out --format, or name the file accordingly")
        chosen = suffix or named or "png"
        check_quality(quality, chosen)
        return cls(chosen, quality, metadata, force, marks)


@dataclass(frozen=True)
class OutputTarget:
    """Where images go: to one `file`, into a `folder`, or to stdout when both are None."""

    file: Path | None
    folder: Path | None
    stem: str
    many: bool
    plain: bool
    saving: SaveOptions

    @property
    def to_stdout(self) -> bool:
        """Whether images go to stdout."""
        return self.file is None and self.folder is None

    @classmethod
    def choose(
        cls,
        out: Path | None,
        title: str,
        seeds: Sequence[int],
        as_json: bool,
        saving: SaveOptions,
        plain: bool = False,
    ) -> "OutputTarget":
        """The target of images, checked before they are drawn. `plain` names leave out the seed. Raises UsageError."""
        from celebctl_runtime.errors import UsageError
        from celebctl_runtime.files import refuse_existing, require_writable
        from celebctl_runtime.picture import format_of

        from .naming import names_folder, slug_of

        many = len(seeds) > 1
        stem = title if plain else slug_of(title)
        if out == STDOUT:
            if many or as_json:
                content = "an image and a JSON document" if as_json else f"{len(seeds)} images"
                raise UsageError(f"-o - writes one image, not {content}", "use -o FOLDER")
            return cls(None, None, stem, many, plain, saving)
        if out is None or names_folder(out):
            require_writable(out or Path())
            return cls(None, out or Path(), stem, many, plain, saving)
        format_of(out)
        target = cls(out, None, stem, many, plain, saving)
        for path in map(target.path, seeds):
            refuse_existing(path, saving.force)
        require_writable(out.parent)
        return target

    def path(self, seed: int) -> Path:
        """The file for the image of one seed."""
        from .naming import free_path

        if self.file is not None:
            return self.file.with_stem(f"{self.file.stem}-{seed}") if self.many else self.file
        path = (self.folder or Path()) / f"{self.stem}{'' if self.plain else f'-{seed}'}{self._suffix}"
        return path if self.saving.force else free_path(path)

    @property
    def _suffix(self) -> str:
        return {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[self.saving.image_format]

    def save(self, console: CliConsole, image: "GeneratedImage", *, scale: int) -> str:
        """Write one image; returns its path, or "-"."""
        from celebctl_runtime.errors import UsageError
        from celebctl_runtime.picture import EncodingOptions, encode_image, save_image

        saving = self.saving
        how = EncodingOptions(metadata=saving.metadata, scale=scale, quality=saving.quality, marks=saving.marks)
        if self.to_stdout:
            image_format = self.saving.image_format
            content = encode_image(image, image_format, **how)
            console.output_bytes(content)
            return str(STDOUT)
        while True:
            path = self.path(image.request.seed)
            try:
                save_image(image, path, overwrite=self.saving.force, **how)
                return str(path)
            except UsageError as error:
                if error.reason != "file_exists" or self.file is not None:
                    raise  # else another process took the free name meanwhile


def note_unsigned(console: CliConsole, library: "Library", marks: "Marks") -> None:
    """Say, once on this machine, that images have no content credentials because c2pa-python is not installed."""
    from celebctl.marks import can_sign
    from celebctl_runtime.errors import SetupError
    from celebctl_runtime.files import atomic_write

    noted = library.root / "cache" / "unsigned.noted"
    if marks.signer is None and not can_sign() and not noted.exists():
        console.info("saved without content credentials; for them: pip install 'celebctl[provenance]'")
        with contextlib.suppress(SetupError):  # a library that is read-only: said again the next time
            atomic_write(noted, b"")


def save_images(
    console: CliConsole, target: OutputTarget, images: "Iterable[GeneratedImage]", scale: int
) -> list[dict[str, Any]]:
    """Write and print every image as soon as it is drawn; returns what --json tells of each."""
    written: list[dict[str, Any]] = []
    for image in images:
        path = target.save(console, image, scale=scale)
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
    extra += f", faces drawn again: {request.refine_faces.count('@')}" if request.refine_faces else ""
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
