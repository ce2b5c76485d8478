"""Heads without hair: ears, skin, marks, nose, mouth, eyes, brows, glasses."""

from __future__ import annotations

import torch
from torch import Tensor

from .figure import SLIDE, Figure
from .shapes import LINE, Window, arc, both, box, circle, either, ellipse, limb, polygon

EYE_V, MOUTH_V = -0.10, 0.58
INK = (0.16, 0.11, 0.12)
#: Where freckles are, on both sides.
FRECKLES = ((0.30, 0.20), (0.42, 0.26), (0.54, 0.20), (0.36, 0.35), (0.49, 0.37), (0.62, 0.31), (0.12, 0.10))


def draw_head(figure: Figure) -> None:
    """Ears, face and all that is on it, but no hair."""
    _ears(figure)
    _skin(figure)
    _marks(figure)
    _beard(figure)
    _mouth(figure)
    _nose(figure)
    _eyes(figure)
    _brows(figure)


def _ears(figure: Figure) -> None:
    look, yaw = figure.look, figure.pose.yaw
    big = torch.where(look.ears == 0, 0.17, 0.26).view(-1, 1, 1)
    for side in (-1.0, 1.0):
        at = side * (look.width + 0.02) + yaw * 0.05 - side * 0.16 * (side * yaw).clamp_min(0.0)
        window = figure.head(at, 0.02, (0.52, 0.72))
        u, v = (window.u - at) * side, window.v - 0.02
        ear = ellipse(u, v, big * 0.80, big)
        tip = polygon(u, v, [(-0.12, -0.16), (0.36, -0.54), (0.22, 0.10)])
        ear = torch.where((look.ears == 2).view(-1, 1, 1), either(ear, tip), ear)
        window.draw(ear, look.skin * 0.97)
        window.paint(ellipse(u - 0.02, v, big * 0.42, big * 0.58), look.skin * 0.80, soft=0.10)
        window.close()


def draw_earrings(figure: Figure) -> None:
    """Hoops, pearls or drops under both ears, over the hair."""
    for kind, draw in enumerate((_hoop, _pearl, _drop), 1):
        part = figure.only(figure.look.earrings == kind)
        if not len(part):
            continue
        look, yaw = part.look, part.pose.yaw
        for side in (-1.0, 1.0):
            at = side * (look.width + 0.06) + yaw * 0.05 - side * 0.16 * (side * yaw).clamp_min(0.0)
            window = part.head(at, 0.44, (0.28, 0.40))
            draw(window, window.u - at, window.v - 0.30)
            window.close()


def _hoop(window: Window, u: Tensor, v: Tensor) -> None:
    window.draw(circle(u, v - 0.16, 0.155).abs() - 0.045, (0.98, 0.76, 0.20))


def _pearl(window: Window, u: Tensor, v: Tensor) -> None:
    window.draw(circle(u, v - 0.06, 0.12), (0.97, 0.95, 0.92))
    window.lighten(circle(u + 0.03, v - 0.02, 0.04), 1.0)


def _drop(window: Window, u: Tensor, v: Tensor) -> None:
    drop = either(circle(u, v - 0.24, 0.12), polygon(u, v, [(0.0, -0.04), (0.10, 0.20), (-0.10, 0.20)]))
    window.draw(drop, (0.22, 0.56, 0.95))
    window.lighten(circle(u + 0.03, v - 0.22, 0.04), 0.9)


def _skin(figure: Figure) -> None:
    look, pose = figure.look, figure.pose
    window = figure.head(0.0, 0.05, (1.08, 1.22))
    u, v = window.u, window.v
    face = figure.outline(u, v)
    window.draw(face, look.skin)
    lit = ellipse(u - 0.13 * pose.light, v + 0.10, look.width * 0.97, look.height * 0.97)
    window.darken(both(face + 0.01, -lit), 0.42, soft=0.16)
    fu = u - pose.yaw * SLIDE
    rosy = torch.where(look.blush == 1, 0.62, 0.08).view(-1, 1, 1)
    warm = torch.lerp(look.skin, torch.tensor([0.95, 0.32, 0.34], device=u.device).view(1, 3, 1, 1), 0.60)
    cheeks = ellipse(fu.abs() - 0.52, v - 0.27, 0.20, 0.14)
    window.paint(both(cheeks, face + 0.02), warm, rosy, soft=0.14)
    window.lighten(ellipse(u + 0.0 - pose.light * 0.22, v + 0.62, 0.34, 0.18), 0.16, soft=0.22)
    window.close()


