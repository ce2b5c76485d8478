"""Generate images from requests.

tokenize -> encode -> draw noise -> N steps -> decode -> image with its record. This module does not know which engine
runs the graphs, how a sampler works, or where images are saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from . import __version__
from .backends.base import Backend, Conditioning, StepProgress, SupportsFullDenoise, SupportsImageEncode
from .bundle.bundle import Bundle
from .bundle.overrides import PromptPeople
from .errors import BusyError, NotFoundError, SetupError, UsageError
from .picture import GeneratedImage
from .preview import latent_to_rgb
from .progress import Progress, ProgressCallback, ignore_progress
from .prompting.layout import Region, layout_text, parse_layout, region_masks, resolve_layout
from .prompting.prompt import Mention, split_prompt
from .request import Request, resolve
from .sampling.noise import initial_noise, step_noise
from .sampling.samplers import StepTable, step_table

if TYPE_CHECKING:
    from .bundle.overrides import EmbeddingOverride
    from .identity import Identity
    from .prompting.tokenizer import EncodedPrompt
    from .sampling.init_image import InitImage

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
            the metric ``images_done``, and a preview where bundle and engine can give one.
        init_images: The images that requests refer to by :attr:`Request.source`.
        overrides: People who may be named in this call besides those in the bundle, or instead of one of that name.

    Raises:
        UsageError: For values the model does not allow.
        NotFoundError: For people the bundle does not have, or an init image that was not given.
        SetupError: When the bundle or the engine does not support what a request needs.
        BusyError: When other processes keep changing the bundle.

    All but the last are raised before anything is drawn.
    """
    bundle.refresh()
    requests = [requests] if isinstance(requests, Request) else requests
    prompts = _Prompts(bundle, [resolve(request, bundle.manifest) for request in requests], overrides)
    sources = {image.digest: image for image in init_images}
    for index, request in enumerate(prompts.requests):  # all errors come before the first image
        _check_source(bundle, backend, request, sources)
        prompts.overrides([prompts.encoded(index)])
    batches = [_Batch.create(bundle, prompts, indices) for indices in _batches(prompts.requests, backend.batch_limit)]
    total = sum(len(batch.requests) * batch.steps.steps for batch in batches)
    counter = _StepCounter(progress, total, bundle.manifest.latent_rgb)
    images: list[GeneratedImage] = []
    for batch in batches:
        encoded, conditionings = _encode(bundle, backend, prompts, batch)
        state = _first_state(backend, batch, sources)
        latent = _denoise(backend, batch, state, conditionings, counter.start(batch, len(images)))
        pixels = backend.decode(latent)
        record = _record(bundle, backend)
        images += [_image(image, each, prompts.people, record) for image, each in zip(pixels, encoded, strict=True)]
    return images


@dataclass(frozen=True, eq=False)
class _EncodedRequest:
    """A request with its tokenized prompts.

    ``regions``: the prompt of each region of the layout; ``toward``: the second prompt, and that of each region, or
    nothing.
    """

    request: Request
    prompt: EncodedPrompt
    negative: EncodedPrompt
    regions: tuple[EncodedPrompt, ...]
    toward: tuple[EncodedPrompt, ...] = ()


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
        second = split_prompt(request.toward, ids) if request.toward else []
        toward = [encode(second, ids)] if request.toward else []
        people = tuple(dict.fromkeys(prompt.people + negative.people + sum((one.people for one in toward), ())))
        regions = parse_layout(layout)
        _check_mentioned("layout", [region.name for region in regions], people)
        if isinstance(request.likeness, tuple):
            _check_mentioned("likeness", [name for name, _ in request.likeness], people)
        # In a region, all people of the layout have the ids of the region's person: no other face can appear there.
        by_region = [dict.fromkeys((other.name for other in regions), ids[region.name]) for region in regions]
        encoded = tuple(encode(parts, {**ids, **replaced}) for replaced in by_region)
        if request.toward:
            toward += [encode(second, {**ids, **replaced}) for replaced in by_region]
        return _EncodedRequest(replace(request, identities=people), prompt, negative, encoded, tuple(toward))


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
        return cls(indices, requests, steps, shape, parse_layout(first.layout))

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


