"""Numerical parity of TensorRT engines with ONNX Runtime, and the time of both.

NVIDIA's Polygraphy runs both, so that a fault in our own runner cannot hide one in an engine. Engines are nevertheless
built through TensorRT's API (to_tensorrt.py): Polygraphy gives the parser of a modified graph no path, so that weight
files are not found, and reports an interrupted build and an unsupported node as the same failure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from celebctl_export.parity import Parity, compare
from celebctl_export.tensorrt_plan import EnginePlan
from celebctl_runtime.backends.base import encoder_number
from celebctl_runtime.backends.engines import Profile
from celebctl_runtime.backends.ort_session import one_line
from celebctl_runtime.bundle.manifest import Manifest
from celebctl_runtime.errors import IntegrityError, SetupError
from celebctl_runtime.sampling.samplers import step_table
from celebctl_runtime.sampling.schedule import ScheduleConfig

if TYPE_CHECKING:
    from celebctl_runtime.bundle.bundle import Bundle

# Largest allowed error, relative to the largest value of ONNX Runtime's output (at least 1). Neither is exact: in
# float16 both round after every layer, in different orders.
TOLERANCES = {"fp32": 1e-3, "fp16": 3e-2}
_STEPS = 10
Feeds = dict[str, NDArray[Any]]
Outputs = tuple[dict[str, NDArray[Any]], float]  # by name, and milliseconds
References = dict[Hashable, Outputs]  # ONNX Runtime's, by graph and shapes of the inputs


@dataclass(frozen=True)
class EngineParity(Parity):
    """One output of an engine compared with ONNX Runtime's on the CPU, and milliseconds of one run of each.

    TensorRT's is the second run, ONNX Runtime's the only one: the CPU takes minutes for a large model.
    """

    engine: str
    tensorrt_ms: float
    onnxruntime_ms: float


class Runner(Protocol):
    """The part of a Polygraphy runner that is used, inside ``with``."""

    def infer(self, feed_dict: Feeds) -> Mapping[str, NDArray[Any]]:
        """Outputs by name."""
        ...

    def last_inference_time(self) -> float:
        """Seconds of the last call of `infer`."""
        ...


# (ONNX file, serialized engine, index of the profile) -> a runner of TensorRT and one of ONNX Runtime.
MakeRunners = Callable[[Path, bytes, int], tuple[AbstractContextManager[Runner], AbstractContextManager[Runner]]]


def parity_check(
    bundle: Bundle, make_runners: MakeRunners | None = None
) -> Callable[[EnginePlan, bytes], list[EngineParity]]:
    """A function that measures an engine, and raises IntegrityError when it exceeds its tolerance."""
    make, references = make_runners or polygraphy_runners(), References()

    def measure(plan: EnginePlan, engine: bytes) -> list[EngineParity]:
        rows = measure_engine(bundle, plan, engine, make, references)
        for row in rows:
            if not row.passed:
                raise IntegrityError(
                    f"{row.engine} differs from ONNX Runtime by {row.max_abs_error:.2g} in {row.output} of {row.graph}"
                    f" (allowed: {row.floor:g} of {row.largest_value:.2g})",
                    "export in fp32 and build again; if that fails too, report it with all versions",
                    reason="engine_parity",
                    engine=row.engine,
                )
        return rows

    return measure


def measure_engine(
    bundle: Bundle, plan: EnginePlan, engine: bytes, make_runners: MakeRunners, references: References
) -> list[EngineParity]:
    """Run every profile of an engine at its optimum shapes, on seeded inputs; the second of two runs is timed.

    ``references``: outputs of ONNX Runtime that are known already; new ones are added. Raises SetupError when
    Polygraphy fails.
    """
    rows: list[EngineParity] = []
    tolerance = TOLERANCES["fp16" if "16" in bundle.manifest.dtype else "fp32"]
    for index, profile in enumerate(plan.profiles):
        feeds = make_feeds(bundle, profile, plan)
        shapes = tuple((name, array.shape) for name, array in sorted(feeds.items()))
        ort_feeds = {name: array for name, array in feeds.items() if name not in plan.inputs_from_data}
        tensorrt, ort = make_runners(bundle.file(plan.onnx), engine, index)
        try:
            actual, tensorrt_ms = _run(tensorrt, feeds, runs=2)
            if (profile.graph, shapes) not in references:
                references[profile.graph, shapes] = _run(ort, ort_feeds, runs=1)
        except Exception as error:  # Polygraphy raises exceptions of its own, and ctypes' for missing libraries
            problem = f"Polygraphy cannot run {plan.file}: {one_line(error)}"
            hint = "check nvidia-smi and the CUDA libraries; the engine is kept and measured by the next build"
            raise SetupError(problem, hint, reason="engine_not_measured", engine=plan.file) from error
        expected, ort_ms = references[profile.graph, shapes]
        for output, array in expected.items():
            parity = compare(profile.graph, output, actual[output], array, tolerance)
            rows.append(EngineParity(**vars(parity), engine=plan.file, tensorrt_ms=tensorrt_ms, onnxruntime_ms=ort_ms))
    return rows


def make_feeds(bundle: Bundle, profile: Profile, plan: EnginePlan) -> Feeds:
    """Inputs of a profile's optimum shapes: seeded noise, valid token ids, a real sampler's table."""
    random, manifest = np.random.default_rng(0), bundle.manifest
    feeds: Feeds = {}
    for name, (_, shape, _) in profile.shapes.items():
        if name in plan.inputs_from_data:
            table = manifest.token_tables[encoder_number(profile.graph) or 0]
            feeds[name] = np.fromfile(bundle.file(table.file), np.dtype(table.dtype)).reshape(shape)
        elif name == "input_ids":
            feeds[name] = random.integers(manifest.token_tables[0].first_spare_row, size=shape, dtype=np.int64)
        elif name == "step":
            feeds[name] = np.array([_STEPS // 2], np.int64)
        elif name == "image":
            feeds[name] = random.uniform(-1, 1, shape)
        elif name not in ("table", "aux"):
            feeds[name] = random.standard_normal(shape, dtype=np.float32)
    if "table" in profile.shapes:
        feeds |= _tables(manifest, profile)
    inputs = manifest.graphs[profile.graph].inputs
    return {name: array.astype(inputs[name].dtype) if name in inputs else array for name, array in feeds.items()}


def _tables(manifest: Manifest, profile: Profile) -> Feeds:
    steps = step_table("euler", ScheduleConfig.from_dict(manifest.scheduler), _STEPS, manifest.defaults.guidance)
    feeds: Feeds = {}
    for name, rows in (("table", steps.table), ("aux", steps.aux)):
        feeds[name] = np.zeros(profile.shapes[name][1], np.float32)
        feeds[name][: len(rows)] = rows
    return feeds


def _run(opened: AbstractContextManager[Runner], feeds: Feeds, runs: int) -> Outputs:
    """Outputs and milliseconds of the last run."""
    with opened as runner:
        for _ in range(runs - 1):
            runner.infer(feeds)
        outputs = {name: np.array(array) for name, array in runner.infer(feeds).items()}
        return outputs, round(1000 * runner.last_inference_time(), 3)


def polygraphy_runners() -> MakeRunners:
    """Runners of Polygraphy. Raises SetupError when it is not installed."""
    try:  # by name: type checkers do not have the extra installed
        logger: Any = import_module("polygraphy.logger")
        onnxrt: Any = import_module("polygraphy.backend.onnxrt")
        trt: Any = import_module("polygraphy.backend.trt")
    except ImportError as error:
        raise SetupError("measuring engines needs Polygraphy", 'pip install "celebctl[trt]"') from error
    logger.G_LOGGER.use_python_logging_system = True  # by default it prints on stdout,
    logger.G_LOGGER.colors = False  # and warns there when colors are missing
    show_cuda_runtime()

    def make(path: Path, engine: bytes, profile: int) -> tuple[Any, Any]:
        tensorrt = trt.TrtRunner(trt.EngineFromBytes(engine), optimization_profile=profile)
        return tensorrt, onnxrt.OnnxrtRunner(onnxrt.SessionFromOnnx(str(path), providers=["cpu"]))

    return make


def show_cuda_runtime() -> None:
    """Put pip's CUDA 13 runtime on the path where Polygraphy 0.53 looks for it, which knows CUDA 12's package only."""
    variable, place, name = "LD_LIBRARY_PATH", "nvidia/cu13/lib", "libcudart.so*"
    if sys.platform == "win32":
        variable, place, name = "PATH", "nvidia/cu13/bin/x86_64", "cudart64_*.dll"
    folders = dict.fromkeys(str(Path(entry) / place) for entry in sys.path if any((Path(entry) / place).glob(name)))
    known = os.environ.get(variable, "").split(os.pathsep)
    os.environ[variable] = os.pathsep.join([*folders, *(path for path in known if path and path not in folders)])
