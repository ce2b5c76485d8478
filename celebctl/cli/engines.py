"""export --trt, --dry-run and --check: a bundle's TensorRT engines, their plan, and whether its graphs can have any."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Desk
from .extras import needs

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl_export.operators import OperatorReport
    from celebctl_export.tensorrt_parity import EngineParity
    from celebctl_export.to_tensorrt import Progress
    from celebctl_runtime.bundle import Bundle
    from celebctl_runtime.engines import EngineRecord, Machine
    from celebctl_runtime.request import Request

TITLE, COLUMNS = "TensorRT against ONNX Runtime on the CPU", ("engine", "output", "off by", "of", "ms", "CPU ms")
_NAMED = 5  # nodes whose type is not known, before "..."


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
    desk.table(TITLE, COLUMNS, [_cells(row) for row in rows])
    fresh = {row.engine for row in rows}
    desk.tell(f"{len(records)} engines, {len(fresh)} of them built now")
    return [{"file": r.file, "sha256": r.sha256, "seconds": r.seconds, "parity": list(r.parity)} for r in records]


def ensure(desk: Desk, library: "Library", bundle: "Bundle", request: "Request") -> None:
    """Engines tuned for one picture of a request's size: built where this machine has none, or somebody else's."""
    from celebctl_export.tensorrt_plan import EngineRequest, plan_engines
    from celebctl_runtime.engines import choose

    records = _known(library, bundle, this_machine())
    size = EngineRequest(1, request.height, request.width)
    for plan in plan_engines(bundle.manifest, [size], dynamic=False):
        for profile in plan.profiles:
            tuned = {name: best for name, (_, best, _) in profile.shapes.items()}
            found = choose(records, profile.graph, tuned)
            if found is None or (not profile.slack and found[0].profiles[found[1]].slack):
                desk.tell(f"building engines for {request.width}x{request.height} pixels, once")
                build(desk, library, bundle, [f"1x{request.height}x{request.width}"])
                return


def this_machine() -> "Machine":
    """What engines built here are bound to. Raises EnvironmentProblem where TensorRT or its GPU is missing."""
    from celebctl_runtime.cuda_memory import Cuda
    from celebctl_runtime.tensorrt_runner import TensorRt

    return TensorRt.load().machine(Cuda.load())


def _known(library: "Library", bundle: "Bundle", machine: "Machine") -> "list[EngineRecord]":
    """The engines of a bundle that were built here, for this machine; somebody else's count as none."""
    from celebctl_runtime.engines import find_records, read_seal_key
    from celebctl_runtime.errors import IntegrityProblem, NotFound

    try:
        return find_records(bundle.path, bundle.manifest, machine, read_seal_key(library.seal_key))[1]
    except (IntegrityProblem, NotFound):
        return []


def show_plan(desk: Desk, library: "Library", bundle: "Bundle", sizes: Sequence[str]) -> None:
    """What `--trt` would build, as wide as engines that are there already are. Needs neither TensorRT nor a GPU, but
    then knows of no such engines."""
    from celebctl_export.tensorrt_plan import EngineRequest, describe, keeping_all, plan_engines
    from celebctl_runtime.errors import EnvironmentProblem

    plans = plan_engines(bundle.manifest, [EngineRequest.parse(size) for size in sizes])
    try:
        machine = this_machine()
    except EnvironmentProblem as problem:
        desk.note(f"{problem.problem}: the plan holds, but could not be built here")
        machine = None
    known = _known(library, bundle, machine) if machine else []
    document = describe(bundle.manifest, keeping_all(plans, known), machine, known)
    if known:
        there = sum(engine["built"] for engine in document["engines"])
        desk.note(f"{there} of {len(plans)} engines are built already; the others keep what those here can do")
    desk.give([engine["path"] for engine in document["engines"]], document)


def check(desk: Desk, bundle: "Bundle") -> None:
    """Every graph's operators against what TensorRT supports. Raises InputRejected when some are not.

    Of nodes whose type is not known, only the operator was checked: each graph's are counted, and the first are named.
    """
    from celebctl_runtime.errors import InputRejected

    with needs("export", "checking graphs"):
        from celebctl_export.operators import TABLE_OF, check_operators

        files = dict.fromkeys(facts.file for facts in bundle.manifest.graphs.values())
        reports = [check_operators(bundle.file(file)) for file in files]
    problems = [(report, problem) for report in reports for problem in report.problems]
    for report, problem in problems:
        desk.note(f"{report.file}: {problem.operator} {problem.node}: {problem.problem}")
    for report in reports:
        if report.untyped:
            desk.note(_untyped(report))
    if problems:
        raise InputRejected(
            f"TensorRT would refuse {len(problems)} nodes of {bundle.path}", f"the table is that of {TABLE_OF}"
        )
    lines = [
        f"{report.file}: {sum(report.operators.values())} nodes, {len(report.problems)} unsupported,"
        f" {report.untyped} of unknown type"
        for report in reports
    ]
    document = {"table": TABLE_OF, "untyped": sum(report.untyped for report in reports)}
    desk.give([*lines, f"checked against {TABLE_OF}"], {**document, "graphs": [report.to_json() for report in reports]})


def _untyped(report: "OperatorReport") -> str:
    named = ", ".join(report.untyped_nodes[:_NAMED]) + (", ..." if report.untyped > _NAMED else "")
    return f"{report.file}: {report.untyped} nodes whose type is not known; only their operator was checked: {named}"


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
    """Short enough for 80 columns. A graph is named where it is another than the one its engine is named for."""
    engine = row.engine.removesuffix(".plan")
    output = row.output if engine.startswith(f"{row.graph}-") else f"{row.output} ({row.graph.rpartition('_')[2]})"
    off, largest = f"{row.max_abs_error:.1e}", f"{row.largest_value:.3g}"
    return [engine, output, off, largest, f"{row.tensorrt_ms:.2f}", f"{row.onnxruntime_ms:.2f}"]
