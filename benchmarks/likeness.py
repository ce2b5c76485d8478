"""Likeness of generated images of mini: of its celebrities by name and of people learned from one photo.

    python -m benchmarks.likeness                          # the full table: 24 unseen people, 3 seeds
    python -m benchmarks.likeness --people 6 --seeds 1     # a quick check

The images are scored by networks that neither training nor learning uses. Every likeness is a ratio (generated - floor)
/ (ceiling - floor) of cosines between face features: ``generated`` between a generated face and reference renders of
the same person under the same prompt, ``ceiling`` between two reference renders of the same person, ``floor`` between
different people. An image without a face counts as the floor. Caption accuracy is the share of the prompt's statements
that the image meets. People, seeds and poses of this benchmark are not in the training data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from celebctl.evaluation.image_metrics import statements_met
from celebctl.evaluation.prompts import WORLD_PROMPTS, Prompt
from celebctl.evaluation.references import render_prompts
from celebctl.evaluation.runner import ModelGenerator
from celebctl.evaluation.scorers import ImageScores, WorldScorer
from celebctl.learning.config import PRESETS, LearnConfig
from celebctl.learning.prepared import prepare
from celebctl.learning.sampling import People, rows_of
from celebctl.learning.subject import analyse_photo
from celebctl.learning.trainer import learn_people
from celebctl_models.checkpoints.diffusion import DiffusionParts, load_parts
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.names import name_book
from celebctl_models.mini.world import draw_portrait, person
from celebctl_runtime.errors import NotFoundError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Pixels = NDArray[np.uint8]

#: The prompts of `celebctl eval` for one person (without styles) and for two. Seeds depend on their order.
SINGLE_PROMPTS = tuple(prompt for prompt in WORLD_PROMPTS if prompt.people == 1 and prompt.category != "style")
PAIR_PROMPTS = tuple(prompt for prompt in WORLD_PROMPTS if prompt.category == "pair")
TABLE_HEAD = """\
| people | likeness (of ceiling) | of celebrities' | caption | both sides right | likeness in pairs | face found |
|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Cohort:
    """People to measure.

    Attributes:
        names: Names in prompts, or ``<x>`` placeholders of learned people.
        z: Their factors in mini's world, (n, F).
        rows: Token embeddings of learned people by name.
    """

    names: list[str]
    z: Floats
    rows: People


@dataclass(frozen=True)
class Score:
    """Metrics of a cohort.

    Attributes:
        likeness: Mean ratio over people.
        interval: Half width of its 95 % interval.
        caption: Share of the prompts' statements that the images meet.
        detected: Share of images with a face.
        sides: Share of pair images in which each face is closer to the person on its side than to the other one.
        pair_likeness: Likeness in pair images.
        by_prompt: Likeness and caption accuracy of each prompt.
    """

    likeness: float
    interval: float
    caption: float
    detected: float
    sides: float
    pair_likeness: float
    by_prompt: dict[str, tuple[float, float]]


def require_folder(folder: Path | None, content: str) -> Path:
    """A folder of a model card. Raises NotFoundError when the model has none."""
    if folder is None:
        raise NotFoundError(f"the model has no {content}", "likeness can be measured on --model mini")
    return folder


def load_scorer(parts: DiffusionParts) -> WorldScorer:
    """The scoring networks of a model. Raises NotFoundError when it has none."""
    finder = OnnxFaceAnalyser(require_folder(parts.card.faces_dir, "face models"))
    return WorldScorer(require_folder(parts.card.scoring_dir, "scoring networks"), finder)


def reference_scores(
    scorer: WorldScorer, z: Floats, prompt: Prompt, first_seed: int, partner: Floats | None = None
) -> list[ImageScores]:
    """Scores of reference renders of people ``z`` (n, F), alone or with ``partner`` (n, F) on the right."""
    seeds = [first_seed + i for i in range(len(z))]
    images = render_prompts(z, [prompt] * len(z), seeds, partner)
    return scorer.score(images, faces=1 if partner is None else 2)


def generate_images(parts: DiffusionParts, prompts: list[str], seeds: list[int], rows: People) -> list[Pixels]:
    """Images (H, W, 3) uint8, one per prompt and seed. rows: token embeddings of learned people by name."""
    return ModelGenerator(parts, rows).generate(prompts, seeds)


