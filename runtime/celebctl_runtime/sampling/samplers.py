"""Samplers as tables of numbers: one matrix per step, computed in float64.

Every step of every sampler here is linear in its inputs. With x the latent, m the model's (guided) output, x0 the clean
latent it predicts and n new noise, a step is

    x0 = a x + b m                              (from the prediction type)
    x' = p x + q x0 + r (previous x0) + s n     (from the sampler)

so with state = [x, previous x0] it is ``state' = table[i] @ [x, previous x0, m, n]``, a (2, 4) matrix. The graph that
runs a step is the same for all samplers; each table agrees with the diffusers scheduler of the same name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import UsageError
from celebctl_runtime.request import SAMPLERS, unknown_sampler

from .schedule import FLOW, ScheduleConfig, spaced_timesteps

__all__ = ["SAMPLERS", "StepTable", "inversion_table", "step_table"]

_RHO = 7.0  # Karras et al. 2022, equation 5
_LCM_SIGMA_DATA = 0.5  # Luo et al. 2023, appendix


@dataclass(frozen=True)
class StepTable:
    """The numbers of one run of N steps.

    Attributes:
        table: (N, 2, 4) float32. Rows: new x, new history. Columns: x, history, model output, noise.
        aux: (N, 3) float32: scale of the model's input, timestep, guidance.
        init_sigma: Standard deviation of the initial noise.
        uses_noise: Whether steps add noise.
        mixes: (N + 1, 2) float64. Weights of a clean latent and of unit noise at the noise level of the state before
            each step, and after the last one, where there is no noise.

    Example:
        >>> steps = step_table("ddim", ScheduleConfig(), steps=20, guidance=7.5)
        >>> steps.table.shape, steps.aux.shape, steps.uses_noise
        ((20, 2, 4), (20, 3), False)
    """

    table: NDArray[np.float32]
    aux: NDArray[np.float32]
    init_sigma: float
    uses_noise: bool
    mixes: NDArray[np.float64] = field(default_factory=lambda: np.array([(0.0, 1.0), (1.0, 0.0)]))

    @property
    def steps(self) -> int:
        """N, the number of steps."""
        return len(self.table)

    @property
    def init_mix(self) -> tuple[float, float]:
        """Weights of an init image's latent and of unit noise in the first state."""
        return self.mixes[0, 0], self.mixes[0, 1]


@dataclass(frozen=True)
class _Step:
    """x' = p x + q x0 + r history + s noise, at signal ``alpha`` and noise ``sigma`` of the model's scaled input."""

    timestep: float
    alpha: float
    sigma: float
    p: float
    q: float
    r: float = 0.0
    s: float = 0.0
    scale: float = 1.0


def step_table(sampler: str, config: ScheduleConfig, steps: int, guidance: float, skip: int = 0) -> StepTable:
    """The table of a sampler.

    Args:
        sampler: One of :data:`SAMPLERS`.
        config: The model's noise schedule.
        steps: Steps of the schedule.
        guidance: Guidance scale, the same at every step.
        skip: How many of the first steps to leave out, for an init image.

    Raises:
        UsageError: For an unknown sampler, or a sampler or number of steps that the schedule does not allow.
    """
    rows, init_sigma = _rows(sampler, config, steps)
    rows = rows[skip:]
    rows[0] = replace(rows[0], q=rows[0].q + rows[0].r, r=0.0)  # no history before the first step
    table = np.array([_matrix(row, config.prediction_type) for row in rows])
    uses_noise = any(row.s for row in rows)
    return StepTable(table.astype(np.float32), _aux(rows, guidance), init_sigma, uses_noise, _mixes(rows))


