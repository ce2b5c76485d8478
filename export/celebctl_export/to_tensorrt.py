"""ONNX graphs to TensorRT engines for the GPU of this machine: strongly typed, cached, measured, sealed.

One code path for TensorRT 10.16 and 11.4 (see tensorrt_runner.py for how its objects are named here). An engine is
listed only after it was measured against ONNX Runtime; a build that is interrupted keeps the engines that were finished
and the timing cache, and the next one goes on from there.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celebctl_export.tensorrt_plan import EnginePlan, keeping_all
from celebctl_runtime.cuda_memory import Cuda
from celebctl_runtime.engines import (
    FILE_NAME,
    TIMING_CACHE,
    EngineRecord,
    engine_folder,
    engine_key,
    read_records,
    write_records,
)
from celebctl_runtime.errors import Busy, EnvironmentProblem, InputRejected, IntegrityProblem
from celebctl_runtime.files import atomic_write, disk_problems
from celebctl_runtime.tensorrt_runner import TensorRt

if TYPE_CHECKING:
    from celebctl_runtime.bundle import Bundle

# Measures a built engine, given as its bytes: rows for a table, or an IntegrityProblem.
Measure = Callable[[EnginePlan, bytes], Sequence[Mapping[str, Any]]]
_WAIT = 60.0  # seconds for another process that builds into the same folder


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


@dataclass(frozen=True)
class Progress:
    """Engine ``number`` of ``total`` (from 0), how much of it is done (0 to 1), and what the builder is doing."""

    number: int
    total: int
    file: str
    fraction: float
    phase: str


def build_engines(
    bundle: Bundle,
    plans: Sequence[EnginePlan],
    seal_key: bytes,
    *,
    measure: Measure | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    library: TensorRt | None = None,
    cuda: Cuda | None = None,
) -> list[EngineRecord]:
    """Build what is not there yet, for this machine's GPU; returns the planned engines' records in order.

    ``measure``: how engines are compared with ONNX Runtime before they are listed, see tensorrt_parity.py.
    Raises EnvironmentProblem (no TensorRT, CUDA or GPU; not enough memory; disk), InputRejected (a graph that TensorRT
    does not take, naming the node), IntegrityProblem (a damaged bundle, or an engine that is off by too much),
    KeyboardInterrupt.
    """
    library = library or TensorRt.load()
    cuda = cuda or Cuda.load()
    machine = library.machine(cuda)
    bundle.verify("full")  # hashes of graphs become part of the engines' identity
    folder = engine_folder(bundle.path, engine_key(bundle.manifest, machine))
    with _lock(folder):
        known = {record.file: record for record in _known(folder, seal_key)}
        for number, plan in enumerate(keeping_all(plans, known.values())):
            there = known.get(plan.file)
            if there and plan.is_built_by(there) and (folder / plan.file).is_file():
                continue
            tell = _teller(on_progress, number, len(plans), plan)
            known[plan.file] = _build_one(library, bundle, folder, plan, measure, tell)
            write_records(folder, machine, [*known.values()], seal_key)
        return [known[plan.file] for plan in plans]


def _teller(
    on_progress: Callable[[Progress], None], number: int, total: int, plan: EnginePlan
) -> Callable[[float, str], None]:
    def tell(fraction: float, phase: str) -> None:
        on_progress(Progress(number, total, plan.file, fraction, phase))

    return tell


def _build_one(
    library: TensorRt,
    bundle: Bundle,
    folder: Path,
    plan: EnginePlan,
    measure: Measure | None,
    tell: Callable[[float, str], None],
) -> EngineRecord:
    started = time.monotonic()
    content = build_engine(library, bundle.path, plan, folder / TIMING_CACHE, tell)
    seconds = round(time.monotonic() - started, 3)
    tell(1.0, "measuring")
    parity = tuple(dict(row) for row in measure(plan, content)) if measure else ()
    atomic_write(folder / plan.file, content)
    digest = hashlib.sha256(content).hexdigest()
    return EngineRecord(plan.file, digest, plan.onnx_sha256, plan.profiles, seconds, parity)


def build_engine(
    library: TensorRt, bundle: Path, plan: EnginePlan, timing_cache: Path, tell: Callable[[float, str], None]
) -> bytes:
    """One engine, serialized. Raises as :func:`build_engines`."""
    trt = library.trt
    library.complaints.clear()
    try:
        builder = trt.Builder(library.log)
    except TypeError as error:  # what the bindings make of a library that refuses to start
        raise library.problem("TensorRT cannot start") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(library, network, bundle, plan)
    config = builder.create_builder_config()
    _configure(library, builder, config, plan)
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
    with suppress(EnvironmentProblem):  # the cache only saves time
        atomic_write(timing_cache, bytes(cache.serialize()))
    return bytes(memory)


def _parse(library: TensorRt, network: Any, bundle: Path, plan: EnginePlan) -> None:
    """Fill the network from the ONNX file. Raises InputRejected naming the first node that TensorRT does not take."""
    path = bundle / plan.onnx
    parser = library.trt.OnnxParser(network, library.log)
    if plan.inputs_from_data:
        well = parser.parse(with_data_inputs(path, plan.inputs_from_data), str(path))
    else:
        well = parser.parse_from_file(str(path))
    if well:
        return
    found: list[str] = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        found.append(f"{error.node_operator()} {error.node_name()!r}: {error.desc()}")
    reason = found[0] if found else "; ".join(library.complaints[-1:]) or "no reason given"
    raise InputRejected(
        f"TensorRT {library.version} does not take {plan.onnx}: {reason[:300]}",
        "celebctl export --check lists what it does not support",
    )


def _configure(library: TensorRt, builder: Any, config: Any, plan: EnginePlan) -> None:
    trt = library.trt
    config.clear_flag(trt.BuilderFlag.TF32)  # precision is the graph's: float32 means float32
    if plan.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace_bytes)
    for shapes in (entry.shapes for entry in plan.profiles):
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            profile.set_shape(name, least, best, most)
        if config.add_optimization_profile(profile) < 0:
            raise library.problem(f"TensorRT refuses the shapes of {plan.file}")


def _make_monitor(trt: Any, tell: Callable[[float, str], None]) -> Any:
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


def with_data_inputs(path: Path, inputs: Mapping[str, str]) -> bytes:
    """The graph file with some initializers as inputs: those that lie in the data files given, under the names given.

    So the token table becomes a buffer of the runtime's, and a new person a copy of two rows. Raises IntegrityProblem
    when the graph has no such initializer.
    """
    import onnx

    model = cast(Any, onnx).load(str(path), load_external_data=False)
    graph = model.graph
    for name, file in inputs.items():
        found = [tensor for tensor in graph.initializer if file in _locations(tensor)]
        if len(found) != 1 or found[0].name != name:
            raise IntegrityProblem(f"{path} has no initializer {name!r} in {file}", "celebctl export makes a fresh one")
        (tensor,) = found
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        graph.initializer.remove(tensor)
    return model.SerializeToString()


def _locations(tensor: Any) -> list[str]:
    return [entry.value for entry in tensor.external_data if entry.key == "location"]


def _known(folder: Path, seal_key: bytes) -> list[EngineRecord]:
    """What was built here before; engines of somebody else's count as none, and are replaced."""
    if not (folder / FILE_NAME).is_file():
        return []
    try:
        return read_records(folder, seal_key)
    except IntegrityProblem:
        return []


@contextmanager
def _lock(folder: Path) -> Generator[None]:
    from filelock import FileLock, Timeout

    with disk_problems(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder.with_suffix(".lock"), timeout=_WAIT):
                yield
        except Timeout as error:
            raise Busy(f"another process is building into {folder}", "wait for it and run the same command") from error
