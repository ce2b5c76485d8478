"""Cost of adding a person to an exported bundle of true size: the token table and the manifest, no network file.

    python -m benchmarks.adding            # SD 1.5 and SDXL; 0.6 GB of disk, one or two minutes (mostly hashing)

The bundles have the true sizes: token tables of 49,408 rows and 256 spare ones, weight files as long as those of the
published networks (sparse files of zeros), a manifest with every graph, and 100 people. The graphs are empty files, so
opening one would fail. Measured are `Bundle.add` in a running process and `celebctl export --add` as a process from
start to end (medians of `--rounds`), the bytes that one addition reads and writes by system calls (Linux), and the
command's peak memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import machine, run
from celebctl.bench.add_person import measure_adding, random_identity
from celebctl.library import Library
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import (
    Defaults,
    GraphInfo,
    Manifest,
    ModelInfo,
    SizeInfo,
    TensorInfo,
    TokenizerInfo,
    TokenTable,
)

HERE = Path(__file__).resolve().parent
VOCABULARY, SPARE, PEOPLE = 49_408, 256, 100
#: Widths of the token tables, and bytes of the weight files: parameters of the published networks, text encoders
#: without their tables in float32, the rest in float32 (SD 1.5) or float16 (SDXL).
MODELS: Mapping[str, tuple[tuple[int, ...], dict[str, int]]] = {
    "sd15": (
        (768,),
        {
            "text_encoder.data": 4 * (123_060_480 - VOCABULARY * 768),
            "step.data": 4 * 859_520_964,
            "vae_decoder.data": 4 * 49_490_199,
            "vae_encoder.data": 4 * 34_163_664,
        },
    ),
    "sdxl": (
        (768, 1280),
        {
            "text_encoder.data": 4 * (123_060_480 - VOCABULARY * 768),
            "text_encoder_2.data": 4 * (694_659_840 - VOCABULARY * 1280),
            "step.data": 2 * 2_567_463_684,
            "vae_decoder.data": 4 * 49_490_199,
            "vae_encoder.data": 4 * 34_163_664,
        },
    ),
}
KEYS_AND_VALUES = 32  # inputs of the step graph optimized for ONNX Runtime


def write_bundle(path: Path, widths: Sequence[int], weights: Mapping[str, int], name: str) -> Bundle:
    """A bundle with files of these sizes and with ``PEOPLE`` people; unused spare rows are zero, as in an export."""
    path.mkdir(parents=True)
    for file, size in weights.items():
        with (path / file).open("wb") as handle:
            handle.truncate(size)
        (path / file).with_suffix(".onnx").touch()
    (path / "tokenizer.json").write_text("{}")
    tables: list[TokenTable] = []
    for number, width in enumerate(widths):
        file = f"token_table{'' if number == 0 else f'_{number + 1}'}.bin"
        rows = np.zeros((VOCABULARY + SPARE, width), np.float32)
        rows[:VOCABULARY] = np.random.default_rng(number).standard_normal((VOCABULARY, width), np.float32)
        rows.tofile(path / file)
        tables.append(TokenTable(file, len(rows), width, "float32", VOCABULARY, SPARE))
    manifest = Manifest(
        ModelInfo(name, name, "true size, random rows", "0" * 64),
        SizeInfo((512, 512), 8, 8, 1),
        "fp32",
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"},
        Defaults(20, 7.5, "dpmpp_2m"),
        TokenizerInfo(
            "tokenizer.json", 77, VOCABULARY - 2, VOCABULARY - 1, VOCABULARY - 1, more_pads=(0,) * (len(widths) - 1)
        ),
        _graphs(weights),
        tuple(tables),
    )
    step = manifest.graphs["step"]
    cached = {f"memory_{number}": TensorInfo("float32", ("rows", 8, 77, 160)) for number in range(KEYS_AND_VALUES)}
    optimized = {"step": replace(step, inputs={**step.inputs, **cached})}
    bundle = Bundle.seal(path, replace(manifest, ort_graphs=optimized))
    for number in range(PEOPLE):
        bundle.add(random_identity(bundle, f"person-{number}", 1000 + number))
    return bundle


def _graphs(weights: Mapping[str, int]) -> dict[str, GraphInfo]:
    latent, image = ("batch", 4, "h", "w"), ("batch", 3, "height", "width")
    shapes: dict[str, tuple[dict[str, tuple[int | str, ...]], dict[str, tuple[int | str, ...]]]] = {
        "text_encoder": ({"input_ids": ("batch", 77)}, {"context": ("batch", 77, 768)}),
        "step": (
            {"state": (2, *latent), "noise": latent, "context": ("guides", "batch", 77, 768), "aux": ("steps", 3)},
            {"next_state": (2, *latent), "next_step": (1,)},
        ),
        "vae_decoder": ({"latent": latent}, {"image": image}),
        "vae_encoder": ({"image": image}, {"latent": latent}),
    }
    shapes["text_encoder_2"] = shapes["text_encoder"]
    graphs: dict[str, GraphInfo] = {}
    for file in weights:
        name = Path(file).stem
        inputs, outputs = ({key: TensorInfo("float32", shape) for key, shape in side.items()} for side in shapes[name])
        graphs[name] = GraphInfo(f"{name}.onnx", (file,), inputs, outputs)
    graphs["step_nocfg"] = graphs["step"]
    return graphs


def system_bytes() -> dict[str, int]:
    """Bytes that this process read and wrote by system calls; {} on systems without /proc."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {key: int(value) for key, value in (line.split(": ") for line in lines) if key in ("rchar", "wchar")}


def measure(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """All measurements of one model."""
    widths, weights = MODELS[name]
    bundle = write_bundle(folder / name, widths, weights, name)
    results: dict[str, Any] = {
        "weight_file_bytes": sum(weights.values()),
        "token_table_bytes": sum(4 * (VOCABULARY + SPARE) * width for width in widths),
        "people_there_before": PEOPLE,
        "manifest_bytes": (bundle.path / "manifest.json").stat().st_size,
        **measure_adding(bundle, folder / "copy", rounds),
    }
    person = random_identity(bundle, "new", 7)
    modified = {path: path.stat().st_mtime_ns for path in map(bundle.file, weights)}
    before = system_bytes()
    bundle.add(person)
    after = system_bytes()
    results |= {f"add_{key}": after[key] - before[key] for key in before}
    bundle.remove("new")
    Library(folder / "home").save(person)
    arguments = ["-m", "celebctl", "--json", "--quiet", "export", "--add", "new", "--bundle", str(bundle.path)]
    results["add_command_peak_bytes"] = run([sys.executable, *arguments], folder).peak_bytes
    results["weights_touched"] = [path.name for path, time in modified.items() if path.stat().st_mtime_ns != time]
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "adding.json")
    parser.add_argument("--note", default="", help="remark stored with the results")
    args = parser.parse_args()
    results: dict[str, Any] = {"note": args.note, "machine": machine(), "rounds": args.rounds}
    for name in args.models:
        folder = Path(tempfile.mkdtemp(prefix="adding-"))
        try:
            results[name] = measure(name, folder, args.rounds)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{name}: {results[name]['add_ms']} ms, as a command {results[name]['add_command_s']} s", flush=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
