"""The interface of inference engines (:class:`Backend`) and the inputs they share.

Arrays go in and come out as float32 numpy arrays, whatever dtype a graph computes in. Engines know no prompts, people
or samplers: a sampler step is one row of a table.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.bundle.overrides import EmbeddingOverride
from celebctl_runtime.errors import UsageError
from celebctl_runtime.progress import Progress, ProgressCallback
from celebctl_runtime.sampling.samplers import StepTable

if TYPE_CHECKING:
    from celebctl_runtime.bundle.manifest import Manifest

TABLE_INPUT = "token_table"  # initializer of a text encoder that backends replace
#: Outputs of the step graph that are inputs of the next step.
STATE_LOOP = (("state", "next_state"), ("step", "next_step"))

_TEXT_ENCODER = re.compile(r"text_encoder(?:_(\d+))?")

Array = NDArray[np.float32]
Feeds = Mapping[str, NDArray[Any]]  # inputs of a graph by name
NoiseFunction = Callable[[int], Array]  # step -> noise (B, 4, h, w)
Encodings = tuple[Array, Array | None]  # context (B, 77, D), pooled (B, P) of XL and SD3 models
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Encoded prompts. G is 2 with guidance (negative prompt first), 1 without.

    Attributes:
        context: (G, B, 77, D).
        pooled: (G, B, P), XL and SD3 models only.
        size_ids: (6,), XL models only: height, width, crop top, crop left, target height, target width, in pixels.
    """

    context: Array
    pooled: Array | None = None
    size_ids: Array | None = None


@dataclass(frozen=True, kw_only=True)
class StepProgress(Progress):
    """Progress of :meth:`SupportsFullDenoise.denoise`, from an engine that can show its state between steps.

    ``read_state`` returns a copy of the state (2, B, 4, h, w) after the step; only inside the callback.
    """

    read_state: Callable[[], Array]


class Backend(Protocol):
    """An engine that runs a bundle: B images, text width D, latents (4, h, w), images (3, H, W)."""

    @property
    def batch_limit(self) -> int:
        """The largest number of images drawn at once."""
        ...

    def encode(self, ids: NDArray[np.int64], overrides: Sequence[EmbeddingOverride] = ()) -> Encodings:
        """Token ids (B, 77) -> context (B, 77, D) and, for XL and SD3 models, pooled (B, P).

        ``overrides`` replace rows of the bundle's token tables for this call.
        """
        ...

    def step(self, state: Array, index: int, noise: Array, conditioning: Conditioning, table: StepTable) -> Array:
        """Sampler step ``index``: state (2, B, 4, h, w), noise (B, 4, h, w) -> the next state."""
        ...

    def decode(self, latent: Array) -> Array:
        """Latents (B, 4, h, w) -> images (B, 3, H, W) in [-1, 1]."""
        ...

    def describe(self) -> dict[str, str]:
        """Engine, version and device, for the record of an image."""
        ...


@runtime_checkable
class SupportsFullDenoise(Protocol):
    """An engine that runs all sampler steps in one call."""

    def denoise(
        self,
        state: Array,
        noise: NoiseFunction,
        conditioning: Conditioning,
        table: StepTable,
        progress: ProgressCallback,
    ) -> Array:
        """Equals ``table.steps`` calls of :meth:`Backend.step`: first state (2, B, 4, h, w) -> last state.

        ``noise`` is called with 0 only, when the table draws no noise per step. ``progress`` receives
        :class:`StepProgress` from engines that can show their state.
        """
        ...


@runtime_checkable
class SupportsImageEncode(Protocol):
    """An engine that can run the VAE encoder (img2img)."""

    def encode_image(self, image: Array) -> Array:
        """Images (B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, h, w)."""
        ...


def encoder_number(graph: str) -> int | None:
    """Index of a text encoder graph, from 0, as token tables are counted; None for other graphs."""
    match = _TEXT_ENCODER.fullmatch(graph)
    return None if match is None else int(match[1] or 1) - 1


def ids_for(manifest: Manifest, encoder: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Token ids (B, 77) for one text encoder: everything after the first end token becomes its own padding id."""
    tokenizer = manifest.tokenizer
    is_end = ids == tokenizer.eos
    after_end = np.cumsum(is_end, axis=1) - is_end > 0
    return np.where(after_end, (tokenizer.pad, *tokenizer.more_pads)[encoder], ids)


def join_encodings(contexts: Sequence[Array], pooled: Sequence[Array]) -> Encodings:
    """The outputs of all text encoders side by side; only some have a pooled one."""
    return np.concatenate(contexts, axis=-1), np.concatenate(pooled, axis=-1) if pooled else None


def step_graph(conditioning: Conditioning) -> str:
    """Name of the step graph: with or without guidance."""
    return "step" if len(conditioning.context) == 2 else "step_nocfg"


def step_feeds(
    state: Array, noise: Array, conditioning: Conditioning, table: StepTable, rows: int
) -> dict[str, NDArray[Any]]:
    """Inputs of step 0. Tables are padded to ``rows`` rows, so that shapes do not depend on the number of steps."""
    padded, aux = (np.zeros((rows, *part.shape[1:]), np.float32) for part in (table.table, table.aux))
    padded[: table.steps], aux[: table.steps] = table.table, table.aux
    feeds: dict[str, NDArray[Any]] = {
        "state": state, "step": np.zeros(1, np.int64), "noise": noise,
        "context": conditioning.context, "table": padded, "aux": aux,
    }  # fmt: skip
    more = {"pooled": conditioning.pooled, "size_ids": conditioning.size_ids}
    return feeds | {name: array for name, array in more.items() if array is not None}


def parse_options(text: str) -> dict[str, str]:
    """Parse options of an engine, ``name=value`` separated by commas; the last value of a name counts.

    Example:
        >>> parse_options("prefer_nhwc=1, enable_cuda_graph=0")
        {'prefer_nhwc': '1', 'enable_cuda_graph': '0'}

    Raises:
        UsageError: An entry is not ``name=value``.
    """
    options: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not (name.replace("_", "").isalnum() and equals and value):
            hint = "write name=value,name=value, such as prefer_nhwc=1"
            raise UsageError(f"invalid option of an engine {entry!r}", hint, option=entry)
        options[name] = value
    return options


def cached(cache: OrderedDict[Hashable, Value], key: Hashable, make: Callable[[], Value], size: int) -> Value:
    """The cached value of ``key``, made if missing; a full cache (``size``) drops the least recently used first."""
    if key not in cache:
        while len(cache) >= size:  # before making: both hold device memory
            cache.popitem(last=False)
        cache[key] = make()
    cache.move_to_end(key)
    return cache[key]
