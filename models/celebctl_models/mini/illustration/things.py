"""Things people hold or have before them.

Shared things take a window and coordinates of their own; things of one person take the figure.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .figure import Figure
from .shapes import LINE, Colour, Window, arc, both, box, bumpy, circle, either, ellipse, limb, polygon

Triple = tuple[float, float, float]
WOOD: Triple = (0.72, 0.46, 0.26)


def piece(window: Window, u: Tensor, v: Tensor, tone: Triple, crowned: bool) -> None:
    """A chess piece that stands at the origin."""
    body = either(
        box(u, v, 0.135, 0.04, 0.03), polygon(u, v, [(-0.055, -0.26), (0.055, -0.26), (0.11, 0.0), (-0.11, 0.0)])
    )
    head = box(u, v + 0.32, 0.085, 0.085, 0.02) if crowned else circle(u, v + 0.31, 0.09)
    shape = either(body, head)
    if crowned:
        shape = either(shape, box(u, v + 0.44, 0.02, 0.07), box(u, v + 0.45, 0.05, 0.02))
    window.draw(shape, tone)
    window.lighten(both(shape + 0.02, u + 0.02), 0.25)


def teapot(window: Window, u: Tensor, v: Tensor, colour: Colour) -> None:
    """A round teapot."""
    tone = window.colour(colour)
    window.draw(circle(u - 0.36, v + 0.02, 0.16).abs() - 0.04, tone)
    window.draw(limb(u, v, (-0.25, 0.06), (-0.56, -0.16), (0.10, 0.055)), tone)
    pot = ellipse(u, v, 0.36, 0.29)
    window.draw(pot, tone)
    window.darken(both(pot, 0.02 - v), 0.30, soft=0.25)
    window.lighten(ellipse(u + 0.12, v + 0.12, 0.09, 0.06), 0.6, soft=0.06)
    window.draw(either(ellipse(u, v + 0.27, 0.17, 0.05), circle(u, v + 0.35, 0.05)), tone * 0.85)


def pan(window: Window, u: Tensor, v: Tensor) -> None:
    """A cooking pot with steam."""
    for k in range(3):
        steam = limb(u - 0.2 * (k - 1) - 0.06 * torch.sin(v * 7.0 + k), v, (0.0, -0.95), (0.0, -0.42), (0.02, 0.05))
        window.paint(steam, (1.0, 1.0, 1.0), 0.45, soft=0.10)
    for side in (-1.0, 1.0):
        window.draw(box(u * side - 0.62, v + 0.04, 0.12, 0.045, 0.04), (0.30, 0.30, 0.34))
    pot = both(box(u, v - 0.02, 0.52, 0.32, 0.10), -(v + 0.24))
    window.draw(pot, (0.84, 0.34, 0.28))
    window.lighten(box(u + 0.30, v - 0.02, 0.05, 0.16, 0.05), 0.5, soft=0.06)
    window.draw(ellipse(u, v + 0.24, 0.52, 0.10), (0.95, 0.72, 0.36))
    for a, tone in ((-0.2, (0.42, 0.66, 0.28)), (0.08, (0.88, 0.26, 0.22)), (0.26, (0.42, 0.66, 0.28))):
        window.paint(ellipse(u - a, v + 0.25, 0.07, 0.035), tone)


def piano(window: Window, u: Tensor, v: Tensor, half: Tensor) -> None:
    """An upright piano's keyboard across the picture."""
    body = (0.22, 0.18, 0.22)
    window.draw(box(u, v - 1.1, half, 1.0, 0.05), body)
    window.draw(box(u, v - 0.18, half, 0.27, 0.03), (0.13, 0.11, 0.14))
    keys = box(u, v - 0.16, half - 0.16, 0.22)
    window.paint(keys, (0.98, 0.97, 0.94))
    step = u * 4.4
    window.paint(both((step - step.round()).abs() / 4.4 - 0.012, keys), (0.55, 0.54, 0.56))
    place = step.floor() % 7.0
    black = ((place != 2.0) & (place != 6.0)).float()
    window.paint(
        both(((step - step.floor()) - 1.0).abs().minimum((step - step.floor()).abs()) / 4.4 - 0.062, keys, v - 0.12),
        (0.12, 0.11, 0.13),
        black,
    )
    window.lighten(both((v - 0.62).abs() - 0.02 + 0.0 * u, u.abs() - half + 0.1), 0.25)


