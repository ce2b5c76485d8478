"""Two people in one image with and without ``gen --layout``: who is where, and how similar to their reference.

    python -m benchmarks.layout --work DIR                             # 16 pairs of unseen people, 4 prompts, 2 seeds
    python -m benchmarks.layout --work DIR --people 4 --seeds 1        # a quick check

The exported runtime generates all images from one bundle and the same noise; the scoring networks are those of
likeness.py. The conditions are the prompt alone, a layout that agrees with the prompt (the person named first on the
left), and a layout against the prompt (the person named first on the right). Each condition has a second row with only
those images (by pair, prompt and seed) in which the prompt alone did not show both people.

Metrics of an image: identity assignment (both people are in it, on either side, by the best matching of faces to names
as in `celebctl eval`), left-right accuracy (each is on the intended side), likeness as a fraction of what reference
renders of the same scene reach, and the share of the prompt's statements that the image meets. Learned people, bundle
and scored images are kept in ``--work``, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.likeness import (
    PAIR_PROMPTS,
    load_scorer,
    prompt_statements_met,
    reference_scores,
    require_folder,
)
from celebctl.evaluation.image_metrics import match_faces
from celebctl.evaluation.prompts import Prompt
from celebctl.evaluation.scorers import ImageScores, WorldScorer
from celebctl.learning.config import PRESETS
from celebctl.learning.prepared import PreparedModel, prepare
from celebctl.learning.subject import analyse_photo
from celebctl.learning.trainer import learn_people
from celebctl_export import ExportOptions, export_bundle
from celebctl_models.checkpoints.diffusion import DiffusionParts, load_parts
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.world import draw_portrait, person
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.files import atomic_write
from celebctl_runtime.identity import Identity
from celebctl_runtime.pipeline import generate
from celebctl_runtime.prompting import layout
from celebctl_runtime.request import Request

Floats = NDArray[np.float32]

PROMPT_ALONE = "prompt alone"
#: Condition -> layout text of (first name, second name), and whether the first is to be on the left.
CONDITIONS: dict[str, tuple[str, bool]] = {
    PROMPT_ALONE: (layout.NONE, True),
    "layout as the prompt says": ("left:{0},right:{1}", True),
    "layout against the prompt": ("left:{1},right:{0}", False),
}
TABLE_HEAD = """\
| condition | images | both assigned | both sides right | likeness in pairs | caption | seconds per image |
|---|---|---|---|---|---|---|"""
FAILED = "where the prompt alone failed"


@dataclass(frozen=True)
class PairSample:
    """One scored image.

    Attributes:
        identity_assignment: Whether both people are in it.
        left_right_accuracy: Whether both are on the intended side.
        cosine: Mean cosine between the faces and their people's references.
        ceiling: That between two references of the same person; floor: of different people.
        caption: Share of the prompt's statements that the image meets.
        seconds: Time of generation.
    """

    identity_assignment: bool
    left_right_accuracy: bool
    cosine: float
    ceiling: float
    floor: float
    caption: float
    seconds: float


#: (index of the first person, of the prompt, seed) -> the image.
PairSamples = dict[tuple[int, int, int], PairSample]


@dataclass(frozen=True)
class ConditionMetrics:
    """Means over the images of a condition, with half widths of 95 % intervals over pairs of people."""

    identity_assignment: float
    identity_assignment_interval: float
    left_right_accuracy: float
    left_right_accuracy_interval: float
    likeness: float
    likeness_interval: float
    caption: float
    seconds: float
    images: int


def unseen_people(
    model: PreparedModel[DiffusionParts], seeds: Sequence[int], work: Path, people_per_call: int
) -> list[Identity]:
    """People outside mini's training data, learned from one portrait each; those in ``work`` are read from there."""
    work.mkdir(parents=True, exist_ok=True)
    finder = OnnxFaceAnalyser(require_folder(model.parts.card.faces_dir, "face models"))
    missing = [seed for seed in seeds if not _identity_file(work, seed).exists()]
    for start in range(0, len(missing), people_per_call):
        group = missing[start : start + people_per_call]
        subjects = [analyse_photo(finder, draw_portrait(seed), f"p{seed}") for seed in group]
        for seed, one in zip(group, learn_people(model, subjects, PRESETS["clean"], finder), strict=True):
            one.save(_identity_file(work, seed))
    return [Identity.load(_identity_file(work, seed)) for seed in seeds]


