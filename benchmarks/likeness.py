"""How good mini is, and how well people are learned on it, judged by networks that neither training nor learning used.

    python -m benchmarks.likeness                          # the full table: 24 unseen people, 3 seeds
    python -m benchmarks.likeness --people 6 --seeds 1     # a quick look

Everything is a ratio (gen - floor) / (ceiling - floor) of the judge's cosines: ``gen`` between a generated face and
fresh renders of the same person under the same prompt, ``ceiling`` between two fresh renders of the same person,
``floor`` between different people. Faces that are not found count as the floor. Caption accuracy counts what the prompt
states. Nothing here is on the way of learning: people, seeds and poses were never used in training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from celebctl.evaluation.image_metrics import statements_met
from celebctl.evaluation.prompts import WORLD_PROMPTS
from celebctl.evaluation.references import stated_scene, to_images
from celebctl.evaluation.runner import ModelGenerator
from celebctl.evaluation.scorers import ImageScores, WorldScorer
from celebctl.learning.config import PRESETS, LearnConfig
from celebctl.learning.prepared import prepare
from celebctl.learning.sampling import People, rows_of
from celebctl.learning.subject import analyse_photo
from celebctl.learning.trainer import learn_people
from celebctl_models.checkpoints.diffusion import DiffusionParts, load_parts
from celebctl_models.faces.analysis import InsightFaceAnalyser
from celebctl_models.mini.names import name_book
from celebctl_models.mini.world import PromptFacts, draw_portrait, fresh_renders, person
from celebctl_runtime.errors import NotFoundError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Pixels = NDArray[np.uint8]

#: The prompts of `celebctl eval` for one person, style apart, and for two learned people; seeds follow their order.
SINGLE: tuple[tuple[str, PromptFacts], ...] = tuple(
    (prompt.text, stated_scene(prompt)) for prompt in WORLD_PROMPTS if prompt.people == 1 and prompt.category != "style"
)
PAIRS: tuple[tuple[str, PromptFacts], ...] = tuple(
    (prompt.text, stated_scene(prompt)) for prompt in WORLD_PROMPTS if prompt.category == "pair"
)
ORDINARY = asdict(PromptFacts())
HEAD = """\
| who | likeness (of ceiling) | of celebrities' | caption | both sides right | likeness in pairs | face found |
|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Cohort:
    """The people of one measurement: prompt names (or ``<x>`` placeholders), their true looks, their learned rows."""

    names: list[str]
    z: Floats  # (n, F)
    rows: People


@dataclass(frozen=True)
class Score:
    """likeness: mean ratio and its 95 % interval over people; caption: share of stated things seen; detected: faces
    found; sides: both people of a pair nearer to their own looks than to the other's; pair_likeness: as likeness, in
    pairs."""

    likeness: float
    interval: float
    caption: float
    detected: float
    sides: float
    pair_likeness: float
    by_prompt: dict[str, tuple[float, float]]


def folder(found: Path | None, what: str) -> Path:
    """The folder a model brings for ``what``. Raises NotFoundError when it brings none."""
    if found is None:
        raise NotFoundError(f"the model brings no {what}", "likeness can be measured on --model mini")
    return found


def reference_scores(
    scorer: WorldScorer, z: Floats, wanted: PromptFacts, first_seed: int, partner: Floats | None = None
) -> list[ImageScores]:
    """Scores of fresh renders of people ``z`` (n, F), alone or with ``partner`` (n, F) on the right."""
    seeds = [first_seed + i for i in range(len(z))]
    rendered = fresh_renders(z, partner=partner, wanted=[wanted] * len(z), seeds=seeds)
    return scorer.score(to_images(rendered), faces=1 if partner is None else 2)


def in_batches(parts: DiffusionParts, prompts: list[str], seeds: list[int], rows: People) -> list[Pixels]:
    return ModelGenerator(parts, rows).generate(prompts, seeds)


def one(judged: ImageScores) -> Floats | None:
    return judged.features[0] if len(judged.features) else None


