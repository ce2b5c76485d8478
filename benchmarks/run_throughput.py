"""Throughput of `Pipeline.run`, which writes PNG files and a journal, beside drawing the same requests alone.

    python -m benchmarks.run_throughput                              # mini's bundle in the library; 200 images each
    python -m benchmarks.run_throughput BUNDLE --images 40 --out result.json

One process draws the same requests twice: with one call of `Pipeline.generate`, which saves nothing, and with
`Pipeline.run` into an empty folder. Both run in turns of some images, so that other load on the machine meets both. The
start of the process and the first image of each are not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROMPTS = (
    "a person smiling",
    "a person on the beach",
    "a person playing chess",
    "a person in a suit",
    "a person in space",
)


def main() -> None:
    """Measure, print, and with --out write the result."""
    parser = argparse.ArgumentParser(description="Throughput of Pipeline.run.")
    parser.add_argument("bundle", nargs="?", default="mini", help="a bundle, or a model that has one in the library")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--turn", type=int, default=50, help="images of each way in one turn")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.bundle, arguments.images, arguments.turn, arguments.threads)
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(bundle: str, images: int, turn: int, threads: int | None) -> dict[str, Any]:
    """Seconds of both ways, and the ratio of their throughputs, of `images` images in turns of `turn`."""
    from celebctl import Pipeline
    from celebctl_runtime.request import Request

    pipe = Pipeline(bundle, threads=threads)
    requests = [Request(PROMPTS[k % len(PROMPTS)], seed=k) for k in range(images)]
    pipe.generate(requests[:1])
    seconds, cpu_seconds = {"generate": 0.0, "run": 0.0}, {"generate": 0.0, "run": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, images, turn):
            part = requests[start : start + turn]
            with _timed("generate", seconds, cpu_seconds):
                pipe.generate(part)
            jobs = [{"prompt": request.prompt, "seed": request.seed} for request in part]
            with _timed("run", seconds, cpu_seconds):
                report = pipe.run(jobs, Path(folder) / str(start))
            assert report.is_complete and len(report.drawn) == len(part)
    return {
        "bundle": pipe.bundle.manifest.model.name,
        "engine": pipe.backend.describe(),
        "images": images,
        "seconds": {way: round(value, 2) for way, value in seconds.items()},
        "cpu_seconds": {way: round(value, 2) for way, value in cpu_seconds.items()},
        "throughput_ratio": round(seconds["generate"] / seconds["run"], 3),
    }


@contextmanager
def _timed(way: str, seconds: dict[str, float], cpu_seconds: dict[str, float]) -> Generator[None]:
    """Add the time of a block to those of a way of drawing."""
    began, cpu_began = time.perf_counter(), time.process_time()
    yield
    seconds[way] += time.perf_counter() - began
    cpu_seconds[way] += time.process_time() - cpu_began


if __name__ == "__main__":
    main()
