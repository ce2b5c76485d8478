"""What is worn on the head: hats, crown, headphones, and the helmet of a spacesuit."""

from __future__ import annotations

import torch
from torch import Tensor

from .figure import Figure
from .shapes import Window, arc, both, box, circle, either, ellipse, limb, melt, polygon

RED = (0.87, 0.17, 0.18)
WHITE = (0.97, 0.97, 0.96)
GOLD = (0.99, 0.80, 0.20)


def draw_hats(figure: Figure) -> None:
    """Whatever covers the head, over the hair."""
    for name, draw in (
        ("hat", _hat), ("crown", _crown), ("santa hat", _santa), ("wizard hat", _wizard),
        ("headphones", _headphones), ("spacesuit", _helmet),
    ):  # fmt: skip
        part = figure.only(figure.wears(name))
        if len(part):
            draw(part)


def _cast(figure: Figure, window: Window, d: Tensor) -> None:
    face = figure.outline(window.u, window.v)
    window.darken(both(d - 0.10, face), 0.45, soft=0.08)


def _hat(figure: Figure) -> None:
    window = figure.head(0.0, -0.85, (1.45, 0.75))
    u, v = window.u, window.v
    colour = figure.pose.tint
    dome = both(box(u, v + 0.90, figure.look.width + 0.02 + 0.16 * (v + 0.9), 0.52, 0.34), v + 0.48)
    brim = ellipse(u, v + 0.54 - 0.07 * u * u, figure.look.width + 0.46, 0.155)
    _cast(figure, window, brim)
    window.draw(dome, colour, 1.0 + 0.10 * figure.pose.light * u)
    window.lighten(both(ellipse(u - 0.32 * figure.pose.light, v + 1.06, 0.20, 0.20), dome), 0.25, soft=0.20)
    window.paint(both(dome, (v + 0.70 - 0.05 * u * u).abs() - 0.085), colour * 0.45)
    window.draw(brim, colour * 0.94)
    window.close()


def _crown(figure: Figure) -> None:
    window = figure.head(0.0, -0.92, (1.05, 0.62))
    u, v = window.u, window.v
    band = box(u, v + 0.66 - 0.06 * u * u, 0.80, 0.13, 0.04)
    points = [
        polygon(u, v, [(a - 0.20, -0.70), (a * 1.12, -1.24 + 0.10 * abs(a)), (a + 0.20, -0.70)])
        for a in (-0.60, -0.20, 0.20, 0.60)
    ]
    crown = either(band, *(both(one, v + 0.60) for one in points))
    _cast(figure, window, band)
    window.draw(crown, GOLD, 1.0 + 0.12 * figure.pose.light * u)
    for a in (-0.60, -0.20, 0.20, 0.60):
        window.draw(circle(u - a * 1.12, v + 1.22 - 0.10 * abs(a), 0.07), (0.99, 0.90, 0.50))
    for a, jewel in ((-0.5, (0.25, 0.55, 0.90)), (0.0, RED), (0.5, (0.25, 0.70, 0.45))):
        window.draw(circle(u - a, v + 0.66, 0.085), jewel)
    window.close()


def _santa(figure: Figure) -> None:
    window = figure.head(0.10, -0.95, (1.40, 0.85))
    u, v = window.u, window.v
    cone = polygon(u, v, [(-figure.look.width, -0.56), (-0.20, -1.52), (0.22, -1.50), (figure.look.width, -0.56)])
    flop = limb(u, v, (0.05, -1.36), (0.98, -0.98), (0.26, 0.12))
    hat = melt(cone, flop, 0.12)
    rim = box(u, v + 0.58 - 0.05 * u * u, figure.look.width + 0.14, 0.155, 0.15)
    _cast(figure, window, rim)
    window.draw(hat, RED, 1.0 + 0.10 * figure.pose.light * u)
    window.stroke(both(arc(u - 0.25, v + 1.22, 0.35, 0.10, 0.0), hat + 0.04), (0.55, 0.08, 0.10))
    window.draw(rim, WHITE, 0.97 + 0.05 * torch.sin(u * 30.0))
    window.draw(circle(u - 1.03, v + 0.90, 0.17), WHITE)
    window.close()


def _wizard(figure: Figure) -> None:
    window = figure.head(0.0, -1.15, (1.45, 1.05))
    u, v = window.u, window.v
    violet = (0.36, 0.26, 0.66)
    cone = polygon(u, v, [(-0.78, -0.56), (0.20, -2.05), (0.30, -2.05), (0.78, -0.56)])
    brim = ellipse(u, v + 0.54 - 0.06 * u * u, figure.look.width + 0.50, 0.15)
    _cast(figure, window, brim)
    window.draw(cone, violet, 1.0 + 0.15 * figure.pose.light * u)
    window.paint(both(cone, (v + 0.72).abs() - 0.075), GOLD)
    for a, b, r in ((-0.22, -1.02, 0.10), (0.22, -1.32, 0.09), (0.14, -0.96, 0.06), (0.12, -1.68, 0.06)):
        star = either(
            polygon((u - a).abs(), v - b, [(0.0, -r), (r * 0.9, r * 0.6), (-r * 0.9, r * 0.6)]),
            circle(u - a, v - b, r * 0.55),
        )
        window.paint(star, (1.0, 0.90, 0.45))
    window.draw(brim, (0.32, 0.22, 0.60))
    window.close()


def _headphones(figure: Figure) -> None:
    window = figure.head(0.0, -0.40, (1.45, 1.15))
    u, v = window.u, window.v
    look = figure.look
    grow = torch.where(look.hair_style == 6, 0.10, 0.14).view(-1, 1, 1)
    band = both(figure.dome(u, v, grow).abs() - 0.075, v + 0.05)
    window.draw(band, (0.20, 0.20, 0.24))
    for side in (-1.0, 1.0):
        cup = box(u * side - look.width - 0.13, v - 0.05, 0.18, 0.30, 0.15)
        window.draw(cup, figure.pose.tint)
        window.lighten(ellipse(u * side - look.width - 0.16, v + 0.05, 0.05, 0.10), 0.45, soft=0.05)
    window.close()


def _helmet(figure: Figure) -> None:
    window = figure.head(0.0, -0.10, (1.72, 1.68))
    u, v = window.u, window.v
    globe = circle(u, v + 0.08, 1.46)
    window.paint(globe, (0.72, 0.86, 1.0), 0.14)
    glint = both(circle(u, v + 0.08, 1.24).abs() - 0.055, -v - 0.45, u)
    shine = both(circle(u, v + 0.08, 1.22).abs() - 0.06, v + 0.35, u + 0.45)
    window.lighten(shine, 0.85, soft=0.03)
    window.lighten(both(glint, v - 0.9, u + 0.8), 0.25, soft=0.04)
    window.draw(globe.abs() - 0.065, (0.86, 0.90, 0.96))
    window.close()