def mean_cosine(a: Sequence[Floats | None], b: Sequence[Floats | None], missing: float) -> Doubles:
    return np.array([missing if x is None or y is None else float(x @ y) for x, y in zip(a, b, strict=True)])


def stated(wanted: PromptFacts, two: bool, attributes: Mapping[str, str]) -> list[bool]:
    """For everything the prompt states (and how many people): is it what the picture shows?"""
    return statements_met({k: v for k, v in asdict(wanted).items() if v != ORDINARY[k]}, 2 if two else 1, attributes)


def singles(
    parts: DiffusionParts, scorer: WorldScorer, cohort: Cohort, seeds: int
) -> tuple[Doubles, dict[str, tuple[float, float]], float, float]:
    """Ratios (people, prompts), per-prompt (likeness, caption), caption accuracy and detection over all pictures."""
    n = len(cohort.names)
    ratios = np.zeros((n, len(SINGLE)))
    by_prompt: dict[str, tuple[float, float]] = {}
    captions: list[bool] = []
    found: list[bool] = []
    for p, (text, wanted) in enumerate(SINGLE):
        truth = [reference_scores(scorer, cohort.z, wanted, 10**6 * (r + 1) + 1000 * p) for r in range(2)]
        a, b = ([one(j) for j in side] for side in truth)
        floor = float(np.mean([mean_cosine(a, b[k:] + b[:k], 0.0).mean() for k in range(1, min(n, 8))]))
        ceiling = mean_cosine(a, b, floor)
        scores: list[Doubles] = []
        right: list[bool] = []
        prompts = [text.format(name) for name in cohort.names]
        for s in range(seeds):
            noise = [500 + 97 * s + 13 * p + 1009 * i for i in range(n)]
            judged = scorer.score(in_batches(parts, prompts, noise, cohort.rows))
            made = [one(j) for j in judged]
            scores.append((mean_cosine(made, a, floor) + mean_cosine(made, b, floor)) / 2)
            right += [ok for j in judged for ok in stated(wanted, False, j.attributes)]
            found += [m is not None for m in made]
        ratios[:, p] = (np.mean(scores, 0) - floor) / (ceiling.mean() - floor)
        by_prompt[text.format("X")] = (float(ratios[:, p].mean()), float(np.mean(right)))
        captions += right
    return ratios, by_prompt, float(np.mean(captions)), float(np.mean(found))


def pairs(parts: DiffusionParts, scorer: WorldScorer, cohort: Cohort, seeds: int) -> tuple[float, float, float]:
    """(both on the right side, likeness ratio, caption accuracy) over ring_partners of the cohort."""
    n = len(cohort.names)
    other = [(i + 1) % n for i in range(n)]
    right_side: list[bool] = []
    likeness: list[tuple[float, float, float]] = []  # (made, ceiling, floor)
    captions: list[bool] = []
    for p, (text, wanted) in enumerate(PAIRS):
        truth = [
            reference_scores(scorer, cohort.z, wanted, 77 * 10**6 * (r + 1) + 1000 * p, partner=cohort.z[other])
            for r in range(2)
        ]
        whole = [all(len(t[i].features) == 2 for t in truth) for i in range(n)]
        prompts = [text.format(cohort.names[i], cohort.names[other[i]]) for i in range(n)]
        for s in range(seeds):
            noise = [900 + 89 * s + 17 * p + 1013 * i for i in range(n)]
            for i, judged in enumerate(scorer.score(in_batches(parts, prompts, noise, cohort.rows), faces=2)):
                captions += stated(wanted, True, judged.attributes)
                if not whole[i]:
                    continue
                true_a, true_b = truth[0][i].features, truth[1][i].features
                ceiling, floor = (true_a * true_b).sum(1), float((true_a[0] @ true_b[1] + true_a[1] @ true_b[0]) / 2)
                if len(judged.features) < 2:
                    right_side.append(False)
                    likeness.append((floor, float(ceiling.mean()), floor))
                    continue
                cosine = judged.features @ ((true_a + true_b) / 2).T  # (made, true)
                right_side.append(bool(cosine[0, 0] > cosine[0, 1] and cosine[1, 1] > cosine[1, 0]))
                likeness.append((float((cosine[0, 0] + cosine[1, 1]) / 2), float(ceiling.mean()), floor))
    made, ceiling, floor = np.array(likeness).mean(0)
    return float(np.mean(right_side)), float((made - floor) / (ceiling - floor)), float(np.mean(captions))


