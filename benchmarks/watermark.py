"""What the watermark withstands, how often it is found where there is none, and what it costs.

    python -m benchmarks.watermark --bundle DIR --out benchmarks/results/watermark.json

Marked: pictures that the bundle draws of its own celebrities, and parts of the photographs that scikit-image ships,
512 px square. Unmarked: 10,000 drawn scenes of mini's world, each another one, and parts of the photographs. A score is
the highest of many values, and the tail of such scores is that of a Gumbel distribution; fitted to the unmarked
pictures, it gives the rate of scores over the threshold. A number is accepted with 16 check bits more, 1 in 65,536.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

import celebctl_runtime.watermark as watermark
from celebctl.pipeline import Pipeline
from celebctl_models.mini.people import sample_people, uniform_from_normal
from celebctl_models.mini.scenes import random_scenes, render
from celebctl_runtime.files import atomic_write

Change = Callable[[Image.Image], Image.Image]
PROMPTS = ("a photo of {}", "{} playing chess in the city", "a picture of {} on the beach", "{} in space, smiling")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina")
UNMARKED_PEOPLE = 7_000_000  # seed


def jpeg(quality: int) -> Change:
    """Compressed and read again."""

    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def scaled(factor: float) -> Change:
    """As a screenshot on a display of another density, or a preview."""
    return lambda image: image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC
    )


def cropped(image: Image.Image) -> Image.Image:
    """Three quarters of each side, from an odd corner."""
    left, top = image.width // 8 + 3, image.height // 8 + 1
    return image.crop((left, top, left + image.width * 3 // 4, top + image.height * 3 // 4))


CHANGES: dict[str, Change] = {
    "as it is": lambda image: image,
    "JPEG 90": jpeg(90),
    "JPEG 75": jpeg(75),
    "JPEG 50": jpeg(50),
    "half size": scaled(0.5),
    "three-quarter crop": cropped,
    "blur, radius 1": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "screenshot at 1.25": scaled(1.25),
    "screenshot at 1.37": scaled(1.37),
    "crop, then 1.37, then JPEG 75": lambda image: jpeg(75)(scaled(1.37)(cropped(image))),
    "palette of 256": lambda image: image.quantize(256),
}


def drawn(bundle: Path, count: int) -> list[Image.Image]:
    """Pictures of celebrities as ``gen`` saves them: enlarged."""
    pipe = Pipeline(bundle)
    names = (Path(bundle_model(pipe)) / "names.txt").read_text("utf-8").split("\n")[: count // len(PROMPTS)]
    scale = pipe.bundle.manifest.size.display_scale
    pictures: list[Image.Image] = []
    for number, name in enumerate(names):
        for prompt in PROMPTS:
            image = pipe(prompt.format(name), seed=number).images[0]
            pictures.append(image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS))
    return pictures


def bundle_model(pipe: Pipeline) -> Path:
    """The folder of mini."""
    from celebctl_models.checkpoints.registry import locate

    return locate(pipe.bundle.manifest.model.name).path


def photographs(count: int, seed: int, side: int = 512) -> Iterator[Image.Image]:
    """Parts of photographs, mirrored at random, ``side`` px square."""
    data: Any = import_module("skimage.data")
    whole = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    random = np.random.default_rng(seed)
    for index in range(count):
        image = whole[index % len(whole)]
        size = int(random.integers(min(image.size) // 2, min(image.size) + 1))
        left, top = (int(random.integers(0, edge - size + 1)) for edge in image.size)
        part = image.crop((left, top, left + size, top + size)).resize((side, side), Image.Resampling.LANCZOS)
        yield part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else part


def scenes(count: int, side: int = 256, batch: int = 50) -> Iterator[Image.Image]:
    """Scenes of mini's world with one or two people, no two alike."""
    generator = torch.Generator().manual_seed(UNMARKED_PEOPLE)
    for start in range(0, count, batch):
        people = sample_people(2 * batch, UNMARKED_PEOPLE + start)
        factors = torch.as_tensor(uniform_from_normal(people)).reshape(batch, 2, -1)
        made = render(random_scenes(factors, torch.arange(batch) % 2 == 0, generator), side).image
        for pixels in made[: count - start]:
            yield Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8))


def survival(pictures: list[Image.Image]) -> dict[str, Any]:
    """For each change: share of pictures whose number is read, and whose mark is found, and the lowest score."""
    marked = [watermark.add_watermark(image, 0xC0FFEE00 + index) for index, image in enumerate(pictures)]
    rows: dict[str, Any] = {}
    for name, change in CHANGES.items():
        found = [watermark.find_watermark(change(image)) for image in marked]
        read = [one is not None and one.payload == 0xC0FFEE00 + index for index, one in enumerate(found)]
        wrong = sum(
            one is not None and one.payload is not None and not right for one, right in zip(found, read, strict=True)
        )
        rows[name] = {
            "read": statistics.mean(read),
            "found": statistics.mean(one is not None for one in found),
            "wrong": wrong,
            "lowest_score": round(min(0.0 if one is None else one.score for one in found), 1),
        }
        print(name, rows[name], flush=True)
    errors = [
        np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
        for one, other in zip(pictures, marked, strict=True)
    ]
    return {"pictures": len(pictures), "psnr_lowest": round(10 * math.log10(255**2 / max(errors)), 1), "changes": rows}


def unmarked(pictures: Iterator[Image.Image]) -> dict[str, Any]:
    """The highest score of each picture over all scales, with the threshold out of the way."""
    threshold, scores, seconds = watermark.THRESHOLD, list[float](), 0.0
    watermark.THRESHOLD, accepted = -math.inf, 0
    for image in pictures:
        start = time.perf_counter()
        found = watermark.find_watermark(image)
        seconds += time.perf_counter() - start
        scores.append(found.score if found else 0.0)
        accepted += found is not None and found.payload is not None and found.score >= threshold
    watermark.THRESHOLD = threshold
    return {"scores": scores, "accepted": accepted, "seconds": seconds}


def tail(scores: list[float], threshold: float) -> float:
    """The rate of scores over the threshold, by a Gumbel distribution fitted by its moments."""
    scale = statistics.stdev(scores) * math.sqrt(6) / math.pi
    mode = statistics.mean(scores) - 0.57722 * scale
    return -math.expm1(-math.exp(-(threshold - mode) / scale))


def milliseconds(repeats: int = 50) -> float:
    """The quickest of many marks of a picture of 512 x 512."""
    image = next(photographs(1, 1))
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        watermark.add_watermark(image, 1)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=120)
    parser.add_argument("--unmarked", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results: dict[str, Any] = {"milliseconds_512": round(milliseconds(), 2)}
    results["mini"] = survival(drawn(args.bundle, args.pictures))
    results["photographs"] = survival(list(photographs(args.pictures, 0)))
    parts = photographs(args.unmarked // 10, 9, 256)
    for name, found in (("scenes", unmarked(scenes(args.unmarked))), ("photographs", unmarked(parts))):
        scores = found.pop("scores")
        results[f"unmarked_{name}"] = {
            "pictures": len(scores),
            "over_threshold": sum(score >= watermark.THRESHOLD for score in scores),
            "accepted": found["accepted"],
            "highest_score": round(max(scores), 2),
            "mean_score": round(statistics.mean(scores), 2),
            "rate_over_threshold": tail(scores, watermark.THRESHOLD),
            "rate_of_a_number": tail(scores, watermark.THRESHOLD) / 2**watermark.CHECK_BITS,
            "seconds_a_picture": round(found["seconds"] / len(scores), 3),
        }
        print(name, results[f"unmarked_{name}"], flush=True)
    atomic_write(args.out, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
