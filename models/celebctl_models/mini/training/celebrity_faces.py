"""Stage 6: what the recogniser makes of photographs of the celebrities, for the mapper of `learn` to start from.

A portrait and two scenes of every celebrity, found and embedded through the same detector and loader that serve
anybody's photo; the mean feature is kept, as bytes (a unit vector of 512 entries loses under half a percent that way).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from celebctl_models.diffusion import load_parts
from celebctl_models.faces import InsightFaceAnalyser
from celebctl_models.mini.names import NameBook
from celebctl_models.mini.world import Wanted, fresh_renders, portrait_of
from celebctl_runtime.files import atomic_write

from .workshop import Workshop

SEED = 900_000_000
MOMENTS = [Wanted(), Wanted(expression="smiling")]


def measure(shop: Workshop, folder: Path, book: NameBook) -> dict[str, NDArray[np.float32]]:
    """Name -> mean unit feature (512,), for every celebrity with at least one detected face."""
    analyser = InsightFaceAnalyser(folder / "faces")
    people = book.celebrities()
    found: dict[str, NDArray[np.float32]] = {}
    for i, (name, z) in enumerate(zip(book.names, people, strict=True)):
        drawn = fresh_renders(z[None].repeat(2, 0), wanted=MOMENTS, seeds=[SEED + i] * 2)
        scenes = (drawn.image.permute(0, 2, 3, 1).numpy() * 255 + 0.5).astype(np.uint8)
        pictures = [portrait_of(z, SEED + i, 256), *(Image.fromarray(scene) for scene in scenes)]
        features = [faces[0].feature for faces in map(analyser.analyse, pictures) if len(faces) == 1]
        if features:
            mean = np.mean(features, axis=0)
            found[name] = mean / np.linalg.norm(mean)
        if i % 100 == 0:
            shop.say(f"celebrity faces: {i}/{len(people)}")
    return found


def save(found: dict[str, NDArray[np.float32]], folder: Path) -> None:
    """``features.safetensors``: features (n, 512) int8 (largest entry of a row = 127); names and table hash beside."""
    from safetensors.numpy import save as serialise

    rows: NDArray[np.float32] = np.stack(list(found.values()))
    peaks: NDArray[np.float32] = np.max(np.abs(rows), axis=1, keepdims=True)
    scaled: NDArray[np.int8] = np.rint(rows * (127.0 / peaks)).astype(np.int8)
    metadata = {"names": "\n".join(found), "table_hash": load_parts(folder).table_hash}
    atomic_write(folder / "features.safetensors", serialise({"features": scaled}, metadata=metadata))
