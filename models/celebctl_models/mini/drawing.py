"""Soft-edged shapes on a batch of canvases: the brush that draws mini's world.

A canvas is a tensor (B, 3, S, S) in [0, 1]. Coordinates run over [-1, 1] in both directions, y pointing down. A shape
is a signed distance field (B, S, S) in canvas units, negative inside; ``paint`` turns it into coverage with one pixel
of softness and lays a colour over what is there. Everything is plain batched torch with no data-dependent control flow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Canvas:
    """B pictures being painted.

    ``image``: (B, 3, S, S) float32 in [0, 1]; ``x``, ``y``: (1, S, S) coordinates in [-1, 1].
    """

    image: Tensor
    x: Tensor
    y: Tensor

    @classmethod
    def blank(cls, batch: int, size: int, device: torch.device | str = "cpu") -> Canvas:
        """A canvas of one colour."""
        centres = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * (2.0 / size) - 1.0
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return cls(torch.zeros(batch, 3, size, size, device=device), x[None], y[None])

    @property
    def pixel(self) -> float:
        """Width of one pixel in canvas units."""
        return 2.0 / self.image.shape[-1]

    def paint(self, distance: Tensor, colour: Tensor, opacity: Tensor | float = 1.0) -> None:
        """Lay ``colour`` over the inside of ``distance``.

        colour: (B, 3) or (B, 3, S, S); distance: (B, S, S); opacity: (B,) or a number.
        """
        coverage = (0.5 - distance / self.pixel).clamp(0.0, 1.0)
        if isinstance(opacity, Tensor):
            opacity = opacity.view(-1, 1, 1)
        coverage = (coverage * opacity).unsqueeze(1)
        if colour.dim() == 2:
            colour = colour[:, :, None, None]
        self.image = torch.lerp(self.image, colour.expand_as(self.image), coverage.expand_as(self.image))


def col(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1), to meet (B, S, S) grids."""
    return values.view(-1, 1, 1)


def ellipse(u: Tensor, v: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    """Approximate distance to an ellipse at the origin with half-axes rx, ry (same units as u, v)."""
    rx_ = col(rx) if isinstance(rx, Tensor) else torch.tensor(rx, device=u.device)
    ry_ = col(ry) if isinstance(ry, Tensor) else torch.tensor(ry, device=u.device)
    return (torch.sqrt((u / rx_) ** 2 + (v / ry_) ** 2 + 1e-9) - 1.0) * torch.minimum(rx_, ry_)


def box(u: Tensor, v: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    """Distance (max-norm) to an axis-aligned box at the origin with half-sizes rx, ry."""
    rx_ = col(rx) if isinstance(rx, Tensor) else rx
    ry_ = col(ry) if isinstance(ry, Tensor) else ry
    return torch.maximum(u.abs() - rx_, v.abs() - ry_)


def segment(u: Tensor, v: Tensor, length: Tensor | float, radius: Tensor | float) -> Tensor:
    """Distance to a horizontal capsule of half-length ``length`` and thickness ``radius``."""
    length_ = col(length) if isinstance(length, Tensor) else length
    radius_ = col(radius) if isinstance(radius, Tensor) else radius
    along = (u.abs() - length_).clamp_min(0.0)
    return torch.sqrt(along**2 + v**2 + 1e-9) - radius_


def both(a: Tensor, b: Tensor) -> Tensor:
    """Intersection of two distance fields."""
    return torch.maximum(a, b)


def either(a: Tensor, b: Tensor) -> Tensor:
    """Union of two distance fields."""
    return torch.minimum(a, b)


def without(a: Tensor, b: Tensor) -> Tensor:
    """``a`` minus ``b``."""
    return torch.maximum(a, -b)


def pick(palette: Tensor, index: Tensor) -> Tensor:
    """Rows of a palette (N, 3) by integer index (B,) -> (B, 3)."""
    return palette.to(index.device)[index.clamp(0, palette.shape[0] - 1)]


def ramp(palette: Tensor, position: Tensor) -> Tensor:
    """Colours along a palette (N, 3), position (B,) in [0, 1], linear in between -> (B, 3)."""
    palette = palette.to(position.device)
    at = position.clamp(0.0, 1.0) * (palette.shape[0] - 1)
    low = at.floor().long().clamp(max=palette.shape[0] - 2)
    return torch.lerp(palette[low], palette[low + 1], (at - low)[:, None])


def classes(u: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Cut uniforms (B,) into classes whose shares of the population are given -> int64 (B,)."""
    edges = torch.tensor(shares, device=u.device).cumsum(0)[:-1]
    return torch.bucketize(u.contiguous(), edges / sum(shares))


def span(u: Tensor, low: float, high: float) -> Tensor:
    """Uniforms (B,) to [low, high]."""
    return low + (high - low) * u
