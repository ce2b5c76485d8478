"""A seed gives the same noise on every machine and in every version."""

from __future__ import annotations

import numpy as np
import pytest

from celebctl_runtime.sampling.noise import initial_noise, step_noise


def test_golden_values() -> None:
    """If these change, every published seed gives another image."""
    assert initial_noise(0, (3,)).tolist() == pytest.approx(
        [2.2844414710998535, -1.5494507551193237, 1.9245853424072266], rel=1e-6
    )
    assert step_noise(7, 2, (2,)).tolist() == pytest.approx([-0.055905409157276154, -0.4666922092437744], rel=1e-6)


def test_shape_and_dtype() -> None:
    noise = initial_noise(1, (4, 3, 5))
    assert noise.shape == (4, 3, 5) and noise.dtype == np.float32


def test_standard_normal() -> None:
    noise = initial_noise(3, (200_000,)).astype(np.float64)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs((noise**3).mean()) < 0.03 and abs((noise**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.01
    assert np.isfinite(noise).all()


def test_seeds_and_steps_have_different_noise() -> None:
    shape = (64,)
    draws = [initial_noise(seed, shape) for seed in (0, 1, 2**63 - 1)]
    draws += [step_noise(seed, step, shape) for seed in (0, 1) for step in (0, 1, 50)]
    for i, draw in enumerate(draws):
        assert all(np.abs(draw - other).max() > 0.5 for other in draws[:i])
