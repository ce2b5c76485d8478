"""The people of mini's world: the factors that make a face, and the random people they describe.

A person is a vector ``z`` of independent standard normals, one per factor; ``u = Phi(z)`` in [0, 1] is what the
renderer reads. Working in ``z`` gives the world the geometry that names need: a celebrity's ``z`` is a blend of what
the first name carries, what the last name carries, and something of their own, each of unit variance in total.

This module knows nothing about pictures, words or networks.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: One entry per identity factor, in the order of the columns of ``z`` and ``u``.
FACTORS: tuple[str, ...] = (
    "skin_tone", "skin_warmth", "face_width", "face_length", "jaw",
    "eye_size", "eye_spacing", "eye_colour", "eye_shape",
    "brow_thickness", "brow_tilt", "brow_length",
    "nose_length", "nose_width", "mouth_width", "lip_fullness", "lip_colour",
    "hair_colour", "hair_style", "hair_volume", "hairline", "ear_size",
    "glasses", "glasses_colour", "beard", "blush", "marks", "earrings",
)  # fmt: skip

#: Share of a celebrity's variance carried by the first name, the last name, and the pair alone.
FIRST_SHARE, LAST_SHARE, OWN_SHARE = 0.35, 0.35, 0.30


def uniform_from_normal(z: Floats) -> Floats:
    """Phi(z): standard normals to uniforms in [0, 1], any shape, float32."""
    scaled = np.asarray(z, np.float64) / math.sqrt(2.0)
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return (0.5 * (1.0 + erf(scaled))).astype(np.float32)


def sample_people(count: int, seed: int) -> Floats:
    """Unnamed people: ``z`` of shape (count, len(FACTORS)), float32, from ``seed`` alone."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    return rng.standard_normal((count, len(FACTORS))).astype(np.float32)


def blend_names(first: Floats, last: Floats, own: Floats | None = None) -> Floats:
    """Compose people from what their names carry.

    Args:
        first, last: (N, F) standard normals that belong to each first and last name.
        own: (N, F) standard normals of the person alone; left out for ordinary people, whose names say everything.

    Returns:
        ``z`` of shape (N, F), unit variance per factor.
    """
    if own is None:
        return ((first + last) / math.sqrt(2.0)).astype(np.float32)
    mixed = math.sqrt(FIRST_SHARE) * first + math.sqrt(LAST_SHARE) * last + math.sqrt(OWN_SHARE) * own
    return mixed.astype(np.float32)
