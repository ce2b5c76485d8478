"""Who runs the graphs: three calls that every engine fulfils, and ONNX Runtime behind them.

Arrays go in and come out as float32 numpy arrays, whatever the graph computes in. A backend knows no sampler (a step is
a row of a table), no prompt and no person.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .cores import physical_cores
from .engines import TABLE_INPUT, encoder_number
from .errors import EnvironmentProblem, IntegrityProblem, UsageProblem
from .guests import Guest, digests, table_with_guests
from .samplers import Plan

if TYPE_CHECKING:
    from .bundle import Bundle
    from .manifest import Manifest

__all__ = ["Backend", "OrtBackend", "RunsWhole", "Texts", "ids_for", "physical_cores"]

DEVICES = ("auto", "cpu", "cuda", "trt")  # trt is tensorrt_backend.py's
_GPU_BATCH = 4
_FATAL = 4  # ONNX Runtime's log level
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
# On a machine that does other work too, threads that wait actively double the time of a step (28 against 55 ms measured
# on two busy cores).
_SESSION_CONFIG = {"session.intra_op.allow_spinning": "0"}


@dataclass(frozen=True, eq=False)
class Texts:
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

    def encode(
        self, ids: NDArray[np.int64], guests: Sequence[Guest] = ()
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Token ids (B, 77) -> context (B, 77, D) and, of XL models, pooled text (B, P).

        The rows of ``guests`` count in place of what the token tables have there.
        """
        ...

    def step(
        self,
        state: NDArray[np.float32],
        index: int,
        noise: NDArray[np.float32],
        texts: Texts,
        plan: Plan,
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
class RunsWhole(Protocol):
    """An engine that takes all steps of a run at once."""

    def denoise(
        self,
        state: NDArray[np.float32],
        noise: Callable[[int], NDArray[np.float32]],
        texts: Texts,
        plan: Plan,
        report: Callable[[int, int], None],
    ) -> NDArray[np.float32]:
        """What N calls of :meth:`Backend.step` give. ``noise(k)``: of step k; ``report(done, steps)``: progress."""
        ...


class OrtBackend:
    """ONNX Runtime on the CPU or a CUDA device. Sessions are made when first needed.

    On the CPU pictures run one at a time: a batch is no faster there, and so a picture cannot depend on the company it
    is drawn in. On CUDA several run at once; their pixels then equal single ones up to the engine's rounding.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> None:
        """``threads``: CPU threads, default one per physical core.

        Raises UsageProblem for an unknown device, EnvironmentProblem when ONNX Runtime or the device is missing.
        """
        if device not in DEVICES[:3]:
            raise UsageProblem(f"there is no device {device!r}", f"use --device with one of {', '.join(DEVICES)}")
        self._bundle = bundle
        self._ort = _load_onnxruntime()
        self._threads = threads or physical_cores()
        self._wanted = device
        self._providers = self._choose_providers(device)
        self._sessions: dict[str, Any] = {}  # of InferenceSession, which has no usable types
        self._fingerprint = ""
        self._guests: tuple[Guest, ...] = ()  # whom that session was opened with
        self._tables: dict[str, Any] = {}  # of OrtValue, by graph: tables with guests, which a session does not copy
        self._people: dict[int, str] = {}  # token row -> digest of whom the text encoder's session holds there

    @property
    def batch_limit(self) -> int:
        """One on the CPU, several on CUDA."""
        if _CUDA in self._providers:
            self._session("vae_decoder")  # only a session tells whether CUDA is really there
        return _GPU_BATCH if _CUDA in self._providers else 1

    def encode(
        self, ids: NDArray[np.int64], guests: Sequence[Guest] = ()
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Token ids (B, 77) int64 -> context (B, 77, D) and, of XL models, pooled text (B, P); see :class:`Backend`."""
        manifest = self._bundle.manifest
        graphs = ["text_encoder", *(f"text_encoder_{n}" for n in range(2, len(manifest.token_tables) + 1))]
        people = digests(manifest, guests)
        # A session on a GPU, or one whose engine copied the table, does not see rows that were written after it began.
        if any(people.get(row) != self._people.get(row) for row in set(ids.ravel().tolist())):
            for graph in graphs:
                self._sessions.pop(graph, None)
        if "text_encoder" not in self._sessions:
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
        texts: Texts,
        plan: Plan,
    ) -> NDArray[np.float32]:
        """One step; see :class:`Backend`."""
        feeds: dict[str, NDArray[Any]] = {
            "state": state,
            "step": np.array([index], dtype=np.int64),
            "noise": noise,
            "context": texts.context,
            "table": plan.table,
            "aux": plan.aux,
        }
        if texts.pooled is not None and texts.size_ids is not None:
            feeds |= {"pooled": texts.pooled, "size_ids": texts.size_ids}
        return self._run("step" if len(texts.context) == 2 else "step_nocfg", feeds)

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latent (B, 4, h, w) -> pictures (B, 3, H, W) in [-1, 1]."""
        return self._run("vae_decoder", {"latent": latent})

    def describe(self) -> dict[str, str]:
        """Engine, version, device and threads."""
        device = "cuda" if _CUDA in self._providers else "cpu"
        facts = {"engine": "onnxruntime", "version": str(self._ort.__version__), "device": device}
        return facts if device == "cuda" else {**facts, "threads": str(self._threads)}

    def _run(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return self._run_all(graph, feeds)[0]

    def _run_all(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[Any]] = self._session(graph).run(None, self._checked(graph, feeds))
        return [output.astype(np.float32, copy=False) for output in outputs]

    def _session(self, graph: str) -> Any:
        fingerprint = self._bundle.manifest.fingerprint
        if fingerprint != self._fingerprint:  # the bundle was exported anew under us
            self._sessions.clear()
            self._fingerprint = fingerprint
        if graph not in self._sessions:
            self._sessions[graph] = self._open(graph)
        return self._sessions[graph]

    def _open(self, graph: str) -> Any:
        if graph not in self._bundle.manifest.graphs:
            raise IntegrityProblem(
                f"the bundle {self._bundle.path} has no graph {graph!r}", "celebctl export makes a fresh bundle"
            )
        path = self._bundle.file(self._bundle.manifest.graphs[graph].file)
        try:
            session = self._ort.InferenceSession(str(path), self._options(graph), providers=self._providers)
        except Exception as error:  # onnxruntime has a dozen error types, all children of Exception only
            raise IntegrityProblem(
                f"ONNX Runtime cannot load {path}: {str(error)[:300]}", "celebctl export makes a fresh bundle"
            ) from error
        self._check_provider(session)
        return session

    def _options(self, graph: str) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL  # its complaints reach people through our own errors
        for key, value in _SESSION_CONFIG.items():
            options.add_session_config_entry(key, value)
        number = encoder_number(graph)
        if number is not None and self._guests:
            table = self._bundle.manifest.token_tables[number]
            content = table_with_guests(self._bundle.file(table.file), table, number, self._guests)
            self._tables[graph] = self._ort.OrtValue.ortvalue_from_numpy(content)
            options.add_initializer(TABLE_INPUT, self._tables[graph])
        return options

    def _choose_providers(self, device: str) -> list[str]:
        present = cast("list[str]", self._ort.get_available_providers())
        if device == "cuda" and _CUDA not in present:
            raise EnvironmentProblem(
                "the installed ONNX Runtime cannot use CUDA",
                "pip uninstall onnxruntime; pip install 'celebctl[cuda]', or use --device cpu",
            )
        if device == "cpu" or _CUDA not in present:
            return [_CPU]
        with contextlib.redirect_stdout(sys.stderr):  # it prints its warnings, and stdout is for data
            self._ort.preload_dlls()
        return [_CUDA, _CPU]

    def _check_provider(self, session: Any) -> None:
        """ONNX Runtime falls back to the CPU in silence; believe only what the session itself reports."""
        if _CUDA not in self._providers or _CUDA in session.get_providers():
            return
        if self._wanted == "cuda":
            raise EnvironmentProblem(
                "CUDA was asked for, but ONNX Runtime fell back to the CPU",
                "check the driver with nvidia-smi, or use --device cpu",
            )
        self._providers = [_CPU]

    def _checked(self, graph: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The feeds in the dtypes that the manifest declares. Raises IntegrityProblem for other names or shapes."""
        declared = self._bundle.manifest.graphs[graph].inputs
        if declared.keys() != feeds.keys():
            raise IntegrityProblem(
                f"graph {graph!r} takes {sorted(declared)}, not {sorted(feeds)}", "celebctl export makes a fresh bundle"
            )
        for name, array in feeds.items():
            shape = declared[name].shape
            fits = len(shape) == array.ndim and all(
                isinstance(size, str) or size == actual for size, actual in zip(shape, array.shape, strict=True)
            )
            if not fits:
                raise IntegrityProblem(
                    f"input {name!r} of graph {graph!r} has shape {array.shape}, declared {list(shape)}",
                    "use a size that the bundle was exported for, or export again",
                )
        return {name: np.ascontiguousarray(array, declared[name].dtype) for name, array in feeds.items()}


def ids_for(manifest: Manifest, encoder: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Token ids (B, 77) as one of the text encoders wants them: what follows the first end is its own padding."""
    facts = manifest.tokenizer
    ends = ids == facts.eos
    return np.where(np.cumsum(ends, axis=1) - ends > 0, (facts.pad, *facts.more_pads)[encoder], ids)


def _load_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentProblem(
            "ONNX Runtime is not installed", "pip install 'celebctl[cpu]' (or 'celebctl[cuda]' on an NVIDIA GPU)"
        ) from error
    engine: Any = onnxruntime
    engine.set_default_logger_severity(_FATAL)  # missing providers are reported by our own check
    return engine
