"""People and cars in drawn pictures as recognisers, detectors and feature readers see them.

A car has no eyes: its five landmarks are where those of ArcFace's template lie in a square around it. So the detector,
the alignment and the recogniser of faces serve cars unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from celebctl_models.mini.illustration.features import car_features_of, features_of, visible_features
from celebctl_models.mini.illustration.scenes import PEOPLE
from celebctl_models.mini.training.faces import TEMPLATE, augment, crop_112

from .data import UNSTATED, Drawn, UnnamedScenes, as_input, car_looks_of, looks_of

#: How far landmarks are shaken, in px of a 128 px picture.
SHAKE = 0.7


@dataclass(frozen=True)
class Subjects:
    """People, or cars, in drawn pictures.

    pixels: (N, 3, 128, 128) uint8; rows: (M,) the picture of each; points: (M, 5, 2) px; who: (M,) rows of looks;
    looks: (I, A) of the population; features: (M, K) classes by name of the feature, UNSTATED where they cannot be
    seen; boxes: (N, P, 4), landmarks: (N, P, 5, 2) and present: (N, P) of all of them by picture, for the detector.
    """

    pixels: Tensor
    rows: Tensor
    points: Tensor
    who: Tensor
    looks: Tensor
    features: Tensor
    boxes: Tensor
    landmarks: Tensor
    present: Tensor


def people_of(unnamed: UnnamedScenes, drawn: Drawn, population: Tensor) -> Subjects:
    """The people of all pictures; ``population``: (I, F) factors."""
    scenes = unnamed.scenes
    present = torch.arange(PEOPLE)[None] < scenes.count[:, None]
    rows, slot = present.nonzero(as_tuple=True)
    classes, seen = features_of(scenes.factors[rows, slot]), visible_features(scenes)
    columns = [torch.where(seen[name][rows, slot], kind, UNSTATED) for name, kind in classes.items()]
    points = drawn.points.cpu()
    return Subjects(
        drawn.pixels, rows, points[rows, slot], unnamed.who[rows, slot], looks_of(population), torch.stack(columns, 1),
        drawn.boxes.cpu(), points, present,
    )  # fmt: skip


def car_points(boxes: Tensor) -> Tensor:
    """The five landmarks (..., 5, 2) of cars given by their boxes (..., 4)."""
    side = (boxes[..., 2:] - boxes[..., :2]).amax(-1)[..., None, None]
    middle = ((boxes[..., :2] + boxes[..., 2:]) / 2)[..., None, :]
    return middle + (TEMPLATE / 112 - 0.5) * side


def cars_of(unnamed: UnnamedScenes, drawn: Drawn, population: Tensor) -> Subjects:
    """The cars of all pictures; ``population``: (J, C) factors."""
    scenes = unnamed.scenes
    rows = scenes.car.nonzero()[:, 0]
    boxes = drawn.cars.cpu()
    classes = car_features_of(scenes.car_factors[rows])
    classes["second_colour"] = torch.where(classes["second"] == 0, UNSTATED, classes["second_colour"])
    grey = (scenes.style == 1) | (scenes.style == 6)
    for name in ("colour", "second_colour"):
        classes[name] = torch.where(grey[rows], UNSTATED, classes[name])
    return Subjects(
        drawn.pixels, rows, car_points(boxes[rows]), unnamed.cars[rows], car_looks_of(population),
        torch.stack(list(classes.values()), 1), boxes[:, None], car_points(boxes)[:, None], scenes.car[:, None],
    )  # fmt: skip


def crops(subjects: Subjects, index: Tensor, generator: torch.Generator, widen: float = 1.0) -> Tensor:
    """Aligned crops (B, 3, 112, 112) in [-1, 1] with shaken landmarks, disturbed.

    Args:
        subjects: The people or cars.
        index: (B,) which of them.
        generator: Decides shaking and disturbance.
        widen: How many times as much as ArcFace's crop is seen, so that hair and ears are in it.
    """
    device = subjects.pixels.device
    points = subjects.points[index]
    points = points + SHAKE * torch.randn(points.shape, generator=generator)
    middle = points.mean(1, keepdim=True)
    points = middle + widen * (points - middle)
    image = as_input(subjects.pixels[subjects.rows[index].to(device)])
    return augment(crop_112(image, points.to(device)), generator).contiguous(memory_format=torch.channels_last)
