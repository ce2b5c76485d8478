"""One Stable Diffusion on a CPU by six programs, in turns: time and memory, relative to diffusers.

    python -m benchmarks.cpu_peers --work DIR                                # about six hours on two cores
    python -m benchmarks.cpu_peers --work DIR --size 64 --steps 2 --rounds 2 # tries everything
    python -m benchmarks.cpu_peers --work DIR --table                        # writes the table of the manual

The model has the true size of Stable Diffusion 1.5 and random weights, in float32 everywhere. Every program has a
virtual environment of its own, made here; where one needs torch, it is that of the environment that runs this script.
In every round each program draws one image in a fresh process, because together they would not fit into memory; the
first one changes from round to round. The result is written after every image, and a run continues where an earlier one
stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import machine
from celebctl.evaluation.intervals import estimate
from celebctl_runtime.files import atomic_write

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BASELINE = "diffusers"
#: Packages of each program. "torch" stands for the packages of the environment that runs this script.
REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "diffusers": ("torch", "diffusers", "transformers"),
    "diffusers compiled": ("torch", "diffusers", "transformers"),
    "celebctl, ONNX Runtime": (f"{ROOT}[cpu]",),
    "celebctl, OpenVINO": (f"{ROOT}[openvino]",),
    "stable-diffusion.cpp": ("stable-diffusion-cpp-python",),
    "OpenVINO GenAI": ("openvino-genai",),
}
# Writes what OpenVINO GenAI reads. It needs an older huggingface_hub than the newest diffusers does.
_CONVERTER = ("torch", "optimum-intel[openvino]", "diffusers<0.39")
_PROMPT = "a photo of a person playing chess"
Run = dict[str, Any]  # one image: seconds, load_seconds, peak_bytes, version; or error


def make_environment(folder: Path, requirements: Sequence[str]) -> Path:
    """The Python of a virtual environment with these packages, made if missing."""
    python = folder / "bin" / "python"
    if (folder / "complete").is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if "torch" in requirements:
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = [package for package in requirements if package != "torch"]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *install], check=True)
    (folder / "complete").touch()
    return python


def prepare(work: Path, peers: Sequence[str]) -> dict[str, str]:
    """Write the model and its forms for celebctl and OpenVINO GenAI, where missing; returns their folders."""
    places = {name: str(work / name) for name in ("model", "bundle", "ir", "cache")}
    steps: list[tuple[str, list[str]]] = [
        ("model", [sys.executable, "-m", "benchmarks.true_size_model", places["model"]])
    ]
    if any(name.startswith("celebctl") for name in peers):
        steps.append(
            (
                "bundle",
                [sys.executable, "-m", "celebctl", "export", "--model", places["model"], "--out", places["bundle"]],
            )
        )
    if "OpenVINO GenAI" in peers and not (work / "ir.complete").is_file():
        python = make_environment(work / "environments" / "converter", _CONVERTER)
        words = ["export", "openvino", "--model", places["model"], "--task", "text-to-image", "--weight-format", "fp32"]
        steps.append(("ir", [str(python.with_name("optimum-cli")), *words, places["ir"]]))
    for name, command in steps:
        if not (work / f"{name}.complete").is_file():
            subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
            (work / f"{name}.complete").touch()
    return places


def run_peer(python: Path, name: str, settings: Mapping[str, Any], timeout: float) -> Run:
    """One image in a process of its own; what went wrong as ``error``."""
    command = [str(python), str(HERE / "cpu_peers_worker.py"), name, json.dumps(dict(settings))]
    threads = str(settings["threads"])
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=clean)
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {timeout:.0f} s"}
    if done.returncode or not done.stdout.strip():
        cause = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"error": cause[:300]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    path: Path, peers: Sequence[str], rounds: int, settings: Mapping[str, Any], run: Callable[[str], Run]
) -> dict[str, Any]:
    """Run the missing images, in turns, and write the document after each.

    Args:
        path: The JSON document; one with other settings is not continued.
        run: One image of a peer.

    Raises:
        ValueError: The document has other settings.
    """
    document: dict[str, Any] = {"machine": machine(), "settings": dict(settings), "rounds": []}
    if path.is_file():
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["settings"] != dict(settings):
            raise ValueError(f"{path} has the settings {document['settings']}: choose another file")
    for number in range(rounds):
        if len(document["rounds"]) <= number:
            document["rounds"].append({})
        start = number % len(peers)
        for name in (*peers[start:], *peers[:start]):
            if "seconds" in document["rounds"][number].get(name, {}):
                continue
            document["rounds"][number][name] = found = run(name)
            said = found.get("error") or f"{found['seconds']:.1f} s, {found['peak_bytes'] / 1e9:.2f} GB"
            print(f"round {number + 1}, {name}: {said}", flush=True)
            atomic_write(path, (json.dumps(document, indent=1) + "\n").encode())
    return document


def ratio(document: Mapping[str, Any], name: str, key: str) -> tuple[float, float, float] | None:
    """Geometric mean of diffusers' value over the peer's, in the same round, with its 95 % interval; None without
    pairs. With one pair the interval is that value."""
    pairs = [(one.get(BASELINE, {}), one.get(name, {})) for one in document["rounds"]]
    logs = [math.log(ours[key] / theirs[key]) for ours, theirs in pairs if key in ours and key in theirs]
    found = estimate(logs)
    if found is None:
        return None
    return tuple(math.exp(found.mean + sign * found.half_width) for sign in (0, -1, 1))  # type: ignore[return-value]


def table(document: Mapping[str, Any]) -> str:
    """The result as Markdown: medians, and ratios with intervals; a peer that failed has its reason instead."""
    settings = document["settings"]
    lines = [
        f"{settings['size']} x {settings['size']} pixels, {settings['steps']} steps, {settings['threads']} threads,"
        f" {len(document['rounds'])} rounds:",
        "",
        "| Program | Seconds per image | Times faster | Peak memory | Times less memory |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(name for one in document["rounds"] for name in one):
        runs = [one[name] for one in document["rounds"] if name in one]
        known = [run for run in runs if "seconds" in run]
        if not known:
            lines.append(f"| {name} | did not run: {runs[-1]['error'].replace('|', ' ')} | | | |")
            continue
        seconds, peak = (statistics.median(run[key] for run in known) for key in ("seconds", "peak_bytes"))
        faster, smaller = (_interval(ratio(document, name, key)) for key in ("seconds", "peak_bytes"))
        version = f"{name} ({known[-1]['version']})"
        lines.append(f"| {version} | {seconds:.1f} | {faster} | {peak / 1e9:.2f} GB | {smaller} |")
    return "\n".join(lines)


def _interval(found: tuple[float, float, float] | None) -> str:
    return "" if found is None else f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def main() -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="models and environments, about 25 GB")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu_peers.json")
    parser.add_argument("--peers", nargs="+", choices=REQUIREMENTS, default=list(REQUIREMENTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for one image")
    parser.add_argument("--model", type=Path, help="another diffusers folder than the random one of true size")
    parser.add_argument("--table", action="store_true", help="only print the table of the result")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text(encoding="utf-8"))))
        return
    work: Path = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if args.model and not (work / "model").exists():
        (work / "model").symlink_to(args.model.resolve())
        (work / "model.complete").touch()
    places = prepare(work, args.peers)
    settings = {"size": args.size, "steps": args.steps, "threads": args.threads, "guidance": 7.5, "prompt": _PROMPT}

    def run(name: str) -> Run:
        environment = work / "environments" / name.replace(" ", "-").replace(",", "").replace(".", "-")
        try:
            python = make_environment(environment, REQUIREMENTS[name])
        except subprocess.CalledProcessError as error:
            return {"error": f"no environment: {error}"[:300]}
        return run_peer(python, name, {**settings, **places}, args.timeout)

    print(table(measure(args.out, args.peers, args.rounds, settings, run)))


if __name__ == "__main__":
    main()
