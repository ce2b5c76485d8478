"""TensorRT as a :class:`Backend`: engines are chosen by input shapes, all sampler steps run as one CUDA graph.

A batch that no engine accepts whole is split into the largest parts that one accepts. Inputs that fit no engine run on
a fallback backend, with one warning, or are an error without a fallback. The token table stays in device memory; a
person added meanwhile costs one copy of two rows.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.bundle.overrides import EmbeddingOverride
from celebctl_runtime.errors import NotFoundError, SetupError
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress
from celebctl_runtime.sampling.samplers import StepTable

from .base import (
    TABLE_INPUT,
    Array,
    Backend,
    Conditioning,
    Encodings,
    Feeds,
    NoiseFunction,
    SupportsFullDenoise,
    SupportsImageEncode,
    cached,
    encoder_number,
    ids_for,
    join_encodings,
    step_feeds,
    step_graph,
)
from .cuda_memory import DeviceBuffer, Stream
from .engines import EngineRecord, Shape, choose_engine, find_records
from .tensorrt_runner import DenoisingLoop, Device, Session

if TYPE_CHECKING:
    from celebctl_runtime.bundle.bundle import Bundle

_log = logging.getLogger(__name__)
_CACHE_SIZE = 6  # sessions, and loops; each holds device memory for one engine at one set of shapes
Engine = tuple[EngineRecord, int]  # an engine and the index of its profile
Parts = list[tuple[slice, Engine]]  # slices of a batch, and the engine for each


class TensorRtBackend:
    """TensorRT on one GPU. Engines are loaded when first needed."""

    def __init__(
        self,
        bundle: Bundle,
        engines: Path,
        *,
        fallback: Callable[[], Backend] | None = None,
        device: Device | None = None,
    ) -> None:
        """Find the engines of the bundle for this machine.

        Args:
            bundle: The bundle to run.
            engines: Cache folder of engines.
            fallback: Makes the backend for inputs that fit no engine; None: those raise SetupError.
            device: TensorRT and CUDA; None: the installed ones.

        Raises:
            SetupError: TensorRT, CUDA or a GPU is missing.
            NotFoundError: No engines for this machine.
        """
        self._bundle, self._folder = bundle, engines
        self._make_fallback = fallback
        self._device = device or Device.load()
        self._machine = self._device.machine
        self._stream = Stream(self._device.cuda)
        self._fallback: Backend | None = None
        self._warnings: set[str] = set()  # already logged
        self._fallback_graphs: set[str] = set()  # graphs that the fallback ran for the latest images
        self._use_records(find_records(engines, bundle.manifest, self._machine))

    def _use_records(self, records: list[EngineRecord]) -> None:
        self._records = records
        self._fingerprint = self._bundle.manifest.fingerprint
        self._engines: dict[str, Any] = {}  # ICudaEngine by key
        self._sessions: OrderedDict[Hashable, Session] = OrderedDict()
        self._loops: OrderedDict[Hashable, DenoisingLoop] = OrderedDict()
        self._tables: dict[int, DeviceBuffer] = {}  # by text encoder
        self._digests: dict[tuple[int, int], str] = {}  # (encoder, row) -> digest of the embeddings on the device

    def _refresh_records(self) -> None:
        """Find the engines again when the bundle was exported again meanwhile."""
        manifest = self._bundle.manifest
        if self._fingerprint == manifest.fingerprint:
            return
        try:
            records = find_records(self._folder, manifest, self._machine)
        except NotFoundError as error:
            if self._make_fallback is None:
                raise
            records = []
            _log.warning("%s; using ONNX Runtime instead", error.problem)
        self._use_records(records)

    @property
    def batch_limit(self) -> int:
        """The largest batch of the step engines; the fallback's limit without any."""
        profiles = [profile for record in self._records for profile in record.profiles]
        batches = [profile.shapes["noise"][2][0] for profile in profiles if "noise" in profile.shapes]
        return max(batches) if batches else self._fall_back("step", "the step graph").batch_limit

    def encode(self, ids: NDArray[np.int64], overrides: Sequence[EmbeddingOverride] = ()) -> Encodings:
        """Token ids (B, 77) -> context (B, 77, D) and pooled (B, P); see :meth:`Backend.encode`."""
        self._device.cuda.select()
        self._refresh_records()
        self._fallback_graphs.clear()
        manifest = self._bundle.manifest
        encoders = sorted(graph for graph in manifest.graphs if encoder_number(graph) is not None)
        feeds = {graph: {"input_ids": ids_for(manifest, encoder_number(graph) or 0, ids)} for graph in encoders}
        parts = {graph: self._split(graph, feeds[graph], self._table_shapes(graph)) for graph in encoders}
        for graph in encoders:
            if not parts[graph]:
                return self._fall_back(graph, f"{len(ids)} prompts at once").encode(ids, overrides)
        outputs = [self._encode_one(graph, feeds[graph], parts[graph], overrides) for graph in encoders]
        pooled = [encoded["pooled"] for encoded in outputs if "pooled" in encoded]
        return join_encodings([encoded["context"] for encoded in outputs], pooled)

    def _encode_one(
        self, graph: str, feeds: Feeds, parts: Parts, overrides: Sequence[EmbeddingOverride]
    ) -> dict[str, Array]:
        shared = {TABLE_INPUT: self._current_table(encoder_number(graph) or 0, overrides)}
        outputs: list[dict[str, Array]] = []
        for images, engine in parts:
            part = self._slice(graph, feeds, images)
            outputs.append(self._session(engine, {**_shapes(part), **self._table_shapes(graph)}, shared).run(part))
        return {name: np.concatenate([encoded[name] for encoded in outputs]) for name in outputs[0]}

    def step(self, state: Array, index: int, noise: Array, conditioning: Conditioning, table: StepTable) -> Array:
        """One step; see :meth:`Backend.step`. Whole runs are faster with :meth:`denoise`."""
        self._device.cuda.select()
        graph = step_graph(conditioning)
        feeds = self._step_feeds(state, noise, conditioning, table) | {"step": np.array([index], np.int64)}
        parts = self._split(graph, feeds)
        if not parts:
            return self._fall_back(graph, self._size(noise)).step(state, index, noise, conditioning, table)
        return self._run_parts(graph, feeds, parts, "next_state", axis=1)

    def denoise(
        self,
        state: Array,
        noise: NoiseFunction,
        conditioning: Conditioning,
        table: StepTable,
        progress: ProgressCallback = ignore_progress,
    ) -> Array:
        """All steps; see :meth:`SupportsFullDenoise.denoise`. Progress is reported after each part of the batch."""
        self._device.cuda.select()
        graph, first = step_graph(conditioning), noise(0)
        feeds = self._step_feeds(state, first, conditioning, table)
        parts = self._split(graph, feeds)
        if not parts:
            return self._denoise_with_fallback(state, lambda k: noise(k) if k else first, conditioning, table, progress)
        states: list[Array] = []
        for number, (images, engine) in enumerate(parts, 1):
            part = self._slice(graph, feeds, images)
            loop = self._loop(engine, _shapes(part), table)
            del part["noise"]
            states.append(loop.run(part, lambda k, images=images: (noise(k) if k else first)[images]))
            progress(Progress("denoising", table.steps * number // len(parts), table.steps))
        return np.concatenate(states, axis=1)

    def decode(self, latent: Array) -> Array:
        """Latents (B, 4, h, w) -> images (B, 3, H, W) in [-1, 1]."""
        self._device.cuda.select()
        feeds = {"latent": latent}
        parts = self._split("vae_decoder", feeds)
        if not parts:
            return self._fall_back("vae_decoder", self._size(latent)).decode(latent)
        return self._run_parts("vae_decoder", feeds, parts, "image")

    def encode_image(self, image: Array) -> Array:
        """Images (B, 3, H, W) in [-1, 1] -> latents (B, 4, h, w). Raises SetupError when no engine fits."""
        self._device.cuda.select()
        feeds = {"image": image}
        parts = self._split("vae_encoder", feeds)
        if parts:
            return self._run_parts("vae_encoder", feeds, parts, "latent")
        batch, _, height, width = image.shape
        fallback = self._fall_back("vae_encoder", (batch, height, width))
        if not isinstance(fallback, SupportsImageEncode):
            hint = "use device='cpu' or 'cuda'"
            raise SetupError("this engine does not support init images", hint, reason="no_img2img")
        return fallback.encode_image(image)

    def describe(self) -> dict[str, str]:
        """Engine, version and GPU, and what the fallback ran for the latest images."""
        facts = {"engine": "tensorrt", "version": self._machine.tensorrt, "device": self._machine.gpu}
        if not self._fallback_graphs or self._fallback is None:
            return facts
        other, graphs = self._fallback.describe(), ", ".join(sorted(self._fallback_graphs))
        return {**facts, "elsewhere": f"{other['engine']} {other['version']}: {graphs}"}

    def _step_feeds(
        self, state: Array, noise: Array, conditioning: Conditioning, table: StepTable
    ) -> dict[str, NDArray[Any]]:
        return step_feeds(state, noise, conditioning, table, self._bundle.schedule.num_train_timesteps)

    def _run_parts(self, graph: str, feeds: Feeds, parts: Parts, output: str, axis: int = 0) -> Array:
        slices = [(engine, self._slice(graph, feeds, images)) for images, engine in parts]
        return np.concatenate(
            [self._session(engine, _shapes(part)).run(part)[output] for engine, part in slices], axis=axis
        )

    def _split(self, graph: str, feeds: Feeds, fixed: Mapping[str, Shape] | None = None) -> Parts:
        """A batch as the largest slices that an engine accepts; empty when none fits."""
        axes = self._batch_axes(graph)
        batch = next(array.shape[axes[name]] for name, array in feeds.items() if name in axes)
        parts: Parts = []
        start = 0
        while start < batch:
            for stop in range(batch, start, -1):
                shapes = {**_shapes(self._slice(graph, feeds, slice(start, stop))), **(fixed or {})}
                engine = choose_engine(self._records, graph, shapes)
                if engine is not None:
                    parts.append((slice(start, stop), engine))
                    start = stop
                    break
            else:
                return []
        return parts

    def _batch_axes(self, graph: str) -> dict[str, int]:
        """The batch axis of each input that has one."""
        inputs = self._bundle.manifest.graphs[graph].inputs
        return {name: info.shape.index("batch") for name, info in inputs.items() if "batch" in info.shape}

    def _slice(self, graph: str, feeds: Feeds, images: slice) -> dict[str, NDArray[Any]]:
        axes = self._batch_axes(graph)
        return {
            name: array[(slice(None),) * axes[name] + (images,)] if name in axes else array
            for name, array in feeds.items()
        }

    def _session(
        self, engine: Engine, shapes: Mapping[str, Shape], shared: Mapping[str, DeviceBuffer] | None = None
    ) -> Session:
        return cached(
            self._sessions, _key(engine, shapes), lambda: self._new_session(engine, shapes, shared), _CACHE_SIZE
        )

    def _loop(self, engine: Engine, shapes: Mapping[str, Shape], table: StepTable) -> DenoisingLoop:
        """The captured loop, on a session of its own: it leaves buffers bound as its last step needs them."""
        return cached(
            self._loops,
            (*_key(engine, shapes), table.steps, table.uses_noise),
            lambda: DenoisingLoop(self._new_session(engine, shapes), table.steps, table.uses_noise),
            _CACHE_SIZE,
        )

    def _new_session(
        self, engine: Engine, shapes: Mapping[str, Shape], shared: Mapping[str, DeviceBuffer] | None = None
    ) -> Session:
        record, profile = engine
        if record.key not in self._engines:
            plan = (self._folder / record.key / record.file).read_bytes()
            self._engines[record.key] = self._device.library.deserialize(plan, record.file)
        return Session(self._device, self._stream, self._engines[record.key], profile, shapes, shared)

    def _table_shapes(self, graph: str) -> dict[str, Shape]:
        table = self._bundle.manifest.token_tables[encoder_number(graph) or 0]
        return {TABLE_INPUT: (table.rows, table.width)}

    def _current_table(self, encoder: int, overrides: Sequence[EmbeddingOverride]) -> DeviceBuffer:
        """A text encoder's token table on the device, with all people's rows up to date and the overrides applied."""
        manifest = self._bundle.manifest
        table = manifest.token_tables[encoder]
        shape = (table.rows, table.width)
        file = np.memmap(self._bundle.file(table.file), np.dtype(table.dtype), "r", shape=shape)
        if encoder not in self._tables:
            self._tables[encoder] = DeviceBuffer(self._device.cuda, file.nbytes)
            self._upload(file, self._tables[encoder].address)
        address, copied = self._tables[encoder].address, dict[tuple[int, int], str]()
        for entry in manifest.identities.values():
            first, last = entry.rows[encoder]
            if self._digests.get((encoder, first)) != entry.digest:
                self._upload(np.array(file[first : last + 1]), address + first * table.row_bytes)
                copied[encoder, first] = entry.digest
        if self._bundle.is_current():  # else the rows may have been read half-written: read them again next time
            self._digests.update(copied)
        for override in overrides:
            first = override.rows[encoder][0]
            self._upload(override.embeddings[encoder].astype(table.dtype), address + first * table.row_bytes)
            self._digests[encoder, first] = override.digest
        return self._tables[encoder]

    def _upload(self, rows: NDArray[Any], address: int) -> None:
        self._stream.upload(rows, address)
        self._stream.synchronize()

    def _denoise_with_fallback(
        self,
        state: Array,
        noise: NoiseFunction,
        conditioning: Conditioning,
        table: StepTable,
        progress: ProgressCallback,
    ) -> Array:
        first = noise(0)
        fallback = self._fall_back(step_graph(conditioning), self._size(first))
        if isinstance(fallback, SupportsFullDenoise):
            return fallback.denoise(state, noise, conditioning, table, progress)
        for index in range(table.steps):
            step_noise = noise(index) if table.uses_noise else first
            state = fallback.step(state, index, step_noise, conditioning, table)
            progress(Progress("denoising", index + 1, table.steps))
        return state

    def _fall_back(self, graph: str, inputs: str | tuple[int, int, int]) -> Backend:
        """The fallback, for inputs (a description, or batch, height and width) that fit no engine.

        Logs one warning. Raises SetupError without a fallback.
        """
        size, subject = "", str(inputs)
        if isinstance(inputs, tuple):
            (batch, height, width), size = inputs, "x".join(map(str, inputs))
            subject = f"{batch} image{'s' if batch > 1 else ''} of {width}x{height} pixels"
        problem = f"no TensorRT engine for {subject} on {self._machine.gpu}"
        if self._make_fallback is None:
            hint, reason = "build an engine for it, or use device='auto'", "no_engine_fits" if size else "no_engines"
            raise SetupError(problem, hint, reason=reason, size=size)
        if problem not in self._warnings:
            self._warnings.add(problem)
            _log.warning("%s; using ONNX Runtime for it", problem)
        self._fallback_graphs.add(graph)
        if self._fallback is None:
            self._fallback = self._make_fallback()
        return self._fallback

    def _size(self, latent: Array) -> tuple[int, int, int]:
        batch, _, h, w = latent.shape
        factor = self._bundle.manifest.size.vae_factor
        return batch, h * factor, w * factor


def _key(engine: Engine, shapes: Mapping[str, Shape]) -> tuple[Hashable, ...]:
    record, profile = engine
    return record.key, profile, tuple(sorted(shapes.items()))


def _shapes(feeds: Feeds) -> dict[str, Shape]:
    return {name: array.shape for name, array in feeds.items()}
