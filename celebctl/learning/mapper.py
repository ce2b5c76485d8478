"""From a face to coefficients: the small MLP of the paper (section 3.3), and its start from what a model knows.

One linear layer reads the recogniser's feature v and writes all coefficients, 2 x K per text encoder, as the release's
`meta_mlp_depth: 1` does. With ``scale="unit"`` they are unit(LeakyReLU(W v + b)) per position; with ``scale="spread"``
they are counted in standard deviations of the celebrities and softly bounded, so a person stays among those the model
knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from celebctl.basis.basis import CelebBasis
from celebctl.basis.ridge import ridge
from celebctl_models.faces.analysis import FEATURE_DIM

from .config import LearnConfig

CODE, HIDDEN = 64, 168  # numbers between a fitted mapper's layers


class PretrainedMapper(nn.Module):
    """The mapper that comes with a model, trained once on many people: features (B, 512) to units (B, S).

    ``code`` numbers say what a face tells, ``hidden`` ones how the model is told. Learning a person leaves it alone.
    code_mean (code,) and code_root (code, code) say how codes of people are spread, for `celebctl invent`.
    """

    code_mean: Tensor
    code_root: Tensor

    def __init__(self, coefficients: int, code: int = CODE, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.down, self.middle = nn.Linear(FEATURE_DIM, code), nn.Linear(code, hidden)
        self.up = nn.Linear(hidden, coefficients)
        self.register_buffer("code_mean", torch.zeros(code))
        self.register_buffer("code_root", torch.zeros(code, code))

    @classmethod
    def fresh(cls, coefficients: int, seed: int) -> PretrainedMapper:
        """One that knows nothing and answers close to the average for everybody."""
        # the caller's random numbers stay as they are
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # pyright: ignore[reportUnknownMemberType]
            torch.default_generator.manual_seed(seed)
            fitted = cls(coefficients)
            fitted.up.weight.normal_(0.0, 0.03)
            fitted.up.bias.zero_()
            fitted.down.weight.normal_()  # a unit feature gives codes of unit size
        return fitted

    def forward(self, features: Tensor) -> Tensor:
        return self.up(F.gelu(self.middle(self.down(features))))

    @torch.no_grad()
    def fit_code_statistics(self, features: Tensor) -> None:
        """Keep mean and covariance root of the codes of people (n, 512) who were learned from; of nobody the code."""
        codes = self.down(features).double()
        apart = codes - codes.mean(0)
        covariance = (apart.T @ apart / max(len(codes) - 1, 1)).cpu().numpy()
        values, directions = np.linalg.eigh(covariance)
        self.code_mean.copy_(codes.mean(0))
        self.code_root.copy_(torch.as_tensor(directions * np.sqrt(values.clip(0.0))))


class CoefficientMapper(nn.Module):
    """Features (B, 512), unit length, to coefficients (B, S) in token-table units.

    S counts all coefficients: 2 x K for every text encoder, one after the other; ``split`` takes them apart. Where a
    model brings a fitted mapper, the linear layer is what is added to its answer.
    """

    spread: Tensor
    fitted: PretrainedMapper | None

    def __init__(self, basis: CelebBasis, config: LearnConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.widths = tuple(components.shape[1] for components in basis.components)  # K per text encoder
        self.linear = nn.Linear(FEATURE_DIM, basis.size)
        self.fitted = None
        self.register_buffer("spread", torch.as_tensor(np.concatenate([spread.ravel() for spread in basis.spread])))
        with torch.no_grad():
            # the release draws W ~ N(0, 1); in units of spread that is about one celebrity away from the mean
            self.linear.weight.normal_(0.0, 1.0, generator=generator)
            self.linear.bias.zero_()

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """(..., S) to one (..., 2, K) per text encoder."""
        parts: Sequence[Any] = cast(Any, torch).split(flat, [2 * width for width in self.widths], dim=-1)
        return tuple(part.unflatten(-1, (2, width)) for part, width in zip(parts, self.widths, strict=True))

    def normalized(self, features: Tensor) -> Tensor:
        """What the layer writes before it is scaled, (B, S): standard deviations, or directions to be made unit."""
        written = self.linear(features)
        if self.fitted is not None:
            written = written + self.fitted(features)
        if self.config.leaky_relu:
            written = F.leaky_relu(written, 0.2)
        bound = self.config.bound
        return written if self.config.scale == "unit" else bound * torch.tanh(written / bound)

    def scaled(self, units: Tensor) -> Tensor:
        """Units (B, S) to coefficients in token-table units."""
        if self.config.scale == "spread":
            return units * self.spread
        return torch.cat([F.normalize(part, dim=-1).flatten(-2) for part in self.split(units)], dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        return self.scaled(self.normalized(features))

    def fit_linear(self, features: NDArray[np.float32], units: NDArray[np.float32]) -> float:
        """Set the layer to the ridge fit of celebrities' (features (n, 512), units (n, S)); returns its penalty.

        A regression answers carefully: what it is unsure of it draws towards the average face. ``start_gain`` gives
        people back the distance from the average that the celebrities have.
        """
        weight, bias, penalty = ridge(features, units)
        gain, middle = self.config.init_gain, units.mean(0)
        with torch.no_grad():
            self.linear.weight.copy_(torch.as_tensor(gain * weight))
            self.linear.bias.copy_(torch.as_tensor(gain * bias + (1.0 - gain) * middle))
        return penalty

    def init_from_pretrained(self, fitted: PretrainedMapper) -> None:
        """Begin with the answer of the model's own mapper."""
        self.init_from_average()
        self.fitted = fitted.eval().requires_grad_(False)

    def init_from_average(self) -> None:
        """Begin with the average celebrity, whatever the face: all units are 0 until learning moves them."""
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.zero_()
