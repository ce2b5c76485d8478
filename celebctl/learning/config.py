"""Settings of learning. The presets ``clean`` and ``faithful`` differ here and nowhere else.

``faithful`` is the published release (the authors' repository at 557531b), its scale and its loss, known faults
included. ``clean`` is the default: the same method with these faults corrected, coefficients in standard deviations of
the celebrities, and a pretrained mapper as the initialization.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from celebctl_models.faces.framing import Framing
from celebctl_runtime.errors import UsageError

MAX_STEPS = 100_000


@dataclass(frozen=True)
class LearnConfig:
    """Settings of one training run; with the photos and the model they determine every number of the result."""

    #: Name of the preset these values come from.
    preset: str = "clean"
    #: Seed of everything random: mapper weights, views, noise, timesteps, captions.
    seed: int = 0
    #: Optimizer steps; 0 returns the initialization.
    steps: int = 60
    #: Views per person in each step.
    views: int = 4
    #: Learning rate and weight decay of AdamW.
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    #: Cosine decay of the learning rate to zero; constant otherwise.
    anneal: bool = True
    #: Tokens behind the basis: "distinct" drops repeated tokens, "release" keeps them and completes the components
    #: with null-space directions.
    names: Literal["distinct", "release"] = "distinct"
    #: Scale of coefficients: "spread", standard deviations of the celebrities bounded by ``bound``; "unit", one unit
    #: vector per token position, as in the release.
    scale: Literal["spread", "unit"] = "spread"
    #: Largest coefficient in standard deviations, approached through tanh.
    bound: float = 2.5
    #: Initialization of the mapper: "fitted", the pretrained mapper of the model; "celebrities", a ridge fit to the
    #: celebrities' features and coefficients; "average", the average celebrity; "random". What a model lacks falls
    #: back to the next in this order.
    init: Literal["fitted", "celebrities", "average", "random"] = "fitted"
    #: Factor on the distance from the average celebrity in the "celebrities" initialization.
    init_gain: float = 1.8
    #: LeakyReLU(0.2) after the linear layer.
    leaky_relu: bool = False
    #: Weight of the squared distance from the initialization.
    init_l2: float = 1.0
    #: Loss weight outside the face; 1 weighs the whole view alike.
    background_weight: float = 0.05
    #: What surrounds the face in a view: the photo, or a black canvas as in the release.
    canvas: Literal["photo", "black"] = "photo"
    #: Height of the face as a fraction of the view's height. None: as the model draws faces (initialization.py).
    face_height_min: float | None = None
    face_height_max: float | None = None
    #: Center of the face from the top of the view, and largest random shift, as fractions of the view's height.
    face_center_y: float | None = None
    face_jitter: float | None = None
    #: Probability of a horizontal flip.
    flip: float = 0.0
    #: Caption templates (captions.py).
    captions: Literal["photo", "imagenet"] = "photo"
    #: Averaging of coefficients over steps: "tail", the mean of the last half; "momentum", the release's exponential
    #: moving average (0.99 per sample), here debiased.
    average: Literal["tail", "momentum"] = "tail"
    #: Highest noise-to-signal ratio that is sampled, for latents of 16 x 16 pixels, scaled by side / 16 for larger
    #: ones; 0 samples all timesteps, as the paper does. Above it the gradient is about the composition of the photo,
    #: not about the face (benchmarks/LOG.md).
    max_noise_sigma: float = 3.0

    def to_dict(self) -> dict[str, Any]:
        """All values by name, for storing beside results."""
        return asdict(self)


CLEAN = LearnConfig()

#: Learning rate 5e-3 x batch size 2 = 1e-2 and 400 steps of 2 views per person, as the release runs.
FAITHFUL = replace(
    CLEAN, preset="faithful", seed=23, steps=400, views=2, learning_rate=1e-2, weight_decay=0.01, anneal=False,
    names="release", scale="unit", init="random", leaky_relu=True, init_l2=0.0, background_weight=1.0, canvas="black",
    face_height_min=0.1, face_height_max=1.0, flip=0.5, captions="imagenet", average="momentum",
    max_noise_sigma=0.0,
)  # fmt: skip

PRESETS: dict[str, LearnConfig] = {"clean": CLEAN, "faithful": FAITHFUL}


def config_for(
    preset: str = "clean", *, steps: int | None = None, seed: int | None = None, method: str = "train"
) -> LearnConfig:
    """A preset with ``steps`` and ``seed`` on top; ``method="instant"`` is a run of no steps.

    Raises:
        UsageError: An unknown preset or method, a value out of range, or ``steps`` with ``method="instant"``.
    """
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}", f"choose from {', '.join(PRESETS)}")
    if method not in ("train", "instant"):
        raise UsageError(f"unknown method {method!r}", "choose 'train' or 'instant'")
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"steps {steps} is out of range", f"use 1 to {MAX_STEPS}", reason="steps_range", steps=steps)
    if seed is not None and not 0 <= seed < 2**63:
        raise UsageError(f"seed {seed} is out of range", f"use 0 to {2**63 - 1}", reason="seed_range", seed=seed)
    if steps is not None and method == "instant":
        raise UsageError("the instant method takes no steps", "leave one of them out", reason="instant_steps")
    config = PRESETS[preset]
    if method == "instant":
        steps = 0
    config = config if steps is None else replace(config, steps=steps)
    return config if seed is None else replace(config, seed=seed)


def framing_from_config(config: LearnConfig) -> Framing:
    """Where the config places faces. Raises ValueError for a config that leaves it to the model."""
    values = {field.name: getattr(config, field.name) for field in fields(Framing)}
    if None in values.values():
        raise ValueError("the config leaves the framing to the model: call with_model_framing first")
    return Framing(**values)
