"""ONNX graphs to TensorRT engines for this machine's GPU, in the user's cache folder.

One code path for TensorRT 10.16 and 11.4 (see tensorrt_runner.py for how its objects are named here). An engine is
listed once it has been measured against ONNX Runtime. A build that is interrupted keeps finished engines and the timing
cache, and the next one continues from there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celebctl_export.tensorrt_plan import EnginePlan
from celebctl_runtime.backends.engines import TIMING_CACHE, EngineRecord, make_folder, read_records
from celebctl_runtime.backends.tensorrt_runner import Device, TensorRt
from celebctl_runtime.errors import IntegrityError, InvalidInputError, SetupError
from celebctl_runtime.files import atomic_write

if TYPE_CHECKING:
    from celebctl_runtime.bundle.bundle import Bundle

# Measures a built engine, given as its bytes: rows for a table, or an IntegrityError.
Measure = Callable[[EnginePlan, bytes], Sequence[Mapping[str, Any]]]
Tell = Callable[[float, str], None]  # fraction done, and the current phase


@dataclass
class Phases:
    """The builder's nested phases as one fraction of the whole; phases of one level count alike."""

    open: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])  # name, steps, steps done
    best: float = 0.0

    def start(self, name: str, steps: int) -> None:
        self.open.append((name, max(steps, 1), 0))

    def step(self, name: str) -> None:
        self.open = [(one, steps, done + (one == name)) for one, steps, done in self.open]

    def finish(self, name: str) -> None:
        names = [one for one, _, _ in self.open]
        if name in names:
            del self.open[names.index(name) :]

    @property
    def fraction(self) -> float:
        """Done so far, 0 to 1; it never goes back, though phases that were not announced may open."""
        share, total = 1.0, 0.0
        for _, steps, done in self.open:
            share /= steps
            total += share * min(done, steps)
        self.best = max(self.best, min(total, 1.0))
        return self.best


def build_engines(
    bundle: Bundle,
    plans: Sequence[EnginePlan],
    engines: Path,
    *,
    measure: Measure | None = None,
    on_progress: Callable[[int, int, str], None] = lambda _done, _total, _what: None,
    device: Device | None = None,
) -> list[EngineRecord]:
    """Build the missing engines for this machine's GPU; returns the records of all planned engines in order.

    ``engines``: the cache folder. ``measure``: how an engine is compared with ONNX Runtime before it is listed, see
    tensorrt_parity.py. ``on_progress(done, total, what)``: in percent of one engine.
    Raises SetupError (no TensorRT, CUDA or GPU; not enough memory; disk), InvalidInputError (a graph that TensorRT
    does not take, naming the node), IntegrityError (a damaged bundle, or an engine that is off by too much),
    KeyboardInterrupt.
    """
    device = device or Device.load()
    machine = device.machine
    keys = [plan.key(machine) for plan in plans]
    known = {record.key: record for record in read_records(engines, bundle.manifest)}
    if not known.keys() >= set(keys):
        bundle.verify("full")  # hashes of graphs become part of the engines' identity
        make_folder(engines)
    for number, (plan, key) in enumerate(zip(plans, keys, strict=True)):
        if key in known:
            continue

        def tell(fraction: float, phase: str, number: int = number, name: str = plan.file) -> None:
            on_progress(round(100 * (number + fraction)), 100 * len(plans), f"{name}: {phase}")

        file = engines / key / plan.file
        seconds = _build_one(device.library, bundle, plan, file, tell)
        tell(1.0, "measuring")
        parity = _measure_one(plan, file, measure)
        known[key] = EngineRecord(plan.file, plan.onnx_sha256, plan.profiles, machine, seconds, parity)
        known[key].write(engines)
    return [known[key] for key in keys]


def _build_one(library: TensorRt, bundle: Bundle, plan: EnginePlan, file: Path, tell: Tell) -> float:
    """Seconds that building took; 0 for an engine that was built before but not measured."""
    if file.is_file():
        return 0.0
    started = time.monotonic()
    atomic_write(file, build_engine(library, bundle.path, plan, file.parent.with_name(TIMING_CACHE), tell))
    return round(time.monotonic() - started, 3)


