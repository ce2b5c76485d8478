"""Likeness and prompt fidelity before and after ``gen --refine-faces``, by size of the faces, and of ``gen --best-of``.

    python -m benchmarks.refine_faces --work DIR                         # 16 unseen people, alone and in pairs
    python -m benchmarks.refine_faces --work DIR --people 4 --first 7000 # a quick check

The exported runtime draws all images from one bundle, as `celebctl.pipeline.Pipeline` does. Likeness is scored by the
second recogniser, which finds no face for the refinement, with the scale of likeness.py: 0 is another person, 1 a true
image of the same person under the same prompt; a missing face counts as 0. Differences are paired by face, and their
95 % intervals (Student's t) are over people. Each person is in two pairs, first and second. mini draws at most two
people, so there are no triples. Sizes are those of the shorter side of a face's box before
refinement, in pixels of the image as drawn (64 x 64 for mini, which is saved four times as large). Images are kept in
``--work``, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.layout import unseen_people
from benchmarks.likeness import (
    PAIR_PROMPTS,
    SINGLE_PROMPTS,
    load_scorer,
    prompt_statements_met,
    reference_scores,
    require_folder,
)
from celebctl.drawn_faces import DrawnFaces
from celebctl.evaluation.intervals import Estimate, estimate
from celebctl.evaluation.prompts import Prompt
from celebctl.evaluation.scorers import ImageScores, WorldScorer, largest_faces
from celebctl.learning.prepared import prepare
from celebctl.library import Library
from celebctl_export import ExportOptions, export_bundle
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.world import person
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.identity import Identity
from celebctl_runtime.picture import GeneratedImage
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import REFINE_STRENGTH, Request

Pixels = NDArray[np.uint8]

#: Lower and upper bound of the shorter side of a face in pixels.
SIZES = {"under 18 px": (0, 18), "18 to 20 px": (18, 20), "20 to 24 px": (20, 24), "24 to 48 px": (24, 48)}
SINGLES = SINGLE_PROMPTS[:6]
TABLE_HEAD = """\
| faces | number | before | after | difference |
|---|---|---|---|---|"""


@dataclass(frozen=True)
class Face:
    """A face before and after. person: index; size: shorter side in pixels; likeness as in likeness.py."""

    person: int
    people: int
    size: float
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Drawing:
    """Image ``index`` of prompt ``number``, and the references: two renders of each person of the cohort."""

    prompt: Prompt
    number: int
    index: int
    references: Sequence[Sequence[ImageScores]]

    def seed(self, first: int) -> int:
        """Seed of the image of a person, as in likeness.py."""
        if self.prompt.people == 1:
            return 500 + 97 * self.index + 13 * self.number + 1009 * first
        return 900 + 89 * self.index + 17 * self.number + 1013 * first

    def scale(self) -> tuple[float, float]:
        """Mean cosine between references of different people (floor) and of the same person (ceiling)."""
        faces = [renders.first_face for renders in self.references[0]], [r.first_face for r in self.references[1]]
        pairs = [(one, other) for one, other in zip(*faces, strict=True) if one is not None and other is not None]
        a, b = (np.stack(features) for features in zip(*pairs, strict=True))
        cosines = a @ b.T
        count = len(cosines)
        return float(cosines.sum() - np.trace(cosines)) / (count * (count - 1)), float(np.trace(cosines)) / count


@dataclass(frozen=True, eq=False)
class Benchmark:
    """The bundle, the people and the scorer. folder: of the images."""

    bundle: Bundle
    backend: OrtBackend
    finder: DrawnFaces
    scorer: WorldScorer
    people: Sequence[Identity]
    drawings: Sequence[Drawing]
    folder: Path

    def partner(self, first: int) -> int:
        """The other person in a pair."""
        return (first + 1) % len(self.people)

    def requests(self, first: int, strength: float) -> list[Request]:
        """The requests of a person, without refinement."""
        names = self.people[first].name, self.people[self.partner(first)].name
        return [
            Request(d.prompt.text.format(*names), seed=d.seed(first), refine_strength=strength) for d in self.drawings
        ]

    def refined(self, first: int, strength: float) -> tuple[list[Pixels], list[Pixels]]:
        """The images of a person before and after, in the order of the drawings."""
        overrides = self.people[first], self.people[self.partner(first)]

        def draw() -> dict[str, Any]:
            before = generate(self.bundle, self.backend, self.requests(first, strength), overrides=overrides)
            after = self.finder.refine(before, overrides=overrides)
            return {"before": _stacked(before), "after": _stacked(after)}

        images = self._kept(
            f"{overrides[0].digest[:16]}-{overrides[1].digest[:16]}-{strength:g}-{len(self.drawings)}", draw
        )
        return list(images["before"]), list(images["after"])

    def best_of(self, first: int, count: int) -> list[tuple[Drawing, Pixels]]:
        """Of each pair prompt of a person, the image that is chosen out of ``count``."""
        overrides = self.people[first], self.people[self.partner(first)]
        names = [one.name for one in overrides]
        pairs = [drawing for drawing in self.drawings if drawing.prompt.people == 2 and drawing.index == 0]

        def draw() -> dict[str, Any]:
            chosen: list[GeneratedImage] = []
            for drawing in pairs:
                seeds = [drawing.seed(first) + 10**6 * k for k in range(count)]
                requests = [Request(drawing.prompt.text.format(*names), seed=seed) for seed in seeds]
                images = generate(self.bundle, self.backend, requests, overrides=overrides)
                chosen.append(self.finder.best(images, overrides))
            return {"images": _stacked(chosen)}

        key = f"{overrides[0].digest[:16]}-{overrides[1].digest[:16]}-best-of-{count}"
        return list(zip(pairs, self._kept(key, draw)["images"], strict=True))

    def _kept(self, key: str, draw: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self.folder / f"{key}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part.npz")
            np.savez_compressed(unfinished, **draw())
            unfinished.replace(path)
        with np.load(path) as images:
            return dict(images)

    def likeness(self, drawing: Drawing, first: int, image: Pixels) -> list[float]:
        """Likeness of the person (and the partner); 0 when a face is missing, nothing when one is in a reference."""
        people = drawing.prompt.people
        references = [renders[first].features for renders in drawing.references]
        if any(len(rows) < people for rows in references):
            return []
        (scores,) = self.scorer.score([image], faces=people)
        if len(scores.features) < people:
            return [0.0] * people
        floor, ceiling = drawing.scale()
        cosines = np.mean([(scores.features * rows).sum(1) for rows in references], axis=0)
        return [float(cosine - floor) / (ceiling - floor) for cosine in cosines]

    def faces(self, drawing: Drawing, first: int, before: Pixels, after: Pixels) -> list[Face]:
        """The faces of an image with their likeness before and after."""
        found = largest_faces(self.finder.analyser, before, drawing.prompt.people)
        if len(found) < drawing.prompt.people:
            return []  # of no known size; the interval is of those found
        people = [first, self.partner(first)]
        values = zip(people, found, *(self.likeness(drawing, first, i) for i in (before, after)), strict=False)
        return [Face(who, drawing.prompt.people, face.size, a, b) for who, face, a, b in values]

    def fidelity(self, drawing: Drawing, image: Pixels) -> float:
        """Share of the prompt's statements that the image meets."""
        return float(np.mean(prompt_statements_met(drawing.prompt, self.scorer.score([image], faces=1)[0])))


