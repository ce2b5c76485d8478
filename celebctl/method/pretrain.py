"""The mapper before anybody is learned: fitted once per checkpoint on people whose token rows are known.

    python -m celebctl.method.pretrain --model mini --pairs pairs.safetensors --out mapper.safetensors

A pair is a name of two tokens and the recogniser's feature of that person's photo. Their rows on the celeb basis are
what the mapper should answer; a ridge fit over many such pairs is where `learn` begins.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityProblem
from celebctl_runtime.files import atomic_write

from .basis import CelebBasis, build_basis
from .config import CLEAN
from .mapper import CoefficientMapper
from .names import token_pairs
from .tensors import read_tensors

if TYPE_CHECKING:
    from celebctl_models.diffusion import DiffusionParts

Floats = NDArray[np.float32]


def rows_of_names(parts: DiffusionParts, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids (n, 2) of those names that are two tokens, and which names these are, (n,)."""
    pairs = token_pairs(parts.tokenizers[0], names)
    known = dict(zip(pairs.names, pairs.pairs, strict=True))
    kept = [i for i, name in enumerate(names) if name.lower() in known]
    return np.array([known[names[i].lower()] for i in kept]), np.array(kept)


def units_of(parts: DiffusionParts, basis: CelebBasis, ids: NDArray[np.int64]) -> Floats:
    """Coefficients (n, S) of token pairs (n, 2) over all text encoders, in celebrity standard deviations."""
    units: list[Floats] = []
    for encoder, spread in enumerate(basis.spread):
        table = parts.token_table(encoder).float().cpu().numpy()
        units.append((basis.project(table[ids], encoder) / np.maximum(spread, 1e-12)).reshape(len(ids), -1))
    return np.concatenate(units, axis=1)


def fit_mapper(parts: DiffusionParts, basis: CelebBasis, features: Floats, ids: NDArray[np.int64]) -> CoefficientMapper:
    """The ridge fit of features (n, 512) to the coefficients of token pairs (n, 2), not yet stretched."""
    mapper = CoefficientMapper(basis, replace(CLEAN, start_gain=1.0), torch.Generator().manual_seed(0))
    mapper.start_from(features, units_of(parts, basis, ids))
    return mapper


def save_mapper(mapper: CoefficientMapper, basis: CelebBasis, path: Path, *, rank: int) -> None:
    """``mapper.safetensors``: down (rank, 512), up (S, rank), bias (S,), float16, and the hash of their basis.

    A recogniser tells faces apart in fewer than 512 directions; those of ``rank`` that matter most are kept.
    """
    from safetensors.numpy import save

    weight = mapper.linear.weight.detach().double().numpy()
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    root = np.sqrt(s[:rank])
    tensors = {"down": root[:, None] * vt[:rank], "up": u[:, :rank] * root, "bias": mapper.linear.bias.detach().numpy()}
    halves = {name: np.ascontiguousarray(array.astype(np.float16)) for name, array in tensors.items()}
    atomic_write(path, save(halves, metadata={"basis": basis.hash}))


def load_mapper(path: Path, basis: CelebBasis) -> tuple[Floats, Floats]:
    """Weight (S, 512) and bias (S,) of a saved mapper. Raises IntegrityProblem: damaged, or of another basis."""
    try:
        tensors, metadata = read_tensors(path)
        down, up, bias = (tensors[name].astype(np.float32) for name in ("down", "up", "bias"))
    except (OSError, KeyError, ValueError) as error:
        raise IntegrityProblem(f"{path.name} cannot be read: {error}", "fetch the model again") from error
    if metadata.get("basis") != basis.hash:
        raise IntegrityProblem(f"{path.name} was made for another celeb basis", "python -m celebctl.method.pretrain")
    return up @ down, bias


def main() -> None:
    from celebctl_models.diffusion import load_parts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--pairs", type=Path, required=True, help="features (n, 512) and names, one a line")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=112)
    args = parser.parse_args()
    parts = load_parts(args.model)
    basis = build_basis(parts)
    tensors, metadata = read_tensors(args.pairs)
    ids, kept = rows_of_names(parts, metadata["names"].split("\n"))
    features = tensors["features"][kept].astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    mapper = fit_mapper(parts, basis, features, ids)
    save_mapper(mapper, basis, args.out, rank=args.rank)
    print(f"{len(ids)} pairs; written to {args.out} ({args.out.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
