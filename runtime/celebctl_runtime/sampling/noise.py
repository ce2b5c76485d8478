"""Gaussian noise that depends on the seed alone and is the same on every machine.

numpy guarantees the 64-bit stream of Philox (Salmon et al. 2011) for all versions, but not its normal distributions, so
those are computed here (Box and Muller 1958, in float64). Every image has its own stream, so it does not depend on the
batch; every step has its own counter, so it does not depend on the other steps.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_INITIAL, _STEPS, _MASK = 0, 1, 2  # the second half of Philox's key: one stream per purpose


def initial_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The standard normal noise an image starts from, float32 of ``shape``; ``seed`` in [0, 2^64).

    Example:
        >>> initial_noise(0, (3,)).round(4).tolist() == [np.float32(x) for x in (2.2844, -1.5495, 1.9246)]
        True
    """
    return _normal(seed, _INITIAL, 0, shape)


def step_noise(seed: int, step: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The standard normal noise that step number ``step`` of the same image adds, float32 of ``shape``."""
    return _normal(seed, _STEPS, step, shape)


def mask_noise(seed: int, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The standard normal noise of draw number ``draw`` for finding the mask of an edit, float32 of ``shape``."""
    return _normal(seed, _MASK, draw, shape)


def _normal(seed: int, stream: int, block: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    count = math.prod(shape)
    pairs = (count + 1) // 2
    generator = np.random.Philox(key=seed | stream << 64, counter=block << 128)
    uniform = ((generator.random_raw(2 * pairs) >> np.uint64(11)) + 1) * 2.0**-53  # (0, 1]
    radius, angle = np.sqrt(-2 * np.log(uniform[:pairs])), 2 * math.pi * uniform[pairs:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normal[:count].reshape(shape).astype(np.float32)
