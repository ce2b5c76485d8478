"""Two people in one picture: who stands where, how like themselves, with and without ``gen --layout``.

    python -m benchmarks.layout                             # 16 pairs of unseen people, 4 prompts, 2 seeds
    python -m benchmarks.layout --people 4 --seeds 1        # a quick look

Drawn by the exported runtime on one and the same bundle, from the same noise; the judge is the one of likeness.py,
which neither learning nor drawing ever used. Rows: the plain prompt; the layout that says what the prompt says
(first-named on the left); and the layout against the prompt, first-named on the right, which no prompt can have; and,
of all three, the pictures of couples, prompts and seeds in which the plain prompt did not draw both. Per picture:
whether both people are in it, on whichever side (the best matching of faces to names, as in `celebctl eval`),
whether each is on their side, likeness as a share of what true
pictures of the same scene reach, whether the caption holds. What is drawn is kept in ``--work``: the same command goes
on from there.
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

from benchmarks.likeness import PAIRS, folder, reference_scores, stated
from celebctl.evaluation.image_metrics import match_faces
from celebctl.evaluation.scorers import ImageScores, WorldScorer
from celebctl.learning.config import PRESETS
from celebctl.learning.prepared import PreparedModel, prepare
from celebctl.learning.subject import analyse_photo
from celebctl.learning.trainer import learn_people
from celebctl_export import ExportOptions, export_bundle
from celebctl_models.checkpoints.diffusion import DiffusionParts, load_parts
from celebctl_models.faces.analysis import InsightFaceAnalyser
from celebctl_models.mini.world import PromptFacts, draw_portrait, person
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.files import atomic_write
from celebctl_runtime.identity import Identity
from celebctl_runtime.pipeline import generate
from celebctl_runtime.prompting import layout
from celebctl_runtime.request import Request

Floats = NDArray[np.float32]

#: Kind -> the layout of (first-named, second-named), and whether the first-named is to be on the left.
PLAIN = "prompt alone"
KINDS: dict[str, tuple[str, bool]] = {
    PLAIN: (layout.NONE, True),
    "layout as the prompt says": ("left:{0},right:{1}", True),
    "layout against the prompt": ("left:{1},right:{0}", False),
}
HEAD = """\
| drawn with | pictures | assigned | both sides right | likeness in pairs | caption | seconds a picture |
|---|---|---|---|---|---|---|"""
FAILED = "where the prompt alone failed"


@dataclass(frozen=True)
class Shot:
    """One scored image. assigned: both people are in it; right: each on their side. made, ceiling, floor: cosines;
    captions: share of what is stated."""

    assigned: bool
    right: bool
    made: float
    ceiling: float
    floor: float
    caption: float
    seconds: float


#: (first-named, prompt, seed) -> the picture.
Shots = dict[tuple[int, int, int], Shot]


@dataclass(frozen=True)
class Row:
    """The shots of one kind: shares and their 95 % intervals over pairs of people."""

    assigned: float
    assigned_interval: float
    right: float
    right_interval: float
    likeness: float
    likeness_interval: float
    caption: float
    seconds: float
    pictures: int


def unseen_people(
    model: PreparedModel[DiffusionParts], seeds: Sequence[int], work: Path, together: int
) -> list[Identity]:
    """People whom the model never saw, learned from one portrait each, and kept in ``work`` for the next time."""
    work.mkdir(parents=True, exist_ok=True)
    finder = InsightFaceAnalyser(folder(model.parts.card.faces_dir, "face models"))
    missing = [seed for seed in seeds if not _file(work, seed).exists()]
    for start in range(0, len(missing), together):
        group = missing[start : start + together]
        subjects = [analyse_photo(finder, draw_portrait(seed), f"p{seed}") for seed in group]
        for one in learn_people(model, subjects, PRESETS["clean"], finder):
            one.save(work / f"{one.name}.safetensors")
    return [Identity.load(_file(work, seed)) for seed in seeds]


def scorer_of(parts: DiffusionParts) -> WorldScorer:
    """The judges that a model brings."""
    finder = InsightFaceAnalyser(folder(parts.card.faces_dir, "face models"))
    return WorldScorer(folder(parts.card.scoring_dir, "judges"), finder)


def _file(work: Path, seed: int) -> Path:
    return work / f"p{seed}.safetensors"


@dataclass(frozen=True, eq=False)
class LayoutBenchmark:
    """The bundle and scorer. people: n, neighbours are the pairs; looks: (prompt, first-named on the left) -> scores of
    two reference images of every pair. log: where judged pictures are kept, ``known`` what is there."""

    bundle: Bundle
    backend: OrtBackend
    scorer: WorldScorer
    people: Sequence[Identity]
    looks: Mapping[tuple[int, bool], Sequence[Sequence[ImageScores]]]
    log: Path
    known: dict[str, dict[str, Any]]

    def pair(self, first: int) -> tuple[Identity, Identity]:
        return self.people[first], self.people[(first + 1) % len(self.people)]

    def shot(self, kind: str, p: int, first: int, seed: int) -> Shot | None:
        """Draw and judge one picture, or take it from the log; None when the true pictures do not show two faces."""
        (text, ahead), (prompt, wanted), pair = KINDS[kind], PAIRS[p], self.pair(first)
        truth = [look[first].features for look in self.looks[p, ahead]]
        if any(len(found) != 2 for found in truth):
            return None
        key = f"{kind} {layout.BORDER:g} {' '.join(who.digest for who in pair)} {p} {seed}"
        if "identity_assignment" not in self.known.get(key, {}):  # not drawn yet, or before that was asked
            names = [who.name for who in pair]
            request = Request(prompt.format(*names), seed=seed, layout=text.format(*names))
            begun = time.monotonic()
            picture = generate(self.bundle, self.backend, request, overrides=pair)[0]
            seconds = time.monotonic() - begun
            judged = self.scorer.score([np.asarray(picture.image)], faces=2)[0]
            self.known[key] = asdict(judge(judged, np.stack(truth), wanted, seconds))
            atomic_write(self.log, json.dumps(self.known).encode())
        return Shot(**self.known[key])

    def shots(self, kind: str, seeds: int) -> Shots:
        """All pictures of one kind."""
        found: Shots = {}
        for first in range(len(self.people)):
            noise = [(p, 900 + 89 * s + 17 * p + 1013 * first) for p in range(len(PAIRS)) for s in range(seeds)]
            for p, seed in noise:
                shot = self.shot(kind, p, first, seed)
                if shot is not None:
                    found[first, p, seed] = shot
        return found


def couples(shots: Shots, plain: Shots | None = None) -> list[list[Shot]]:
    """Shots by pair of people; with ``plain``, those whose picture of the plain prompt does not show both."""
    chosen = [at for at in shots if plain is None or (at in plain and not plain[at].assigned)]
    return [[shots[at] for at in chosen if at[0] == first] for first in sorted({at[0] for at in chosen})]


def judge(seen: ImageScores, truth: Floats, wanted: PromptFacts, seconds: float) -> Shot:
    """truth: (2 renders, 2 places, F) features of true pictures, as it is wanted."""
    ceiling = float((truth[0] * truth[1]).sum(1).mean())
    floor = float((truth[0, 0] @ truth[1, 1] + truth[0, 1] @ truth[1, 0]) / 2)
    caption = float(np.mean(stated(wanted, True, seen.attributes)))
    if len(seen.features) < 2:
        return Shot(False, False, floor, ceiling, floor, caption, seconds)
    cosine = seen.features @ truth.mean(0).T  # (made, true)
    right = bool(cosine[0, 0] > cosine[0, 1] and cosine[1, 1] > cosine[1, 0])
    order = list(match_faces(cosine))
    assigned = bool((cosine[[0, 1], order] > cosine[[0, 1], order[::-1]]).all())
    return Shot(assigned, right, float(np.trace(cosine) / 2), ceiling, floor, caption, seconds)


def row_of(shots: Sequence[Sequence[Shot]]) -> Row:
    """shots: per pair of people. Likeness is a ratio of sums, as in likeness.py."""
    assigned = np.array([np.mean([shot.assigned for shot in pair]) for pair in shots])
    right = np.array([np.mean([shot.right for shot in pair]) for pair in shots])
    gained = np.array([np.mean([shot.made - shot.floor for shot in pair]) for pair in shots])
    possible = float(np.mean([shot.ceiling - shot.floor for pair in shots for shot in pair]))
    every = [shot for pair in shots for shot in pair]

    def interval(values: NDArray[np.floating[Any]]) -> float:
        return 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0

    return Row(
        float(assigned.mean()), interval(assigned), float(right.mean()), interval(right),
        float(gained.mean()) / possible, interval(gained) / possible,
        float(np.mean([shot.caption for shot in every])), float(np.mean([shot.seconds for shot in every])), len(every),
    )  # fmt: skip


def line_of(row: Row) -> str:
    """The cells of a row after what was drawn."""
    pairs = (
        (row.assigned, row.assigned_interval),
        (row.right, row.right_interval),
        (row.likeness, row.likeness_interval),
    )
    shares = " | ".join(f"{value:.3f} ± {half:.3f}" for value, half in pairs)
    return f"{row.pictures} | {shares} | {row.caption:.3f} | {row.seconds:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument(
        "--people", type=int, default=16, help="neighbours are the pairs, so there are as many pairs"
    )
    parser.add_argument("--first", type=int, default=1000, help="seed of the first person")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each pair and prompt")
    parser.add_argument("--together", type=int, default=8, help="people per learn call")
    parser.add_argument("--kinds", nargs="*", default=[*KINDS], choices=[*KINDS], metavar="KIND")
    parser.add_argument("--work", type=Path, required=True, help="where people, bundle and judged pictures are kept")
    parser.add_argument("--threads", type=int, help="of the runtime (default: one per core)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    seeds = [args.first + i for i in range(args.people)]
    parts = load_parts(args.model)
    model, scorer = prepare(parts), scorer_of(parts)
    work = args.work / parts.weights_digest  # what other weights learned and drew is not gone on from
    people = unseen_people(model, seeds, work, args.together)
    place = work / "bundle"
    options = ExportOptions(average=model.basis.mean)
    bundle = Bundle.open(place) if place.exists() else export_bundle(parts, [], place, options)
    z = np.stack([person(seed) for seed in seeds])
    looks = {
        (p, ahead): [reference_scores(scorer, left, wanted, 77 * 10**6 * r + 1000 * p, right) for r in (1, 2)]
        for p, (_, wanted) in enumerate(PAIRS)
        for ahead, left, right in ((True, z, np.roll(z, -1, 0)), (False, np.roll(z, -1, 0), z))
    }
    log = work / "shots.json"
    known: dict[str, dict[str, Any]] = json.loads(log.read_text()) if log.exists() else {}
    benchmark = LayoutBenchmark(bundle, OrtBackend(bundle, "cpu", args.threads), scorer, people, looks, log, known)
    figures: dict[str, object] = {}
    plain: Shots = {}
    print(HEAD, flush=True)
    for kind in args.kinds:
        shots = benchmark.shots(kind, args.seeds)
        plain = shots if kind == PLAIN else plain
        for said, chosen in ((kind, couples(shots)), (f"{kind}, {FAILED}", couples(shots, plain))):
            if chosen:
                row = row_of(chosen)
                figures[said] = asdict(row)
                print(f"| {said} | {line_of(row)} |", flush=True)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
