"""ONNX Runtime as a :class:`Backend`, on the CPU, a CUDA device or the device of a plug-in."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.bundle.overrides import EmbeddingOverride, digests_by_row, overridden_table
from celebctl_runtime.errors import IntegrityError, SetupError, UsageError
from celebctl_runtime.progress import ProgressCallback, ignore_progress
from celebctl_runtime.sampling.samplers import StepTable

from .base import (
    STATE_LOOP,
    TABLE_INPUT,
    Array,
    Conditioning,
    Feeds,
    NoiseFunction,
    StepProgress,
    cached,
    encoder_number,
    step_graph,
)
from .cpu_count import physical_core_count
from .device import DeviceSpec, parse_device
from .onnx_backend import CACHE_SIZE, OnnxBackend
from .ort_plugins import PLUGINS
from .ort_session import (
    CPU,
    CUDA,
    CUDA_OPTIONS,
    NO_CAPTURE,
    CudaFailure,
    choose_providers,
    diagnose_cuda,
    has_nvidia_driver,
    load_onnxruntime,
    one_line,
    open_session,
    translate_ort_errors,
    why_no_capture,
)

if TYPE_CHECKING:
    from pathlib import Path

    from celebctl_runtime.bundle.bundle import Bundle

_log = logging.getLogger(__name__)
_CUDA_BATCH = 4
_KINDS = ("auto", "cpu", "cuda", *PLUGINS)


class OrtBackend(OnnxBackend):
    """ONNX Runtime on the CPU, a CUDA device or that of a plug-in. Sessions are created when first needed and kept.

    On the CPU and on plug-ins images run one at a time: batches are no faster on a CPU, and an image cannot depend on
    its batch. On CUDA up to four run at once; their pixels equal single ones up to rounding.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        threads: int | None = None,
        cuda_options: Mapping[str, str] | None = None,
        *,
        plain_graphs: bool = False,
    ) -> None:
        """Create no session yet.

        Args:
            bundle: The bundle to run.
            device: "auto", "cpu", "cuda", "cuda:N", or one of :data:`PLUGINS`. "auto" logs a warning when CUDA is
                present but fails.
            threads: CPU threads, default one per physical core.
            cuda_options: Added to :data:`CUDA_OPTIONS`; ``enable_cuda_graph="0"`` disables CUDA graphs.
            plain_graphs: Ignore the bundle's graphs that are optimized for ONNX Runtime (for benchmarks).

        Raises:
            UsageError: Unknown device, or one in ``cuda_options``.
            SetupError: ONNX Runtime, CUDA, a GPU of that number or the plug-in is missing.
        """
        spec = parse_device(device)
        if spec.kind not in _KINDS:
            hint = f"use one of {', '.join(_KINDS)}"
            raise UsageError(f"ONNX Runtime has no device {device!r}", hint, reason="unknown_device", device=device)
        if "device_id" in (cuda_options or {}):
            raise UsageError("cuda_options choose no GPU", "leave out device_id, and use a device such as cuda:1")
        super().__init__(bundle, plain_graphs=plain_graphs)
        self._ort = load_onnxruntime()
        self._threads = threads or physical_core_count()
        self._device = spec
        self._providers = choose_providers(self._ort, spec)
        self._cuda_options = {**CUDA_OPTIONS, "device_id": str(spec.index), **(cuda_options or {})}
        # Only the step graph is captured: the inputs of the others have new addresses every time.
        disabled = self._cuda_options.pop("enable_cuda_graph", "1") == "0"
        self._no_capture_reason = "disabled by cuda_options" if disabled else why_no_capture(str(self._ort.__version__))
        self._sessions: dict[str, Any] = {}  # InferenceSession (untyped) by file
        self._opening: dict[str, Thread] = {}
        self._loops: OrderedDict[Hashable, IoBindingLoop] = OrderedDict()
        self._loop_count = 0
        self._fingerprint = ""
        self._overrides: tuple[EmbeddingOverride, ...] = ()  # those of the text encoder sessions
        self._tables: dict[str, Any] = {}  # OrtValue by graph: overridden tables, which sessions do not copy
        self._digests: dict[int, str] = {}  # token row -> digest of its embeddings in the text encoder sessions

    @property
    def batch_limit(self) -> int:
        """One on the CPU, four on CUDA."""
        if CUDA in self._providers:
            self._session("vae_decoder")  # only a session shows whether CUDA works
        return _CUDA_BATCH if CUDA in self._providers else 1

    @property
    def _captures(self) -> bool:
        """Whether steps are captured as CUDA graphs."""
        return CUDA in self._providers and not self._no_capture_reason

    def _use_overrides(self, ids: NDArray[np.int64], overrides: Sequence[EmbeddingOverride]) -> None:
        self._drop_stale_sessions()
        digests = digests_by_row(self._bundle.manifest, overrides)
        # A session on a GPU, or one that copied the table, does not see rows written after it was created.
        if any(digests.get(row) != self._digests.get(row) for row in set(ids.ravel().tolist())):
            for graph in self._text_encoders():
                self._sessions.pop(self._graph_info(graph).file, None)
        if self._graph_info("text_encoder").file not in self._sessions:
            self._digests, self._overrides = digests, tuple(overrides)

    def denoise(
        self,
        state: Array,
        noise: NoiseFunction,
        conditioning: Conditioning,
        table: StepTable,
        progress: ProgressCallback = ignore_progress,
    ) -> Array:
        """All steps, with states kept on the device; see :meth:`SupportsFullDenoise.denoise`."""
        graph = step_graph(conditioning)
        inputs = self._step_feeds(state, noise(0), conditioning, table) | self._project(conditioning)
        feeds = self._checked(graph, inputs)
        session = self._session(graph)  # may find out that CUDA does not work
        key = (graph, *((name, array.shape) for name, array in sorted(feeds.items())))
        on_cuda = CUDA in self._providers

        def bind() -> IoBindingLoop:
            self._loop_count += 1
            graph_ids = (2 * self._loop_count, 2 * self._loop_count + 1) if self._captures else None
            device = DeviceSpec("cuda", self._device.index) if on_cuda else DeviceSpec("cpu")
            return IoBindingLoop(self._ort, session, device, feeds, graph_ids)

        try:
            with translate_ort_errors(on_cuda):
                loop = cached(self._loops, key, bind, CACHE_SIZE)
                return loop.run(feeds, table.steps, noise if table.uses_noise else None, progress)
        except CudaFailure as failure:
            if not self._captures or failure.reason != "cuda_run_failed":
                raise
            self._stop_capturing(failure.problem)
        self._sessions.pop(self._graph_info(graph).file)
        self._loops.clear()
        return self.denoise(state, noise, conditioning, table, progress)

    def describe(self) -> dict[str, str]:
        """Engine, version and device; threads on the CPU, use of CUDA graphs on CUDA."""
        facts = {"engine": "onnxruntime", "version": str(self._ort.__version__)}
        if CUDA not in self._providers:
            device = self._device.kind if self._device.kind in PLUGINS else "cpu"
            return {**facts, "device": device, "threads": str(self._threads)}
        graph = f"no: {self._no_capture_reason}" if self._no_capture_reason else "yes"
        return {**facts, "device": str(DeviceSpec("cuda", self._device.index)), "cuda_graph": graph}

    def prepare(self, graphs: Iterable[str]) -> None:
        """Create the sessions of these graphs in the background, while the main thread imports and tokenizes."""
        if self._providers != [CPU]:
            return  # the first session on CUDA decides the provider of the others; plug-ins may not take two at once
        self._drop_stale_sessions()
        for graph in graphs:
            file = self._graph_info(graph).file
            if file not in self._sessions and file not in self._opening:
                self._opening[file] = Thread(target=self._open_in_background, args=(graph, file))
                self._opening[file].start()

    def _run_raw(self, graph: str, feeds: Feeds) -> list[NDArray[Any]]:
        session, checked, options = self._session(graph), self._checked(graph, feeds), None
        on_cuda = CUDA in self._providers
        if self._captures and graph.startswith("step"):
            options = _run_options(self._ort, NO_CAPTURE)
        with translate_ort_errors(on_cuda):
            return session.run(None, checked, options)

    def _open_in_background(self, graph: str, file: str) -> None:
        with suppress(Exception):  # the thread that needs the session meets the same error
            session = self._open(graph)
            self._sessions.setdefault(file, session)

    def _session(self, graph: str) -> Any:
        self._drop_stale_sessions()
        file = self._graph_info(graph).file
        if file in self._opening:
            self._opening.pop(file).join()
        if file not in self._sessions:
            self._sessions[file] = self._open(graph)
        return self._sessions[file]

    def _drop_stale_sessions(self) -> None:
        """Drop all sessions when the bundle was exported again meanwhile."""
        fingerprint = self._bundle.manifest.fingerprint
        if fingerprint != self._fingerprint:
            for thread in self._opening.values():
                thread.join()
            for cache in (self._opening, self._sessions, self._loops, self._projections):
                cache.clear()
            self._fingerprint = fingerprint

    def _open(self, graph: str) -> Any:
        path, error_message = self._bundle.file(self._graph_info(graph).file), ""
        if self._captures and graph.startswith("step"):
            try:
                return self._check_provider(self._open_file(path, {**self._cuda_options, "enable_cuda_graph": "1"}))
            except (IntegrityError, CudaFailure) as error:
                # A graph with a node that CUDA has no kernel for cannot be captured; other faults show below.
                error_message = one_line(error.__cause__ or error.problem)
        initializers = self._overridden_table(graph)
        try:
            session = self._check_provider(self._open_file(path, self._cuda_options, initializers))
        except CudaFailure as failure:
            if self._device.kind == "cuda":
                raise
            self._fall_back_to_cpu(failure.problem)
            return self._open_file(path, self._cuda_options, initializers)
        if error_message and CUDA in self._providers:
            self._stop_capturing(error_message)
        return session

    def _stop_capturing(self, reason: str) -> None:
        self._no_capture_reason = reason
        _log.warning("steps run without a CUDA graph, which is slower: %s", reason)

    def _open_file(self, path: Path, cuda_options: Mapping[str, str], initializers: Feeds | None = None) -> Any:
        return open_session(self._ort, path, self._threads, self._providers, cuda_options, initializers)

    def _overridden_table(self, graph: str) -> dict[str, Any]:
        """The token table with overrides, for a text encoder; nothing without overrides."""
        self._tables.pop(graph, None)
        number = encoder_number(graph)
        if number is None or not self._overrides:
            return {}
        table = self._bundle.manifest.token_tables[number]
        content = overridden_table(self._bundle.file(table.file), table, number, self._overrides)
        self._tables[graph] = self._ort.OrtValue.ortvalue_from_numpy(content)
        return {TABLE_INPUT: self._tables[graph]}

    def _check_provider(self, session: Any) -> Any:
        """The session, if it is on the device requested: ONNX Runtime falls back to the CPU silently."""
        plugin = PLUGINS.get(self._device.kind)
        if plugin is not None and plugin.provider not in session.get_providers():
            package = plugin.package
            problem = f"ONNX Runtime does not use {package}"
            raise SetupError(problem, "use device='cpu'", reason="provider_unused", package=package)
        if CUDA in self._providers and CUDA not in session.get_providers():
            failure = diagnose_cuda(self._ort)
            if self._device.kind == "cuda":
                raise failure
            self._fall_back_to_cpu(failure.problem if has_nvidia_driver() else "")
        return session

    def _fall_back_to_cpu(self, reason: str) -> None:
        """Use the CPU from now on. Sessions on CUDA are dropped and opened again when needed."""
        if reason:
            _log.warning("%s; using the CPU instead", reason)
        self._providers = [CPU]
        self._sessions.clear()
        self._loops.clear()


