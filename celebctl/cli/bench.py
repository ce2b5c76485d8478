"""bench: how fast images are generated, next to diffusers on the same weights."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import engines, options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl_runtime.bundle.bundle import Bundle

PROMPT = "a portrait of a person"
KINDS = ("cpu", "cuda", "trt", "openvino")
COLUMNS = ("contender", "cold", "first", "image", "ms per step", "of limit", "memory", "GPU memory")

Variants = Annotated[
    bool,
    typer.Option(
        "--variants",
        help="Also without the graphs' optimised forms for ONNX Runtime; on CUDA also without CUDA graphs and with"
        " channels-last layout; of OpenVINO also in bfloat16.",
    ),
]


def bench(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Argument(help="Prompt; must not name learned people.")] = PROMPT,
    model: options.Model = None,
    bundle: options.BundleDir = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="cpu, cuda, trt or openvino (or cuda:1, trt:1); repeat it for several.",
            show_default="cpu",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Images of each contender, in turns.")] = 10,
    cold_starts: Annotated[
        int, typer.Option("--cold-starts", help="Cold starts of each contender, in turns; 0 for none.")
    ] = 3,
    steps: options.Steps = None,
    guidance: Annotated[float | None, typer.Option("--guidance", "--cfg", help="As for gen.")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help=options.SAMPLERS + ".")] = None,
    size: Annotated[str | None, typer.Option("--size", help="Pixels of the model: WxH or N.")] = None,
    threads: options.Threads = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Also diffusers with torch.compile (minutes).")] = False,
    no_baseline: Annotated[bool, typer.Option("--no-baseline", help="Without diffusers.")] = False,
    variants: Variants = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the whole report as JSON.")] = None,
    chart: Annotated[Path | None, typer.Option("--chart", help="Draw the report as a PNG.")] = None,
    force: options.Force = False,
) -> None:
    """Time this machine: cold start, first and further images, steps and memory, in turns with diffusers."""
    from celebctl.bench.contenders import Workload
    from celebctl.bench.document import benchmark_document
    from celebctl.bench.runner import check_counts
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.request import Request, resolve

    console = ctx.ensure_object(CliConsole)
    check_counts(rounds, cold_starts)
    _check_outputs(out, chart, force)
    devices = _checked_devices(device, variants)
    settings, library = Settings.read(), Library()
    chosen = str(settings.text("model", model))
    opened = _open_bundle(console, library, chosen, bundle, devices)
    width, height = options.parse_size(size)
    partial_request = Request(prompt, "", 0, steps or 0, guidance, sampler or "", width, height, identities=())
    request = resolve(partial_request, opened.manifest)
    for name in devices:
        if name.startswith("trt"):
            engines.ensure(console, library, opened, request, name)
    count = settings.number("threads", threads) or None
    engine_options = (settings.text("cuda_options") or "", settings.text("openvino_options") or "")
    workload = Workload(opened, request, library.engines, count, *engine_options)
    contenders = workload.celebctl_contenders(devices, variants=variants)
    if not no_baseline:
        contenders += workload.baselines(chosen, devices, compiled=compiled)
    with console.progress("timing") as bar:
        document = benchmark_document(
            workload, contenders, rounds, cold_starts, lambda event: bar(event.step, event.total, event.stage)
        )
    _write(console, document, out, chart)
    _show(console, document)


def _open_bundle(
    console: CliConsole, library: "Library", model: str, bundle: Path | None, devices: Sequence[str]
) -> "Bundle":
    """The bundle to time; a model without one is exported, in fp16 when every device is a GPU."""
    from celebctl.bench.worker import hardware_of

    from .gen import open_or_export

    on_gpu = all(hardware_of(name) != "cpu" for name in devices)
    opened = open_or_export(console, library, model, bundle, "fp16" if on_gpu else "fp32")
    if on_gpu and opened.manifest.dtype == "fp32":
        console.warn("the bundle is fp32; celebctl export --dtype fp16 makes one that is faster on GPUs")
    return opened


def _checked_devices(names: list[str] | None, variants: bool) -> list[str]:
    """The devices to time. Raises before anything is prepared when this machine lacks one."""
    from celebctl_runtime.backends.device import parse_device
    from celebctl_runtime.backends.openvino import load_openvino
    from celebctl_runtime.backends.ort_session import choose_providers, load_onnxruntime
    from celebctl_runtime.errors import UsageError

    devices = list(dict.fromkeys(parse_device(name) for name in names or ["cpu"]))
    kinds = {device.kind for device in devices}
    for kind in sorted(kinds.difference(KINDS)):
        raise UsageError(f"--device {kind} cannot be timed", f"use one or more of --device {', '.join(KINDS)}")
    if variants and kinds == {"trt"}:
        raise UsageError("--variants are variants of ONNX Runtime", "add --device cpu or --device cuda")
    for device in devices:
        if device.kind == "trt":
            engines.this_machine(str(device))
        if device.kind == "openvino":
            load_openvino()
        if device.kind == "cuda":
            choose_providers(load_onnxruntime(), device)
    return [str(device) for device in devices]


def _check_outputs(out: Path | None, chart: Path | None, force: bool) -> None:
    """Raise before anything is timed when the report or the chart cannot be written."""
    from celebctl_runtime.files import refuse_existing

    from .extras import check_installed

    for path in (out, chart):
        if path is not None:
            refuse_existing(path, force)
    if chart is not None:
        check_installed("eval", "drawing a chart", "matplotlib")


def _write(console: CliConsole, document: dict[str, Any], out: Path | None, chart: Path | None) -> None:
    import json

    from celebctl_runtime.files import atomic_write

    if out is not None:
        atomic_write(out, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
        console.info(f"wrote the report to {out}")
    if chart is not None:
        from celebctl.bench.chart import draw_report

        atomic_write(chart, lambda path: draw_report(document).save(path))
        console.info(f"wrote the chart to {chart}")


def _show(console: CliConsole, document: dict[str, Any]) -> None:
    from celebctl.bench.report import machine_of, title_of

    shares = {row["name"]: share_of(row) for row in document["roofline"] if row["share_of_limit"]}
    rows = [cells_of(row, shares.get(row["name"], "")) for row in document["contenders"]]
    lines = [
        ", ".join(
            f"{name} {cell}" if name != "contender" else cell for name, cell in zip(COLUMNS, row, strict=True) if cell
        )
        for row in rows
    ]
    lines += [_ratio_line(ratio) for ratio in document["ratios"]]
    graphs = [(row["name"], row["facts"].get("cuda_graph", "yes")) for row in document["contenders"]]
    lines += [
        f"{name} replays no CUDA graph{answer[2:]}"
        for name, answer in graphs
        if answer[:3] == "no:" and "disabled" not in answer
    ]
    lines += [document["no_baseline"]] if "no_baseline" in document else []
    lines += noise_lines(document)
    lines.append(_adding_line(document["add_person"]))
    console.info(f"{title_of(document)}\n{machine_of(document)}")
    console.output_table(lines, document, partial(_table, console, rows, lines[len(rows) :]))


def _table(console: CliConsole, rows: Sequence[Sequence[str]], lines: Sequence[str]) -> None:
    count = len(COLUMNS) if any(row[-1] for row in rows) else len(COLUMNS) - 1
    console.table("", COLUMNS[:count], [row[:count] for row in rows])
    for line in lines:
        console.info(line)


def share_of(row: dict[str, Any]) -> str:
    """Share of the hardware's limit; more than all of it cannot be."""
    return f"{row['share_of_limit']:.0%}" + ("" if row["reliable"] else " (unreliable)")


