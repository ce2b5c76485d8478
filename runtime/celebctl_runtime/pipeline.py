"""Generate images from requests.

tokenize -> encode -> draw noise -> N steps -> decode -> image with its record. This module does not know which engine
runs the graphs, how a sampler works, or where images are saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from . import __version__
from .backends.base import (
    Backend,
    Conditioning,
    Encodings,
    StepProgress,
    SupportsFullDenoise,
    SupportsImageEncode,
)
from .bundle.bundle import Bundle
from .bundle.overrides import PromptPeople
from .diffedit import DRAWS, difference_mask, differences, invert, without_negative
from .encoded_request import EncodedRequest, RequestPrompts
from .errors import BusyError, CelebctlError, InvalidInputError, NotFoundError, SetupError, UsageError
from .face_redrawing import blend_faces, crop_request, regions_of
from .picture import GeneratedImage, to_image
from .preview import latent_to_rgb
from .progress import Progress, ProgressCallback, ignore_progress
from .prompting.layout import Region, layout_text, parse_layout, region_masks
from .prompting.weights import emphasize
from .request import Request, resolve, second_pass
from .sampling.init_image import InitImage
from .sampling.inpainting import Inpainting, noised
from .sampling.noise import initial_noise, mask_noise, step_noise
from .sampling.samplers import StepTable, inversion_table, step_table

if TYPE_CHECKING:
    from .bundle.manifest import Manifest
    from .identity import Identity
    from .prompting.tokenizer import PromptWindows
    from .sampling.schedule import ScheduleConfig

_MAX_ATTEMPTS = 5


def generate(
    bundle: Bundle,
    backend: Backend,
    requests: Request | Sequence[Request],
    progress: ProgressCallback = ignore_progress,
    init_images: Iterable[InitImage] = (),
    overrides: Sequence[Identity] = (),
) -> list[GeneratedImage]:
    """Generate one image per request, in order.

    Neighbouring requests that differ only in prompt and seed, with prompts of as many windows that change at the same
    steps, run as one batch; the batch does not change the images.

    Args:
        bundle: The bundle to draw with.
        backend: The engine that runs its graphs.
        requests: What to generate.
        progress: Called after every step with stage "denoising", the steps finished and their total over all images,
            the metric ``images_done``, and a preview where bundle and engine can give one.
        init_images: The images that requests refer to by :attr:`Request.source`, with the masks that they refer to by
            :attr:`Request.mask`.
        overrides: People who may be named in this call besides those in the bundle, or instead of one of that name.

    Raises:
        UsageError: For values the model does not allow; while drawing, for an edit that changes nothing.
        NotFoundError: For people the bundle does not have, or an init image or mask that was not given.
        InvalidInputError: For a mask that changes nothing or everything.
        SetupError: When the bundle or the engine does not support what a request needs.
        BusyError: When other processes keep changing the bundle.

    All others but the last are raised before anything is drawn.
    """
    bundle.refresh()
    requests = [requests] if isinstance(requests, Request) else requests
    prompts = RequestPrompts(bundle, [resolve(request, bundle.manifest) for request in requests], overrides)
    sources = list(init_images)
    for index, request in enumerate(prompts.requests):  # all errors come before the first image
        _check_source(bundle, backend, request, sources)
        prompts.overrides([prompts.encoded(index)])
    second = [second_pass(request, "") for request in prompts.requests if request.hires]
    created = [_Batch.create(bundle, prompts, indices) for indices in _batches(prompts, backend.batch_limit)]
    total = sum(len(batch.requests) * batch.evaluations for batch in created)
    total += sum(each.steps - each.skipped for each in second)
    counter = _StepCounter(progress, total, bundle.manifest.latent_rgb)
    images: list[GeneratedImage] = []
    for batch in created:
        encoded, conditionings = _encode(bundle, backend, prompts, batch)
        report = counter.start(batch, len(images))
        state, inpainting = _first_state(backend, batch, sources, conditionings[0], report)
        by_step = _by_step(encoded[0].timeline, [part[: 1 + len(batch.regions)] for part in conditionings])
        latent = _denoise(backend, batch, state, by_step, report, inpainting)
        pixels, record = backend.decode(latent), _record(bundle, backend)
        if inpainting is not None:
            pixels = inpainting.paste(pixels)
        masks = [None] * len(pixels) if inpainting is None else map(to_image, inpainting.masks)
        for image, each, mask in zip(pixels, encoded, masks, strict=True):
            images.append(replace(_image(image, each, prompts.people, record), mask=mask))
    images = _second_passes(bundle, backend, images, counter.rest(), overrides)
    return redraw_faces(bundle, backend, images, progress, overrides)


def _second_passes(
    bundle: Bundle,
    backend: Backend,
    images: Sequence[GeneratedImage],
    progress: ProgressCallback,
    overrides: Sequence[Identity],
) -> list[GeneratedImage]:
    """The images; those whose requests have a second pass enlarged and drawn again."""
    first = [image for image in images if image.request.hires]
    if not first:
        return list(images)
    sources = [InitImage.of(image.image) for image in first]
    requests = [second_pass(image.request, source.digest) for image, source in zip(first, sources, strict=True)]
    again = iter(generate(bundle, backend, requests, progress, sources, overrides))
    return [  # the record of the first pass names all people: fewer may be left in the steps of the second
        replace(next(again), request=image.request, record=image.record) if image.request.hires else image
        for image in images
    ]


def redraw_faces(
    bundle: Bundle,
    backend: Backend,
    images: Sequence[GeneratedImage],
    progress: ProgressCallback = ignore_progress,
    overrides: Sequence[Identity] = (),
) -> list[GeneratedImage]:
    """The images with the faces that their requests list (:attr:`Request.refine_faces`) drawn again; others unchanged.

    The crops of all images run together. :func:`generate` does this itself. Arguments and errors are those of
    :func:`generate`.
    """
    height, width = bundle.manifest.size.native
    regions = [regions_of(image.request) for image in images]
    crops = [
        crop_request(image, region, (width, height))
        for image, faces in zip(images, regions, strict=True)
        for region in faces
    ]
    if not crops:
        return list(images)
    requests = [request for request, _ in crops]
    drawn = iter(generate(bundle, backend, requests, progress, [source for _, source in crops], overrides))
    return [
        replace(image, image=blend_faces(image.image, faces, [next(drawn).image for _ in faces])) if faces else image
        for image, faces in zip(images, regions, strict=True)
    ]


def complete(bundle: Bundle, backend: Backend, requests: Sequence[Request]) -> list[Request | CelebctlError]:
    """Check requests as :func:`generate` does, without drawing; init images are taken to be there.

    Returns:
        For each request either the complete request, with every default filled in and its people named, or the error
        that :func:`generate` would raise for it.

    Example:
        Two requests, of which the second has too many steps::

            complete(bundle, backend, [Request("alice"), Request("alice", steps=5000)])  # [Request, UsageError]
    """
    bundle.refresh()
    prompts = RequestPrompts(bundle, requests, ())
    checked: list[Request | CelebctlError] = []
    for index, request in enumerate(requests):
        try:
            prompts.requests[index] = resolve(request, bundle.manifest)
            _check_source(bundle, backend, request, None)
            encoded = prompts.encoded(index)
            prompts.overrides([encoded])
            checked.append(encoded.request)
        except CelebctlError as error:
            checked.append(error)
    return checked


def batches(requests: Sequence[Request], limit: int) -> Iterator[list[int]]:
    """Indices of neighbouring requests that :func:`generate` runs together, at most ``limit`` at once.

    Args:
        requests: Complete requests (:func:`complete`).
        limit: The backend's ``batch_limit``.
    """
    return _grouped([_batch_key(request) for request in requests], limit)


def _batches(prompts: RequestPrompts, limit: int) -> Iterator[list[int]]:
    """As :func:`batches`; prompts of one batch have as many windows, and change at the same steps."""
    encoded = map(prompts.encoded, range(len(prompts)))
    return _grouped([(*_batch_key(one.request), one.timeline, one.windows) for one in encoded], limit)


def _grouped(keys: Sequence[tuple[object, ...]], limit: int) -> Iterator[list[int]]:
    """Indices of neighbours with equal keys, at most ``limit`` at once."""
    indices: list[int] = []
    for index, key in enumerate(keys):
        if indices and (len(indices) == limit or keys[indices[0]] != key):
            yield indices
            indices = []
        indices.append(index)
    if indices:
        yield indices


@dataclass(frozen=True, eq=False)
class _Batch:
    """Requests that run together. ``shape``: (C, h, w) of a latent; ``regions``: of the layout that all have."""

    indices: Sequence[int]
    requests: Sequence[Request]
    schedule: ScheduleConfig
    steps: StepTable
    shape: tuple[int, int, int]
    regions: Sequence[Region]

    @classmethod
    def create(cls, bundle: Bundle, prompts: RequestPrompts, indices: Sequence[int]) -> _Batch:
        requests, size = [prompts.requests[index] for index in indices], bundle.manifest.size
        first = requests[0]
        schedule = bundle.schedule.for_image(first.height * first.width // size.multiple**2)
        steps = step_table(first.sampler, schedule, first.steps, first.guidance or 0.0, first.skipped)
        shape = (size.latent_channels, first.height // size.vae_factor, first.width // size.vae_factor)
        return cls(indices, requests, schedule, steps, shape, parse_layout(first.layout))

    @property
    def preparation(self) -> int:
        """Evaluations of the network per image before the first step: what an edit needs to find mask and noise."""
        if self.requests[0].was is None:
            return 0
        return 2 * DRAWS + (0 if self.steps.uses_noise else self.steps.steps)

    @property
    def evaluations(self) -> int:
        """Of the network per image, for the progress; regions and guidance count as one."""
        return self.preparation + self.steps.steps

    @property
    def is_guided(self) -> bool:
        """Guidance of 1 is the plain prompt; diffusers does not guide below 1 either."""
        return (self.requests[0].guidance or 0.0) > 1.0

    def initial_noise(self) -> NDArray[np.float32]:
        return np.stack([initial_noise(request.seed, self.shape) for request in self.requests])

    def step_noise(self, index: int) -> NDArray[np.float32]:
        """Zeros for samplers that add no noise."""
        if not self.steps.uses_noise:
            return np.zeros((len(self.requests), *self.shape), np.float32)
        return np.stack([step_noise(request.seed, index, self.shape) for request in self.requests])


def _batch_key(request: Request) -> tuple[object, ...]:
    """What the images of one batch have in common, as far as their prompts need not be read."""
    sampling = request.width, request.height, request.steps, request.guidance, request.sampler
    init = bool(request.source), request.skipped, bool(request.mask), bool(request.toward)
    edit = request.was is not None and request.threshold
    return *sampling, *init, edit, request.likeness, layout_text(parse_layout(request.layout))


_StateReader = Callable[[], NDArray[np.float32]]


class _StepCounter:
    """Reports progress over all images of a call."""

    def __init__(self, progress: ProgressCallback, total: int, latent_rgb: Sequence[Sequence[float]]) -> None:
        self._progress, self._total, self._latent_rgb = progress, total, latent_rgb
        self._next = 0

    def start(self, batch: _Batch, images_done: int) -> Callable[[int, _StateReader | None], None]:
        """The callback for the steps of a batch: steps finished, below 0 before the first one; and what reads the state
        if the engine can.
        """
        before, count = self._next, len(batch.requests)
        self._next += count * batch.evaluations

        def report(step: int, read_state: _StateReader | None) -> None:
            metrics = {"images_done": float(images_done)}
            preview = partial(self._preview, read_state) if self._latent_rgb and read_state is not None else None
            done = before + (batch.preparation + step) * count
            self._progress(Progress("denoising", done, self._total, metrics, preview))

        return report

    def rest(self) -> ProgressCallback:
        """The callback of a call that draws the rest, after all batches were started."""
        return lambda event: self._progress(replace(event, step=self._next + event.step, total=self._total))

    def _preview(self, read_state: _StateReader) -> NDArray[np.uint8]:
        """The predicted clean latent, which is the second part of a state, in colours."""
        return latent_to_rgb(read_state()[1], self._latent_rgb)


def _source_of(request: Request, sources: Sequence[InitImage]) -> InitImage:
    """A request's init image, with its mask if it has one. Raises NotFoundError."""
    images = [image for image in sources if image.digest == request.source]
    if not images:
        raise NotFoundError(
            f"the init image {request.source[:12]} is missing", "pass it in init_images", reason="init_image_missing"
        )
    masked = [image for image in images if image.mask is not None and image.mask.digest == request.mask]
    if request.mask and not masked:
        problem = f"the mask {request.mask[:12]} is missing"
        raise NotFoundError(problem, "pass the init image with_mask", reason="mask_missing")
    return (masked or images)[0]