def inversion_table(sampler: str, config: ScheduleConfig, steps: int, guidance: float, skip: int = 0) -> StepTable:
    """The steps from an image's latent to the noise that DDIM draws it from (Song et al. 2021, section 4.3).

    They visit the noise levels of :func:`step_table` with the same arguments from the last to the first; ``mixes`` has
    them in this order. The network is evaluated at the level that a step starts from; at the clean latent, for which
    models are not trained, at the lowest level of the sampler.

    Raises:
        UsageError: As :func:`step_table`.

    Example:
        >>> inversion = inversion_table("ddim", ScheduleConfig(), 20, 1.0, skip=4)
        >>> inversion.steps, inversion.mixes[0].tolist()
        (16, [1.0, 0.0])
    """
    rows = _rows(sampler, config, steps)[0][skip:]
    evaluated = [rows[-1], *rows[:0:-1]]  # from the lowest level up, without the highest
    mixes = _mixes(rows)[::-1]
    table = np.zeros((len(rows), 2, 4))
    for number, (row, (signal, sigma)) in enumerate(zip(evaluated, mixes[1:], strict=True)):
        a, b = _x0_weights(row, config.prediction_type)
        noise = np.array([row.scale - row.alpha * a, -row.alpha * b]) / row.sigma  # of x and m, as a and b are of x0
        clean = np.array([1.0, 0.0] if number == 0 else [a, b])
        table[number, 0, [0, 2]] = signal * clean + sigma * noise
    return StepTable(table.astype(np.float32), _aux(evaluated, guidance), 1.0, False, mixes)


def _rows(sampler: str, config: ScheduleConfig, steps: int) -> tuple[list[_Step], float]:
    """All steps of a sampler, and the standard deviation of the initial noise. Raises UsageError."""
    builder = _builder(sampler, config)
    if not 1 <= steps <= config.num_train_timesteps:
        raise _too_many(sampler, steps, config.num_train_timesteps)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows, init_sigma = builder(config, steps)
    table = np.array([_matrix(row, config.prediction_type) for row in rows])
    timesteps = np.array([row.timestep for row in rows])
    in_range = timesteps.min() >= 0 and timesteps.max() <= config.last_timestep
    if len(rows) != steps or not in_range or not np.isfinite(table).all():
        raise _too_many(sampler, steps, config.num_train_timesteps)
    return rows, init_sigma


def _aux(rows: Sequence[_Step], guidance: float) -> NDArray[np.float32]:
    return np.array([(row.scale, row.timestep, guidance) for row in rows], np.float32)


def _mixes(rows: Sequence[_Step]) -> NDArray[np.float64]:
    return np.array([*((row.alpha / row.scale, row.sigma / row.scale) for row in rows), (1.0, 0.0)])


def _builder(sampler: str, config: ScheduleConfig) -> _Builder:
    """What builds the rows of a sampler. Raises UsageError."""
    if sampler not in _BUILDERS:
        raise unknown_sampler(sampler)
    builders = _FLOW_BUILDERS if config.prediction_type == FLOW else _BUILDERS
    if sampler not in builders:
        fitting = ", ".join(builders)
        problem = f"{sampler} is no sampler for a model of flow matching"
        raise UsageError(problem, f"use {fitting}", reason="sampler_does_not_fit", name=sampler, fitting=fitting)
    return builders[sampler]


def _matrix(step: _Step, prediction: str) -> list[list[float]]:
    a, b = _x0_weights(step, prediction)
    return [[step.p + step.q * a, step.r, step.q * b, step.s], [a, 0.0, b, 0.0]]


def _x0_weights(step: _Step, prediction: str) -> tuple[float, float]:
    """a, b with x0 = a x + b m. The model sees scale * x = alpha x0 + sigma noise."""
    if prediction == "epsilon":
        return float(np.float64(step.scale) / step.alpha), float(-np.float64(step.sigma) / step.alpha)
    if prediction == "v_prediction":
        return step.alpha * step.scale, -step.sigma
    if prediction == FLOW:  # m = noise - x0 and x = (1 - sigma) x0 + sigma noise
        return 1.0, -step.sigma
    return 0.0, 1.0