def _identity_file(work: Path, seed: int) -> Path:
    return work / f"p{seed}.safetensors"


@dataclass(frozen=True, eq=False)
class LayoutBenchmark:
    """The bundle, the scorer and the pairs of people.

    Attributes:
        people: Each one and the next are a pair, the last and the first as well.
        references: (prompt, first person on the left) -> scores of two reference renders of every pair.
        log: File of the scored images.
        scored: Content of that file.
    """

    bundle: Bundle
    backend: OrtBackend
    scorer: WorldScorer
    people: Sequence[Identity]
    references: Mapping[tuple[int, bool], Sequence[Sequence[ImageScores]]]
    log: Path
    scored: dict[str, dict[str, Any]]

    def pair(self, first: int) -> tuple[Identity, Identity]:
        return self.people[first], self.people[(first + 1) % len(self.people)]

    def sample(self, condition: str, p: int, first: int, seed: int) -> PairSample | None:
        """Generate and score one image, or read it from the log. None when a reference has not two faces."""
        (text, first_left), prompt, pair = CONDITIONS[condition], PAIR_PROMPTS[p], self.pair(first)
        features = [renders[first].features for renders in self.references[p, first_left]]
        if any(len(faces) != 2 for faces in features):
            return None
        key = f"{condition} {layout.BORDER:g} {' '.join(one.digest for one in pair)} {p} {seed}"
        if key not in self.scored:
            names = [one.name for one in pair]
            request = Request(prompt.text.format(*names), seed=seed, layout=text.format(*names))
            begun = time.monotonic()
            image = generate(self.bundle, self.backend, request, overrides=pair)[0].image
            seconds = time.monotonic() - begun
            scores = self.scorer.score([np.asarray(image)], faces=2)[0]
            self.scored[key] = asdict(score_sample(scores, np.stack(features), prompt, seconds))
            atomic_write(self.log, json.dumps(self.scored).encode())
        return PairSample(**self.scored[key])

    def samples(self, condition: str, seeds: int) -> PairSamples:
        """All images of a condition."""
        found: PairSamples = {}
        for first in range(len(self.people)):
            noise = [(p, 900 + 89 * s + 17 * p + 1013 * first) for p in range(len(PAIR_PROMPTS)) for s in range(seeds)]
            for p, seed in noise:
                sample = self.sample(condition, p, first, seed)
                if sample is not None:
                    found[first, p, seed] = sample
        return found


def by_pair(samples: PairSamples, prompt_alone: PairSamples | None = None) -> list[list[PairSample]]:
    """Samples of each pair of people. With ``prompt_alone``, only where that image does not show both."""
    chosen = [
        key
        for key in samples
        if prompt_alone is None or (key in prompt_alone and not prompt_alone[key].identity_assignment)
    ]
    return [[samples[key] for key in chosen if key[0] == first] for first in sorted({key[0] for key in chosen})]


def score_sample(scores: ImageScores, references: Floats, prompt: Prompt, seconds: float) -> PairSample:
    """references: (2 renders, 2 people from the left, D) face features."""
    ceiling = float((references[0] * references[1]).sum(1).mean())
    floor = float((references[0, 0] @ references[1, 1] + references[0, 1] @ references[1, 0]) / 2)
    caption = float(np.mean(prompt_statements_met(prompt, scores)))
    if len(scores.features) < 2:
        return PairSample(False, False, floor, ceiling, floor, caption, seconds)
    cosine = scores.features @ references.mean(0).T  # (generated, reference)
    sides = bool(cosine[0, 0] > cosine[0, 1] and cosine[1, 1] > cosine[1, 0])
    order = list(match_faces(cosine))
    assigned = bool((cosine[[0, 1], order] > cosine[[0, 1], order[::-1]]).all())
    return PairSample(assigned, sides, float(np.trace(cosine) / 2), ceiling, floor, caption, seconds)


