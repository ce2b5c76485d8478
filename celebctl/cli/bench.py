"""bench: how fast pictures come here, beside diffusers on the same weights."""

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import engines, options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.bench.runner import Contender
    from celebctl.library import Library
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.request import Request

PROMPT = "a portrait of a person"
DEVICES = ("cpu", "cuda", "trt")
# What --variants also times: ONNX Runtime on CUDA without one of the things that are to make it fast there.
VARIANTS = {
    "channels first": "prefer_nhwc=0",
    "no CUDA graph": "enable_cuda_graph=0",
    "neither": "prefer_nhwc=0,enable_cuda_graph=0",
}
PLAIN = "plain graphs"  # and on any device ONNX Runtime with the graphs that everybody gets
COLUMNS = ("who", "cold", "first", "picture", "ms per step", "of limit", "memory", "GPU memory")

Variants = Annotated[
    bool,
    typer.Option(
        "--variants",
        help="Also without the graphs' forms for ONNX Runtime; on CUDA also without channels-last layout, and"
        " without CUDA graphs.",
    ),
]


def bench(
    ctx: typer.Context,
    prompt: Annotated[
        str, typer.Argument(help="What to draw. Nobody you learned: diffusers does not know them.")
    ] = PROMPT,
    model: options.Model = None,
    bundle: options.BundleDir = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", help="cpu, cuda or trt; repeat it for several.", show_default="cpu"),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Pictures each, in turn.")] = 10,
    cold: Annotated[int, typer.Option("--cold", help="Cold starts each, in turn; 0 for none.")] = 3,
    steps: options.Steps = None,
    guidance: Annotated[float | None, typer.Option("--guidance", "--cfg", help="As for gen.")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help=options.SAMPLERS + ".")] = None,
    size: Annotated[str | None, typer.Option("--size", help="Pixels of the model: WxH or N.")] = None,
    threads: options.Threads = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Also diffusers with torch.compile (minutes).")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="Without diffusers.")] = False,
    variants: Variants = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the whole report as JSON.")] = None,
    chart: Annotated[Path | None, typer.Option("--chart", help="Draw the report into a PNG.")] = None,
    force: options.Force = False,
) -> None:
    """Time this machine: cold start, first picture, further pictures, steps and memory, beside diffusers in turns."""
    from celebctl.bench.add_person import measure_moving
    from celebctl.bench.roofline import machine
    from celebctl.bench.runner import check_counts, hold, report
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.request import Request, resolve

    from .extras import check_installed
    from .gen import open_or_export

    console = ctx.ensure_object(CliConsole)
    check_counts(rounds, cold)
    _check_places([path for path in (out, chart) if path is not None], force)
    if chart is not None:
        check_installed("eval", "drawing a chart", "matplotlib")
    devices = _checked_devices(device, variants)
    settings, library = Settings.read(), Library()
    chosen = str(settings.text("model", model))
    on_gpu = "cpu" not in devices
    opened = open_or_export(console, library, chosen, bundle, "fp16" if on_gpu else "fp32")
    if on_gpu and opened.manifest.dtype == "fp32":
        console.warn("the bundle is in fp32; celebctl export --dtype fp16 makes one that GPUs are faster with")
    width, height = options.parse_size(size)
    wanted = Request(prompt, "", 0, steps or 0, guidance, sampler or "", width, height, identities=())
    request = resolve(wanted, opened.manifest)
    count = settings.number("threads", threads) or None
    if "trt" in devices:
        engines.ensure(console, library, opened, request)
    tuned = settings.text("cuda_options") or ""
    entrants = _all_of_ours(library, opened, request, devices, tuned, count, variants)
    if not alone:
        entrants += _rivals(console, chosen, opened, request, devices, count, compiled)
    with console.progress("timing") as bar:
        total = rounds + cold * len(entrants) + len(entrants) + 1
        say = partial(_advance, bar, total, iter(range(1, total + 1)))
        scores, extras = hold(entrants, rounds=rounds, cold_rounds=cold, say=say, note=console.warn)
    with tempfile.TemporaryDirectory(prefix="celebctl-bench-") as folder:
        moving = measure_moving(opened, Path(folder), max(1, cold))
    told = {**request.to_json(), "model": opened.manifest.model.name, "dtype": opened.manifest.dtype}
    facts = {**told, "rounds": rounds, "cold_rounds": cold, "threads": count}
    document = {**report(scores, extras, facts, machine()), "moving": moving}
    _write(console, document, out, chart)
    _show(console, document)