def cake(window: Window, u: Tensor, v: Tensor, colour: Colour) -> None:
    """A birthday cake with burning candles."""
    tone = window.colour(colour)
    window.draw(ellipse(u, v - 0.06, 0.86, 0.12), (0.98, 0.97, 0.95))
    window.draw(both(box(u, v + 0.20, 0.66, 0.28, 0.08), v - 0.05), (0.96, 0.80, 0.58))
    window.paint(both(box(u, v + 0.20, 0.64, 0.28, 0.08), (v + 0.17).abs() - 0.035), tone * 0.9)
    drip = v + 0.30 - 0.08 * (u * 11.0).cos()
    window.draw(both(box(u, v + 0.32, 0.68, 0.20, 0.10), drip), torch.lerp(tone, torch.ones_like(tone), 0.35))
    for k in range(5):
        a = u - (k - 2) * 0.24
        window.draw(box(a, v + 0.66, 0.035, 0.16), ((0.95, 0.40, 0.45), (0.36, 0.66, 0.90), (0.98, 0.80, 0.32))[k % 3])
        flame(window, a, v + 0.88)


def flame(window: Window, u: Tensor, v: Tensor) -> None:
    """A candle flame with a glow."""
    window.paint(circle(u, v, 0.10), (1.0, 0.86, 0.45), 0.55, soft=0.20)
    window.paint(
        either(ellipse(u, v, 0.045, 0.06), polygon(u, v, [(0.0, -0.16), (0.04, -0.02), (-0.04, -0.02)])),
        (1.0, 0.72, 0.20),
    )
    window.paint(ellipse(u, v - 0.02, 0.02, 0.035), (1.0, 0.97, 0.80))


BRICKS: tuple[Triple, ...] = ((0.86, 0.20, 0.20), (0.20, 0.44, 0.80), (0.98, 0.80, 0.20), (0.24, 0.62, 0.34))


def brick(window: Window, u: Tensor, v: Tensor, tone: Triple) -> None:
    """One toy brick with studs."""
    studs = either(*(box(u - a, v + 0.15, 0.055, 0.05, 0.01) for a in (-0.12, 0.12)))
    window.draw(studs, tone)
    window.draw(box(u, v, 0.25, 0.115, 0.015), tone)