def prompt_statements_met(prompt: Prompt, scores: ImageScores) -> list[bool]:
    """Whether the image shows the number of people, and each attribute that the prompt states."""
    return statements_met(prompt.states, prompt.people, scores.attributes)


def face_cosines(a: Sequence[Floats | None], b: Sequence[Floats | None], missing: float) -> Doubles:
    """Cosine of each pair of features; ``missing`` where one of them is None."""
    return np.array([missing if x is None or y is None else float(x @ y) for x, y in zip(a, b, strict=True)])


def measure_single(
    parts: DiffusionParts, scorer: WorldScorer, cohort: Cohort, seeds: int
) -> tuple[Doubles, dict[str, tuple[float, float]], float, float]:
    """Ratios (people, prompts), (likeness, caption accuracy) by prompt, caption accuracy and detection rate."""
    n = len(cohort.names)
    ratios = np.zeros((n, len(SINGLE_PROMPTS)))
    by_prompt: dict[str, tuple[float, float]] = {}
    all_met: list[bool] = []
    detected: list[bool] = []
    for p, prompt in enumerate(SINGLE_PROMPTS):
        references = [reference_scores(scorer, cohort.z, prompt, 10**6 * (r + 1) + 1000 * p) for r in range(2)]
        a, b = ([scores.first_face for scores in renders] for renders in references)
        floor = float(np.mean([face_cosines(a, b[k:] + b[:k], 0.0).mean() for k in range(1, min(n, 8))]))
        ceiling = face_cosines(a, b, floor)
        cosines: list[Doubles] = []
        met: list[bool] = []
        texts = [prompt.text.format(name) for name in cohort.names]
        for s in range(seeds):
            noise_seeds = [500 + 97 * s + 13 * p + 1009 * i for i in range(n)]
            scored = scorer.score(generate_images(parts, texts, noise_seeds, cohort.rows))
            faces = [scores.first_face for scores in scored]
            cosines.append((face_cosines(faces, a, floor) + face_cosines(faces, b, floor)) / 2)
            met += [ok for scores in scored for ok in prompt_statements_met(prompt, scores)]
            detected += [face is not None for face in faces]
        ratios[:, p] = (np.mean(cosines, 0) - floor) / (ceiling.mean() - floor)
        by_prompt[prompt.text.format("X")] = (float(ratios[:, p].mean()), float(np.mean(met)))
        all_met += met
    return ratios, by_prompt, float(np.mean(all_met)), float(np.mean(detected))


def measure_pairs(parts: DiffusionParts, scorer: WorldScorer, cohort: Cohort, seeds: int) -> tuple[float, float, float]:
    """(both on their sides, likeness ratio, caption accuracy) over pairs of neighbours in the cohort."""
    n = len(cohort.names)
    partners = [(i + 1) % n for i in range(n)]
    sides: list[bool] = []
    likeness: list[tuple[float, float, float]] = []  # (generated, ceiling, floor)
    met: list[bool] = []
    for p, prompt in enumerate(PAIR_PROMPTS):
        references = [
            reference_scores(scorer, cohort.z, prompt, 77 * 10**6 * (r + 1) + 1000 * p, partner=cohort.z[partners])
            for r in range(2)
        ]
        complete = [all(len(renders[i].features) == 2 for renders in references) for i in range(n)]
        texts = [prompt.text.format(cohort.names[i], cohort.names[partners[i]]) for i in range(n)]
        for s in range(seeds):
            noise_seeds = [900 + 89 * s + 17 * p + 1013 * i for i in range(n)]
            images = generate_images(parts, texts, noise_seeds, cohort.rows)
            for i, scores in enumerate(scorer.score(images, faces=2)):
                met += prompt_statements_met(prompt, scores)
                if not complete[i]:
                    continue
                a, b = references[0][i].features, references[1][i].features
                ceiling, floor = float((a * b).sum(1).mean()), float((a[0] @ b[1] + a[1] @ b[0]) / 2)
                if len(scores.features) < 2:
                    sides.append(False)
                    likeness.append((floor, ceiling, floor))
                    continue
                cosine = scores.features @ ((a + b) / 2).T  # (generated, reference)
                sides.append(bool(cosine[0, 0] > cosine[0, 1] and cosine[1, 1] > cosine[1, 0]))
                likeness.append((float((cosine[0, 0] + cosine[1, 1]) / 2), ceiling, floor))
    generated, ceiling, floor = np.array(likeness).mean(0)
    return float(np.mean(sides)), float((generated - floor) / (ceiling - floor)), float(np.mean(met))


