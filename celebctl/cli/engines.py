"""export --trt, --dry-run and --check: a bundle's TensorRT engines, their plan, and whether its graphs can have any."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Desk
from .extras import needs

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl_export.tensorrt_parity import EngineParity
    from celebctl_export.to_tensorrt import Progress
    from celebctl_runtime.bundle import Bundle

COLUMNS = ("engine", "graph", "output", "off by", "of", "TensorRT ms", "ONNX Runtime ms")


def build(desk: Desk, library: "Library", bundle: "Bundle", sizes: Sequence[str]) -> list[dict[str, Any]]:
    """Build the engines of a bundle for this machine's GPU, measure them and say so; their facts for --json."""
    from celebctl_export.tensorrt_parity import measurer
    from celebctl_export.tensorrt_plan import EngineRequest, plan_engines
    from celebctl_export.to_tensorrt import build_engines
    from celebctl_runtime.engines import make_seal_key

    plans = plan_engines(bundle.manifest, [EngineRequest.parse(size) for size in sizes])
    rows: list[EngineParity] = []
    with needs("trt", "building engines"), desk.progress("building engines") as report:
        records = build_engines(
            bundle,
            plans,
            make_seal_key(library.seal_key),
            measure=measurer(bundle, on_rows=rows.extend),
            on_progress=partial(_pass_on, report),
        )
    desk.table("TensorRT against ONNX Runtime", COLUMNS, [_cells(row) for row in rows])
    fresh = {row.engine for row in rows}
    desk.tell(f"{len(records)} engines, {len(fresh)} of them built now")
    return [{"file": r.file, "sha256": r.sha256, "seconds": r.seconds, "parity": list(r.parity)} for r in records]


def show_plan(desk: Desk, bundle: "Bundle", sizes: Sequence[str]) -> None:
    """What `--trt` would build. Needs neither TensorRT nor a GPU."""
    from celebctl_export.tensorrt_plan import EngineRequest, describe, plan_engines
    from celebctl_runtime.cuda_memory import Cuda
    from celebctl_runtime.errors import EnvironmentProblem
    from celebctl_runtime.tensorrt_runner import TensorRt

    plans = plan_engines(bundle.manifest, [EngineRequest.parse(size) for size in sizes])
    try:
        machine = TensorRt.load().machine(Cuda.load())
    except EnvironmentProblem as problem:
        desk.note(f"{problem.problem}: the plan holds, but could not be built here")
        machine = None
    document = describe(bundle.manifest, plans, machine)
    desk.give([engine["path"] for engine in document["engines"]], document)


def check(desk: Desk, bundle: "Bundle") -> None:
    """Every graph's operators against what TensorRT supports. Raises InputRejected when some are not."""
    from celebctl_runtime.errors import InputRejected

    with needs("export", "checking graphs"):
        from celebctl_export.operators import TABLE_OF, check_operators

        files = dict.fromkeys(facts.file for facts in bundle.manifest.graphs.values())
        reports = [check_operators(bundle.file(file)) for file in files]
    problems = [(report, problem) for report in reports for problem in report.problems]
    for report, problem in problems:
        desk.note(f"{report.file}: {problem.operator} {problem.node}: {problem.problem}")
    lines = [
        f"{report.file}: {sum(report.operators.values())} nodes, {len(report.problems)} unsupported,"
        f" {report.untyped} of unknown type"
        for report in reports
    ]
    if problems:
        raise InputRejected(
            f"TensorRT would refuse {len(problems)} nodes of {bundle.path}", f"the table is that of {TABLE_OF}"
        )
    desk.give(lines, {"table": TABLE_OF, "graphs": [report.to_json() for report in reports]})


def open_place(library: "Library", model: str, given: Path | None) -> "Bundle":
    """The bundle that was named, or the model's newest. Raises NotFound."""
    from celebctl_runtime.bundle import Bundle
    from celebctl_runtime.errors import NotFound

    from .bundles import find_bundle

    place = given or find_bundle(library, model)
    if place is None:
        raise NotFound(f"there is no bundle of {model} yet", "make one: celebctl export")
    return Bundle.open(place, verify="quick")


def _pass_on(report: Any, now: "Progress") -> None:
    report(round(100 * (now.number + now.fraction)), 100 * now.total, f"{now.file}: {now.phase}")


def _cells(row: "EngineParity") -> list[str]:
    off, largest = f"{row.max_abs_error:.1e}", f"{row.largest_value:.3g}"
    return [row.engine, row.graph, row.output, off, largest, f"{row.tensorrt_ms:g}", f"{row.onnxruntime_ms:g}"]
