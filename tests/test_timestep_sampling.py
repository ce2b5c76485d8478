"""Timestep sampling: stratified, and only up to the configured noise-to-signal ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from learn_fakes import load_named, new_trainer

torch: Any = pytest.importorskip("torch")

from celebctl.learning.config import CLEAN, FAITHFUL  # noqa: E402
from celebctl.learning.timestep_sampling import TimestepSampler, max_timestep  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path


def test_the_highest_noise_scales_with_the_latent_side() -> None:
    scaled: Any = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # as SD's
    alphas = torch.cumprod(1.0 - scaled, 0)
    ends = [max_timestep(alphas, 1.6, side) for side in (16, 64, 128)]
    assert ends == sorted(ends) and ends[0] in range(490, 505) and ends[1] in range(840, 855)
    for side, end in zip((16, 64), ends, strict=False):
        ratios = ((1.0 - alphas) / alphas).sqrt() * 16 / side
        assert ratios[end - 1] <= 1.6 < ratios[end]
    assert max_timestep(alphas, 0.0, 16) == 1000 and max_timestep(alphas, 1e-9, 16) == 1


def test_timesteps_below_the_end_are_drawn_uniformly_and_no_others() -> None:
    sampler = TimestepSampler(70, torch.device("cpu"))
    t = torch.cat([sampler.draw(8, torch.Generator().manual_seed(seed)) for seed in range(300)])
    counts = torch.bincount(t).float()
    assert set(t.tolist()) == set(range(70)) and float(counts.std() / counts.mean()) < 0.3


def test_every_batch_is_stratified() -> None:
    for seed in range(20):
        t: Any = TimestepSampler(200, torch.device("cpu")).draw(8, torch.Generator().manual_seed(seed))
        assert sorted((t // 25).tolist()) == list(range(8))


def test_the_default_leaves_noise_out_and_the_published_settings_do_not(tiny_folder: Path) -> None:
    parts = load_named(tiny_folder)
    clean, published = (
        new_trainer(parts, init="average", max_noise_sigma=config.max_noise_sigma) for config in (CLEAN, FAITHFUL)
    )
    end = clean.denoising_loss.timesteps.end
    assert published.denoising_loss.timesteps.end == len(clean.denoising_loss.alphas_cumprod) > end
    assert int(torch.cat([clean.sample_batch().t for _ in range(50)]).max()) < end