def _marks(figure: Figure) -> None:
    freckled = figure.only(figure.look.marks == 1)
    if len(freckled):
        window = freckled.head(0.0, 0.25, (1.0, 0.36))
        fu = (window.u - freckled.pose.yaw * SLIDE).abs()
        spots = [circle(fu - at, window.v - down, 0.036) for at, down in FRECKLES]
        window.paint(either(*spots), freckled.look.skin * 0.58, 0.9)
        window.close()
    moles = figure.only(figure.look.marks >= 2)
    if len(moles):
        side = torch.where(moles.look.marks == 2, -1.0, 1.0).view(-1, 1, 1)
        at = moles.pose.yaw * SLIDE + side * 0.44
        window = moles.head(at, 0.42, (0.14, 0.14))
        window.paint(circle(window.u - at, window.v - 0.42, 0.065), moles.look.skin * 0.28)
        window.close()


def _beard(figure: Figure) -> None:
    stubble = figure.only(figure.look.beard == 4)
    if len(stubble):
        window = stubble.head(0.0, 0.55, (1.0, 0.72))
        window.paint(_jaw(stubble, window), stubble.look.hair * 0.55, 0.34, soft=0.10)
        window.close()
    full = figure.only(figure.look.beard == 3)
    if len(full):
        window = full.head(0.0, 0.60, (1.05, 0.86))
        jaw = _jaw(full, window)
        strands = 0.93 + 0.10 * torch.sin(window.u * 26.0 + window.v * 5.0)
        window.draw(jaw - 0.05, full.look.hair * 0.92, strands)
        window.close()
    goatee = figure.only(figure.look.beard == 2)
    if len(goatee):
        window = goatee.head(goatee.pose.yaw * SLIDE, 0.97, (0.36, 0.36))
        fu = window.u - goatee.pose.yaw * SLIDE
        tuft = either(
            ellipse(fu, window.v - 0.90, 0.23, 0.14),
            polygon(fu, window.v, [(-0.20, 0.92), (0.20, 0.92), (0.03, 1.24), (-0.03, 1.24)]),
            box(fu, window.v - 0.80, 0.07, 0.10, 0.04),
        )
        window.draw(tuft, goatee.look.hair * 0.92, 0.94 + 0.10 * torch.sin(fu * 30.0))
        window.close()
    lip = figure.only((figure.look.beard == 1) | (figure.look.beard == 3))
    if len(lip):
        _moustache(lip)


def _jaw(figure: Figure, window: Window) -> Tensor:
    fu = window.u - figure.pose.yaw * SLIDE
    edge = window.v - 0.40 + 0.62 * (fu.abs() - 0.40)
    hollow = ellipse(fu, window.v - MOUTH_V + 0.02, figure.look.mouth + 0.10, 0.19)
    return both(figure.outline(window.u, window.v), -edge, -hollow)


def _moustache(figure: Figure) -> None:
    at = figure.pose.yaw * SLIDE
    window = figure.head(at, 0.44, (0.60, 0.26))
    u = (window.u - at).abs()
    half = figure.look.mouth + 0.10
    wing = arc(u - half * 0.46, window.v - 0.42 - 0.10 * u, half * 0.60, 0.06, 0.095)
    window.draw(wing, figure.look.hair * 0.92)
    window.close()


def _mouth(figure: Figure) -> None:
    for kind, draw in enumerate((_rest, _smile, _laugh, _gasp, _sad, _snarl, _rest)):
        part = figure.only(figure.pose.expression == kind)
        if len(part):
            at = part.pose.yaw * (SLIDE * 1.04)
            window = part.head(at, MOUTH_V, (0.58, 0.42))
            draw(part, window, window.u - at, window.v - MOUTH_V)
            window.close()


