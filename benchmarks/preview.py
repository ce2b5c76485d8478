"""Cost and quality of previews: drawing with and without them in turns, and the variance that the linear map explains.

    python -m benchmarks.preview --bundle DIR      # a bundle of mini; about two minutes on one core

Each pair draws the same image twice in one process, with and without previews, in random order. Previews go to a PNG
file as `gen --preview FILE.png` writes it, and as kitty's escape sequences to a file that is thrown away. The ratio of
the two times is reported with a 95 % interval over pairs (of the logarithms), of the wall clock and of CPU time, which
other programs of the machine hardly disturb. R² compares the map with the decoder on the latents of drawn images: the
mean colours of the pixels of a latent element.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from celebctl import Pipeline
from celebctl.cli.console import CliConsole
from celebctl.cli.preview import FilePreview
from celebctl.evaluation.intervals import estimate
from celebctl.terminal_images import kitty
from celebctl_runtime.files import atomic_write
from celebctl_runtime.preview import Preview, latent_to_rgb, previews
from celebctl_runtime.progress import ProgressCallback, ignore_progress
from celebctl_runtime.request import Request

RESULT = Path(__file__).parent / "results" / "preview.json"
PROMPTS = ("a person on the beach", "a man in the snow", "a woman smiling", "a person in space", "a man drinking tea")


def seconds(pipe: Pipeline, request: Request, drawing: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of drawing one image. ``drawing``: opens what yields the progress callback."""
    wall, cpu = time.perf_counter(), time.process_time()
    with drawing() as progress:
        pipe.generate([request], progress=progress)
    return time.perf_counter() - wall, time.process_time() - cpu


def ratios(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Mean ratio of (with, without) and its 95 % interval."""
    mean = estimate([math.log(one / other) for one, other in pairs])
    assert mean is not None
    low, middle, high = (math.exp(mean.mean + side * mean.half_width) for side in (-1, 0, 1))
    return {"ratio": round(middle, 4), "low": round(low, 4), "high": round(high, 4), "pairs": len(pairs)}


class Nothing:
    """Drawing without previews."""

    def __enter__(self) -> ProgressCallback:
        return ignore_progress

    def __exit__(self, *_: object) -> None:
        pass


class Sequences(Nothing):
    """Drawing with kitty's sequences, written to a file."""

    def __init__(self, path: Path, counter: list[int]) -> None:
        self._path, self._counter = path, counter

    def __enter__(self) -> ProgressCallback:
        self._file = self._path.open("w")
        return previews(self._show)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _show(self, preview: Preview) -> None:
        self._counter.append(preview.step)
        self._file.write(kitty(preview.image(), 24, 12, 1))


def measure_cost(pipe: Pipeline, pairs: int, steps: int, drawing: Callable[[], Any]) -> dict[str, Any]:
    """Ratios of wall and CPU time."""
    walls: list[tuple[float, float]] = []
    cpus: list[tuple[float, float]] = []
    order = np.random.default_rng(0).permutation([True, False] * (pairs // 2 + 1))[:pairs]
    for number, first in enumerate(order):
        request = Request(PROMPTS[number % len(PROMPTS)], seed=number, steps=steps)
        both = [seconds(pipe, request, one) for one in ((drawing, Nothing) if first else (Nothing, drawing))]
        shown, plain = both if first else both[::-1]
        walls.append((shown[0], plain[0]))
        cpus.append((shown[1], plain[1]))
    drawn = float(np.median([plain for _, plain in walls]))
    return {"seconds per image": round(drawn, 3), "wall": ratios(walls), "cpu": ratios(cpus)}


def explained(pipe: Pipeline) -> dict[str, float]:
    """R² of the map, and of the best linear map, on the latents of drawn images."""
    backend, captured = pipe.backend, list[tuple[Any, Any]]()
    decode = backend.decode

    def capture(latent: Any) -> Any:
        captured.append((latent, decode(latent)))
        return captured[-1][1]

    setattr(backend, "decode", capture)  # noqa: B010  an instance of a protocol
    pipe.generate([Request(prompt, seed=seed) for seed, prompt in enumerate(PROMPTS * 2)])
    setattr(backend, "decode", decode)  # noqa: B010
    matrix, factor = pipe.bundle.manifest.latent_rgb, pipe.bundle.manifest.size.vae_factor
    latents = np.concatenate([latent for latent, _ in captured])
    pixels = np.concatenate([image for _, image in captured]) * 127.5 + 127.5
    cells = pixels.reshape(len(pixels), 3, latents.shape[2], factor, latents.shape[3], factor).mean((3, 5))
    true = np.moveaxis(cells, 1, -1).reshape(-1, 3)
    flat = np.moveaxis(latents, 1, -1).reshape(-1, latents.shape[1])
    inputs = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
    solution = cast(Any, np.linalg.lstsq(inputs, true, rcond=None))[0]
    best = np.clip(np.matmul(inputs, solution), 0, 255)
    ours = latent_to_rgb(latents, matrix).reshape(-1, 3).astype(float)
    total = ((true - true.mean(0)) ** 2).sum()
    return {
        name: round(float(1 - ((true - colours) ** 2).sum() / total), 4)
        for name, colours in (("R2", ours), ("R2 of the best linear map", best))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=0, help="0: the model's default")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    pipe = Pipeline(args.bundle, device="cpu", threads=1)
    pipe.generate([Request(PROMPTS[0], seed=0)])  # opens the sessions
    with tempfile.TemporaryDirectory() as folder:
        counter = list[int]()
        file = FilePreview(CliConsole(quiet=True), Path(folder) / "preview.png")
        ways: dict[str, Callable[[], Any]] = {
            "file": lambda: file.track("drawing"),
            "kitty": lambda: Sequences(Path(folder) / "sequences", counter),
        }
        costs = {name: measure_cost(pipe, args.pairs, args.steps, way) for name, way in ways.items()}
    model = pipe.bundle.manifest.model.name
    document = {"model": model, "cost": costs, "kitty previews": len(counter), "map": explained(pipe)}
    print(json.dumps(document, indent=1))
    atomic_write(args.out, (json.dumps(document, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