def _check_source(bundle: Bundle, backend: Backend, request: Request, sources: Sequence[InitImage] | None) -> None:
    """Raise for an init image or mask that is missing or unusable, for images that bundle or engine cannot encode, and
    for faces that have yet to be found.

    sources: None when they are taken to be there.
    """
    if request.source and sources is not None:
        image = _source_of(request, sources)
        if request.mask:
            _mask_weights(request, image)
    if regions_of(request) or request.source or request.hires:
        require_image_encoder(bundle, backend)


def require_image_encoder(bundle: Bundle, backend: Backend) -> None:
    """Raise SetupError when bundle or engine cannot encode images, as init images, second passes and faces need."""
    if "vae_encoder" not in bundle.manifest.graphs:
        raise SetupError(
            f"the bundle {bundle.path} has no image encoder", "export the bundle again", reason="no_image_encoder"
        )
    if not isinstance(backend, SupportsImageEncode):
        raise SetupError(
            "this engine has no image encoder", "use the device cpu or cuda", reason="engine_without_init_images"
        )


def _mask_weights(request: Request, image: InitImage) -> NDArray[np.float32]:
    """The mask at the size drawn, (height, width) in [0, 1]. Raises InvalidInputError when it is useless."""
    assert image.mask is not None  # as _source_of found it
    weights = image.mask.weights(request.width, request.height, request.mask_invert)
    if not weights.any():
        raise InvalidInputError(
            "the mask changes nothing", "paint white what may change, in the part that is drawn", reason="mask_empty"
        )
    if weights.min() == 1:
        raise InvalidInputError("the mask changes everything", "leave out the mask", reason="mask_full")
    return weights


