"""Draw images of learned people from an exported bundle, with numpy and ONNX Runtime or TensorRT; no torch.

`Pipeline` is the Python counterpart of `celebctl gen` and `celebctl regen`.
"""

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
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
from celebctl.drawn_faces import DrawnFaces, open_drawn_faces, wants_faces
from celebctl.jobs.axes import Axis, parse_axis
from celebctl.jobs.job_file import jobs_of, read_job_file
from celebctl.jobs.run import JobResult, RunOptions, RunReport, run_jobs
from celebctl.library import Library
from celebctl.prompt_grid import GridOptions, PromptGrid, draw_grid
from celebctl_runtime.backends.select import choose_backend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import FILE_NAME
from celebctl_runtime.credentials import Ingredient
from celebctl_runtime.errors import CelebctlError, InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.explain import Explanation, explain
from celebctl_runtime.identity import Identity
from celebctl_runtime.paths import expanded
from celebctl_runtime.picture import (
    WATERMARKED,
    EncodingOptions,
    GeneratedImage,
    Marks,
    read_request,
    save_image,
    with_ingredients,
)
from celebctl_runtime.pipeline import complete, generate
from celebctl_runtime.progress import ProgressCallback, ignore_progress
from celebctl_runtime.prompting.layout import AUTO, normalize_layout
from celebctl_runtime.prompting.likeness import FULL_LIKENESS, Likeness
from celebctl_runtime.prompting.prompt_schedule import schedule_prompt
from celebctl_runtime.prompting.weights import PLAIN, WEIGHTED, uses_syntax
from celebctl_runtime.prompting.wildcards import expand_request
from celebctl_runtime.request import (
    DEFAULT_HIRES_STRENGTH,
    DEFAULT_THRESHOLD,
    MAX_SEED,
    MAX_STEPS,
    REFINE_STRENGTH,
    Request,
    batch,
)
from celebctl_runtime.sampling.init_image import DEFAULT_STRENGTH, InitImage, Mask

MASKED_STRENGTH, EDIT_STRENGTH = 1.0, 0.8
MAX_IMAGES = 10_000  # of one call
MAX_BEST_OF = 100
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
        strength: With `init_image`, how much may change: above 0, at most 1. Default 0.6; with a mask 1.
        mask_image: With `init_image`, what may change is white here, the rest black (inpainting): an image of greys
            with the size or the proportions of `init_image`, or its file. Default: the transparent parts of
            `init_image`, if it has any.
        mask_blur: Pixels inside the mask's edge over which the change fades in, 0 to 128. Default: 1/128 of the
            shorter side, at least 1.
        mask_invert: Keep what is white and change what is black.
        hires: Size of a second pass, in which the image is enlarged and drawn again: a factor, as "2x", or "WxH".
        hires_strength: How much the second pass may change: above 0, at most 1. Default 0.5.
        refine_faces: Draw the small faces of the prompt's people again, each at the model's native size.
        refine_strength: With `refine_faces`, how much of a face may change: above 0, at most 1. Default 0.2.
        best_of: Draw so many images, 1 to 100, for each one that is returned: the one whose people are most like
            images of them alone. Image k of `num_images` is chosen from the seeds seed + k * best_of and following.
        plain_prompt: Brackets, BREAK and wildcards in the prompts are plain text, and long prompts are cut.
        wildcards: Folder with the files of `__name__`; None: that of the pipeline, "wildcards" in its library.
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
    mask_image: Image.Image | Path | str | None
    mask_blur: int | None
    mask_invert: bool
    hires: str | None
    hires_strength: float | None
    refine_faces: bool
    refine_strength: float | None
    best_of: int
    plain_prompt: bool
    wildcards: Path | str | None


class EditOptions(TypedDict, total=False):
    """What `Pipeline.edit` may change; None, or leaving it out, is the default.

    Attributes:
        was: What the image shows, as a prompt. Default: the prompt of its recipe; "" without one.
        threshold: Above 0, at most 1: how different the predictions for both prompts have to be where the image is
            changed, relative to the largest difference or to three times the mean; larger changes less. Default 0.5.
        strength: How much may change inside the mask: above 0, at most 1. Default 0.8.
        mask_blur: As in `GenerationOptions`, as are the following.
        negative_prompt: What not to draw.
        seed: Of the noise.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance.
        sampler: A name in `celebctl_runtime.SAMPLERS`.
        width: Pixels. Default: of the image's recipe, else of the model.
        height: The same.
        likeness: From 0 (the average celebrity) to 1 (as learned).
    """

    was: str | None
    threshold: float | None
    strength: float | None
    mask_blur: int | None
    negative_prompt: str
    seed: int | None
    steps: int | None
    guidance_scale: float | None
    sampler: str | None
    width: int | None
    height: int | None
    likeness: Likeness | Mapping[str, float] | None


