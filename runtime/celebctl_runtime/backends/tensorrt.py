"""TensorRT behind the interface of backends.py: engines are chosen by shape, a run of all steps is one CUDA graph.

The token table of a text encoder stays in device memory; a person added since costs one copy of two rows. A batch that
no engine takes whole is split into the largest parts that one takes. Inputs that no engine fits go to a fallback, which
is noted once, or are an error where there is none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.bundle.overrides import EmbeddingOverride
from celebctl_runtime.errors import NotFoundError, SetupError
from celebctl_runtime.sampling.samplers import StepTable

from .base import (
    TABLE_INPUT,
    Backend,
    Conditioning,
    SupportsFullDenoise,
    SupportsImageEncode,
    cached,
    encoder_number,
    ids_for,
    step_feeds,
    step_graph,
)
from .cuda_memory import DeviceBuffer, Stream
from .engines import EngineRecord, Shape, choose, find_records
from .tensorrt_runner import DenoisingLoop, Device, Session

if TYPE_CHECKING:
    from celebctl_runtime.bundle.bundle import Bundle

_SESSIONS = 6  # kept at once: each holds device memory for one engine at one set of shapes
Feeds = Mapping[str, NDArray[Any]]
Pieces = list[tuple[slice, tuple[EngineRecord, int]]]  # which pictures of a batch, and the engine and profile for them


class TensorRtBackend:
    """TensorRT on the current CUDA device. Engines are loaded when first needed."""

    def __init__(
        self,
        bundle: Bundle,
        engines: Path,
        *,
        fallback: Callable[[], Backend] | None = None,
        note: Callable[[str], None] = lambda _: None,
        device: Device | None = None,
    ) -> None:
        """``engines``: the cache folder. ``fallback`` makes the backend for inputs that no engine fits; without it
        those are an error. Raises SetupError (no TensorRT, CUDA or GPU) or NotFoundError (no engines for this
        machine).
        """
        self._bundle, self._folder, self._note = bundle, engines, note
        self._make_fallback = fallback
        self._device = device or Device.load()
        self._machine = self._device.machine
        self._stream = Stream(self._device.cuda)
        self._fallback: Backend | None = None
        self._said: set[str] = set()
        self._elsewhere: set[str] = set()  # graphs that the fallback ran for the latest pictures
        self._read_records()

    @property
    def batch_limit(self) -> int:
        """The largest batch that an engine was built for; the fallback's where no engine draws."""
        batches = [
            profile.shapes["noise"][2][0]
            for record in self._records
            for profile in record.profiles
            if "noise" in profile.shapes
        ]
        return max(batches) if batches else self._other("step", "the step").batch_limit

    def encode(
        self, ids: NDArray[np.int64], guests: Sequence[EmbeddingOverride] = ()
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Token ids (B, 77) int64 -> context (B, 77, D) and, of XL models, pooled text (B, P); see :class:`Backend`."""
        self._read_records()
        self._elsewhere.clear()
        manifest = self._bundle.manifest
        encoders = [graph for graph in manifest.graphs if encoder_number(graph) is not None]
        feeds = {graph: {"input_ids": ids_for(manifest, encoder_number(graph) or 0, ids)} for graph in encoders}
        pieces = {graph: self._pieces(graph, feeds[graph], self._table_shapes(graph)) for graph in encoders}
        for graph in encoders:
            if not pieces[graph]:
                return self._other(graph, f"{len(ids)} prompts at once").encode(ids, guests)
        found = [self._encode_one(graph, feeds[graph], pieces[graph], guests) for graph in sorted(encoders)]
        context = np.concatenate([outputs["context"] for outputs in found], axis=-1)
        return context, found[-1].get("pooled")

    def _encode_one(
        self, graph: str, feeds: Feeds, pieces: Pieces, guests: Sequence[EmbeddingOverride]
    ) -> dict[str, NDArray[np.float32]]:
        shared = {TABLE_INPUT: self._current_table(encoder_number(graph) or 0, guests)}
        found: list[dict[str, NDArray[np.float32]]] = []
        for piece, engine in pieces:
            part = self._cut(graph, feeds, piece)
            found.append(self._session(engine, {**_shapes(part), **self._table_shapes(graph)}, shared).run(part))
        return {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}

    def step(
        self,
        state: NDArray[np.float32],
        index: int,
        noise: NDArray[np.float32],
        texts: Conditioning,
        plan: StepTable,
    ) -> NDArray[np.float32]:
        """One step; see :class:`Backend`. Whole runs go faster through :meth:`denoise`."""
        graph = step_graph(texts)
        feeds = {
            **step_feeds(state, texts, plan, self._bundle.schedule.num_train_timesteps),
            "noise": noise,
            "step": np.array([index], np.int64),
        }
        pieces = self._pieces(graph, feeds)
        if not pieces:
            return self._other(graph, self._size(noise)).step(state, index, noise, texts, plan)
        return np.concatenate(self._run_pieces(graph, feeds, pieces, "next_state"), axis=1)

    def denoise(
        self,
        state: NDArray[np.float32],
        noise: Callable[[int], NDArray[np.float32]],
        texts: Conditioning,
        plan: StepTable,
        report: Callable[[int, int], None],
    ) -> NDArray[np.float32]:
        """All steps of ``plan``: state (2, B, 4, h, w) -> the last state, as N calls of :meth:`step` give it.

        ``noise(k)``: the noise (B, 4, h, w) of step k. ``report(done, steps)`` is called after each piece.
        """
        graph, first = step_graph(texts), noise(0)
        inputs = step_feeds(state, texts, plan, self._bundle.schedule.num_train_timesteps)
        feeds = {**inputs, "noise": first, "step": np.zeros(1, np.int64)}
        pieces = self._pieces(graph, feeds)
        if not pieces:
            return self._step_elsewhere(state, noise, texts, plan, report)
        parts: list[NDArray[np.float32]] = []
        for number, (piece, engine) in enumerate(pieces):
            loop = self._loop(engine, _shapes(self._cut(graph, feeds, piece)), plan)
            part = self._cut(graph, inputs, piece)
            parts.append(loop.run(part, lambda k, piece=piece: (noise(k) if k else first)[piece]))
            report(plan.steps * (number + 1) // len(pieces), plan.steps)
        return np.concatenate(parts, axis=1)

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latent (B, 4, h, w) -> pictures (B, 3, H, W) in [-1, 1]."""
        feeds = {"latent": latent}
        pieces = self._pieces("vae_decoder", feeds)
        if not pieces:
            return self._other("vae_decoder", self._size(latent)).decode(latent)
        return np.concatenate(self._run_pieces("vae_decoder", feeds, pieces, "image"))

    def encode_image(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pictures (B, 3, H, W) in [-1, 1] -> latent (B, 4, h, w). Raises as :meth:`step`."""
        feeds = {"image": image}
        pieces = self._pieces("vae_encoder", feeds)
        if pieces:
            return np.concatenate(self._run_pieces("vae_encoder", feeds, pieces, "latent"))
        batch, _, height, width = image.shape
        other = self._other("vae_encoder", f"{_pictures(batch)} of {width}x{height} pixels to begin with")
        if not isinstance(other, SupportsImageEncode):
            raise SetupError("no engine here encodes pictures", "use --device cpu or cuda")
        return other.encode_image(image)

    def _run_pieces(self, graph: str, feeds: Feeds, pieces: Pieces, output: str) -> list[NDArray[np.float32]]:
        parts = [(engine, self._cut(graph, feeds, piece)) for piece, engine in pieces]
        return [self._session(engine, _shapes(part)).run(part)[output] for engine, part in parts]

    def describe(self) -> dict[str, str]:
        """Engine, version and device, and what ran on the fallback for the latest pictures."""
        facts = {"engine": "tensorrt", "version": self._machine.tensorrt, "device": self._machine.gpu}
        if not self._elsewhere or self._fallback is None:
            return facts
        other = self._fallback.describe()
        return {**facts, "elsewhere": f"{other['engine']} {other['version']}: {', '.join(sorted(self._elsewhere))}"}

    def _read_records(self) -> None:
        """Look for engines again when the bundle was exported anew under us."""
        manifest = self._bundle.manifest
        if getattr(self, "_fingerprint", None) == manifest.fingerprint:
            return
        first = not hasattr(self, "_records")
        try:
            self._records = find_records(self._folder, manifest, self._machine)
        except NotFoundError as problem:
            if first or self._make_fallback is None:
                raise
            self._records = []
            self._note(f"{problem.problem}; ONNX Runtime draws instead")
        self._fingerprint = manifest.fingerprint
        self._engines: dict[str, Any] = {}  # of ICudaEngine, by key
        self._sessions: OrderedDict[Hashable, Session] = OrderedDict()
        self._loops: OrderedDict[Hashable, DenoisingLoop] = OrderedDict()
        self._tables: dict[int, DeviceBuffer] = {}  # by text encoder
        self._rows_there: dict[tuple[int, int], str] = {}  # (encoder, token row) -> digest of the person on the device

    def _pieces(self, graph: str, feeds: Feeds, fixed: Mapping[str, Shape] | None = None) -> Pieces:
        """A batch as the largest runs of pictures that some engine takes; empty where none fits."""
        axes = self._batch_axes(graph)
        batch = next(array.shape[axes[name]] for name, array in feeds.items() if name in axes)
        found: Pieces = []
        start = 0
        while start < batch:
            for stop in range(batch, start, -1):
                shapes = {**_shapes(self._cut(graph, feeds, slice(start, stop))), **(fixed or {})}
                engine = choose(self._records, graph, shapes)
                if engine is not None:
                    found.append((slice(start, stop), engine))
                    start = stop
                    break
            else:
                return []
        return found

    def _batch_axes(self, graph: str) -> dict[str, int]:
        """Which axis of each input counts pictures."""
        inputs = self._bundle.manifest.graphs[graph].inputs
        return {name: facts.shape.index("batch") for name, facts in inputs.items() if "batch" in facts.shape}

    def _cut(self, graph: str, feeds: Feeds, piece: slice) -> dict[str, NDArray[Any]]:
        axes = self._batch_axes(graph)
        return {
            name: array[(slice(None),) * axes[name] + (piece,)] if name in axes else array
            for name, array in feeds.items()
        }

    def _session(
        self,
        engine: tuple[EngineRecord, int],
        shapes: Mapping[str, Shape],
        shared: Mapping[str, DeviceBuffer] | None = None,
    ) -> Session:
        record, profile = engine
        key = (record.key, profile, tuple(sorted(shapes.items())))
        return cached(
            self._sessions,
            key,
            lambda: Session(self._device, self._stream, self._engine(record), profile, shapes, shared),
            _SESSIONS,
        )

    def _loop(self, engine: tuple[EngineRecord, int], shapes: Mapping[str, Shape], plan: StepTable) -> DenoisingLoop:
        """The captured loop. It has a session to itself, for it leaves buffers bound where its last step had them."""
        record, profile = engine
        key = (record.key, profile, tuple(sorted(shapes.items())), plan.steps, plan.uses_noise)

        def make() -> DenoisingLoop:
            session = Session(self._device, self._stream, self._engine(record), profile, shapes)
            return DenoisingLoop(session, plan.steps, plan.uses_noise)

        return cached(self._loops, key, make, _SESSIONS)

    def _engine(self, record: EngineRecord) -> Any:
        if record.key not in self._engines:
            plan = (self._folder / record.key / record.file).read_bytes()
            self._engines[record.key] = self._device.library.deserialize(plan, record.file)
        return self._engines[record.key]

    def _table_shapes(self, graph: str) -> dict[str, Shape]:
        table = self._bundle.manifest.token_tables[encoder_number(graph) or 0]
        return {TABLE_INPUT: (table.rows, table.width)}

    def _current_table(self, encoder: int, guests: Sequence[EmbeddingOverride]) -> DeviceBuffer:
        """A text encoder's token table on the device, with the rows of all people in the bundle."""
        manifest = self._bundle.manifest
        table = manifest.token_tables[encoder]
        shape = (table.rows, table.width)
        file = np.memmap(self._bundle.file(table.file), np.dtype(table.dtype), "r", shape=shape)
        if encoder not in self._tables:
            buffer = DeviceBuffer(self._device.cuda, file.nbytes)
            self._stream.upload(file, buffer.address)
            self._stream.synchronize()
            self._tables[encoder] = buffer
        moved: dict[tuple[int, int], str] = {}
        for resident in manifest.identities.values():
            first, last = resident.rows[encoder]
            if self._rows_there.get((encoder, first)) != resident.digest:
                rows = np.array(file[first : last + 1])
                self._stream.upload(rows, self._tables[encoder].address + first * table.row_bytes)
                self._stream.synchronize()
                moved[encoder, first] = resident.digest
        if self._bundle.is_current():  # otherwise what was read may be half of something; read it again next time
            self._rows_there.update(moved)
        for guest in guests:
            first = guest.rows[encoder][0]
            rows = guest.embeddings[encoder].astype(table.dtype)
            self._stream.upload(rows, self._tables[encoder].address + first * table.row_bytes)
            self._stream.synchronize()
            self._rows_there[encoder, first] = guest.digest
        return self._tables[encoder]

    def _step_elsewhere(
        self,
        state: NDArray[np.float32],
        noise: Callable[[int], NDArray[np.float32]],
        texts: Conditioning,
        plan: StepTable,
        report: Callable[[int, int], None],
    ) -> NDArray[np.float32]:
        block = noise(0)
        other = self._other(step_graph(texts), self._size(block))
        if isinstance(other, SupportsFullDenoise):
            return other.denoise(state, lambda k: noise(k) if k else block, texts, plan, report)
        for index in range(plan.steps):
            state = other.step(state, index, noise(index) if plan.uses_noise else block, texts, plan)
            report(index + 1, plan.steps)
        return state

    def _other(self, graph: str, what: str) -> Backend:
        """The fallback, for inputs that no engine fits; noted once. Raises SetupError without a fallback."""
        problem = f"no TensorRT engine of {self._machine.gpu} fits {what}"
        if self._make_fallback is None:
            raise SetupError(problem, "build one: celebctl export --trt --engine BxHxW, or use --device auto")
        if problem not in self._said:
            self._said.add(problem)
            self._note(f"{problem}; ONNX Runtime runs that part")
        self._elsewhere.add(graph)
        if self._fallback is None:
            self._fallback = self._make_fallback()
        return self._fallback

    def _size(self, latent: NDArray[np.float32]) -> str:
        batch, _, h, w = latent.shape
        factor = self._bundle.manifest.size.vae_factor
        return f"{_pictures(batch)} of {w * factor}x{h * factor} pixels"


def _pictures(count: int) -> str:
    return f"{count} picture{'s' if count > 1 else ''}"


def _shapes(feeds: Feeds) -> dict[str, Shape]:
    return {name: array.shape for name, array in feeds.items()}
