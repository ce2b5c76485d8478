"""Every sampler's table agrees with the diffusers scheduler of the same name over whole trajectories."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib import import_module
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityError, UsageError
from celebctl_runtime.sampling.samplers import SAMPLERS, StepTable, step_table
from celebctl_runtime.sampling.schedule import ScheduleConfig

SHIPPED: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
DIFFUSERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("scheduling_ddim", "DDIMScheduler", {}),
    "euler": ("scheduling_euler_discrete", "EulerDiscreteScheduler", {}),
    "euler_a": ("scheduling_euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "lcm": ("scheduling_lcm", "LCMScheduler", {}),
}
# Raised inside diffusers.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SPACINGS = ("leading", "trailing", "linspace", None)


def network(x: NDArray[np.float32], timestep: float) -> NDArray[np.float32]:
    """A nonlinear stand-in for the UNet that depends on the timestep too."""
    return np.float32(1.1) * np.tanh(np.float32(0.8) * x + np.float32(0.001 * timestep))


def draw_noise(steps: int) -> NDArray[np.float32]:
    """Initial noise and one draw per step, (steps + 1, 1, 4, 8, 8)."""
    return np.random.default_rng(0).standard_normal((steps + 1, 1, 4, 8, 8), dtype=np.float32)


def run_table(
    table: StepTable, noise: NDArray[np.float32], image: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """The step graph in numpy, from noise or from an init image's latent."""
    start = noise[0] * np.float32(table.init_sigma)
    if image is not None:
        start = (table.init_mix[0] * image + table.init_mix[1] * noise[0]).astype(np.float32)
    state = np.stack([start, np.zeros_like(noise[0])])
    for i in range(table.steps):
        scale, timestep, _ = table.aux[i]
        output = network(state[0] * scale, float(timestep))
        seen = np.concatenate([state, output[None], noise[i + 1][None]]).reshape(4, -1)
        state = (table.table[i] @ seen).reshape(state.shape)
    return state[0]


def run_diffusers(
    sampler: str,
    config: dict[str, Any],
    steps: int,
    noise: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
    sharp: bool = True,
    skip: int = 0,
    image: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], list[float]]:
    """The same with diffusers' own class; returns the last latent and the timesteps.

    With an image's latent the first ``skip`` steps are left out, as diffusers' image-to-image pipelines do.
    """
    import torch as any_torch
    from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm

    torch: Any = any_torch
    module, name, extra = DIFFUSERS[sampler]
    scheduler: Any = getattr(import_module(f"diffusers.schedulers.{module}"), name).from_config(config, **extra)
    if sharp:
        sharpen(scheduler)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skip)  # as pipelines do: otherwise two equal timesteps confuse it
    draws: Iterator[NDArray[np.float32]] = iter(noise[1:])

    def next_draw(*_: object, **__: object) -> Any:
        return torch.from_numpy(next(draws))

    for module in (scheduling_euler_ancestral_discrete, scheduling_lcm):
        monkeypatch.setattr(module, "randn_tensor", next_draw)
    latent: Any = torch.from_numpy(noise[0]) * scheduler.init_noise_sigma
    if image is not None:
        first = scheduler.timesteps[skip : skip + 1]
        latent = scheduler.add_noise(torch.from_numpy(image), torch.from_numpy(noise[0]), first).float()
    for timestep in scheduler.timesteps[skip:]:
        seen = scheduler.scale_model_input(latent, timestep)
        output = torch.from_numpy(network(seen.numpy(), float(timestep)))
        latent = scheduler.step(output, timestep, latent, return_dict=False)[0]
    return latent.numpy(), [float(timestep) for timestep in scheduler.timesteps[skip:]]


def sharpen(scheduler: Any) -> None:
    """Give the scheduler its noise levels in float64.

    It keeps them in float32, where 1 - alpha loses up to five digits at the low end; with the same formulas in float64
    what remains is the rounding of the latents, and the comparison can be strict.
    """
    import torch

    last = scheduler.alphas_cumprod[-1].double()
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    if last > scheduler.alphas_cumprod[-1]:  # the classes that need a finite last noise level put 2^-24 there
        scheduler.alphas_cumprod[-1] = last
    if hasattr(scheduler, "final_alpha_cumprod") and not scheduler.config.set_alpha_to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]