def _stacked(images: Sequence[GeneratedImage]) -> Pixels:
    return np.stack([np.asarray(image.image) for image in images])


def difference(values: Sequence[tuple[int, float, float]], count: int) -> tuple[Estimate, Estimate, Estimate]:
    """Before, after and difference of (person, before, after), each as the mean over people of their means."""
    by_person = [[(one, other) for who, one, other in values if who == index] for index in range(count)]
    means = np.array([np.mean(rows, axis=0) if rows else (np.nan, np.nan) for rows in by_person])
    columns = [estimate(column.tolist()) or Estimate(0.0, 0.0, 0) for column in (*means.T, means[:, 1] - means[:, 0])]
    return columns[0], columns[1], columns[2]


def open_benchmark(model: str, seeds: Sequence[int], pair_images: int, work: Path, threads: int | None) -> Benchmark:
    """Learn the people that ``work`` lacks, and export the bundle."""
    parts = load_parts(model)
    prepared, scorer, work = prepare(parts), load_scorer(parts), work / parts.weights_digest
    people = unseen_people(prepared, seeds, work, 8)
    folder = work / "bundle"
    options = ExportOptions(average=prepared.basis.mean)
    bundle = Bundle.open(folder) if folder.exists() else export_bundle(parts, [], folder, options)
    backend = OrtBackend(bundle, "cpu", threads)
    analyser = OnnxFaceAnalyser(require_folder(parts.card.faces_dir, "face models"))
    z = np.stack([person(seed) for seed in seeds])
    drawings: list[Drawing] = []
    for prompts, images, base, partner in (
        (SINGLES, 1, 10**6, None), (PAIR_PROMPTS, pair_images, 77 * 10**6, np.roll(z, -1, 0))
    ):  # fmt: skip
        for p, prompt in enumerate(prompts):
            references = [reference_scores(scorer, z, prompt, base * r + 1000 * p, partner) for r in (1, 2)]
            drawings += [Drawing(prompt, p, index, references) for index in range(images)]
    finder = DrawnFaces(bundle, backend, analyser, model, Library(work / "library"))
    return Benchmark(bundle, backend, finder, scorer, people, drawings, work / "refined")


