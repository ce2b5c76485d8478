"""Inpainting with any model: a mask says what may change; the rest of the image stays.

After every step the state outside the mask is replaced by the init image at the noise level of that step, with the
image's own initial noise, so that what is drawn inside the mask fits to it (Lugmayr et al. 2022, algorithm 1 without
resampling; Blended Latent Diffusion, Avrahami et al. 2023). At the end the pixels outside the mask are those of the
init image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .samplers import StepTable

Array = NDArray[np.float32]
Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Inpainting:
    """What a batch of B images keeps, and where.

    Attributes:
        latents: N + 1 latents (B, C, h, w) of the init images, at the noise levels before each step and, clean, after
            the last one.
        pixels: (B, 3, H, W) in [-1, 1], the init images.
        masks: (B, H, W) in [0, 1]: 1 is drawn, 0 is kept.
        change: (B, 1, h, w), the masks at the size of the latents.
        opacity: (B, 1, H, W) of the drawn pixels in the result, 0 outside the mask.
    """

    latents: Sequence[Array]
    pixels: Array
    masks: Array
    change: Array
    opacity: Array

    @classmethod
    def create(cls, latents: Sequence[Array], pixels: Array, masks: Array, blurs: Sequence[int]) -> Inpainting:
        """Fit the masks to the latents, and soften the edges of the result; ``blurs``: of each image, in pixels."""
        factor = masks.shape[-1] // latents[-1].shape[-1]
        change = np.stack([area_average(mask, factor) for mask in masks])
        opacity = np.stack([feather(mask, blur) for mask, blur in zip(masks, blurs, strict=True)])
        return cls(latents, pixels, masks, change[:, None], opacity[:, None])

    def blend(self, state: Array, index: int) -> Array:
        """The state (2, B, C, h, w) before step ``index``, with the init images outside the mask.

        The second row of a state is the clean latent that the step before predicted (samplers.py). Outside the mask
        that is the init image's latent, so that samplers of second order extrapolate from what they would have seen.
        """
        known = np.stack([self.latents[index], self.latents[-1]])
        return (known + self.change * (state - known)).astype(np.float32)

    def paste(self, images: Array) -> Array:
        """Images (B, 3, H, W) in [-1, 1] in the mask, the init images' own pixels outside."""
        return (self.pixels + self.opacity * (images.clip(-1, 1) - self.pixels)).astype(np.float32)


def noised(latent: Array, noise: Array, steps: StepTable) -> list[Array]:
    """A clean latent (B, C, h, w) at the noise levels before each step and after the last one, with the same noise."""
    return [(signal * latent + sigma * noise).astype(np.float32) for signal, sigma in steps.mixes]


def area_average(weights: Array, factor: int) -> Array:
    """Means over squares of ``factor`` pixels: (H, W) -> (H / factor, W / factor).

    Example:
        >>> area_average(np.array([[1, 1, 0, 0], [1, 1, 1, 0]], np.float32), 2).tolist()
        [[1.0, 0.25]]
    """
    height, width = weights.shape
    return weights.reshape(height // factor, factor, width // factor, factor).mean((1, 3))


def feather(weights: Array, blur: int) -> Array:
    """A mask (H, W) whose edges rise over ``blur`` pixels inside the mask; 0 stays 0, so that nothing else changes.

    A part of the mask too narrow for the whole rise still reaches its full weight in the middle.

    Example:
        >>> feather(np.array([[0, 1, 1, 1, 1, 1, 0]], np.float32), 1).tolist()
        [[0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0]]
    """
    depth = eroded = weights
    for _ in range(blur):
        eroded = over_neighbours(eroded, np.minimum)
        depth = depth + eroded
    deepest = depth
    for _ in range(blur):
        deepest = over_neighbours(deepest, np.maximum)
    return weights * np.divide(depth, deepest, out=np.zeros_like(depth), where=deepest > 0)


def over_neighbours(values: NDArray[Value], combine: np.ufunc) -> NDArray[Value]:
    """The minimum or maximum over each value (H, W) and its eight neighbours inside the image."""
    for axis in (0, 1):
        padded = np.pad(values, [(1, 1) if axis == each else (0, 0) for each in (0, 1)], mode="edge")
        before, after = np.delete(padded, (-1, -2), axis), np.delete(padded, (0, 1), axis)
        values = combine(combine(before, values), after)
    return values
