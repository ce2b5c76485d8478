"""What a person costs when several are learned together: seconds for 1, 2, 4, 8 and 16 people in one call.

    python -m benchmarks.joint_cost                                  # the curve, ten to fifteen minutes
    python -m benchmarks.joint_cost --people 1 2 --steps 5 --repeat 1 --out /tmp/a.json --chart /tmp/a.png
    python -m benchmarks.joint_cost --ways inside                    # the other way's figures stay in the file

Measured in two ways: `learn_people` within a process that has the model open, and `celebctl learn` as a process from
start to finish. Of several repeats the fastest counts, for whatever else a machine does only ever adds to the time.
Everybody is learned from a portrait of mini's world; the time does not depend on who they are. What counts is the shape
of the curve: the file says how many cores there were.
"""

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
FIRST = 3000  # seed of the first portrait
PIXELS = 512


def in_process(counts: Sequence[int], steps: int, repeat: int) -> dict[int, float]:
    """Seconds of `learn_people` by number of people."""
    from celebctl.learning.config import CLEAN
    from celebctl.learning.prepared import prepare
    from celebctl.learning.subject import analyse_photo
    from celebctl.learning.trainer import learn_people
    from celebctl_models.checkpoints.diffusion import load_parts
    from celebctl_models.faces.analysis import InsightFaceAnalyser
    from celebctl_models.mini.world import draw_portrait

    parts = load_parts("mini")
    folder = parts.card.faces_dir
    assert folder is not None
    analyser, model = InsightFaceAnalyser(folder), prepare(parts)
    portraits = [draw_portrait(FIRST + i, PIXELS) for i in range(max(counts))]
    subjects = [analyse_photo(analyser, portrait, f"p{i}") for i, portrait in enumerate(portraits)]

    def learn(count: int, config: Any) -> float:
        begun = time.monotonic()
        learn_people(model, subjects[:count], config, analyser)
        return time.monotonic() - begun

    config = replace(CLEAN, steps=steps)
    learn(1, replace(CLEAN, steps=1))  # whatever is only done once
    found: dict[int, float] = {}
    for count in counts:
        found[count] = min(learn(count, config) for _ in range(repeat))
        print(f"model open, {count} people: {found[count]:.1f} s", file=sys.stderr, flush=True)
    return found


def as_process(counts: Sequence[int], steps: int, repeat: int) -> dict[int, tuple[float, int]]:
    """Seconds and peak bytes of `celebctl learn`, contact sheet left out, by number of people."""
    found: dict[int, tuple[float, int]] = {}
    with tempfile.TemporaryDirectory(prefix="joint-cost-") as place:
        folder = Path(place)
        celebctl = [sys.executable, "-m", "celebctl", "--json"]
        photos = [f"p{i}.png" for i in range(max(counts))]
        for number, photo in enumerate(photos):
            run([*celebctl, "portrait", photo, "--seed", str(FIRST + number), "--size", str(PIXELS)], folder)
        run([*celebctl, "basis", "build", "--model", "mini"], folder)  # a cache that every later call finds
        for count in counts:
            names = [word for i in range(count) for word in ("--name", f"p{i}")]
            words = [*celebctl, "learn", *photos[:count], *names, "--model", "mini", "--no-sheet", "--force"]
            done = [run([*words, "--steps", str(steps)], folder) for _ in range(repeat)]
            found[count] = min(one.seconds for one in done), max(one.peak_bytes for one in done)
            print(f"celebctl learn, {count} people: {found[count][0]:.1f} s", file=sys.stderr, flush=True)
    return found


def draw_chart(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds per person over the number of people, one line for each way that was measured for all of them."""
    from matplotlib.figure import Figure

    from celebctl.plotting import chart_style, to_image

    lines = {"celebctl learn": "process_seconds_per_person", "learn_people, model open": "seconds_per_person"}
    with chart_style():
        figure = Figure((9, 5), layout="constrained")
        axes = figure.add_subplot()
        on = "one core" if cores() == 1 else f"{cores()} cores"
        axes.set_title(f"Learning people together: mini, {rows[0]['steps']} steps, {on}")
        axes.set_xticks(range(len(rows)), [str(row["people"]) for row in rows])
        axes.set_xlabel("people in one call")
        axes.set_ylabel("seconds per person")
        for (name, key), side in zip(lines.items(), (8, -16), strict=True):
            if all(key in row for row in rows):
                (line,) = axes.plot([row[key] for row in rows], marker="o", label=name)
                for number, row in enumerate(rows):
                    text = {"textcoords": "offset points", "ha": "center", "color": line.get_color()}
                    axes.annotate(f"{row[key]:.1f}", (number, row[key]), (0, side), **text)
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.legend()
        to_image(figure).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--steps", type=int, help="of learning (default: what learn takes)")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=("process", "inside"), default=["process", "inside"])
    parser.add_argument("--note", default="", help="what to know about these figures, kept with them")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "joint_cost.json")
    parser.add_argument("--chart", type=Path, default=HERE / "results" / "joint_cost.png")
    args = parser.parse_args()
    from celebctl.learning.config import CLEAN

    steps = args.steps or CLEAN.steps
    config = asdict(replace(CLEAN, steps=steps))
    figures: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {}
    known = {row["people"]: row for row in figures.get("curve", [])} if figures.get("config") == config else {}
    curve = {count: {**known.get(count, {}), "people": count, "steps": steps} for count in args.people}
    if "process" in args.ways:
        for count, (seconds, peak) in as_process(args.people, steps, args.repeat).items():
            curve[count] |= {**_told("process_", seconds, count), "process_peak_rss_bytes": peak}
    if "inside" in args.ways:
        for count, seconds in in_process(args.people, steps, args.repeat).items():
            curve[count] |= _told("", seconds, count)
    rows = list(curve.values())
    for row in rows:
        print({key: value for key, value in row.items() if key != "steps"}, flush=True)
    figures = {"model": "mini", "note": args.note, "config": config, "repeat": args.repeat, "curve": rows}
    args.out.write_text(json.dumps({**figures, "machine": machine()}, indent=1) + "\n", encoding="utf-8")
    draw_chart(rows, args.chart)


def _told(way: str, seconds: float, count: int) -> dict[str, float]:
    return {f"{way}seconds": round(seconds, 2), f"{way}seconds_per_person": round(seconds / count, 2)}


if __name__ == "__main__":
    main()
