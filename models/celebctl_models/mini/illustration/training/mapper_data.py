"""Stage 10: what the mapper learns from: portraits of unnamed people, their looks, and the head that reads those.

The portraits go through the detector and the recogniser of the assembled folder. The mapper itself is trained by
celebctl.mapper_training.pretraining on the file written here, as mini's.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save
from torch import Tensor

from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.illustration.captions import VOCABULARIES, Facts, caption
from celebctl_models.mini.illustration.scenes import PEOPLE, Scenes, draw, random_scenes
from celebctl_models.mini.training.mapper_dataset import FILE_NAME, attribute_targets
from celebctl_models.mini.training.trainer import TrainingContext

from .data import in_bytes, looks_of

#: Portraits, px of one, and people per job; seeds of portraits start at SEED.
COUNT, PORTRAIT_SIZE, PART, SEED = 16_000, 192, 250, 810_000_000
CAPTIONS = 6000


def portraits(factors: Tensor, seed: int) -> Scenes:
    """Plain scenes of people (N, F) who are alone, close or half length, as a photograph for ``learn`` shows them."""
    count = len(factors)
    generator = torch.Generator().manual_seed(seed)
    alone = torch.ones(count, dtype=torch.long)
    scenes = random_scenes(factors[:, None].expand(-1, PEOPLE, -1), alone, generator)
    plain = {name: torch.zeros_like(alone) for name in ("act", "item", "worn", "expression", "style", "view")}
    return replace(scenes, distance=torch.arange(count) % 2, **plain)


def photographed(folder: Path, factors: Tensor, seed: int) -> list[NDArray[np.float32] | None]:
    """Features (512,) of portraits of people ``factors`` (n, F); None where not exactly one face is found."""
    torch.set_num_threads(1)
    analyser = OnnxFaceAnalyser(folder)
    with torch.no_grad():
        pixels = in_bytes(draw(portraits(factors, seed), PORTRAIT_SIZE).image).permute(0, 2, 3, 1).numpy()
    found = [analyser.analyse(Image.fromarray(picture)) for picture in pixels]
    return [faces[0].feature if len(faces) == 1 else None for faces in found]


def captions(count: int, seed: int) -> list[str]:
    """Captions with ``{}`` for each of one or two people; each statement is made half of the time."""
    rng = np.random.Generator(np.random.PCG64(seed))
    made: list[str] = []
    for _ in range(count):
        who = ["QQQ", "QQQ"] if rng.random() < 0.3 else ["QQQ"]
        said = {name: words[int(rng.integers(len(words)))] for name, words in VOCABULARIES.items()}
        kept = {name: word for name, word in said.items() if rng.random() < 0.5 or "colour" in name}
        made.append(caption(who, Facts(**kept), rng).replace("QQQ", "{}"))
    return made


def write(run: TrainingContext, faces: Path, factors: Tensor, heads: dict[str, Tensor], workers: int) -> Path:
    """Write the data to the work folder.

    Args:
        run: Where to.
        faces: Folder of the trained detector and recogniser.
        factors: (N, F) people.
        heads: State of the heads of the text stage.
        workers: Processes.
    """
    jobs = torch.split(factors, PART)
    run.say(f"portraits of {len(factors)} unnamed people for the mapper")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        made = pool.map(photographed, [faces] * len(jobs), jobs, [SEED + i for i in range(len(jobs))])
        features = [feature for part in made for feature in part]
    kept = [i for i, feature in enumerate(features) if feature is not None]
    if not kept:
        raise ValueError(f"the detector of {faces} found no face in {len(factors)} portraits")
    rows = np.stack([feature for feature in features if feature is not None])
    metadata = {"captions": "\n".join(captions(CAPTIONS, run.seed + 5))}
    path = run.path(FILE_NAME)
    path.write_bytes(save(attribute_targets(rows, looks_of(factors[kept]), heads), metadata))
    run.say(f"{len(kept)} of {len(factors)} portraits have one face")
    return path