def ways_of(devices: Sequence[str], tuned: str, variants: bool) -> list[tuple[str, str, str]]:
    """(device, what to add to its name, options of CUDA) of each of our contestants; `tuned`: the user's options."""
    ways = [(name, "", tuned) for name in devices]
    if not (variants and "cuda" in devices):
        return ways
    return ways + [("cuda", f", {name}", f"{tuned},{without}") for name, without in VARIANTS.items()]


def _checked_devices(given: list[str] | None, variants: bool) -> list[str]:
    """What to time. What this machine cannot do is told before anything is made for it."""
    from celebctl_runtime.backends.ort_session import choose_providers, load_onnxruntime
    from celebctl_runtime.errors import UsageError

    devices = list(dict.fromkeys(given or ["cpu"]))
    for name in devices:
        if name not in DEVICES:
            raise UsageError(f"--device {name!r} cannot be timed", f"use one or more of {', '.join(DEVICES)}")
    if variants and devices == ["trt"]:
        raise UsageError("--variants are ways of ONNX Runtime", "add --device cpu or --device cuda")
    if "trt" in devices:
        engines.this_machine()
    if "cuda" in devices:
        choose_providers(load_onnxruntime(), "cuda")
    return devices


def _check_places(paths: Sequence[Path], force: bool) -> None:
    from celebctl_runtime.files import refuse_existing

    for path in paths:
        refuse_existing(path, force)


def _all_of_ours(
    library: "Library",
    bundle: "Bundle",
    request: "Request",
    devices: Sequence[str],
    tuned: str,
    threads: int | None,
    variants: bool,
) -> "list[Contender]":
    found = [_ours(library, bundle, request, way, threads) for way in ways_of(devices, tuned, variants)]
    plain = [(name, f", {PLAIN}", tuned) for name in devices if variants and name != "trt"]
    return found + [_ours(library, bundle, request, way, threads, plain_graphs=True) for way in plain]


def _ours(
    library: "Library",
    bundle: "Bundle",
    request: "Request",
    way: tuple[str, str, str],
    threads: int | None,
    plain_graphs: bool = False,
) -> "Contender":
    """`way`: the device, what to add to its name, options of CUDA. `plain_graphs`: without forms for ONNX Runtime."""
    import json

    from celebctl.bench.runner import Contender
    from celebctl_runtime.backends.ort_session import parse_cuda_options

    device, suffix, options = way
    spec = {
        "kind": "celebctl",
        "bundle": str(bundle.path),
        "engines": str(library.engines),
        "device": device,
        "threads": threads,
        "cuda_options": parse_cuda_options(options),
        "request": request.to_json(),
        "plain_graphs": plain_graphs,
    }
    if plain_graphs:  # which gen cannot be asked for
        command = (sys.executable, "-m", "celebctl.bench.worker", json.dumps(spec), "--once")
        return Contender(f"celebctl {device}{suffix}", spec, command)
    words = [request.prompt, "--seed", "0", "--steps", str(request.steps), "--guidance", str(request.guidance)]
    words += ["--sampler", request.sampler, "--size", f"{request.width}x{request.height}", "--scale", "1"]
    words += ["--bundle", str(bundle.path), "--device", device, *(["--threads", str(threads)] if threads else [])]
    command = (sys.executable, "-m", "celebctl", "--quiet", "gen", *words, "--force", "--out")
    return Contender(f"celebctl {device}{suffix}", spec, command, {"CELEBCTL_CUDA_OPTIONS": options})


