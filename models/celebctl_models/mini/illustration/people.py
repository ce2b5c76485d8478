"""The people of the illustrated world: identity factors, the classes a person would name, and how they look.

A person is a vector of uniforms in [0, 1], one per factor (the Phi of independent normals, see mini's people). Some
factors choose a class that can be said in words ("round glasses"), the others vary within it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from celebctl_models.mini.drawing import classes, span

from .shapes import Rows, col, palette, pick

#: One entry per identity factor, in the order of the columns of a person's vector.
FACTORS: tuple[str, ...] = (
    "skin_tone", "skin_warmth", "face_shape", "face_width", "face_length",
    "eye_size", "eye_spacing", "eye_colour", "eye_shape", "lashes",
    "brows", "brow_height", "nose", "nose_size", "mouth_width", "lips", "lip_colour",
    "hair_colour", "hair_tint", "hair_style", "hair_volume", "hairline", "ears", "build",
    "glasses", "glasses_colour", "beard", "blush", "marks", "earrings",
)  # fmt: skip

#: Features in words: the classes of each and their shares of the population.
FEATURES: dict[str, tuple[tuple[str, float], ...]] = {
    "hair_style": (
        ("bald", 0.07), ("short", 0.10), ("quiff", 0.09), ("long", 0.10), ("wavy", 0.09), ("bob", 0.09),
        ("afro", 0.09), ("curly", 0.09), ("mohawk", 0.06), ("bun", 0.08), ("pigtails", 0.07), ("spiky", 0.07),
    ),
    "hair_colour": (
        ("black", 0.16), ("brown", 0.15), ("chestnut", 0.11), ("blond", 0.13), ("ginger", 0.12), ("grey", 0.09),
        ("white", 0.06), ("pink", 0.06), ("blue", 0.06), ("green", 0.06),
    ),
    "glasses": (("none", 0.55), ("round", 0.18), ("square", 0.15), ("cat-eye", 0.12)),
    "glasses_colour": (("black", 0.30), ("red", 0.22), ("blue", 0.18), ("gold", 0.16), ("green", 0.14)),
    "beard": (("none", 0.58), ("moustache", 0.12), ("goatee", 0.10), ("full", 0.13), ("stubble", 0.07)),
    "marks": (("none", 0.60), ("freckles", 0.20), ("mole left", 0.10), ("mole right", 0.10)),
    "earrings": (("none", 0.60), ("gold hoops", 0.16), ("pearls", 0.12), ("blue drops", 0.12)),
    "blush": (("none", 0.65), ("rosy", 0.35)),
    "skin_tone": (
        ("porcelain", 0.18), ("fair", 0.20), ("tan", 0.17), ("olive brown", 0.15), ("brown", 0.16), ("dark", 0.14),
    ),
    "eye_colour": (("brown", 0.32), ("amber", 0.16), ("green", 0.17), ("blue", 0.21), ("grey", 0.14)),
    "brows": (("thin", 0.26), ("arched", 0.26), ("straight", 0.24), ("bushy", 0.24)),
    "face_shape": (("oval", 0.28), ("round", 0.24), ("square", 0.22), ("heart", 0.26)),
    "nose": (("button", 0.30), ("long", 0.24), ("wide", 0.24), ("pointed", 0.22)),
    "ears": (("small", 0.45), ("large", 0.35), ("pointed", 0.20)),
    "lips": (("thin", 0.50), ("full", 0.50)),
}  # fmt: skip

SKIN = palette(
    [(1.0, 0.89, 0.81), (0.98, 0.79, 0.65), (0.90, 0.68, 0.50), (0.75, 0.53, 0.36), (0.55, 0.36, 0.24),
     (0.38, 0.24, 0.17)]
)  # fmt: skip
HAIR = palette(
    [(0.15, 0.14, 0.18), (0.36, 0.22, 0.15), (0.60, 0.36, 0.20), (0.94, 0.78, 0.42), (0.87, 0.42, 0.17),
     (0.62, 0.63, 0.67), (0.95, 0.94, 0.91), (0.95, 0.50, 0.68), (0.29, 0.47, 0.85), (0.26, 0.64, 0.50)]
)  # fmt: skip
EYES = palette([(0.36, 0.21, 0.12), (0.78, 0.52, 0.14), (0.28, 0.60, 0.30), (0.20, 0.50, 0.86), (0.55, 0.62, 0.68)])
LIPS = palette([(0.72, 0.40, 0.36), (0.83, 0.43, 0.42), (0.86, 0.26, 0.33), (0.66, 0.18, 0.30)])
FRAMES = palette([(0.13, 0.13, 0.16), (0.85, 0.16, 0.17), (0.16, 0.34, 0.82), (0.90, 0.68, 0.18), (0.13, 0.58, 0.33)])
FACE_TAPER = torch.tensor([0.16, 0.04, 0.02, 0.34])
FACE_SQUARE = torch.tensor([0.0, 0.0, 0.60, 0.0])
FACE_WIDTH = torch.tensor([0.76, 0.90, 0.82, 0.84])
FACE_HEIGHT = torch.tensor([1.06, 0.93, 0.98, 1.00])


def feature_classes(factors: Tensor) -> dict[str, Tensor]:
    """The class of every feature of every person.

    Args:
        factors: (N, F) uniforms in the order of FACTORS.

    Returns:
        For each name in FEATURES the indices (N,) int64 into its classes.
    """
    return {
        name: classes(factors[:, FACTORS.index(name)], tuple(share for _, share in options))
        for name, options in FEATURES.items()
    }


@dataclass(frozen=True)
class Look(Rows):
    """How people look. Numbers are (n, 1, 1) in face units, colours (n, 3, 1, 1), classes (n,) int64.

    One face unit is half the height of an average face.
    """

    hair_style: Tensor
    glasses: Tensor
    beard: Tensor
    marks: Tensor
    earrings: Tensor
    blush: Tensor
    brows: Tensor
    nose: Tensor
    ears: Tensor
    lips: Tensor
    skin: Tensor
    hair: Tensor
    iris: Tensor
    lip: Tensor
    frame: Tensor
    width: Tensor
    height: Tensor
    taper: Tensor
    square: Tensor
    eye_r: Tensor
    eye_tall: Tensor
    eye_gap: Tensor
    lashes: Tensor
    brow_height: Tensor
    nose_size: Tensor
    mouth: Tensor
    volume: Tensor
    hairline: Tensor
    build: Tensor


def look_of(factors: Tensor) -> Look:
    """Looks of people given by factors (n, F)."""
    f = {name: factors[:, i] for i, name in enumerate(FACTORS)}
    kind = feature_classes(factors)
    warmth = (f["skin_warmth"] - 0.5).view(-1, 1, 1, 1)
    tint = torch.tensor([0.05, 0.0, -0.06], device=factors.device).view(1, 3, 1, 1)
    skin = (pick(SKIN, kind["skin_tone"]) + warmth * tint).clamp(0.0, 1.0)
    shade = 0.90 + 0.20 * f["hair_tint"].view(-1, 1, 1, 1)
    lip = pick(LIPS, (f["lip_colour"] * 3.999).long())
    shape = kind["face_shape"]

    def by_shape(values: Tensor) -> Tensor:
        return col(values.to(factors.device)[shape])

    return Look(
        **{name: kind[name] for name in
           ("hair_style", "glasses", "beard", "marks", "earrings", "blush", "brows", "nose", "ears", "lips")},
        skin=skin,
        hair=(pick(HAIR, kind["hair_colour"]) * shade).clamp(0.0, 1.0),
        iris=pick(EYES, kind["eye_colour"]),
        lip=torch.lerp(lip, skin * 0.72, 0.30),
        frame=pick(FRAMES, kind["glasses_colour"]),
        width=by_shape(FACE_WIDTH) * col(span(f["face_width"], 0.95, 1.05)),
        height=by_shape(FACE_HEIGHT) * col(span(f["face_length"], 0.96, 1.05)),
        taper=by_shape(FACE_TAPER),
        square=by_shape(FACE_SQUARE),
        eye_r=col(span(f["eye_size"], 0.165, 0.215)),
        eye_tall=col(span(f["eye_shape"], 0.88, 1.12)),
        eye_gap=col(span(f["eye_spacing"], 0.34, 0.41)),
        lashes=col((f["lashes"] > 0.55).float()),
        brow_height=col(span(f["brow_height"], 0.32, 0.42)),
        nose_size=col(span(f["nose_size"], 0.90, 1.12)),
        mouth=col(span(f["mouth_width"], 0.25, 0.35)),
        volume=col(f["hair_volume"]),
        hairline=col(span(f["hairline"], -0.62, -0.50)),
        build=col(span(f["build"], 0.90, 1.10)),
    )  # fmt: skip
