"""Stage 8: what the recogniser makes of photographs of people whose names the text encoder knows.

Two portraits of every celebrity and one of many ordinary people, whose names recombine those of celebrities, found and
embedded through the same detector and loader that serve anybody's photo. From these pairs of name and feature the
mapper of `learn` gets its start (celebctl.method.pretrain); they stay in the work folder.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from celebctl_models.faces import InsightFaceAnalyser
from celebctl_models.mini.names import NameBook
from celebctl_models.mini.world import portrait_of

from .workshop import Workshop

SEED = 900_000_000
ORDINARY, SIZE, PART = 2500, 160, 250
PAIRS = "pairs.safetensors"


def named_people(book: NameBook, ordinary: int) -> tuple[list[str], NDArray[np.float32]]:
    """Names, and looks ``z`` (n, F): every celebrity twice, then ordinary people."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    mixed = np.stack([rng.integers(len(words), size=ordinary) for words in (book.first_names, book.last_names)], 1)
    called = [f"{book.first_names[first]} {book.last_names[last]}" for first, last in mixed]
    looks = [book.celebrities(), book.celebrities(), book.ordinary(mixed)]
    return [*book.names, *book.names, *called], np.concatenate(looks)


def photographed(folder: Path, z: NDArray[np.float32], first: int) -> list[NDArray[np.float32] | None]:
    """Features (512,) of portraits of people ``z`` (n, F); None where not exactly one face is found."""
    import torch

    torch.set_num_threads(1)
    analyser = InsightFaceAnalyser(folder)
    found = [analyser.analyse(portrait_of(looks, SEED + first + i, SIZE)) for i, looks in enumerate(z)]
    return [faces[0].feature if len(faces) == 1 else None for faces in found]


def measure(shop: Workshop, faces: Path, book: NameBook, ordinary: int = ORDINARY) -> None:
    """``pairs.safetensors`` in the work folder: features (n, 512) float16, and the names, one a line."""
    from safetensors.numpy import save_file

    names, z = named_people(book, ordinary)
    starts = range(0, len(names), PART)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = pool.map(photographed, [faces] * len(starts), [z[s : s + PART] for s in starts], starts)
        features = [feature for part in jobs for feature in part]
    seen = [i for i, feature in enumerate(features) if feature is not None]
    rows = np.stack([features[i] for i in seen]).astype(np.float16)  # pyright: ignore
    save_file({"features": rows}, shop.path(PAIRS), {"names": "\n".join(names[i] for i in seen)})
    shop.say(f"{len(seen)} of {len(names)} portraits of named people have a face")
