"""Cost and accuracy of the export of Stable Diffusion 1.5, 2.1 and XL at their true size.

    python -m benchmarks.true_size_export                          # all three in half precision
    python -m benchmarks.true_size_export --families sdxl          # one; results of the others stay in the file
    python -m benchmarks.true_size_export --families sd15 --dtype fp32

Random weights, celebctl's own commands, each as a process: `export`, which measures every graph against torch, and one
step of `gen` with the bundle at 512 px. Peak resident memory and wall time of each are recorded. A model and its bundle
take 4 to 14 GB of disk in a temporary folder and are deleted before the next, unless --keep is given.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.processes import cores, machine, run
from benchmarks.true_size import largest_errors, size_of
from benchmarks.true_size_model import PARAMETERS

HERE = Path(__file__).resolve().parent


def stage_commands(family: str, dtype: str, model: Path) -> dict[str, list[str]]:
    """The command of every stage, in order."""
    celebctl = [sys.executable, "-m", "celebctl", "--json"]
    model_option = ["--model", str(model)]
    return {
        "build": [sys.executable, "-m", "benchmarks.true_size_model", str(model), "--family", family],
        "export": [*celebctl, "export", *model_option, "--dtype", dtype],
        "gen": [
            *celebctl, "gen", "a photo of a person", "--steps", "1", "--seed", "1", *model_option, "--size", "512x512",
            "-o", "image.png", "--device", "cpu", "--threads", str(cores()),
        ],
    }  # fmt: skip


def stage_results(stage: str, output: dict[str, Any], model: Path) -> dict[str, Any]:
    """Sizes and settings of what a stage made. output: of its command."""
    if stage == "build":
        return {"bytes": size_of(model)}
    if stage == "export":
        bundle = Path(output["path"])
        manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
        files = {graph["file"] for graph in manifest["graphs"].values()}
        return {
            "bytes": size_of(bundle), "dtype": manifest["dtype"], "graphs": sorted(files),
            "worst_parity": largest_errors(manifest["parity"]),
        }  # fmt: skip
    (image,) = output["pictures"]
    return {key: image["request"][key] for key in ("steps", "width", "height", "guidance")}


def measure(family: str, dtype: str, folder: Path) -> dict[str, Any]:
    """All stages of one model."""
    model = folder / f"{family}-random"
    results: dict[str, Any] = {"parameters": PARAMETERS[family]}
    for stage, command in stage_commands(family, dtype, model).items():
        done = run(command, folder)
        print(f"{family} {dtype}, {stage}: {done.seconds:.0f} s, peak {done.peak_bytes / 1e9:.2f} GB", flush=True)
        costs = {"seconds": round(done.seconds, 1), "peak_rss_bytes": done.peak_bytes}
        results[stage] = {**costs, **stage_results(stage, done.output, model)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=[*PARAMETERS], default=[*PARAMETERS])
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--folder", type=Path, help="folder of the files (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="delete nothing")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "true_size_export.json")
    parser.add_argument("--note", default="", help="remark stored with the results")
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {}
    for family in args.families:
        folder = Path(args.folder or tempfile.mkdtemp(prefix="true-size-")).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            measured = measure(family, args.dtype, folder)
        finally:
            if not args.keep:
                shutil.rmtree(folder, ignore_errors=True)
        results[f"{family} {args.dtype}"] = {"note": args.note, "machine": machine(), **measured}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
