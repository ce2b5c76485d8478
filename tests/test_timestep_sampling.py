"""At which noise levels learning asks the model: evenly, and never where there is too much noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from learn_fakes import begin, load_named

torch: Any = pytest.importorskip("torch")

from celebctl.learning.config import CLEAN, FAITHFUL  # noqa: E402
from celebctl.learning.timestep_sampling import TimestepSampler, max_timestep  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path


def test_the_most_noise_is_the_same_share_of_a_picture_for_small_and_large_models() -> None:
    scaled: Any = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # as SD's
    alphas = torch.cumprod(1.0 - scaled, 0)
    reaches = [max_timestep(alphas, 1.6, side) for side in (16, 64, 128)]
    assert reaches == sorted(reaches) and reaches[0] in range(490, 505) and reaches[1] in range(840, 855)
    for side, reach in zip((16, 64), reaches, strict=False):
        ratios = ((1.0 - alphas) / alphas).sqrt() * 16 / side
        assert ratios[reach - 1] <= 1.6 < ratios[reach]
    assert max_timestep(alphas, 0.0, 16) == 1000 and max_timestep(alphas, 1e-9, 16) == 1


def test_all_timesteps_below_the_reach_are_drawn_evenly_and_no_others() -> None:
    levels = TimestepSampler(70, torch.device("cpu"))
    t = torch.cat([levels.draw(8, torch.Generator().manual_seed(seed)) for seed in range(300)])
    counts = torch.bincount(t).float()
    assert set(t.tolist()) == set(range(70)) and float(counts.std() / counts.mean()) < 0.3


def test_every_batch_sees_all_levels() -> None:
    for seed in range(20):
        t: Any = TimestepSampler(200, torch.device("cpu")).draw(8, torch.Generator().manual_seed(seed))
        assert sorted((t // 25).tolist()) == list(range(8))


def test_the_default_leaves_noise_out_and_the_published_settings_do_not(tiny_folder: Path) -> None:
    parts = load_named(tiny_folder)
    every = len(begin(parts, init="average").denoiser.alphas)
    clean, published = (begin(parts, init="average", max_noise_sigma=config.max_noise_sigma) for config in (CLEAN, FAITHFUL))
    assert published.denoiser.levels.reach == every > clean.denoiser.levels.reach
    assert int(torch.cat([clean._batch().t for _ in range(50)]).max()) < clean.denoiser.levels.reach