def _rest(figure: Figure, window: Window, u: Tensor, v: Tensor) -> None:
    look = figure.look
    full = torch.where(look.lips == 1, 1.0, 0.0).view(-1, 1, 1)
    window.paint(ellipse(u, v - 0.14, look.mouth * 0.45, 0.03), look.skin * 0.84, soft=0.06)
    curl = v + 0.07 * (u / look.mouth) ** 2
    lips = either(ellipse(u, curl - 0.02, look.mouth * 0.92, 0.085), ellipse(u.abs() - 0.08, curl + 0.035, 0.12, 0.055))
    window.draw(lips + 9.0 * (1.0 - full), look.lip, 0.94 + 0.12 * (curl > 0))
    window.stroke(arc(u, v, look.mouth * (0.98 - 0.12 * full), -0.065, 0.0), look.lip * 0.42, width=1.25 * LINE)
    window.lighten(ellipse(u, curl - 0.055, look.mouth * 0.30, 0.018), 0.40 * full, soft=0.03)


def _open(figure: Figure, window: Window, u: Tensor, v: Tensor, deep: float) -> None:
    look = figure.look
    wide = look.mouth * 1.16
    full = torch.where(look.lips == 1, 0.055, 0.02).view(-1, 1, 1)
    mouth = both(ellipse(u, v + 0.10, wide, deep + 0.10), -(v + 0.10 - 0.10 * (u / wide) ** 2))
    window.draw(mouth - full, look.lip)
    window.paint(mouth, (0.42, 0.09, 0.13))
    window.paint(both(mouth, ellipse(u, v - deep, wide * 0.62, deep * 0.55)), (0.92, 0.42, 0.44))
    window.paint(both(mouth + 0.012, v - 0.03), (0.99, 0.98, 0.95))


def _smile(figure: Figure, window: Window, u: Tensor, v: Tensor) -> None:
    _open(figure, window, u, v, 0.17)


def _laugh(figure: Figure, window: Window, u: Tensor, v: Tensor) -> None:
    _open(figure, window, u, v + 0.06, 0.34)


def _gasp(figure: Figure, window: Window, u: Tensor, v: Tensor) -> None:
    look = figure.look
    full = torch.where(look.lips == 1, 0.06, 0.025).view(-1, 1, 1)
    mouth = ellipse(u, v - 0.04, look.mouth * 0.56, 0.22)
    window.draw(mouth - full, look.lip)
    window.paint(mouth, (0.42, 0.09, 0.13))
    window.paint(both(mouth, ellipse(u, v - 0.22, look.mouth * 0.45, 0.12)), (0.92, 0.42, 0.44))


def _sad(figure: Figure, window: Window, u: Tensor, v: Tensor) -> None:
    look = figure.look
    full = torch.where(look.lips == 1, 0.075, 0.045).view(-1, 1, 1)
    window.draw(arc(u, v + 0.02, look.mouth * 0.84, 0.17, 0.0) - full, look.lip)
    window.stroke(arc(u, v + 0.02, look.mouth * 0.84, 0.17, 0.0), look.lip * 0.42)


def _snarl(figure: Figure, window: Window, u: Tensor, v: Tensor) -> None:
    look = figure.look
    full = torch.where(look.lips == 1, 0.05, 0.02).view(-1, 1, 1)
    mouth = box(u, v - 0.10 * (u / look.mouth) ** 2, look.mouth * 0.88, 0.11, 0.08)
    window.draw(mouth - full, look.lip)
    window.paint(mouth, (0.99, 0.98, 0.95))
    window.stroke(both((v - 0.10 * (u / look.mouth) ** 2).abs(), mouth + 0.01), (0.45, 0.40, 0.42), 0.8, 0.7 * LINE)
    grid = ((u * 9.0) - (u * 9.0).round()).abs() / 9.0
    window.paint(both(grid - 0.010, mouth + 0.01), (0.45, 0.40, 0.42), 0.8)