def relative_error(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_whole_trajectories_agree_with_diffusers(
    sampler: str, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spacing, steps, schedule in itertools.product(SPACINGS, (1, 2, 15, 20, 33), ("scaled_linear", "linear")):
        config = {**SHIPPED, "prediction_type": prediction, "beta_schedule": schedule}
        if spacing:
            config["timestep_spacing"] = spacing
        noise = draw_noise(steps)
        expected, timesteps = run_diffusers(sampler, config, steps, noise, monkeypatch)
        table = step_table(sampler, ScheduleConfig.from_dict(config), steps, 2.5)
        assert table.aux[:, 1].tolist() == pytest.approx(timesteps, abs=1e-3), (spacing, steps, schedule)
        assert relative_error(run_table(table, noise), expected) < 1e-5, (spacing, steps, schedule)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_unmodified_diffusers_agrees_with_shipped_configs(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without :func:`sharpen`, at a usual number of steps."""
    for prediction, steps in itertools.product(("epsilon", "v_prediction"), (15, 25)):
        config = {**SHIPPED, "prediction_type": prediction, "timestep_spacing": "leading"}
        noise = draw_noise(steps)
        expected, _ = run_diffusers(sampler, config, steps, noise, monkeypatch, sharp=False)
        table = step_table(sampler, ScheduleConfig.from_dict(config), steps, 1.0)
        assert relative_error(run_table(table, noise), expected) < 1e-5, (prediction, steps)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "lcm"])
@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "sample"},
        {"set_alpha_to_one": True},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ],
)
def test_uncommon_schedules_agree_with_diffusers(
    sampler: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**SHIPPED, **changes}
    noise = draw_noise(12)
    expected, _ = run_diffusers(sampler, config, 12, noise, monkeypatch)
    table = step_table(sampler, ScheduleConfig.from_dict(config), 12, 1.0)
    assert relative_error(run_table(table, noise), expected) < 1e-5


@pytest.mark.parametrize("spacing", ["trailing", "leading", None])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_zero_terminal_snr_agrees_with_diffusers(
    sampler: str, spacing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rescaled betas and v-prediction, as NoobAI and its relatives are trained, on every sampler.

    diffusers' Euler classes keep the first latent in float32 at its noise level, 4096, so that they round by 5e-4.
    """
    limit = 1e-3 if sampler in ("euler", "euler_a") else 1e-5
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    config = {**SHIPPED, **zero, **({"timestep_spacing": spacing} if spacing else {})}
    for steps in (1, 12, 28):
        noise = draw_noise(steps)
        expected, timesteps = run_diffusers(sampler, config, steps, noise, monkeypatch)
        table = step_table(sampler, ScheduleConfig.from_dict(config), steps, 5.0)
        assert table.aux[:, 1].tolist() == pytest.approx(timesteps, abs=1e-3), steps
        assert relative_error(run_table(table, noise), expected) < limit, steps


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_perfect_network_ends_at_the_image(sampler: str) -> None:
    """If the network always knows the noise, every sampler must end at the image itself (but for a rest of noise)."""
    config = ScheduleConfig.from_dict({**SHIPPED, "prediction_type": "sample", "set_alpha_to_one": True})
    table = step_table(sampler, config, 10, 1.0)
    image, noise = np.float32(0.7), draw_noise(10)
    state = np.stack([noise[0] * np.float32(table.init_sigma), np.zeros_like(noise[0])])
    for i in range(10):
        seen = np.concatenate([state, np.full_like(state[:1], image), noise[i + 1][None]]).reshape(4, -1)
        state = (table.table[i] @ seen).reshape(state.shape)
    assert np.abs(state[0] - image).max() < 0.05


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tables_are_float32_and_finite_and_say_whether_they_use_noise(sampler: str) -> None:
    table = step_table(sampler, ScheduleConfig.from_dict(SHIPPED), 8, 7.5)
    assert table.table.shape == (8, 2, 4) and table.table.dtype == np.float32
    assert table.aux.shape == (8, 3) and table.aux.dtype == np.float32
    assert np.isfinite(table.table).all() and (table.aux[:, 2] == 7.5).all()
    assert table.uses_noise == bool(table.table[:, 0, 3].any()) == (sampler in ("euler_a", "lcm"))
    assert table.table[-1, 0, 3] == 0, "the last step adds no noise"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_number_of_steps_has_a_table_or_an_error(sampler: str) -> None:
    for spacing in ("leading", "trailing", "linspace"):
        config = ScheduleConfig.from_dict({**SHIPPED, "timestep_spacing": spacing})
        for steps in (0, 3, 50, 51, 499, 501, 999, 1000, 1001):
            try:
                table = step_table(sampler, config, steps, 1.0)
            except UsageError as error:
                assert error.reason == "steps_out_of_range" and error.values["value"] == steps
            else:
                assert table.steps == steps
                assert table.aux[:, 1].min() >= 0 and table.aux[:, 1].max() <= 999


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        step_table("plms", ScheduleConfig(), 10, 1.0)
    assert caught.value.reason == "unknown_sampler" and caught.value.values["name"] == "plms"


@pytest.mark.parametrize(
    "changes",
    [
        {"thresholding": True},
        {"prediction_type": "flow_prediction"},
        {"beta_schedule": "sigmoid"},
        {"timestep_spacing": "random"},
    ],
)
def test_unsupported_schedules_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        ScheduleConfig.from_dict({**SHIPPED, **changes})


def test_defaults_that_diffusers_filled_in_are_ignored() -> None:
    explicit = {**SHIPPED, "timestep_spacing": "leading"}
    filled = {**explicit, "_use_default_values": ["timestep_spacing"]}
    assert ScheduleConfig.from_dict(explicit).timestep_spacing == "leading"
    assert ScheduleConfig.from_dict(filled).timestep_spacing is None


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "lcm"])
def test_init_images_agree_with_diffusers(sampler: str, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any first step: the image with that step's noise, and no history of skipped steps."""
    image = np.random.default_rng(5).standard_normal((1, 4, 8, 8), dtype=np.float32)
    for spacing, skip in itertools.product(("leading", "trailing"), (0, 1, 7, 14)):
        config = {**SHIPPED, "prediction_type": prediction, "timestep_spacing": spacing}
        noise = draw_noise(15)
        expected, timesteps = run_diffusers(sampler, config, 15, noise, monkeypatch, skip=skip, image=image)
        table = step_table(sampler, ScheduleConfig.from_dict(config), 15, 2.5, skip)
        assert table.aux[:, 1].tolist() == pytest.approx(timesteps, abs=1e-3), (spacing, skip)
        assert relative_error(run_table(table, noise, image), expected) < 1e-5, (spacing, skip)


FLOW: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
DYNAMIC = {**FLOW, "use_dynamic_shifting": True}


@pytest.mark.parametrize(
    "config", [FLOW, {**FLOW, "shift": 1.0}, DYNAMIC, {**DYNAMIC, "time_shift_type": "linear", "base_shift": 1.2}]
)
@pytest.mark.parametrize("skip", [0, 3])
def test_flow_matching_agrees_with_diffusers(config: dict[str, Any], skip: int) -> None:
    """Whole trajectories from noise, and from the middle with an init image; a dynamic shift depends on the size."""
    import torch as any_torch
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    torch: Any = any_torch
    pipeline: Any = import_module("diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3")
    image = np.random.default_rng(5).standard_normal((1, 4, 8, 8), dtype=np.float32)
    for steps, tokens in itertools.product((4, 15, 28), (256, 1024, 4096)):
        scheduler: Any = cast(Any, FlowMatchEulerDiscreteScheduler).from_config(config)
        sizes = (config.get("base_shift", 0.5), 1.15)
        mu = pipeline.calculate_shift(tokens, 256, 4096, *sizes) if config.get("use_dynamic_shifting") else None
        scheduler.set_timesteps(steps, mu=mu)
        scheduler.set_begin_index(skip)
        noise = draw_noise(steps)
        latent = torch.from_numpy(noise[0])
        if skip:
            latent = scheduler.scale_noise(torch.from_numpy(image), scheduler.timesteps[skip : skip + 1], latent)
        for timestep in scheduler.timesteps[skip:]:
            output = torch.from_numpy(network(latent.numpy(), float(timestep)))
            latent = scheduler.step(output, timestep, latent, return_dict=False)[0]
        schedule = ScheduleConfig.from_dict(config).for_image(tokens)
        table = step_table("euler", schedule, steps, 4.5, skip)
        assert table.aux[:, 1].tolist() == pytest.approx(scheduler.timesteps[skip:].tolist(), abs=1e-3)
        assert not table.uses_noise and table.init_sigma == 1.0
        assert relative_error(run_table(table, noise, image if skip else None), latent.numpy()) < 1e-5


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "euler"])
def test_samplers_of_diffusion_do_not_fit_flow_matching(sampler: str) -> None:
    with pytest.raises(UsageError) as caught:
        step_table(sampler, ScheduleConfig.from_dict(FLOW), 10, 1.0)
    assert caught.value.reason == "sampler_does_not_fit" and caught.value.values["fitting"] == "euler"


def test_a_flow_takes_up_to_a_thousand_steps() -> None:
    config = ScheduleConfig.from_dict(FLOW)
    assert [step_table("euler", config, steps, 1.0).steps for steps in (1, 1000)] == [1, 1000]
    with pytest.raises(UsageError):
        step_table("euler", config, 1001, 1.0)


@pytest.mark.parametrize("key", ["shift_terminal", "use_karras_sigmas", "stochastic_sampling", "invert_sigmas"])
def test_other_settings_of_flow_matching_are_refused(key: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        ScheduleConfig.from_dict({**FLOW, key: 0.1})
    assert caught.value.reason == "unsupported_scheduler"
