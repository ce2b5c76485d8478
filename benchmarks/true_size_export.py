"""Does the export hold for Stable Diffusion 1.5, 2.1 and XL at their true size, and what does it cost?

    python -m benchmarks.true_size_export                          # all three in half precision
    python -m benchmarks.true_size_export --families sdxl          # one; figures of the others stay in the file
    python -m benchmarks.true_size_export --families sd15 --dtype fp32

Random weights, celebctl's own commands, each in a process of its own: `export` (which measures every graph against
torch) and one step of `gen` through the bundle at 512 px. Peak of resident memory and wall time of each are written
down. A model and its bundle take 4 to 14 GB of disk in a temporary folder and are deleted before the next, unless
--keep is given.
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
from benchmarks.true_size import size_of, worst
from benchmarks.true_size_model import PARAMETERS

HERE = Path(__file__).resolve().parent


def words_of(family: str, dtype: str, model: Path) -> dict[str, list[str]]:
    """The command line of every stage, in order."""
    celebctl = [sys.executable, "-m", "celebctl", "--json"]
    chosen = ["--model", str(model)]
    return {
        "build": [sys.executable, "-m", "benchmarks.true_size_model", str(model), "--family", family],
        "export": [*celebctl, "export", *chosen, "--dtype", dtype],
        "gen": [
            *celebctl, "gen", "a photo of a person", "--steps", "1", "--seed", "1", *chosen, "--size", "512x512",
            "-o", "drawn.png", "--device", "cpu", "--threads", str(cores()),
        ],
    }  # fmt: skip


def facts_of(stage: str, said: dict[str, Any], model: Path) -> dict[str, Any]:
    """What a stage made, as far as it says something."""
    if stage == "build":
        return {"bytes": size_of(model)}
    if stage == "export":
        bundle = Path(said["path"])
        manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
        graphs = {name: facts["file"] for name, facts in manifest["graphs"].items()}
        return {
            "bytes": size_of(bundle), "dtype": manifest["dtype"], "graphs": sorted(set(graphs.values())),
            "worst_parity": worst(manifest["parity"]),
        }  # fmt: skip
    (picture,) = said["pictures"]
    return {key: picture["request"][key] for key in ("steps", "width", "height", "guidance")}


def measure(family: str, dtype: str, folder: Path) -> dict[str, Any]:
    """All stages of one model."""
    model = folder / f"{family}-random"
    found: dict[str, Any] = {"parameters": PARAMETERS[family]}
    for stage, words in words_of(family, dtype, model).items():
        done = run(words, folder)
        print(f"{family} {dtype}, {stage}: {done.seconds:.0f} s, peak {done.peak_bytes / 1e9:.2f} GB", flush=True)
        facts = facts_of(stage, done.said, model)
        found[stage] = {"seconds": round(done.seconds, 1), "peak_rss_bytes": done.peak_bytes, **facts}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=[*PARAMETERS], default=[*PARAMETERS])
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="delete nothing")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "true_size_export.json")
    parser.add_argument("--note", default="", help="what to know about these figures, kept with them")
    args = parser.parse_args()
    figures: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {}
    for family in args.families:
        folder = Path(args.folder or tempfile.mkdtemp(prefix="true-size-")).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = measure(family, args.dtype, folder)
        finally:
            if not args.keep:
                shutil.rmtree(folder, ignore_errors=True)
        figures[f"{family} {args.dtype}"] = {"note": args.note, "machine": machine(), **found}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
