"""Clarity: prompt fidelity for methods whose prompt accuracy is near 1.

    python -m benchmarks.baselines --people 40 --seeds 3 --work DIR
    python -m benchmarks.clarity --work DIR

Clarity is the attribute reader's logit margin between the stated word and the best other word, averaged over all
statements of a prompt (the number of people is one of them). It is measured on the images that the comparison stored
(WebP for all methods). A statement with a margin above 0 counts as met in `celebctl eval`. The table has means with 95
% intervals over pairs of people, and the lead of `clean` person by person. The last row has reference images of the
same people under the same prompts, which a perfect method would generate; the last column is the lead of that method.
Results of a previous run are kept for methods without images in --work, as in benchmarks.baselines.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.baselines.comparison import describe_difference, pair_partners
from benchmarks.baselines.methods import METHODS
from celebctl.evaluation.cohorts import unseen_people_cohort
from celebctl.evaluation.intervals import Estimate, estimate, pair_means
from celebctl.evaluation.prompts import WORLD_PROMPTS, Prompt
from celebctl.evaluation.references import WorldReference
from celebctl.evaluation.report import markdown
from celebctl.evaluation.results import Sample, SubjectRecord
from celebctl.evaluation.runner import SETTINGS_FILE, thumbnail
from celebctl.evaluation.scorers import ImageScores, WorldScorer
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_runtime.files import atomic_write

RESULT = Path(__file__).parent / "results" / "clarity.json"
OURS, CELEBRITIES, REFERENCES = "clean", "celebrities", "references"
TITLES = {CELEBRITIES: "the model's own celebrities", REFERENCES: "reference images of the same people"}
_REFERENCES_PER_PROMPT = 2


def margin(logits: np.ndarray, stated: int) -> float:
    """Logit of the stated word minus that of the best other one."""
    return float(logits[stated] - np.delete(logits, stated).max())


def clarity(scorer: WorldScorer, record: SubjectRecord, prompts: Sequence[Prompt] = WORLD_PROMPTS) -> float:
    """Mean margin over a person's images; in each image over all statements of the prompt."""
    images = [np.asarray(Image.open(io.BytesIO(sample.thumbnail)).convert("RGB")) for sample in record.samples]
    values: list[float] = []
    for sample, scores in zip(record.samples, scorer.attribute_logits(images), strict=True):
        prompt = prompts[sample.prompt]
        stated = {"two": "two" if prompt.people == 2 else "one", **prompt.states}
        margins = [margin(scores[name], scorer.vocabulary[name].index(word)) for name, word in stated.items()]
        values.append(float(np.mean(margins)))
    return float(np.mean(values))


def clarity_by_person(scorer: WorldScorer, folder: Path) -> dict[str, float]:
    """Clarity of each person whose record is in a method's folder of the comparison."""
    records = [SubjectRecord.load(path) for path in sorted(folder.rglob("*.record"))]
    return {record.name: clarity(scorer, record) for record in records if record is not None}


def reference_clarity(scorer: WorldScorer, folder: Path) -> dict[str, float]:
    """Clarity of reference images of each person of the comparison, stored like samples (WebP)."""
    seeds: list[int] = json.loads((folder / SETTINGS_FILE).read_text())["people"]
    cohort = unseen_people_cohort(scorer, seeds, pair_partners(len(seeds)), TITLES[REFERENCES])
    assert isinstance(cohort.reference, WorldReference)
    empty = ImageScores(np.zeros((0, 1), np.float32), np.zeros((0, 3), np.float32))
    values: dict[str, float] = {}
    for i, subject in enumerate(cohort.subjects):
        samples = [
            Sample(number, index, empty, thumbnail(image))
            for index in range(_REFERENCES_PER_PROMPT)
            for number, image in enumerate(cohort.reference.images(i, WORLD_PROMPTS, index))
        ]
        values[subject.name] = clarity(scorer, SubjectRecord(subject.name, tuple(samples), ()))
    return values


def previous_results(file: Path, model: str, weights: str) -> dict[str, dict[str, float]]:
    """Clarity by method and person in a previous result of the same model and weights."""
    try:
        document: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if (document["model"], document.get("weights")) != (model, weights):
        return {}
    return {name: dict(one["people"]) for name, one in document["methods"].items()}


def lead(ours: dict[str, float], theirs: dict[str, float]) -> Estimate | None:
    """Mean difference over the pairs that both methods learned."""
    return estimate(pair_means(ours[name] - theirs[name] for name in ours if name in theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--work", type=Path, required=True, help="--work of benchmarks.baselines")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    parts = load_parts(args.model)
    if parts.card.scoring_dir is None or parts.card.faces_dir is None:
        parser.error(f"{args.model} has no attribute reader")
    scorer = WorldScorer(parts.card.scoring_dir, OnnxFaceAnalyser(parts.card.faces_dir))
    previous = previous_results(args.out, args.model, parts.weights_digest)
    available = {name for name in (*METHODS, CELEBRITIES) if (args.work / name).is_dir()}
    names = [name for name in (*METHODS, CELEBRITIES) if name in available or name in previous]
    if OURS not in available:
        parser.error(f"{args.work} has no images of {OURS}: run python -m benchmarks.baselines --work {args.work}")
    results = {
        name: clarity_by_person(scorer, args.work / name) if name in available else previous[name] for name in names
    }
    for name in [name for name in names if name != CELEBRITIES and results[name].keys() != results[OURS].keys()]:
        sys.stderr.write(f"{name} is omitted: its {len(results.pop(name))} people are not those of {OURS}\n")
    results[REFERENCES] = reference_clarity(scorer, args.work / OURS)
    methods: dict[str, Any] = {}
    cells: list[list[str]] = []
    for name, people in results.items():
        title = METHODS[name].title if name in METHODS else TITLES[name]
        mean = estimate(pair_means(people.values()))
        our_lead = lead(results[OURS], people) if name not in (OURS, CELEBRITIES) else None
        reference_lead = lead(results[REFERENCES], people) if name not in (REFERENCES, CELEBRITIES) else None
        methods[name] = {"title": title, "people": {person: round(value, 4) for person, value in people.items()}}
        for key, value in (("clarity", mean), ("lead of clean", our_lead), ("lead of references", reference_lead)):
            if value is not None:
                methods[name][key] = {"mean": value.mean, "half_width": value.half_width, "pairs": value.count}
        cells.append([title, str(mean), describe_difference(our_lead), describe_difference(reference_lead)])
    print("\n".join(markdown(["method", "clarity", "lead of clean", "lead of references"], cells)))
    document = {"model": args.model, "weights": parts.weights_digest, "unit": "logits", "methods": methods}
    atomic_write(args.out, (json.dumps(document, indent=1) + "\n").encode())
    print(args.out)


if __name__ == "__main__":
    main()
