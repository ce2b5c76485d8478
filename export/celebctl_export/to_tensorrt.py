"""ONNX graphs to TensorRT engines for this machine's GPU, in the user's cache folder.

One code path for TensorRT 10.16 and 11.4 (see tensorrt_runner.py for the names of its objects). An engine is written
before it is compared with ONNX Runtime, and recorded afterwards. One that fails does not keep the others from being
built. An interrupted build keeps finished engines and the timing cache.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celebctl_export.tensorrt_graph import check_volume, graph_bytes
from celebctl_export.tensorrt_plan import EnginePlan, plan_engines
from celebctl_runtime.backends.engines import TIMING_CACHE, EngineRecord, make_folder, read_records
from celebctl_runtime.backends.tensorrt_runner import Device, TensorRt
from celebctl_runtime.errors import CelebctlError, IntegrityError, InvalidInputError, SetupError
from celebctl_runtime.files import atomic_write
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from celebctl_export.parity import Parity
    from celebctl_runtime.bundle.bundle import Bundle

MeasureEngine = Callable[[EnginePlan, bytes], Sequence["Parity"]]  # raises IntegrityError above the tolerance
PhaseCallback = Callable[[float, str], None]  # fraction done, current phase

_log = logging.getLogger(__name__)


@dataclass
class Phases:
    """The builder's nested phases as one fraction of the whole; the steps of a phase count equally."""

    open: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])  # name, steps, steps done
    largest: float = 0.0

    def start(self, name: str, steps: int) -> None:
        """A phase begins, inside the open ones."""
        self.open.append((name, max(steps, 1), 0))

    def step(self, name: str) -> None:
        """A step of an open phase is finished."""
        self.open = [(phase, steps, done + (phase == name)) for phase, steps, done in self.open]

    def finish(self, name: str) -> None:
        """A phase ends, and with it the phases inside."""
        names = [phase for phase, _, _ in self.open]
        if name in names:
            del self.open[names.index(name) :]

    @property
    def fraction(self) -> float:
        """Done so far, 0 to 1; never decreases, though unannounced phases may start."""
        step_size, total = 1.0, 0.0
        for _, steps, done in self.open:
            step_size /= steps
            total += step_size * min(done, steps)
        self.largest = max(self.largest, min(total, 1.0))
        return self.largest


def build_plans(
    bundle: Bundle,
    plans: Sequence[EnginePlan],
    engines: Path,
    *,
    measure: MeasureEngine | None = None,
    progress: ProgressCallback = ignore_progress,
    device: Device | None = None,
) -> list[EngineRecord]:
    """Build the missing engines; see :func:`celebctl_export.build_engines`.

    An engine that fails is logged. Its error is raised after the others were built: the first one, of several.

    Args:
        bundle: The bundle of the plans.
        plans: See `plan_engines`.
        engines: The cache folder.
        measure: Compares a new engine with ONNX Runtime (tensorrt_parity.py); None: no comparison.
        progress: Called with percent of one engine.
        device: TensorRT and CUDA; None: the installed ones.

    Returns:
        The records of all plans, in order.
    """
    device = device or Device.load()
    machine = device.machine
    keys = [plan.key(machine) for plan in plans]
    records = {record.key: record for record in read_records(engines, bundle.manifest)}
    if not records.keys() >= set(keys):
        bundle.verify("full")  # hashes of graphs become part of the engines' keys
        make_folder(engines)
    failures: list[CelebctlError] = []
    for number, (plan, key) in enumerate(zip(plans, keys, strict=True)):
        if key in records:
            continue

        def report(fraction: float, phase: str, number: int = number, name: str = plan.file) -> None:
            progress(Progress(f"{name}: {phase}", round(100 * (number + fraction)), 100 * len(plans)))

        file = engines / key / plan.file
        try:
            seconds = _build_file(device.library, bundle, plan, file, report)
            report(1.0, "measuring")
            parity = _measure_file(plan, file, measure)
        except CelebctlError as failure:
            _log.warning("%s: %s", plan.file, failure.problem)
            failures.append(failure)
            continue
        records[key] = EngineRecord(plan.file, plan.onnx_sha256, plan.profiles, machine, seconds, parity)
        records[key].write(engines)
    if failures:
        raise failures[0]
    return [records[key] for key in keys]