def _encode(
    bundle: Bundle, backend: Backend, prompts: RequestPrompts, batch: _Batch
) -> tuple[list[EncodedRequest], list[list[Conditioning]]]:
    """The batch's encoded requests, and for each part of their timeline the conditionings: of the prompts, of each
    region of their layout, and for edits of the prompts of the init images.

    The manifest is checked again after encoding: if it is unchanged, so were the token rows (see bundle.py), otherwise
    the prompts are encoded again. Raises BusyError after several attempts, or when the bundle was exported anew.
    """
    for _ in range(_MAX_ATTEMPTS):
        encoded = [prompts.encoded(index) for index in batch.indices]
        is_guided = batch.is_guided and not bundle.manifest.guidance_is_embedded
        sets = [one for number in range(len(encoded[0].parts)) for one in _prompt_sets(encoded, number, is_guided)]
        overrides, distinct = prompts.overrides(encoded), len(encoded[0].parts) > 1 or encoded[0].windows > 1
        encode = partial(backend.encode, overrides=overrides) if overrides else backend.encode
        context, pooled = _encode_windows(bundle.manifest, sets, prompts.empty_window, encode, distinct)
        if bundle.is_current():
            zero = [bundle.manifest.zero_empty_prompt and not request.negative for request in batch.requests]
            sizes, count = _size_ids(bundle, batch.requests[0]), len(context) // len(encoded[0].parts)
            blends = [request.blend for request in batch.requests]
            second = sum(len(each.parts[0].toward) for each in encoded)
            by_part = [
                _conditionings(
                    batch,
                    _blend(context[start : start + count], second, blends),
                    None if pooled is None else _blend(pooled[start : start + count], second, blends),
                    np.array(zero) if is_guided else None,
                )
                for start in range(0, len(context), count)
            ]
            return encoded, [[replace(one, size_ids=sizes) for one in part] for part in by_part]
        fingerprint = bundle.manifest.fingerprint
        bundle.refresh()
        if bundle.manifest.fingerprint != fingerprint:
            break
    raise BusyError(f"the bundle {bundle.path} keeps changing", "try again", reason="bundle_busy", path=bundle.path)


