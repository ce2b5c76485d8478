"""export --trt, --dry-run and --check: a bundle's TensorRT engines, their plan, and whether its graphs can have any."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Desk
from .extras import needs

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl_export.tensorrt_parity import EngineParity
    from celebctl_runtime.bundle import Bundle
    from celebctl_runtime.engines import Machine
    from celebctl_runtime.request import Request

TITLE, COLUMNS = "TensorRT against ONNX Runtime on the CPU", ("engine", "output", "off by", "of", "ms", "CPU ms")


def build(
    desk: Desk, library: "Library", bundle: "Bundle", sizes: Sequence[str], *, dynamic: bool = True
) -> list[dict[str, Any]]:
    """Build and measure the missing engines of a bundle for this machine's GPU; returns the facts of all for --json."""
    from celebctl_export.tensorrt_parity import measurer
    from celebctl_export.tensorrt_plan import EngineRequest, plan_engines
    from celebctl_export.to_tensorrt import build_engines

    plans = plan_engines(bundle.manifest, [EngineRequest.parse(size) for size in sizes], dynamic=dynamic)
    rows: list[EngineParity] = []
    with needs("trt", "building engines"), desk.progress("building engines") as report:
        measure = measurer(bundle, on_rows=rows.extend)
        records = build_engines(bundle, plans, library.engines, measure=measure, on_progress=report)
    if rows:
        desk.table(TITLE, COLUMNS, [_cells(row) for row in rows])
    desk.tell(f"{len(records)} engines, {len({row.engine for row in rows})} of them built now")
    return [{"file": r.file, "key": r.key, "seconds": r.seconds, "parity": list(r.parity)} for r in records]


def ensure(desk: Desk, library: "Library", bundle: "Bundle", request: "Request") -> None:
    """Build the engines for one picture of exactly the request's size where they are missing."""
    build(desk, library, bundle, [f"1x{request.height}x{request.width}"], dynamic=False)


def this_machine() -> "Machine":
    """What engines built here are bound to. Raises EnvironmentProblem where TensorRT or its GPU is missing."""
    from celebctl_runtime.tensorrt_runner import Device

    return Device.load().machine


def show_plan(desk: Desk, library: "Library", bundle: "Bundle", sizes: Sequence[str]) -> None:
    """What `--trt` would build. Needs neither TensorRT nor a GPU, but cannot tell then what is built already."""
    from celebctl_export.tensorrt_plan import EngineRequest, describe, plan_engines
    from celebctl_runtime.errors import EnvironmentProblem

    plans = plan_engines(bundle.manifest, [EngineRequest.parse(size) for size in sizes])
    try:
        machine = this_machine()
    except EnvironmentProblem as problem:
        desk.note(f"{problem.problem}: the plan holds, but could not be built here")
        machine = None
    document = describe(bundle.manifest, plans, library.engines, machine)
    built = sum(engine["built"] for engine in document["engines"])
    if built:
        desk.note(f"{built} of {len(plans)} engines are built already")
    desk.give([engine["path"] for engine in document["engines"]], document)


def check(desk: Desk, bundle: "Bundle") -> None:
    """Ask TensorRT's parser about every graph. Raises InputRejected when it refuses nodes, EnvironmentProblem where
    TensorRT cannot start."""
    from celebctl_export.tensorrt_plan import plan_engines
    from celebctl_export.to_tensorrt import unsupported_nodes
    from celebctl_runtime.errors import InputRejected
    from celebctl_runtime.tensorrt_runner import TensorRt

    tensorrt = TensorRt.load()
    plans = {plan.onnx: plan for plan in plan_engines(bundle.manifest, dynamic=False)}
    with needs("export", "checking graphs"):
        refused = {file: unsupported_nodes(tensorrt, bundle.path, plan) for file, plan in plans.items()}
    for file, nodes in refused.items():
        for node in nodes:
            desk.note(f"{file}: {node}")
    count = sum(len(nodes) for nodes in refused.values())
    if count:
        raise InputRejected(f"TensorRT {tensorrt.version} refuses {count} nodes of {bundle.path}", "use --device cuda")
    document = {"tensorrt": tensorrt.version, "graphs": [{"file": file, "supported": True} for file in refused]}
    desk.give([f"{file}: supported by TensorRT {tensorrt.version}" for file in refused], document)


def open_place(library: "Library", model: str, given: Path | None) -> "Bundle":
    """The bundle that was named, or the model's newest. Raises NotFound."""
    from celebctl_runtime.bundle import Bundle
    from celebctl_runtime.errors import NotFound

    from .bundles import find_bundle

    place = given or find_bundle(library, model)
    if place is None:
        raise NotFound(f"there is no bundle of {model} yet", "make one: celebctl export")
    return Bundle.open(place, verify="quick")


def _cells(row: "EngineParity") -> list[str]:
    """Short enough for 80 columns. A graph is named where it is another than the one its engine is named for."""
    engine = row.engine.removesuffix(".plan")
    output = row.output if engine.startswith(f"{row.graph}-") else f"{row.output} ({row.graph.rpartition('_')[2]})"
    off, largest = f"{row.max_abs_error:.1e}", f"{row.largest_value:.3g}"
    return [engine, output, off, largest, f"{row.tensorrt_ms:.2f}", f"{row.onnxruntime_ms:.2f}"]