def _ddim(config: ScheduleConfig, steps: int) -> tuple[list[_Step], float]:
    """DDIM with eta 0 (Song et al. 2021, equation 12)."""
    bar = config.alphas_cumprod()
    final = 1.0 if config.set_alpha_to_one else bar[0]
    times = _rounded(spaced_timesteps(config.timestep_spacing or "leading", len(bar), steps, config.steps_offset))
    stride = len(bar) // steps
    rows: list[_Step] = []
    for t in _valid_steps(times, len(bar)):
        alpha, sigma = _roots(bar[t])
        alpha_next, sigma_next = _roots(bar[t - stride] if t >= stride else final)
        p = sigma_next / sigma
        rows.append(_Step(t, alpha, sigma, p=p, q=alpha_next - p * alpha))
    return rows, 1.0


def _euler(config: ScheduleConfig, steps: int) -> tuple[list[_Step], float]:
    """Euler's method on the probability flow (Karras et al. 2022, algorithm 1). Here x = x0 + sigma noise."""
    sigmas, times, init_sigma = _euler_schedule(config, steps)
    rows = [
        _variance_exploding(t, sigma, p=following / sigma)
        for t, sigma, following in zip(times, sigmas[:-1], sigmas[1:], strict=True)
    ]
    return rows, init_sigma


def _euler_ancestral(config: ScheduleConfig, steps: int) -> tuple[list[_Step], float]:
    """Euler's method to below the next noise level, and new noise back up to it (k-diffusion)."""
    sigmas, times, init_sigma = _euler_schedule(config, steps)
    rows: list[_Step] = []
    for t, sigma, following in zip(times, sigmas[:-1], sigmas[1:], strict=True):
        up = math.sqrt(following**2 * (sigma**2 - following**2)) / sigma
        down = math.sqrt(following**2 - up**2)
        rows.append(_variance_exploding(t, sigma, p=down / sigma, s=up))
    return rows, init_sigma


def _dpmpp_2m(config: ScheduleConfig, steps: int) -> tuple[list[_Step], float]:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, algorithm 2)."""
    spacing, total = config.timestep_spacing or "linspace", config.num_train_timesteps
    if spacing == "trailing":
        times = _rounded(spaced_timesteps(spacing, total, steps, config.steps_offset))
    else:  # as diffusers: one more step, of which the last is replaced by the step to zero noise
        times = _rounded(spaced_timesteps(spacing, total, steps + 1, config.steps_offset))[:-1]
    sigmas = np.interp(times, np.arange(total), config.sigmas())
    return _second_order_rows(times.astype(np.float64), np.append(sigmas, 0.0)), 1.0


def _dpmpp_2m_karras(config: ScheduleConfig, steps: int) -> tuple[list[_Step], float]:
    """DPM-Solver++(2M) on the noise levels of Karras et al. 2022, equation 5."""
    training = config.sigmas()
    low, high = float(training[0]) ** (1 / _RHO), float(training[-1]) ** (1 / _RHO)
    sigmas = np.array([(high + ramp * (low - high)) ** _RHO for ramp in np.linspace(0, 1, steps).tolist()])
    exact = np.interp(np.log(sigmas), np.log(training), np.arange(len(training)))
    times = np.trunc(exact) if config.beta_schedule == "squaredcos_cap_v2" else np.round(exact)
    return _second_order_rows(times, np.append(sigmas, 0.0)), 1.0


def _lcm(config: ScheduleConfig, steps: int) -> tuple[list[_Step], float]:
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3)."""
    bar, origin = config.alphas_cumprod().tolist(), config.original_inference_steps
    if steps > origin:
        raise _too_many("lcm", steps, origin)
    origin_times = np.arange(1, origin + 1)[::-1] * (len(bar) // origin) - 1
    chosen = np.floor(np.linspace(0, origin, steps, endpoint=False)).astype(np.int64)
    times: list[int] = origin_times[chosen].tolist()
    following = [*(_roots(bar[t]) for t in times[1:]), (1.0, 0.0)]
    rows: list[_Step] = []
    for t, (alpha_next, sigma_next) in zip(times, following, strict=True):
        scaled = t * config.timestep_scaling
        skip = _LCM_SIGMA_DATA**2 / (scaled**2 + _LCM_SIGMA_DATA**2)
        out = scaled / math.sqrt(scaled**2 + _LCM_SIGMA_DATA**2)
        alpha, sigma = _roots(bar[t])
        rows.append(_Step(t, alpha, sigma, p=alpha_next * skip, q=alpha_next * out, s=sigma_next))
    return rows, 1.0


def _flow_euler(config: ScheduleConfig, steps: int) -> tuple[list[_Step], float]:
    """Euler's method on a rectified flow (Esser et al. 2024): x' = x + (sigma' - sigma) m, from sigma 1 to 0."""
    total = config.num_train_timesteps
    # diffusers shifts the lowest level twice, except with dynamic shifting
    lowest = np.array(1 / total) if config.use_dynamic_shifting else config.shifted(np.array(1 / total))
    sigmas = config.shifted(np.linspace(1.0, float(lowest), steps)).tolist()
    rows = [
        _Step(total * sigma, 1 - sigma, sigma, p=following / sigma, q=1 - following / sigma)
        for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True)
    ]
    return rows, 1.0


