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
from .backends import Backend, EncodesPictures, RunsWhole, Texts
from .bundle import Bundle
from .errors import Busy, EnvironmentProblem, NotFound
from .noise import initial_noise, step_noise
from .picture import Picture
from .request import Request, resolve
from .samplers import Plan, plan

if TYPE_CHECKING:
    from .source import Source
    from .tokenizer import Encoded, PromptTokenizer

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
class _Prompt:
    """A request with its prompts as the text encoder reads them."""

    request: Request
    prompt: Encoded
    negative: Encoded


def generate(
    bundle: Bundle,
    backend: Backend,
    requests: Request | Sequence[Request],
    on_step: Callable[[Progress], None] | None = None,
    sources: Iterable[Source] = (),
) -> list[Picture]:
    """Draw one picture per request, in order; neighbours that differ in prompt and seed only run as one batch.

    ``sources``: the pictures that requests begin with. Raises UsageProblem for values the model does not allow and
    NotFound for people the bundle does not know, or a source that was not given, all before anything is drawn.
    """
    bundle.refresh()
    wanted = [resolve(request, bundle.manifest) for request in _listed(requests)]
    given = {source.digest: source for source in sources}
    _check_sources(bundle, backend, wanted, given)
    plans = {key: _plan(bundle, key) for key in map(_batch_key, wanted)}
    tokenizer = bundle.tokenizer()
    for request in wanted:
        _tokenize(bundle, tokenizer, request)  # errors in any prompt come before the first picture
    pictures: list[Picture] = []
    for group in _batches(wanted, backend.batch_limit):
        prompts, texts = _encode(bundle, backend, tokenizer, group)
        report = _reporter(on_step, len(pictures), len(group), len(wanted))
        latent = _denoise(bundle, backend, plans[_batch_key(group[0])], group, given, texts, report)
        images = backend.decode(latent)
        facts = _facts(bundle, backend)
        pictures += [_picture(image, prompt, bundle, facts) for image, prompt in zip(images, prompts, strict=True)]
    return pictures


def _encode(
    bundle: Bundle, backend: Backend, tokenizer: PromptTokenizer, group: Sequence[Request]
) -> tuple[list[_Prompt], Texts]:
    """Prompts, and what the network reads of them.

    The manifest is looked at once more after encoding: if it is still the same, nobody moved while we read the token
    rows (bundle.py tells why), otherwise the prompts are read again. Raises Busy when that does not end, or when the
    whole bundle was exported anew meanwhile.
    """
    for _ in range(_ATTEMPTS):
        prompts = [_tokenize(bundle, tokenizer, request) for request in group]
        ids = [prompt.prompt.ids for prompt in prompts]
        if _guided(group[0]) and not bundle.manifest.guidance_is_embedded:
            ids = [prompt.negative.ids for prompt in prompts] + ids
        context, pooled = backend.encode(np.stack(ids))
        if bundle.is_current():
            return prompts, _texts(bundle, group, context, pooled)
        export = bundle.manifest.fingerprint
        bundle.refresh()
        if bundle.manifest.fingerprint != export:
            break
    raise Busy(f"the bundle {bundle.path} keeps changing", "run the same command again")


def _texts(
    bundle: Bundle, group: Sequence[Request], context: NDArray[np.float32], pooled: NDArray[np.float32] | None
) -> Texts:
    """Encodings of B prompts, or of B negative prompts and B prompts, by guide; with the picture's size for XL."""
    count = len(group)
    blank = np.array([bundle.manifest.zero_empty_prompt and not request.negative for request in group])
    grouped = [
        None if states is None else states.reshape(-1, count, *states.shape[1:]).copy() for states in (context, pooled)
    ]
    for states in grouped:
        if states is not None and len(states) == 2:
            states[0, blank] = 0.0
    by_guide, pooled_by_guide = cast("tuple[NDArray[np.float32], NDArray[np.float32] | None]", tuple(grouped))
    if pooled_by_guide is None:
        return Texts(by_guide)
    height, width = group[0].height, group[0].width
    return Texts(by_guide, pooled_by_guide, np.array([height, width, 0, 0, height, width], dtype=np.float32))