def condition_metrics(pairs: Sequence[Sequence[PairSample]]) -> ConditionMetrics:
    """pairs: samples of each pair of people. Likeness is a ratio of sums, as in likeness.py."""
    assigned = np.array([np.mean([sample.identity_assignment for sample in pair]) for pair in pairs])
    sides = np.array([np.mean([sample.left_right_accuracy for sample in pair]) for pair in pairs])
    gained = np.array([np.mean([sample.cosine - sample.floor for sample in pair]) for pair in pairs])
    samples = [sample for pair in pairs for sample in pair]
    possible = float(np.mean([sample.ceiling - sample.floor for sample in samples]))

    def interval(values: NDArray[np.floating[Any]]) -> float:
        return 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0

    return ConditionMetrics(
        float(assigned.mean()), interval(assigned), float(sides.mean()), interval(sides),
        float(gained.mean()) / possible, interval(gained) / possible,
        float(np.mean([sample.caption for sample in samples])),
        float(np.mean([sample.seconds for sample in samples])), len(samples),
    )  # fmt: skip


def table_cells(row: ConditionMetrics) -> str:
    """The cells of a row after the name of the condition."""
    values = (
        (row.identity_assignment, row.identity_assignment_interval),
        (row.left_right_accuracy, row.left_right_accuracy_interval),
        (row.likeness, row.likeness_interval),
    )
    intervals = " | ".join(f"{mean:.3f} ± {half_width:.3f}" for mean, half_width in values)
    return f"{row.images} | {intervals} | {row.caption:.3f} | {row.seconds:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--people", type=int, default=16, help="neighbours are pairs, so there are as many pairs")
    parser.add_argument("--first", type=int, default=1000, help="seed of the first person")
    parser.add_argument("--seeds", type=int, default=2, help="images of each pair and prompt")
    parser.add_argument("--people-per-call", type=int, default=8, help="people learned in one call")
    parser.add_argument("--conditions", nargs="*", default=[*CONDITIONS], choices=[*CONDITIONS], metavar="CONDITION")
    parser.add_argument("--work", type=Path, required=True, help="folder of people, bundle and scored images")
    parser.add_argument("--threads", type=int, help="of the runtime (default: one per core)")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    seeds = [args.first + i for i in range(args.people)]
    parts = load_parts(args.model)
    model, scorer = prepare(parts), load_scorer(parts)
    work = args.work / parts.weights_digest  # results of other weights are not reused
    people = unseen_people(model, seeds, work, args.people_per_call)
    folder = work / "bundle"
    options = ExportOptions(average=model.basis.mean)
    bundle = Bundle.open(folder) if folder.exists() else export_bundle(parts, [], folder, options)
    z = np.stack([person(seed) for seed in seeds])
    references = {
        (p, first_left): [reference_scores(scorer, left, prompt, 77 * 10**6 * r + 1000 * p, right) for r in (1, 2)]
        for p, prompt in enumerate(PAIR_PROMPTS)
        for first_left, left, right in ((True, z, np.roll(z, -1, 0)), (False, np.roll(z, -1, 0), z))
    }
    log = work / "samples.json"
    scored: dict[str, dict[str, Any]] = json.loads(log.read_text()) if log.exists() else {}
    backend = OrtBackend(bundle, "cpu", args.threads)
    benchmark = LayoutBenchmark(bundle, backend, scorer, people, references, log, scored)
    results: dict[str, object] = {}
    prompt_alone: PairSamples = {}
    print(TABLE_HEAD, flush=True)
    for condition in args.conditions:
        samples = benchmark.samples(condition, args.seeds)
        prompt_alone = samples if condition == PROMPT_ALONE else prompt_alone
        rows = ((condition, by_pair(samples)), (f"{condition}, {FAILED}", by_pair(samples, prompt_alone)))
        for title, pairs in rows:
            if pairs:
                row = condition_metrics(pairs)
                results[title] = asdict(row)
                print(f"| {title} | {table_cells(row)} |", flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
