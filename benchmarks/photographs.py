"""Drawn portraits that mini refuses, and photographs that it accepts.

    python -m benchmarks.photographs --people 1000 --work DIR --out benchmarks/results/photographs.json

Portraits of people that nothing was trained on, in seven forms, and two photographs that the network was not trained
with, scikit-image's astronaut and Matplotlib's Grace Hopper, in eleven. The portraits are kept in --work. For each
form: how many have a face by mini's detector, how many of those are drawn by celebctl_models.mini.drawn, and the lowest
and highest score. Drawn from `limit` on.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter, ImageOps

from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.drawn import FACES, WEIGHTS, drawnness
from celebctl_models.mini.world import draw_portrait
from celebctl_runtime.files import atomic_write

FIRST_SEED = 5000  # the limit was set on the people 0 to 999
Form = Callable[[Image.Image], Image.Image]


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """JPEG and back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def screenshot(image: Image.Image) -> Image.Image:
    """In the middle of a grey page with a dark bar."""
    page = Image.new("RGB", (2 * image.width, 2 * image.height), (240, 240, 240))
    page.paste((60, 60, 70), (0, 0, page.width, page.height // 30))
    page.paste(image, (image.width // 2, image.height // 2))
    return page


FORMS: dict[str, Form] = {
    "as it is": lambda image: image,
    "JPEG 70": lambda image: compressed(image, 70),
    "JPEG 30": lambda image: compressed(image, 30),
    "96 px": lambda image: image.resize((96, round(96 * image.height / image.width)), Image.Resampling.BICUBIC),
    "border": lambda image: ImageOps.expand(image, max(image.size) // 7, "white"),
    "screenshot": screenshot,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(max(image.size) / 128)),
}
PHOTOGRAPH_FORMS: dict[str, Form] = {
    **FORMS,
    "grey": lambda image: image.convert("L").convert("RGB"),
    "posterized": lambda image: ImageOps.posterize(image, 3),
    "16 colours": lambda image: image.quantize(16).convert("RGB"),
    "median 9": lambda image: image.filter(ImageFilter.MedianFilter(9)),
}


def photographs() -> dict[str, Image.Image]:
    """Photographs of people: whole, and cropped to the head."""
    data: Any = import_module("skimage.data")
    matplotlib: Any = import_module("matplotlib")
    astronaut = Image.fromarray(data.astronaut())
    samples = Path(matplotlib.get_data_path()) / "sample_data"
    return {
        "astronaut": astronaut,
        "astronaut, shoulders": astronaut.crop((120, 0, 340, 220)),
        "astronaut, head": astronaut.crop((150, 20, 310, 180)),
        "astronaut, half": astronaut.crop((100, 0, 400, 300)),
        "grace_hopper": Image.open(samples / "grace_hopper.jpg").convert("RGB"),
    }


def portrait(seed: int, work: Path) -> Image.Image:
    """The portrait of a person, drawn once."""
    path = work / f"{seed}.png"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        draw_portrait(seed, 512).save(path)
    return Image.open(path).convert("RGB")


def measured(
    images: Sequence[Callable[[], Image.Image]], forms: dict[str, Form], analyser: OnnxFaceAnalyser
) -> dict[str, Any]:
    """For each form: images, with a face, drawn (by the largest face), lowest and highest score."""
    rows: dict[str, Any] = {}
    for name, form in forms.items():
        scores: list[float] = []
        drawn = 0
        for image in (form(draw()) for draw in images):
            faces = sorted(analyser.analyse(image), key=lambda face: -face.size)[:1]
            found = [drawnness(image, face, FACES) for face in faces]
            scores += [round(one.score, 2) for one in found]
            drawn += sum(one.drawn for one in found)
        ends = {"lowest": min(scores), "highest": max(scores)} if scores else {}
        rows[name] = {"images": len(images), "with_face": len(scores), "drawn": drawn, **ends}
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--people", type=int, default=1000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    analyser = OnnxFaceAnalyser(FACES)
    people = [partial(portrait, seed, args.work) for seed in range(FIRST_SEED, FIRST_SEED + args.people)]
    others = [partial(Image.Image.copy, image) for image in photographs().values()]
    results = {
        "limit": json.loads((WEIGHTS / "pictures" / "drawn.json").read_text())["limit"],
        "portraits": measured(people, FORMS, analyser),
        "photographs": measured(others, PHOTOGRAPH_FORMS, analyser),
    }
    atomic_write(args.out, (json.dumps(results, indent=1) + "\n").encode())
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
