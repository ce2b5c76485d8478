"""Whether an animation shows the same person in every frame: likeness along strips of unseen people.

    python -m benchmarks.animation                 # 8 people, 4 strips of 9 frames: about 6 minutes on one core

People whom mini has never seen are learned from one portrait each and exported. Every strip goes from one prompt to
another under one noise (`celebctl animate`, once and linear), drawn by the runtime. Scored is the cosine between the
face of a frame and the portrait, by the recogniser that neither training nor learning uses: for the two key frames,
which are ordinary images, and for the frames between them. `other people` is the cosine between a key frame and the
portraits of the others. A frame without a face counts as 0. `pixel step` is the largest mean absolute difference (of
255) between neighbouring frames.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from celebctl import Library, Model, Pipeline
from celebctl.animation import Timing, animate
from celebctl.evaluation.intervals import estimate
from celebctl.evaluation.scorers import WorldScorer
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.world import draw_portrait
from celebctl_runtime.files import atomic_write
from celebctl_runtime.request import Request

RESULT = Path(__file__).parent / "results" / "animation.json"
STRIPS = (
    ("{}", "{} smiling"),
    ("{} smiling", "{} crying"),
    ("{} on the beach", "{} in the snow"),
    ("{} wearing a red hat", "{} wearing sunglasses"),
)
FIRST_SEED = 9000  # of the portraits; training and the other benchmarks use none from here


def learned_pipeline(library: Library, model: Model, names: list[str], portraits: list[Any]) -> Pipeline:
    """A bundle with the people."""
    subjects = [model.analyse(portrait, name=name) for name, portrait in zip(names, portraits, strict=True)]
    people = model.learn(subjects)
    for person in people:
        library.save(person)
    return Pipeline(model.export(library.root / "bundle", people), device="cpu", threads=1, library=library)


def strip_scores(pipe: Pipeline, scorer: WorldScorer, prompts: list[str], seed: int, frames: int) -> tuple[Any, float]:
    """Face features (frames, F), rows of zeros without a face; and the largest pixel step."""
    timing = Timing(frames, route="once", easing="linear")
    images = [np.asarray(one.image) for one in animate(pipe, Request("", seed=seed), prompts, timing).images]
    faces = [one.first_face for one in scorer.score(images)]
    size = next((len(face) for face in faces if face is not None), 1)
    steps = [np.abs(a.astype(int) - b).mean() for a, b in pairwise(images)]
    return np.stack([np.zeros(size) if face is None else face for face in faces]), float(max(steps))


def summary(cosines: Any) -> dict[str, float]:
    """Mean over people with the half width of its 95 % interval, and the minimum; ``cosines`` (people, frames)."""
    mean = estimate(list(cosines.mean(1)))
    assert mean is not None
    return {
        "mean": round(mean.mean, 4),
        "half_width": round(mean.half_width, 4),
        "minimum": round(float(cosines.min()), 4),
        "without_face": int((cosines == 0).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    seeds = [FIRST_SEED + i for i in range(args.people)]
    names, portraits = [f"p{seed}" for seed in seeds], [draw_portrait(seed, 256) for seed in seeds]
    strips: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        library = Library(Path(folder))
        model = Model.load("mini", library=library)
        card = model.parts.card
        assert card.scoring_dir is not None and card.faces_dir is not None
        scorer = WorldScorer(card.scoring_dir, OnnxFaceAnalyser(card.faces_dir))
        pipe = learned_pipeline(library, model, names, portraits)
        own = [scorer.embed_face(np.asarray(portrait)) for portrait in portraits]
        wanted = np.stack([face for face in own if face is not None])
        assert len(wanted) == len(names)
        for number, strip in enumerate(STRIPS):
            rows, steps = list[Any](), list[float]()
            for i, name in enumerate(names):
                prompts = [prompt.format(f"<{name}>") for prompt in strip]
                features, step = strip_scores(pipe, scorer, prompts, 100 * number + i, args.frames)
                rows.append(features @ wanted.T)
                steps.append(step)
            cosines: Any = np.stack(rows)  # (people, frames, portraits)
            own_face = cosines[np.arange(len(names)), :, np.arange(len(names))]
            keys, between = own_face[:, [0, -1]], own_face[:, 1:-1]
            others = cosines[:, [0, -1]].sum((1, 2)) - keys.sum(1)
            strips[" -> ".join(prompt.format("P") for prompt in strip)] = {
                "key frames": summary(keys),
                "frames between": summary(between),
                "other people": round(float(others.mean() / (2 * (len(names) - 1))), 4),
                "mean by frame": [round(float(value), 4) for value in own_face.mean(0)],
                "largest pixel step": round(float(np.mean(steps)), 2),
            }
            print(json.dumps({list(strips)[-1]: list(strips.values())[-1]}), flush=True)
    document = {"people": args.people, "frames": args.frames, "unit": "cosine to the portrait", "strips": strips}
    atomic_write(args.out, (json.dumps(document, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
