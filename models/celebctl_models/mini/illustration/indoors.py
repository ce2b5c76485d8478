"""Places with walls, painted like those outdoors: each painter gets a whole picture in the place's frame."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .shapes import Colour, Window, both, box, bumpy, circle, either, ellipse, limb, palette, polygon

WALLS = palette(
    [(0.93, 0.78, 0.62), (0.74, 0.84, 0.80), (0.96, 0.86, 0.70), (0.72, 0.78, 0.90), (0.90, 0.72, 0.72),
     (0.82, 0.78, 0.88), (0.68, 0.80, 0.70), (0.96, 0.92, 0.86), (0.60, 0.72, 0.80), (0.95, 0.74, 0.56)]
)  # fmt: skip


def _wall(window: Window, colour: Colour, floor: Colour, edge: float = 0.46) -> None:
    glow = (1.06 - 0.14 * (window.v + 0.6).clamp(0.0, 1.0) - 0.06 * window.u.abs()).unsqueeze(1)
    window.image[:] = (window.colour(colour) * glow).clamp(max=1.0)
    v = window.v + 0.0 * window.u
    window.paint(edge - v, window.colour(floor) * (0.92 + 0.16 * (v - edge).clamp(0.0, 1.0)).unsqueeze(1))
    window.paint((v - edge).abs() - 0.028, window.colour(colour) * 0.80)


def _plain(window: Window, n: Tensor) -> None:
    tones = WALLS.to(n.device)[(n[:, 0] * 9.999).long().view(-1)][:, :, None, None]
    u, v = window.u, window.v
    _wall(window, tones, tones * 0.80)
    window.lighten(circle(u - 0.6 * (n[:, 1] - 0.5), v + 0.15, 0.75), 0.30, soft=0.7)


def _tiles(window: Window, edge: Tensor, scale: float, tone: Colour) -> None:
    a, b = window.u * scale, window.v * scale
    joint = torch.minimum((a - a.round()).abs(), (b - b.round()).abs()) / scale
    window.paint(both(joint - 0.006, edge), tone, 0.8)


def _kitchen(window: Window, n: Tensor) -> None:
    _wall(window, (0.97, 0.90, 0.76), (0.72, 0.52, 0.38), 0.66)
    u, v = window.u, window.v
    _tiles(window, box(u, v - 0.06, 2.0, 0.28), 6.0, (0.88, 0.78, 0.62))
    for at in (-0.82, 0.82):
        cabinet = box(u - at, v + 0.66, 0.36, 0.30, 0.03)
        window.draw(cabinet, (0.46, 0.70, 0.68))
        window.stroke(box(u - at, v + 0.66, 0.30, 0.24), (0.32, 0.54, 0.53), 0.8)
        window.stroke(both((u - at).abs(), cabinet), (0.32, 0.54, 0.53))
        for s in (-0.05, 0.05):
            window.paint(circle(u - at - s, v + 0.50, 0.018), (0.96, 0.84, 0.46))
    _window_view(window, 0.10 * (n[:, 0] - 0.5), -0.52)
    window.draw(box(u, v - 0.32, 2.0, 0.045), (0.90, 0.86, 0.80))
    window.draw(box(u, v - 0.54, 2.0, 0.18), (0.46, 0.70, 0.68))
    for k in range(5):
        window.stroke(both((u - (k - 2) * 0.5).abs(), box(u, v - 0.54, 2.0, 0.17)), (0.32, 0.54, 0.53))
    at = torch.where(n[:, 1] > 0.5, 0.62, -0.62)
    window.draw(box(u - at, v - 0.20, 0.13, 0.10, 0.04), (0.86, 0.36, 0.32))
    window.draw(box(u - at, v - 0.10, 0.14, 0.02), (0.72, 0.28, 0.26))
    window.draw(limb(u - at, v, (0.0, 0.08), (0.0, 0.05), (0.025, 0.025)), (0.30, 0.26, 0.26))
    for k, tone in enumerate(((0.96, 0.78, 0.30), (0.54, 0.72, 0.40), (0.90, 0.50, 0.34))):
        window.draw(box(u + at - 0.14 * k + 0.14, v - 0.21, 0.050, 0.075, 0.02), tone)


def _window_view(window: Window, at: Tensor, top: float) -> None:
    u, v = window.u - at, window.v - top
    frame = box(u, v, 0.32, 0.34, 0.02)
    window.draw(frame, (0.98, 0.97, 0.94))
    pane = box(u, v, 0.27, 0.29)
    window.paint(pane, (0.62, 0.85, 0.98))
    window.paint(both(pane, bumpy(u - 0.10, v - 0.30, 0.36, 0.20, (5, 0.1))), (0.52, 0.76, 0.46))
    window.paint(both(either(u.abs() - 0.014, (v + 0.0 * u).abs() - 0.014), pane), (0.98, 0.97, 0.94))


def _market(window: Window, n: Tensor) -> None:
    _wall(window, (0.99, 0.90, 0.70), (0.80, 0.72, 0.62), 0.56)
    u, v = window.u, window.v
    for k in range(3):
        at = (k - 1) * 0.84 + 0.1 * (n[:, 0] - 0.5)
        window.paint(box(u - at, v + 0.35, 0.34, 0.40), (0.62, 0.44, 0.34) if k % 2 else (0.70, 0.52, 0.40))
    awning = both(box(u, v + 0.76, 2.0, 0.20), v + 0.58 + 0.05 * (u * 19.0).cos().abs() * -1.0)
    stripe = ((u * 19.0 / 2.0).sin() > 0).unsqueeze(1)
    red = torch.where(stripe, window.colour((0.88, 0.30, 0.28)), window.colour((0.98, 0.96, 0.90)))
    window.draw(awning, red)
    for k in range(4):
        at = (k - 1.5) * 0.60
        lantern = ellipse(u - at, v + 0.42, 0.085, 0.095)
        window.paint(lantern - 0.05, (1.0, 0.80, 0.45), 0.5, soft=0.12)
        window.draw(lantern, (0.93, 0.32, 0.22), 0.92 + 0.14 * torch.cos((u - at) * 60.0))
    greens = ((0.90, 0.28, 0.22), (0.97, 0.62, 0.18), (0.46, 0.70, 0.30), (0.58, 0.34, 0.62), (0.96, 0.84, 0.34))
    for k in range(4):
        at = (k - 1.5) * 0.62
        for j in range(5):
            fruit = circle(u - at - (j - 2) * 0.095, v - 0.18 - 0.04 * (j % 2), 0.075)
            window.draw(fruit, greens[(k + 2 * (k // 2)) % 5] if j != 2 else greens[(k + 1) % 5])
        window.draw(box(u - at, v - 0.34, 0.28, 0.12, 0.02), (0.74, 0.54, 0.34))
        window.stroke(both((v - 0.34 + 0.0 * u).abs(), box(u - at, v - 0.34, 0.28, 0.12)), (0.52, 0.36, 0.22))
    window.draw(box(u, v - 0.52, 2.0, 0.07), (0.58, 0.40, 0.28))


def _library(window: Window, n: Tensor) -> None:
    _wall(window, (0.48, 0.33, 0.25), (0.60, 0.34, 0.28), 0.70)
    u, v = window.u, window.v
    tones = palette([(0.78, 0.30, 0.26), (0.30, 0.48, 0.62), (0.90, 0.74, 0.42), (0.36, 0.56, 0.42), (0.62, 0.40, 0.56),
                     (0.92, 0.86, 0.74), (0.24, 0.30, 0.44)]).to(u.device)  # fmt: skip
    row = ((v + 1.2) / 0.40).floor()
    place = u * 11.0 + row * 3.7 + n[:, 0] * 5
    book = place.floor()
    index = ((book * 37.0 + row * 17.0 + (n[:, 1] * 50).floor()) % 7.0).long()
    height = 0.24 + 0.07 * ((book * 13.0 + row * 5.0) % 3.0) / 2.0
    level = (v + 1.2) - row * 0.40
    spine = both(0.36 - height - level, ((place - book) - 0.5).abs() / 11.0 - 0.040, level - 0.365, v - 0.66)
    tone = tones[index].permute(0, 3, 1, 2)
    window.draw(spine, tone)
    window.paint(both(spine + 0.008, (level - 0.22).abs() - 0.012), (0.96, 0.88, 0.62), 0.7)
    plank = both((level - 0.382).abs() - 0.020 + 0.0 * u, v - 0.68)
    window.paint(plank, (0.66, 0.46, 0.33))
    for at in (-0.98, 0.0, 0.98):
        window.draw(both(box(u - at - 0.2 * (n[:, 2] - 0.5), v, 0.045, 0.68), v - 0.68), (0.62, 0.43, 0.31))
    window.lighten(circle(u, v + 0.8, 0.9), 0.16, soft=0.9)


def _stage(window: Window, n: Tensor) -> None:
    _wall(window, (0.30, 0.16, 0.34), (0.62, 0.42, 0.30), 0.60)
    u, v = window.u, window.v
    fold = 0.86 + 0.22 * torch.sin(u * 26.0)
    window.paint(box(u, v + 0.3, 2.2, 0.90), window.colour((0.72, 0.16, 0.24)) * fold.unsqueeze(1))
    beam = (v + 1.25).clamp_min(0.0)
    for k, tone in enumerate(((1.0, 0.92, 0.66), (0.72, 0.86, 1.0))):
        lean = (k - 0.5) * 1.2
        ray = (u + lean - lean * 0.75 * beam + 0.2 * (n[:, k] - 0.5)).abs() - 0.05 - 0.24 * beam
        window.paint(both(ray, v - 0.66), tone, 0.26, soft=0.10)
    planks = u / (v + 0.4).clamp_min(0.2) * 7.0
    window.stroke(both((planks - planks.round()).abs() / 8.0, 0.62 - v), (0.46, 0.29, 0.20))
    for k in range(9):
        lamp = circle(u - (k - 4) * 0.27, v - 0.60, 0.035)
        window.paint(lamp - 0.03, (1.0, 0.86, 0.50), 0.5, soft=0.08)
        window.paint(lamp, (1.0, 0.95, 0.78))
    window.draw(box(u, v + 1.12, 2.2, 0.20 - 0.06 * (u * 8.0).cos().abs()), (0.60, 0.12, 0.20))


def _living(window: Window, n: Tensor) -> None:
    _wall(window, (0.62, 0.74, 0.72), (0.78, 0.58, 0.42), 0.52)
    u, v = window.u, window.v
    side = torch.where(n[:, 0] > 0.5, 1.0, -1.0)
    a = u * side
    for x, y, w, h, tone in (
        (-0.62, -0.58, 0.17, 0.14, (0.95, 0.76, 0.48)),
        (-0.22, -0.66, 0.12, 0.16, (0.56, 0.66, 0.84)),
    ):
        window.draw(box(a - x, v - y, w + 0.03, h + 0.03), (0.96, 0.93, 0.88))
        window.paint(box(a - x, v - y, w, h), tone)
        window.paint(both(box(a - x, v - y, w, h), circle(a - x - 0.04, v - y - 0.12, 0.12)), (0.42, 0.56, 0.46))
    window.draw(limb(a, v, (0.78, 0.52), (0.78, -0.30), (0.018, 0.018)), (0.36, 0.30, 0.28))
    window.paint(circle(a - 0.78, v + 0.28, 0.34), (1.0, 0.93, 0.70), 0.45, soft=0.36)
    window.draw(polygon(a, v, [(0.68, -0.52), (0.88, -0.52), (0.98, -0.26), (0.58, -0.26)]), (0.99, 0.90, 0.66))
    sofa = (0.78, 0.42, 0.36)
    window.draw(box(u, v - 0.22, 0.74, 0.28, 0.10), sofa)
    window.stroke(both(u.abs(), box(u, v - 0.22, 0.74, 0.26)), (0.54, 0.26, 0.24))
    window.draw(box(u, v - 0.42, 0.74, 0.10, 0.06), (0.84, 0.48, 0.41))
    for s in (-1.0, 1.0):
        window.draw(box(u * s - 0.76, v - 0.34, 0.12, 0.22, 0.10), (0.84, 0.48, 0.41))
    plant = either(
        *(
            limb(a, v, (-0.98, 0.30), (-0.98 + x, y), (0.05, 0.012))
            for x, y in ((-0.2, -0.1), (0.0, -0.22), (0.2, -0.1), (0.12, 0.06))
        )
    )
    window.draw(plant, (0.34, 0.58, 0.38))
    window.draw(polygon(a, v, [(-1.10, 0.30), (-0.86, 0.30), (-0.90, 0.54), (-1.06, 0.54)]), (0.90, 0.70, 0.46))
    window.paint(ellipse(u, v - 0.80, 1.0, 0.16), (0.93, 0.86, 0.76))
    window.stroke(ellipse(u, v - 0.80, 0.90, 0.13), (0.80, 0.52, 0.44))


BACKDROPS: dict[str, Callable[[Window, Tensor], None]] = {
    "plain": _plain, "kitchen": _kitchen, "market": _market, "library": _library, "stage": _stage,
    "living room": _living,
}  # fmt: skip
