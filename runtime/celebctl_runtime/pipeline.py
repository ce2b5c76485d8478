"""Generate images from requests.

tokenize -> encode -> draw noise -> N steps -> decode -> image with its record. This module does not know which engine
runs the graphs, how a sampler works, or where images are saved.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from . import __version__
from .backends.base import Backend, Conditioning, SupportsFullDenoise, SupportsImageEncode
from .bundle.bundle import Bundle
from .bundle.overrides import PromptPeople
from .diffedit import DRAWS, difference_mask, differences, invert, without_negative
from .errors import BusyError, CelebctlError, InvalidInputError, NotFoundError, SetupError, UsageError
from .picture import GeneratedImage, to_image
from .progress import Progress, ProgressCallback, ignore_progress
from .prompting.layout import Region, layout_text, parse_layout, region_masks, resolve_layout
from .prompting.prompt import Mention, split_prompt
from .request import Request, resolve, second_pass
from .sampling.init_image import InitImage
from .sampling.inpainting import Inpainting, noised
from .sampling.noise import initial_noise, mask_noise, step_noise
from .sampling.samplers import StepTable, inversion_table, step_table

if TYPE_CHECKING:
    from .bundle.overrides import EmbeddingOverride
    from .identity import Identity
    from .prompting.tokenizer import EncodedPrompt
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

    Neighbouring requests that differ only in prompt and seed run as one batch; the batch does not change the images.

    Args:
        bundle: The bundle to draw with.
        backend: The engine that runs its graphs.
        requests: What to generate.
        progress: Called after every step with stage "denoising", the steps finished and their total over all images,
            and the metric ``images_done``.
        init_images: The images that requests refer to by :attr:`Request.source`, with the masks that they refer to by
            :attr:`Request.mask`.
        overrides: People who may be named in this call besides those in the bundle, or instead of one of that name.

    Raises:
        UsageError: For values the model does not allow; while drawing, for an edit between whose prompts the network
            makes no difference.
        NotFoundError: For people the bundle does not have, or an init image or mask that was not given.
        InvalidInputError: For a mask that changes nothing or everything.
        SetupError: When the bundle or the engine does not support what a request needs.
        BusyError: When other processes keep changing the bundle.

    All others but the last are raised before anything is drawn.
    """
    bundle.refresh()
    requests = [requests] if isinstance(requests, Request) else requests
    prompts = _Prompts(bundle, [resolve(request, bundle.manifest) for request in requests], overrides)
    sources = list(init_images)
    for index, request in enumerate(prompts.requests):  # all errors come before the first image
        _check_source(bundle, backend, request, sources)
        prompts.overrides([prompts.encoded(index)])
    second = [second_pass(request, "") for request in prompts.requests if request.hires]
    created = [_Batch.create(bundle, prompts, indices) for indices in batches(prompts.requests, backend.batch_limit)]
    evaluations = sum(len(batch.requests) * batch.evaluations for batch in created)
    counter = _StepCounter(progress, evaluations + sum(each.steps - each.skipped for each in second))
    images: list[GeneratedImage] = []
    for batch in created:
        encoded, conditionings = _encode(bundle, backend, prompts, batch)
        report = counter.start(batch, len(images))
        state, inpainting = _first_state(backend, batch, sources, conditionings, report)
        latent = _denoise(backend, batch, state, conditionings[: 1 + len(batch.regions)], report, inpainting)
        pixels = backend.decode(latent)
        if inpainting is not None:
            pixels = inpainting.paste(pixels)
        record = _record(bundle, backend)
        drawn = [_image(image, each, prompts.people, record) for image, each in zip(pixels, encoded, strict=True)]
        if inpainting is not None:
            drawn = [replace(image, mask=to_image(mask)) for image, mask in zip(drawn, inpainting.masks, strict=True)]
        images += drawn
    return _second_passes(bundle, backend, images, counter.rest(), overrides) if second else images


def _second_passes(
    bundle: Bundle,
    backend: Backend,
    images: Sequence[GeneratedImage],
    progress: ProgressCallback,
    overrides: Sequence[Identity],
) -> list[GeneratedImage]:
    """The images; those whose requests have a second pass enlarged and drawn again."""
    first = [image for image in images if image.request.hires]
    sources = [InitImage.of(image.image) for image in first]
    requests = [second_pass(image.request, source.digest) for image, source in zip(first, sources, strict=True)]
    again = iter(generate(bundle, backend, requests, progress, sources, overrides))
    return [replace(next(again), request=image.request) if image.request.hires else image for image in images]


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
    prompts = _Prompts(bundle, requests, ())
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
    indices: list[int] = []
    for index, request in enumerate(requests):
        if indices and (len(indices) == limit or _batch_key(requests[indices[0]]) != _batch_key(request)):
            yield indices
            indices = []
        indices.append(index)
    if indices:
        yield indices