class RefinementFields(TypedDict):
    """The fields of a `Request` that are about faces."""

    refine_faces: str
    refine_strength: float


@dataclass(frozen=True, eq=False)
class PipelineOutput:
    """The images of one call, in the order of their seeds.

    Attributes:
        images: RGB images of the size the model draws, in pixels.
        requests: For each image the complete request, with every default filled in.
        records: For each image what drew it: model, bundle, engine, versions, digests of the people.
        masks: For each image where its init image was changed, mode "L", 255 is drawn; None without a mask.
        ingredients: For each image the files that it was drawn from, for its content credentials.
    """

    images: list[Image.Image]
    requests: list[Request]
    records: list[Mapping[str, Any]]
    masks: list[Image.Image | None] = field(default_factory=list[Image.Image | None])
    ingredients: list[Sequence[Ingredient]] = field(default_factory=list[Sequence[Ingredient]])

    @classmethod
    def of(cls, generated: Sequence[GeneratedImage]) -> "PipelineOutput":
        """Collect the images of the runtime."""
        images, masks = [g.image for g in generated], [g.mask for g in generated]
        ingredients = [g.ingredients for g in generated]
        return cls(images, [g.request for g in generated], [g.record for g in generated], masks, ingredients)

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
        sources = self.ingredients or [()] * len(self.images)
        for image, request, record, source in zip(self.images, self.requests, self.records, sources, strict=True):
            file = path.with_stem(f"{path.stem}-{request.seed}") if many else path
            generated = GeneratedImage(image, request, record, source)
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
        face_models: str | None = None,
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
            face_models: For `refine_faces` and `best_of`: a pack ("buffalo_l", "antelopev2", "yunet_sface") or a
                folder; None: the model's own, else "buffalo_l".

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
        self._face_models = face_models
        self.wildcards = wildcard_folder(self.library)
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
        source = options.get("init_image"), options.get("strength"), options.get("mask_image")
        best_of = options.get("best_of", 1)
        requests, init_images = make_requests(request, num_images, *source, best_of)
        requests = [expand_request(one, folder)[0] for one in requests]
        if best_of > 1:
            return PipelineOutput.of([self.generate_best(r, best_of, init_images, progress) for r in requests])
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
        source = options.get("init_image"), options.get("strength"), options.get("mask_image")
        (request,), _ = make_requests(request, 1, *source)
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
            mask_blur=options.get("mask_blur"),
            mask_invert=options.get("mask_invert", False),
            hires=options.get("hires") or "",
            hires_strength=_number(options.get("hires_strength"), DEFAULT_HIRES_STRENGTH),
            **refinement(options.get("refine_faces", False), options.get("refine_strength")),
            syntax=PLAIN if options.get("plain_prompt") else WEIGHTED,
        )

    def _wildcards(self, options: GenerationOptions) -> Path:
        folder = options.get("wildcards")
        return self.wildcards if folder is None else wildcard_folder(self.library, folder)

    def edit(
        self,
        image: Image.Image | Path | str,
        prompt: str,
        *,
        progress: ProgressCallback = ignore_progress,
        **options: Unpack[EditOptions],
    ) -> PipelineOutput:
        """Change an image where a new prompt differs from what it shows, and keep the rest (DiffEdit).

        Args:
            image: The image, or its file.
            prompt: What the image should show.
            progress: As for `__call__`.
            options: See `EditOptions`.

        Returns:
            The changed image, with the mask that was found.

        Raises:
            UsageError: A value is out of range, or both prompts say the same.
            NotFoundError: A file or a person is missing.

        Example:
            >>> from celebctl.pipeline import Pipeline
            >>> pipe = Pipeline(bundle_path, device="cpu")
            >>> before = pipe("alice on the beach", seed=7, steps=4)
            >>> after = pipe.edit(before.images[0], "alice in the snow", was="alice on the beach")  # doctest: +SKIP
            >>> after.requests[0].was, after.masks[0].size == after.images[0].size  # doctest: +SKIP
            ('alice on the beach', True)
        """
        request, source, record = edit_request(image, prompt, options)
        self.add_recorded_people(record)
        return PipelineOutput.of(self.generate([request], init_images=[source], progress=progress))

    def reproduce(
        self,
        path: Path | str,
        *,
        init_image: Path | str | None = None,
        mask_image: Path | str | None = None,
        progress: ProgressCallback = ignore_progress,
    ) -> PipelineOutput:
        """Draw an image again from the recipe in its file.

        Args:
            path: A PNG, JPEG or WebP with a recipe of celebctl, the Stable Diffusion web UI or InvokeAI.
            init_image: The image it started from, where the recipe has one.
            mask_image: Its mask, where the recipe has one that is not in the image it started from.
            progress: As for `__call__`.

        Raises:
            NotFoundError: A file or a person is missing.
            InvalidInputError: The file has no recipe, or one that celebctl cannot draw.
            UsageError: The recipe has another init image or mask.
        """
        request, record = read_request(Path(path))
        self.add_recorded_people(record)
        strength = request.strength if request.source else None
        (request,), init_images = make_requests(request, 1, init_image, strength, mask_image)
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
        if self.add_people and not overrides:
            self._add_mentioned(_prompts(requests))
        if any(map(wants_faces, requests)):
            return self._generate_refined(requests, init_images, overrides, progress)
        return self._generate(requests, init_images, overrides, progress)

    def _generate(
        self,
        requests: Sequence[Request],
        init_images: Sequence[InitImage],
        overrides: Sequence[Identity],
        progress: ProgressCallback,
    ) -> list[GeneratedImage]:
        """`generate` for requests whose people are in the bundle and whose faces need not be found."""
        images = generate(self.bundle, self.backend, requests, progress, init_images=init_images, overrides=overrides)
        return with_ingredients(images, init_images)

    def run(
        self,
        jobs: Path | str | Iterable[str | Mapping[str, Any]],
        folder: Path | str,
        *,
        progress: ProgressCallback = ignore_progress,
        finished: Callable[[JobResult], object] = lambda _: None,
        **options: Unpack[RunOptions],
    ) -> RunReport:
        """Draw many images into a folder. Called again with the same arguments, it draws what is missing.

        Args:
            jobs: A job file (plain lines, JSONL or CSV), or its lines: prompts, and mappings of a prompt and settings
                with the keys of `celebctl.jobs.job_file.FIELDS`.
            folder: Where the PNG files and the journal go; created when missing.
            progress: Called with the images done and their total, and the metrics "images_per_minute" and
                "seconds_left".
            finished: Called once for each image: for kept ones at once, then for the others in order.
            options: See `celebctl.jobs.run.RunOptions`.

        Returns:
            What became of every image; failures of single images do not raise.

        Raises:
            UsageError: A line is invalid, or a file is there that holds another image; nothing was drawn.
            NotFoundError: There is no such job file.
            BusyError: Another process draws into the folder.
            SetupError: The folder cannot be written.

        Example:
            ```python
            pipeline = Pipeline("mini")
            jobs = [{"prompt": "alice smiling", "seed": 7, "count": 4}, "alice on the beach"]
            for image in pipeline.run(jobs, "images").images:
                print(image.path, image.status)
            ```
        """
        read = read_job_file(Path(jobs)) if isinstance(jobs, Path | str) else jobs_of(jobs)
        return run_jobs(self, read, Path(folder), progress=progress, finished=finished, **options)

    def grid(
        self,
        prompt: str,
        x: Axis | str,
        y: Axis | str | None = None,
        *,
        folder: Path | str | None = None,
        overwrite: bool = False,
        progress: ProgressCallback = ignore_progress,
        **settings: Any,
    ) -> PromptGrid:
        """Draw a prompt with settings that vary along one or two axes, up to 100 images.

        Args:
            prompt: Text with names of people; {person} where an axis of people puts them.
            x: What varies along a row, as "seed=1,2,3" or as an Axis: seed, steps, guidance, likeness, strength,
                sampler, person, or text, whose values replace the first of them in the prompt.
            y: What varies from row to row.
            folder: Keeps the single images; those that are there are not drawn again.
            overwrite: Replace other images in `folder`.
            progress: As for `run`.
            settings: What all images have: keys of `celebctl.jobs.job_file.FIELDS`. Without a seed, that of the folder
                or a random one. Besides, `marks` and `checker` as for `run`.

        Raises:
            UsageError: An axis or a value does not fit; nothing was drawn.

        Example:
            ```python
            grid = Pipeline("mini").grid("{person} on the beach", "seed=1,2,3", "person=alice,bob", steps=20)
            grid.save(Path("grid.png"))
            ```
        """
        axes = [parse_axis(axis) if isinstance(axis, str) else axis for axis in (x, y) if axis is not None]
        place = None if folder is None else Path(folder)
        saving: GridOptions = {"overwrite": overwrite, "marks": settings.pop("marks", WATERMARKED)}
        saving["checker"] = settings.pop("checker", None)
        settings = {**settings, "prompt": prompt}
        return draw_grid(self, settings, axes, folder=place, progress=progress, **saving)

    def complete(self, requests: Sequence[Request]) -> list[Request | CelebctlError]:
        """For each request the complete one that `generate` would run, or the error that it would raise.

        People of the library who are named in the prompts are added to the bundle, as when drawing.
        """
        errors: dict[int, CelebctlError] = {}
        if self.add_people:
            try:
                self._add_mentioned(_prompts(requests))
            except CelebctlError:  # of one request or more
                for index, request in enumerate(requests):
                    try:
                        add_mentioned_people(self.bundle, self.library, _prompts([request]))
                    except CelebctlError as error:
                        errors[index] = error
        return [errors.get(index, one) for index, one in enumerate(complete(self.bundle, self.backend, requests))]

    def generate_best(
        self,
        request: Request,
        count: int,
        init_images: Sequence[InitImage] = (),
        progress: ProgressCallback = ignore_progress,
    ) -> GeneratedImage:
        """Of images with the seeds seed to seed + count - 1, the one whose people are most like images of them alone.

        The request of the result has its seed; its record has "best_of": number of images, face models and mean cosine.
        Faces are drawn again in this image only. Raises as `__call__`.
        """
        if self.add_people:
            self._add_mentioned(_prompts([request]))
        self.drawn_faces.check([request])
        faces = "" if wants_faces(request) else request.refine_faces
        candidates = batch(replace(request, refine_faces=faces), count)
        images = self._generate(candidates, init_images, (), progress)
        best = self.drawn_faces.best(images)
        return self.drawn_faces.refine([best], progress)[0] if wants_faces(request) else best

    @cached_property
    def drawn_faces(self) -> DrawnFaces:
        """Finds people in the images drawn. Raises NotFoundError, PolicyError or SetupError without face models."""
        return open_drawn_faces(self.bundle, self.backend, self._face_models, self.library)

    def _generate_refined(
        self,
        requests: Sequence[Request],
        init_images: Sequence[InitImage],
        overrides: Sequence[Identity],
        progress: ProgressCallback,
    ) -> list[GeneratedImage]:
        """`generate` for requests of which some leave the faces to be found."""
        wanted = [wants_faces(request) for request in requests]
        plain = [
            replace(request, refine_faces="") if some else request
            for request, some in zip(requests, wanted, strict=True)
        ]
        self.drawn_faces.check([request for request, some in zip(requests, wanted, strict=True) if some], overrides)
        images = self._generate(plain, init_images, overrides, progress)
        found = [image for image, some in zip(images, wanted, strict=True) if some]
        refined = iter(self.drawn_faces.refine(found, progress, overrides))
        return [next(refined) if some else image for image, some in zip(images, wanted, strict=True)]

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
    request: Request,
    count: int = 1,
    init_image: Image.Image | Path | str | None = None,
    strength: float | None = None,
    mask: Image.Image | Path | str | None = None,
    best_of: int = 1,
) -> tuple[list[Request], list[InitImage]]:
    """`count` requests with the seeds seed, seed + best_of, ...; the init image with the mask they share, if any.

    A request that already has an init image, from a recipe, takes no other one.

    Raises:
        UsageError: `count`, `best_of` or a seed is out of range, the recipe has another init image or mask, or the mask
            has no init image or not its proportions.
        NotFoundError: There is no such file.
        InvalidInputError: A file is no image or no mask.
    """
    if not 1 <= count <= MAX_IMAGES:
        raise UsageError(
            f"the number of images is {count}", f"use 1 to {MAX_IMAGES}", reason="image_count", most=MAX_IMAGES
        )
    if not 1 <= best_of <= MAX_BEST_OF:
        raise UsageError(
            f"each image would be chosen from {best_of}", f"use 1 to {MAX_BEST_OF}",
            reason="best_of_range", most=MAX_BEST_OF,
        )  # fmt: skip
    last = MAX_SEED - count * best_of + 1
    if not 0 <= request.seed <= last:
        raise UsageError(f"seed {request.seed} is out of range", f"use 0 to {last}", reason="seed_range", last=last)
    if init_image is None:
        if mask is not None:
            raise UsageError("a mask needs an init image", "give an init image", reason="mask_without_image")
        request = request if strength is None else replace(request, strength=strength)
        return list(batch(request, count * best_of)[::best_of]), []
    image = _read_init_image(init_image)
    if mask is not None:
        image = image.with_mask(_read_mask(mask))
    elif image.mask is not None and not request.source:
        _log.info("the transparent parts of the init image are its mask")
    digests = {"source": image.digest, "mask": "" if image.mask is None else image.mask.digest}
    if request.source:
        _check_digests(request, digests)
        return list(batch(request, count * best_of)[::best_of]), [image]
    default = DEFAULT_STRENGTH if image.mask is None else MASKED_STRENGTH
    request = replace(request, **digests, strength=default if strength is None else strength)
    return list(batch(request, count * best_of)[::best_of]), [image]


