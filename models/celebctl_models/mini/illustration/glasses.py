"""Glasses: frames of three kinds with faintly tinted lenses, and sunglasses."""

from __future__ import annotations

import torch
from torch import Tensor

from .face import EYE_V
from .figure import Figure
from .shapes import arc, both, box, circle, either, ellipse, polygon


def draw_glasses(figure: Figure) -> None:
    """Frames with faintly tinted lenses, or sunglasses where they are worn."""
    shades = figure.wears("sunglasses")
    for side in (-1.0, 1.0):
        for kind in (1, 2, 3):
            part = figure.only((figure.look.glasses == kind) & ~shades)
            if len(part):
                _frame(part, side, kind)
    part = figure.only((figure.look.glasses > 0) & ~shades)
    if len(part):
        _bridge(part, part.look.frame)
    part = figure.only(shades)
    if len(part):
        _sunglasses(part)


def _lens(kind: int, u: Tensor, v: Tensor, side: float) -> Tensor:
    if kind == 1:
        return circle(u, v, 0.295)
    if kind == 2:
        return box(u, v, 0.315, 0.245, 0.07)
    rise = v + 0.30 * u * side
    tip = polygon(u * side, v, [(0.02, -0.22), (0.45, -0.37), (0.31, 0.04)])
    return either(ellipse(u, rise, 0.31, 0.235), tip)


def _frame(figure: Figure, side: float, kind: int) -> None:
    at, narrow = figure.eye(side)
    window = figure.head(at, EYE_V, (0.58, 0.52))
    u, v = (window.u - at) / narrow, window.v - EYE_V - 0.01
    lens = _lens(kind, u, v, side)
    window.paint(lens, (0.90, 0.97, 1.0), 0.10)
    window.lighten(both(lens + 0.05, (u + v * 0.8 + 0.16).abs() - 0.035), 0.30)
    window.paint(lens.abs() - 0.046, figure.look.frame)
    window.close()


def _bridge(figure: Figure, colour: Tensor) -> None:
    left, _ = figure.eye(-1.0)
    right, _ = figure.eye(1.0)
    window = figure.head(0.0, EYE_V, (1.05, 0.22))
    u, v = window.u, window.v - EYE_V
    middle = (left + right) / 2
    gap = (right - left) / 2
    window.paint(arc(u - middle, v + 0.02, (gap - 0.27).clamp_min(0.05), 0.05, 0.050), colour)
    ends = (u - middle).abs() - gap - 0.28
    temples = both(-ends, v.abs() - 0.035, u.abs() - figure.look.width + 0.03)
    window.paint(temples, colour)
    window.close()


def _sunglasses(figure: Figure) -> None:
    black = torch.full_like(figure.look.frame, 0.09)
    _bridge(figure, black)
    for side in (-1.0, 1.0):
        at, narrow = figure.eye(side)
        window = figure.head(at, EYE_V, (0.46, 0.40))
        u, v = (window.u - at) / narrow, window.v - EYE_V - 0.04
        lens = box(u - side * 0.0, v - 0.02, 0.35 - 0.12 * v.clamp_min(0.0), 0.26, 0.16)
        window.draw(lens, (0.13, 0.13, 0.17))
        glow = (0.5 + 0.9 * v).clamp(0.0, 0.6)
        window.paint(lens + 0.04, (0.45, 0.38, 0.48), glow)
        window.lighten(both(lens + 0.06, (u + 0.7 * v + 0.08).abs() - 0.05), 0.50)
        window.close()
