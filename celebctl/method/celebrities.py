"""What the celebrities look like to the recogniser: the pairs the mapper starts from.

The model is asked to draw every name of its basis; the recogniser looks at the pictures. The mean feature of a name and
its coefficients on the basis are one pair of the fit. Done once per checkpoint and kept as a small file beside it:

    python -m celebctl.method.celebrities --model mini --out features.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import EnvironmentProblem, IntegrityProblem
from celebctl_runtime.files import atomic_write

from .basis import CelebBasis
from .names import read_names, token_pairs
from .pretrain import units_of
from .tensors import read_tensors

if TYPE_CHECKING:
    from celebctl_models.diffusion import DiffusionParts
    from celebctl_models.faces import FaceAnalyser

PROMPTS = ("a photo of {}", "a close-up photo of {}", "a portrait of {}")


@dataclass(frozen=True, eq=False)
class CelebrityFaces:
    """names: (n,), lower case; features: (n, 512) float32 of unit length, what the recogniser sees in their
    pictures."""

    names: tuple[str, ...]
    features: NDArray[np.float32]


def measure_celebrities(
    parts: DiffusionParts, analyser: FaceAnalyser, *, pictures: int = 3, batch: int = 32,
    on_name: Callable[[int, int], None] = lambda done, of: None,
) -> CelebrityFaces:  # fmt: skip
    """Draw each name ``pictures`` times and average the features; names without a single face are left out."""
    from PIL import Image

    from .sampling import draw

    names = token_pairs(parts.tokenizers[0], read_names(parts)).names
    jobs = [(name, k) for name in names for k in range(pictures)]
    sums: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        prompts = [PROMPTS[k % len(PROMPTS)].format(name) for name, k in part]
        for (name, _), pixels in zip(
            part, draw(parts, prompts, [7919 + start + i for i in range(len(part))], {}), strict=True
        ):
            faces = analyser.analyse(Image.fromarray(pixels))
            if faces:
                feature = max(faces, key=lambda face: face.size).feature
                sums[name] = sums.get(name, np.zeros_like(feature)) + feature
        on_name(min(start + batch, len(jobs)), len(jobs))
    kept = tuple(name for name in names if name in sums)
    features = np.stack([sums[name] / np.linalg.norm(sums[name]) for name in kept]).astype(np.float32)
    return CelebrityFaces(kept, features)


def save_faces(found: CelebrityFaces, table_hash: str, path: Path) -> None:
    from safetensors.numpy import save

    metadata = {"names": "\n".join(found.names), "table_hash": table_hash}
    atomic_write(path, save({"features": found.features.astype(np.float16)}, metadata=metadata))


def has_faces(parts: DiffusionParts) -> bool:
    """Whether the model brings the celebrities' faces along."""
    return parts.card.features_file is not None and parts.card.features_file.is_file()


def load_faces(parts: DiffusionParts) -> CelebrityFaces:
    """The pairs' faces that come with a model.

    Raises EnvironmentProblem when it brings none, IntegrityProblem when they were measured on another text encoder.
    """
    path = parts.card.features_file
    if path is None or not path.is_file():
        raise EnvironmentProblem(
            f"the model {parts.name} brings no celebrity faces to start from",
            "measure them once with python -m celebctl.method.celebrities, or learn with --preset faithful",
        )
    try:
        tensors, metadata = read_tensors(path)
        features = tensors["features"].astype(np.float32)
        names = tuple(metadata["names"].split("\n"))
    except (OSError, KeyError, ValueError) as error:
        raise IntegrityProblem(f"{path.name} cannot be read: {error}", "fetch the model again") from error
    if metadata.get("table_hash") != parts.table_hash:
        raise IntegrityProblem(f"{path.name} was measured on another text encoder", "measure the celebrities again")
    return CelebrityFaces(names, features / np.linalg.norm(features, axis=1, keepdims=True))


def pairs_for_fit(
    parts: DiffusionParts, basis: CelebBasis, found: CelebrityFaces
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features (n, 512) and coefficients (n, S) of all text encoders in standard deviations, name by name."""
    pairs = dict(zip(*_named_pairs(parts), strict=True))
    chosen = [i for i, name in enumerate(found.names) if name in pairs]
    if len(chosen) < 3:
        raise EnvironmentProblem(
            f"only {len(chosen)} of the basis's names have measured faces",
            f"python -m celebctl.method.celebrities --model {parts.path} --out features.safetensors",
        )
    ids = np.array([pairs[found.names[i]] for i in chosen])
    return found.features[chosen], units_of(parts, basis, ids)


def _named_pairs(parts: DiffusionParts) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    kept = token_pairs(parts.tokenizers[0], read_names(parts))
    return kept.names, kept.pairs


def main() -> None:
    from celebctl_models.diffusion import load_parts
    from celebctl_models.faces import InsightFaceAnalyser

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--faces", type=Path, help="folder of face models (default: the model's own)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=3, help="pictures per name")
    args = parser.parse_args()
    parts = load_parts(args.model)
    folder = args.faces or parts.card.faces_dir
    if folder is None:
        parser.error(f"{args.model} brings no face models; give --faces")
    found = measure_celebrities(
        parts,
        InsightFaceAnalyser(folder),
        pictures=args.pictures,
        on_name=lambda done, of: print(f"{done}/{of}", flush=True),
    )
    save_faces(found, parts.table_hash, args.out)
    print(f"{len(found.names)} names have a face; written to {args.out}")


if __name__ == "__main__":
    main()