def refinement(refine_faces: bool, strength: float | None) -> RefinementFields:
    """The fields of a request for whether to find and draw faces again, and at which strength.

    Raises UsageError for a strength without faces.
    """
    if strength is not None and not refine_faces:
        raise UsageError(
            f"a strength of {strength:g} for faces needs faces to be refined", "leave it out, or refine the faces",
            reason="refine_strength_alone",
        )  # fmt: skip
    changed = REFINE_STRENGTH if strength is None else strength
    return {"refine_faces": AUTO if refine_faces else "", "refine_strength": changed}


def edit_request(
    image: Image.Image | Path | str, prompt: str, options: EditOptions
) -> tuple[Request, InitImage, dict[str, Any]]:
    """The request of `Pipeline.edit`, its init image, and the record in the image's recipe, {} without one.

    Raises NotFoundError and InvalidInputError for the image, UsageError for numbers below 1.
    """
    source, recipe, record = _read_init_image(image), None, dict[str, Any]()
    if not isinstance(image, Image.Image):
        try:
            recipe, record = read_request(Path(image))
        except InvalidInputError:
            _log.info("%s has no recipe", image)
    was, seed, size = options.get("was"), options.get("seed"), (0, 0) if recipe is None else recipe.size
    syntax = WEIGHTED
    if was is None:
        was, syntax = ("", WEIGHTED) if recipe is None else _shown(recipe)
    request = Request(
        prompt,
        options.get("negative_prompt", ""),
        random_seed() if seed is None else seed,
        _positive("steps", options.get("steps")),
        options.get("guidance_scale"),
        options.get("sampler") or "",
        _positive("width", options.get("width")) or size[0],
        _positive("height", options.get("height")) or size[1],
        source=source.digest,
        strength=_number(options.get("strength"), EDIT_STRENGTH),
        likeness=as_likeness(options.get("likeness")),
        mask_blur=options.get("mask_blur"),
        was=was,
        threshold=_number(options.get("threshold"), DEFAULT_THRESHOLD),
        syntax=syntax,
    )
    return request, source, record


