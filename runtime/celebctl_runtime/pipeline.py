"""From requests to pictures: the main page of the runtime.

tokenize -> encode -> draw noise -> N steps -> decode -> picture with its record. What this module does *not* know:
which engine runs the graphs, which sampler a table stands for, and where pictures are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from . import __version__
from .backends.base import Backend, Conditioning, SupportsFullDenoise, SupportsImageEncode
from .bundle.bundle import Bundle
from .bundle.overrides import PromptPeople
from .errors import BusyError, NotFoundError, SetupError, UsageError
from .picture import GeneratedImage
from .prompting.layout import layout_text, parse_layout, region_masks, resolve_layout
from .prompting.prompt import Mention, split_prompt
from .request import Request, resolve
from .sampling.noise import initial_noise, step_noise
from .sampling.samplers import StepTable, step_table

if TYPE_CHECKING:
    from .bundle.overrides import EmbeddingOverride
    from .identity import Identity
    from .prompting.tokenizer import Encoded, PromptTokenizer
    from .sampling.init_image import InitImage

_ATTEMPTS = 5


@dataclass(frozen=True)
class Progress:
    """Step ``step`` of ``steps`` is done for ``count`` pictures; ``first`` of ``total`` were finished before them."""

    step: int
    steps: int
    first: int
    count: int
    total: int


@dataclass(frozen=True, eq=False)
class _EncodedPrompt:
    """A request with its prompts as the text encoder reads them; ``sides``: the prompt of each region of a layout."""

    request: Request
    prompt: Encoded
    negative: Encoded
    sides: tuple[Encoded, ...] = ()


def generate(
    bundle: Bundle,
    backend: Backend,
    requests: Request | Sequence[Request],
    on_step: Callable[[Progress], None] | None = None,
    init_images: Iterable[InitImage] = (),
    overrides: Sequence[Identity] = (),
) -> list[GeneratedImage]:
    """Draw one picture per request, in order; neighbours that differ in prompt and seed only run as one batch.

    ``sources``: the pictures that requests begin with. ``guests`` may be named like people of the bundle, and are gone
    afterwards. Raises UsageError for values the model does not allow and NotFoundError for people the bundle does not
    know, or a source that was not given, all before anything is drawn.
    """
    bundle.refresh()
    wanted = [resolve(request, bundle.manifest) for request in _listed(requests)]
    given = {source.digest: source for source in init_images}
    _check_sources(bundle, backend, wanted, given)
    tokenizer, people = bundle.tokenizer(), PromptPeople.resolve(bundle, overrides)
    wanted = [_resolve_layout(bundle, people.ids, request) for request in wanted]
    plans = {key: _plan(bundle, key) for key in map(_batch_key, wanted)}
    for request in wanted:  # errors in any prompt come before the first picture
        _overrides_for(bundle, people, [_tokenize(bundle, tokenizer, people.ids, request)])
    pictures: list[GeneratedImage] = []
    for group in _batches(wanted, backend.batch_limit):
        prompts, texts = _encode(bundle, backend, tokenizer, group, overrides)
        report = _reporter(on_step, len(pictures), len(group), len(wanted))
        latent = _denoise(bundle, backend, plans[_batch_key(group[0])], group, given, texts, report)
        images = backend.decode(latent)
        facts = _record(bundle, backend)
        people = PromptPeople.resolve(bundle, overrides)
        pictures += [_picture(image, prompt, people, facts) for image, prompt in zip(images, prompts, strict=True)]
    return pictures


def _encode(
    bundle: Bundle,
    backend: Backend,
    tokenizer: PromptTokenizer,
    group: Sequence[Request],
    guests: Sequence[Identity],
) -> tuple[list[_EncodedPrompt], list[Conditioning]]:
    """Prompts, and what the network reads of them: of the prompts themselves, then of each region of their layout.

    The manifest is looked at once more after encoding: if it is still the same, nobody moved while we read the token
    rows (bundle.py tells why), otherwise the prompts are read again. Raises Busy when that does not end, or when the
    whole bundle was exported anew meanwhile.
    """
    for _ in range(_ATTEMPTS):
        people = PromptPeople.resolve(bundle, guests)
        prompts = [_tokenize(bundle, tokenizer, people.ids, request) for request in group]
        ids = [prompt.prompt.ids for prompt in prompts]
        guided = _guided(group[0]) and not bundle.manifest.guidance_is_embedded
        if guided:
            ids = [prompt.negative.ids for prompt in prompts] + ids
        for sides in zip(*(prompt.sides for prompt in prompts), strict=True):
            ids += [side.ids for side in sides]
        present = _overrides_for(bundle, people, prompts)
        context, pooled = backend.encode(np.stack(ids), present) if present else backend.encode(np.stack(ids))
        if bundle.is_current():
            return prompts, _conditioning(bundle, group, context, pooled, guided)
        export = bundle.manifest.fingerprint
        bundle.refresh()
        if bundle.manifest.fingerprint != export:
            break
    raise BusyError(f"the bundle {bundle.path} keeps changing", "run the same command again")


def _overrides_for(bundle: Bundle, people: PromptPeople, prompts: Sequence[_EncodedPrompt]) -> list[EmbeddingOverride]:
    """The guests of a batch, whose requests want one likeness."""
    named = {name for prompt in prompts for name in prompt.request.identities or ()}
    return people.overrides_for(bundle, named, prompts[0].request.likeness)


def _conditioning(
    bundle: Bundle,
    group: Sequence[Request],
    context: NDArray[np.float32],
    pooled: NDArray[np.float32] | None,
    guided: bool,
) -> list[Conditioning]:
    """One Texts per conditioning, out of encodings of (B negative prompts,) B prompts, and B prompts of each region;
    with the picture's size for XL."""
    count, (height, width) = len(group), (group[0].height, group[0].width)
    blank = np.array([bundle.manifest.zero_empty_prompt and not request.negative for request in group])
    size_ids = np.array([height, width, 0, 0, height, width], dtype=np.float32)
    sets = len(context) // count
    found: list[Conditioning] = []
    for told in range(int(guided), sets):
        chosen = [0, told] if guided else [told]
        states = [
            None if part is None else part.reshape(-1, count, *part.shape[1:])[chosen] for part in (context, pooled)
        ]
        for part in states:
            if part is not None and guided:
                part[0, blank] = 0.0
        by_guide, pooled_by_guide = cast("tuple[NDArray[np.float32], NDArray[np.float32] | None]", tuple(states))
        found.append(Conditioning(by_guide, pooled_by_guide, None if pooled_by_guide is None else size_ids))
    return found


