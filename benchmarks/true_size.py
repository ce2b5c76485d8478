"""Does celebctl hold at the true size of Stable Diffusion 1.5, and what does it cost? Random weights, real commands.

    python -m benchmarks.true_size                     # everything: about 15 minutes and 7 GB of disk on two cores
    python -m benchmarks.true_size --reduced           # 256 px and one step of learning
    python -m benchmarks.true_size --stages export gen --folder DIR --keep      # some stages, over what DIR holds

Stages: `build` writes the model; `learn`, `export` and `gen` are celebctl's own commands, each in a process of its own;
`predict` counts operations. Of every process the peak of its resident memory and its wall time are written down.
Learning is shortened where nothing but time depends on it (see LEARN), and the file says how. Files go to a temporary
folder and are deleted, unless --keep is given.
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
#: Steps of learning; views of the person per step; views encoded beforehand (celebctl: 48); looks at the person (4).
LEARN = {"steps": 2, "views": 2, "views_encoded": 4, "looks": 1}
REDUCED = {"steps": 1, "views": 1, "views_encoded": 1, "looks": 1}


def stage_words(stage: str, folder: Path, dials: dict[str, int], size: int) -> list[str]:
    """The command line of a stage."""
    model = str(folder / "sd15-random")
    celebctl = [sys.executable, "-m", "celebctl", "--json"]
    return {
        "build": [sys.executable, "-m", "benchmarks.true_size_model", model, "--native-size", str(size)],
        "learn": [sys.executable, "-m", "benchmarks.true_size", "--child-learn", json.dumps(dials), "--model", model],
        "export": [*celebctl, "export", "--model", model],
        "gen": [
            *celebctl, "gen", "alice playing chess", "--steps", "1", "--seed", "1", "--model", model, "-o", "drawn.png",
            "--force", "--device", "cpu", "--threads", str(cores()),
        ],
    }[stage]  # fmt: skip


def learn_in_little(dials: dict[str, int], model: str) -> int:
    """`celebctl learn --low-memory` on a portrait of mini's world, with fewer views and looks than it always has."""
    from dataclasses import replace

    from celebctl.cli import main as celebctl
    from celebctl.learning import trainer
    from celebctl.learning.config import PRESETS
    from celebctl_models.checkpoints.registry import card_for, locate
    from celebctl_models.mini.world import draw_portrait

    trainer.CACHED_VIEWS, trainer.NUM_EVALS = dials["views_encoded"], dials["looks"]
    PRESETS["clean"] = replace(PRESETS["clean"], views=dials["views"])
    draw_portrait(3, 768).save("alice.png")
    faces = card_for(locate("mini").path).faces_dir
    words = ["learn", "alice.png", "--name", "alice", "--model", model, "--face-models", str(faces), "--low-memory"]
    return celebctl(["--json", *words, "--no-sheet", "--force", "--device", "cpu", "--steps", str(dials["steps"])])


def facts_of(stage: str, said: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a stage made, as far as it says something."""
    if stage == "build":
        return {"bytes": size_of(folder / "sd15-random")}
    if stage == "learn":
        (person,) = said["people"]
        return {"coefficients": int(person["provenance"]["coefficients"]), "start": person["provenance"]["start"]}
    if stage == "export":
        bundle = Path(said["path"])
        manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
        return {"bytes": size_of(bundle), "dtype": manifest["dtype"], "worst_parity": worst(manifest["parity"])}
    (picture,) = said["pictures"]
    return {key: picture["request"][key] for key in ("prompt", "steps", "width", "height", "guidance")}


def worst(parity: list[dict[str, Any]]) -> dict[str, float]:
    """For each graph the largest error against torch, in units of the largest value (at least 1)."""
    errors: dict[str, float] = {}
    for one in parity:
        error = one["max_abs_error"] / max(1.0, one["largest_value"])
        errors[one["graph"]] = max(errors.get(one["graph"], 0.0), error)
    return errors


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def predict() -> dict[str, Any]:
    from benchmarks.true_size_flops import count_operations, predict_memory, predict_times

    counted = count_operations()
    return {
        "operations_per_sample_512px": counted,
        "learning_on_gpu": predict_times(counted),
        "memory_of_learning": predict_memory(),
    }


def measure(stage: str, folder: Path, dials: dict[str, int], size: int) -> dict[str, Any]:
    """Run one stage; what it took and made."""
    done = run(stage_words(stage, folder, dials, size), folder)
    print(f"{stage}: {done.seconds:.0f} s, peak {done.peak_bytes / 1e9:.2f} GB", flush=True)
    return {
        "seconds": round(done.seconds, 1), "peak_rss_bytes": done.peak_bytes,
        **({"pixels": size} if stage != "build" else {}), **({"shortened_to": dials} if stage == "learn" else {}),
        **facts_of(stage, done.said, folder),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--reduced", action="store_true", help="256 px, one step")
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="delete nothing")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "true_size.json")
    parser.add_argument("--note", default="", help="what to know about these figures, kept with them")
    parser.add_argument("--child-learn", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child_learn:
        return learn_in_little(json.loads(args.child_learn), args.model)
    dials, size = (REDUCED, 256) if args.reduced else (LEARN, 512)
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="true-size-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {}
    figures |= {"model": "Stable Diffusion 1.5, true size, random weights", "note": args.note, "machine": machine()}
    try:
        for stage in args.stages:
            figures[stage] = predict() if stage == "predict" else measure(stage, folder, dials, size)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
