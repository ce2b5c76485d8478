"""export --trt, --dry-run and --check: a bundle's TensorRT engines, their plan, and whether its graphs can have any."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import CliConsole
from .extras import requires_extra

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl_export.tensorrt_parity import EngineParity
    from celebctl_runtime.backends.engines import Machine
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.request import Request

TITLE, COLUMNS = "TensorRT against ONNX Runtime on the CPU", ("engine", "output", "off by", "of", "ms", "CPU ms")


def build(
    console: CliConsole, library: "Library", bundle: "Bundle", sizes: Sequence[str], *, dynamic: bool = True
) -> list[dict[str, Any]]:
    """Build and measure the missing engines of a bundle for this machine's GPU; returns the facts of all for --json."""
    from celebctl_export.tensorrt_parity import measurer
    from celebctl_export.tensorrt_plan import EngineRequest, plan_engines
    from celebctl_export.to_tensorrt import build_engines

    plans = plan_engines(bundle.manifest, [EngineRequest.parse(size) for size in sizes], dynamic=dynamic)
    rows: list[EngineParity] = []
    with requires_extra("trt", "building engines"), console.progress("building engines") as report:
        measure = measurer(bundle, on_rows=rows.extend)
        records = build_engines(bundle, plans, library.engines, measure=measure, on_progress=report)
    if rows:
        console.table(TITLE, COLUMNS, [_cells(row) for row in rows])
    console.info(f"{len(records)} engines, {len({row.engine for row in rows})} of them built now")
    return [{"file": r.file, "key": r.key, "seconds": r.seconds, "parity": list(r.parity)} for r in records]


def ensure(console: CliConsole, library: "Library", bundle: "Bundle", request: "Request") -> None:
    """Build the engines for one picture of exactly the request's size where they are missing."""
    build(console, library, bundle, [f"1x{request.height}x{request.width}"], dynamic=False)


def this_machine() -> "Machine":
    """What engines built here are bound to. Raises SetupError where TensorRT or its GPU is missing."""
    from celebctl_runtime.backends.tensorrt_runner import Device

    return Device.load().machine


def show_plan(console: CliConsole, library: "Library", bundle: "Bundle", sizes: Sequence[str]) -> None:
    """What `--trt` would build. Needs neither TensorRT nor a GPU, but cannot tell then what is built already."""
    from celebctl_export.tensorrt_plan import EngineRequest, describe, plan_engines
    from celebctl_runtime.errors import SetupError

    plans = plan_engines(bundle.manifest, [EngineRequest.parse(size) for size in sizes])
    try:
        machine = this_machine()
    except SetupError as problem:
        console.warn(f"{problem.problem}: the plan holds, but could not be built here")
        machine = None
    document = describe(bundle.manifest, plans, library.engines, machine)
    built = sum(engine["built"] for engine in document["engines"])
    if built:
        console.warn(f"{built} of {len(plans)} engines are built already")
    console.output([engine["path"] for engine in document["engines"]], document)


def check(console: CliConsole, bundle: "Bundle") -> None:
    """Ask TensorRT's parser about every graph. Raises InvalidInputError when it refuses nodes, SetupError where
    TensorRT cannot start."""
    from celebctl_export.tensorrt_plan import plan_engines
    from celebctl_export.to_tensorrt import unsupported_nodes
    from celebctl_runtime.backends.tensorrt_runner import TensorRt
    from celebctl_runtime.errors import InvalidInputError

    tensorrt = TensorRt.load()
    plans = {plan.onnx: plan for plan in plan_engines(bundle.manifest, dynamic=False)}
    with requires_extra("export", "checking graphs"):
        refused = {file: unsupported_nodes(tensorrt, bundle.path, plan) for file, plan in plans.items()}
    for file, nodes in refused.items():
        for node in nodes:
            console.warn(f"{file}: {node}")
    count = sum(len(nodes) for nodes in refused.values())
    if count:
        raise InvalidInputError(f"TensorRT {tensorrt.version} refuses {count} nodes of {bundle.path}", "use --device cuda")
    document = {"tensorrt": tensorrt.version, "graphs": [{"file": file, "supported": True} for file in refused]}
    console.output([f"{file}: supported by TensorRT {tensorrt.version}" for file in refused], document)


def open_place(library: "Library", model: str, given: Path | None) -> "Bundle":
    """The bundle that was named, or the model's newest. Raises NotFoundError."""
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.errors import NotFoundError

    from celebctl.bundles import find_bundle

    place = given or find_bundle(library, model)
    if place is None:
        raise NotFoundError(f"there is no bundle of {model} yet", "make one: celebctl export")
    return Bundle.open(place, verify="quick")


def _cells(row: "EngineParity") -> list[str]:
    """Short enough for 80 columns. A graph is named where it is another than the one its engine is named for."""
    engine = row.engine.removesuffix(".plan")
    output = row.output if engine.startswith(f"{row.graph}-") else f"{row.output} ({row.graph.rpartition('_')[2]})"
    off, largest = f"{row.max_abs_error:.1e}", f"{row.largest_value:.3g}"
    return [engine, output, off, largest, f"{row.tensorrt_ms:.2f}", f"{row.onnxruntime_ms:.2f}"]
