"""Draw images of learned people from an exported bundle, with numpy and ONNX Runtime or TensorRT; no torch.

`Pipeline` is the Python counterpart of `celebctl gen` and `celebctl regen`.
"""

import hashlib
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from PIL import Image

from celebctl.bundle_verification import verify_once
from celebctl.bundles import (
    add_mentioned_people,
    add_people,
    find_bundle,
    model_key_of,
    people_of_other_models,
    table_difference,
)
from celebctl.library import Library
from celebctl_runtime.backends.select import choose_backend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import FILE_NAME
from celebctl_runtime.errors import NotFoundError, UsageError
from celebctl_runtime.explain import Explanation, explain
from celebctl_runtime.identity import Identity
from celebctl_runtime.image_files import to_rgb
from celebctl_runtime.picture import WATERMARKED, EncodingOptions, GeneratedImage, Marks, read_request, save_image
from celebctl_runtime.pipeline import generate
from celebctl_runtime.progress import ProgressCallback, ignore_progress
from celebctl_runtime.prompting.layout import normalize_layout
from celebctl_runtime.prompting.likeness import FULL_LIKENESS, Likeness
from celebctl_runtime.prompting.weights import PLAIN, WEIGHTED
from celebctl_runtime.prompting.wildcards import expand_request
from celebctl_runtime.request import MAX_SEED, Request, batch
from celebctl_runtime.sampling.init_image import InitImage

DEFAULT_STRENGTH = 0.6
MAX_IMAGES = 10_000  # of one call
_log = logging.getLogger(__name__)


class GenerationOptions(TypedDict, total=False):
    """What a call of the pipeline may change; None, or leaving it out, is the default of the model.

    Attributes:
        negative_prompt: What not to draw.
        seed: 0 to 2**63 - 1; None draws one at random.
        steps: Sampling steps, 1 to 1000.
        guidance_scale: Classifier-free guidance, 0 to 100; 1 and below turn it off.
        sampler: A name in `celebctl_runtime.SAMPLERS`.
        width: Pixels, a multiple of what the bundle's manifest states (64 for most Stable Diffusion models).
        height: The same.
        likeness: From 0 (the average celebrity) to 1 (as learned), for everyone or by name.
        layout: Where each person is, as "left:alice,right:bob"; "auto" or "none".
        init_image: Start from this image instead of noise (img2img): an RGB image, or its file.
        strength: With `init_image`, how much may change: above 0, at most 1. Default 0.6.
        plain_prompt: Brackets, BREAK and wildcards in the prompts are plain text, and long prompts are cut.
        wildcards: Folder with the files of `__name__`; None: "wildcards" in the library.
    """

    negative_prompt: str
    seed: int | None
    steps: int | None
    guidance_scale: float | None
    sampler: str | None
    width: int | None
    height: int | None
    likeness: Likeness | Mapping[str, float] | None
    layout: str | None
    init_image: Image.Image | Path | str | None
    strength: float | None
    plain_prompt: bool
    wildcards: Path | str | None


@dataclass(frozen=True, eq=False)
class PipelineOutput:
    """The images of one call, in the order of their seeds.

    Attributes:
        images: RGB images of the size the model draws, in pixels.
        requests: For each image the complete request, with every default filled in.
        records: For each image what drew it: model, bundle, engine, versions, digests of the people.
    """

    images: list[Image.Image]
    requests: list[Request]
    records: list[Mapping[str, Any]]

    @classmethod
    def of(cls, generated: Sequence[GeneratedImage]) -> "PipelineOutput":
        """Collect the images of the runtime."""
        return cls([g.image for g in generated], [g.request for g in generated], [g.record for g in generated])

    def save(
        self,
        path: Path | str,
        *,
        scale: int = 1,
        overwrite: bool = False,
        metadata: bool = True,
        quality: int | None = None,
        marks: Marks = WATERMARKED,
    ) -> list[Path]:
        """Write image files that carry the recipe (request and record), and a watermark.

        Args:
            path: The file, .png, .jpg, .jpeg or .webp; with several images, "-SEED" is added to the stem of each.
            scale: Enlarge so many times, 1 to 16.
            overwrite: Replace existing files.
            metadata: Whether to include the recipe.
            quality: Of JPEG and WebP, 1 to 100, default 90; at 100 a WebP is lossless.
            marks: Watermark and content credentials; `celebctl.marks.user_marks` has those of the user's settings.

        Returns:
            The files written.

        Raises:
            UsageError: A file exists and `overwrite` is false, its suffix is another, or `scale` or `quality` is out of
                range.
            SetupError: A file cannot be written.
        """
        path, many = Path(path), len(self.images) > 1
        files: list[Path] = []
        for image, request, record in zip(self.images, self.requests, self.records, strict=True):
            file = path.with_stem(f"{path.stem}-{request.seed}") if many else path
            generated = GeneratedImage(image, request, record)
            options = EncodingOptions(metadata=metadata, scale=scale, quality=quality, marks=marks)
            files.append(save_image(generated, file, overwrite=overwrite, **options))
        return files


