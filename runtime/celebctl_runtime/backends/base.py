"""The interface of inference engines (:class:`Backend`), the inputs they share, and the choice of one by device.

Arrays go in and come out as float32 numpy arrays, whatever dtype the graph computes in. A backend knows no sampler (a
step is a row of a table), no prompt and no person.
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
from celebctl_runtime.errors import NotFoundError, SetupError
from celebctl_runtime.sampling.samplers import StepTable

if TYPE_CHECKING:
    from pathlib import Path

    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.bundle.manifest import Manifest

DEVICES = ("auto", "cpu", "cuda", "trt")
TABLE_INPUT = "token_table"  # the initializer of a text encoder that backends replace
_TEXT_ENCODER = re.compile(r"text_encoder(?:_(\d+))?")
Cached = TypeVar("Cached")
Encodings = tuple[NDArray[np.float32], NDArray[np.float32] | None]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the network reads of the prompts. G is 2 with guidance (the negative prompt first), 1 without.

    context: (G, B, 77, D) float32. For XL models, else None: pooled (G, B, P) float32 and size_ids (6,) float32, the
    picture's height, width, crop top, crop left, height, width in pixels.
    """

    context: NDArray[np.float32]
    pooled: NDArray[np.float32] | None = None
    size_ids: NDArray[np.float32] | None = None


class Backend(Protocol):
    """An engine that runs a bundle. B pictures, text width D, latent (4, h, w), picture (3, H, W)."""

    @property
    def batch_limit(self) -> int:
        """How many pictures the engine takes at once."""
        ...

    def encode(self, ids: NDArray[np.int64], guests: Sequence[EmbeddingOverride] = ()) -> Encodings:
        """Token ids (B, 77) -> context (B, 77, D) and, of XL models, pooled text (B, P).

        The rows of ``guests`` count in place of what the token tables have there.
        """
        ...

    def step(
        self,
        state: NDArray[np.float32],
        index: int,
        noise: NDArray[np.float32],
        texts: Conditioning,
        plan: StepTable,
    ) -> NDArray[np.float32]:
        """Step ``index`` of ``plan``: state (2, B, 4, h, w), noise (B, 4, h, w) -> the next state."""
        ...

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latent (B, 4, h, w) -> pictures (B, 3, H, W) in [-1, 1]."""
        ...

    def describe(self) -> dict[str, str]:
        """What a picture's record says about the engine."""
        ...


@runtime_checkable
class SupportsFullDenoise(Protocol):
    """An engine that takes all steps of a run at once."""

    def denoise(
        self,
        state: NDArray[np.float32],
        noise: Callable[[int], NDArray[np.float32]],
        texts: Conditioning,
        plan: StepTable,
        report: Callable[[int, int], None],
    ) -> NDArray[np.float32]:
        """What N calls of :meth:`Backend.step` give. ``noise(k)``: of step k; ``report(done, steps)``: progress."""
        ...


@runtime_checkable
class SupportsImageEncode(Protocol):
    """An engine that can begin from a picture."""

    def encode_image(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pictures (B, 3, H, W) in [-1, 1] -> latent (B, 4, h, w) as steps want it."""
        ...


def choose_backend(
    bundle: Bundle,
    device: str,
    threads: int | None,
    engines: Path,
    note: Callable[[str], None],
    cuda_options: Mapping[str, str] | None = None,
) -> Backend:
    """The backend for ``--device``. ``auto`` takes TensorRT where engines fit and ONNX Runtime for the rest.

    ``engines``: the user's cache folder of TensorRT engines. ``cuda_options``: see :class:`OrtBackend`.
    ``note`` is called once for each part that runs elsewhere, with the reason. Raises UsageError, NotFoundError or
    SetupError.
    """
    from .engines import read_records
    from .ort import OrtBackend
    from .tensorrt import TensorRtBackend

    if device == "trt":
        return TensorRtBackend(bundle, engines)
    if device == "auto" and read_records(engines, bundle.manifest):
        try:
            return TensorRtBackend(
                bundle, engines, fallback=lambda: OrtBackend(bundle, "auto", threads, cuda_options, note), note=note
            )
        except (SetupError, NotFoundError) as problem:
            note(f"{problem.problem}; ONNX Runtime draws instead")
    backend = OrtBackend(bundle, device, threads, cuda_options, note)
    backend.prepare(("step", "vae_decoder"))
    return backend


def encoder_number(graph: str) -> int | None:
    """Index of a text encoder graph, from 0, as token tables are counted; None for other graphs."""
    found = _TEXT_ENCODER.fullmatch(graph)
    return None if found is None else int(found[1] or 1) - 1


def ids_for(manifest: Manifest, encoder: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Token ids (B, 77) as one of the text encoders wants them: what follows the first end is its own padding."""
    facts = manifest.tokenizer
    ends = ids == facts.eos
    return np.where(np.cumsum(ends, axis=1) - ends > 0, (facts.pad, *facts.more_pads)[encoder], ids)


def step_graph(texts: Conditioning) -> str:
    """The graph that runs a step for these texts."""
    return "step" if len(texts.context) == 2 else "step_nocfg"


def step_feeds(state: NDArray[np.float32], texts: Conditioning, plan: StepTable, rows: int) -> dict[str, NDArray[Any]]:
    """What stays the same from step to step. Tables are filled up to ``rows``, so that shapes do not tell N."""
    table, aux = (np.zeros((rows, *part.shape[1:]), np.float32) for part in (plan.table, plan.aux))
    table[: plan.steps], aux[: plan.steps] = plan.table, plan.aux
    feeds: dict[str, NDArray[Any]] = {"state": state, "context": texts.context, "table": table, "aux": aux}
    if texts.pooled is not None and texts.size_ids is not None:
        feeds |= {"pooled": texts.pooled, "size_ids": texts.size_ids}
    return feeds


def cached(kept: OrderedDict[Hashable, Cached], key: Hashable, make: Callable[[], Cached], most: int) -> Cached:
    """The one for ``key``, made if need be; those not used for longest go, and the memory they hold with them."""
    if key not in kept:
        while len(kept) >= most:
            kept.popitem(last=False)
        kept[key] = make()
    kept.move_to_end(key)
    return kept[key]
