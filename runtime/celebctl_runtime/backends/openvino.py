"""OpenVINO as a :class:`Backend`, on the CPU, with the same ONNX files as ONNX Runtime.

A graph is compiled for the shapes of its inputs. The token table of a text encoder becomes an input: people are then
rows of an array in memory, and adding one compiles nothing again.

    <cache>/openvino/<fingerprint of the bundle>/*.blob     compiled graphs of small networks, without their weights

Compiled graphs are loaded only from this folder (mode 0700), which may be deleted at any time.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.bundle.overrides import EmbeddingOverride, overridden_table
from celebctl_runtime.errors import IntegrityError, SetupError, UsageError

from .base import TABLE_INPUT, Feeds, encoder_number
from .cpu_count import physical_core_count
from .engines import Shape, make_folder
from .onnx_backend import OnnxBackend, outdated
from .ort_session import one_line, out_of_memory_on_cpu

if TYPE_CHECKING:
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.bundle.manifest import GraphInfo

PRECISION = "INFERENCE_PRECISION_HINT"
_OLDEST = (2026, 4)  # 2026.0 has no Attention, 2026.2 never loads a compiled graph that has no weights
_CPU = "CPU"
# Bytes of weights up to which compiled graphs are kept. First image of mini: 0.4 s with, 0.7 s without. UNet of Stable
# Diffusion 1.5 in float32 (3.4 GB): no faster with, and the peak of memory is 11.0 GB instead of 8.1.
_MAX_CACHED = 1 << 30
_INVALID_OPTION = ("Unsupported property", "for property")
_OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "not enough memory")


@dataclass(frozen=True)
class _Compiled:
    """A graph compiled for fixed input shapes; ``request``: its InferRequest (untyped)."""

    shapes: Mapping[str, Shape]
    request: Any


class OpenVinoBackend(OnnxBackend):
    """OpenVINO on the CPU, in float32 unless asked otherwise; one image at a time.

    Of every graph one compiled form is kept, the one for the latest shapes: each holds a copy of the weights.
    """

    def __init__(
        self,
        bundle: Bundle,
        cache: Path | None = None,
        threads: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Compile nothing yet.

        Args:
            bundle: The bundle to run.
            cache: Folder for compiled graphs; None: they are compiled in every process.
            threads: CPU threads, default one per physical core.
            options: Properties of OpenVINO's CPU plugin; ``INFERENCE_PRECISION_HINT="bf16"`` computes in bfloat16.

        Raises:
            SetupError: OpenVINO is missing or too old.
        """
        super().__init__(bundle)
        self._ov = load_openvino()
        self._core = self._ov.Core()
        self._cache = cache
        self._properties = {
            PRECISION: "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(threads or physical_core_count()),
            **(options or {}),
        }
        self._compiled: dict[str, _Compiled] = {}  # by file
        self._fingerprint = ""
        self._overrides: tuple[EmbeddingOverride, ...] = ()

    @property
    def batch_limit(self) -> int:
        """One: larger batches are no faster on a CPU."""
        return 1

    def describe(self) -> dict[str, str]:
        """Engine, version, device, threads and precision."""
        properties = self._properties
        return {
            "engine": "openvino",
            "version": str(self._ov.__version__).partition("-")[0],
            "device": "cpu",
            "threads": properties["INFERENCE_NUM_THREADS"],
            "precision": properties[PRECISION],
        }

    def _use_overrides(self, ids: NDArray[np.int64], overrides: Sequence[EmbeddingOverride]) -> None:
        self._overrides = tuple(overrides)

    def _run_raw(self, graph: str, feeds: Feeds) -> list[NDArray[Any]]:
        inputs, number = self._checked(graph, feeds), encoder_number(graph)
        if number is not None:  # read anew every time: a person may have been added
            table = self._bundle.manifest.token_tables[number]
            inputs[TABLE_INPUT] = overridden_table(self._bundle.file(table.file), table, number, self._overrides)
        request = self._request(graph, {name: array.shape for name, array in inputs.items()})
        with _translate_memory_errors():
            results = request.infer(inputs, share_inputs=True)
        return [results[number] for number in range(len(results))]

    def _request(self, graph: str, shapes: Mapping[str, Shape]) -> Any:
        """The InferRequest of a graph for inputs of these shapes. Raises UsageError for an invalid option."""
        fingerprint = self._bundle.manifest.fingerprint
        if fingerprint != self._fingerprint:  # exported again meanwhile
            self._compiled.clear()
            self._fingerprint = fingerprint
        info = self._graph_info(graph)
        compiled = self._compiled.pop(info.file, None)
        if compiled is None or compiled.shapes != shapes:
            del compiled  # before compiling: both hold the weights
            compiled = _Compiled(shapes, self._compile(graph, info, shapes))
        self._compiled[info.file] = compiled
        return compiled.request

    def _compile(self, graph: str, info: GraphInfo, shapes: Mapping[str, Shape]) -> Any:
        path = self._bundle.file(info.file)
        try:
            with _translate_memory_errors():
                model = self._core.read_model(str(path))
                if TABLE_INPUT in shapes:
                    _make_table_an_input(self._ov, model)
                model.reshape({name: list(shape) for name, shape in shapes.items()})
                properties = self._properties | self._cache_properties(info)
                compiled = self._core.compile_model(model, _CPU, properties)
        except RuntimeError as error:  # OpenVINO has no other type
            if any(text in str(error) for text in _INVALID_OPTION):
                problem = f"invalid option of OpenVINO: {one_line(error)}"
                raise UsageError(problem, "correct openvino_options") from error
            problem = f"OpenVINO cannot load {path}: {one_line(error)}"
            raise IntegrityError(problem, "export the bundle again", reason="broken_graph", file=path) from error
        return compiled.create_infer_request()

    def _cache_properties(self, info: GraphInfo) -> dict[str, str]:
        """Where to keep the compiled graph, and where its weights are: they are not stored a second time."""
        tables = {table.file for table in self._bundle.manifest.token_tables}
        weights = [name for name in info.data if name not in tables]
        if self._cache is None or len(weights) != 1 or self._bundle.file(weights[0]).stat().st_size > _MAX_CACHED:
            return {}
        folder = self._cache / "openvino" / self._fingerprint[:16]
        try:
            make_folder(folder)
        except SetupError:  # a library that is only read
            return {}
        return {
            "CACHE_DIR": str(folder),
            "CACHE_MODE": "OPTIMIZE_SIZE",
            "WEIGHTS_PATH": str(self._bundle.file(weights[0])),
        }


