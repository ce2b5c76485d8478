"""ONNX Runtime behind the interface of backends.py, on the CPU or a CUDA device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.bundle.overrides import EmbeddingOverride, digests_by_row, overridden_table
from celebctl_runtime.errors import IntegrityError, UsageError
from celebctl_runtime.sampling.samplers import StepTable

from .base import DEVICES, TABLE_INPUT, Conditioning, Encodings, cached, encoder_number, ids_for, step_feeds, step_graph
from .cpu_count import physical_core_count
from .ort_session import (
    CPU,
    CUDA,
    CUDA_OPTIONS,
    NO_CAPTURE,
    CudaFailure,
    choose_providers,
    has_driver,
    load_onnxruntime,
    memory_problems,
    no_cuda,
    one_line,
)
from .ort_session import open_session as open_ort

if TYPE_CHECKING:
    from pathlib import Path

    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.bundle.manifest import GraphInfo

_GPU_BATCH = 4
_KEPT = 4  # shapes of steps whose buffers are kept, and prompts whose encodings are
_READER = "reader"
_TURNS = (("state", "next_state"), ("step", "next_step"))


class OrtBackend:
    """ONNX Runtime on the CPU or a CUDA device. Sessions are made when first needed and kept for further pictures.

    On the CPU pictures run one at a time: a batch is no faster there, and so a picture cannot depend on the company it
    is drawn in. On CUDA several run at once; their pixels then equal single ones up to the engine's rounding.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        threads: int | None = None,
        cuda_options: Mapping[str, str] | None = None,
        note: Callable[[str], None] = lambda _: None,
        plain_graphs: bool = False,
    ) -> None:
        """``threads``: CPU threads, default one per physical core. ``cuda_options``: beside, or instead of, our own;
        enable_cuda_graph 0 runs every step by itself. ``note`` hears why the CPU draws although there is a GPU, and
        why steps are not replayed as CUDA graphs. ``plain_graphs``: as everybody gets them, not the forms of the bundle
        that are made for ONNX Runtime, to measure what those are worth.

        Raises UsageError for an unknown device, SetupError when ONNX Runtime or the device is missing.
        """
        if device == "trt" or device not in DEVICES:
            raise UsageError(f"there is no device {device!r}", f"use --device with one of {', '.join(DEVICES)}")
        self._bundle = bundle
        self._ort = load_onnxruntime()
        self._threads = threads or physical_core_count()
        self._wanted, self._note, self._plain = device, note, plain_graphs
        self._providers = choose_providers(self._ort, device)
        self._cuda_options = {**CUDA_OPTIONS, **(cuda_options or {})}
        # Steps as CUDA graphs, until a session refuses. No other graph may be captured: their inputs lie elsewhere
        # every time.
        self._captures = self._cuda_options.pop("enable_cuda_graph", "1") != "0"
        self._uncaptured = "" if self._captures else "switched off by cuda_options"  # why not
        self._sessions: dict[str, Any] = {}  # by file; of InferenceSession, which has no usable types
        self._opening: dict[str, Thread] = {}
        self._bound: OrderedDict[Hashable, BoundSteps] = OrderedDict()
        self._bound_ever = 0
        self._encoded: OrderedDict[Hashable, Encodings] = OrderedDict()
        self._read: WeakKeyDictionary[Conditioning, dict[str, NDArray[Any]]] = WeakKeyDictionary()
        self._fingerprint = ""
        self._guests: tuple[EmbeddingOverride, ...] = ()  # whom that session was opened with
        self._tables: dict[str, Any] = {}  # of OrtValue, by graph: tables with guests, which a session does not copy
        self._people: dict[int, str] = {}  # token row -> digest of whom the text encoder's session holds there

    @property
    def batch_limit(self) -> int:
        """One on the CPU, several on CUDA."""
        if CUDA in self._providers:
            self._session("vae_decoder")  # only a session tells whether CUDA is really there
        return _GPU_BATCH if CUDA in self._providers else 1

    def encode(self, ids: NDArray[np.int64], guests: Sequence[EmbeddingOverride] = ()) -> Encodings:
        """Token ids (B, 77) int64 -> context (B, 77, D) and, of XL models, pooled text (B, P); see :class:`Backend`."""
        manifest = self._bundle.manifest
        people = digests_by_row(manifest, guests)
        rows = set(ids.ravel().tolist())
        met = tuple(sorted((row, people[row]) for row in rows & people.keys()))
        key = (manifest.fingerprint, ids.tobytes(), met)  # equal prompts that mean the same people read the same
        found = self._encoded[key] if key in self._encoded else self._encode(ids, people, guests)
        if self._bundle.is_current():  # otherwise what was read may be half of something
            return cached(self._encoded, key, lambda: found, _KEPT)
        return found

    def _encode(self, ids: NDArray[np.int64], people: dict[int, str], guests: Sequence[EmbeddingOverride]) -> Encodings:
        self._look_again()  # before sessions of another export are taken for those that this one needs
        manifest = self._bundle.manifest
        graphs = ["text_encoder", *(f"text_encoder_{n}" for n in range(2, len(manifest.token_tables) + 1))]
        # A session on a GPU, or one whose engine copied the table, does not see rows that were written after it began.
        if any(people.get(row) != self._people.get(row) for row in set(ids.ravel().tolist())):
            for graph in graphs:
                self._sessions.pop(self._facts(graph).file, None)
        if self._facts("text_encoder").file not in self._sessions:
            self._people, self._guests = people, tuple(guests)
        found = [
            self._run_all(graph, {"input_ids": ids_for(manifest, number, ids)}) for number, graph in enumerate(graphs)
        ]
        context = np.concatenate([outputs[0] for outputs in found], axis=-1)
        return context, found[-1][1] if len(found[-1]) > 1 else None

    def step(
        self,
        state: NDArray[np.float32],
        index: int,
        noise: NDArray[np.float32],
        texts: Conditioning,
        plan: StepTable,
    ) -> NDArray[np.float32]:
        """One step; see :class:`Backend`. Whole runs go faster through :meth:`denoise`."""
        if texts not in self._read:
            self._read[texts] = self._memory(texts)
        feeds = self._step_feeds(state, noise, texts, plan, self._read[texts])
        feeds["step"] = np.array([index], dtype=np.int64)
        return self._run(step_graph(texts), feeds)

    def denoise(
        self,
        state: NDArray[np.float32],
        noise: Callable[[int], NDArray[np.float32]],
        texts: Conditioning,
        plan: StepTable,
        report: Callable[[int, int], None],
    ) -> NDArray[np.float32]:
        """All steps of ``plan`` with no state moved: state (2, B, 4, h, w) -> the last; see :class:`SupportsFullDenoise`."""
        graph = step_graph(texts)
        feeds = self._checked(graph, self._step_feeds(state, noise(0), texts, plan, self._memory(texts)))
        session = self._session(graph)  # after what may show that CUDA does not work
        key = (graph, *((name, array.shape) for name, array in sorted(feeds.items())))
        on_cuda = CUDA in self._providers

        def bind() -> BoundSteps:
            self._bound_ever += 1
            ids = (2 * self._bound_ever, 2 * self._bound_ever + 1) if on_cuda and self._captures else None
            return BoundSteps(self._ort, session, "cuda" if on_cuda else "cpu", feeds, ids)

        with memory_problems(on_cuda):
            bound = cached(self._bound, key, bind, _KEPT)
            return bound.run(feeds, plan.steps, noise if plan.uses_noise else None, report)

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latent (B, 4, h, w) -> pictures (B, 3, H, W) in [-1, 1]."""
        return self._run("vae_decoder", {"latent": latent})

    def encode_image(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pictures (B, 3, H, W) in [-1, 1] -> latent (B, 4, h, w). Raises IntegrityError for a bundle that cannot."""
        return self._run("vae_encoder", {"image": image})

    def describe(self) -> dict[str, str]:
        """Engine, version, device; on the CPU threads, on CUDA whether a CUDA graph replays the steps, or why not."""
        facts = {"engine": "onnxruntime", "version": str(self._ort.__version__)}
        if CUDA not in self._providers:
            return {**facts, "device": "cpu", "threads": str(self._threads)}
        return {**facts, "device": "cuda", "cuda_graph": f"no: {self._uncaptured}" if self._uncaptured else "yes"}

    def _step_feeds(
        self,
        state: NDArray[np.float32],
        noise: NDArray[np.float32],
        texts: Conditioning,
        plan: StepTable,
        memory: Mapping[str, NDArray[Any]],
    ) -> dict[str, NDArray[Any]]:
        """Every input of a step, at step 0."""
        rows = self._bundle.schedule.num_train_timesteps
        apart = {"step": np.zeros(1, np.int64), "noise": noise}
        return {**step_feeds(state, texts, plan, rows), **apart, **memory}

    def _memory(self, texts: Conditioning) -> dict[str, NDArray[Any]]:
        """What of the texts is the same for every step, where the bundle's graphs want that apart."""
        reader = None if self._plain else self._bundle.manifest.ort_graphs.get(_READER)
        if reader is None:
            return {}
        feeds = {"context": texts.context}
        return dict(zip(reader.outputs, self._run_raw(_READER, feeds), strict=True))

    def _run(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return self._run_all(graph, feeds)[0]

    def _run_all(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        return [output.astype(np.float32, copy=False) for output in self._run_raw(graph, feeds)]

    def _run_raw(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        session, checked, options = self._session(graph), self._checked(graph, feeds), None
        if self._captures and graph.startswith("step") and CUDA in self._providers:
            options = self._ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(NO_CAPTURE))
        with memory_problems(CUDA in self._providers):
            return session.run(None, checked, options)

    def prepare(self, graphs: Iterable[str]) -> None:
        """Begin to open these graphs beside whatever else is done: a process has little use for two cores so early."""
        if CUDA in self._providers:
            return  # there a session decides what the others run on
        self._look_again()
        for graph in graphs:
            file = self._facts(graph).file
            if file not in self._sessions and file not in self._opening:
                self._opening[file] = Thread(target=self._open_ahead, args=(graph, file))
                self._opening[file].start()

    def _open_ahead(self, graph: str, file: str) -> None:
        with suppress(Exception):  # whoever needs the session meets the same error where it can be told
            session = self._open(graph)
            self._sessions.setdefault(file, session)

    def _session(self, graph: str) -> Any:
        self._look_again()
        file = self._facts(graph).file
        if file in self._opening:
            self._opening.pop(file).join()
        if file not in self._sessions:
            self._sessions[file] = self._open(graph)
        return self._sessions[file]

    def _look_again(self) -> None:
        """Forget what was opened when the bundle was exported anew under us."""
        fingerprint = self._bundle.manifest.fingerprint
        if fingerprint != self._fingerprint:
            for thread in self._opening.values():
                thread.join()
            self._opening.clear()
            self._sessions.clear()
            self._bound.clear()
            self._read.clear()
            self._fingerprint = fingerprint

    def _open(self, graph: str) -> Any:
        path = self._bundle.file(self._facts(graph).file)
        refused = ""
        if self._captures and CUDA in self._providers and graph.startswith("step"):
            try:
                return self._believed(self._open_file(path, {**self._cuda_options, "enable_cuda_graph": "1"}))
            except (IntegrityError, CudaFailure) as problem:
                # A graph with a node that CUDA has no kernel for cannot be captured. What else it is, we see below.
                refused = one_line(problem.__cause__ or problem.problem)
        given = self._guest_table(graph)
        try:
            session = self._believed(self._open_file(path, self._cuda_options, given))
        except CudaFailure as failure:
            if self._wanted == "cuda":
                raise
            self._leave_cuda(failure.problem)
            return self._open_file(path, self._cuda_options, given)
        if refused and CUDA in self._providers:
            self._captures, self._uncaptured = False, refused
            self._note(f"steps cannot be replayed as a CUDA graph, which is slower: {refused}")
        return session

    def _open_file(self, path: Path, cuda_options: Mapping[str, str], given: Mapping[str, Any] | None = None) -> Any:
        return open_ort(self._ort, path, self._threads, self._providers, cuda_options, given)

    def _guest_table(self, graph: str) -> dict[str, Any]:
        """What a text encoder reads in place of its own table when there are guests."""
        self._tables.pop(graph, None)
        number = encoder_number(graph)
        if number is None or not self._guests:
            return {}
        table = self._bundle.manifest.token_tables[number]
        content = overridden_table(self._bundle.file(table.file), table, number, self._guests)
        self._tables[graph] = self._ort.OrtValue.ortvalue_from_numpy(content)
        return {TABLE_INPUT: self._tables[graph]}

    def _believed(self, session: Any) -> Any:
        """ONNX Runtime falls back to the CPU in silence; believe only what the session itself reports."""
        if CUDA in self._providers and CUDA not in session.get_providers():
            failure = no_cuda(self._ort)
            if self._wanted == "cuda":
                raise failure
            self._leave_cuda(failure.problem if has_driver() else "")
        return session

    def _leave_cuda(self, reason: str) -> None:
        """Go on with the CPU alone. Sessions that are on CUDA are opened again when they are needed."""
        if reason:
            self._note(f"{reason}; the CPU draws instead")
        self._providers = [CPU]
        self._sessions.clear()
        self._bound.clear()

    def _facts(self, graph: str) -> GraphInfo:
        """The graph as ONNX Runtime likes it where the bundle has it so, else as everybody gets it."""
        manifest = self._bundle.manifest
        facts = (None if self._plain else manifest.ort_graphs.get(graph)) or manifest.graphs.get(graph)
        if facts is None or graph not in (*manifest.graphs, _READER):
            raise IntegrityError(
                f"the bundle {self._bundle.path} has no graph {graph!r}", "celebctl export makes a fresh bundle"
            )
        return facts

    def _checked(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The feeds in the dtypes that the manifest declares. Raises IntegrityError for other names or shapes."""
        declared = self._facts(graph).inputs
        if declared.keys() != feeds.keys():
            raise IntegrityError(
                f"graph {graph!r} takes {sorted(declared)}, not {sorted(feeds)}", "celebctl export makes a fresh bundle"
            )
        for name, array in feeds.items():
            shape = declared[name].shape
            fits = len(shape) == array.ndim and all(
                isinstance(size, str) or size == actual for size, actual in zip(shape, array.shape, strict=True)
            )
            if not fits:
                raise IntegrityError(
                    f"input {name!r} of graph {graph!r} has shape {array.shape}, declared {list(shape)}",
                    "use a size that the bundle was exported for, or export again",
                )
        return {name: np.ascontiguousarray(array, declared[name].dtype) for name, array in feeds.items()}


class BoundSteps:
    """All steps of a run at fixed shapes, with inputs, outputs and states left where they lie.

    On CUDA that is the device, and a step that ran once is replayed as one CUDA graph, whose addresses must not change.
    Two buffers therefore alternate for the state and the step counter: even steps read the first and write the second,
    odd steps the reverse, each with a binding, and a captured graph, of its own. On the CPU this saves allocations.
    """

    def __init__(
        self,
        ort: Any,
        session: Any,
        device: str,
        feeds: Mapping[str, NDArray[Any]],
        graph_ids: tuple[int, int] | None = None,
    ) -> None:
        """``feeds``: every input, in its shape and dtype. ``graph_ids``: what to capture even and odd steps as."""
        self._session = session
        self._values = {name: _value(ort, array, device) for name, array in feeds.items()}
        there = {source: self._values[source] for source, _ in _TURNS}
        back = {source: _value(ort, feeds[source], device) for source, _ in _TURNS}
        self._states = (there["state"], back["state"])
        self._bindings = (self._bind(there, back), self._bind(back, there))
        self._options = tuple(_run_options(ort, number) for number in graph_ids or (None, None))

    def run(
        self,
        feeds: Mapping[str, NDArray[Any]],
        steps: int,
        noise: Callable[[int], NDArray[np.float32]] | None,
        report: Callable[[int, int], None],
    ) -> NDArray[np.float32]:
        """From the first state in ``feeds`` to the last, (2, B, 4, h, w). ``noise(k)``: of step k, if steps draw any.

        ``report(done, steps)`` is called after every step.
        """
        for name, array in feeds.items():
            self._values[name].update_inplace(array)
        for k in range(steps):
            if noise is not None and k:
                self._values["noise"].update_inplace(np.ascontiguousarray(noise(k), feeds["noise"].dtype))
            self._session.run_with_iobinding(self._bindings[k % 2], self._options[k % 2])
            report(k + 1, steps)
        return np.array(self._states[steps % 2].numpy(), np.float32)  # a copy: the buffer is used again

    def _bind(self, sources: Mapping[str, Any], targets: Mapping[str, Any]) -> Any:
        binding = self._session.io_binding()
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, sources.get(name, value))
        for source, target in _TURNS:
            binding.bind_ortvalue_output(target, targets[source])
        return binding


def _value(ort: Any, array: NDArray[Any], device: str) -> Any:
    """A tensor of ours on the device. On the CPU ONNX Runtime would keep the array it is given, so it gets a copy."""
    return ort.OrtValue.ortvalue_from_numpy(array.copy(), device, 0)


def _run_options(ort: Any, graph_id: int | None) -> Any:
    if graph_id is None:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
