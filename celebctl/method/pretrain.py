"""The mapper before anybody is learned: fitted once per checkpoint on people whose token rows are known.

    python -m celebctl.method.pretrain --model mini --pairs pairs.safetensors --out mapper.safetensors

A pair is a name of two tokens and the recogniser's feature of that person's photo. Their rows on the celeb basis are
what the mapper should answer; a ridge fit says so at once. But many rows mean nearly the same to the text encoder, so
the fit goes on where it counts: the text encoder must say of the mapper's rows what it says of the person's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from celebctl_models.diffusion import read_texts
from celebctl_runtime.errors import IntegrityProblem
from celebctl_runtime.files import atomic_write

from .basis import CelebBasis, build_basis
from .captions import Captions, encode_templates
from .config import CLEAN
from .mapper import CoefficientMapper
from .names import token_pairs
from .tensors import read_tensors

if TYPE_CHECKING:
    from celebctl_models.diffusion import DiffusionParts

Floats = NDArray[np.float32]
_HELD = 10  # every tenth pair is not trained on


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


def text_gap(parts: DiffusionParts, captions: tuple[Tensor, Tensor], made: list[Tensor], true: list[Tensor]) -> Tensor:
    """How differently the text encoders speak of two versions of the same people, relative to what they say, scalar.

    made, true: token rows (B, 2, D) per encoder. The two places of the person and the rest of the caption weigh alike.
    """
    ids, positions = captions
    said, _ = read_texts(parts, ids, made, positions)
    with torch.no_grad():
        meant, _ = read_texts(parts, ids, true, positions)
        unit = (meant - meant.mean(0)).square().mean().clamp_min(1e-12)
    apart = (said - meant).square().mean(-1)  # (B, 77)
    after = torch.arange(ids.shape[1], device=ids.device)[None] > positions[:, -1:]
    person = apart.gather(1, positions).mean()
    return (person + (apart * after).sum() / after.sum()) / (2 * unit)


def pretrain(
    parts: DiffusionParts, basis: CelebBasis, features: Floats, ids: NDArray[np.int64], *, steps: int = 600,
    batch: int = 64, rate: float = 1e-3, seed: int = 0, on_step: Callable[[int, float], None] = lambda step, gap: None,
) -> CoefficientMapper:  # fmt: skip
    """A mapper fitted to features (n, 512) and token pairs (n, 2). ``on_step`` hears step and gap on held-out pairs."""
    from dataclasses import replace

    config = replace(CLEAN, start_gain=1.0)
    generator = torch.Generator().manual_seed(seed)
    mapper = CoefficientMapper(basis, config, generator)
    held = np.arange(len(ids)) % _HELD == 0
    mapper.start_from(features[~held], units_of(parts, basis, ids[~held]))
    captions = encode_templates(parts.tokenizers[0], parts.max_length, config.captions)
    seen, asked = torch.as_tensor(features), torch.as_tensor(ids)
    optimiser = torch.optim.AdamW(mapper.parameters(), lr=rate, weight_decay=1e-2)
    train, test = (np.flatnonzero(chosen) for chosen in (~held, held))
    for step in range(steps + 1):
        if step % max(1, steps // 10) == 0:
            with torch.no_grad():
                some = torch.as_tensor(test[:256])
                on_step(step, float(_gap(parts, basis, mapper, seen[some], asked[some], captions, seed)))
        if step == steps:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate * (1.0 - step / steps)
        chosen = torch.as_tensor(train[torch.randint(len(train), (batch,), generator=generator).numpy()])
        loss = _gap(parts, basis, mapper, seen[chosen], asked[chosen], captions, seed + 1 + step)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
    return mapper


def _gap(
    parts: DiffusionParts, basis: CelebBasis, mapper: CoefficientMapper, features: Tensor, ids: Tensor,
    captions: Captions, seed: int,
) -> Tensor:  # fmt: skip
    coefficients = mapper.split(mapper(features))
    made = [
        torch.as_tensor(mean) + torch.einsum("pjk,jkd->pjd", given, torch.as_tensor(components))
        for given, mean, components in zip(coefficients, basis.mean, basis.components, strict=True)
    ]
    true = [parts.token_table(encoder)[ids] for encoder in range(len(made))]
    drawn = captions.draw(len(ids), torch.Generator().manual_seed(seed))
    return text_gap(parts, drawn, made, true)


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
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rank", type=int, default=112)
    args = parser.parse_args()
    parts = load_parts(args.model)
    basis = build_basis(parts)
    tensors, metadata = read_tensors(args.pairs)
    ids, kept = rows_of_names(parts, metadata["names"].split("\n"))
    features = tensors["features"][kept].astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    mapper = pretrain(
        parts, basis, features, ids, steps=args.steps,
        on_step=lambda step, gap: print(f"step {step}: gap on held-out people {gap:.4f}", flush=True),
    )  # fmt: skip
    save_mapper(mapper, basis, args.out, rank=args.rank)
    print(f"{len(ids)} pairs; written to {args.out} ({args.out.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