def measure(benchmark: Benchmark, strength: float, best_of: int) -> dict[str, tuple[Estimate, Estimate, Estimate]]:
    """The rows of the table."""
    count = len(benchmark.people)
    faces: list[Face] = []
    fidelity: list[tuple[int, float, float]] = []
    chosen: list[tuple[int, float, float]] = []
    for first in range(count):
        before, after = benchmark.refined(first, strength)
        pairs: dict[Drawing, list[float]] = {}
        for drawing, one, other in zip(benchmark.drawings, before, after, strict=True):
            faces += benchmark.faces(drawing, first, one, other)
            fidelity.append((first, benchmark.fidelity(drawing, one), benchmark.fidelity(drawing, other)))
            pairs[drawing] = benchmark.likeness(drawing, first, one)
        for drawing, image in benchmark.best_of(first, best_of) if best_of > 1 else ():
            both = first, benchmark.partner(first)
            chosen += zip(both, pairs[drawing], benchmark.likeness(drawing, first, image), strict=False)
        print(f"{first + 1} of {count} people", flush=True)
    rows = {"all": faces, "one person": [face for face in faces if face.people == 1]}
    rows["two people"] = [face for face in faces if face.people == 2]
    rows |= {title: [face for face in faces if low <= face.size < high] for title, (low, high) in SIZES.items()}
    values = {title: [(face.person, face.before, face.after) for face in some] for title, some in rows.items()}
    values |= {"prompt fidelity": fidelity, f"best of {best_of}, two people": chosen}
    print(TABLE_HEAD)
    results = {title: difference(some, count) for title, some in values.items() if some}
    for title, row in results.items():
        print(f"| {title} | {len(values[title])} | {' | '.join(map(str, row))} |", flush=True)
    return results


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--people", type=int, default=16, help="neighbours are pairs, so there are as many pairs")
    parser.add_argument(
        "--first", type=int, default=8000, help="seed of the first person; 7000 to 7007 set the defaults"
    )
    parser.add_argument("--images", type=int, default=2, help="images of each pair and prompt")
    parser.add_argument("--strength", type=float, default=REFINE_STRENGTH, help="of the refinement")
    parser.add_argument("--best-of", type=int, default=4, help="images of a pair to choose from; 1 leaves this out")
    parser.add_argument("--work", type=Path, required=True, help="folder of people, bundle and images")
    parser.add_argument("--threads", type=int, help="of the runtime (default: one per core)")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    seeds = [args.first + i for i in range(args.people)]
    benchmark = open_benchmark(args.model, seeds, args.images, args.work, args.threads)
    results = measure(benchmark, args.strength, args.best_of)
    if args.out:
        columns = ("before", "after", "difference")
        rows = {title: dict(zip(columns, map(asdict, row), strict=True)) for title, row in results.items()}
        args.out.write_text(json.dumps({"strength": args.strength, "first": args.first, **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