def _shown(recipe: Request) -> tuple[str, str]:
    """The prompt of the last step of a recipe, and the syntax in which it means the same as there."""
    if recipe.syntax == WEIGHTED:
        return schedule_prompt(recipe.prompt, recipe.steps - recipe.skipped or MAX_STEPS)[-1][1], WEIGHTED
    return recipe.prompt, PLAIN if uses_syntax(recipe.prompt) else WEIGHTED


def _check_digests(request: Request, digests: Mapping[str, str]) -> None:
    """Raise UsageError when the files are not those of a recipe; a mask that the recipe does not use is ignored."""
    wanted = {"source": request.source, "mask": request.mask}
    for name, label in (("source", "init image"), ("mask", "mask")):
        if wanted[name] and digests[name] and digests[name] != wanted[name]:
            raise UsageError(
                f"the recipe has another {label}, with the SHA-256 {wanted[name][:12]}...",
                f"give the {label} that the image was drawn with",
                reason=f"other_{'init_image' if name == 'source' else 'mask'}",
            )


def wildcard_folder(library: Library, folder: Path | str | None = None) -> Path:
    """The folder with the files of wildcards: `folder`, or "wildcards" in the library."""
    return library.root / "wildcards" if folder is None else expanded(folder)


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


def _prompts(requests: Sequence[Request]) -> list[str]:
    texts = (
        text for request in requests for text in (request.prompt, request.negative, request.was or "", request.toward)
    )
    return list(dict.fromkeys(texts))


def _positive(name: str, value: int | None) -> int:
    """`value`, or the runtime's 0 for None: the default of the model. Raises UsageError below 1."""
    if value is not None and value < 1:
        raise UsageError(f"{name} {value} is out of range", "use 1 or more")
    return value or 0


def _number(value: float | None, default: float) -> float:
    return default if value is None else value


def _read_init_image(image: Image.Image | Path | str) -> InitImage:
    return InitImage.of(image) if isinstance(image, Image.Image) else InitImage.read(Path(image))


def _read_mask(mask: Image.Image | Path | str) -> Mask:
    return Mask.of(mask) if isinstance(mask, Image.Image) else Mask.read(Path(mask))
