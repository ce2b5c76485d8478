"""What learning can do besides: two phases, importance, context, patience. Off, none of it is there."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from learn_doubles import begin, load_named

torch: Any = pytest.importorskip("torch")

from celebctl.method.config import CLEAN, FAITHFUL, LearnConfig  # noqa: E402
from celebctl.method.context import PROMPTS, ContextPull  # noqa: E402
from celebctl.method.noise_levels import BINS, EVEN, TURN, NoiseLevels, reach_of, two_phases  # noqa: E402
from celebctl.method.stopping import HELD_VIEWS, LOOK_EVERY, Patience  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from celebctl_models.diffusion import DiffusionParts

ALPHAS = torch.linspace(0.999, 0.005, 200)


@pytest.fixture(scope="module")
def parts(tiny_folder: Path) -> DiffusionParts:
    return load_named(tiny_folder)


def generator(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


def test_off_nothing_is_there_and_settings_read_as_before(parts: DiffusionParts) -> None:
    sitting = begin(parts, start="average")
    assert sitting.exam is None and sitting.context is None and sitting.patience.kept is None
    sitting.advance()
    assert sitting.denoiser.levels.draw(4, generator())[1] is None and not sitting.denoiser.levels.heard.any()
    later = {"loss", "times", "context", "patience"}
    assert list(CLEAN.told()) == [one.name for one in fields(LearnConfig) if one.name not in later]
    assert "context" not in repr(CLEAN) and repr(CLEAN).startswith("LearnConfig(preset='clean', seed=0, steps=60")
    changed = replace(CLEAN, context=0.1)
    assert changed.told()["context"] == 0.1 and repr(changed) != repr(CLEAN)


# The most noise


def test_the_most_noise_is_the_same_share_of_a_picture_for_small_and_large_models() -> None:
    scaled: Any = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # as SD's
    alphas = torch.cumprod(1.0 - scaled, 0)
    reaches = [reach_of(alphas, 1.6, side) for side in (16, 64, 128)]
    assert reaches == sorted(reaches) and reaches[0] in range(490, 505) and reaches[1] in range(840, 855)
    for side, reach in zip((16, 64), reaches, strict=False):
        ratios = ((1.0 - alphas) / alphas).sqrt() * 16 / side
        assert ratios[reach - 1] <= 1.6 < ratios[reach]
    assert reach_of(alphas, 0.0, 16) == 1000 and reach_of(alphas, 1e-9, 16) == 1


@pytest.mark.parametrize("times", ["even", "important"])
def test_noisier_timesteps_than_wanted_are_never_drawn(times: Any) -> None:
    levels = NoiseLevels(ALPHAS, "epsilon", times=times, reach=70)
    levels.hear(torch.arange(70), torch.linspace(0.1, 9.0, 70))
    t = torch.cat([levels.draw(8, generator(seed))[0] for seed in range(300)])
    assert set(t.tolist()) == set(range(70))
    if times == "even":
        assert float(torch.bincount(t).float().std() / torch.bincount(t).float().mean()) < 0.3


def test_the_default_leaves_noise_out_and_the_published_settings_do_not(parts: DiffusionParts) -> None:
    every = len(begin(parts, start="average").denoiser.alphas)
    clean, published = (begin(parts, start="average", most_noise=config.most_noise) for config in (CLEAN, FAITHFUL))
    assert published.denoiser.levels.reach == every > clean.denoiser.levels.reach
    assert int(torch.cat([clean._batch().t for _ in range(50)]).max()) < clean.denoiser.levels.reach


# Two phases


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_two_phases_are_the_errors_of_the_noise_and_of_the_clean_latents(kind: str) -> None:
    """Whatever the network predicts, its error times the factor is the error of what it says about the other."""
    a = ALPHAS.double()
    x0, noise, said = torch.randn(3, len(a), dtype=torch.float64, generator=generator())
    noisy = a.sqrt() * x0 + (1 - a).sqrt() * noise
    if kind == "epsilon":
        truth, says_noise, says_x0 = noise, said, (noisy - (1 - a).sqrt() * said) / a.sqrt()
    elif kind == "sample":
        truth, says_noise, says_x0 = x0, (noisy - a.sqrt() * said) / (1 - a).sqrt(), said
    else:
        truth = a.sqrt() * noise - (1 - a).sqrt() * x0
        says_noise, says_x0 = (1 - a).sqrt() * noisy + a.sqrt() * said, a.sqrt() * noisy - (1 - a).sqrt() * said
    late = torch.arange(len(a)) >= TURN * len(a)
    wanted = torch.where(late, (says_noise - noise) ** 2, (says_x0 - x0) ** 2)
    factor = two_phases(a, kind)
    ratio = wanted / (factor * (said - truth) ** 2)
    assert torch.allclose(ratio, ratio[:1].expand(len(a)), rtol=1e-6)  # one scale for all timesteps
    assert float(factor.mean()) == pytest.approx(1.0)


def test_the_loss_of_a_view_is_the_plain_one_times_the_factor_of_its_timestep(parts: DiffusionParts) -> None:
    plain, phased = (begin(parts, start="average", loss=loss) for loss in ("noise", "two-phase"))
    one, other = plain._batch(), phased._batch()
    assert torch.equal(one.t, other.t) and torch.equal(one.noise, other.noise)
    before, after = (s.denoiser.loss(b, s._rows, 64) for s, b in ((plain, one), (phased, other)))
    assert torch.allclose(after, before * phased.denoiser.levels.factor[one.t], rtol=1e-5)
    assert phased.advance() != pytest.approx(plain.advance(), rel=1e-3)


# Importance


def heard_levels(sizes: Any) -> NoiseLevels:
    levels = NoiseLevels(ALPHAS, "epsilon", times="important")
    for _ in range(3):
        levels.hear(torch.arange(BINS) * len(ALPHAS) // BINS, torch.as_tensor(sizes))
    return levels


def test_chances_sum_to_one_follow_the_gradients_and_starve_nobody() -> None:
    sizes = np.linspace(0.0, 7.0, BINS)
    chances = heard_levels(sizes).chances()
    assert float(chances.sum()) == pytest.approx(1.0) and float(chances.min()) == pytest.approx(EVEN / BINS)
    assert np.allclose(chances.numpy() - EVEN / BINS, (1 - EVEN) * sizes / sizes.sum())
    assert torch.allclose(heard_levels(np.zeros(BINS)).chances(), torch.full((BINS,), 1.0 / BINS).double())


def test_draws_by_importance_leave_every_mean_as_it_is() -> None:
    levels, count = heard_levels(np.linspace(0.1, 5.0, BINS) ** 2), 40_000
    t, worth = levels.draw(count, generator())
    assert worth is not None and float(worth.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(worth.max()) <= 1 / EVEN + 1e-6
    found = torch.bincount(t * BINS // len(ALPHAS), minlength=BINS) / count
    assert torch.allclose(found.double(), levels.chances(), atol=0.01)
    for value in (torch.sin(t / 20.0), (t / 200.0) ** 2):
        even = torch.sin(torch.arange(200) / 20.0) if value.min() < 0 else (torch.arange(200) / 200.0) ** 2
        assert float((worth * value).mean()) == pytest.approx(float(even.mean()), abs=0.01)


def test_levels_are_drawn_evenly_until_each_was_heard() -> None:
    levels = NoiseLevels(ALPHAS, "epsilon", times="important")
    levels.hear(torch.zeros(50, dtype=torch.long), torch.full((50,), 9.0))
    t, worth = levels.draw(16, generator(1))
    assert worth is None and torch.equal(t, NoiseLevels(ALPHAS, "epsilon").draw(16, generator(1))[0])


def test_what_is_heard_is_the_gradient_of_single_views_however_the_batch_is_cut(parts: DiffusionParts) -> None:
    found: list[Any] = []
    for together in (64, 1):
        sitting = begin(parts, start="average", times="important", views=4)
        sitting.together = together
        sitting.advance()
        found.append(sitting.denoiser.levels.heard)
    assert float(found[0][1].sum()) == 4 and bool((found[0][0][found[0][1] > 0] > 0).all())
    assert torch.allclose(found[0], found[1], rtol=1e-3)


# Context


def test_the_average_celebrity_changes_no_words_and_a_celebrity_changes_them_by_one(parts: DiffusionParts) -> None:
    sitting = begin(parts, start="average", context=0.1)
    pull, spread = sitting.context, sitting.mapper.spread
    assert isinstance(pull, ContextPull) and bool((pull.words.sum(1) > 0).all())

    def of(coefficients: Any) -> float:
        with torch.no_grad():
            rows = sitting._embedded(coefficients)
            return float(np.mean([float(pull(rows, step)) for step in range(len(PROMPTS) // 2)]))

    directions = torch.randn(12, len(spread), generator=generator(4)) * spread
    assert of(0 * directions) < 2e-3, "up to the bfloat16 of what it is compared with"
    assert 0.3 < of(directions) < 3.0
    assert of(0.3 * directions) < of(directions)


def test_a_pull_on_context_leaves_the_words_more_as_they_were(parts: DiffusionParts) -> None:
    moved: list[float] = []
    for weight in (1e-9, 30.0):
        sitting = begin(parts, start="random", context=weight, prior=0.0, steps=12, anneal=False, learning_rate=1e-2)
        for _ in range(12):
            sitting.advance()
        assert sitting.context is not None
        with torch.no_grad():
            moved.append(float(sitting.context(sitting._embedded(sitting.mapper(sitting.features)), 0)))
    assert moved[1] < 0.7 * moved[0]


# Patience


def test_the_best_look_is_kept_and_enough_is_enough() -> None:
    patience, states = Patience(2), [torch.tensor([float(n)]) for n in range(5)]
    for loss, state in zip((3.0, 1.0, 2.0), states, strict=False):
        patience.hear(loss, state)
    assert not patience.spent and patience.missed == 1
    patience.hear(0.5, states[3])
    assert patience.missed == 0
    patience.hear(0.5, states[4])  # no better
    patience.hear(float("nan"), states[4])
    assert patience.spent and patience.kept is not None and float(patience.kept) == 3.0
    again = Patience(2)
    again.restore(patience.state())
    assert again == patience
    never = Patience(0)
    for _ in range(9):
        never.hear(1.0, states[0])
    assert not never.spent


def test_learning_stops_when_views_kept_back_get_worse(parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch) -> None:
    from celebctl.method.learn import Sitting

    losses = iter([2.0, 1.0, 1.5, 1.6, 0.1])
    at: list[Any] = []

    def look(sitting: Any) -> None:
        at.append(sitting._standing())
        sitting.patience.hear(next(losses), at[-1])

    monkeypatch.setattr(Sitting, "_examine", look)
    sitting = begin(parts, start="average", patience=2, steps=12 * LOOK_EVERY, views=1)
    seen: set[float] = set()
    draw = sitting.denoiser.batch

    def drawn(x0: Any, *rest: Any) -> Any:
        seen.update(float(view.sum()) for view in x0)
        return draw(x0, *rest)

    sitting.denoiser.batch = drawn
    while not sitting.done:
        sitting.advance()
    assert sitting.step == 3 * LOOK_EVERY, "the start and the first look were better than the next two"
    assert torch.equal(sitting.coefficients(), at[1])
    assert sitting.identities(["ann"])[0].provenance["steps"] == str(3 * LOOK_EVERY)
    kept_back = {float(view.sum()) for view in sitting.latents[0, -HELD_VIEWS:]}
    assert seen and not seen & kept_back, "what is looked at is never learned from"


def test_a_look_is_the_same_twice_and_survives_a_checkpoint(parts: DiffusionParts, tmp_path: Path) -> None:
    dials: dict[str, Any] = {"start": "average", "patience": 3, "times": "important", "steps": 8, "views": 4}
    whole, half = begin(parts, **dials), begin(parts, **dials)
    assert whole.patience.best == half.patience.best > 0
    for _ in range(6):
        whole.advance()
        half.advance()
    half.save(tmp_path / "half.pt", ["ann"])
    again = begin(parts, **dials)
    again.load(tmp_path / "half.pt", ["ann"])
    for _ in range(2):
        whole.advance()
        again.advance()
    assert torch.equal(whole.coefficients(), again.coefficients())
    assert (again.patience.best, again.patience.missed) == (whole.patience.best, whole.patience.missed)
