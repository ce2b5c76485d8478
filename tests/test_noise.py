"""A seed means the same noise everywhere, for ever."""

from __future__ import annotations

import numpy as np
import pytest

from celebctl_runtime.sampling.noise import initial_noise, step_noise


def test_golden_values() -> None:
    """If these change, every seed ever published means another picture."""
    assert initial_noise(0, (3,)).tolist() == pytest.approx(
        [2.2844414710998535, -1.5494507551193237, 1.9245853424072266], rel=1e-6
    )
    assert step_noise(7, 2, (2,)).tolist() == pytest.approx([-0.055905409157276154, -0.4666922092437744], rel=1e-6)


def test_float32_of_the_shape_asked_for() -> None:
    noise = initial_noise(1, (4, 3, 5))
    assert noise.shape == (4, 3, 5) and noise.dtype == np.float32


def test_standard_normal() -> None:
    noise = initial_noise(3, (200_000,)).astype(np.float64)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs((noise**3).mean()) < 0.03 and abs((noise**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.01
    assert np.isfinite(noise).all()


def test_every_seed_step_and_purpose_has_its_own_noise() -> None:
    shape = (64,)
    draws = [initial_noise(seed, shape) for seed in (0, 1, 2**63 - 1)]
    draws += [step_noise(seed, step, shape) for seed in (0, 1) for step in (0, 1, 50)]
    for i, one in enumerate(draws):
        assert all(np.abs(one - other).max() > 0.5 for other in draws[:i])


def test_repeating_gives_the_same() -> None:
    assert np.array_equal(initial_noise(5, (9, 9)), initial_noise(5, (9, 9)))
    assert np.array_equal(step_noise(5, 3, (9, 9)), step_noise(5, 3, (9, 9)))