def _prompt_sets(encoded: Sequence[EncodedRequest], number: int, is_guided: bool) -> list[PromptWindows]:
    """The prompts of part ``number``: (B negative prompts,) B prompts, B prompts of each region, and where there are
    second prompts as many of these: B, and B of each region.
    """
    parts = [each.parts[number] for each in encoded]
    prompts = [part.negative for part in parts] if is_guided else []
    prompts += [part.prompt for part in parts]
    for prompts_of_all in (
        (part.regions for part in parts),
        (part.was for part in parts),
        (part.toward for part in parts),
    ):
        prompts += [prompt for row in zip(*prompts_of_all, strict=True) for prompt in row]
    return prompts


def _encode_windows(
    manifest: Manifest,
    sets: Sequence[PromptWindows],
    empty: NDArray[np.int64],
    encode: Callable[[NDArray[np.int64]], Encodings],
    distinct: bool,
) -> Encodings:
    """Contexts (N, W * 77, D) and pooled (N, P) of N prompts: their windows are encoded one by one and joined.

    Shorter prompts are padded with the window ``empty``. The pooled encoding is that of the first window, as in the web
    UI. ``distinct``: encode equal windows once.
    """
    count = max(len(prompt.ids) for prompt in sets)
    ids = np.concatenate([part for one in sets for part in (one.ids, *[empty] * (count - len(one.ids)))])
    if distinct:
        rows, inverse = np.unique(ids, axis=0, return_inverse=True)
        context, pooled = encode(rows)
        context, pooled = context[inverse.ravel()], None if pooled is None else pooled[inverse.ravel()]
    else:
        context, pooled = encode(ids)
    weights = np.ones(ids.shape, np.float32)
    for number, prompt in enumerate(sets):
        weights[number * count : number * count + len(prompt.weights)] = prompt.weights
    if (weights != 1.0).any():
        # The web UI restores the mean of each text encoder of XL models, whose width is that of its token table.
        is_xl = "size_ids" in manifest.graphs["step"].inputs
        widths = [table.width for table in manifest.token_tables] if is_xl else [context.shape[-1]]
        context = emphasize(context, weights, widths)
    joined = context.reshape(len(sets), -1, context.shape[-1])
    return joined, None if pooled is None else pooled[::count]


