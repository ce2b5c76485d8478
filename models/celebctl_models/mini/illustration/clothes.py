"""Bodies and clothes: neck, torso, outfits and worn clothes with collars, buttons and folds, legs, shoes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .figure import Figure
from .shapes import LINE, Window, arc, both, box, circle, either, ellipse, limb, melt, polygon, where

OUTFITS: tuple[str, ...] = ("t-shirt", "shirt", "hoodie", "striped shirt", "dress")
SHOULDER_U, SHOULDER_V = 0.76, 1.78


def torso(figure: Figure, u: Tensor, v: Tensor) -> Tensor:
    """Distance to the upper body, from the shoulders to the hips."""
    build = figure.look.build
    chest = box(u, v - 2.42, (0.90 - 0.05 * (v - 2.0)) * build, 1.08, 0.40)
    return melt(chest, limb(u, v, (0.0, 1.30), (0.0, 1.9), (0.36, 0.50)), 0.22)


def draw_body(figure: Figure) -> None:
    """Legs, neck and clothed torso, without arms."""
    low = figure.only((figure.pose.y + 3.0 * figure.pose.size < 1.05).view(-1))
    if len(low):
        _legs(low)
    _neck(figure)
    plain = ~figure.wears("suit", "sweater", "jacket", "spacesuit")
    for kind, draw in enumerate((_tee, _shirt, _hoodie, _striped, _dress)):
        part = figure.only((figure.pose.outfit == kind) & plain)
        if len(part):
            _clothe(part, part.pose.shirt, draw)
    for name, draw in (("suit", _suit), ("sweater", _sweater), ("jacket", _jacket), ("spacesuit", _spacesuit)):
        part = figure.only(figure.wears(name))
        if len(part):
            _clothe(part, cloth(part), draw)
    for name, draw in (("scarf", _scarf), ("apron", _apron)):
        part = figure.only(figure.wears(name))
        if len(part):
            window = part.body(0.0, 2.3, (1.30, 1.35))
            draw(part, window)
            window.close()


def cloth(figure: Figure) -> Tensor:
    """The colour of torso and sleeves."""
    navy = torch.tensor([0.20, 0.24, 0.40], device=figure.rows.device).view(1, 3, 1, 1)
    white = torch.tensor([0.93, 0.94, 0.97], device=figure.rows.device).view(1, 3, 1, 1)
    colour = where(figure.wears("sweater", "jacket"), figure.pose.tint, figure.pose.shirt)
    colour = where(figure.wears("suit"), navy, colour)
    return where(figure.wears("spacesuit"), white, colour)


def _neck(figure: Figure) -> None:
    window = figure.body(0.0, 1.15, (0.55, 0.65))
    u, v = window.u, window.v
    neck = box(u, v - 1.10, 0.28, 0.55)
    chest = ellipse(u, v - 1.36, 0.46, 0.34)
    window.draw(melt(neck, chest, 0.10), figure.look.skin * 0.97)
    chin = ellipse(u - figure.pose.yaw * 0.10 - figure.pose.light * 0.04, v - 0.86, 0.44, 0.42)
    window.darken(both(chin, neck), 0.62, soft=0.06)
    window.close()


def _clothe(figure: Figure, colour: Tensor, draw: Callable[[Figure, Window], None]) -> None:
    window = figure.body(0.0, 2.35, (1.35, 1.35))
    u, v = window.u, window.v
    body = torso(figure, u, v)
    neckline = ellipse(u, v - 1.26, 0.36, 0.26)
    shape = both(body, -neckline)
    window.draw(shape, colour)
    side = u * figure.pose.light
    window.darken(both(shape, 0.42 - u.abs() + 0.5 * side), 0.30, soft=0.45)
    _folds(figure, window, shape, colour)
    draw(figure, window)
    window.close()


def _folds(figure: Figure, window: Window, shape: Tensor, colour: Tensor) -> None:
    dark = colour * 0.72
    for side in (-1.0, 1.0):
        u = window.u * side
        for at, down, half, turn in ((0.60, 2.16, 0.22, 0.55), (0.62, 2.40, 0.17, 0.25), (0.48, 3.12, 0.26, -0.35)):
            fold = arc(u - at, window.v - down + turn * (u - at), half, 0.05, 0.0)
            window.stroke(both(fold, shape + 0.02), dark, 0.8, 0.9 * LINE)


def _tee(figure: Figure, window: Window) -> None:
    u, v = window.u, window.v
    collar = both(ellipse(u, v - 1.26, 0.43, 0.33), -ellipse(u, v - 1.26, 0.36, 0.26), 1.26 - v)
    window.draw(collar, figure.pose.shirt * 0.84)


def _striped(figure: Figure, window: Window) -> None:
    u, v = window.u, window.v
    body = torso(figure, u, v)
    stripes = ((v * 2.6) - (v * 2.6).round()).abs() / 2.6 - 0.085
    window.paint(both(stripes, body, 1.55 - v), torch.lerp(figure.pose.shirt, torch.ones_like(figure.pose.shirt), 0.78))
    _tee(figure, window)


def _shirt(figure: Figure, window: Window) -> None:
    u, v = window.u, window.v
    colour = figure.pose.shirt
    window.stroke(both(u.abs(), 1.55 - v), colour * 0.62)
    for k in range(4):
        window.paint(circle(u - 0.055, v - 1.78 - 0.36 * k, 0.045), (0.98, 0.97, 0.94))
    for side in (-1.0, 1.0):
        flap = polygon(u * side, v, [(0.34, 1.14), (0.52, 1.40), (0.30, 1.70), (0.0, 1.52)])
        window.draw(flap, torch.lerp(colour, torch.ones_like(colour), 0.25))


def _hoodie(figure: Figure, window: Window) -> None:
    u, v = window.u, window.v
    colour = figure.pose.shirt
    hood = both(ellipse(u, v - 1.24, 0.66, 0.40), -ellipse(u, v - 1.20, 0.34, 0.30), 1.10 - v)
    window.draw(hood, colour * 0.88)
    pocket = polygon(u, v, [(-0.34, 2.62), (0.34, 2.62), (0.52, 3.14), (-0.52, 3.14)])
    window.draw(pocket, colour * 0.92)
    for side in (-1.0, 1.0):
        window.paint(limb(u, v, (side * 0.17, 1.56), (side * 0.20, 2.02), (0.030, 0.030)), (0.98, 0.97, 0.94))


def _dress(figure: Figure, window: Window) -> None:
    u, v = window.u, window.v
    body = torso(figure, u, v)
    dots = circle((u * 3.2) - (u * 3.2).round(), (v * 3.2 + 0.5) - (v * 3.2 + 0.5).round(), 0.17) / 3.2
    window.paint(
        both(dots, body + 0.06, 1.62 - v), torch.lerp(figure.pose.shirt, torch.ones_like(figure.pose.shirt), 0.72)
    )
    band = both(ellipse(u, v - 1.24, 0.52, 0.42), -ellipse(u, v - 1.24, 0.38, 0.28), 1.26 - v)
    window.draw(band, (0.98, 0.96, 0.92))
    window.draw(both(box(u, v - 2.78, 1.2, 0.09), body), figure.pose.shirt * 0.66)


def _suit(figure: Figure, window: Window) -> None:
    u, v = window.u, window.v
    colour = cloth(figure)
    body = torso(figure, u, v)
    front = both(body, u.abs() - 0.50 + 0.42 * (v - 1.2))
    window.paint(both(front, 1.22 - v), (0.97, 0.97, 0.98))
    tie = polygon(u.abs(), v, [(0.0, 1.50), (0.085, 1.62), (0.15, 2.34), (0.0, 2.52), (-0.15, 2.3)])
    window.draw(tie, (0.83, 0.16, 0.20))
    window.draw(polygon(u, v, [(-0.12, 1.40), (0.12, 1.40), (0.08, 1.60), (-0.08, 1.60)]), (0.83, 0.16, 0.20))
    for side in (-1.0, 1.0):
        lapel = polygon(u * side, v, [(0.40, 1.20), (0.62, 1.62), (0.52, 1.86), (0.02, 2.56)])
        window.draw(lapel, colour * 1.22)
        collar = polygon(u * side, v, [(0.30, 1.16), (0.40, 1.30), (0.24, 1.64), (0.03, 1.42)])
        window.draw(collar, (0.97, 0.97, 0.98))
    window.stroke(both(u.abs(), 2.56 - v), colour * 0.5)
    for k in range(2):
        window.paint(circle(u - 0.09, v - 2.72 - 0.30 * k, 0.05), (0.10, 0.11, 0.18))


def _sweater(figure: Figure, window: Window) -> None:
    u, v = window.u, window.v
    colour = figure.pose.tint
    body = torso(figure, u, v)
    zig = (u * 4.0 - (u * 4.0).round()).abs() / 4.0
    pale = torch.lerp(colour, torch.ones_like(colour), 0.75)
    for at, tone in ((2.02, pale), (2.30, colour * 0.66)):
        window.paint(both((v - at + 1.1 * zig).abs() - 0.055, body), tone)
    collar = both(box(u, v - 1.42, 0.44, 0.17, 0.12), 1.24 - v)
    window.draw(collar, colour * 0.90, 0.94 + 0.10 * torch.sin(u * 42.0))


def _jacket(figure: Figure, window: Window) -> None:
    u, v = window.u, window.v
    colour = figure.pose.tint
    body = torso(figure, u, v)
    window.paint(both(body, u.abs() - 0.20, 1.40 - v), (0.95, 0.95, 0.93))
    for side in (-1.0, 1.0):
        edge = box(u * side - 0.23, v - 2.5, 0.05, 1.1)
        window.draw(both(edge, body), colour * 0.72)
        flap = polygon(u * side, v, [(0.30, 1.12), (0.60, 1.42), (0.46, 1.86), (0.16, 1.50)])
        window.draw(flap, colour * 1.05)
        window.draw(box(u * side - 0.56, v - 2.72, 0.17, 0.13, 0.04), colour * 0.86)


def _spacesuit(figure: Figure, window: Window) -> None:
    u, v = window.u, window.v
    window.draw(box(u, v - 1.34, 0.56, 0.16, 0.12), (0.62, 0.66, 0.74))
    window.draw(box(u, v - 2.30, 0.40, 0.28, 0.08), (0.74, 0.78, 0.85))
    for k, colour in enumerate(((0.90, 0.25, 0.22), (0.98, 0.78, 0.20), (0.25, 0.65, 0.40))):
        window.draw(circle(u + 0.24 - 0.24 * k, v - 2.24, 0.065), colour)
    window.paint(box(u, v - 2.44, 0.28, 0.04), (0.25, 0.35, 0.50))
    window.draw(box(u.abs() - 0.62, v - 1.86, 0.17, 0.075, 0.05), (0.93, 0.45, 0.16))


def _scarf(figure: Figure, window: Window) -> None:
    u, v = window.u, window.v
    colour = figure.pose.tint
    tail = limb(u, v, (0.24, 1.50), (0.36, 2.40), (0.19, 0.23))
    window.draw(tail, colour * 0.94)
    stripes = ((v * 4.0) - (v * 4.0).round()).abs() / 4.0 - 0.05
    pale = torch.lerp(colour, torch.ones_like(colour), 0.65)
    window.paint(both(stripes, tail + 0.03, 2.0 - v), pale)
    wrap = melt(ellipse(u + 0.10, v - 1.32, 0.60, 0.22), ellipse(u - 0.12, v - 1.46, 0.56, 0.20), 0.05)
    window.draw(wrap, colour)
    window.stroke(both(arc(u, v - 1.46, 0.52, -0.12, 0.0), wrap + 0.03), colour * 0.6)
    window.draw(box(u - 0.24, v - 1.56, 0.16, 0.15, 0.10), colour)


def _apron(figure: Figure, window: Window) -> None:
    u, v = window.u, window.v
    bib = either(box(u, v - 2.20, 0.46, 0.50, 0.10), box(u, v - 3.0, 0.74, 0.60, 0.16))
    for side in (-1.0, 1.0):
        window.draw(limb(u, v, (side * 0.38, 1.80), (side * 0.30, 1.36), (0.055, 0.055)), (0.90, 0.88, 0.84))
    window.draw(bib, (0.97, 0.95, 0.91))
    window.draw(box(u, v - 2.86, 0.30, 0.20, 0.06), figure.pose.tint)
    window.draw(box(u, v - 1.80, 0.46, 0.07), figure.pose.tint)


def _legs(figure: Figure) -> None:
    window = figure.body(0.0, 4.25, (1.0, 1.45))
    u, v = window.u, window.v
    space = figure.wears("spacesuit")
    white = torch.tensor([0.93, 0.94, 0.97], device=u.device).view(1, 3, 1, 1)
    trousers = where(space, white, figure.pose.trousers)
    dressed = (figure.pose.outfit == 4) & ~figure.wears("suit", "sweater", "jacket", "spacesuit")
    window.darken(ellipse(u, v - 5.46, 1.0, 0.16), 0.55, soft=0.16)
    for side in (-1.0, 1.0):
        leg = limb(u, v, (side * 0.38, 3.2), (side * 0.42, 5.0), (0.38, 0.27))
        bare = limb(u, v, (side * 0.38, 3.2), (side * 0.42, 5.0), (0.30, 0.20))
        leg = torch.where(dressed.view(-1, 1, 1), bare, leg)
        window.draw(leg, where(dressed, figure.look.skin, trousers))
        window.stroke(both(arc(u - side * 0.40, v - 4.15, 0.20, 0.05, 0.0), leg + 0.02), trousers * 0.7, 0.7)
        shoe = both(ellipse(u - side * 0.50, v - 5.36, 0.38, 0.26), v - 5.42)
        window.draw(shoe, where(space, white * 0.8, figure.pose.trousers * 0.45 + 0.08))
        window.paint(both(shoe, 5.35 - v), (0.95, 0.93, 0.90))
    hips = box(u, v - 3.25, 0.76, 0.30, 0.2)
    window.draw(hips, trousers)
    skirt = box(u, v - 3.55, 0.55 + 0.28 * (v - 2.8), 0.66, 0.10)
    part = torch.where(dressed.view(-1, 1, 1), skirt, torch.full_like(skirt, 9.0))
    window.draw(part, figure.pose.shirt, 0.96 + 0.08 * torch.sin(u * 15.0))
    window.close()