def _denoise(
    bundle: Bundle,
    backend: Backend,
    steps: StepTable,
    group: Sequence[Request],
    given: Mapping[str, InitImage],
    texts: Sequence[Conditioning],
    report: Callable[[int, int], None],
) -> NDArray[np.float32]:
    """From noise, or from pictures and noise, to latent (B, 4, h, w). With a layout, every step is drawn by
    region."""
    size = bundle.manifest.size
    shape = (size.latent_channels, group[0].height // size.vae_factor, group[0].width // size.vae_factor)
    noise = np.stack([initial_noise(request.seed, shape) for request in group])
    start = (noise * np.float32(steps.init_sigma)).astype(np.float32, copy=False)
    if group[0].source:
        latent = _encode_sources(backend, [given[request.source] for request in group], group[0])
        signal, sigma = steps.init_mix
        start = (signal * latent + sigma * noise).astype(np.float32)
    state = np.stack([start, np.zeros_like(noise)])

    def noise_of(index: int) -> NDArray[np.float32]:
        return np.stack([step_noise(request.seed, index, shape) for request in group]) if steps.uses_noise else noise

    regions = parse_layout(group[0].layout)
    if isinstance(backend, SupportsFullDenoise) and not regions:
        return backend.denoise(state, noise_of, texts[0], steps, lambda done: report(done.step, done.total))[0]
    masks = region_masks(regions, *shape[1:])
    for index in range(steps.steps):
        if regions:
            state = _by_region(backend, state, index, noise_of(index), texts, steps, masks)
        else:
            state = backend.step(state, index, noise_of(index), texts[0], steps)
        report(index + 1, steps.steps)
    return state[0]


def _resolve_layout(bundle: Bundle, ids: Mapping[str, tuple[int, ...]], request: Request) -> Request:
    """The request with its layout decided, for it depends on whom the prompt names."""
    known = ids.keys() if request.identities is None else ids.keys() & set(request.identities)
    named = [part.name for part in split_prompt(request.prompt, known) if isinstance(part, Mention)]
    layout = resolve_layout(request.layout, bundle.manifest.defaults.layout, list(dict.fromkeys(named)))
    return replace(request, layout=layout)


def _check_sources(bundle: Bundle, backend: Backend, wanted: Iterable[Request], given: Mapping[str, InitImage]) -> None:
    for request in wanted:
        if not request.source:
            continue
        if request.source not in given:
            raise NotFoundError("the picture that this one began with is not here", "name it with --from PICTURE")
        if "vae_encoder" not in bundle.manifest.graphs:
            raise SetupError(
                f"the bundle {bundle.path} is too old to begin with a picture", "celebctl export makes a fresh bundle"
            )
        if not isinstance(backend, SupportsImageEncode):
            raise SetupError("this engine cannot begin with a picture", "use --device cpu or cuda")


def _encode_sources(backend: Backend, sources: Sequence[InitImage], request: Request) -> NDArray[np.float32]:
    assert isinstance(backend, SupportsImageEncode)  # checked before anything was drawn
    return backend.encode_image(np.stack([source.pixels(request.width, request.height) for source in sources]))


def _by_region(
    backend: Backend,
    state: NDArray[np.float32],
    index: int,
    noise: NDArray[np.float32],
    texts: Sequence[Conditioning],
    steps: StepTable,
    masks: NDArray[np.float32],
) -> NDArray[np.float32]:
    """One step under every conditioning, blended by ``masks`` (1 + R, h, w), which add up to 1.

    The next state is linear in the network's output, and everything else in it is the same for all conditionings
    (samplers.py), so blending states is blending outputs, and a graph that hides its output in the step serves.
    """
    blended = np.zeros_like(state)
    for given, mask in zip(texts, masks, strict=True):
        if mask.any():
            blended += mask * backend.step(state, index, noise, given, steps)
    return blended


def _tokenize(
    bundle: Bundle, tokenizer: PromptTokenizer, ids: Mapping[str, tuple[int, ...]], request: Request
) -> _EncodedPrompt:
    """``ids``: what stands for everybody who may be named. Raises NotFoundError, and UsageError for a useless layout."""
    if request.identities is not None:
        missing = sorted(set(request.identities) - ids.keys())
        if missing:
            raise NotFoundError(
                f"{missing[0]!r} is not in the bundle {bundle.path}", f"known: {', '.join(bundle.names) or 'nobody'}"
            )
        ids = {name: ids[name] for name in request.identities}
    prompt, negative = tokenizer.encode(request.prompt, ids), tokenizer.encode(request.negative, ids)
    used = tuple(dict.fromkeys(prompt.used + negative.used))
    _check_named(request, used)
    regions = parse_layout(request.layout)
    # Of each region, the prompt as if everybody in the layout were its person: nobody else can be drawn there.
    sides = tuple(
        tokenizer.encode(request.prompt, {**ids, **{other.name: ids[region.name] for other in regions}})
        for region in regions
    )
    return _EncodedPrompt(replace(request, identities=used), prompt, negative, sides)


def _check_named(request: Request, used: Sequence[str]) -> None:
    """Raise UsageError for a layout or likeness of somebody whom the prompt does not name."""
    laid_out = [region.name for region in parse_layout(request.layout)]
    dialled_alone = [name for name, _ in request.likeness] if isinstance(request.likeness, tuple) else []
    for what, names in (("layout", laid_out), ("likeness", dialled_alone)):
        for name in names:
            if name not in used:
                raise UsageError(
                    f"the {what} speaks of {name}, but the prompt names {', '.join(used) or 'nobody you know'}",
                    f"name {name} in the prompt, or leave {name} out of --{what}",
                )


def _picture(image: NDArray[np.float32], prompt: _EncodedPrompt, people: PromptPeople, facts: dict[str, Any]) -> GeneratedImage:
    """``image`` (3, H, W) in [-1, 1]."""
    from PIL import Image

    pixels = ((image.transpose(1, 2, 0) * 0.5 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    digests = {name: people.digests[name] for name in prompt.request.identities or ()}
    dropped = " ".join(filter(None, (prompt.prompt.dropped_text, prompt.negative.dropped_text)))
    record = {**facts, "identities": digests, "dropped_text": dropped}
    return GeneratedImage(Image.fromarray(pixels), prompt.request, record)


def _record(bundle: Bundle, backend: Backend) -> dict[str, Any]:
    """What all pictures of a run share in their records. No times: the same request gives the same record."""
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


def _listed(requests: Request | Sequence[Request]) -> Sequence[Request]:
    return [requests] if isinstance(requests, Request) else requests


def _batch_key(request: Request) -> tuple[object, ...]:
    """What pictures of one batch have in common."""
    size, sampling = (request.width, request.height), (request.steps, request.guidance, request.sampler)
    begins = bool(request.source), request.skipped
    return *size, *sampling, *begins, request.likeness, layout_text(parse_layout(request.layout))


def _plan(bundle: Bundle, key: tuple[object, ...]) -> StepTable:
    steps, guidance, sampler, _, skipped = cast("tuple[int, float, str, bool, int]", key[2:7])
    return step_table(sampler, bundle.schedule, steps, guidance, skipped)


def _guided(request: Request) -> bool:
    """Guidance of 1 is the plain prompt; below, diffusers does not guide either."""
    return (request.guidance or 0.0) > 1.0


def _batches(requests: Iterable[Request], limit: int) -> Iterator[list[Request]]:
    """Neighbours with the same key, at most ``limit`` together."""
    group: list[Request] = []
    for request in requests:
        if group and (len(group) == limit or _batch_key(group[0]) != _batch_key(request)):
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def _reporter(
    on_step: Callable[[Progress], None] | None, first: int, count: int, total: int
) -> Callable[[int, int], None]:
    def report(step: int, steps: int) -> None:
        if on_step is not None:
            on_step(Progress(step, steps, first, count, total))

    return report
