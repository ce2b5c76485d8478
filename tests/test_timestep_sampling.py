"""Timestep sampling: as the model was trained, stratified, and only up to the configured noise-to-signal ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from learn_fakes import load_named, new_trainer

torch: Any = pytest.importorskip("torch")
SHIFTED = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}

from celebctl.learning.config import CLEAN, FAITHFUL  # noqa: E402
from celebctl.learning.noising import DiffusionNoising, FlowNoising  # noqa: E402
from celebctl.learning.timestep_sampling import TimestepSampler, max_timestep  # noqa: E402
from celebctl_runtime.sampling.schedule import ScheduleConfig  # noqa: E402

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
    noising, other = clean.denoising_loss.noising, published.denoising_loss.noising
    assert isinstance(noising, DiffusionNoising) and isinstance(other, DiffusionNoising)
    end = noising.timesteps.end
    assert other.timesteps.end == len(noising.alphas_cumprod) > end
    assert int(torch.cat([clean.sample_batch().t for _ in range(50)]).max()) < end


def flow_levels(noising: FlowNoising, batches: int) -> Any:
    """Noise levels before the shift of 3, as their logits."""
    t = torch.cat([noising.draw(8, torch.Generator().manual_seed(seed)) for seed in range(batches)]) / 1000
    return torch.logit((t / (3 - 2 * t)).double())


def test_levels_of_a_flow_are_logit_normal_before_they_are_shifted() -> None:
    noising = FlowNoising(ScheduleConfig.from_dict(SHIFTED), 0.0, torch.device("cpu"))
    logits = flow_levels(noising, 500)
    assert float(logits.mean()) == pytest.approx(0, abs=0.02) and float(logits.std()) == pytest.approx(1, abs=0.02)
    for seed in range(20):
        shares = torch.special.ndtr(flow_levels(noising, seed + 1)[-8:])
        assert sorted((shares * 8).long().tolist()) == list(range(8)), "one level of every eighth"


def test_the_highest_noise_of_a_flow_is_a_ratio_to_the_image() -> None:
    """Ratios are those of sigma to 1 - sigma; below the highest the distribution keeps its form."""
    schedule = ScheduleConfig.from_dict(SHIFTED)
    noising = FlowNoising(schedule, 6.0, torch.device("cpu"))
    whole = flow_levels(FlowNoising(schedule, 0.0, torch.device("cpu")), 500)
    logits, limit = flow_levels(noising, 500), float(torch.tensor(6.0 / 3.0).log())
    assert limit - 0.01 < float(logits.max()) <= limit + 1e-4
    assert float(logits.median()) == pytest.approx(float(whole[whole < limit].median()), abs=0.04)


def test_a_flow_mixes_image_and_noise_and_points_from_one_to_the_other() -> None:
    noising = FlowNoising(ScheduleConfig.from_dict(SHIFTED), 0.0, torch.device("cpu"))
    x0, noise = torch.randn(2, 3, 16, 4, 4)
    t = torch.tensor([0.0, 250.0, 1000.0])
    mixed = noising.add_noise(x0, noise, t)
    assert torch.equal(mixed[0], x0[0]) and torch.equal(mixed[2], noise[2])
    torch.testing.assert_close(mixed[1], 0.75 * x0[1] + 0.25 * noise[1])
    torch.testing.assert_close(mixed - t.view(-1, 1, 1, 1) / 1000 * noising.target(x0, noise, t), x0)
