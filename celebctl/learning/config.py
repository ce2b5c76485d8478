"""The dials of learning. The two presets differ here and nowhere else.

``faithful`` is the published release (configs and code of the authors' repository), its scale and its loss, known
oddities included. ``clean`` is what celebctl recommends: the same method with the release's slips mended, coefficients
measured in standard deviations of the celebrities, and a start that uses what the celebrities already tell.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from celebctl_models.faces.framing import Framing


@dataclass(frozen=True)
class LearnConfig:
    """Everything that decides how people are learned; together with the photo and the model it decides every number.

    preset: where these values came from. seed: of everything random.
    steps, views: optimiser steps (0: the start is the result), and views of each person per step.
    learning_rate, weight_decay: AdamW.
    anneal: cosine decay to zero, else constant.
    names: "distinct" drops repeated tokens from the basis, "release" keeps them and fills up with null-space
    directions.
    scale: "spread" gives coefficients in celebrity standard deviations, bounded by ``bound``; "unit" makes each
    position's coefficients a unit vector (the release), whatever the celebrities' spread is.
    start: "fitted" takes the answer of the mapper that comes with the model or was trained for it, on many people;
    "celebrities" fits it to the celebrities' own (feature, coefficients) pairs; "average" answers the average
    celebrity; "random" draws it. What a model does not bring is replaced by the next in this order.
    start_gain: distance from the average face that the careful answer of a fit to "celebrities" is stretched by.
    leaky: LeakyReLU(0.2) behind the linear layer. prior: weight of the pull towards the start, per squared deviation.
    background: weight of the loss outside the face, 1 for none. canvas: what surrounds the face in a training view.
    smallest, largest: height of the face over the height of the view. middle: of the face, from the view's top, as a
    share of its height; sway: by how much at most either way. None: as the model itself draws faces (starts.py).
    flip: probability of mirroring.
    captions: "photo" or "imagenet" templates. average: "tail" averages the last half of the iterates,
    "momentum" is the release's moving average (0.99 per sample, here debiased).
    most_noise: timesteps with more noise are not asked about: its deviation over that of the picture, for latents of 16
    x 16 pixels, and in proportion more for larger ones. Beyond it a model hardly sees a face, and learns how this one
    photo is composed (benchmarks/LOG.md). 0: all timesteps, as in the paper.
    """

    preset: str = "clean"
    seed: int = 0
    steps: int = 60
    views: int = 4
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    anneal: bool = True
    names: Literal["distinct", "release"] = "distinct"
    scale: Literal["spread", "unit"] = "spread"
    bound: float = 2.5
    init: Literal["fitted", "celebrities", "average", "random"] = "fitted"
    init_gain: float = 1.8
    leaky_relu: bool = False
    init_l2: float = 1.0
    background_weight: float = 0.05
    canvas: Literal["photo", "black"] = "photo"
    face_height_min: float | None = None
    face_height_max: float | None = None
    face_center_y: float | None = None
    face_jitter: float | None = None
    flip: float = 0.0
    captions: Literal["photo", "imagenet"] = "photo"
    average: Literal["tail", "momentum"] = "tail"
    max_noise_sigma: float = 3.0

    def to_dict(self) -> dict[str, Any]:
        """Every value by name, for keeping beside results."""
        return asdict(self)


CLEAN = LearnConfig()

#: Learning rate 5e-3 x batch 2 = 1e-2, 400 steps of 2 views per person, both as the release runs them.
FAITHFUL = replace(
    CLEAN, preset="faithful", seed=23, steps=400, views=2, learning_rate=1e-2, weight_decay=0.01, anneal=False,
    names="release", scale="unit", init="random", leaky_relu=True, init_l2=0.0, background_weight=1.0, canvas="black",
    face_height_min=0.1, face_height_max=1.0, flip=0.5, captions="imagenet", average="momentum",
    max_noise_sigma=0.0,
)  # fmt: skip

PRESETS: dict[str, LearnConfig] = {"clean": CLEAN, "faithful": FAITHFUL}


def framing_from_config(config: LearnConfig) -> Framing:
    """Where the config wants faces. Raises ValueError when it leaves that to the model."""
    wanted = {field.name: getattr(config, field.name) for field in fields(Framing)}
    if None in wanted.values():
        raise ValueError("a config that leaves the framing to the model: call placed(config, parts) first")
    return Framing(**wanted)
