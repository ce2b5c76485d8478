"""Clarity: prompt fidelity where all methods are right nearly always.

    python -m benchmarks.baselines --people 40 --seeds 3 --work DIR
    python -m benchmarks.clarity --work DIR

The attribute reader's logit margin between the stated word and the best other word, averaged over all statements of a
prompt, the number of people included, on the images that a comparison kept (WebP, all methods alike). Above 0 the
statement counts as met in `celebctl eval`; larger is clearer. Means with 95 % intervals over pairs of people, and
celebctl's lead person by person. The last row has reference images of the same people under the same prompts: what a
perfect method would generate; the last column is how far such a method would be ahead. Results of an earlier run for
methods whose images are not in --work are kept, as in benchmarks.baselines.
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

from benchmarks.baselines.comparing import pair_partners, verdict
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
from celebctl_models.faces.analysis import InsightFaceAnalyser
from celebctl_runtime.files import atomic_write

RESULT = Path(__file__).parent / "results" / "clarity.json"
OURS, CELEBRITIES, TRUE = "clean", "celebrities", "true"
TITLES = {CELEBRITIES: "the model's own celebrities", TRUE: "reference images of the same people"}
_REFERENCES = 2  # of each prompt


def margin(logits: np.ndarray, right: int) -> float:
    """Logit of the right word minus that of the best other one."""
    return float(logits[right] - np.delete(logits, right).max())


def clarity(scorer: WorldScorer, record: SubjectRecord, prompts: Sequence[Prompt] = WORLD_PROMPTS) -> float:
    """Mean margin over a person's images; in each image over all statements of the prompt."""
    images = [np.asarray(Image.open(io.BytesIO(sample.thumbnail)).convert("RGB")) for sample in record.samples]
    found: list[float] = []
    for sample, scores in zip(record.samples, scorer.attribute_logits(images), strict=True):
        prompt = prompts[sample.prompt]
        stated = {"two": "two" if prompt.people == 2 else "one", **prompt.states}
        margins = [margin(scores[name], scorer.vocabulary[name].index(word)) for name, word in stated.items()]
        found.append(float(np.mean(margins)))
    return float(np.mean(found))


def people_of(scorer: WorldScorer, folder: Path) -> dict[str, float]:
    """Clarity of each person with a record in a method's folder of a comparison."""
    records = [SubjectRecord.load(path) for path in sorted(folder.rglob("*.record"))]
    return {record.name: clarity(scorer, record) for record in records if record is not None}


def reference_people(scorer: WorldScorer, folder: Path) -> dict[str, float]:
    """The people of a comparison in reference images of the same prompts, stored like samples (WebP)."""
    seeds: list[int] = json.loads((folder / SETTINGS_FILE).read_text())["people"]
    cohort = unseen_people_cohort(scorer, seeds, pair_partners(len(seeds)), TITLES[TRUE])
    assert isinstance(cohort.reference, WorldReference)
    empty = ImageScores(np.zeros((0, 1), np.float32), np.zeros((0, 3), np.float32))
    found: dict[str, float] = {}
    for i, subject in enumerate(cohort.subjects):
        samples = [
            Sample(number, index, empty, thumbnail(picture))
            for index in range(_REFERENCES)
            for number, picture in enumerate(cohort.reference.images(i, WORLD_PROMPTS, index))
        ]
        found[subject.name] = clarity(scorer, SubjectRecord(subject.name, tuple(samples), ()))
    return found


def earlier(file: Path, model: str, weights: str) -> dict[str, dict[str, float]]:
    """Clarity by method and person in an earlier result of the same model and weights."""
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
        parser.error(f"{args.model} brings no reader of attributes")
    scorer = WorldScorer(parts.card.scoring_dir, InsightFaceAnalyser(parts.card.faces_dir))
    known = earlier(args.out, args.model, parts.weights_digest)
    here = {name for name in (*METHODS, CELEBRITIES) if (args.work / name).is_dir()}
    names = [name for name in (*METHODS, CELEBRITIES) if name in here or name in known]
    if OURS not in here:
        parser.error(f"{args.work} holds no pictures of {OURS}: run benchmarks/baselines.py with --work {args.work}")
    found = {name: people_of(scorer, args.work / name) if name in here else known[name] for name in names}
    for name in [name for name in names if name != CELEBRITIES and found[name].keys() != found[OURS].keys()]:
        sys.stderr.write(f"{name} is left out: it has {len(found.pop(name))} people, and not those of {OURS}\n")
    found[TRUE] = reference_people(scorer, args.work / OURS)
    methods: dict[str, Any] = {}
    cells: list[list[str]] = []
    for name, people in found.items():
        title = METHODS[name].title if name in METHODS else TITLES[name]
        one = estimate(pair_means(people.values()))
        ahead = lead(found[OURS], people) if name not in (OURS, CELEBRITIES) else None
        faultless = lead(found[TRUE], people) if name not in (TRUE, CELEBRITIES) else None
        methods[name] = {"title": title, "people": {who: round(value, 4) for who, value in people.items()}}
        for key, value in (("clarity", one), ("lead of clean", ahead), ("lead of true pictures", faultless)):
            if value is not None:
                methods[name][key] = {"mean": value.mean, "half": value.half_width, "couples": value.count}
        cells.append([title, str(one), verdict(ahead), verdict(faultless)])
    print("\n".join(markdown(["who", "clarity", "clean's lead", "lead of true pictures"], cells)))
    document = {"model": args.model, "weights": parts.weights_digest, "unit": "logits", "methods": methods}
    atomic_write(args.out, (json.dumps(document, indent=1) + "\n").encode())
    print(args.out)


if __name__ == "__main__":
    main()