@dataclass(frozen=True, eq=False)
class _EncodedRequest:
    """A request with its tokenized prompts; ``regions``: the prompt of each region of the layout; ``was``: the prompt
    of the init image, for an edit."""

    request: Request
    prompt: EncodedPrompt
    negative: EncodedPrompt
    regions: tuple[EncodedPrompt, ...]
    was: tuple[EncodedPrompt, ...]


class _Prompts:
    """The prompts of a call: people are resolved, and each prompt is split, once per state of the bundle."""

    def __init__(self, bundle: Bundle, requests: Sequence[Request], overrides: Sequence[Identity]) -> None:
        self.requests = list(requests)  # the layout of each is resolved when its prompt is split
        self._bundle, self._overrides = bundle, overrides
        self._tokenizer = bundle.tokenizer()
        self._resolve_people()

    def _resolve_people(self) -> None:
        self._manifest = self._bundle.manifest
        self.people = PromptPeople.resolve(self._bundle, self._overrides)
        self._encoded: dict[int, _EncodedRequest] = {}

    def encoded(self, index: int) -> _EncodedRequest:
        """Request number ``index``, tokenized for the manifest as last read. Raises NotFoundError and UsageError."""
        if self._manifest is not self._bundle.manifest:
            self._resolve_people()
        if index not in self._encoded:
            self._encoded[index] = self._encode(index)
        return self._encoded[index]

    def overrides(self, batch: Sequence[_EncodedRequest]) -> list[EmbeddingOverride]:
        """The overrides of a batch, whose requests have the same likeness."""
        names = {name for encoded in batch for name in encoded.request.identities or ()}
        return self.people.overrides_for(self._bundle, names, batch[0].request.likeness)

    def _encode(self, index: int) -> _EncodedRequest:
        request, ids = self.requests[index], self.people.ids
        if request.identities is not None:
            for name in request.identities:
                if name not in ids:
                    raise self._bundle.unknown_person(name)
            ids = {name: ids[name] for name in request.identities}
        parts, encode = split_prompt(request.prompt, ids), self._tokenizer.encode_parts
        names = list(dict.fromkeys(part.name for part in parts if isinstance(part, Mention)))
        layout = resolve_layout(request.layout, self._manifest.defaults.layout, names)
        self.requests[index] = request = replace(request, layout=layout)
        prompt, negative = encode(parts, ids), self._tokenizer.encode(request.negative, ids)
        was = () if request.was is None else (self._tokenizer.encode(request.was, ids),)
        people = tuple(dict.fromkeys(name for each in (prompt, negative, *was) for name in each.people))
        regions = parse_layout(layout)
        if was and np.array_equal(was[0].ids, prompt.ids):
            raise UsageError(
                "the new prompt says the same as the old one", "say what is to change", reason="edit_changes_nothing"
            )
        _check_mentioned("layout", [region.name for region in regions], people)
        if isinstance(request.likeness, tuple):
            _check_mentioned("likeness", [name for name, _ in request.likeness], people)
        # In a region, all people of the layout have the ids of the region's person: no other face can appear there.
        by_region = (dict.fromkeys((other.name for other in regions), ids[region.name]) for region in regions)
        encoded = tuple(encode(parts, {**ids, **replaced}) for replaced in by_region)
        return _EncodedRequest(replace(request, identities=people), prompt, negative, encoded, was)


def _check_mentioned(field: str, names: Sequence[str], mentioned: Sequence[str]) -> None:
    """Raise UsageError when a layout or likeness names a person missing from the prompt."""
    for name in names:
        if name not in mentioned:
            raise UsageError(
                f"the {field} names {name}, but the prompt names {', '.join(mentioned) or 'no known person'}",
                f"name {name} in the prompt, or remove {name} from the {field}",
                reason=f"not_in_prompt_{field}",
                name=name,
            )


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
    def create(cls, bundle: Bundle, prompts: _Prompts, indices: Sequence[int]) -> _Batch:
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
    """What the images of one batch have in common."""
    sampling = request.width, request.height, request.steps, request.guidance, request.sampler
    init = bool(request.source), request.skipped, bool(request.mask)
    edit = request.was is not None and request.threshold
    return *sampling, *init, edit, request.likeness, layout_text(parse_layout(request.layout))


