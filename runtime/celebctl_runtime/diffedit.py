"""DiffEdit (Couairon et al. 2023): find what a new prompt changes in an image, and the noise that the image comes from.

Where the network predicts other noise for the new prompt than for the old one, the image has to change; elsewhere it
stays. Both parts run on the step graph that draws, with tables of their own: a step whose next state is the network's
output alone, and steps that lead from an image to its noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from .backends.base import Array, Backend, Conditioning
from .sampling.inpainting import over_neighbours
from .sampling.samplers import StepTable

#: Noise draws that a mask is averaged over (section 3.2).
DRAWS = 10
_EXTREME = 3.0  # differences above so many times their mean count as equal

_OUTPUT = np.array([[[0, 0, 1, 0], [0, 0, 0, 0]]], np.float32)  # the next state is [model output, 0]


def without_negative(conditioning: Conditioning) -> Conditioning:
    """The conditioning of the prompt alone, for predictions without guidance."""
    pooled = None if conditioning.pooled is None else conditioning.pooled[-1:]
    return Conditioning(conditioning.context[-1:], pooled, conditioning.size_ids)


def predict(backend: Backend, latent: Array, index: int, conditioning: Conditioning, steps: StepTable) -> Array:
    """The network's output (B, C, h, w) for a latent at the noise level before step ``index`` of ``steps``."""
    zeros = np.zeros_like(latent)
    row = StepTable(_OUTPUT, steps.aux[index : index + 1], 1.0, False)
    return backend.step(np.stack([latent, zeros]), 0, zeros, conditioning, row)[0]


def differences(
    backend: Backend, noised: Iterable[Array], prompts: tuple[Conditioning, Conditioning], index: int, steps: StepTable
) -> Iterator[Array]:
    """For each latent (B, C, h, w) at the noise level before step ``index``: how far the predictions for both prompts
    are apart, averaged over channels, (B, h, w).

    The outputs of networks that predict noise, velocities or flows differ by the noise they imply times a number that
    depends on the noise level alone, so their differences need no conversion.
    """
    for latent in noised:
        one, other = (predict(backend, latent, index, prompt, steps) for prompt in prompts)
        yield np.abs(one - other).mean(1)


def difference_mask(difference: Array, threshold: float) -> NDArray[np.bool_]:
    """Where mean differences (B, h, w) are large, (B, h, w): somewhere in each image, unless all of it is 0.

    Extreme values are cut off, the rest is scaled to [0, 1] and compared with ``threshold``. Gaps of one or two latent
    pixels are closed (dilation, then erosion), which the paper does not do: they would show the old image in the new.

    Example:
        >>> difference_mask(np.array([[[9, 1, 9, 9, 1, 1, 1, 1, 1, 1]]], np.float32), 0.5)[0, 0, :6].tolist()
        [True, True, True, True, False, False]
    """
    mean, highest = difference.mean((1, 2), keepdims=True), difference.max((1, 2), keepdims=True)
    limit = np.minimum(_EXTREME * mean, highest)
    masks = (difference > 0) & (difference >= np.float32(threshold) * limit)
    return np.stack([over_neighbours(over_neighbours(mask, np.maximum), np.minimum) for mask in masks])


def invert(backend: Backend, latent: Array, conditioning: Conditioning, inversion: StepTable) -> Iterator[Array]:
    """The latents (B, C, h, w) that the steps of ``inversion`` lead to, from the lowest noise level to the highest."""
    zeros = np.zeros_like(latent)
    for index in range(inversion.steps):
        latent = backend.step(np.stack([latent, zeros]), index, zeros, conditioning, inversion)[0]
        yield latent
