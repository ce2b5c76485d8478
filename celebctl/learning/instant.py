"""Learning without training: the mapper's output for a face, in NumPy.

Up to rounding the numbers of `learn_people` with no steps, in a fraction of the time that loading a model takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl.basis.basis import CelebBasis
from celebctl.basis.ridge import ridge
from celebctl.mapper_training.mapper_store import read_layers
from celebctl_runtime.errors import IntegrityError, UsageError
from celebctl_runtime.identity import Identity

from .config import CLEAN, LearnConfig
from .initialization import available_init

if TYPE_CHECKING:
    from celebctl_models.checkpoints.token_tables import TokenTables

    from .prepared import PreparedModel
    from .subject import Subject

Floats = NDArray[np.float32]

#: Factor on the code covariance of sampled identities: farther from the mean their images agree better, up to this
#: value (benchmarks/LOG.md).
SAMPLE_SCALE = 1.75


def instant_people(
    model: PreparedModel[TokenTables], subjects: Sequence[Subject], config: LearnConfig
) -> list[Identity]:
    """One identity per subject: the initialization of training is the result.

    Raises:
        UsageError: The model has neither a mapper nor celebrity faces, so every face would give the same identity.
        IntegrityError: The mapper is damaged or belongs to another basis.
    """
    require_mapper(model, config)
    features = np.stack([subject.face.feature for subject in subjects])
    normalized = config.bound * np.tanh(_initial_coefficients(model, features, config) / config.bound)
    spread = np.concatenate([part.ravel() for part in model.basis.spread])
    return [
        identity_from_coefficients(
            subject.name, (x * spread).astype(np.float32), model, base_provenance(model, config, len(subjects), x)
        )
        for subject, x in zip(subjects, normalized, strict=True)
    ]


def require_mapper(model: PreparedModel[TokenTables], config: LearnConfig) -> None:
    """Raise UsageError when the initialization does not depend on the face."""
    if available_init(model.assets, config) not in ("fitted", "celebrities"):
        raise UsageError(
            f"{model.parts.name} has no mapper, so the instant method would give every face the same identity",
            "train a mapper on a folder of photos, or use method='train'",
            reason="no_mapper", model=model.parts.name,
        )  # fmt: skip


def _initial_coefficients(model: PreparedModel[TokenTables], features: Floats, config: LearnConfig) -> Floats:
    """Normalized coefficients (P, S) of features (P, 512), not yet bounded."""
    if available_init(model.assets, config) == "fitted" and model.assets.mapper is not None:
        layers = read_layers(model.assets.mapper, model.basis)
        return _coefficients_of_codes(layers, features @ layers["down.weight"].T + layers["down.bias"])
    known, coefficients = model.celebrity_pairs()
    weight, bias, _ = ridge(known, coefficients)
    mean = coefficients.mean(0)
    return (config.init_gain * (features @ weight.T + bias - mean) + mean).astype(np.float32)


def _coefficients_of_codes(layers: Mapping[str, Floats], codes: Floats) -> Floats:
    """The upper layers of `PretrainedMapper`: codes (P, code) to normalized coefficients (P, S)."""
    x = codes @ layers["middle.weight"].T + layers["middle.bias"]
    x = x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))  # GELU
    return (x @ layers["up.weight"].T + layers["up.bias"]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class IdentityPrior:
    """The Gaussian of the training people's codes, to sample new identities from. layers: see `read_layers`."""

    layers: Mapping[str, Floats]
    bound: float

    @property
    def size(self) -> int:
        """Standard normal numbers per sample."""
        return len(self.layers["code_mean"])

    def normalized(self, noise: Floats) -> Floats:
        """Normalized coefficients (S,) from standard normal ``noise`` (size,)."""
        code = self.layers["code_mean"] + SAMPLE_SCALE * (self.layers["code_cov_sqrt"] @ noise)
        return self.bound * np.tanh(_coefficients_of_codes(self.layers, code[None].astype(np.float32))[0] / self.bound)


def identity_prior(mapper: Path | None, basis: CelebBasis) -> IdentityPrior | None:
    """The prior stored in a mapper file; None without a mapper for this basis."""
    if mapper is None:
        return None
    try:
        layers = read_layers(mapper, basis)
    except IntegrityError:
        return None  # it belongs to the model's own names, and others were chosen
    return IdentityPrior(layers, CLEAN.bound) if layers["code_cov_sqrt"].any() else None


def base_provenance(
    model: PreparedModel[TokenTables], config: LearnConfig, people: int, normalized: Floats
) -> dict[str, str]:
    """Provenance with and without training. normalized: coefficients (S,) in celebrity standard deviations."""
    from celebctl import __version__

    return {
        "celebctl": __version__, "model": model.parts.name, "preset": config.preset, "steps": str(config.steps),
        "views": str(config.views), "seed": str(config.seed), "learned_together": str(people),
        "coefficients": str(normalized.size), "init": available_init(model.assets, config),
        "rms_deviation": f"{float(np.sqrt(np.square(normalized).mean())):.3f}",
    }  # fmt: skip


def identity_from_coefficients(
    name: str, flat: Floats, model: PreparedModel[TokenTables], provenance: Mapping[str, str]
) -> Identity:
    """An identity from the coefficients (S,) of all text encoders."""
    basis, parts = model.basis, model.parts
    coefficients = basis.split(flat)
    return Identity(
        name, coefficients, basis.embed(coefficients), basis.hash, parts.family, parts.table_hash, dict(provenance)
    )