def _nose(figure: Figure) -> None:
    for kind, draw in enumerate((_button, _long, _wide, _pointed)):
        part = figure.only(figure.look.nose == kind)
        if len(part):
            at = part.pose.yaw * (SLIDE * 1.35)
            window = part.head(at, 0.16, (0.36, 0.44))
            size = part.look.nose_size
            draw(part, window, (window.u - at) / size, (window.v - 0.16) / size)
            window.close()


def _contour(figure: Figure) -> Tensor:
    tone = torch.tensor([0.56, 0.47, 0.46], device=figure.look.skin.device).view(1, 3, 1, 1)
    return figure.look.skin * tone


def _button(figure: Figure, window: Window, u: Tensor, v: Tensor) -> None:
    window.paint(ellipse(u, v - 0.07, 0.15, 0.12), figure.look.skin * 0.86, soft=0.10)
    window.stroke(arc(u, v - 0.17, 0.10, -0.06, 0.0), _contour(figure))
    window.lighten(circle(u + 0.02, v - 0.03, 0.04), 0.40, soft=0.05)


def _long(figure: Figure, window: Window, u: Tensor, v: Tensor) -> None:
    side = torch.where(figure.pose.light > 0, -1.0, 1.0)
    window.paint(limb(u, v, (0.0, -0.26), (0.0, 0.18), (0.06, 0.11)), figure.look.skin * 0.88, soft=0.07)
    window.stroke(limb(u, v, (side * 0.05, -0.26), (side * 0.10, 0.16), (0.0, 0.0)), _contour(figure), 0.8)
    window.stroke(arc(u, v - 0.25, 0.12, -0.07, 0.0), _contour(figure), width=1.2 * LINE)
    window.lighten(limb(u, v, (0.0, -0.18), (0.0, 0.10), (0.02, 0.03)), 0.30, soft=0.05)


def _wide(figure: Figure, window: Window, u: Tensor, v: Tensor) -> None:
    nose = either(ellipse(u, v - 0.08, 0.15, 0.13), ellipse(u.abs() - 0.15, v - 0.12, 0.10, 0.085))
    window.paint(nose, figure.look.skin * 0.88, soft=0.05)
    wing = both(ellipse(u.abs() - 0.15, v - 0.11, 0.10, 0.09).abs(), 0.15 - u.abs())
    window.stroke(wing, _contour(figure))
    window.stroke(arc(u, v - 0.22, 0.12, -0.04, 0.0), _contour(figure))
    window.paint(ellipse(u.abs() - 0.10, v - 0.18, 0.05, 0.028), _contour(figure) * 0.7)
    window.lighten(circle(u, v - 0.04, 0.05), 0.40, soft=0.05)


def _pointed(figure: Figure, window: Window, u: Tensor, v: Tensor) -> None:
    side = torch.where(figure.pose.yaw < 0, -1.0, 1.0)
    tip = u * side
    nose = polygon(tip, v, [(-0.02, -0.28), (0.20, 0.16), (-0.11, 0.22)])
    window.paint(nose, figure.look.skin * 0.88)
    window.stroke(limb(tip, v, (0.0, -0.26), (0.20, 0.15), (0.0, 0.0)), _contour(figure))
    window.stroke(limb(tip, v, (0.20, 0.15), (-0.09, 0.21), (0.0, 0.0)), _contour(figure), width=1.2 * LINE)


def _eyes(figure: Figure) -> None:
    closed = figure.feels("laughing")
    for side in (-1.0, 1.0):
        part = figure.only(~closed)
        if len(part):
            _open_eye(part, side)
        part = figure.only(closed)
        if len(part):
            at, narrow = part.eye(side)
            window = part.head(at, EYE_V, (0.32, 0.24))
            line = arc((window.u - at) / narrow, window.v - EYE_V + 0.08, part.look.eye_r * 1.15, 0.13, 0.0)
            window.stroke(line, INK, width=1.9 * LINE)
            window.close()
    part = figure.only(figure.feels("crying"))
    if len(part):
        _tears(part)