def _denoise(
    bundle: Bundle,
    backend: Backend,
    steps: Plan,
    group: Sequence[Request],
    given: Mapping[str, Source],
    texts: Texts,
    report: Callable[[int, int], None],
) -> NDArray[np.float32]:
    """From noise, or from pictures and noise, to latent (B, 4, h, w)."""
    size = bundle.manifest.size
    shape = (size.latent_channels, group[0].height // size.vae_factor, group[0].width // size.vae_factor)
    noise = np.stack([initial_noise(request.seed, shape) for request in group])
    start = (noise * np.float32(steps.init_sigma)).astype(np.float32, copy=False)
    if group[0].source:
        latent = _encode_sources(backend, [given[request.source] for request in group], group[0])
        signal, sigma = steps.begin
        start = (signal * latent + sigma * noise).astype(np.float32)
    state = np.stack([start, np.zeros_like(noise)])

    def noise_of(index: int) -> NDArray[np.float32]:
        return np.stack([step_noise(request.seed, index, shape) for request in group]) if steps.uses_noise else noise

    if isinstance(backend, RunsWhole):
        return backend.denoise(state, noise_of, texts, steps, report)[0]
    for index in range(steps.steps):
        state = backend.step(state, index, noise_of(index), texts, steps)
        report(index + 1, steps.steps)
    return state[0]


def _check_sources(bundle: Bundle, backend: Backend, wanted: Iterable[Request], given: Mapping[str, Source]) -> None:
    for request in wanted:
        if not request.source:
            continue
        if request.source not in given:
            raise NotFound("the picture that this one began with is not here", "name it with --from PICTURE")
        if "vae_encoder" not in bundle.manifest.graphs:
            raise EnvironmentProblem(
                f"the bundle {bundle.path} is too old to begin with a picture", "celebctl export makes a fresh bundle"
            )
        if not isinstance(backend, EncodesPictures):
            raise EnvironmentProblem("this engine cannot begin with a picture", "use --device cpu or cuda")


def _encode_sources(backend: Backend, sources: Sequence[Source], request: Request) -> NDArray[np.float32]:
    assert isinstance(backend, EncodesPictures)  # checked before anything was drawn
    return backend.encode_picture(np.stack([source.pixels(request.width, request.height) for source in sources]))


def _tokenize(bundle: Bundle, tokenizer: PromptTokenizer, request: Request) -> _Prompt:
    ids = bundle.token_ids
    if request.identities is not None:
        missing = sorted(set(request.identities) - ids.keys())
        if missing:
            raise NotFound(
                f"{missing[0]!r} is not in the bundle {bundle.path}", f"known: {', '.join(bundle.names) or 'nobody'}"
            )
        ids = {name: ids[name] for name in request.identities}
    prompt, negative = tokenizer.encode(request.prompt, ids), tokenizer.encode(request.negative, ids)
    used = tuple(dict.fromkeys(prompt.used + negative.used))
    return _Prompt(replace(request, identities=used), prompt, negative)


def _picture(image: NDArray[np.float32], prompt: _Prompt, bundle: Bundle, facts: dict[str, Any]) -> Picture:
    """``image`` (3, H, W) in [-1, 1]."""
    from PIL import Image

    pixels = ((image.transpose(1, 2, 0) * 0.5 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    people = {name: bundle.manifest.identities[name].digest for name in prompt.request.identities or ()}
    dropped = " ".join(filter(None, (prompt.prompt.dropped_text, prompt.negative.dropped_text)))
    record = {**facts, "identities": people, "dropped_text": dropped}
    return Picture(Image.fromarray(pixels), prompt.request, record)


def _facts(bundle: Bundle, backend: Backend) -> dict[str, Any]:
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
    begins = bool(request.source), request.skipped
    return request.width, request.height, request.steps, request.guidance, request.sampler, *begins


def _plan(bundle: Bundle, key: tuple[object, ...]) -> Plan:
    _, _, steps, guidance, sampler, _, skipped = cast("tuple[int, int, int, float, str, bool, int]", key)
    return plan(sampler, bundle.schedule, steps, guidance, skipped)


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
