"""TensorRT in `export`: --trt builds engines, --dry-run shows the plan, --check lists unsupported nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import CliConsole
from .extras import requires_extra

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl_runtime.backends.engines import EngineRecord, Machine
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.request import Request

TITLE, COLUMNS = "TensorRT against ONNX Runtime on the CPU", ("engine", "output", "error", "of", "ms", "CPU ms")


@dataclass(frozen=True)
class Wanted:
    """The engines to build: sizes as "BxHxW", whether dynamic ones too, and the device, "trt" or "trt:1"."""

    sizes: Sequence[str] = ()
    dynamic: bool = True
    device: str = "trt"


def build(console: CliConsole, library: "Library", bundle: "Bundle", wanted: Wanted) -> list[dict[str, Any]]:
    """Build the missing engines of a bundle and show their errors and times; returns the facts of all for --json.

    Raises the first error after all other engines were built and shown.
    """
    from celebctl_export import build_engines
    from celebctl_export.tensorrt_plan import EngineSize

    sizes, before = [EngineSize.parse(size) for size in wanted.sizes], _keys(library, bundle)
    try:
        with requires_extra("trt", "building engines"), console.progress("building engines") as report:
            records = build_engines(
                bundle, library.engines, sizes, dynamic=wanted.dynamic, device=wanted.device,
                progress=lambda p: report(p.step, p.total, p.stage),
            )  # fmt: skip
    finally:
        new = {key: record for key, record in _keys(library, bundle).items() if key not in before}
        if new:
            console.table(TITLE, COLUMNS, [_cells(row) for record in new.values() for row in record.parity])
    console.info(f"{len(records)} engines, {len(new)} of them built now")
    return [{"file": r.file, "key": r.key, "seconds": r.seconds, "parity": list(r.parity)} for r in records]


def _keys(library: "Library", bundle: "Bundle") -> "dict[str, EngineRecord]":
    from celebctl_runtime.backends.engines import read_records

    return {record.key: record for record in read_records(library.engines, bundle.manifest)}


def ensure(console: CliConsole, library: "Library", bundle: "Bundle", request: "Request", device: str = "trt") -> None:
    """Build the missing engines for one image of exactly the request's size."""
    build(console, library, bundle, Wanted([f"1x{request.height}x{request.width}"], dynamic=False, device=device))


def this_machine(device: str = "trt") -> "Machine":
    """The TensorRT version and GPU here. Raises SetupError where one is missing."""
    from celebctl_runtime.backends.device import parse_device
    from celebctl_runtime.backends.tensorrt_runner import Device

    return Device.load(parse_device(device)).machine


def trt_device(name: str | None) -> str:
    """The device of --device, by default the first GPU. Raises UsageError for one that runs no engines."""
    from celebctl_runtime.backends.device import parse_device
    from celebctl_runtime.errors import UsageError

    spec = parse_device(name or "trt")
    if spec.kind != "trt":
        raise UsageError(f"engines are not for the device {name!r}", "use --device trt, or trt:1 for the second GPU")
    return str(spec)


def show_plan(console: CliConsole, library: "Library", bundle: "Bundle", wanted: Wanted) -> None:
    """Show what --trt would build. Needs neither TensorRT nor a GPU, without which built engines are unknown."""
    from celebctl_export.tensorrt_plan import EngineSize, describe, plan_engines
    from celebctl_runtime.errors import SetupError

    plans = plan_engines(bundle.manifest, [EngineSize.parse(size) for size in wanted.sizes], dynamic=wanted.dynamic)
    try:
        machine = this_machine(wanted.device)
    except SetupError as error:
        console.warn(f"{error.problem}: the plan cannot be built on this machine")
        machine = None
    document = describe(bundle.manifest, plans, library.engines, machine)
    if built := sum(engine["built"] for engine in document["engines"]):
        console.warn(f"{built} of {len(plans)} engines exist already")
    console.output([engine["path"] for engine in document["engines"]], document)


def check(console: CliConsole, bundle: "Bundle") -> None:
    """Name nodes without a CUDA kernel in ONNX Runtime, then ask TensorRT's parser about every graph.

    Raises InvalidInputError for nodes that TensorRT does not support. The others only cost time.
    """
    check_kernels(console, bundle)
    from celebctl_export.to_tensorrt import unsupported_nodes
    from celebctl_runtime.backends.tensorrt_runner import TensorRt
    from celebctl_runtime.errors import InvalidInputError

    tensorrt = TensorRt.load()
    with requires_extra("export", "checking graphs"):
        nodes = unsupported_nodes(tensorrt, bundle)
    for line in (f"{file}: {node}" for file, rejected in nodes.items() for node in rejected):
        console.warn(line)
    if count := sum(map(len, nodes.values())):
        problem = f"TensorRT {tensorrt.version} does not support {count} nodes of {bundle.path}"
        raise InvalidInputError(problem, "use --device cuda")
    document = {"tensorrt": tensorrt.version, "graphs": [{"file": file, "supported": True} for file in nodes]}
    console.output([f"{file}: supported by TensorRT {tensorrt.version}" for file in nodes], document)


def check_kernels(console: CliConsole, bundle: "Bundle") -> None:
    """Warn of nodes that ONNX Runtime runs on the CPU although CUDA is used. Needs neither TensorRT nor a GPU."""
    from celebctl_export.cuda_kernels import nodes_without_kernel

    manifest = bundle.manifest
    files = {info.file for info in (*manifest.graphs.values(), *manifest.ort_graphs.values())}
    with requires_extra("export", "checking graphs"):
        nodes = {file: nodes_without_kernel(bundle.file(file)) for file in sorted(files)}
    for line in (f"{file}: {node}" for file, missing in nodes.items() for node in missing):
        console.warn(f"{line}: no CUDA kernel known, ONNX Runtime may run it on the CPU")


def open_bundle(library: "Library", model: str, path: Path | None) -> "Bundle":
    """The bundle at ``path``, else the model's newest. Raises NotFoundError."""
    from celebctl.bundles import find_bundle
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.errors import NotFoundError

    path = path or find_bundle(library, model)
    if path is None:
        raise NotFoundError(f"no bundle of {model} in the library", "create one: celebctl export")
    return Bundle.open(path, verify="quick")


def _cells(row: Mapping[str, Any]) -> list[str]:
    """A table row of at most 80 columns. The graph is named where the engine has another name."""
    engine, graph, output = row["engine"].removesuffix(".plan"), row["graph"], row["output"]
    if not engine.startswith(f"{graph}-"):
        output = f"{output} ({graph.rpartition('_')[2]})"
    error, largest = f"{row['max_abs_error']:.1e}", f"{row['largest_value']:.3g}"
    return [engine, output, error, largest, f"{row['tensorrt_ms']:.2f}", f"{row['onnxruntime_ms']:.2f}"]