class Pipeline:
    """A bundle with the engine that runs it.

    Given a model's name, the pipeline uses the bundle of that model in the library, and adds the library's people to it
    when a prompt mentions them. A bundle given as a `Bundle` or by its path is used as it is.

    Example:
        >>> from celebctl.pipeline import Pipeline
        >>> pipe = Pipeline(bundle_path, device="cpu")
        >>> output = pipe("alice on the beach", seed=7, steps=4)
        >>> output.requests[0].identities
        ('alice',)
        >>> [path.name for path in output.save(folder / "alice.png")]
        ['alice.png']
    """

    def __init__(  # noqa: PLR0913  two engines have options of their own
        self,
        bundle: Bundle | Path | str,
        *,
        device: str = "auto",
        threads: int | None = None,
        library: Library | None = None,
        add_people: bool | None = None,
        cuda_options: Mapping[str, str] | None = None,
        openvino_options: Mapping[str, str] | None = None,
    ) -> None:
        """Open the bundle, check its files, and start the engine.

        Args:
            bundle: A bundle, its folder, or the name of a model with a bundle in the library.
            device: "auto", "cpu", "cuda", "trt" (TensorRT), "openvino", or a plug-in of ONNX Runtime: "webgpu", "mlx",
                "rtx".
            threads: CPU threads; None is one per physical core.
            library: Where models' bundles and people are; default: the user's library.
            add_people: Whether prompts add the library's people to the bundle; None: for a model's name only.
            cuda_options: Options of ONNX Runtime's CUDA provider.
            openvino_options: Properties of OpenVINO's CPU plugin; float32 unless INFERENCE_PRECISION_HINT is "bf16".

        Raises:
            NotFoundError: There is no such bundle (reason "no_bundle" for a model without one).
            IntegrityError: A file of the bundle is damaged.
            UsageError: Unknown device.
            SetupError: The device is not available.
        """
        self.library = Library() if library is None else library
        by_name = isinstance(bundle, str) and not (Path(bundle) / FILE_NAME).is_file()
        self.add_people = by_name if add_people is None else add_people
        if isinstance(bundle, str) and by_name:
            path = find_bundle(self.library, bundle)
            if path is None:
                raise no_bundle(bundle)
            bundle = path
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle), verify="quick")
        verify_once(self.library, self.bundle)
        self.backend = choose_backend(
            self.bundle,
            device,
            engines=self.library.engines,
            threads=threads,
            cuda_options=cuda_options,
            openvino_options=openvino_options,
        )

    def __call__(
        self,
        prompt: str,
        *,
        num_images: int = 1,
        progress: ProgressCallback = ignore_progress,
        **options: Unpack[GenerationOptions],
    ) -> PipelineOutput:
        """Draw images.

        Args:
            prompt: Text with names of people, as `alice` or `<alice>`.
            num_images: 1 to 10000; image k has seed + k.
            progress: Called after every step; `step` and `total` count steps of all images.
            options: See `GenerationOptions`.

        Returns:
            The images with their requests and records.

        Raises:
            UsageError: A value is out of range, or does not suit the model.
            NotFoundError: A <name> is unknown, or the init image is missing.
            SetupError: The bundle has no free rows for another person.
        """
        request, folder = self._request(prompt, options), self._wildcards(options)
        requests, init_images = make_requests(request, num_images, options.get("init_image"), options.get("strength"))
        requests = [expand_request(one, folder)[0] for one in requests]
        return PipelineOutput.of(self.generate(requests, init_images=init_images, progress=progress))

    def explain(self, prompt: str, **options: Unpack[GenerationOptions]) -> Explanation:
        """What the prompts mean, without drawing: weights, windows, people, changes, and the wildcards chosen.

        Args:
            prompt: As for `__call__`.
            options: As for `__call__`; the seed chooses the wildcards.

        Raises:
            UsageError: As `__call__`.
            NotFoundError: As `__call__`.
            SetupError: As `__call__`.

        Example:
            >>> from celebctl.pipeline import Pipeline
            >>> part = Pipeline(bundle_path, device="cpu").explain("(alice:1.2) on the beach", steps=4).parts[0]
            >>> [(piece.text, piece.weight) for piece in part.prompt.pieces]
            [('alice', 1.2), (' on the beach', 1.0)]
        """
        request = self._request(prompt, options)
        (request,), _ = make_requests(request, 1, options.get("init_image"), options.get("strength"))
        return self.explain_request(request, self._wildcards(options))

    def explain_request(self, request: Request, wildcards: Path) -> Explanation:
        """`explain` for a request whose wildcards are not replaced yet; their files are in the folder `wildcards`."""
        request, choices = expand_request(request, wildcards)
        if self.add_people:
            self._add_mentioned([request.prompt, request.negative, request.toward])
        return explain(self.bundle, request, choices=choices)

    def _request(self, prompt: str, options: GenerationOptions) -> Request:
        seed = options.get("seed")
        return Request(
            prompt,
            options.get("negative_prompt", ""),
            random_seed() if seed is None else seed,
            _positive("steps", options.get("steps")),
            options.get("guidance_scale"),
            options.get("sampler") or "",
            _positive("width", options.get("width")),
            _positive("height", options.get("height")),
            likeness=as_likeness(options.get("likeness")),
            layout=normalize_layout(options.get("layout") or ""),
            syntax=PLAIN if options.get("plain_prompt") else WEIGHTED,
        )

    def _wildcards(self, options: GenerationOptions) -> Path:
        return wildcard_folder(self.library, options.get("wildcards"))

    def reproduce(
        self, path: Path | str, *, init_image: Path | str | None = None, progress: ProgressCallback = ignore_progress
    ) -> PipelineOutput:
        """Draw an image again from the recipe in its file.

        Args:
            path: A PNG, JPEG or WebP with a recipe of celebctl, the Stable Diffusion web UI or InvokeAI.
            init_image: The image it started from, where the recipe has one.
            progress: As for `__call__`.

        Raises:
            NotFoundError: A file or a person is missing.
            InvalidInputError: The file has no recipe, or one that celebctl cannot draw.
        """
        request, record = read_request(Path(path))
        self.add_recorded_people(record)
        strength = request.strength if request.source else None
        (request,), init_images = make_requests(request, 1, init_image, strength)
        return PipelineOutput.of(self.generate([request], init_images=init_images, progress=progress))

    def generate(
        self,
        requests: Sequence[Request],
        *,
        init_images: Sequence[InitImage] = (),
        overrides: Sequence[Identity] = (),
        progress: ProgressCallback = ignore_progress,
    ) -> list[GeneratedImage]:
        """Draw one image per request, in order; the low-level form of `__call__`.

        `overrides` are identities for this call only; they are not added to the bundle. Raises as `__call__`.
        """
        texts = (text for one in requests for text in (one.prompt, one.negative, one.toward))
        prompts = list(dict.fromkeys(texts))
        if self.add_people and not overrides:
            self._add_mentioned(prompts)
        return generate(self.bundle, self.backend, requests, progress, init_images=init_images, overrides=overrides)

    def batches(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """`requests` in groups as large as the engine draws at once."""
        size = self.backend.batch_limit
        return (requests[start : start + size] for start in range(0, len(requests), size))

    def add_recorded_people(self, record: Mapping[str, Any]) -> None:
        """Add the people of an image's record to the bundle, with the embeddings they had where these still exist."""
        entries = {entry.name: entry for entry in self.library.entries(model_key_of(self.bundle))}
        for name, digest in dict(record.get("identities", {})).items():
            stored = self.bundle.manifest.identities.get(name)
            if stored is not None and stored.digest == digest:
                continue
            known = entries[name].load() if name in entries else None
            if known is not None and (stored is None or known.digest == digest):
                add_people(self.bundle, [known])
            if known is None or known.digest != digest:
                _log.warning("%s has changed since this image was drawn", name)

    def _add_mentioned(self, prompts: Sequence[str]) -> None:
        if added := add_mentioned_people(self.bundle, self.library, prompts):
            _log.info("added to the bundle: %s", ", ".join(added))
        for name, model_key in people_of_other_models(self.bundle, self.library, prompts):
            difference = table_difference(self.library, model_key, self.bundle.vocabularies())
            _log.warning(
                "%s was learned for another model (%s); here it is an ordinary word%s",
                name, model_key, f" ({difference})" if difference else "",
            )  # fmt: skip


def make_requests(
    request: Request, count: int = 1, init_image: Image.Image | Path | str | None = None, strength: float | None = None
) -> tuple[list[Request], list[InitImage]]:
    """`count` requests with the seeds seed, seed + 1, ...; and the init image they share, if any.

    Raises UsageError when `count` or a seed is out of range, NotFoundError or InvalidInputError for the init image.
    """
    if not 1 <= count <= MAX_IMAGES:
        raise UsageError(
            f"the number of images is {count}", f"use 1 to {MAX_IMAGES}", reason="image_count", most=MAX_IMAGES
        )
    last = MAX_SEED - count + 1
    if not 0 <= request.seed <= last:
        raise UsageError(f"seed {request.seed} is out of range", f"use 0 to {last}", reason="seed_range", last=last)
    if init_image is None:
        return list(batch(request if strength is None else replace(request, strength=strength), count)), []
    image = _read_init_image(init_image)
    changed = DEFAULT_STRENGTH if strength is None else strength
    return list(batch(replace(request, source=image.digest, strength=changed), count)), [image]


def wildcard_folder(library: Library, folder: Path | str | None = None) -> Path:
    """The folder with the files of wildcards: `folder`, or "wildcards" in the library."""
    return library.root / "wildcards" if folder is None else Path(folder).expanduser()


def find_source_bundle(library: Library, record: Mapping[str, Any]) -> Bundle:
    """The library's bundle that drew an image, or else another bundle of the same model.

    Args:
        library: Where to look.
        record: The image's record (`read_request`).

    Raises:
        NotFoundError: There is no bundle of the model.
    """
    for path in library.bundles():
        bundle = Bundle.open(path, verify="none")
        if bundle.manifest.fingerprint == record.get("bundle"):
            bundle.verify("quick")
            return bundle
    model = str(record.get("model", ""))
    path = find_bundle(library, model)
    if path is None:
        raise no_bundle(model)
    _log.warning("the bundle that drew this image is gone; using another bundle of %s", model)
    return Bundle.open(path, verify="quick")


def no_bundle(model: str) -> NotFoundError:
    """The error for a model without a bundle in the library."""
    return NotFoundError(
        f"there is no bundle of {model}", "export one: Model.load(...).export(path)", reason="no_bundle", model=model
    )


def random_seed() -> int:
    """A random seed of 32 bits, short enough to type."""
    return secrets.randbelow(2**32)


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    """Whether two images are equal in size and in every RGB value."""
    return one.size == other.size and np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))


def changed_since(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records: equal pixels are promised for equal records only."""
    names = {"bundle": "bundle", "backend": "engine", "identities": "people", "dtype": "precision"}
    return [name for key, name in names.items() if then.get(key) != now.get(key)]


def as_likeness(likeness: Likeness | Mapping[str, float] | None) -> Likeness:
    """The runtime's form of a likeness: a number, or (name, number) pairs."""
    if likeness is None:
        return FULL_LIKENESS
    return tuple(likeness.items()) if isinstance(likeness, Mapping) else likeness


def _positive(name: str, value: int | None) -> int:
    """`value`, or the runtime's 0 for None: the default of the model. Raises UsageError below 1."""
    if value is not None and value < 1:
        raise UsageError(f"{name} {value} is out of range", "use 1 or more")
    return value or 0


def _read_init_image(image: Image.Image | Path | str) -> InitImage:
    if not isinstance(image, Image.Image):
        return InitImage.read(image)
    rgb = to_rgb(image)
    return InitImage(rgb, hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest())