def measure(parts: DiffusionParts, scorer: WorldScorer, cohort: Cohort, seeds: int) -> Score:
    """All metrics of a cohort. seeds: images per prompt and person."""
    ratios, by_prompt, caption, detected = measure_single(parts, scorer, cohort, seeds)
    sides, pair_likeness, pair_caption = measure_pairs(parts, scorer, cohort, seeds)
    per_person = ratios.mean(1)
    interval = 1.96 * float(per_person.std(ddof=1)) / len(per_person) ** 0.5 if len(per_person) > 1 else 0.0
    pair_weight = len(PAIR_PROMPTS) / (len(SINGLE_PROMPTS) + len(PAIR_PROMPTS))
    return Score(
        float(per_person.mean()),
        interval,
        (1 - pair_weight) * caption + pair_weight * pair_caption,
        detected,
        sides,
        pair_likeness,
        by_prompt,
    )


def celebrities(count: int, seed: int = 5) -> Cohort:
    """Random celebrities of mini, generated by name."""
    book = name_book()
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(book.names))[:count]
    return Cohort([book.names[i] for i in chosen], book.celebrities()[chosen], {})


def learn_unseen_people(
    parts: DiffusionParts, config: LearnConfig, count: int, people_per_call: int, first: int = 1000
) -> tuple[Cohort, float]:
    """Learn ``count`` unseen people from one portrait each; returns them and the mean seconds of a learning call."""
    analyser = OnnxFaceAnalyser(require_folder(parts.card.faces_dir, "face models"))
    model = prepare(parts, release=config.names == "release")
    seeds = [first + i for i in range(count)]
    rows: dict[str, tuple[torch.Tensor, ...]] = {}
    seconds: list[float] = []
    for start in range(0, count, people_per_call):
        begun = time.monotonic()
        group = seeds[start : start + people_per_call]
        subjects = [analyse_photo(analyser, draw_portrait(seed), f"p{seed}") for seed in group]
        people = learn_people(model, subjects, config, analyser)
        seconds.append(time.monotonic() - begun)
        rows |= {p.name: rows_of(p) for p in people}
    cohort = Cohort([f"<p{seed}>" for seed in seeds], np.stack([person(seed) for seed in seeds]), rows)
    return cohort, float(np.mean(seconds))


def table_row(name: str, score: Score, celebrities: Score | None) -> str:
    """A row of the table. celebrities: the score that the likeness is compared with."""
    ratio = "" if celebrities is None else f"{score.likeness / celebrities.likeness:.3f}"
    likeness = f"{score.likeness:.3f} ± {score.interval:.3f}"
    rest = (score.caption, score.sides, score.pair_likeness, score.detected)
    return f"| {name} | {likeness} | {ratio} | {' | '.join(f'{value:.3f}' for value in rest)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3, help="images per prompt and person")
    parser.add_argument("--people-per-call", type=int, default=8, help="people learned in one call")
    parser.add_argument("--presets", nargs="*", default=["clean", "faithful"], choices=[*PRESETS])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="change LearnConfig fields of every preset"
    )
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    parts = load_parts(args.model)
    scorer = load_scorer(parts)
    print(TABLE_HEAD, flush=True)
    base = measure(parts, scorer, celebrities(args.people), args.seeds)
    print(table_row("the model's own celebrities", base, None), flush=True)
    results: dict[str, Any] = {"celebrities": asdict(base)}
    for preset in args.presets:
        config = PRESETS[preset]
        for change in args.set:
            field, value = change.split("=", 1)
            config = replace(config, **{field: type(getattr(config, field))(value)})
        cohort, seconds = learn_unseen_people(parts, config, args.people, args.people_per_call)
        score = measure(parts, scorer, cohort, args.seeds)
        row = table_row(f"unseen people, {preset}", score, base)
        print(f"{row} learning {args.people_per_call} people: {seconds:.1f} s", flush=True)
        results[preset] = {**asdict(score), "learn_seconds": seconds, "config": asdict(config)}
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
