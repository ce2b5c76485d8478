"""Built engines against ONNX Runtime: the largest error of each output, and the time of both.

NVIDIA's Polygraphy runs both and not our own runner, so that a mistake there cannot hide a mistake here. Engines are
built through TensorRT's own API all the same (to_tensorrt.py): Polygraphy gives the parser of a changed graph no path,
so that one whose token table became an input finds no weight files, and it reports a build that was stopped and a node
that was refused as the same failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from celebctl_runtime.bundle.manifest import Manifest
from celebctl_runtime.errors import IntegrityError, SetupError
from celebctl_runtime.sampling.samplers import step_table as sampler_plan
from celebctl_runtime.sampling.schedule import ScheduleConfig

if TYPE_CHECKING:
    from celebctl_runtime.bundle.bundle import Bundle

# Largest error allowed, in units of the largest value of ONNX Runtime's output (at least 1). Neither has a reference
# that is exact: in float16 both round at every layer, in other orders.
FLOORS = {"fp32": 1e-3, "fp16": 3e-2}
_STEPS = 10
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class EngineParity(Parity):
    """One output of one engine against ONNX Runtime's, and milliseconds of one run of each; ONNX Runtime's on the
    CPU."""

    engine: str
    tensorrt_ms: float
    onnxruntime_ms: float


class Runner(Protocol):
    """What is used of a Polygraphy runner, between ``with`` and its end."""

    def infer(self, feed_dict: Feeds) -> Mapping[str, NDArray[Any]]: ...

    def last_inference_time(self) -> float: ...


# (ONNX file, serialized engine, index of the profile) -> a runner of TensorRT and one of ONNX Runtime.
Runners = Callable[[Path, bytes, int], tuple[AbstractContextManager[Runner], AbstractContextManager[Runner]]]


def measurer(
    bundle: Bundle, runners: Runners | None = None, on_rows: Callable[[list[EngineParity]], None] = lambda _: None
) -> Callable[[EnginePlan, bytes], list[dict[str, Any]]]:
    """What `build_engines` takes as ``measure``. ``on_rows`` is given the rows of an engine, passed or not.

    Raises IntegrityError, from the function returned, for an engine above its floor.
    """
    chosen = runners or polygraphy_runners()

    def measure(plan: EnginePlan, content: bytes) -> list[dict[str, Any]]:
        rows = measure_engine(bundle, plan, content, chosen)
        on_rows(rows)
        for row in rows:
            if not row.passed:
                raise IntegrityError(
                    f"{row.engine} is off by {row.max_abs_error:.2g} in {row.output} of {row.graph}"
                    f" (allowed: {row.floor:g} of {row.largest_value:.2g})",
                    "export with --dtype fp32 and build again; if that fails too, report it with both versions",
                )
        return [row.to_json() for row in rows]

    return measure


def measure_engine(bundle: Bundle, plan: EnginePlan, content: bytes, runners: Runners) -> list[EngineParity]:
    """Run every profile of an engine at the shapes it is tuned for, on seeded inputs, twice for the times."""
    rows: list[EngineParity] = []
    for index, profile in enumerate(plan.profiles):
        feeds = make_feeds(bundle, profile, plan)
        without = {name: array for name, array in feeds.items() if name not in plan.inputs_from_data}
        ours, theirs = runners(bundle.file(plan.onnx), content, index)
        got, ours_ms = _run(ours, feeds)
        expected, theirs_ms = _run(theirs, without)
        floor = FLOORS["fp16" if "16" in bundle.manifest.dtype else "fp32"]
        for output, array in expected.items():
            found = compare(profile.graph, output, got[output], array, floor)
            rows.append(EngineParity(**vars(found), engine=plan.file, tensorrt_ms=ours_ms, onnxruntime_ms=theirs_ms))
    return rows


def make_feeds(bundle: Bundle, profile: Profile, plan: EnginePlan) -> Feeds:
    """Inputs of the shapes that a profile is tuned for: seeded noise, real token ids, a real sampler's table."""
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
    dtypes = manifest.graphs[profile.graph].inputs
    return {name: array.astype(dtypes[name].dtype) if name in dtypes else array for name, array in feeds.items()}


def _tables(manifest: Manifest, profile: Profile) -> Feeds:
    steps = sampler_plan("ddim", ScheduleConfig.from_dict(manifest.scheduler), _STEPS, manifest.defaults.guidance)
    feeds: Feeds = {}
    for name, numbers in (("table", steps.table), ("aux", steps.aux)):
        feeds[name] = np.zeros(profile.shapes[name][1], np.float32)
        feeds[name][: len(numbers)] = numbers
    return feeds


def _run(opened: AbstractContextManager[Runner], feeds: Feeds) -> tuple[dict[str, NDArray[Any]], float]:
    """Outputs, and milliseconds of the second of two runs."""
    with opened as runner:
        runner.infer(feeds)
        outputs = {name: np.array(array) for name, array in runner.infer(feeds).items()}
        return outputs, round(1000 * runner.last_inference_time(), 3)


def polygraphy_runners() -> Runners:
    """Raises SetupError when Polygraphy is missing."""
    try:  # by name: a type checker finds nothing where the extra is not installed
        logger: Any = import_module("polygraphy.logger")
        onnxrt: Any = import_module("polygraphy.backend.onnxrt")
        trt: Any = import_module("polygraphy.backend.trt")
    except ImportError as error:
        raise SetupError("measuring engines needs Polygraphy", 'pip install "celebctl[trt]"') from error
    logger.G_LOGGER.use_python_logging_system = True  # by itself it talks on stdout, which is for --json,
    logger.G_LOGGER.colors = False  # and would complain there that it has none

    def make(path: Path, content: bytes, profile: int) -> tuple[Any, Any]:
        ours = trt.TrtRunner(trt.EngineFromBytes(content), optimization_profile=profile)
        return ours, onnxrt.OnnxrtRunner(onnxrt.SessionFromOnnx(str(path), providers=["cpu"]))

    return make