def _build_file(library: TensorRt, bundle: Bundle, plan: EnginePlan, file: Path, report: PhaseCallback) -> float:
    """Build an engine; returns the seconds, 0 for one that was built before but not measured."""
    if file.is_file():
        return 0.0
    check_volume(bundle.path, plan)
    started = time.monotonic()
    atomic_write(file, build_engine(library, bundle.path, plan, file.parent.with_name(TIMING_CACHE), report))
    return round(time.monotonic() - started, 3)


def _measure_file(plan: EnginePlan, file: Path, measure: MeasureEngine | None) -> tuple[Mapping[str, Any], ...]:
    """Measure an engine; one that exceeds its tolerance is deleted."""
    try:
        return tuple(row.to_json() for row in measure(plan, file.read_bytes())) if measure else ()
    except IntegrityError:
        file.unlink()
        raise


def build_engine(library: TensorRt, bundle: Path, plan: EnginePlan, timing_cache: Path, report: PhaseCallback) -> bytes:
    """A serialized engine. Raises as :func:`celebctl_export.build_engines`, and KeyboardInterrupt."""
    trt = library.trt
    builder, network, parser = _start(library)
    if not parser.parse(graph_bytes(bundle, plan), str(bundle / plan.onnx)):
        raise InvalidInputError(
            f"TensorRT {library.version} does not support {plan.onnx}: {_parser_errors(library, parser)[0]}",
            "use ONNX Runtime for this bundle",
            reason="unsupported_graph",
        )
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 graphs compute in float32
    _add_profiles(library, builder, config, plan)
    cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):  # of another version or GPU: start a new one
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    monitor = _make_monitor(trt, report)
    config.progress_monitor = monitor
    memory = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if memory is None:
        raise library.error(f"TensorRT cannot build {plan.file}")
    with suppress(SetupError):  # the cache only saves time
        atomic_write(timing_cache, bytes(cache.serialize()))
    return bytes(memory)


def unsupported_nodes(library: TensorRt, bundle: Bundle) -> dict[str, list[str]]:
    """The nodes that TensorRT's parser rejects, as "operator 'node': reason", by graph file."""
    rejected: dict[str, list[str]] = {}
    for plan in plan_engines(bundle.manifest, dynamic=False):
        if plan.onnx not in rejected:
            _, _, parser = _start(library)
            supported = parser.supports_model_v2(graph_bytes(bundle.path, plan), str(bundle.path / plan.onnx))
            rejected[plan.onnx] = [] if supported else _parser_errors(library, parser)
    return rejected


def _start(library: TensorRt) -> tuple[Any, Any, Any]:
    """Builder, strongly typed network and parser. Raises SetupError."""
    trt = library.trt
    library.errors.clear()
    try:
        builder = trt.Builder(library.log)
    except TypeError as error:  # what the bindings raise when the library does not start
        raise library.error("TensorRT cannot start") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return builder, network, trt.OnnxParser(network, library.log)


def _parser_errors(library: TensorRt, parser: Any) -> list[str]:
    messages: list[str] = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        messages.append(f"{error.node_operator()} {error.node_name()!r}: {error.desc()}"[:300])
    return messages or library.errors[-1:] or ["no reason given"]


def _add_profiles(library: TensorRt, builder: Any, config: Any, plan: EnginePlan) -> None:
    for ranges in (planned.shapes for planned in plan.profiles):
        profile = builder.create_optimization_profile()
        for name, (smallest, optimum, largest) in ranges.items():
            profile.set_shape(name, smallest, optimum, largest)
        if config.add_optimization_profile(profile) < 0:
            raise library.error(f"TensorRT rejects the shapes of {plan.file}")


def _make_monitor(trt: Any, report: PhaseCallback) -> Any:
    """An IProgressMonitor. Ctrl-C reaches Python inside its calls and ends the build."""
    phases, lock = Phases(), threading.RLock()  # the builder calls from several threads

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            self.advance(phase_name, lambda: phases.start(phase_name, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            del step
            self.advance(phase_name, lambda: phases.step(phase_name))
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            self.advance(phase_name, lambda: phases.finish(phase_name))

        def advance(self, phase_name: str, update: Callable[[], None]) -> None:
            try:
                with lock:
                    update()
                    report(phases.fraction, phase_name)
            except KeyboardInterrupt:
                self.stopped = True

    return Monitor()
