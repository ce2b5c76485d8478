"""Learning time when several people are learned in one call: seconds for 1, 2, 4, 8 and 16 people.

    python -m benchmarks.joint_cost                                  # the curve, ten to fifteen minutes
    python -m benchmarks.joint_cost --people 1 2 --steps 5 --repeat 1 --out /tmp/a.json --chart /tmp/a.png
    python -m benchmarks.joint_cost --modes in-process               # results of the other mode stay in the file

Two modes are measured: `learn_people` in a process with the model loaded, and `celebctl learn` as a process from start
to end. The fastest of ``--repeat`` runs counts, because other load only adds time. The photos are portraits of mini's
world; the time does not depend on the people. The result records the number of cores.
"""

# matplotlib leaves the types of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.processes import cores, machine, run

HERE = Path(__file__).resolve().parent
FIRST_SEED = 3000  # seed of the first portrait
PIXELS = 512


def in_process(counts: Sequence[int], steps: int, repeat: int) -> dict[int, float]:
    """Seconds of `learn_people` by number of people."""
    from celebctl.learning.config import CLEAN, LearnConfig
    from celebctl.learning.prepared import prepare
    from celebctl.learning.subject import analyse_photo
    from celebctl.learning.trainer import learn_people
    from celebctl_models.checkpoints.diffusion import load_parts
    from celebctl_models.faces.analysis import OnnxFaceAnalyser
    from celebctl_models.mini.world import draw_portrait

    parts = load_parts("mini")
    folder = parts.card.faces_dir
    assert folder is not None
    analyser, model = OnnxFaceAnalyser(folder), prepare(parts)
    portraits = [draw_portrait(FIRST_SEED + i, PIXELS) for i in range(max(counts))]
    subjects = [analyse_photo(analyser, portrait, f"p{i}") for i, portrait in enumerate(portraits)]

    def learn(count: int, config: LearnConfig) -> float:
        begun = time.monotonic()
        learn_people(model, subjects[:count], config, analyser)
        return time.monotonic() - begun

    config = replace(CLEAN, steps=steps)
    learn(1, replace(CLEAN, steps=1))  # warm-up: one-time initialization
    seconds_by_count: dict[int, float] = {}
    for count in counts:
        seconds_by_count[count] = min(learn(count, config) for _ in range(repeat))
        print(f"model loaded, {count} people: {seconds_by_count[count]:.1f} s", file=sys.stderr, flush=True)
    return seconds_by_count


def as_command(counts: Sequence[int], steps: int, repeat: int) -> dict[int, tuple[float, int]]:
    """Seconds and peak bytes of `celebctl learn` without contact sheet by number of people."""
    costs: dict[int, tuple[float, int]] = {}
    with tempfile.TemporaryDirectory(prefix="joint-cost-") as name:
        folder = Path(name)
        celebctl = [sys.executable, "-m", "celebctl", "--json"]
        photos = [f"p{i}.png" for i in range(max(counts))]
        for number, photo in enumerate(photos):
            run([*celebctl, "sample-photo", photo, "--seed", str(FIRST_SEED + number), "--size", str(PIXELS)], folder)
        run([*celebctl, "basis", "build", "--model", "mini"], folder)  # cached for all later calls
        for count in counts:
            names = [argument for i in range(count) for argument in ("--name", f"p{i}")]
            command = [*celebctl, "learn", *photos[:count], *names, "--model", "mini", "--no-sheet", "--force"]
            runs = [run([*command, "--steps", str(steps)], folder) for _ in range(repeat)]
            costs[count] = min(one.seconds for one in runs), max(one.peak_bytes for one in runs)
            print(f"celebctl learn, {count} people: {costs[count][0]:.1f} s", file=sys.stderr, flush=True)
    return costs


def draw_chart(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds per person over the number of people, a line for each mode that was measured for all counts."""
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    from celebctl.plotting import chart_style, to_image

    lines = {"celebctl learn": "process_seconds_per_person", "learn_people, model loaded": "seconds_per_person"}
    with chart_style():
        figure = Figure((9, 5), layout="constrained")
        axes = figure.add_subplot()
        hardware = "one core" if cores() == 1 else f"{cores()} cores"
        axes.set_title(f"Learning people together: mini, {rows[0]['steps']} steps, {hardware}")
        axes.set_xticks(range(len(rows)), [str(row["people"]) for row in rows])
        axes.set_xlabel("people in one call")
        axes.set_ylabel("seconds per person")
        for (name, key), offset in zip(lines.items(), (8, -16), strict=True):
            if all(key in row for row in rows):
                (line,) = axes.plot([row[key] for row in rows], marker="o", label=name)
                color = to_hex(line.get_color())
                for number, row in enumerate(rows):
                    text, position = f"{row[key]:.1f}", (number, row[key])
                    axes.annotate(text, position, (0, offset), textcoords="offset points", ha="center", color=color)
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.legend()
        to_image(figure).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--steps", type=int, help="learning steps (default: those of the preset)")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--modes", nargs="+", choices=("command", "in-process"), default=["command", "in-process"])
    parser.add_argument("--note", default="", help="remark stored with the results")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "joint_cost.json")
    parser.add_argument("--chart", type=Path, default=HERE / "results" / "joint_cost.png")
    args = parser.parse_args()
    from celebctl.learning.config import CLEAN

    steps = args.steps or CLEAN.steps
    config = asdict(replace(CLEAN, steps=steps))
    results: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {}
    measured = {row["people"]: row for row in results.get("curve", [])} if results.get("config") == config else {}
    curve = {count: {**measured.get(count, {}), "people": count, "steps": steps} for count in args.people}
    if "command" in args.modes:
        for count, (seconds, peak) in as_command(args.people, steps, args.repeat).items():
            curve[count] |= {**_seconds("process_", seconds, count), "process_peak_rss_bytes": peak}
    if "in-process" in args.modes:
        for count, seconds in in_process(args.people, steps, args.repeat).items():
            curve[count] |= _seconds("", seconds, count)
    rows = list(curve.values())
    for row in rows:
        print({key: value for key, value in row.items() if key != "steps"}, flush=True)
    results = {"model": "mini", "note": args.note, "config": config, "repeat": args.repeat, "curve": rows}
    args.out.write_text(json.dumps({**results, "machine": machine()}, indent=1) + "\n", encoding="utf-8")
    draw_chart(rows, args.chart)


def _seconds(prefix: str, seconds: float, count: int) -> dict[str, float]:
    return {f"{prefix}seconds": round(seconds, 2), f"{prefix}seconds_per_person": round(seconds / count, 2)}


if __name__ == "__main__":
    main()
