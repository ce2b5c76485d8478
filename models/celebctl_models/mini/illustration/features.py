"""Ground truth for feature readers: the features of people and cars, and whether a scene shows them."""

from __future__ import annotations

import torch
from torch import Tensor

from .cars import CAR_FEATURES, car_classes
from .figure import EXPRESSIONS, HATS, WORN
from .people import FEATURES, feature_classes
from .scenes import ACTS, ITEMS, PEOPLE, Scenes, pose_of
from .styles import STYLES

#: The least canvas units per face unit at which a feature can be seen at 128 px.
LEAST_SIZE: dict[str, float] = {
    "hair_style": 0.0, "hair_colour": 0.0, "glasses": 0.20, "glasses_colour": 0.20, "beard": 0.24, "marks": 0.26,
    "earrings": 0.20, "blush": 0.24, "skin_tone": 0.0, "eye_colour": 0.26, "brows": 0.26, "face_shape": 0.20,
    "nose": 0.26, "ears": 0.20, "lips": 0.30,
}  # fmt: skip
#: Features that are colours; they cannot be seen in styles without colour.
COLOUR_FEATURES = ("hair_colour", "glasses_colour", "blush", "skin_tone", "eye_colour")
#: What can be seen in a mosaic.
COARSE_FEATURES = ("hair_style", "hair_colour", "skin_tone")


def features_of(factors: Tensor) -> dict[str, Tensor]:
    """The class of each feature of people (N, F), as indices (N,) into FEATURES."""
    return feature_classes(factors)


def features_in_words(factors: Tensor) -> list[dict[str, str]]:
    """The features of people (N, F) as a person would name them."""
    kinds = feature_classes(factors)
    return [{name: FEATURES[name][int(index[i])][0] for name, index in kinds.items()} for i in range(len(factors))]


def car_features_of(factors: Tensor) -> dict[str, Tensor]:
    """The class of each feature of cars (N, C), as indices (N,) into CAR_FEATURES."""
    return car_classes(factors)


def car_features_in_words(factors: Tensor) -> list[dict[str, str]]:
    """The features of cars (N, C) in words."""
    kinds = car_classes(factors)
    return [{name: CAR_FEATURES[name][int(index[i])][0] for name, index in kinds.items()} for i in range(len(factors))]


def _among(index: Tensor, words: tuple[str, ...], *names: str) -> Tensor:
    wanted = torch.tensor([words.index(name) for name in names], device=index.device)
    return torch.isin(index, wanted)


def _styled(kinds: dict[str, Tensor], *names: str) -> Tensor:
    return _among(kinds["hair_style"], tuple(name for name, _ in FEATURES["hair_style"]), *names)


def visible_features(scenes: Scenes) -> dict[str, Tensor]:
    """Whether the feature of each person can be seen in the scene, (B, 3) bool by name of the feature.

    A hat hides the style of the hair, sunglasses the eyes, long hair the ears; small faces show less.
    """
    people = [_visible(scenes, who) for who in range(PEOPLE)]
    return {name: torch.stack([one[name] for one in people], 1) for name in FEATURES}


def _visible(scenes: Scenes, who: int) -> dict[str, Tensor]:
    kinds = feature_classes(scenes.factors[:, who])
    size = pose_of(scenes, who).size.view(-1)
    there = scenes.count > who
    hat = _among(scenes.worn, WORN, *HATS)
    shades = _among(scenes.worn, WORN, "sunglasses")
    muffled = _among(scenes.worn, WORN, "headphones")
    under_umbrella = (scenes.act == 0) & _among(scenes.item, ITEMS, "umbrella")
    eating = _among(scenes.act, ACTS, "eating")
    bald, full_beard = kinds["hair_style"] == 0, kinds["beard"] == 3
    hidden_by_hat = hat & _styled(kinds, "bald", "short", "quiff", "mohawk", "bun", "spiky")
    over_ears = _styled(kinds, "long", "wavy", "bob", "curly")
    closed = _among(scenes.expression, EXPRESSIONS, "laughing")
    bad = {
        "hair_style": hat | under_umbrella,
        "hair_colour": (bald | hidden_by_hat) & ~full_beard,
        "glasses": shades,
        "glasses_colour": shades | (kinds["glasses"] == 0),
        "eye_colour": shades | closed,
        "brows": hat | _styled(kinds, "bob", "curly"),
        "face_shape": full_beard,
        "ears": over_ears | muffled,
        "lips": ~_among(scenes.expression, EXPRESSIONS, "neutral", "tired") | eating,
        "beard": eating,
    }
    grey = _among(scenes.style, STYLES, "pencil", "black and white")
    dark, coarse = _among(scenes.style, STYLES, "night"), _among(scenes.style, STYLES, "pixels")
    out: dict[str, Tensor] = {}
    for name in FEATURES:
        seen = there & (size >= LEAST_SIZE[name])
        if name in bad:
            seen = seen & ~bad[name]
        if name in COLOUR_FEATURES:
            seen = seen & ~grey & ~dark
        if name not in COARSE_FEATURES:
            seen = seen & ~coarse
        out[name] = seen
    return out
