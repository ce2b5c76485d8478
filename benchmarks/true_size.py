"""Does celebctl hold at the true size of Stable Diffusion 1.5, and what does it cost? Random weights, real commands.

    python benchmarks/true_size.py                     # everything: about 20 minutes and 12 GB of disk on two cores
    python benchmarks/true_size.py --reduced           # 256 px and one step of learning
    python benchmarks/true_size.py --stages export gen --folder DIR --keep      # some stages, over what DIR holds

Stages: `build` writes the model; `learn`, `export` and `gen` are celebctl's own commands, each in a process of its own;
`predict` counts operations. Of every process the peak of its resident memory and its wall time are written down.
Learning is shortened where nothing but time depends on it (see LEARN), and the file says how. Files go to a temporary
folder and are deleted, unless --keep is given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STAGES = ("build", "learn", "export", "gen", "predict")
#: Steps of learning; views of the person per step; views encoded beforehand (celebctl: 48); looks at the person (4).
LEARN = {"steps": 2, "views": 2, "views_encoded": 4, "looks": 1}
REDUCED = {"steps": 1, "views": 1, "views_encoded": 1, "looks": 1}
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Run:
    """How one process ended. peak_bytes: most resident memory. said: the last JSON document on its stdout."""

    seconds: float
    peak_bytes: int
    said: dict[str, Any]


def run(words: list[str], folder: Path) -> Run:
    """Run one process over `folder` as celebctl's library. Raises RuntimeError with its last words when it fails."""
    env = {**os.environ, "CELEBCTL_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        started = time.monotonic()
        process = subprocess.Popen(words, cwd=folder, env=env, stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        texts: list[str] = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}:\n{texts[1][-4000:]}{texts[0][-2000:]}")
    print(texts[1], file=sys.stderr)
    return Run(seconds, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024), document(texts[0]))


def document(text: str) -> dict[str, Any]:
    """The JSON object that a process ended its answer with, {} for one that said nothing."""
    return json.loads(text[text.index("{") :]) if "{" in text else {}


def stage_words(stage: str, folder: Path, dials: dict[str, int], size: int) -> list[str]:
    """The command line of a stage."""
    model = str(folder / "sd15-random")
    celebctl = [sys.executable, "-m", "celebctl", "--json"]
    return {
        "build": [sys.executable, str(HERE / "true_size_model.py"), model, "--native-size", str(size)],
        "learn": [sys.executable, str(HERE / "true_size.py"), "--child-learn", json.dumps(dials), "--model", model],
        "export": [*celebctl, "export", "--model", model],
        "gen": [
            *celebctl, "gen", "alice playing chess", "--steps", "1", "--seed", "1", "--model", model, "-o", "alice.png",
            "--force", "--device", "cpu", "--threads", str(cores()),
        ],
    }[stage]  # fmt: skip


def learn_in_little(dials: dict[str, int], model: str) -> int:
    """`celebctl learn --low-memory` on a portrait of mini's world, with fewer views and looks than it always has."""
    from dataclasses import replace

    from celebctl.cli import main as celebctl
    from celebctl.method import PRESETS, learn
    from celebctl_models.mini.world import draw_portrait
    from celebctl_models.registry import card_for, locate

    learn.VIEWS_KEPT, learn.LOOKS = dials["views_encoded"], dials["looks"]
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
        return {"bytes": size_of(bundle), "dtype": manifest["dtype"], "parity": manifest.get("parity")}
    (picture,) = said["pictures"]
    return {"request": picture["request"], "record": picture["record"]}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Hardware and versions. Nothing that names a person or a place."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "processor": name or platform.processor(), "cores_used": cores(), "memory_bytes": memory,
        "system": platform.system(), "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }  # fmt: skip


def predict() -> dict[str, Any]:
    sys.path.insert(0, str(HERE))
    from true_size_flops import count_operations, predict_times

    counted = count_operations()
    return {"operations_per_sample_512px": counted, "learning_on_gpu": predict_times(counted)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--reduced", action="store_true", help="256 px, one step")
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="delete nothing")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "true_size.json")
    parser.add_argument("--child-learn", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child_learn:
        return learn_in_little(json.loads(args.child_learn), args.model)
    dials, size = (REDUCED, 256) if args.reduced else (LEARN, 512)
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="true-size-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {}
    try:
        for stage in args.stages:
            if stage == "predict":
                figures[stage] = predict()
            else:
                done = run(stage_words(stage, folder, dials, size), folder)
                figures[stage] = {
                    "seconds": round(done.seconds, 1), "peak_rss_bytes": done.peak_bytes,
                    **({"pixels": size} if stage != "build" else {}),
                    **({"shortened": dials} if stage == "learn" else {}),
                    **facts_of(stage, done.said, folder), "machine": machine(),
                }  # fmt: skip
                print(f"{stage}: {done.seconds:.0f} s, peak {done.peak_bytes / 1e9:.2f} GB", flush=True)
            figures["model"] = "Stable Diffusion 1.5, true size, random weights"
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
