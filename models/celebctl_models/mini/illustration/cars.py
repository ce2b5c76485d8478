"""Cars: make and model names of ours, the factors that make a car, and the side view of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from celebctl_models.mini.drawing import classes, span
from celebctl_models.mini.names import NameBook

from .shapes import Canvas, Rows, Window, both, box, circle, col, either, ellipse, limb, palette, pick, polygon, where

#: One entry per factor of a car, in the order of the columns of its vector.
CAR_FACTORS: tuple[str, ...] = (
    "body", "colour", "tint", "second", "second_colour", "wheels", "wheel_size", "lights", "front", "roof", "spoiler",
    "windows", "height",
)  # fmt: skip

#: Features in words: the classes of each and their shares.
CAR_FEATURES: dict[str, tuple[tuple[str, float], ...]] = {
    "body": (("sedan", 0.18), ("hatchback", 0.18), ("van", 0.17), ("pickup", 0.15), ("coupe", 0.16), ("beetle", 0.16)),
    "colour": (
        ("red", 0.13), ("orange", 0.10), ("yellow", 0.11), ("green", 0.11), ("teal", 0.11), ("blue", 0.13),
        ("purple", 0.08), ("pink", 0.08), ("cream", 0.08), ("grey", 0.07),
    ),
    "second": (("one colour", 0.40), ("roof", 0.22), ("lower half", 0.20), ("stripe", 0.18)),
    "second_colour": (("white", 0.40), ("black", 0.30), ("gold", 0.30)),
    "wheels": (("spokes", 0.35), ("discs", 0.35), ("white walls", 0.30)),
    "lights": (("round", 0.40), ("square", 0.30), ("slit", 0.30)),
    "front": (("bumper", 0.40), ("chrome grille", 0.32), ("bull bar", 0.28)),
    "roof": (("bare", 0.55), ("rack with luggage", 0.25), ("surfboard", 0.20)),
    "spoiler": (("none", 0.70), ("wing", 0.30)),
    "windows": (("clear", 0.65), ("dark", 0.35)),
}  # fmt: skip

PAINT = palette(
    [(0.85, 0.20, 0.20), (0.95, 0.54, 0.18), (0.98, 0.80, 0.26), (0.34, 0.64, 0.36), (0.22, 0.62, 0.64),
     (0.22, 0.42, 0.80), (0.52, 0.36, 0.70), (0.95, 0.58, 0.70), (0.96, 0.91, 0.78), (0.52, 0.55, 0.60)]
)  # fmt: skip
SECOND = palette([(0.97, 0.96, 0.93), (0.17, 0.17, 0.20), (0.90, 0.70, 0.28)])
#: Cabin of each body: rear foot, rear roof, front roof, front foot (u), roof (v); the front of the car is on the right.
CABIN = torch.tensor(
    [
        [-0.66, -0.40, 0.16, 0.50, -0.90],
        [-0.92, -0.78, 0.14, 0.48, -0.92],
        [-0.95, -0.92, 0.50, 0.80, -1.08],
        [-0.14, -0.08, 0.30, 0.56, -0.94],
        [-0.86, -0.28, 0.06, 0.46, -0.80],
        [-0.70, -0.34, 0.28, 0.62, -0.92],
    ]
)
CARS, MAKES, MODELS = 320, 210, 260
CAR_SEED = 20261

_MAKE_HEAD = "vor tal bru kel mon zan dra lum gor pel rin sov wex yar quo nim hob jes cad fir".split()
_MAKE_TAIL = "ado elo ica ura axo enda osto ixa umbo eyra arda oide".split()
_MODEL_HEAD = (
    "glid whir zip romp puff humm spro trund brisk wisp scoot flit drift lop twirl rov nimb skitt burb snorr".split()
)
_MODEL_TAIL = "eron ello etta ino ara ova ikin usk ander imo ola ixen opp astra".split()


def car_book(seed: int = CAR_SEED) -> NameBook:
    """The 320 cars of the world: make, model, and what each name carries; the same for the same seed."""
    rng = np.random.Generator(np.random.PCG64(seed))

    def words(heads: Sequence[str], tails: Sequence[str], count: int) -> tuple[str, ...]:
        every = sorted({head + tail for head in heads for tail in tails})
        return tuple(sorted(every[int(i)] for i in rng.permutation(len(every))[:count]))

    def column(count: int) -> NDArray[np.int64]:
        return np.concatenate([rng.permutation(count), rng.permutation(count)])[:CARS]

    makes, models = words(_MAKE_HEAD, _MAKE_TAIL, MAKES), words(_MODEL_HEAD, _MODEL_TAIL, MODELS)
    pairs = np.stack([column(MAKES), rng.permutation(column(MODELS))], 1)
    sizes = (MAKES, MODELS, CARS)
    first, last, own = (rng.standard_normal((size, len(CAR_FACTORS))).astype(np.float32) for size in sizes)
    return NameBook(makes, models, first, last, pairs, own)


def car_classes(factors: Tensor) -> dict[str, Tensor]:
    """The class of every feature of every car: factors (N, F) uniforms, indices (N,) int64 by name."""
    return {
        name: classes(factors[:, CAR_FACTORS.index(name)], tuple(share for _, share in options))
        for name, options in CAR_FEATURES.items()
    }


@dataclass(frozen=True)
class CarLook(Rows):
    """How cars look and where they stand.

    Classes (n,) int64; colours (n, 3, 1, 1); cabin (n, 5) as in CABIN; wheel: radius (n, 1, 1); x, y: middle of the
    car on the ground, unit: half its length, in canvas units; facing: 1 to the right, -1 to the left, all (n, 1, 1).
    """

    body: Tensor
    second: Tensor
    wheels: Tensor
    lights: Tensor
    front: Tensor
    roof: Tensor
    spoiler: Tensor
    windows: Tensor
    paint: Tensor
    other: Tensor
    cabin: Tensor
    wheel: Tensor
    x: Tensor
    y: Tensor
    unit: Tensor
    facing: Tensor


def car_look(factors: Tensor, x: Tensor, y: Tensor, unit: Tensor, facing: Tensor) -> CarLook:
    """Looks of cars given by factors (n, F), standing where the rest, (n, 1, 1), says."""
    kind = car_classes(factors)
    f = {name: factors[:, i] for i, name in enumerate(CAR_FACTORS)}
    shade = 0.92 + 0.16 * f["tint"].view(-1, 1, 1, 1)
    cabin = CABIN.to(factors.device)[kind["body"]].clone()
    cabin[:, 4] *= span(f["height"], 0.95, 1.06)
    names = ("body", "second", "wheels", "lights", "front", "roof", "spoiler", "windows")
    return CarLook(
        **{name: kind[name] for name in names},
        paint=(pick(PAINT, kind["colour"]) * shade).clamp(max=1.0),
        other=pick(SECOND, kind["second_colour"]),
        cabin=cabin,
        wheel=col(span(f["wheel_size"], 0.19, 0.23)),
        x=x,
        y=y,
        unit=unit,
        facing=facing,
    )


def draw_cars(canvas: Canvas, rows: Tensor, look: CarLook) -> None:
    """One car on each of the canvases ``rows`` (n,)."""
    window = canvas.window(rows, look.x, look.y - 0.62 * look.unit, (1.22 * look.unit, 0.86 * look.unit))
    window.frame(look.x, look.y, look.unit)
    window.u = window.u * look.facing
    window.darken(ellipse(window.u, window.v, 1.10, 0.09), 0.75, soft=0.10)
    _roof_things(window, look)
    _spoiler(window, look)
    _body(window, look)
    _windows(window, look)
    _details(window, look)
    for at in (-0.58, 0.58):
        _wheel(window, look, at)
    window.close()


def _cabin(window: Window, look: CarLook, shrink: float = 0.0) -> Tensor:
    u, v = window.u, window.v
    foot_rear, roof_rear, roof_front, foot_front, roof = (one.view(-1, 1, 1) for one in look.cabin.unbind(1))
    straight = polygon(u, v, [(foot_rear, -0.46), (roof_rear, roof), (roof_front, roof), (foot_front, -0.46)])
    dome = both(ellipse(u - 0.0, v + 0.42, 0.70, roof.abs() - 0.42), v + 0.40)
    shape = torch.where((look.body == 5).view(-1, 1, 1), dome, straight)
    return shape + shrink


def _lower(window: Window, look: CarLook) -> Tensor:
    u, v = window.u, window.v
    plain = box(u, v + 0.34, 0.99, 0.19, 0.12)
    bonnet = limb(u, v, (0.42, -0.42), (0.84, -0.36), (0.16, 0.13))
    beetle = either(
        ellipse(u - 0.52, v + 0.26, 0.46, 0.28),
        ellipse(u + 0.54, v + 0.26, 0.44, 0.30),
        box(u, v + 0.30, 0.9, 0.12, 0.1),
    )
    bed = either(plain, box(u + 0.62, v + 0.46, 0.36, 0.14, 0.04))
    shape = either(plain, bonnet)
    shape = torch.where((look.body == 5).view(-1, 1, 1), both(beetle, v + 0.16), shape)
    shape = torch.where((look.body == 3).view(-1, 1, 1), either(shape, bed), shape)
    return torch.where((look.body == 2).view(-1, 1, 1), either(plain, box(u + 0.06, v + 0.52, 0.92, 0.36, 0.10)), shape)


def _body(window: Window, look: CarLook) -> None:
    u, v = window.u, window.v
    lower, cabin = _lower(window, look), _cabin(window, look)
    whole = either(lower, cabin - 0.03)
    window.draw(whole, look.paint, 1.04 - 0.16 * ((v + 0.42) / 0.3).clamp(0.0, 1.0))
    inner = whole + 0.018
    parts = (
        both(cabin - 0.03, v + 0.80),
        both(whole, -v - 0.33),
        both((v + 0.38).abs() - 0.045, lower),
    )
    for kind, part in enumerate(parts, 1):
        window.paint(both(part, inner), look.other, (look.second == kind).float().view(-1, 1, 1))
    window.lighten(both(box(u, v + 0.47, 0.80, 0.018, 0.018), lower + 0.03), 0.55, soft=0.03)
    window.darken(both(whole, -v - 0.24), 0.45, soft=0.08)


def _windows(window: Window, look: CarLook) -> None:
    u, v = window.u, window.v
    glass = both(_cabin(window, look, 0.055), v + 0.51)
    middle = (look.cabin[:, 1] * 0.45 + look.cabin[:, 2] * 0.55).view(-1, 1, 1) - 0.04
    glass = both(glass, 0.028 - (u - middle).abs())
    van = (look.body == 2).view(-1, 1, 1)
    glass = torch.where(van, both(glass, v + 0.62), glass)
    tone = where(look.windows == 1, torch.full_like(look.paint, 0.20), torch.full_like(look.paint, 0.86))
    tint = torch.tensor([0.84, 0.96, 1.0], device=u.device).view(1, 3, 1, 1)
    window.draw(glass, tone * tint)
    window.lighten(both(glass + 0.02, (u + 0.6 * v + 0.22).abs() - 0.05), 0.55)


def _details(window: Window, look: CarLook) -> None:
    u, v = window.u, window.v
    lower = _lower(window, look)
    middle = (look.cabin[:, 1] * 0.45 + look.cabin[:, 2] * 0.55).view(-1, 1, 1) - 0.04
    for at in (middle - 0.02, middle + 0.40):
        window.stroke(both((u - at).abs(), (v + 0.36).abs() - 0.14, lower + 0.02), look.paint * 0.55, 0.9)
    window.draw(box(u - middle - 0.08, v + 0.42, 0.05, 0.014, 0.012), (0.86, 0.87, 0.90))
    square, slit = box(u - 0.88, v + 0.38, 0.07, 0.08, 0.02), box(u - 0.83, v + 0.42, 0.13, 0.028, 0.02)
    lamp = torch.where((look.lights == 1).view(-1, 1, 1), square, slit)
    lamp = torch.where((look.lights == 0).view(-1, 1, 1), circle(u - 0.86, v + 0.38, 0.085), lamp)
    window.draw(lamp, (1.0, 0.95, 0.70))
    window.draw(box(u + 0.94, v + 0.40, 0.04, 0.07, 0.02), (0.88, 0.18, 0.18))
    chrome = (0.82, 0.84, 0.88)
    bumper = either(box(u - 0.97, v + 0.22, 0.07, 0.045, 0.03), box(u + 0.97, v + 0.22, 0.07, 0.045, 0.03))
    window.draw(bumper, where(look.front == 0, torch.full_like(look.paint, 0.30), torch.full_like(look.paint, 0.84)))
    grille = box(u - 0.965, v + 0.33, 0.045, 0.09, 0.02)
    window.draw(grille + 9.0 * (look.front != 1).float().view(-1, 1, 1), chrome)
    bar = either(
        box(u - 1.05, v + 0.36, 0.022, 0.18, 0.02),
        box(u - 1.0, v + 0.48, 0.07, 0.02, 0.02),
        box(u - 1.0, v + 0.28, 0.07, 0.02, 0.02),
    )
    window.draw(bar + 9.0 * (look.front != 2).float().view(-1, 1, 1), (0.24, 0.24, 0.27))


def _roof_things(window: Window, look: CarLook) -> None:
    u, v = window.u, window.v
    roof = look.cabin[:, 4].view(-1, 1, 1)
    middle = ((look.cabin[:, 1] + look.cabin[:, 2]) / 2).view(-1, 1, 1)
    rack = 9.0 * (look.roof != 1).float().view(-1, 1, 1)
    window.draw(box(u - middle + 0.09, v - roof + 0.14, 0.15, 0.10, 0.03) + rack, (0.62, 0.42, 0.26))
    window.draw(box(u - middle - 0.16, v - roof + 0.12, 0.09, 0.08, 0.03) + rack, (0.30, 0.50, 0.62))
    window.draw(box(u - middle, v - roof + 0.045, 0.30, 0.022, 0.02) + rack, (0.24, 0.24, 0.27))
    board = 9.0 * (look.roof != 2).float().view(-1, 1, 1)
    window.draw(ellipse(u - middle, v - roof + 0.085, 0.52, 0.052) + board, (0.98, 0.86, 0.52))
    window.paint(
        both(ellipse(u - middle, v - roof + 0.085, 0.52, 0.052), (v - roof + 0.085).abs() - 0.014) + board,
        (0.90, 0.34, 0.30),
    )


def _spoiler(window: Window, look: CarLook) -> None:
    u, v = window.u, window.v
    gone = 9.0 * (look.spoiler != 1).float().view(-1, 1, 1)
    van = torch.where((look.body == 2) | (look.body == 1), -0.42, 0.0).view(-1, 1, 1)
    wing = either(
        box(u + 0.96, v + 0.68 - van, 0.15, 0.030, 0.02),
        limb(u, v - van, (-0.86, -0.50), (-0.94, -0.68), (0.03, 0.025)),
    )
    window.draw(wing + gone, look.paint * 0.70)


def _wheel(window: Window, look: CarLook, at: float) -> None:
    u, v = window.u - at, window.v + look.wheel
    window.paint(both(circle(u, v, look.wheel + 0.055), window.v + 0.12), look.paint * 0.42)
    window.draw(circle(u, v, look.wheel), (0.20, 0.20, 0.23))
    white = (look.wheels == 2).float().view(-1, 1, 1)
    window.paint(circle(u, v, look.wheel * 0.80), (0.97, 0.96, 0.93), white)
    window.paint(circle(u, v, look.wheel * 0.58), (0.80, 0.82, 0.86))
    turn = torch.atan2(v, u) * (5.0 / 6.28318)
    spoke = both((turn - turn.round()).abs() - 0.17, circle(u, v, look.wheel * 0.50)) * 0.25
    window.paint(spoke, (0.34, 0.35, 0.40), (look.wheels == 0).float().view(-1, 1, 1))
    window.paint(circle(u, v, look.wheel * 0.16), (0.45, 0.46, 0.50))
