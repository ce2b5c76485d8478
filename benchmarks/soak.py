"""Memory and open files of one process that draws many images.

    python -m benchmarks.soak                                   # 2,000 images with mini's bundle in the library
    python -m benchmarks.soak BUNDLE --images 500 --out result.json

Each image has its own prompt and seed, every second a person of the bundle, every tenth another size, and every image
is saved with its recipe. Resident memory and open files are read after every `--every` images (Linux only). The first
half of the images warms caches up; the slope of memory is that of a straight line through the second half.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

PLACES = ("on the beach", "in space", "in a suit", "playing chess", "smiling", "in the snow", "with a hat")


def main() -> None:
    """Measure, print, and with --out write the result."""
    parser = argparse.ArgumentParser(description="Memory and open files of one process that draws many images.")
    parser.add_argument("bundle", nargs="?", default="mini", help="a bundle, or a model that has one in the library")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--every", type=int, default=100, help="images between two readings")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.bundle, arguments.images, arguments.steps, arguments.every, arguments.threads)
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(bundle: str, images: int, steps: int, every: int, threads: int | None) -> dict[str, Any]:
    """Readings after every `every` images, and the slope of memory in KiB per image over the second half."""
    import numpy as np

    from celebctl import Pipeline

    pipe = Pipeline(bundle, threads=threads)
    began, readings = time.perf_counter(), [_reading(0)]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, images + 1):
            prompt = f"{_subject(pipe, number)} {PLACES[number % len(PLACES)]} {number}"
            width, height = (48, 64) if number % 10 == 0 else (None, None)
            output = pipe(prompt, seed=number, steps=steps, width=width, height=height)
            output.save(Path(folder) / "image.png", overwrite=True)
            if number % every == 0:
                readings.append(_reading(number))
    half = [reading for reading in readings if reading["images"] >= images / 2]
    counts, memory = ([reading[key] for reading in half] for key in ("images", "rss_mib"))
    slope = float(np.polyfit(counts, memory, 1)[0]) * 1024 if len(half) > 1 else 0.0
    return {
        "bundle": pipe.bundle.manifest.model.name,
        "engine": pipe.backend.describe(),
        "images": images,
        "seconds": round(time.perf_counter() - began, 1),
        "slope_kib_per_image": round(slope, 3),
        "open_files_first_last": [readings[1]["open_files"], readings[-1]["open_files"]],
        "readings": readings,
    }


def _subject(pipe: Any, number: int) -> str:
    """A person of the bundle in every second prompt, where it has one."""
    names = pipe.bundle.names
    return names[number % len(names)] if names and number % 2 else "a person"


def _reading(images: int) -> dict[str, Any]:
    """Resident memory, open files and threads as Linux counts them."""
    gc.collect()
    process = Path("/proc/self")
    memory = int((process / "statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 2**20
    open_files, threads = (sum(1 for _ in (process / name).iterdir()) for name in ("fd", "task"))
    return {"images": images, "rss_mib": round(memory, 2), "open_files": open_files, "threads": threads}


if __name__ == "__main__":
    main()
