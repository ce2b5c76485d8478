"""The noise schedule a model was trained with, read from its diffusers ``scheduler_config.json``.

Only facts of the training are read. The request chooses the sampler, so keys such as ``use_karras_sigmas`` or
``algorithm_type`` are ignored; so is ``clip_sample``, which diffusers' StableDiffusionPipeline switches off for every
latent model. Everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
FLOW = "flow_prediction"  # of models trained by flow matching, whose scheduler configs do not name it
SPACINGS = ("leading", "trailing", "linspace")
_FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_FLOW_UNSUPPORTED = (
    "invert_sigmas", "shift_terminal", "stochastic_sampling", "use_beta_sigmas", "use_exponential_sigmas",
    "use_karras_sigmas",
)  # fmt: skip
#: diffusers' schedulers that noise as in DDPM, for which only the training facts of a config count. EDM's do not.
_SCHEDULERS = frozenset(
    (
        _FLOW_SCHEDULER, "DDIMInverseScheduler", "DDIMParallelScheduler",
        "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler",
        "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
        "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
        "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler",
        "UniPCMultistepScheduler",
    )
)  # fmt: skip
_MAX_TIMESTEPS, _MAX_NUMBER = 100_000, 1e6  # far above every real model
_LIMITS = {
    "num_train_timesteps": (2, _MAX_TIMESTEPS),
    "steps_offset": (0, 1000),
    "original_inference_steps": (1, _MAX_TIMESTEPS),
    "beta_start": (1e-9, 0.9999),
    "beta_end": (1e-9, 0.9999),
    "shift": (1e-6, _MAX_NUMBER),
    "base_shift": (-100, 100),
    "max_shift": (-100, 100),
    "timestep_scaling": (1e-6, _MAX_NUMBER),
    "base_image_seq_len": (1, 1 << 24),
    "max_image_seq_len": (1, 1 << 24),
}
_NEARLY_ZERO = 2.0**-24  # diffusers' replacement for a zero last alpha where 1 / alpha is needed


@dataclass(frozen=True)
class ScheduleConfig:
    """Training facts under diffusers' own names and defaults.

    ``timestep_spacing`` is None when the config does not set it; each sampler then uses its own diffusers default.
    From ``shift`` on, the settings are those of flow matching (``prediction_type`` "flow_prediction").
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False
    original_inference_steps: int = 50  # lcm
    timestep_scaling: float = 10.0  # lcm
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: str = "exponential"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ScheduleConfig:
        """Read a diffusers scheduler config. Raises IntegrityError for settings that a step table cannot express."""
        if (name := data.get("_class_name")) is not None and str(name) not in _SCHEDULERS:
            raise _unsupported(
                f"the model's scheduler is {str(name)[:80]!r}, which is not supported", "a DDIMScheduler"
            )
        listed: Any = data.get("_use_default_values")
        defaulted = set(map(str, cast("list[Any]", listed))) if isinstance(listed, list | tuple) else set[str]()
        names = {field.name for field in fields(cls)} - defaulted
        values = {key: _checked(key, value) for key, value in data.items() if key in names}
        config = cls(**values)
        _check_betas(config)
        if data.get("thresholding"):
            raise _unsupported("the model's scheduler uses thresholding, which is not supported", "another one")
        _check_choice("prediction_type", config.prediction_type, PREDICTIONS)
        _check_choice("timestep_spacing", config.timestep_spacing or SPACINGS[0], SPACINGS)
        _check_choice("beta_schedule", config.beta_schedule, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        if data.get("_class_name") != _FLOW_SCHEDULER:
            return config
        for key in _FLOW_UNSUPPORTED:
            if data.get(key):
                raise _unsupported(f"the model's scheduler has {key}, which is not supported", f"one without {key}")
        _check_choice("time_shift_type", config.time_shift_type, ("exponential", "linear"))
        return replace(config, prediction_type=FLOW)

    @property
    def last_timestep(self) -> int:
        """The timestep of the highest noise: the number of a training step, or 1000 times the noise level of a flow."""
        return self.num_train_timesteps - (self.prediction_type != FLOW)

    def for_image(self, tokens: int) -> ScheduleConfig:
        """The schedule for images of so many of the network's patches.

        It differs with ``use_dynamic_shifting`` only: ``shift`` then grows with the image, as in diffusers'
        StableDiffusion3Pipeline.
        """
        if not self.use_dynamic_shifting:
            return self
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        mu = self.base_shift + slope * (tokens - self.base_image_seq_len)
        return replace(self, shift=math.exp(mu) if self.time_shift_type == "exponential" else mu)

    def shifted(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Noise levels of a flow, 0 to 1, moved towards 1 by ``shift`` (Esser et al. 2024, section 5.3.2)."""
        return self.shift * levels / (1 + (self.shift - 1) * levels)

    def betas(self) -> NDArray[np.float64]:
        """Variance added at each training step, (T,) float64."""
        count = self.num_train_timesteps
        if self.trained_betas is not None:
            return np.array(self.trained_betas, dtype=np.float64)
        if self.beta_schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, count)
        if self.beta_schedule == "scaled_linear":
            return np.square(np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), count))
        bar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2  # Nichol and Dhariwal 2021
        return np.minimum(1 - bar[1:] / bar[:-1], 0.999)

    def alphas_cumprod(self) -> NDArray[np.float64]:
        """Fraction of signal variance left after each training step, (T,) float64, falling from almost 1."""
        bar = np.cumprod(1 - self.betas(), dtype=np.float64)
        if self.rescale_betas_zero_snr:  # Lin et al. 2023, algorithm 1
            root = np.sqrt(bar)
            bar = np.square((root - root[-1]) * root[0] / (root[0] - root[-1]))
        return bar

    def sigmas(self) -> NDArray[np.float64]:
        """Noise over signal, sqrt((1 - alpha) / alpha), (T,) float64, rising; finite even with zero terminal SNR."""
        bar = self.alphas_cumprod()
        if self.rescale_betas_zero_snr:
            bar[-1] = _NEARLY_ZERO
        return np.sqrt((1 - bar) / bar)


def spaced_timesteps(spacing: str, total: int, steps: int, offset: int) -> NDArray[np.float64]:
    """``steps`` training steps from high to low (Lin et al. 2023, table 2); not rounded for linspace."""
    if spacing == "linspace":
        return np.linspace(0, total - 1, steps)[::-1]
    if spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (total // steps) + offset
    times: NDArray[np.float64] = np.arange(total, 0, -total / steps)[:steps]
    return times.round() - 1


def _checked(key: str, value: Any) -> Any:
    """The value of an entry, of the type of its default. Raises IntegrityError."""
    default = getattr(ScheduleConfig, key)
    if value is None:
        return default
    if key == "trained_betas":
        betas = list(cast("list[Any]", value)) if isinstance(value, list | tuple) else []
        if not 2 <= len(betas) <= _MAX_TIMESTEPS or not all(_is_number(beta) and 0 < beta < 1 for beta in betas):
            raise _wrong(key, betas or "not a list")
        return tuple(float(beta) for beta in betas)
    if key in _LIMITS:
        low, high = _LIMITS[key]
        whole = isinstance(default, int)
        if not _is_number(value) or (whole and value != int(value)) or not low <= value <= high:
            raise _wrong(key, value)
        return int(value) if whole else float(value)
    if type(value) is not (str if default is None else type(default)):
        raise _wrong(key, value)
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(key: str, value: object) -> IntegrityError:
    return _unsupported(f"{key} of the model's scheduler is {str(value)[:60]}", f"a usual {key}")


def _check_betas(config: ScheduleConfig) -> None:
    """Raise IntegrityError for entries that contradict each other."""
    if config.trained_betas is not None and len(config.trained_betas) != config.num_train_timesteps:
        raise _wrong("trained_betas", f"a list of {len(config.trained_betas)} for {config.num_train_timesteps} steps")
    if config.use_dynamic_shifting and config.base_image_seq_len == config.max_image_seq_len:
        raise _wrong("max_image_seq_len", config.max_image_seq_len)


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _unsupported(f"the model's scheduler has the unsupported {key} {value!r}", f"one of {', '.join(choices)}")


def _unsupported(problem: str, instead: str) -> IntegrityError:
    hint = f"export the model with another scheduler config: {instead}"
    return IntegrityError(problem, hint, reason="unsupported_scheduler")
