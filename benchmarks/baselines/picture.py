"""Images of the first people of a comparison, one column per method, without selection.

    python -m benchmarks.baselines --people 40 --seeds 3 --work DIR
    python -m benchmarks.baselines.picture --work DIR

Each of the first pairs has a row with the first person alone and a row with both, with the first seed, beside the
photos that they were learned from. Writes results/baselines.png.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from benchmarks.baselines.methods import METHODS
from celebctl.evaluation.prompts import WORLD_PROMPTS
from celebctl.evaluation.results import SubjectRecord
from celebctl.grid import grid
from celebctl_runtime.files import atomic_write

RESULT = Path(__file__).parents[1] / "results" / "baselines.png"
PROMPTS = ("a photo of {} smiling", "{} and {} playing chess")


def load_records(folder: Path, count: int) -> list[SubjectRecord]:
    """The first people of a method, in the order of their evaluation."""
    records = (SubjectRecord.load(path) for path in sorted(folder.rglob("*.record"))[:count])
    return [record for record in records if record is not None]


def sample_image(record: SubjectRecord, text: str) -> Image.Image:
    """A person's image of a prompt with the first seed."""
    number = next(i for i, prompt in enumerate(WORLD_PROMPTS) if prompt.text == text)
    sample = next(one for one in record.samples if (one.prompt, one.index) == (number, 0))
    return Image.open(io.BytesIO(sample.thumbnail)).convert("RGB")


def side_by_side(people: dict[str, list[SubjectRecord]], pairs: int) -> Image.Image:
    """The grid. people: records of each method by its title."""
    rows: list[list[Image.Image]] = []
    captions: list[list[str]] = []
    first = next(iter(people.values()))
    for number in range(0, 2 * pairs, 2):
        photos = [Image.open(io.BytesIO(first[number + i].photo)).convert("RGB") for i in range(2)]
        for photo, name, text in zip(photos, ("a photo of A", "a photo of B"), PROMPTS, strict=True):
            rows.append([photo, *(sample_image(records[number], text) for records in people.values())])
            captions.append([name, *people] if name.endswith("A") else [name, *[text.format("A", "B")] * len(people)])
    return grid(rows, captions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="--work of benchmarks.baselines")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    people = {method.title: load_records(args.work / name, 2 * args.pairs) for name, method in METHODS.items()}
    people = {title: records for title, records in people.items() if len(records) == 2 * args.pairs}
    if not people:
        parser.error(f"{args.work} has no images of {2 * args.pairs} people")
    buffer = io.BytesIO()
    side_by_side(people, args.pairs).save(buffer, "PNG", optimize=True)
    atomic_write(args.out, buffer.getvalue())
    print(args.out)


if __name__ == "__main__":
    main()