def cells_of(row: dict[str, Any], share: str) -> list[str]:
    """A row of the table: medians, and their quartiles where there are several rounds."""
    cold = f"{row['cold']:.2f} s{_quartiles(row, 'cold', '.2f')}" if row["cold"] else ""
    first = f"{row['first']:.2f} s" if row["first"] else ""
    image = f"{1e3 * row['picture']:.0f} ms{_quartiles(row, 'picture', '.0f', 1e3)}"
    step = f"{row['step_ms']:.2f}{_quartiles(row, 'step_ms', '.2f')}" if row["step_ms"] else ""
    memory = [f"{row[key]:,} MiB" if row[key] else "" for key in ("memory_mib", "gpu_memory_mib")]
    return [row["name"], cold, first, image, step, share, *memory]


def _quartiles(row: dict[str, Any], key: str, form: str, factor: float = 1.0) -> str:
    """First and third quartile of the rounds, where there are several."""
    quartiles = [format(factor * value, form) for value in row["spread"].get(key, ())]
    return f" ({'-'.join(quartiles)})" if quartiles else ""


def noise_lines(document: dict[str, Any]) -> list[str]:
    """What makes the figures uncertain."""
    from celebctl.bench.report import busy_share

    over = [row["name"] for row in document["roofline"] if not row["reliable"]]
    lines = [f"{name} is over the hardware's limit: that share is not reliable" for name in over]
    busy = busy_share(document)
    if busy is not None:
        lines.append(f"the machine was busy: in half of the rounds it reached at most {busy:.0%} of its limit")
    return lines


def _adding_line(adding: dict[str, float]) -> str:
    added = f"adding a person {adding['add_ms']:.1f} ms, as a command {adding['add_command_s']:.2f} s"
    return f"{added}; import of the runtime {adding['import_s']:.2f} s"


def _ratio_line(ratio: dict[str, Any]) -> str:
    labels = {"cold": "cold start", "first": "first image", "picture": "image", "step": "step", "memory": "memory"}
    labels["gpu_memory"] = "GPU memory"
    spread = {key: "-".join(f"{value:.2f}" for value in pair) for key, pair in ratio["spread"].items()}
    text = ", ".join(f"{labels[key]} {value:.2f}x ({spread[key]})" for key, value in ratio["values"].items())
    return f"{ratio['ours']} against {ratio['theirs']}: {text}"
