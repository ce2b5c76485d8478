"""How clearly pictures show what was asked for: prompt fidelity where all methods are right nearly always.

    python benchmarks/baselines.py --people 40 --seeds 3 --work DIR
    python benchmarks/clarity.py --work DIR

Looks once more at the pictures that a comparison kept (as WebP, all methods alike). Of everything a prompt states, the
number of people included, the attribute reader's logit of the right word minus that of the best other word: above 0 is
right, as `celebctl eval` counts it, and the more the clearer; the continuous reading that CLIP's cosine is for
photographs. Means with 95 % intervals over couples, and celebctl's lead person by person. What an earlier run found of
methods whose pictures are not in --work stays, as in baselines.py.
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

sys.path.insert(0, str(Path(__file__).parent))

from baselines.comparing import verdict
from baselines.methods import METHODS

from celebctl.evaluation.estimates import Estimate, by_couples, estimate
from celebctl.evaluation.prompts import WORLD, Prompt
from celebctl.evaluation.record import Record
from celebctl.evaluation.report import markdown
from celebctl.method.scoring import Jury
from celebctl_models.diffusion import load_parts
from celebctl_models.faces import InsightFaceAnalyser
from celebctl_runtime.files import atomic_write

RESULT = Path(__file__).parent / "results" / "clarity.json"
OURS, CELEBRITIES = "clean", "celebrities"


def margin(logits: np.ndarray, right: int) -> float:
    """Logit of the right word minus that of the best other one."""
    return float(logits[right] - np.delete(logits, right).max())


def clarity(jury: Jury, record: Record, prompts: Sequence[Prompt] = WORLD) -> float:
    """The mean margin over a person's pictures; in each picture over all that is stated."""
    pictures = [np.asarray(Image.open(io.BytesIO(shot.picture)).convert("RGB")) for shot in record.made]
    found: list[float] = []
    for shot, scores in zip(record.made, jury.scores(pictures), strict=True):
        prompt = prompts[shot.prompt]
        stated = {"two": "two" if prompt.people == 2 else "one", **prompt.states}
        margins = [margin(scores[name], jury.vocabulary[name].index(word)) for name, word in stated.items()]
        found.append(float(np.mean(margins)))
    return float(np.mean(found))


def people_of(jury: Jury, folder: Path) -> dict[str, float]:
    """Everybody whose record lies in a method's folder of a comparison."""
    records = [Record.load(path) for path in sorted(folder.rglob("*.record"))]
    return {record.name: clarity(jury, record) for record in records if record is not None}


def earlier(file: Path, model: str) -> dict[str, dict[str, float]]:
    """Everybody's clarity under each method in an earlier result of the same model."""
    try:
        document: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return {name: dict(one["people"]) for name, one in document["methods"].items() if document["model"] == model}


def lead(ours: dict[str, float], theirs: dict[str, float]) -> Estimate | None:
    """Over the couples whom both learned."""
    return estimate(by_couples(ours[name] - theirs[name] for name in ours if name in theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--work", type=Path, required=True, help="where baselines.py kept its pictures")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    parts = load_parts(args.model)
    if parts.card.scoring_dir is None or parts.card.faces_dir is None:
        parser.error(f"{args.model} brings no reader of attributes")
    jury = Jury(parts.card.scoring_dir, InsightFaceAnalyser(parts.card.faces_dir))
    known = earlier(args.out, args.model)
    here = {name for name in (*METHODS, CELEBRITIES) if (args.work / name).is_dir()}
    names = [name for name in (*METHODS, CELEBRITIES) if name in here or name in known]
    if OURS not in here:
        parser.error(f"{args.work} holds no pictures of {OURS}: run benchmarks/baselines.py with --work {args.work}")
    found = {name: people_of(jury, args.work / name) if name in here else known[name] for name in names}
    for name in [name for name in names if name != CELEBRITIES and found[name].keys() != found[OURS].keys()]:
        sys.stderr.write(f"{name} is left out: it has {len(found.pop(name))} people, and not those of {OURS}\n")
    methods: dict[str, Any] = {}
    cells: list[list[str]] = []
    for name, people in found.items():
        title = METHODS[name].title if name in METHODS else "the model's own celebrities"
        one = estimate(by_couples(people.values()))
        ahead = lead(found[OURS], people) if name not in (OURS, CELEBRITIES) else None
        methods[name] = {"title": title, "people": {who: round(value, 4) for who, value in people.items()}}
        for key, value in (("clarity", one), ("lead of clean", ahead)):
            if value is not None:
                methods[name][key] = {"mean": value.mean, "half": value.half, "couples": value.count}
        cells.append([title, str(one), verdict(ahead)])
    print("\n".join(markdown(["who", "clarity", "clean's lead"], cells)))
    document = {"model": args.model, "unit": "logits", "methods": methods}
    atomic_write(args.out, (json.dumps(document, indent=1) + "\n").encode())
    print(args.out)


if __name__ == "__main__":
    main()
