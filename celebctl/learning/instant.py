"""People without training: what the model's mapper makes of a face, in arithmetic that needs no torch.

The same numbers as a `learn_people` of no steps, up to rounding, in a fraction of the time that opening a model takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl.basis.basis import CelebBasis, read_tensors
from celebctl.basis.celebrities import load_faces, pairs_for_fit
from celebctl.basis.ridge import ridge
from celebctl_models.faces.analysis import FEATURE_DIM
from celebctl_runtime.errors import IntegrityError
from celebctl_runtime.identity import Identity

from .config import CLEAN, LearnConfig
from .initialization import available_init

if TYPE_CHECKING:
    from celebctl_models.checkpoints.token_tables import TokenTables


Floats = NDArray[np.float32]

#: How far invented people are moved from the average stranger, on top of what chance gives them: the farther, the more
#: their pictures agree; beyond this no more (benchmarks/LOG.md).
STRETCH = 1.75


def instant_people(
    parts: TokenTables, basis: CelebBasis, features: Floats, names: Sequence[str], config: LearnConfig
) -> list[Identity]:
    """One person per feature (P, 512), unit rows: the start of learning is the result.

    Raises IntegrityError when what the model starts from is damaged or of another basis.
    """
    units = _units(parts, basis, features, config)
    units = config.bound * np.tanh(units / config.bound)
    spread = np.concatenate([part.ravel() for part in basis.spread])
    return [
        identity_of(name, (row * spread).astype(np.float32), parts, basis, provenance_of(parts, config, len(names), row))
        for name, row in zip(names, units, strict=True)
    ]


def _units(parts: TokenTables, basis: CelebBasis, features: Floats, config: LearnConfig) -> Floats:
    """Coefficients (P, S) in celebrity standard deviations, not yet bounded."""
    if available_init(parts, config) == "fitted" and parts.card.mapper_file is not None:
        return _answer(read_layers(parts.card.mapper_file, basis), features)
    seen, units = pairs_for_fit(parts, basis, load_faces(parts))
    weight, bias, _ = ridge(seen, units)
    middle = units.mean(0)
    return (config.init_gain * (features @ weight.T + bias - middle) + middle).astype(np.float32)


def read_layers(path: Path, basis: CelebBasis) -> dict[str, Floats]:
    """The layers of a fitted mapper's file. Raises IntegrityError: damaged, or of another basis."""
    try:
        tensors, metadata = read_tensors(path)
        layers = {name: array.astype(np.float32) for name, array in tensors.items()}
        code, hidden = len(layers["code_mean"]), len(layers["middle.bias"])
        wanted = {"down.weight": (code, FEATURE_DIM), "code_root": (code, code), "up.weight": (basis.size, hidden)}
        fits = all(layers[name].shape == shape for name, shape in wanted.items())
    except (OSError, KeyError, ValueError) as error:
        raise IntegrityError(f"{path.name} cannot be read: {error}", "fetch the model again") from error
    if metadata.get("basis") != basis.hash:
        raise IntegrityError(
            f"{path.name} was made for another celeb basis",
            "use the model's own names, or train one: celebctl basis train FOLDER --force",
        )
    if not fits:
        raise IntegrityError(f"{path.name} holds layers of another shape", "fetch the model again")
    return layers


def _answer(layers: Mapping[str, Floats], features: Floats) -> Floats:
    """`PretrainedMapper` on features (P, 512)."""
    return _told(layers, features @ layers["down.weight"].T + layers["down.bias"])


def _told(layers: Mapping[str, Floats], code: Floats) -> Floats:
    """What the mapper makes of codes (P, code)."""
    hidden = code @ layers["middle.weight"].T + layers["middle.bias"]
    bent = hidden * 0.5 * (1.0 + np.vectorize(math.erf)(hidden / math.sqrt(2.0)))  # GELU
    return (bent @ layers["up.weight"].T + layers["up.bias"]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class IdentityPrior:
    """People as a model's mapper met them, to draw new ones like them. layers: see `read_layers`."""

    layers: Mapping[str, Floats]
    bound: float

    @property
    def size(self) -> int:
        """How many numbers a draw takes."""
        return len(self.layers["code_mean"])

    def units(self, drawn: Floats) -> Floats:
        """Coefficients (S,) in celebrity standard deviations, out of normal numbers (size,)."""
        code = self.layers["code_mean"] + STRETCH * (self.layers["code_root"] @ drawn)
        return self.bound * np.tanh(_told(self.layers, code[None].astype(np.float32))[0] / self.bound)


def identity_prior(parts: TokenTables, basis: CelebBasis) -> IdentityPrior | None:
    """The people whom the model's mapper was taught with, as a distribution; None without a mapper for this basis."""
    file = parts.card.mapper_file
    if file is None or not file.is_file():
        return None
    try:
        layers = read_layers(file, basis)
    except IntegrityError:
        return None  # it goes with the model's own names, and others were chosen
    return IdentityPrior(layers, CLEAN.bound) if layers["code_root"].any() else None


def provenance_of(parts: TokenTables, config: LearnConfig, together: int, units: Floats) -> dict[str, str]:
    """What is kept of how a person was learned, as far as it is the same with and without training.

    units: coefficients (S,) in celebrity standard deviations.
    """
    from celebctl import __version__

    return {
        "celebctl": __version__, "model": parts.name, "preset": config.preset, "steps": str(config.steps),
        "views": str(config.views), "seed": str(config.seed), "learned_together": str(together),
        "coefficients": str(units.size), "start": available_init(parts, config), "likeness": "not measured",
        "distance": f"{float(np.sqrt(np.square(units).mean())):.3f} celebrity standard deviations (rms)",
    }  # fmt: skip


def identity_of(
    name: str, flat: Floats, parts: TokenTables, basis: CelebBasis, provenance: Mapping[str, str]
) -> Identity:
    """A person of all coefficients (S,), those of one text encoder after the other's."""
    rows = basis.split(flat)
    return Identity(name, rows, basis.embed(rows), basis.hash, parts.family, parts.table_hash, dict(provenance))