class _StepCounter:
    """Reports progress over all images of a call."""

    def __init__(self, progress: ProgressCallback, total: int) -> None:
        self._progress, self._total = progress, total
        self._next = 0

    def start(self, batch: _Batch, images_done: int) -> Callable[[int, int], None]:
        """The callback for the steps of a batch: steps finished, below 0 before the first one, and of how many."""
        before, count = self._next, len(batch.requests)
        self._next += count * batch.evaluations

        def report(step: int, _: int) -> None:
            metrics = {"images_done": float(images_done)}
            done = before + (batch.preparation + step) * count
            self._progress(Progress("denoising", done, self._total, metrics))

        return report

    def rest(self) -> ProgressCallback:
        """The callback of a call that draws the rest, after all batches were started."""
        return lambda event: self._progress(replace(event, step=self._next + event.step, total=self._total))


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
    """Raise for an init image or mask that is missing or unusable, or that bundle or engine cannot encode.

    sources: None when they are taken to be there.
    """
    if not (request.source or request.hires):
        return
    if request.source and sources is not None:
        image = _source_of(request, sources)
        if request.mask:
            _mask_weights(request, image)
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
    bundle: Bundle, backend: Backend, prompts: _Prompts, batch: _Batch
) -> tuple[list[_EncodedRequest], list[Conditioning]]:
    """The batch's encoded requests, and the conditionings: of the prompts, of each region of their layout, and for
    edits of the prompts of the init images.

    The manifest is checked again after encoding: if it is unchanged, so were the token rows (see bundle.py), otherwise
    the prompts are encoded again. Raises BusyError after several attempts, or when the bundle was exported anew.
    """
    for _ in range(_MAX_ATTEMPTS):
        encoded = [prompts.encoded(index) for index in batch.indices]
        is_guided = batch.is_guided and not bundle.manifest.guidance_is_embedded
        ids = [each.negative.ids for each in encoded] if is_guided else []
        ids += [each.prompt.ids for each in encoded]
        for prompts_of_one in zip(*((*each.regions, *each.was) for each in encoded), strict=True):
            ids += [prompt.ids for prompt in prompts_of_one]
        overrides = prompts.overrides(encoded)
        context, pooled = backend.encode(np.stack(ids), overrides) if overrides else backend.encode(np.stack(ids))
        if bundle.is_current():
            zero = [bundle.manifest.zero_empty_prompt and not request.negative for request in batch.requests]
            conditionings = _conditionings(batch, context, pooled, np.array(zero) if is_guided else None)
            return encoded, [replace(one, size_ids=_size_ids(bundle, batch.requests[0])) for one in conditionings]
        fingerprint = bundle.manifest.fingerprint
        bundle.refresh()
        if bundle.manifest.fingerprint != fingerprint:
            break
    raise BusyError(f"the bundle {bundle.path} keeps changing", "try again", reason="bundle_busy", path=bundle.path)


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
    report: Callable[[int, int], None],
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
    report: Callable[[int, int], None],
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
        report(2 * draw - batch.preparation, 0)
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
    report: Callable[[int, int], None],
) -> list[NDArray[np.float32]]:
    """The init images at the noise levels of the steps: by inversion, or with noise for samplers that add noise."""
    first = batch.requests[0]
    if batch.steps.uses_noise:
        return noised(latent, batch.initial_noise(), batch.steps)
    inversion = inversion_table(first.sampler, batch.schedule, first.steps, first.guidance or 0.0, first.skipped)
    latents = [latent]
    for inverted in invert(backend, latent, without_negative(was), inversion):
        latents.append(inverted)
        report(len(latents) - 1 - inversion.steps, 0)
    return latents[::-1]


def _denoise(
    backend: Backend,
    batch: _Batch,
    state: NDArray[np.float32],
    conditionings: Sequence[Conditioning],
    report: Callable[[int, int], None],
    inpainting: Inpainting | None = None,
) -> NDArray[np.float32]:
    """Run all steps; returns the latent (B, 4, h, w).

    With a layout, each step runs under every conditioning and the next states are blended by region. The next state is
    linear in the network's output, and its other terms are the same for all conditionings (samplers.py), so blending
    states is blending outputs, and needs no access to the output of a fused step. With a mask, the state outside the
    mask is replaced after every step.
    """
    steps = batch.steps
    if isinstance(backend, SupportsFullDenoise) and not batch.regions and inpainting is None:
        return backend.denoise(
            state, batch.step_noise, conditionings[0], steps, lambda done: report(done.step, done.total)
        )[0]
    masks = region_masks(batch.regions, *batch.shape[1:])
    for index in range(steps.steps):
        noise = batch.step_noise(index)
        if batch.regions:
            blended = np.zeros_like(state)
            for conditioning, mask in zip(conditionings, masks, strict=True):
                if mask.any():
                    blended += mask * backend.step(state, index, noise, conditioning, steps)
            state = blended
        else:
            state = backend.step(state, index, noise, conditionings[0], steps)
        if inpainting is not None:
            state = inpainting.blend(state, index + 1)
        report(index + 1, steps.steps)
    return state[0]


def _image(
    pixels: NDArray[np.float32], encoded: _EncodedRequest, people: PromptPeople, record: Mapping[str, object]
) -> GeneratedImage:
    """``pixels`` (3, H, W) in [-1, 1]."""
    array = pixels.transpose(1, 2, 0) * 0.5 + 0.5
    digests = {name: people.digests[name] for name in encoded.request.identities or ()}
    dropped = " ".join(filter(None, (encoded.prompt.dropped_text, encoded.negative.dropped_text)))
    facts = {**record, "identities": digests, "dropped_text": dropped}
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