def _batches(requests: Sequence[Request], limit: int) -> Iterator[list[int]]:
    """Indices of neighbouring requests that can run together, at most ``limit`` at once."""
    indices: list[int] = []
    for index, request in enumerate(requests):
        if indices and (len(indices) == limit or _batch_key(requests[indices[0]]) != _batch_key(request)):
            yield indices
            indices = []
        indices.append(index)
    if indices:
        yield indices


def _batch_key(request: Request) -> tuple[object, ...]:
    """What the images of one batch have in common."""
    sampling = request.width, request.height, request.steps, request.guidance, request.sampler
    init = bool(request.source), request.skipped
    return *sampling, *init, request.likeness, layout_text(parse_layout(request.layout)), bool(request.toward)


_StateReader = Callable[[], NDArray[np.float32]]


class _StepCounter:
    """Reports progress over all images of a call."""

    def __init__(self, progress: ProgressCallback, total: int, latent_rgb: Sequence[Sequence[float]]) -> None:
        self._progress, self._total, self._latent_rgb = progress, total, latent_rgb
        self._next = 0

    def start(self, batch: _Batch, images_done: int) -> Callable[[int, _StateReader | None], None]:
        """The callback for the steps of a batch: steps finished, and what reads the state if the engine can."""
        before, count = self._next, len(batch.requests)
        self._next += count * batch.steps.steps

        def report(step: int, read_state: _StateReader | None) -> None:
            metrics = {"images_done": float(images_done)}
            preview = partial(self._preview, read_state) if self._latent_rgb and read_state is not None else None
            self._progress(Progress("denoising", before + step * count, self._total, metrics, preview))

        return report

    def _preview(self, read_state: _StateReader) -> NDArray[np.uint8]:
        """The predicted clean latent, which is the second part of a state, in colours."""
        return latent_to_rgb(read_state()[1], self._latent_rgb)


def _check_source(bundle: Bundle, backend: Backend, request: Request, sources: Mapping[str, InitImage]) -> None:
    """Raise when a request has an init image that is missing, or that bundle or engine cannot encode."""
    if not request.source:
        return
    if request.source not in sources:
        raise NotFoundError(
            f"the init image {request.source[:12]} is missing", "pass it in init_images", reason="init_image_missing"
        )
    if "vae_encoder" not in bundle.manifest.graphs:
        raise SetupError(
            f"the bundle {bundle.path} has no image encoder", "export the bundle again", reason="no_image_encoder"
        )
    if not isinstance(backend, SupportsImageEncode):
        raise SetupError(
            "this engine has no image encoder", "use the device cpu or cuda", reason="engine_without_init_images"
        )


def _encode(
    bundle: Bundle, backend: Backend, prompts: _Prompts, batch: _Batch
) -> tuple[list[_EncodedRequest], list[Conditioning]]:
    """The batch's encoded requests, and the conditionings: of the prompts, then of each region of their layout.

    The manifest is checked again after encoding: if it is unchanged, so were the token rows (see bundle.py), otherwise
    the prompts are encoded again. Raises BusyError after several attempts, or when the bundle was exported anew.
    """
    for _ in range(_MAX_ATTEMPTS):
        encoded = [prompts.encoded(index) for index in batch.indices]
        is_guided = batch.is_guided and not bundle.manifest.guidance_is_embedded
        ids = [each.negative.ids for each in encoded] if is_guided else []
        ids += [each.prompt.ids for each in encoded]
        for prompts_of_all in (each.regions for each in encoded), (each.toward for each in encoded):
            ids += [prompt.ids for row in zip(*prompts_of_all, strict=True) for prompt in row]
        overrides = prompts.overrides(encoded)
        context, pooled = backend.encode(np.stack(ids), overrides) if overrides else backend.encode(np.stack(ids))
        if bundle.is_current():
            if count := sum(len(each.toward) for each in encoded):
                shares = [each.request.blend for each in encoded]
                context = _blend(context, count, shares)
                pooled = None if pooled is None else _blend(pooled, count, shares)
            zero = [bundle.manifest.zero_empty_prompt and not request.negative for request in batch.requests]
            conditionings = _conditionings(batch, context, pooled, np.array(zero) if is_guided else None)
            return encoded, [replace(one, size_ids=_size_ids(bundle, batch.requests[0])) for one in conditionings]
        fingerprint = bundle.manifest.fingerprint
        bundle.refresh()
        if bundle.manifest.fingerprint != fingerprint:
            break
    raise BusyError(f"the bundle {bundle.path} keeps changing", "try again", reason="bundle_busy", path=bundle.path)


