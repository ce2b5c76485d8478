"""Stage 9: the training data of the mapper: portraits of unnamed people, their attributes, and a head that reads those.

The portrait of each person that the latent reader was trained on goes through the detector and the recogniser. The
attributes of these people, and the linear head of stage 2 that reads attributes off the text encoder, are the targets
of celebctl.mapper_training.pretraining. Celebrities are not used.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.captions import caption
from celebctl_models.mini.figure import EXPRESSIONS, WORN
from celebctl_models.mini.scenes import ACTS, PLACES
from celebctl_models.mini.world import portrait_of

from .faces import Faces
from .text import appearance
from .trainer import TrainingContext

SEED, SIZE, PART = 800_000_000, 160, 500
CAPTIONS, PAIRS = 6000, 0.3  # captions, and the share of them that names two people
FILE_NAME = "mapper-data.safetensors"


def photographed(folder: Path, z: NDArray[np.float32], scenes: NDArray[np.int64]) -> list[NDArray[np.float32] | None]:
    """Features (512,) of portraits of people ``z`` (n, F); None where not exactly one face is found."""
    torch.set_num_threads(1)
    analyser = OnnxFaceAnalyser(folder)
    found = [analyser.analyse(portrait_of(looks, SEED + int(i), SIZE)) for looks, i in zip(z, scenes, strict=True)]
    return [faces[0].feature if len(faces) == 1 else None for faces in found]


def captions(count: int, seed: int) -> list[str]:
    """Captions of the world with ``{}`` for each person; each optional part appears half of the time."""
    rng = np.random.Generator(np.random.PCG64(seed))
    made: list[str] = []
    for _ in range(count):
        who = ["QQQ", "QQQ"] if rng.random() < PAIRS else ["QQQ"]
        facts = [int(rng.integers(len(v))) if rng.random() < 0.5 else 0 for v in (PLACES, ACTS, EXPRESSIONS, WORN)]
        made.append(caption(who, [*facts, 0], rng).replace("QQQ", "{}"))
    return made


def write(run: TrainingContext, faces: Path, seen: Faces, reader: dict[str, Tensor]) -> Path:
    """Write the data to the work folder; ``reader`` is the state of stage 2's heads."""
    scenes = np.flatnonzero(~seen.two)
    z = seen.z[seen.who[scenes, 0]]
    starts = range(0, len(scenes), PART)
    run.say(f"portraits of {len(scenes)} unnamed people for the mapper")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        parts = [slice(start, start + PART) for start in starts]
        jobs = pool.map(photographed, [faces] * len(parts), [z[p] for p in parts], [scenes[p] for p in parts])
        features = [feature for job in jobs for feature in job]
    kept = [i for i, feature in enumerate(features) if feature is not None]
    seen_rows = np.stack([feature for feature in features if feature is not None])
    metadata = {"captions": "\n".join(captions(CAPTIONS, run.seed + 5))}
    path = run.path(FILE_NAME)
    path.write_bytes(save(attribute_targets(seen_rows, appearance(z[kept]), reader), metadata))
    run.say(f"{len(kept)} of {len(scenes)} portraits have a face")
    return path


def attribute_targets(
    features: NDArray[np.float32], looks: Tensor, reader: dict[str, Tensor]
) -> dict[str, NDArray[Any]]:
    """Features (n, 512), ``looks`` of these people (n, A) in standard deviations, and the head that reads those."""
    mean, sd = looks.mean(0), looks.std(0)
    weight, bias = reader["person.weight"].float().cpu(), reader["person.bias"].float().cpu()
    return {
        "features": features.astype(np.float16), "looks": ((looks - mean) / sd).numpy().astype(np.float16),
        "weight": (weight / sd[:, None]).numpy().astype(np.float32),
        "bias": ((bias - mean) / sd).numpy().astype(np.float32),
    }  # fmt: skip
