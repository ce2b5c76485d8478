"""Arms and hands: shoulders to targets given by what is being done, elbows bent outwards, fingers drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from .clothes import SHOULDER_U, SHOULDER_V, cloth, torso
from .figure import Figure
from .shapes import LINE, Number, Window, both, circle, either, ellipse, limb, where

#: Length of the upper arm and of the forearm.
BONE = 0.88


def _elbow(start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor], side: float) -> tuple[Tensor, Tensor]:
    du, dv = end[0] - start[0], end[1] - start[1]
    reach = (du * du + dv * dv + 1e-6).sqrt()
    bend = (BONE * BONE - 0.25 * reach * reach).clamp_min(0.01).sqrt().clamp_max(0.40)
    # Perpendicular to the line from shoulder to hand, outwards and down.
    pu, pv = -dv / reach, du / reach
    outward = torch.where(pu * side + pv < 0, -1.0, 1.0)
    return start[0] + 0.5 * du + outward * pu * bend, start[1] + 0.5 * dv + outward * pv * bend


def draw_arm(figure: Figure, side: float, hand: tuple[Number, Number], grip: float = 0.0) -> None:
    """One arm of every figure.

    Args:
        figure: The people.
        side: -1.0 for the arm on the left of the picture, 1.0 for the right.
        hand: Where its hand is, in the body frame; numbers or (n, 1, 1).
        grip: 0 for spread fingers, 1 for fingers closed around something.
    """
    zero = torch.zeros_like(figure.look.build)
    start = (zero + side * SHOULDER_U * figure.look.build, zero + SHOULDER_V)
    end = (zero + hand[0], zero + hand[1])
    elbow = _elbow(start, end, side)
    left = torch.minimum(torch.minimum(start[0], elbow[0]), end[0]) - 0.55
    right = torch.maximum(torch.maximum(start[0], elbow[0]), end[0]) + 0.55
    top = torch.minimum(torch.minimum(start[1], elbow[1]), end[1]) - 0.60
    low = torch.maximum(torch.maximum(start[1], elbow[1]), end[1]) + 0.60
    window = figure.body((left + right) / 2, (top + low) / 2, ((right - left) / 2, (low - top) / 2))
    u, v = window.u, window.v
    colour = cloth(figure)
    bare = (figure.pose.outfit == 0) | (figure.pose.outfit == 4)
    bare = bare & ~figure.wears("suit", "sweater", "jacket", "spacesuit")
    skin = figure.look.skin
    upper = limb(u, v, start, elbow, (0.25, 0.215))
    fore = limb(u, v, elbow, end, (0.21, 0.145))
    _hand(figure, window, elbow, end, grip)
    window.draw(fore, where(bare, skin, colour))
    cuff = both(limb(u, v, elbow, end, (0.22, 0.165)), circle(u - end[0], v - end[1], 0.20))
    window.draw(cuff, where(figure.wears("suit"), torch.full_like(colour, 0.97), where(bare, skin, colour * 0.86)))
    window.draw(upper, colour)
    window.paint(either(upper, torch.where(bare.view(-1, 1, 1), torch.full_like(fore, 9.0), fore)) + 0.02, colour)
    joint = both(circle(u - start[0], v - start[1], 0.29), v - start[1] - 0.12, torso(figure, u, v) + 0.03)
    window.paint(joint, colour)
    _crease(window, elbow, colour)
    window.close()


def _crease(window: Window, elbow: tuple[Tensor, Tensor], colour: Tensor) -> None:
    for away in (0.10, 0.22):
        fold = circle(window.u - elbow[0], window.v - elbow[1] - 0.28, away + 0.08)
        inside = circle(window.u - elbow[0], window.v - elbow[1], 0.19)
        window.stroke(both(fold.abs(), inside), colour * 0.68, 0.8, 0.8 * LINE)


def _hand(
    figure: Figure, window: Window, elbow: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor], grip: float
) -> None:
    u, v = window.u - end[0], window.v - end[1]
    du, dv = end[0] - elbow[0], end[1] - elbow[1]
    length = (du * du + dv * dv + 1e-6).sqrt()
    along, across = (u * du + v * dv) / length, (v * du - u * dv) / length
    glove = figure.wears("spacesuit")
    colour = where(glove, torch.full_like(figure.look.skin, 0.80), figure.look.skin)
    palm = ellipse(along - 0.14, across, 0.20, 0.165)
    reach = 0.38 - 0.14 * grip
    fingers = [
        limb(along, across, (0.18, at * 0.9), (reach - 0.10 * abs(at), at * (1.45 - 0.5 * grip)), (0.062, 0.052))
        for at in (-0.135, -0.045, 0.045, 0.135)
    ]
    toward = torch.where(end[0] > 0, 1.0, -1.0)
    thumb = limb(along, across * toward, (0.10, 0.08), (0.24, 0.235), (0.065, 0.055))
    hand = either(palm, *fingers, thumb)
    window.draw(hand, colour)
    between = either(
        *(limb(along, across, (0.20, at), (reach - 0.05, at * 1.3), (0.0, 0.0)) for at in (-0.09, 0.0, 0.09))
    )
    window.stroke(between, colour * 0.62, 0.75, 0.7 * LINE)