def _blend(encodings: NDArray[np.float32], count: int, shares: Sequence[float]) -> NDArray[np.float32]:
    """``encodings`` without the last ``count``, those of the second prompts, which are mixed into the ones before.

    The mixture is linear. Spherical interpolation of each token's vector gave mini the same pictures to the eye, and
    steps of the same size from frame to frame.
    """
    rest, first, second = np.split(encodings, [len(encodings) - 2 * count, len(encodings) - count])
    share = np.tile(np.asarray(shares, np.float32), count // len(shares)).reshape(-1, *[1] * (first.ndim - 1))
    mixed = (1 - share) * first + share * second
    return np.concatenate([rest, mixed]).astype(np.float32, copy=False)


def _conditionings(
    batch: _Batch, context: NDArray[np.float32], pooled: NDArray[np.float32] | None, zero: NDArray[np.bool_] | None
) -> list[Conditioning]:
    """The conditionings, without sizes, of (B negative prompts,) B prompts, and B prompts of each region.

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


def _first_state(backend: Backend, batch: _Batch, sources: Mapping[str, InitImage]) -> NDArray[np.float32]:
    """The sampler's first state (2, B, 4, h, w): noise, or init images with noise; and an empty history."""
    noise, first = batch.initial_noise(), batch.requests[0]
    latent = (noise * np.float32(batch.steps.init_sigma)).astype(np.float32, copy=False)
    if first.source:
        assert isinstance(backend, SupportsImageEncode)  # checked before anything was drawn
        pixels = [sources[request.source].pixels(first.width, first.height) for request in batch.requests]
        signal, sigma = batch.steps.init_mix
        latent = (signal * backend.encode_image(np.stack(pixels)) + sigma * noise).astype(np.float32)
    return np.stack([latent, np.zeros_like(noise)])


def _denoise(
    backend: Backend,
    batch: _Batch,
    state: NDArray[np.float32],
    conditionings: Sequence[Conditioning],
    report: Callable[[int, _StateReader | None], None],
) -> NDArray[np.float32]:
    """Run all steps; returns the latent (B, 4, h, w).

    With a layout, each step runs under every conditioning and the next states are blended by region. The next state is
    linear in the network's output, and its other terms are the same for all conditionings (samplers.py), so blending
    states is blending outputs, and needs no access to the output of a fused step.
    """
    steps = batch.steps
    if isinstance(backend, SupportsFullDenoise) and not batch.regions:

        def show(done: Progress) -> None:
            report(done.step, done.read_state if isinstance(done, StepProgress) else None)

        return backend.denoise(state, batch.step_noise, conditionings[0], steps, show)[0]
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
        report(index + 1, partial(np.copy, state))
    return state[0]


def _image(
    pixels: NDArray[np.float32], encoded: _EncodedRequest, people: PromptPeople, record: Mapping[str, object]
) -> GeneratedImage:
    """``pixels`` (3, H, W) in [-1, 1]."""
    from PIL import Image

    array = ((pixels.transpose(1, 2, 0) * 0.5 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    digests = {name: people.digests[name] for name in encoded.request.identities or ()}
    texts = encoded.prompt, encoded.negative, *encoded.toward[:1]
    dropped = " ".join(filter(None, (text.dropped_text for text in texts)))
    facts = {**record, "identities": digests, "dropped_text": dropped}
    return GeneratedImage(Image.fromarray(array), encoded.request, facts)


def _record(bundle: Bundle, backend: Backend) -> dict[str, object]:
    """What all images of a call have in their records. No times: the same request gives the same record."""
    manifest = bundle.manifest
    return {
        "celebctl": __version__,
        "model": manifest.model.name,
        "family": manifest.model.family,
        "table_hash": manifest.model.table_hash,
        "bundle": manifest.fingerprint,
        "dtype": manifest.dtype,
        "backend": backend.describe(),
        "numpy": np.__version__,
    }