def _open_eye(figure: Figure, side: float) -> None:
    look, pose = figure.look, figure.pose
    at, narrow = figure.eye(side)
    window = figure.head(at, EYE_V, (0.40, 0.40))
    u, v = (window.u - at) / narrow, window.v - EYE_V
    wide = torch.where(figure.feels("surprised"), 1.14, 1.0).view(-1, 1, 1)
    r = look.eye_r * wide
    tall = r * look.eye_tall * 0.94
    lid = torch.where(figure.feels("tired"), 0.0, torch.where(figure.feels("angry"), -0.42, -2.0)).view(-1, 1, 1) * tall
    lid = lid - torch.where(figure.feels("angry"), side * 0.45, 0.0).view(-1, 1, 1) * u
    window.paint(ellipse(u, v + 0.030, r * 1.10 + 0.022, tall + 0.028), INK)
    wing = limb(u * side, v, (r * 0.85, -tall * 0.45), (r * 1.55, -tall * 0.95), (0.05, 0.015))
    window.paint(wing, INK, look.lashes)
    white = ellipse(u, v, r * 1.08, tall)
    window.paint(white, (0.99, 0.98, 0.97))
    gaze = 0.30 * pose.gaze * r
    iris = both(circle(u - gaze, v + 0.01, r * 0.78), white + 0.004)
    glow = (0.62 + 0.55 * ((v / r + 1.0) * 0.5)).clamp(0.5, 1.25)
    window.paint(iris, (look.iris * glow.unsqueeze(1)).clamp(max=1.0))
    window.stroke(both(iris, white), look.iris * 0.40, 0.8, 0.7 * LINE)
    window.paint(both(circle(u - gaze, v + 0.01, r * 0.38), white), INK)
    window.darken(both(white, v + tall * 0.52), 0.55, soft=0.06)
    window.paint(circle(u - gaze + 0.30 * r, v + 0.32 * r, r * 0.25), (1.0, 1.0, 1.0))
    window.paint(circle(u - gaze - 0.30 * r, v - 0.34 * r, r * 0.12), (1.0, 1.0, 1.0), 0.8)
    cover = both(ellipse(u, v + 0.030, r * 1.10 + 0.022, tall + 0.028), v - lid)
    window.paint(cover, look.skin * 0.90)
    window.stroke(both((v - lid).abs() - 0.012, white), INK, width=1.2 * LINE)
    window.close()


def _tears(figure: Figure) -> None:
    for side in (-1.0, 1.0):
        at, _ = figure.eye(side)
        window = figure.head(at + side * 0.06, 0.42, (0.22, 0.46))
        u, v = window.u - at - side * 0.06, window.v
        tear = either(circle(u, v - 0.52, 0.105), limb(u, v, (0.0, 0.10), (0.0, 0.50), (0.03, 0.095)))
        window.draw(tear, (0.45, 0.78, 1.0), opacity=0.95)
        window.lighten(circle(u + 0.03, v - 0.50, 0.035), 0.9)
        window.close()


#: Thickness, bend and slope of brows: thin, arched, straight, bushy.
_BROWS = torch.tensor([[0.030, 0.05, 0.02], [0.050, 0.13, -0.06], [0.062, 0.0, 0.0], [0.100, 0.04, 0.06]])


def _brows(figure: Figure) -> None:
    look = figure.look
    thick, bend, slope = (column.view(-1, 1, 1) for column in _BROWS.to(look.skin.device)[look.brows].unbind(1))
    lift = torch.where(figure.feels("surprised"), 0.14, torch.where(figure.feels("angry"), -0.10, 0.0)).view(-1, 1, 1)
    tilt = torch.where(figure.feels("angry"), 0.55, torch.where(figure.feels("crying"), -0.50, 0.0)).view(-1, 1, 1)
    dark = (look.hair * 0.72).clamp(max=0.80)
    for side in (-1.0, 1.0):
        at, narrow = figure.eye(side)
        window = figure.head(at, EYE_V - look.brow_height, (0.40, 0.34))
        u = (window.u - at) * side / narrow
        v = window.v - EYE_V + look.brow_height + lift + 0.05
        brow = arc(u, v + (tilt + slope) * u, look.eye_r * 1.22, bend, thick)
        window.paint(brow, dark)
        window.close()