def bricks(window: Window, u: Tensor, v: Tensor) -> None:
    """A wall of toy bricks."""
    for k, (a, b) in enumerate(
        ((-0.52, 0.0), (0.0, 0.0), (0.52, 0.0), (-0.26, -0.24), (0.26, -0.24), (0.0, -0.48), (-1.2, 0.06), (1.25, 0.08))
    ):
        brick(window, u - a, v - b + 0.10, BRICKS[(k * 3 + k // 3) % 4])


def plate(window: Window, u: Tensor, v: Tensor) -> None:
    """A plate with spaghetti."""
    window.draw(ellipse(u, v, 0.46, 0.14), (0.99, 0.99, 0.98))
    window.stroke(ellipse(u, v, 0.32, 0.09), (0.80, 0.80, 0.84))
    window.draw(bumpy(u, v + 0.05, 0.24, 0.10, (5, 0.12)), (0.98, 0.84, 0.46))
    window.paint(ellipse(u, v + 0.09, 0.12, 0.06), (0.85, 0.26, 0.18))


def candles(window: Window, u: Tensor, v: Tensor) -> None:
    """Two tall candles."""
    for at, tall in ((-0.12, 0.42), (0.14, 0.52)):
        window.draw(box(u - at, v - 0.04, 0.11, 0.05, 0.03), (0.86, 0.70, 0.32))
        window.draw(box(u - at, v + tall / 2, 0.055, tall / 2), (0.98, 0.95, 0.88))
        flame(window, u - at, v + tall + 0.10)


def held_piece(figure: Figure) -> None:
    """A chess piece in the right hand."""
    window = figure.body(0.72, 2.34, (0.26, 0.42))
    piece(window, window.u - 0.70, window.v - 2.54, (0.97, 0.94, 0.86), crowned=False)
    window.close()


def held_cup(figure: Figure) -> None:
    """A cup of the item's colour, in the right hand or before it."""
    tone = figure.pose.item
    window = figure.body(0.44, 1.86, (0.60, 0.60))
    u, v = window.u - 0.40, window.v - 1.92
    window.draw(circle(u - 0.27, v, 0.13).abs() - 0.038, tone)
    cup = both(box(u, v, 0.25 - 0.05 * v, 0.22, 0.06), -v - 0.20)
    window.draw(cup, tone)
    window.darken(both(cup, u - 0.02), 0.25, soft=0.25)
    window.lighten(box(u + 0.13, v, 0.03, 0.12, 0.03), 0.6, soft=0.04)
    window.draw(ellipse(u, v + 0.20, 0.26, 0.06), (0.99, 0.98, 0.96))
    window.paint(ellipse(u, v + 0.20, 0.20, 0.035), (0.52, 0.30, 0.16))
    window.close()


def guitar(figure: Figure) -> None:
    """An acoustic guitar across the body."""
    window = figure.body(0.45, 2.25, (1.72, 1.05))
    du, dv = window.u - 0.02, window.v - 2.46
    cos, sin = 0.906, -0.423
    u, v = du * cos + dv * sin, dv * cos - du * sin
    neck = box(u - 1.02, v, 0.80, 0.075, 0.02)
    window.draw(neck, (0.46, 0.28, 0.18))
    window.stroke(both(((u * 7.0) - (u * 7.0).round()).abs() / 7.0, neck), (0.85, 0.75, 0.55), width=0.7 * LINE)
    window.draw(box(u - 1.86, v, 0.16, 0.13, 0.04), (0.36, 0.20, 0.13))
    for a in (-0.09, 0.09):
        for b in (-0.17, 0.17):
            window.paint(circle(u - 1.86 - a, v - b, 0.04), (0.96, 0.92, 0.84))
    body = either(ellipse(u + 0.42, v, 0.52, 0.50), ellipse(u - 0.16, v, 0.42, 0.38))
    window.draw(body, (0.88, 0.58, 0.26), 1.05 - 0.16 * circle(u + 0.1, v, 0.0))
    window.stroke(body + 0.055, (0.62, 0.34, 0.14), 0.7)
    window.draw(circle(u - 0.06, v, 0.16), (0.24, 0.14, 0.10))
    window.draw(box(u + 0.52, v, 0.05, 0.20, 0.02), (0.36, 0.20, 0.13))
    strings = both(((v * 22.0) - (v * 22.0).round()).abs() / 22.0, v.abs() - 0.065, (u - 0.65).abs() - 1.15)
    window.stroke(strings, (0.97, 0.95, 0.90), 0.8, 0.45 * LINE)
    window.close()


def open_book(figure: Figure) -> None:
    """An open book held with both hands, its cover in the item's colour."""
    window = figure.body(0.0, 2.26, (0.78, 0.58))
    u, v = window.u, window.v - 2.26
    sag = 0.10 * (u.abs() * 2.2).sin()
    cover = box(u, v + sag, 0.66, 0.42, 0.04)
    window.draw(cover, figure.pose.item)
    window.stroke(both(u.abs() - 0.04, cover), figure.pose.item * 0.55)
    window.paint(both(box(u.abs() - 0.36, v + sag + 0.10, 0.18, 0.055, 0.02), cover), (0.98, 0.93, 0.76))
    window.paint(both(v + sag + 0.36, cover), (0.98, 0.96, 0.90))
    for side in (-1.0, 1.0):
        for k in range(4):
            finger = limb(u * side, v, (0.70, 0.02 + 0.09 * k), (0.55, 0.0 + 0.09 * k), (0.055, 0.05))
            window.draw(finger, figure.look.skin)
    window.close()


def spoon(figure: Figure) -> None:
    """A wooden spoon from the right hand into the pot."""
    window = figure.body(0.35, 2.12, (0.58, 0.50))
    window.draw(limb(window.u, window.v, (0.80, 1.80), (0.08, 2.14), (0.045, 0.05)), WOOD)
    window.close()


def basketball(figure: Figure) -> None:
    """A ball on the raised right hand."""
    window = figure.body(1.18, 1.55, (0.62, 0.62))
    u, v = window.u - 1.18, window.v - 1.58
    ball = circle(u, v, 0.46)
    window.draw(ball, (0.94, 0.52, 0.20))
    window.darken(both(ball, -circle(u + 0.10, v + 0.12, 0.44)), 0.5, soft=0.16)
    for line in (u + 0.18 * v, v - 0.12 * u, circle(u + 0.58, v, 0.46), circle(u - 0.58, v, 0.46)):
        window.stroke(both(line.abs(), ball + 0.02), (0.30, 0.16, 0.10))
    window.lighten(ellipse(u + 0.15, v + 0.20, 0.12, 0.08), 0.5, soft=0.08)
    window.close()


def held_brick(figure: Figure) -> None:
    """A toy brick in the right hand."""
    window = figure.body(0.60, 2.22, (0.36, 0.30))
    brick(window, window.u - 0.58, window.v - 2.24, BRICKS[2])
    window.close()


def cutlery(figure: Figure) -> None:
    """Knife and fork."""
    for side in (-1.0, 1.0):
        window = figure.body(side * 0.84, 2.20, (0.30, 0.42))
        u, v = window.u * side, window.v
        tool = limb(u, v, (0.92, 2.34), (0.76, 1.94), (0.032, 0.045))
        if side < 0:
            tool = either(tool, box(u - 0.75, v - 1.94, 0.075, 0.08, 0.03))
        window.draw(tool, (0.84, 0.86, 0.90))
        window.close()


def bags(figure: Figure) -> None:
    """Bags of vegetables in both hands."""
    for side in (-1.0, 1.0):
        window = figure.body(side * 1.28, 2.54, (0.60, 0.78))
        u, v = window.u - side * 1.28, window.v - 2.62
        window.draw(either(circle(u + 0.20, v + 0.34, 0.17), circle(u, v + 0.40, 0.15)), (0.40, 0.66, 0.30))
        window.draw(limb(u, v, (0.12, -0.30), (0.26, -0.56), (0.08, 0.02)), (0.97, 0.58, 0.18))
        window.draw(circle(u - 0.22, v + 0.32, 0.14), (0.88, 0.24, 0.20))
        window.draw(ellipse(u, v + 0.36, 0.22, 0.26).abs() - 0.025, (0.90, 0.93, 0.95))
        bag = box(u, v - 0.08, 0.40 - 0.08 * v, 0.36, 0.10)
        window.draw(bag, (0.93, 0.96, 0.97))
        window.stroke(both(arc(u - 0.12, v - 0.05, 0.14, 0.20, 0.0), bag + 0.04), (0.70, 0.76, 0.80))
        window.paint(circle(u, v - 0.10, 0.13), figure.pose.item)
        window.close()


def picture_stand(figure: Figure) -> None:
    """A picture on a stand beside the right hand."""
    window = figure.body(1.62, 2.35, (0.85, 1.60))
    u, v = window.u - 1.62, window.v
    for a, b in ((-0.55, -0.10), (0.55, 0.10), (0.0, 0.0)):
        window.draw(limb(u, v, (b, 1.0), (a, 3.8), (0.05, 0.06)), WOOD)
    window.draw(box(u, v - 1.92, 0.58, 0.66, 0.02), (0.99, 0.98, 0.95))
    picture = box(u, v - 1.92, 0.50, 0.58)
    window.paint(picture, (0.66, 0.84, 0.96))
    window.paint(both(picture, circle(u - 0.20, v - 1.62, 0.14)), (0.99, 0.82, 0.35))
    window.paint(both(picture, 2.05 + 0.08 * torch.sin(u * 6.0) - v), (0.46, 0.70, 0.42))
    window.paint(both(picture, circle(u + 0.22, v - 2.02, 0.13)), figure.pose.item)
    window.close()


def palette_and_brush(figure: Figure) -> None:
    """A palette in the left hand, a brush in the right."""
    window = figure.body(-0.72, 2.36, (0.60, 0.45))
    u, v = window.u + 0.72, window.v - 2.34
    window.draw(ellipse(u, v, 0.46, 0.30), (0.84, 0.62, 0.40))
    for k, (a, b) in enumerate(((-0.24, -0.08), (-0.04, -0.17), (0.18, -0.13), (0.30, 0.04))):
        window.paint(circle(u - a, v - b, 0.075), BRICKS[k])
    window.close()
    window = figure.body(1.10, 1.80, (0.40, 0.34))
    window.draw(limb(window.u, window.v, (0.94, 2.02), (1.26, 1.64), (0.035, 0.03)), (0.60, 0.36, 0.22))
    window.draw(limb(window.u, window.v, (1.26, 1.64), (1.32, 1.57), (0.045, 0.03)), figure.pose.item)
    window.close()


def camera(figure: Figure) -> None:
    """A camera held with both hands."""
    window = figure.body(0.0, 1.92, (0.62, 0.50))
    u, v = window.u, window.v - 1.92
    window.draw(box(u + 0.16, v + 0.29, 0.12, 0.07, 0.02), (0.75, 0.76, 0.80))
    window.draw(box(u, v, 0.46, 0.27, 0.07), (0.22, 0.22, 0.26))
    window.paint(box(u, v + 0.16, 0.46, 0.055), (0.80, 0.81, 0.84))
    window.draw(circle(u, v - 0.02, 0.20), (0.40, 0.41, 0.46))
    window.draw(circle(u, v - 0.02, 0.125), (0.16, 0.20, 0.34))
    window.lighten(circle(u + 0.05, v + 0.04, 0.04), 0.9)
    window.paint(circle(u - 0.34, v + 0.16, 0.04), (0.90, 0.24, 0.22))
    window.close()


def balloon(figure: Figure) -> None:
    """A balloon on a string in the right hand."""
    window = figure.body(1.22, 0.75, (0.70, 1.60))
    u, v = window.u - 1.42, window.v
    window.stroke(limb(window.u, v, (0.66, 2.1), (1.42, 0.36), (0.0, 0.0)), (0.40, 0.36, 0.40), width=0.7 * LINE)
    shape = either(ellipse(u, v + 0.18, 0.42, 0.52), polygon(u, v, [(0.0, 0.28), (0.08, 0.44), (-0.08, 0.44)]))
    window.draw(shape, figure.pose.item)
    window.darken(both(shape, -ellipse(u + 0.09, v + 0.26, 0.40, 0.49)), 0.35, soft=0.14)
    window.lighten(ellipse(u + 0.16, v + 0.38, 0.09, 0.13), 0.75, soft=0.08)
    window.close()


def flower(figure: Figure) -> None:
    """A flower in the right hand."""
    window = figure.body(0.56, 1.70, (0.52, 0.95))
    u, v = window.u - 0.58, window.v + 0.24
    window.draw(limb(u, v, (-0.08, 2.66), (0.0, 1.60), (0.04, 0.035)), (0.28, 0.56, 0.30))
    window.draw(ellipse(u - 0.13, v - 2.0 + 0.5 * (u - 0.13), 0.14, 0.055), (0.34, 0.62, 0.34))
    window.draw(bumpy(u, v - 1.48, 0.36, 0.36, (3, 0.34)), figure.pose.item)
    window.draw(circle(u, v - 1.48, 0.13), (0.99, 0.82, 0.30))
    window.close()


def umbrella(figure: Figure) -> None:
    """An umbrella over the head, its stick in the right hand."""
    window = figure.body(0.45, 0.1, (1.95, 2.36))
    u, v = window.u - 0.45, window.v
    stick = limb(window.u, v, (0.60, 2.40), (1.02, 0.0), (0.045, 0.035))
    stick = either(stick, limb(window.u, v, (1.02, 0.0), (1.02, -1.6), (0.035, 0.035)))
    window.draw(both(stick, -v - 1.3), (0.50, 0.34, 0.24))
    roof = both(ellipse(u, v + 1.05, 1.75, 0.95), v + 1.18 + 0.12 * (u * 3.6).cos().abs())
    ribs = 1.0 - 0.10 * ((u / (1.05 - 0.4 * (v + 1.2).abs()).clamp_min(0.3) * 2.4).sin() > 0)
    window.draw(roof, figure.pose.item, ribs)
    window.draw(box(u, v + 2.04, 0.035, 0.08), (0.50, 0.34, 0.24))
    window.close()


def apple(figure: Figure) -> None:
    """An apple in the right hand."""
    window = figure.body(0.46, 1.90, (0.36, 0.42))
    u, v = window.u - 0.46, window.v - 1.94
    fruit = either(circle(u + 0.07, v, 0.19), circle(u - 0.07, v, 0.19))
    window.draw(fruit, figure.pose.item)
    window.lighten(ellipse(u + 0.12, v + 0.06, 0.05, 0.07), 0.6, soft=0.05)
    window.paint(limb(u, v, (0.0, -0.16), (0.03, -0.29), (0.022, 0.018)), (0.42, 0.27, 0.16))
    window.draw(ellipse(u - 0.10, v + 0.26, 0.09, 0.045), (0.40, 0.66, 0.30))
    window.close()


def gift(figure: Figure) -> None:
    """A gift box with a ribbon, in both hands."""
    window = figure.body(0.0, 2.38, (0.72, 0.70))
    u, v = window.u, window.v - 2.48
    for side in (-1.0, 1.0):
        window.draw(
            ellipse(u - side * 0.17, v + 0.50 + 0.35 * side * (u - side * 0.17), 0.17, 0.10).abs() - 0.035,
            (0.99, 0.95, 0.86),
        )
    window.draw(box(u, v, 0.50, 0.36, 0.03), figure.pose.item)
    window.draw(box(u, v + 0.30, 0.56, 0.12, 0.03), figure.pose.item * 0.92)
    window.paint(both(u.abs() - 0.085, (v + 0.03).abs() - 0.40), (0.99, 0.95, 0.86))
    window.close()


def bread(figure: Figure) -> None:
    """A loaf of bread before the mouth."""
    window = figure.body(0.44, 0.90, (0.56, 0.52))
    du, dv = window.u - 0.46, window.v - 0.90
    u, v = du * 0.87 + dv * 0.5, dv * 0.87 - du * 0.5
    loaf = box(u, v, 0.44, 0.17, 0.16)
    window.draw(loaf, (0.86, 0.60, 0.30))
    window.darken(both(loaf, 0.02 - v), 0.25, soft=0.14)
    for at in (-0.22, 0.0, 0.22):
        window.paint(both(ellipse(u - at + 0.3 * v, v + 0.03, 0.045, 0.11), loaf + 0.02), (0.98, 0.86, 0.62))
    bite = circle(u + 0.50, v, 0.13)
    window.paint(both(loaf, bite), (0.99, 0.94, 0.80))
    window.close()