class IoBindingLoop:
    """All steps of a run at fixed shapes, with inputs, outputs and states bound to device memory (IOBinding).

    On CUDA each step is replayed as a CUDA graph, whose addresses must not change. Two buffers therefore alternate for
    the state and the step counter: even steps read the first and write the second, odd steps the reverse, each with its
    own binding and captured graph. On the CPU this saves allocations.
    """

    def __init__(
        self, ort: Any, session: Any, device: DeviceSpec, feeds: Feeds, graph_ids: tuple[int, int] | None = None
    ) -> None:
        """``feeds``: every input, in its final shape and dtype. ``graph_ids``: of even and odd steps' CUDA graphs."""
        self._session = session
        self._values = {name: _ort_value(ort, array, device) for name, array in feeds.items()}
        first = {source: self._values[source] for source, _ in STATE_LOOP}
        second = {source: _ort_value(ort, feeds[source], device) for source, _ in STATE_LOOP}
        self._states = (first["state"], second["state"])
        self._bindings = (self._bind(first, second), self._bind(second, first))
        self._options = tuple(_run_options(ort, number) for number in graph_ids or (None, None))

    def run(self, feeds: Feeds, steps: int, noise: NoiseFunction | None, progress: ProgressCallback) -> Array:
        """From the first state in ``feeds`` to the last, (2, B, 4, h, w). ``noise``: None for one block of noise."""
        for name, array in feeds.items():
            self._values[name].update_inplace(array)
        for k in range(steps):
            if noise is not None and k:
                self._values["noise"].update_inplace(np.ascontiguousarray(noise(k), feeds["noise"].dtype))
            self._session.run_with_iobinding(self._bindings[k % 2], self._options[k % 2])
            progress(StepProgress("denoising", k + 1, steps, read_state=partial(self._read_state, k + 1)))
        return self._read_state(steps)

    def _read_state(self, step: int) -> Array:
        return np.array(self._states[step % 2].numpy(), np.float32)  # a copy: a later step overwrites the buffer

    def _bind(self, sources: Mapping[str, Any], targets: Mapping[str, Any]) -> Any:
        binding = self._session.io_binding()
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, sources.get(name, value))
        for source, target in STATE_LOOP:
            binding.bind_ortvalue_output(target, targets[source])
        return binding


def _ort_value(ort: Any, array: NDArray[Any], device: DeviceSpec) -> Any:
    """An OrtValue with a buffer of its own; on the CPU ONNX Runtime would use the array's."""
    return ort.OrtValue.ortvalue_from_numpy(array.copy(), device.kind, device.index)


def _run_options(ort: Any, graph_id: int | None) -> Any:
    if graph_id is None:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