def _euler_schedule(config: ScheduleConfig, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Noise levels (steps + 1,) ending in 0, timesteps (steps,), and the scale of the initial noise."""
    spacing, total = config.timestep_spacing or "linspace", config.num_train_timesteps
    times = spaced_timesteps(spacing, total, steps, config.steps_offset)
    sigmas = np.interp(times, np.arange(total), config.sigmas())
    # With "leading" the first level is not the highest: there diffusers starts from signal-free noise of that level.
    init_sigma = math.sqrt(sigmas[0] ** 2 + 1) if spacing == "leading" else float(sigmas[0])
    return np.append(sigmas, 0.0), times, init_sigma


def _variance_exploding(t: float, sigma: float, p: float, s: float = 0.0) -> _Step:
    scale = 1 / math.sqrt(sigma**2 + 1)
    return _Step(float(t), scale, sigma * scale, p=p, q=1 - p, s=s, scale=scale)


def _second_order_rows(times: NDArray[np.float64], sigmas: NDArray[np.float64]) -> list[_Step]:
    """Steps between noise levels ``sigmas`` (N + 1,); the first and the last are of first order."""
    rows: list[_Step] = []
    for i, t in enumerate(times):
        sigma, following = float(sigmas[i]), float(sigmas[i + 1])
        alpha, alpha_next = 1 / math.sqrt(sigma**2 + 1), 1 / math.sqrt(following**2 + 1)
        gain, r = alpha_next * (1 - following / sigma), 0.0
        if 0 < i < len(times) - 1:  # log(a / b) of noise levels is h, the step in half the log SNR
            ratio = np.log(sigmas[i - 1] / sigma) / np.log(sigma / following)
            r = float(-gain / (2 * ratio))
        p = following * alpha_next / (sigma * alpha)
        rows.append(_Step(float(t), alpha, sigma * alpha, p=p, q=gain - r, r=r))
    return rows


def _roots(bar: float) -> tuple[float, float]:
    """Signal and noise amplitudes at ``bar``, the fraction of signal variance."""
    return math.sqrt(bar), math.sqrt(1 - bar)


def _rounded(times: NDArray[np.float64]) -> NDArray[np.int64]:
    return times.round().astype(np.int64)


def _valid_steps(times: NDArray[np.int64], total: int) -> Iterable[int]:
    """Only existing steps; the caller turns a schedule that is too short into an error."""
    return (int(t) for t in times if 0 <= t < total)


def _too_many(sampler: str, steps: int, limit: int) -> UsageError:
    return UsageError(
        f"{sampler} cannot take {steps} steps on this model's schedule",
        f"use 1 to {limit - 1} steps",
        reason="steps_out_of_range",
        value=steps,
        minimum=1,
        maximum=limit - 1,
    )


_Builder = Callable[[ScheduleConfig, int], tuple[list[_Step], float]]
_BUILDERS: dict[str, _Builder] = {
    "ddim": _ddim,
    "euler": _euler,
    "euler_a": _euler_ancestral,
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_2m_karras": _dpmpp_2m_karras,
    "lcm": _lcm,
}
_FLOW_BUILDERS: dict[str, _Builder] = {"euler": _flow_euler}
