"""From a face to coefficients: the small MLP of the paper (section 3.3, "fast mapping").

One linear layer maps the recogniser's feature v to all coefficients, 2 x K per text encoder, like the release's
``meta_mlp_depth: 1``. With ``scale="unit"`` they are unit(LeakyReLU(W v + b)) per token position, as in the paper; with
``scale="spread"`` they are in standard deviations of the celebrities and bounded by tanh.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from celebctl.basis.basis import CelebBasis
from celebctl.basis.ridge import ridge
from celebctl_models.faces.analysis import FEATURE_DIM

from .config import LearnConfig

CODE_DIM, HIDDEN_DIM = 64, 168


class PretrainedMapper(nn.Module):
    """A mapper trained once per model on many people: features (B, F) to normalized coefficients (B, S).

    F -> code (64, the identity bottleneck) -> hidden (168) -> coefficients; F is the width of the recogniser's feature.
    Frozen while a person is learned.

    Attributes:
        code_mean: (code,) mean of the training people's codes.
        code_cov_sqrt: (code, code) square root of their covariance; `Model.sample` draws codes from this Gaussian.
    """

    code_mean: Tensor
    code_cov_sqrt: Tensor

    def __init__(
        self, coefficients: int, code: int = CODE_DIM, hidden: int = HIDDEN_DIM, features: int = FEATURE_DIM
    ) -> None:
        super().__init__()
        self.down, self.middle = nn.Linear(features, code), nn.Linear(code, hidden)
        self.up = nn.Linear(hidden, coefficients)
        self.register_buffer("code_mean", torch.zeros(code))
        self.register_buffer("code_cov_sqrt", torch.zeros(code, code))

    @classmethod
    def fresh(cls, coefficients: int, seed: int, features: int = FEATURE_DIM) -> PretrainedMapper:
        """Random weights from a seed, with outputs close to the average celebrity."""
        # the caller's random numbers stay as they are
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # pyright: ignore[reportUnknownMemberType]
            torch.default_generator.manual_seed(seed)
            mapper = cls(coefficients, features=features)
            mapper.up.weight.normal_(0.0, 0.03)
            mapper.up.bias.zero_()
            mapper.down.weight.normal_()  # a unit feature gives a code of about unit variance
        return mapper

    def forward(self, features: Tensor) -> Tensor:
        return self.up(F.gelu(self.middle(self.down(features))))

    @torch.no_grad()
    def fit_code_statistics(self, features: Tensor) -> None:
        """Store mean and covariance square root of the codes of features (n, F); no single code is stored."""
        codes = self.down(features).double()
        centered = codes - codes.mean(0)
        covariance = (centered.T @ centered / max(len(codes) - 1, 1)).cpu().numpy()
        values, directions = np.linalg.eigh(covariance)
        self.code_mean.copy_(codes.mean(0))
        self.code_cov_sqrt.copy_(torch.as_tensor(directions * np.sqrt(values.clip(0.0))))


class CoefficientMapper(nn.Module):
    """Features (B, F) of unit length to coefficients (B, S) in units of the token table.

    S counts the coefficients of all text encoders, one after the other; ``split`` separates them. With a pretrained
    mapper, the linear layer is a correction added to its output.

    Attributes:
        spread: (S,) standard deviation of the celebrities' coefficients.
        pretrained: The frozen pretrained mapper, None without one.
    """

    spread: Tensor
    pretrained: PretrainedMapper | None

    def __init__(
        self, basis: CelebBasis, config: LearnConfig, generator: torch.Generator, features: int = FEATURE_DIM
    ) -> None:
        super().__init__()
        self.config = config
        self.widths = tuple(components.shape[1] for components in basis.components)  # K per text encoder
        self.linear = nn.Linear(features, basis.size)
        self.pretrained = None
        self.register_buffer("spread", torch.as_tensor(np.concatenate([spread.ravel() for spread in basis.spread])))
        with torch.no_grad():
            # the release's W ~ N(0, 1); in units of spread, about one celebrity away from the mean
            self.linear.weight.normal_(0.0, 1.0, generator=generator)
            self.linear.bias.zero_()

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """(..., S) to (..., 2, K) for every text encoder."""
        sizes = [2 * width for width in self.widths]
        parts = torch.split_with_sizes(flat, sizes, dim=-1)
        return tuple(part.reshape(*part.shape[:-1], 2, width) for part, width in zip(parts, self.widths, strict=True))

    def normalized(self, features: Tensor) -> Tensor:
        """Normalized coefficients (B, S): standard deviations, or with scale "unit" directions of any length."""
        x = self.linear(features)
        if self.pretrained is not None:
            x = x + self.pretrained(features)
        if self.config.leaky_relu:
            x = F.leaky_relu(x, 0.2)
        bound = self.config.bound
        return x if self.config.scale == "unit" else bound * torch.tanh(x / bound)

    def scaled(self, normalized: Tensor) -> Tensor:
        """Normalized coefficients (B, S) to coefficients in units of the token table."""
        if self.config.scale == "spread":
            return normalized * self.spread
        return torch.cat([F.normalize(part, dim=-1).flatten(-2) for part in self.split(normalized)], dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        return self.scaled(self.normalized(features))

    def fit_linear(self, features: NDArray[np.float32], normalized: NDArray[np.float32]) -> float:
        """Set the layer to the ridge fit of celebrities' (features (n, F), coefficients (n, S)); returns its penalty.

        Ridge shrinks uncertain coefficients towards the average celebrity; ``init_gain`` restores the distance.
        """
        weight, bias, penalty = ridge(features, normalized)
        gain, mean = self.config.init_gain, normalized.mean(0)
        with torch.no_grad():
            self.linear.weight.copy_(torch.as_tensor(gain * weight))
            self.linear.bias.copy_(torch.as_tensor(gain * bias + (1.0 - gain) * mean))
        return penalty

    def init_from_pretrained(self, mapper: PretrainedMapper) -> None:
        """Start from the output of a pretrained mapper."""
        self.init_from_average()
        self.pretrained = mapper.eval().requires_grad_(False)

    def init_from_average(self) -> None:
        """Start from the average celebrity for every face: all coefficients 0."""
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.zero_()