def measure(parts: DiffusionParts, scorer: WorldScorer, cohort: Cohort, seeds: int) -> Score:
    ratios, by_prompt, caption, detected = singles(parts, scorer, cohort, seeds)
    sides, pair_likeness, pair_caption = pairs(parts, scorer, cohort, seeds)
    per_person = ratios.mean(1)
    interval = 1.96 * float(per_person.std(ddof=1)) / len(per_person) ** 0.5 if len(per_person) > 1 else 0.0
    share = len(PAIRS) / (len(SINGLE) + len(PAIRS))
    return Score(
        float(per_person.mean()),
        interval,
        (1 - share) * caption + share * pair_caption,
        detected,
        sides,
        pair_likeness,
        by_prompt,
    )


def celebrities(count: int, seed: int = 5) -> Cohort:
    book = name_book()
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(book.names))[:count]
    return Cohort([book.names[i] for i in chosen], book.celebrities()[chosen], {})


def learned(
    parts: DiffusionParts, config: LearnConfig, count: int, together: int, first: int = 1000
) -> tuple[Cohort, float]:
    """Learn ``count`` unseen people from one portrait each, ``together`` a call; returns them and seconds per call."""
    analyser = InsightFaceAnalyser(folder(parts.card.faces_dir, "face models"))
    model = prepare(parts, release=config.names == "release")
    seeds = [first + i for i in range(count)]
    rows: dict[str, tuple[torch.Tensor, ...]] = {}
    spent: list[float] = []
    for start in range(0, count, together):
        group = seeds[start : start + together]
        begun = time.monotonic()
        subjects = [analyse_photo(analyser, draw_portrait(s), f"p{s}") for s in group]
        people = learn_people(model, subjects, config, analyser)
        spent.append(time.monotonic() - begun)
        rows |= {p.name: rows_of(p) for p in people}
    return Cohort([f"<p{s}>" for s in seeds], np.stack([person(s) for s in seeds]), rows), float(np.mean(spent))


def row(name: str, score: Score, against: Score | None) -> str:
    share = "" if against is None else f"{score.likeness / against.likeness:.3f}"
    likeness = f"{score.likeness:.3f} ± {score.interval:.3f}"
    rest = (score.caption, score.sides, score.pair_likeness, score.detected)
    return f"| {name} | {likeness} | {share} | {' | '.join(f'{value:.3f}' for value in rest)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--together", type=int, default=8, help="people per learn call")
    parser.add_argument("--presets", nargs="*", default=["clean", "faithful"], choices=[*PRESETS])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="change LearnConfig fields of every preset"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    parts = load_parts(args.model)
    finder = InsightFaceAnalyser(folder(parts.card.faces_dir, "face models"))
    scorer = WorldScorer(folder(parts.card.scoring_dir, "judges"), finder)
    print(HEAD, flush=True)
    base = measure(parts, scorer, celebrities(args.people), args.seeds)
    print(row("the model's own celebrities", base, None), flush=True)
    figures: dict[str, Any] = {"celebrities": asdict(base)}
    for preset in args.presets:
        config = PRESETS[preset]
        for change in args.set:
            field, value = change.split("=", 1)
            config = replace(config, **{field: type(getattr(config, field))(value)})
        cohort, seconds = learned(parts, config, args.people, args.together)
        score = measure(parts, scorer, cohort, args.seeds)
        print(
            row(f"unseen people, {preset}", score, base) + f" learn {args.together} together: {seconds:.1f} s",
            flush=True,
        )
        figures[preset] = {**asdict(score), "learn_seconds": seconds, "config": asdict(config)}
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