def _rivals(
    console: CliConsole,
    model: str,
    bundle: "Bundle",
    request: "Request",
    devices: Sequence[str],
    threads: int | None,
    compiled: bool,
) -> "list[Contender]":
    """diffusers on every chip that we run on; none where it cannot be, which is noted."""
    import json
    from importlib.util import find_spec

    from celebctl.bench.runner import BASELINE, Contender
    from celebctl_models.checkpoints.registry import locate

    missing = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing:
        console.warn(f"no comparison: {', '.join(missing)} not installed; pip install 'celebctl[learn]'")
        return []
    place = locate(model)
    if place.kind != "folder":
        console.warn(f"no comparison: {model} is no diffusers folder on this machine")
        return []
    found: list[Contender] = []
    for chip in dict.fromkeys("cpu" if name == "cpu" else "cuda" for name in devices):
        for wanted in (False, True) if compiled else (False,):
            spec = {"kind": BASELINE, "model": str(place.path), "device": chip, "threads": threads, "compile": wanted}
            spec |= {"dtype": bundle.manifest.dtype, "request": request.to_json()}
            command = (sys.executable, "-m", "celebctl.bench.worker", json.dumps(spec), "--once")
            found.append(Contender(f"diffusers {chip}{' compiled' if wanted else ''}", spec, command))
    return found


def _advance(bar: Any, total: int, numbers: Any, text: str) -> None:
    bar(next(numbers, total), total, text)


def _write(console: CliConsole, document: dict[str, Any], out: Path | None, chart: Path | None) -> None:
    import json

    from celebctl_runtime.files import atomic_write

    if out is not None:
        atomic_write(out, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
        console.info(f"the report is in {out}")
    if chart is not None:
        from celebctl.bench.chart import draw_report

        atomic_write(chart, lambda path: draw_report(document).save(path))
        console.info(f"the chart is in {chart}")


def _show(console: CliConsole, document: dict[str, Any]) -> None:
    from celebctl.bench.runner import machine_of, title_of

    shares = {row["name"]: f"{row['share_of_limit']:.0%}" for row in document["roofline"] if row["share_of_limit"]}
    rows = [_cells(row, shares.get(row["name"], "")) for row in document["contestants"]]
    lines = [
        ", ".join(f"{what} {cell}" if what != "who" else cell for what, cell in zip(COLUMNS, row, strict=True) if cell)
        for row in rows
    ]
    lines += [_ratio_line(ratio) for ratio in document["ratios"]]
    graphs = [(row["name"], row["facts"].get("cuda_graph", "yes")) for row in document["contestants"]]
    lines += [
        f"{name} replays no CUDA graph{said[2:]}"
        for name, said in graphs
        if said[:3] == "no:" and "switched" not in said
    ]
    lines += [document["missing"]] if "missing" in document else []
    lines.append(_moving_line(document["moving"]))
    console.info(f"{title_of(document)}\n{machine_of(document)}")
    console.output_table(lines, document, partial(_table, console, rows, lines[len(rows) :]))


def _table(console: CliConsole, rows: Sequence[Sequence[str]], lines: Sequence[str]) -> None:
    known = len(COLUMNS) if any(row[-1] for row in rows) else len(COLUMNS) - 1  # only GPUs have memory of their own
    console.table("", COLUMNS[:known], [row[:known] for row in rows])
    for line in lines:
        console.info(line)


def _cells(row: dict[str, Any], share: str) -> list[str]:
    seconds = [f"{row[key]:.2f} s" if row[key] else "" for key in ("cold", "first")]
    picture = f"{1e3 * row['picture']:.0f} ms"
    step = f"{row['step_ms']:.2f}" if row["step_ms"] else ""
    memory = [f"{row[key]:,} MiB" if row[key] else "" for key in ("memory_mib", "gpu_memory_mib")]
    return [row["name"], *seconds, picture, step, share, *memory]


def _moving_line(moving: dict[str, float]) -> str:
    added = f"a new person {moving['add_ms']:.1f} ms, as a command {moving['add_command_s']:.2f} s"
    return f"{added}; import of the runtime {moving['import_s']:.2f} s"


def _ratio_line(ratio: dict[str, Any]) -> str:
    words = {"cold": "cold start", "first": "first picture", "picture": "picture", "step": "step", "memory": "memory"}
    words["gpu_memory"] = "GPU memory"
    said = ", ".join(f"{words[key]} {value:.2f}x" for key, value in ratio["values"].items())
    return f"{ratio['ours']} against {ratio['theirs']}: {said}"
