"""Cost of learning, export and generation at the true size of Stable Diffusion 1.5: random weights, real commands.

    python -m benchmarks.true_size                     # everything: about 15 minutes and 7 GB of disk on two cores
    python -m benchmarks.true_size --reduced           # 256 px and one step of learning
    python -m benchmarks.true_size --stages export gen --folder DIR --keep      # some stages, with the files of DIR

Stages: `build` writes the model; `learn`, `export` and `gen` are celebctl's commands, each as a process; `predict`
counts operations. Peak resident memory and wall time of each process are recorded. Learning is shortened in ways that
change only the time (see LEARN), and the result says how. Files are in a temporary folder, which is deleted unless
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

HERE = Path(__file__).resolve().parent
STAGES = ("build", "learn", "export", "gen", "predict")
#: Steps of learning; views per step; views encoded beforehand (48 by default); evaluations of the likeness (4).
LEARN = {"steps": 2, "views": 2, "views_encoded": 4, "evaluations": 1}
REDUCED = {"steps": 1, "views": 1, "views_encoded": 1, "evaluations": 1}


def stage_command(stage: str, folder: Path, settings: dict[str, int], size: int) -> list[str]:
    """The command line of a stage."""
    model = str(folder / "sd15-random")
    celebctl = [sys.executable, "-m", "celebctl", "--json"]
    return {
        "build": [sys.executable, "-m", "benchmarks.true_size_model", model, "--native-size", str(size)],
        "learn": [sys.executable, "-m", "benchmarks.true_size", "--child-learn", json.dumps(settings),
                  "--model", model],
        "export": [*celebctl, "export", "--model", model],
        "gen": [
            *celebctl, "gen", "alice playing chess", "--steps", "1", "--seed", "1", "--model", model, "-o", "image.png",
            "--force", "--device", "cpu", "--threads", str(cores()),
        ],
    }[stage]  # fmt: skip


def learn_shortened(settings: dict[str, int], model: str) -> int:
    """`celebctl learn --low-memory` on a portrait of mini's world, with fewer views and evaluations."""
    from dataclasses import replace

    from celebctl.cli import main as celebctl
    from celebctl.learning import trainer
    from celebctl.learning.config import PRESETS
    from celebctl_models.checkpoints.registry import card_for, locate
    from celebctl_models.mini.world import draw_portrait

    trainer.CACHED_VIEWS, trainer.NUM_EVALS = settings["views_encoded"], settings["evaluations"]
    PRESETS["clean"] = replace(PRESETS["clean"], views=settings["views"])
    draw_portrait(3, 768).save("alice.png")
    faces = card_for(locate("mini").path).faces_dir
    arguments = ["learn", "alice.png", "--name", "alice", "--model", model, "--face-models", str(faces), "--low-memory"]
    return celebctl(
        ["--json", *arguments, "--no-sheet", "--force", "--device", "cpu", "--steps", str(settings["steps"])]
    )


def stage_results(stage: str, output: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Sizes and settings of what a stage made. output: of its command."""
    if stage == "build":
        return {"bytes": size_of(folder / "sd15-random")}
    if stage == "learn":
        (person,) = output["people"]
        return {"coefficients": int(person["provenance"]["coefficients"]), "start": person["provenance"]["start"]}
    if stage == "export":
        bundle = Path(output["path"])
        manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
        return {
            "bytes": size_of(bundle),
            "dtype": manifest["dtype"],
            "worst_parity": largest_errors(manifest["parity"]),
        }
    (image,) = output["pictures"]
    return {key: image["request"][key] for key in ("prompt", "steps", "width", "height", "guidance")}


def largest_errors(parity: list[dict[str, Any]]) -> dict[str, float]:
    """The largest error of each graph against torch, relative to its largest value or to 1 if that is smaller."""
    errors: dict[str, float] = {}
    for one in parity:
        error = one["max_abs_error"] / max(1.0, one["largest_value"])
        errors[one["graph"]] = max(errors.get(one["graph"], 0.0), error)
    return errors


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def predict() -> dict[str, Any]:
    from benchmarks.true_size_flops import count_operations, predict_memory, predict_times

    operations = count_operations()
    return {
        "operations_per_sample_512px": operations,
        "learning_on_gpu": predict_times(operations),
        "memory_of_learning": predict_memory(),
    }


def measure(stage: str, folder: Path, settings: dict[str, int], size: int) -> dict[str, Any]:
    """Run one stage: its costs and results."""
    done = run(stage_command(stage, folder, settings, size), folder)
    print(f"{stage}: {done.seconds:.0f} s, peak {done.peak_bytes / 1e9:.2f} GB", flush=True)
    return {
        "seconds": round(done.seconds, 1), "peak_rss_bytes": done.peak_bytes,
        **({"pixels": size} if stage != "build" else {}), **({"shortened_to": settings} if stage == "learn" else {}),
        **stage_results(stage, done.output, folder),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--reduced", action="store_true", help="256 px, one step")
    parser.add_argument("--folder", type=Path, help="folder of the files (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="delete nothing")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "true_size.json")
    parser.add_argument("--note", default="", help="remark stored with the results")
    parser.add_argument("--child-learn", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child_learn:
        return learn_shortened(json.loads(args.child_learn), args.model)
    settings, size = (REDUCED, 256) if args.reduced else (LEARN, 512)
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="true-size-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {}
    results |= {"model": "Stable Diffusion 1.5, true size, random weights", "note": args.note, "machine": machine()}
    try:
        for stage in args.stages:
            results[stage] = predict() if stage == "predict" else measure(stage, folder, settings, size)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
