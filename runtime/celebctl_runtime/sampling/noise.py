"""Noise that means the same on every machine: drawn on the host, from the seed alone.

The 64-bit stream of Philox is fixed by numpy for all versions, while its own normal distributions are not, so the
normals are made here (Box and Muller 1958, in float64). Every picture has its own stream, so a picture does not know
whether it was drawn alone or in a batch; every step has its own counter, so a step does not know the others.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_INITIAL, _STEPS = 0, 1  # the second half of Philox's key: one stream per purpose


def initial_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise that a picture starts from. ``seed`` in [0, 2^64)."""
    return _normal(seed, _INITIAL, 0, shape)


def step_noise(seed: int, step: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise that step number ``step`` of the same picture adds."""
    return _normal(seed, _STEPS, step, shape)


def _normal(seed: int, stream: int, block: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    count = math.prod(shape)
    pairs = (count + 1) // 2
    generator = np.random.Philox(key=seed | stream << 64, counter=block << 128)
    uniform = ((generator.random_raw(2 * pairs) >> np.uint64(11)) + 1) * 2.0**-53  # (0, 1]
    radius, angle = np.sqrt(-2 * np.log(uniform[:pairs])), 2 * math.pi * uniform[pairs:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normal[:count].reshape(shape).astype(np.float32)
