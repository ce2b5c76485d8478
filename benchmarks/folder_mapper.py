"""What a mapper is worth that was trained on nothing but a folder of photos, beside the one mini was shipped with.

    python -m benchmarks.folder_mapper --work out/folder-mapper    # 1,200 strangers, about half an hour
    python -m benchmarks.folder_mapper --work out/quick --photos 64 --steps 30 --people 4 --instant-only

Portraits of strangers of mini's world are put into a folder; from there on nothing of the world is used: it is what
`celebctl basis train FOLDER` does for any checkpoint. Then people that nobody has seen are learned from one portrait
each, beginning with no mapper (the average celebrity), with the folder's and with the shipped one (which was told how
its people look), without any step (`learn --instant`) and with the preset's. Likeness and captions as in likeness.py.
Photos, encoded views and checkpoints stay in --work, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from celebctl.evaluation.scorers import WorldScorer
from benchmarks.likeness import folder, learned, singles

from celebctl.basis.basis import CelebBasis, build_basis
from celebctl.learning.config import PRESETS, LearnConfig
from celebctl.learning.denoising import DenoisingLoss
from celebctl.mapper_training.photo_dataset import FaceDatasetBuilder, encoder_of, list_photos
from celebctl.mapper_training.pretraining import save_mapper
from celebctl.mapper_training.trainer import MapperTrainingConfig, MapperTrainer, TrainStep
from celebctl_models.checkpoints.diffusion import DiffusionParts, load_parts
from celebctl_models.faces.analysis import InsightFaceAnalyser
from celebctl_models.mini.world import draw_portrait
from celebctl_runtime.files import atomic_write

RESULT = Path(__file__).parent / "results" / "folder-mapper.json"
FIRST = 20_000  # seeds of the people in the folder; those scored are 1000 and following
HEAD = "| begins with | steps | likeness (of ceiling) | caption |\n|---|---|---|---|"


@dataclass(frozen=True)
class Row:
    """likeness: mean ratio and its 95 % interval over people. seconds: of one call of learning, ``together`` people."""

    begins_with: str
    steps: int
    likeness: float
    interval: float
    caption: float
    seconds: float

    def __str__(self) -> str:
        return f"| {self.begins_with} | {self.steps} | {self.likeness:.3f} ± {self.interval:.3f} | {self.caption:.3f} |"


def render(place: Path, count: int) -> Path:
    """A folder with portraits of ``count`` strangers."""
    place.mkdir(parents=True, exist_ok=True)
    for seed in range(FIRST, FIRST + count):
        path = place / f"{seed}.png"
        if not path.is_file():
            atomic_write(path, draw_portrait(seed).save)
            tell(f"drawing portraits {seed - FIRST + 1}/{count}")
    return place


def trained(
    parts: DiffusionParts, basis: CelebBasis, photos: Path, config: MapperTrainingConfig, work: Path
) -> tuple[Path, dict[str, Any]]:
    """Train on the folder, without the model's own mapper; returns the file and what there is to say."""
    faces = folder(parts.card.faces_dir, "face models")
    finder = InsightFaceAnalyser(faces)
    gathering = FaceDatasetBuilder(
        finder, encoder_of(parts, config.seed), work / "views", parts.table_hash, smallest=finder.settings.min_face
    )
    begun = time.monotonic()
    gathering.recall()
    crowd = gathering.gather(list_photos(photos), on_photo=lambda n, of: tell(f"looking at photos {n}/{of}"))
    looked = time.monotonic() - begun
    school = MapperTrainer(DenoisingLoss(parts, PRESETS["clean"].captions), basis, crowd, config)
    checkpoint, losses = work / "school.checkpoint", list[tuple[int, float, float]]()
    if checkpoint.is_file():
        school.load(checkpoint)

    def told(now: TrainStep) -> None:
        tell(f"training {now.step}/{now.steps} loss {now.loss:.3f} held back {now.held} {now.eta:.0f} s left")
        if not losses or losses[-1][1] != now.held.own:
            losses.append((now.step, now.held.own, now.held.other))

    begun = time.monotonic()
    fitted = school.train(told, checkpoint)
    about = {
        "photos": len(list_photos(photos)), "left_out": {why: len(of) for why, of in gathering.left_out.items()},
        "taught": len(school.taught), "held_back": len(school.held), "start": school.start,
        "loss": asdict(school.reached), "held_back_over_steps": losses, "school": asdict(config),
        "seconds_looking": round(looked), "seconds_training": round(time.monotonic() - begun),
    }  # fmt: skip
    file = work / "mapper.safetensors"
    save_mapper(fitted, basis, file)
    return file, about


def score(parts: DiffusionParts, scorer: WorldScorer, begins_with: str, config: LearnConfig, people: int, seeds: int) -> Row:
    """Learn people and judge them."""
    tell(f"{begins_with}, {config.steps} steps")
    cohort, seconds = learned(parts, config, people, 8)
    ratios, _, caption, _ = singles(parts, scorer, cohort, seeds)
    each = ratios.mean(1)
    interval = 1.96 * float(each.std(ddof=1)) / len(each) ** 0.5 if len(each) > 1 else 0.0
    return Row(begins_with, config.steps, float(each.mean()), interval, caption, round(seconds, 2))


def tell(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()


def report(rows: Sequence[Row]) -> None:
    print("\n".join([HEAD, *map(str, rows)]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="photos, views, checkpoint and mapper")
    parser.add_argument("--photos", type=int, default=1200, help="strangers in the folder")
    parser.add_argument("--steps", type=int, default=MapperTrainingConfig().steps, help="of training the mapper")
    parser.add_argument("--people", type=int, default=16, help="unseen people to score")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--instant-only", action="store_true", help="leave out tuning")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    parts = load_parts("mini")
    bare = replace(parts, card=replace(parts.card, mapper_file=None))
    photos = render(args.work / "photos", args.photos)
    file, about = trained(bare, build_basis(parts), photos, MapperTrainingConfig(steps=args.steps), args.work)
    scorer = WorldScorer(
        folder(parts.card.scoring_dir, "judges"), InsightFaceAnalyser(folder(parts.card.faces_dir, "face models"))
    )
    begins = {"the average celebrity": bare, "the folder's mapper": None, "the shipped mapper": parts}
    rows: list[Row] = []
    for begins_with, model in begins.items():
        model = model or replace(parts, card=replace(parts.card, mapper_file=file))
        for steps in (0,) if args.instant_only else (0, PRESETS["clean"].steps):
            config = replace(PRESETS["clean"], steps=steps)
            rows.append(score(model, scorer, begins_with, config, args.people, args.seeds))
            print(rows[-1], flush=True)
    report(rows)
    machine = {"threads": torch.get_num_threads(), "people": args.people, "seeds": args.seeds}
    document = {"about": about, "settings": machine, "rows": [asdict(row) for row in rows]}
    atomic_write(args.out, (json.dumps(document, indent=1) + "\n").encode())
    print(f"{args.out}, {file}")


if __name__ == "__main__":
    main()
