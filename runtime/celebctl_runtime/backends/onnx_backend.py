"""What engines that run a bundle's ONNX graphs one by one have in common: ONNX Runtime and OpenVINO."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.bundle.overrides import EmbeddingOverride, digests_by_row
from celebctl_runtime.errors import IntegrityError
from celebctl_runtime.sampling.samplers import StepTable

from .base import Array, Conditioning, Encodings, Feeds, cached, ids_for, join_encodings, step_feeds, step_graph

if TYPE_CHECKING:
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.bundle.manifest import GraphInfo

CACHE_SIZE = 4  # encoded prompts; of ONNX Runtime also bound loops, one per set of shapes
_READER = "reader"


class OnnxBackend(ABC):
    """A :class:`Backend` over one operation, running a graph (:meth:`_run_raw`)."""

    def __init__(self, bundle: Bundle, *, plain_graphs: bool = False) -> None:
        """``plain_graphs``: ignore the bundle's graphs that are optimized for ONNX Runtime (for benchmarks)."""
        self._bundle, self._plain_graphs = bundle, plain_graphs
        self._encodings: OrderedDict[Hashable, Encodings] = OrderedDict()
        self._projections: WeakKeyDictionary[Conditioning, dict[str, NDArray[Any]]] = WeakKeyDictionary()

    @abstractmethod
    def _use_overrides(self, ids: NDArray[np.int64], overrides: Sequence[EmbeddingOverride]) -> None:
        """Make the text encoders read the overrides, and the rows of all people in ``ids`` as they are now."""

    @abstractmethod
    def _run_raw(self, graph: str, feeds: Feeds) -> list[NDArray[Any]]:
        """Outputs of one run, in the graph's dtypes and in the order of the manifest."""

    def encode(self, ids: NDArray[np.int64], overrides: Sequence[EmbeddingOverride] = ()) -> Encodings:
        """Token ids (B, 77) -> context (B, 77, D) and pooled (B, P); see :meth:`Backend.encode`. Results are cached."""
        manifest = self._bundle.manifest
        digests = digests_by_row(manifest, overrides)
        people = tuple(sorted((row, digests[row]) for row in set(ids.ravel().tolist()) & digests.keys()))
        key = (manifest.fingerprint, ids.tobytes(), people)
        encodings = self._encodings.get(key) or self._encode(ids, overrides)
        if self._bundle.is_current():  # a bundle changing meanwhile may have been read half-written
            return cached(self._encodings, key, lambda: encodings, CACHE_SIZE)
        return encodings

    def _encode(self, ids: NDArray[np.int64], overrides: Sequence[EmbeddingOverride]) -> Encodings:
        self._use_overrides(ids, overrides)
        manifest = self._bundle.manifest
        outputs = [
            self._run(graph, {"input_ids": ids_for(manifest, number, ids)})
            for number, graph in enumerate(self._text_encoders())
        ]
        pooled = [array for encoded in outputs for array in encoded[1:]]
        return join_encodings([encoded[0] for encoded in outputs], pooled)

    def step(self, state: Array, index: int, noise: Array, conditioning: Conditioning, table: StepTable) -> Array:
        """One step; see :meth:`Backend.step`."""
        if conditioning not in self._projections:
            self._projections[conditioning] = self._project(conditioning)
        feeds = self._step_feeds(state, noise, conditioning, table) | self._projections[conditioning]
        feeds["step"] = np.array([index], dtype=np.int64)
        return self._run(step_graph(conditioning), feeds)[0]

    def decode(self, latent: Array) -> Array:
        """Latents (B, 4, h, w) -> images (B, 3, H, W) in [-1, 1]; one by one, for large ones fill a GPU's memory."""
        return np.concatenate([self._run("vae_decoder", {"latent": part[None]})[0] for part in latent])

    def encode_image(self, image: Array) -> Array:
        """Images (B, 3, H, W) in [-1, 1] -> latents (B, 4, h, w). Raises IntegrityError without a VAE encoder."""
        return np.concatenate([self._run("vae_encoder", {"image": part[None]})[0] for part in image])

    def _text_encoders(self) -> list[str]:
        """Names of the text encoder graphs, in the order of the token tables."""
        return ["text_encoder", *(f"text_encoder_{n}" for n in range(2, len(self._bundle.manifest.token_tables) + 1))]

    def _step_feeds(
        self, state: Array, noise: Array, conditioning: Conditioning, table: StepTable
    ) -> dict[str, NDArray[Any]]:
        return step_feeds(state, noise, conditioning, table, self._bundle.schedule.num_train_timesteps)

    def _project(self, conditioning: Conditioning) -> dict[str, NDArray[Any]]:
        """Keys and values of the cross attention, the same in every step, where the bundle has a graph for them."""
        reader = None if self._plain_graphs else self._bundle.manifest.ort_graphs.get(_READER)
        if reader is None:
            return {}
        return dict(zip(reader.outputs, self._run_raw(_READER, {"context": conditioning.context}), strict=True))

    def _run(self, graph: str, feeds: Feeds) -> list[Array]:
        return [output.astype(np.float32, copy=False) for output in self._run_raw(graph, feeds)]

    def _graph_info(self, graph: str) -> GraphInfo:
        """The graph optimized for ONNX Runtime where the bundle has it, else the graph itself."""
        manifest = self._bundle.manifest
        info = (None if self._plain_graphs else manifest.ort_graphs.get(graph)) or manifest.graphs.get(graph)
        if info is None or graph not in (*manifest.graphs, _READER):
            raise outdated(f"the bundle {self._bundle.path} has no graph {graph!r}", graph)
        return info

    def _checked(self, graph: str, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """The feeds in the dtypes that the manifest declares. Raises IntegrityError for other names or shapes."""
        declared = self._graph_info(graph).inputs
        if declared.keys() != feeds.keys():
            raise outdated(f"graph {graph!r} has inputs {sorted(declared)}, not {sorted(feeds)}", graph)
        for name, array in feeds.items():
            shape = declared[name].shape
            if len(shape) != array.ndim or any(
                size != actual for size, actual in zip(shape, array.shape, strict=True) if not isinstance(size, str)
            ):
                problem = f"input {name!r} of graph {graph!r} has shape {list(array.shape)}, declared {list(shape)}"
                raise outdated(problem, graph)
        return {name: np.ascontiguousarray(array, declared[name].dtype) for name, array in feeds.items()}


def outdated(problem: str, graph: str) -> IntegrityError:
    """The error of a graph that does not fit the runtime."""
    return IntegrityError(problem, "export the bundle again", reason="broken_graph", file=graph)
