"""Places outdoors, in layers from far to near. Each painter gets a whole picture in the place's frame.

The frame's origin is the middle of the horizon; one unit is half a canvas at full length and more when the camera is
near. ``n`` (n, 10, 1, 1) are uniforms that vary what is scattered about.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .indoors import BACKDROPS as INDOORS
from .shapes import Colour, Window, both, box, bumpy, circle, either, ellipse, limb, polygon

PLACES: tuple[str, ...] = (
    "plain", "beach", "snow", "space", "forest", "city", "tower", "desert", "fair", "kitchen", "market", "library",
    "stage", "living room",
)  # fmt: skip


#: Branches of a cactus: start and end.
BRANCHES = (
    (0.0, -0.16, 0.17, -0.20),
    (0.17, -0.20, 0.17, -0.38),
    (0.0, -0.26, -0.16, -0.28),
    (-0.16, -0.28, -0.16, -0.42),
)


def sky(window: Window, top: Colour, low: Colour, v: float = 0.0) -> None:
    """Everything, from one colour at the top of the picture to another at height v."""
    at = ((window.v + 1.1) / (v + 1.1)).clamp(0.0, 1.0).unsqueeze(1)
    window.image[:] = torch.lerp(window.colour(top), window.colour(low), at)


def ground(window: Window, edge: Tensor, near: Colour, far: Colour, deep: float = 1.0) -> None:
    """What lies below ``edge`` (a height), from its far colour to its near one."""
    at = ((window.v - edge) / deep).clamp(0.0, 1.0).unsqueeze(1)
    tone = torch.lerp(window.colour(far), window.colour(near), at)
    window.paint((edge - window.v) + 0.0 * window.u, tone)


def _cloud(window: Window, x: Tensor, y: Tensor | float, size: Tensor | float) -> None:
    u, v = (window.u - x) / size, (window.v - y) / size
    puff = either(ellipse(u, v, 0.30, 0.10), circle(u + 0.10, v + 0.06, 0.13), circle(u - 0.08, v + 0.04, 0.10))
    window.paint(both(puff * size, window.v - y - 0.06 * size), (1.0, 1.0, 1.0), 0.85)


def _beach(window: Window, n: Tensor) -> None:
    sky(window, (0.38, 0.72, 0.96), (0.80, 0.93, 0.98))
    u, v = window.u, window.v
    sun = circle(u - 1.4 * (n[:, 0] - 0.5), v + 0.62, 0.13)
    window.paint(sun - 0.10, (1.0, 0.95, 0.70), 0.45, soft=0.16)
    window.paint(sun, (1.0, 0.88, 0.42))
    _cloud(window, 1.8 * (n[:, 1] - 0.5), -0.45, 1.1)
    _cloud(window, 1.8 * (n[:, 2] - 0.5), -0.66, 0.8)
    window.paint(bumpy(u - 1.6 * (n[:, 3] - 0.5), v - 0.02, 0.42, 0.14, (5, 0.10)), (0.45, 0.68, 0.66))
    ground(window, torch.zeros_like(n[:, 0]), (0.20, 0.62, 0.78), (0.14, 0.46, 0.72), 0.25)
    wave = ((v * 13.0) + 0.5 * torch.sin(u * 7.0 + 6.0 * n[:, 4])).sin()
    window.paint(both(0.96 - wave, -v, v - 0.22) * 0.05, (0.85, 0.96, 0.98), 0.75)
    shore = 0.26 + 0.03 * torch.sin(u * 3.0 + 6.0 * n[:, 5])
    ground(window, shore - 0.045, (0.95, 0.98, 0.98), (0.92, 0.97, 0.98))
    ground(window, shore, (0.90, 0.76, 0.52), (0.98, 0.89, 0.68))
    _palm(window, torch.where(n[:, 6] > 0.5, 0.86, -0.86))


def _palm(window: Window, at: Tensor) -> None:
    side = torch.where(at > 0, -1.0, 1.0)
    u, v = (window.u - at) * side, window.v
    trunk = either(
        limb(u, v, (-0.06, 0.50), (0.03, 0.0), (0.060, 0.048)), limb(u, v, (0.03, 0.0), (0.14, -0.50), (0.048, 0.036))
    )
    window.draw(trunk, (0.62, 0.44, 0.28), 0.92 + 0.12 * torch.sin(v * 60.0))
    for k, (du, dv) in enumerate(((-0.36, 0.10), (-0.30, -0.14), (0.0, -0.26), (0.30, -0.16), (0.38, 0.08))):
        bend = limb(u, v, (0.14, -0.52), (0.14 + du, -0.52 + dv), (0.062, 0.018))
        window.draw(bend, (0.22, 0.58 + 0.04 * (k % 2), 0.34))


def _snow(window: Window, n: Tensor) -> None:
    sky(window, (0.55, 0.73, 0.92), (0.90, 0.95, 0.99))
    u, v = window.u, window.v
    for k, (tone, tall) in enumerate((((0.66, 0.75, 0.87), 0.62), ((0.50, 0.61, 0.77), 0.46))):
        for j in range(2):
            at = (j - 0.5) * 1.3 + 0.7 * (n[:, 2 * k + j] - 0.5)
            peak = tall + 0.14 * n[:, 4 + j]
            rock = polygon(u, v, [(at - peak * 1.15, 0.15), (at, -peak), (at + peak * 1.15, 0.15)])
            window.paint(rock, tone)
            shade = both(rock, at - u + 0.10 * torch.sin(v * 16.0))
            window.darken(shade, 0.30)
            ridge = 0.07 * torch.sin(u * 24.0 + 3.0 * j)
            window.paint(both(rock, v + peak * 0.56 + ridge), (0.98, 0.99, 1.0))
            window.darken(both(shade, v + peak * 0.56 + ridge), 0.18)
    ground(window, 0.10 + 0.06 * torch.sin(u * 2.2 + 6 * n[:, 6]), (0.93, 0.96, 1.0), (0.84, 0.90, 0.98), 0.3)
    for k in range(4):
        at = (k - 1.5) * 0.62 + 0.3 * (n[:, k] - 0.5)
        _pine(window, at, 0.30 + 0.03 * k, 0.52 + 0.14 * n[:, k + 4], (0.24, 0.44, 0.42), snowy=True)
    ground(window, 0.34 + 0.05 * torch.sin(u * 3.0 + 6 * n[:, 7]), (0.96, 0.98, 1.0), (1.0, 1.0, 1.0))
    for k in range(14):
        flake = circle(
            u - ((n[:, 8] + 0.37 * k) % 1.0) * 2.4 + 1.2,
            v - ((n[:, 9] + 0.61 * k) % 1.0) * 2.2 + 1.1,
            0.020 + 0.004 * (k % 3),
        )
        window.paint(flake, (1.0, 1.0, 1.0), 0.95)


def _pine(
    window: Window, at: Tensor, foot: float, tall: Tensor, tone: tuple[float, float, float], snowy: bool = False
) -> None:
    u, v = window.u - at, window.v - foot
    window.draw(box(u, v + 0.05, 0.035, 0.07), (0.42, 0.29, 0.22))
    for k in range(3):
        low = -tall * (0.10 + 0.27 * k)
        half = tall * (0.30 - 0.065 * k)
        tier = polygon(u, v, [(-half, low), (0.0, low - tall * 0.42), (half, low)])
        window.draw(tier, tone, 1.0 + 0.08 * k - 0.20 * (u > 0.25 * half))
        if snowy:
            window.paint(both(tier + 0.008, v - low + tall * 0.24 + 0.30 * u.abs()), (0.97, 0.99, 1.0))


def _space(window: Window, n: Tensor) -> None:
    sky(window, (0.05, 0.04, 0.16), (0.22, 0.12, 0.36), 1.0)
    u, v = window.u, window.v
    window.paint(ellipse(u + 0.4 * v, v + 0.2 - 0.5 * u, 1.3, 0.24), (0.50, 0.26, 0.62), 0.35, soft=0.5)
    for k in range(22):
        size = (0.010, 0.014, 0.020)[k % 3]
        star = circle(
            u - ((n[:, 0] + 0.381 * k) % 1.0) * 2.4 + 1.2, v - ((n[:, 1] + 0.727 * k) % 1.0) * 2.2 + 1.1, size
        )
        window.paint(star, (1.0, 0.97, 0.88) if k % 2 else (0.85, 0.90, 1.0))
    at = torch.where(n[:, 2] > 0.5, 0.62, -0.62)
    planet = circle(u - at, v + 0.58, 0.27)
    tone = torch.cat([0.85 + 0.1 * n[:, 3:4], 0.45 + 0.35 * n[:, 4:5], 0.35 + 0.5 * n[:, 5:6]], 1)
    bands = 0.95 + 0.12 * torch.sin((v + 0.15 * u) * 34.0)
    window.draw(planet, tone, bands)
    window.darken(both(planet, -circle(u - at + 0.09, v + 0.64, 0.27)), 0.80, soft=0.10)
    ring = ellipse(u - at, v + 0.58 + 0.22 * (u - at), 0.46, 0.085).abs() - 0.018
    window.paint(both(ring, -both(planet, v + 0.58 + 0.22 * (u - at))), (0.95, 0.86, 0.66))
    moon = circle(u + at * 1.1, v + 0.30, 0.10)
    window.draw(moon, (0.80, 0.80, 0.84))
    for a, b in ((-0.03, 0.02), (0.04, -0.03)):
        window.paint(circle(u + at * 1.1 - a, v + 0.30 - b, 0.022), (0.64, 0.64, 0.70))
    hill = 0.62 + 0.05 * torch.sin(u * 2.5 + 6 * n[:, 6])
    ground(window, hill, (0.52, 0.48, 0.60), (0.70, 0.66, 0.76), 0.5)
    for k in range(3):
        pit = ellipse(u - (k - 1) * 0.7 - 0.4 * (n[:, 7 + k] - 0.5), v - 0.74 - 0.06 * (k % 2), 0.15, 0.032)
        window.paint(pit, (0.44, 0.40, 0.53))


def _forest(window: Window, n: Tensor) -> None:
    sky(window, (0.70, 0.88, 0.86), (0.93, 0.96, 0.82), 0.3)
    u = window.u
    for layer, (tone, foot, tall) in enumerate(
        (((0.58, 0.78, 0.68), 0.24, 1.05), ((0.36, 0.63, 0.49), 0.32, 1.15), ((0.19, 0.46, 0.34), 0.42, 1.25))
    ):
        for k in range(3 + layer % 2):
            at = (k - (1.0 if layer % 2 == 0 else 1.5)) * 0.78 + 0.36 * (n[:, k + 3 * layer % 7] - 0.5)
            _pine(window, at, foot, tall + 0.35 * (n[:, k] - 0.5), tone)
        ground(
            window, foot - 0.02 + 0.03 * torch.sin(u * 4.0 + 2.0 * layer), (0.38, 0.62, 0.33), (0.50, 0.72, 0.42), 0.6
        )
    for k in range(5):
        at = (k - 2) * 0.5 + 0.3 * (n[:, k + 4] - 0.5)
        _mushroom(window, at, 0.60 + 0.07 * (k % 3), 0.055 if k % 2 else 0.0)


def _mushroom(window: Window, at: Tensor, foot: float, size: float) -> None:
    if size:
        window.draw(box(window.u - at, window.v - foot, 0.022, 0.05, 0.015), (0.96, 0.92, 0.85))
        window.draw(
            both(circle(window.u - at, window.v - foot + 0.03, size), window.v - foot + 0.03), (0.87, 0.25, 0.22)
        )
        return
    for lean in (-0.05, 0.0, 0.05):
        window.paint(
            limb(window.u - at, window.v - foot, (0.0, 0.04), (lean, -0.06), (0.016, 0.004)), (0.22, 0.47, 0.24)
        )


def _city(window: Window, n: Tensor) -> None:
    sky(window, (0.42, 0.44, 0.76), (1.0, 0.72, 0.50), 0.25)
    u, v = window.u, window.v
    window.paint(circle(u - 0.9 * (n[:, 0] - 0.5), v + 0.05, 0.24), (1.0, 0.90, 0.62))
    for k in range(6):
        at, tall = (k - 2.5) * 0.42, 0.30 + 0.42 * n[:, k]
        window.paint(box(u - at, v - 0.4 + tall, 0.19, tall + 0.1), (0.66, 0.50, 0.66))
    for k in range(4):
        at, tall = (k - 1.5) * 0.64 + 0.16 * (n[:, k + 4] - 0.5), 0.34 + 0.36 * n[:, k + 3]
        tower = box(u - at, v - 0.46 + tall, 0.24, tall)
        window.draw(tower, (0.34, 0.29, 0.48) if k % 2 else (0.42, 0.32, 0.50))
        window.darken(both(tower, 0.10 - (u - at)), 0.30)
        a, b = (u - at) * 8.0, v * 7.0
        lit = both(box((a - a.round()) / 8.0, (b - b.round()) / 7.0, 0.032, 0.040), tower + 0.045)
        glow = ((a.round() * 5.0 + b.round() * 3.0 + k + (n[:, k] * 9).floor()) % 4.0 > 0.9).float()
        window.paint(lit, (1.0, 0.86, 0.48), glow * 0.95)
    ground(window, torch.full_like(n[:, 0], 0.44), (0.46, 0.44, 0.54), (0.60, 0.54, 0.62), 0.5)
    ground(window, torch.full_like(n[:, 0], 0.54), (0.30, 0.30, 0.38), (0.38, 0.37, 0.45), 0.5)
    dash = both(box((u * 2.2) - (u * 2.2).round(), v - 0.80, 0.28, 0.018), (v - 0.80).abs() - 0.02)
    window.paint(dash, (0.96, 0.92, 0.80))


def _tower(window: Window, n: Tensor) -> None:
    sky(window, (0.56, 0.78, 0.97), (0.98, 0.90, 0.86), 0.2)
    u, v = window.u, window.v
    _cloud(window, 1.8 * (n[:, 0] - 0.5), -0.50, 1.0)
    _cloud(window, 1.8 * (n[:, 1] - 0.5), -0.75, 0.8)
    window.paint(-(v - 0.12 - 0.04 * torch.sin(u * 9.0 + n[:, 2] * 6)), (0.56, 0.74, 0.58))
    at = torch.where(n[:, 3] > 0.5, 0.60, -0.60) + 0.2 * (n[:, 4] - 0.5)
    a, w = (u - at).abs(), v
    iron = (0.55, 0.42, 0.34)
    half = 0.035 + 0.33 * ((w + 0.95) / 1.2).clamp(0.0, 1.0) ** 2.2
    leg = both((a - half * 0.80).abs() - half * 0.30, -w - 0.95, w - 0.30)
    spire = both(a - half, -w - 1.02, w + 0.45)
    window.draw(either(leg, spire), iron)
    lattice = ((u - at + w) * 15.0).sin() * ((u - at - w) * 15.0).sin()
    window.paint(both(either(leg, spire) + 0.012, lattice * 0.04 - 0.004), (0.72, 0.57, 0.46), 0.7)
    for low, wide in ((-0.42, 0.135), (-0.05, 0.25)):
        window.draw(box(u - at, w - low, wide, 0.030), iron)
    arch = both(ellipse(u - at, w - 0.30, 0.23, 0.26).abs() - 0.018, w - 0.28)
    window.draw(arch, iron)
    ground(window, torch.full_like(n[:, 0], 0.28), (0.42, 0.68, 0.38), (0.60, 0.78, 0.50), 0.5)
    path = both((u - at * (1 - (v - 0.28))).abs() - 0.10 - 0.5 * (v - 0.28), 0.28 - v)
    window.paint(path, (0.93, 0.86, 0.74))
    for k in range(4):
        bush = bumpy(u - (k - 1.5) * 0.66 - 0.2 * (n[:, k + 5] - 0.5), v - 0.33, 0.15, 0.10, (4, 0.12))
        window.draw(bush, (0.32, 0.58, 0.34))


def _desert(window: Window, n: Tensor) -> None:
    sky(window, (0.98, 0.66, 0.44), (1.0, 0.90, 0.66), 0.1)
    u, v = window.u, window.v
    window.paint(circle(u - 1.2 * (n[:, 0] - 0.5), v + 0.48, 0.17), (1.0, 0.97, 0.84))
    for k in range(2):
        at = (k - 0.5) * 1.3 + 0.4 * (n[:, k + 1] - 0.5)
        mesa = polygon(
            u, v, [(at - 0.42, 0.2), (at - 0.30, -0.28 + 0.12 * k), (at + 0.28, -0.28 + 0.12 * k), (at + 0.44, 0.2)]
        )
        window.draw(mesa, (0.80, 0.45, 0.34), 0.95 + 0.08 * torch.sin(v * 36.0))
    dune = 0.14 + 0.10 * torch.sin(u * 2.0 + 6 * n[:, 3])
    ground(window, dune, (0.93, 0.68, 0.42), (0.98, 0.80, 0.54), 0.4)
    near = 0.36 + 0.08 * torch.sin(u * 2.6 + 6 * n[:, 4])
    ground(window, near, (0.90, 0.62, 0.38), (0.96, 0.74, 0.48), 0.6)
    for k, flag in ((0, -0.72), (1, 0.74)):
        at = flag + 0.2 * (n[:, 5 + k] - 0.5)
        a, b = u - at, v - 0.40
        stem = limb(a, b, (0.0, 0.06), (0.0, -0.52 - 0.1 * k), (0.075, 0.065))
        arms = either(*(limb(a, b, (x, y), (x2, y2), (0.043, 0.043)) for x, y, x2, y2 in BRANCHES))
        window.draw(either(stem, arms), (0.32, 0.60, 0.38), 0.94 + 0.10 * torch.sin(a * 90.0))


def _fair(window: Window, n: Tensor) -> None:
    sky(window, (0.52, 0.74, 0.97), (0.99, 0.87, 0.86), 0.3)
    u, v = window.u, window.v
    at = torch.where(n[:, 0] > 0.5, 0.55, -0.55)
    a, b = u - at, v + 0.32
    for side in (-1.0, 1.0):
        window.draw(limb(a, b, (0.0, 0.0), (side * 0.26, 0.72), (0.028, 0.034)), (0.93, 0.93, 0.96))
    window.draw(circle(a, b, 0.46).abs() - 0.020, (0.93, 0.36, 0.42))
    window.stroke(circle(a, b, 0.36), (0.93, 0.36, 0.42))
    turn = torch.atan2(b, a) + n[:, 1]
    spoke = (turn * 8 / 6.2832 - (turn * 8 / 6.2832).round()).abs() * circle(a, b, 0.0)
    window.paint(both(spoke - 0.008, circle(a, b, 0.45)), (0.96, 0.96, 0.98))
    for k in range(8):
        angle = 0.7854 * k - n[:, 1]
        gx, gy = a - 0.46 * torch.cos(angle), b - 0.46 * torch.sin(angle) - 0.05
        cabin = box(gx, gy, 0.062, 0.055, 0.03)
        window.draw(cabin, ((0.98, 0.78, 0.28), (0.30, 0.66, 0.86), (0.52, 0.78, 0.44), (0.93, 0.52, 0.70))[k % 4])
    other = -at
    tent = polygon(u - other, v, [(-0.42, 0.06), (0.0, -0.40), (0.42, 0.06)])
    ribs = ((u - other) / (v + 0.42).clamp_min(0.05) * 5.0).sin() > 0
    stripes = torch.where(ribs.unsqueeze(1), window.colour((0.96, 0.95, 0.92)), window.colour((0.90, 0.28, 0.34)))
    window.draw(tent, stripes)
    window.draw(
        box(u - other, v - 0.20, 0.36, 0.18),
        torch.where(
            ((u - other) * 22 > 0).unsqueeze(1) ^ (((u - other) * 22).sin() > 0).unsqueeze(1),
            window.colour((0.96, 0.95, 0.92)),
            window.colour((0.88, 0.32, 0.38)),
        ),
    )
    ground(window, torch.full_like(n[:, 0], 0.34), (0.80, 0.66, 0.50), (0.92, 0.80, 0.62), 0.5)
    for k in range(9):
        x = (k - 4) * 0.28
        flag = polygon(u - x, v + 0.98 - 0.12 * abs(k - 4) / 4, [(-0.07, 0.0), (0.07, 0.0), (0.0, 0.14)])
        window.paint(flag, ((0.92, 0.34, 0.36), (0.98, 0.80, 0.30), (0.32, 0.62, 0.86))[k % 3])


BACKDROPS: dict[str, Callable[[Window, Tensor], None]] = {
    "beach": _beach, "snow": _snow, "space": _space, "forest": _forest, "city": _city, "tower": _tower,
    "desert": _desert, "fair": _fair, **INDOORS,
}  # fmt: skip