def _measure_one(plan: EnginePlan, file: Path, measure: Measure | None) -> tuple[Mapping[str, Any], ...]:
    """Rows of the measurement. An engine that is off by too much is deleted."""
    try:
        return tuple(measure(plan, file.read_bytes())) if measure else ()
    except IntegrityError:
        file.unlink()
        raise


def build_engine(library: TensorRt, bundle: Path, plan: EnginePlan, timing_cache: Path, tell: Tell) -> bytes:
    """One engine, serialized. Raises as :func:`build_engines`."""
    trt = library.trt
    builder, network, parser = _start(library)
    if not parser.parse(graph_bytes(bundle, plan), str(bundle / plan.onnx)):
        raise InvalidInputError(
            f"TensorRT {library.version} does not take {plan.onnx}: {_refusals(library, parser)[0]}",
            "celebctl export --check lists what it does not support",
        )
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # precision is the graph's: float32 means float32
    _add_profiles(library, builder, config, plan)
    cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):  # a cache of another version or GPU: begin anew
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    monitor = _make_monitor(trt, tell)
    config.progress_monitor = monitor
    memory = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if memory is None:
        raise library.problem(f"TensorRT cannot build {plan.file}")
    with suppress(SetupError):  # the cache only saves time
        atomic_write(timing_cache, bytes(cache.serialize()))
    return bytes(memory)


def unsupported_nodes(library: TensorRt, bundle: Path, plan: EnginePlan) -> list[str]:
    """What TensorRT's parser refuses of a graph, as "operator 'node': reason"; empty for a supported graph."""
    _, _, parser = _start(library)
    if parser.supports_model_v2(graph_bytes(bundle, plan), str(bundle / plan.onnx)):
        return []
    return _refusals(library, parser)


def _start(library: TensorRt) -> tuple[Any, Any, Any]:
    """Builder, strongly typed network and parser. Raises SetupError."""
    trt = library.trt
    library.complaints.clear()
    try:
        builder = trt.Builder(library.log)
    except TypeError as error:  # what the bindings make of a library that refuses to start
        raise library.problem("TensorRT cannot start") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return builder, network, trt.OnnxParser(network, library.log)


def _refusals(library: TensorRt, parser: Any) -> list[str]:
    found: list[str] = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        found.append(f"{error.node_operator()} {error.node_name()!r}: {error.desc()}"[:300])
    return found or library.complaints[-1:] or ["no reason given"]


def _add_profiles(library: TensorRt, builder: Any, config: Any, plan: EnginePlan) -> None:
    for shapes in (entry.shapes for entry in plan.profiles):
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            profile.set_shape(name, least, best, most)
        if config.add_optimization_profile(profile) < 0:
            raise library.problem(f"TensorRT refuses the shapes of {plan.file}")


def _make_monitor(trt: Any, tell: Tell) -> Any:
    """What TensorRT calls while it builds. Ctrl-C reaches Python inside these calls: it ends the build, cleanly."""
    phases, lock = Phases(), threading.RLock()  # several of the builder's threads may call at once

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

        def advance(self, phase_name: str, change: Callable[[], None]) -> None:
            try:
                with lock:
                    change()
                    tell(phases.fraction, phase_name)
            except KeyboardInterrupt:
                self.stopped = True

    return Monitor()


def graph_bytes(bundle: Path, plan: EnginePlan) -> bytes:
    """The graph file, with the token table as an input instead of an initializer where the plan asks for it.

    The table is then a buffer of the runtime's, and a new person costs a copy of two rows. Raises IntegrityError when
    the graph has no such initializer.
    """
    import onnx

    path = bundle / plan.onnx
    if not plan.inputs_from_data:
        return path.read_bytes()
    model = cast(Any, onnx).load(str(path), load_external_data=False)
    graph = model.graph
    for name, file in plan.inputs_from_data.items():
        found = [tensor for tensor in graph.initializer if tensor.name == name and file in _locations(tensor)]
        if not found:
            raise IntegrityError(f"{path} has no initializer {name!r} in {file}", "celebctl export makes a fresh one")
        (tensor,) = found
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        graph.initializer.remove(tensor)
    return model.SerializeToString()


def _locations(tensor: Any) -> list[str]:
    return [entry.value for entry in tensor.external_data if entry.key == "location"]