def _blend(encodings: NDArray[np.float32], count: int, shares: Sequence[float]) -> NDArray[np.float32]:
    """``encodings`` without the last ``count``, those of the second prompts, which are mixed into as many before them.

    ``shares`` (B,): of the second prompts.

    The mixture is linear. Spherical interpolation of each token's vector gave mini the same pictures to the eye, and
    steps of the same size from frame to frame.
    """
    if not count:
        return encodings
    rest, first, second = np.split(encodings, [len(encodings) - 2 * count, len(encodings) - count])
    share = np.tile(np.asarray(shares, np.float32), count // len(shares)).reshape(-1, *[1] * (first.ndim - 1))
    mixed = (1 - share) * first + share * second
    return np.concatenate([rest, mixed]).astype(np.float32, copy=False)


def _conditionings(
    batch: _Batch, context: NDArray[np.float32], pooled: NDArray[np.float32] | None, zero: NDArray[np.bool_] | None
) -> list[Conditioning]:
    """The conditionings, without sizes, of (B negative prompts,) B prompts, and B prompts of each region and edit.

    ``zero`` (B,): which negative prompts are zeros instead; None when there are no negative prompts.
    """
    count = len(batch.requests)

    def select(encodings: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        sets = encodings.reshape(-1, count, *encodings.shape[1:])
        if zero is None:
            return sets[[number]]
        selected = sets[[0, number]]
        selected[0, zero] = 0.0
        return selected

    numbers = range(0 if zero is None else 1, len(context) // count)
    return [
        Conditioning(select(context, number), None if pooled is None else select(pooled, number)) for number in numbers
    ]


def _size_ids(bundle: Bundle, request: Request) -> NDArray[np.float32] | None:
    """XL's micro-conditioning (6,); None for models that do not take it."""
    if "size_ids" not in bundle.manifest.graphs["step"].inputs:
        return None
    return np.array([request.height, request.width, 0, 0, request.height, request.width], dtype=np.float32)


def _first_state(
    backend: Backend,
    batch: _Batch,
    sources: Sequence[InitImage],
    conditionings: Sequence[Conditioning],
    report: Callable[[int, _StateReader | None], None],
) -> tuple[NDArray[np.float32], Inpainting | None]:
    """The sampler's first state (2, B, 4, h, w): noise, or init images with noise; and an empty history.

    With masks or for edits, also what is kept of the init images.
    """
    noise, first, inpainting = batch.initial_noise(), batch.requests[0], None
    latent = (noise * np.float32(batch.steps.init_sigma)).astype(np.float32, copy=False)
    if first.source:
        assert isinstance(backend, SupportsImageEncode)  # checked before anything was drawn
        images = [_source_of(request, sources) for request in batch.requests]
        pixels = np.stack([image.pixels(first.width, first.height) for image in images])
        signal, sigma = batch.steps.init_mix
        encoded = backend.encode_image(pixels)
        latent = (signal * encoded + sigma * noise).astype(np.float32)
        blurs = [request.mask_blur or 0 for request in batch.requests]
        if first.mask:
            masks = [_mask_weights(request, image) for request, image in zip(batch.requests, images, strict=True)]
            inpainting = Inpainting.create(noised(encoded, noise, batch.steps), pixels, np.stack(masks), blurs)
        elif first.was is not None:
            masks = _find_masks(backend, batch, encoded, (conditionings[0], conditionings[-1]), report)
            latents = _edited_latents(backend, batch, encoded, conditionings[-1], report)
            inpainting, latent = Inpainting.create(latents, pixels, masks, blurs), latents[0]
    return np.stack([latent, np.zeros_like(noise)]), inpainting


def _find_masks(
    backend: Backend,
    batch: _Batch,
    latent: NDArray[np.float32],
    prompts: tuple[Conditioning, Conditioning],
    report: Callable[[int, _StateReader | None], None],
) -> NDArray[np.float32]:
    """The masks (B, H, W) of edits, in squares of a latent's pixels. Raises UsageError where nothing is to change."""
    first, shape = batch.requests[0], batch.shape
    steps = step_table(first.sampler, batch.schedule, first.steps, first.guidance or 0.0)
    half = steps.steps // 2
    signal, sigma = steps.mixes[half]
    noises = (np.stack([mask_noise(each.seed, draw, shape) for each in batch.requests]) for draw in range(DRAWS))
    latents = ((signal * latent + sigma * noise).astype(np.float32) for noise in noises)
    plain = without_negative(prompts[0]), without_negative(prompts[1])
    total = np.zeros((len(latent), *shape[1:]), np.float32)
    for draw, difference in enumerate(differences(backend, latents, plain, half, steps), 1):
        total += difference
        report(2 * draw - batch.preparation, None)
    masks = difference_mask(total / np.float32(DRAWS), first.threshold)
    if not masks.any((1, 2)).all():
        raise UsageError(
            "the network makes no difference between the old prompt and the new one",
            "say in the new prompt what is to change",
            reason="edit_changes_nothing",
        )
    factor = first.width // shape[2]
    return masks.repeat(factor, 1).repeat(factor, 2).astype(np.float32)


def _edited_latents(
    backend: Backend,
    batch: _Batch,
    latent: NDArray[np.float32],
    was: Conditioning,
    report: Callable[[int, _StateReader | None], None],
) -> list[NDArray[np.float32]]:
    """The init images at the noise levels of the steps: by inversion, or with noise for samplers that add noise."""
    first = batch.requests[0]
    if batch.steps.uses_noise:
        return noised(latent, batch.initial_noise(), batch.steps)
    inversion = inversion_table(first.sampler, batch.schedule, first.steps, first.guidance or 0.0, first.skipped)
    latents = [latent]
    for inverted in invert(backend, latent, without_negative(was), inversion):
        latents.append(inverted)
        report(len(latents) - 1 - inversion.steps, None)
    return latents[::-1]


def _denoise(
    backend: Backend,
    batch: _Batch,
    state: NDArray[np.float32],
    conditionings: Sequence[Sequence[Conditioning]],
    report: Callable[[int, _StateReader | None], None],
    inpainting: Inpainting | None = None,
) -> NDArray[np.float32]:
    """Run all steps, each under its own conditionings; returns the latent (B, 4, h, w).

    With a layout, each step runs under every conditioning and the next states are blended by region. The next state is
    linear in the network's output, and its other terms are the same for all conditionings (samplers.py), so blending
    states is blending outputs, and needs no access to the output of a fused step. With a mask, the state outside the
    mask is replaced after every step.
    """
    steps = batch.steps
    changes = any(one is not conditionings[0] for one in conditionings)
    if isinstance(backend, SupportsFullDenoise) and not batch.regions and not changes and inpainting is None:

        def show(done: Progress) -> None:
            report(done.step, done.read_state if isinstance(done, StepProgress) else None)

        return backend.denoise(state, batch.step_noise, conditionings[0][0], steps, show)[0]
    masks = region_masks(batch.regions, *batch.shape[1:])
    for index in range(steps.steps):
        noise = batch.step_noise(index)
        if batch.regions:
            blended = np.zeros_like(state)
            for conditioning, mask in zip(conditionings[index], masks, strict=True):
                if mask.any():
                    blended += mask * backend.step(state, index, noise, conditioning, steps)
            state = blended
        else:
            state = backend.step(state, index, noise, conditionings[index][0], steps)
        if inpainting is not None:
            state = inpainting.blend(state, index + 1)
        report(index + 1, partial(np.copy, state))
    return state[0]


def _by_step(
    timeline: Sequence[tuple[int, int]], conditionings: Sequence[Sequence[Conditioning]]
) -> list[Sequence[Conditioning]]:
    """The conditionings of each step."""
    starts = (0, *(end for end, _ in timeline))
    return [
        conditionings[part] for start, (end, part) in zip(starts, timeline, strict=False) for _ in range(start, end)
    ]


def _image(
    pixels: NDArray[np.float32], encoded: EncodedRequest, people: PromptPeople, record: Mapping[str, object]
) -> GeneratedImage:
    """``pixels`` (3, H, W) in [-1, 1]."""
    array = pixels.transpose(1, 2, 0) * 0.5 + 0.5
    digests = {name: people.digests[name] for name in encoded.request.identities or ()}
    facts = {**record, "identities": digests, "dropped_text": encoded.dropped_text}
    return GeneratedImage(to_image(array), encoded.request, facts)


def _record(bundle: Bundle, backend: Backend) -> dict[str, object]:
    """What all images of a call have in their records. No times: the same request gives the same record."""
    manifest = bundle.manifest
    loras = {"loras": [asdict(lora) for lora in manifest.loras]} if manifest.loras else {}
    return {
        "celebctl": __version__,
        "model": manifest.model.name,
        "family": manifest.model.family,
        "table_hash": manifest.model.table_hash,
        "bundle": manifest.fingerprint,
        **loras,
        "dtype": manifest.dtype,
        "backend": backend.describe(),
        "numpy": np.__version__,
    }