def load_openvino() -> Any:
    """The openvino module. Raises SetupError when it is missing or too old."""
    try:
        ov: Any = import_module("openvino")
    except ImportError as error:
        hint = "pip install 'celebctl[openvino]'"
        raise SetupError("OpenVINO is not installed", hint, reason="missing_extra", extra="openvino") from error
    version = str(ov.__version__).partition("-")[0]
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        hint = f"pip install 'openvino>={oldest}'"
        raise SetupError(f"OpenVINO {version} is too old", hint, reason="openvino_too_old", oldest=oldest)
    return ov


def _make_table_an_input(ov: Any, model: Any) -> None:
    """Replace the constant token table of a text encoder by an input of the same name."""
    constant = next((node for node in model.get_ops() if node.get_friendly_name() == TABLE_INPUT), None)
    if constant is None:
        raise outdated(f"a text encoder has no initializer {TABLE_INPUT!r}", "text_encoder")
    table = ov.opset13.parameter(constant.get_output_shape(0), constant.get_element_type(), name=TABLE_INPUT)
    table.output(0).set_names({TABLE_INPUT})
    constant.output(0).replace(table.output(0))
    model.add_parameters([table])
    model.validate_nodes_and_infer_types()


@contextmanager
def _translate_memory_errors() -> Generator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(text in str(error).lower() for text in _OUT_OF_MEMORY):
            raise out_of_memory_on_cpu() from error
        raise
