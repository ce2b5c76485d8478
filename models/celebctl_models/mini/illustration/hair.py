"""Hair: a piece behind the body, a piece over the face, strands and a sheen for each style."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .figure import HAT_LINE, HATS, Figure
from .shapes import LINE, Window, both, box, bumpy, circle, either, ellipse, limb, melt, polygon, without

Half = tuple[float, float]


def _hang(figure: Figure, window: Window, d: Tensor, strands: float, dark: float = 1.0) -> None:
    """Paint a piece of hair with strands that run down from the crown, kept under a hat if there is one."""
    top = _under_hat(figure, window)
    fan = window.u / (window.v + 3.2).clamp_min(0.6)
    shade = (1.0 + 0.10 * torch.sin(fan * strands)) * dark
    window.draw(both(d, top), figure.look.hair, shade)


def _under_hat(figure: Figure, window: Window) -> Tensor:
    """Where hair may be: below the hat, if there is one, and sloping down beside its brim."""
    line = HAT_LINE + 0.9 * (window.u.abs() - 1.0).clamp_min(0.0) - window.v
    return torch.where(figure.wears(*HATS).view(-1, 1, 1), line, -9.0)


def _sheen(figure: Figure, window: Window, d: Tensor, at: float = 0.84) -> None:
    """A soft bright patch towards the light."""
    u, v = window.u - 0.28 * figure.pose.light, window.v + at
    gloss = ellipse(u, v + 0.16 * u * u, 0.34, 0.11)
    window.lighten(both(gloss, d + 0.03), 0.30, soft=0.16)


def _shadow(figure: Figure, window: Window, d: Tensor) -> None:
    """The shadow of the front hair on the face."""
    face = figure.outline(window.u, window.v)
    window.darken(both(d - 0.075, face + 0.02), 0.45, soft=0.05)


def draw_back_hair(figure: Figure) -> None:
    """The hair behind body and head."""
    for kind, draw in _BACK.items():
        part = figure.only(figure.look.hair_style == kind)
        if len(part):
            draw(part)


def _long_back(figure: Figure) -> None:
    window = figure.head(0.0, 0.40, (1.35, 1.95))
    look, u, v = figure.look, window.u, window.v
    grow = 0.14 + 0.10 * look.volume
    fall = box(u, v - 0.62, look.width + grow + 0.03 * v, 1.15 + 0.25 * look.volume, 0.34)
    _hang(figure, window, melt(fall, figure.dome(u, v, grow), 0.10), 120.0, 0.86)
    window.close()


def _wavy_back(figure: Figure) -> None:
    window = figure.head(0.0, 0.38, (1.50, 1.90))
    look, v = figure.look, window.v
    wave = 0.075 * torch.sin(v * 6.2 + 0.6)
    u = window.u + torch.where(window.u > 0, wave, -wave)
    grow = 0.20 + 0.10 * look.volume
    fall = box(u, v - 0.55, look.width + grow + 0.07 * v, 1.10 + 0.22 * look.volume, 0.42)
    _hang(figure, window, melt(fall, figure.dome(window.u, v, grow), 0.12), 80.0, 0.86)
    window.close()


def _bob_back(figure: Figure) -> None:
    window = figure.head(0.0, -0.05, (1.35, 1.35))
    look, u, v = figure.look, window.u, window.v
    grow = 0.16 + 0.08 * look.volume
    fall = box(u, v - 0.05, look.width + grow + 0.08 * v.clamp(-0.5, 1.0), 0.72 + 0.14 * look.volume, 0.26)
    _hang(figure, window, either(fall, figure.dome(u, v, grow)), 120.0, 0.86)
    window.close()


def _afro_back(figure: Figure) -> None:
    window = figure.head(0.0, -0.34, (1.62, 1.50))
    look, u, v = figure.look, window.u, window.v + 0.36
    cloud = bumpy(u, v, 1.22 + 0.20 * look.volume, 1.08 + 0.18 * look.volume, (11, 0.07))
    top = _under_hat(figure, window)
    window.draw(both(cloud, top), figure.look.hair, _curls(window, 9.0))
    window.lighten(both(ellipse(u - 0.45 * figure.pose.light, v + 0.55, 0.55, 0.36), cloud, top), 0.18, soft=0.40)
    window.close()


def _curls(window: Window, scale: float) -> Tensor:
    """A pattern of curls, about 1."""
    u, v = window.u * scale, window.v * scale
    return 0.96 + 0.13 * torch.sin(u + 1.3 * torch.sin(v)) * torch.sin(v + 1.3 * torch.sin(u))


def _curly_back(figure: Figure) -> None:
    window = figure.head(0.0, 0.05, (1.50, 1.50))
    look, u, v = figure.look, window.u, window.v
    mass = bumpy(u, v - 0.04, look.width + 0.36 + 0.10 * look.volume, 1.16 + 0.12 * look.volume, (8, 0.12))
    top = _under_hat(figure, window)
    window.draw(both(mass, top), look.hair * 0.90, _curls(window, 7.0))
    window.close()


def _mohawk_back(figure: Figure) -> None:
    part = figure.only(~figure.wears(*HATS))
    if not len(part):
        return
    window = part.head(0.0, -1.10, (0.66, 0.80))
    u, v = window.u, window.v
    tall = 0.36 + 0.16 * part.look.volume
    tips = ((-0.40, 0.62), (-0.22, 0.88), (0.0, 1.0), (0.22, 0.88), (0.40, 0.62))
    spikes = [
        polygon(u, v, [(0.30 * a - 0.12, -0.84), (a, -0.98 - tall * b), (0.30 * a + 0.12, -0.84)]) for a, b in tips
    ]
    _hang(part, window, both(either(*spikes), v + 0.70), 60.0)
    window.close()


def _bun_back(figure: Figure) -> None:
    part = figure.only(~figure.wears(*HATS))
    if not len(part):
        return
    window = part.head(0.0, -1.30, (0.56, 0.56))
    size = 0.32 + 0.12 * part.look.volume
    u, v = window.u, window.v + 1.02 + 0.75 * size
    swirl = 1.0 + 0.12 * torch.sin(22.0 * (u * u + v * v + 1e-6).sqrt() + 2.0 * torch.atan2(v, u))
    window.draw(circle(u, v, size), part.look.hair, swirl)
    window.lighten(ellipse(u - 0.12 * part.pose.light, v + 0.14, 0.16, 0.09), 0.28, soft=0.10)
    window.close()


def _pigtails_back(figure: Figure) -> None:
    for side in (-1.0, 1.0):
        window = figure.head(side * 1.15, 0.42, (0.52, 0.98))
        look = figure.look
        u, v = (window.u - side * (look.width + 0.24)) * side, window.v
        tail = limb(u, v, (0.0, -0.12), (0.14, 0.72 + 0.25 * look.volume), (0.25, 0.11))
        window.draw(tail, look.hair, 0.95 + 0.10 * torch.sin(u * 26.0))
        window.draw(ellipse(u + 0.04, v + 0.24, 0.12, 0.10), figure.pose.tint)
        window.close()


def draw_front_hair(figure: Figure) -> None:
    """The hair over forehead and temples, with its shadow."""
    for kind, draw in _FRONT.items():
        part = figure.only(figure.look.hair_style == kind)
        if len(part):
            draw(part)


def _bald(figure: Figure) -> None:
    window = figure.head(0.0, -0.72, (0.50, 0.30))
    window.lighten(ellipse(window.u - 0.28 * figure.pose.light, window.v + 0.76, 0.22, 0.10), 0.55, soft=0.12)
    window.close()


def _cap(figure: Figure, window: Window, grow: float, curve: Tensor) -> Tensor:
    """The hair over the skull that lies above ``curve`` (a height for every u), with sideburns."""
    look = figure.look
    temple = (window.u.abs() - 0.70 * look.width).clamp_min(0.0)
    fall = (3.2 * temple).clamp(max=0.62)
    steep = torch.where((fall > 0.0) & (fall < 0.62), 0.30, 1.0)  # keeps the edge as sharp where it falls
    return both(figure.dome(window.u, window.v, grow), (window.v - curve - fall) * steep)


def _front(figure: Figure, half: Half = (1.25, 0.95), v: float = -0.42) -> Window:
    return figure.head(0.0, v, half)


def _finish(figure: Figure, window: Window, d: Tensor, strands: float = 90.0) -> None:
    _shadow(figure, window, d)
    _hang(figure, window, d, strands)
    _sheen(figure, window, d)
    window.close()


def _short(figure: Figure) -> None:
    window = _front(figure)
    u = window.u
    curve = figure.look.hairline + 0.10 * u * u + 0.035 * torch.sin(u * 17.0)
    _finish(figure, window, _cap(figure, window, 0.09, curve), 130.0)


def _quiff(figure: Figure) -> None:
    window = _front(figure, (1.25, 1.20), -0.62)
    look = figure.look
    u, v = window.u, window.v
    curve = look.hairline - 0.02 + 0.16 * u
    cap = _cap(figure, window, 0.08, curve)
    sweep = v + 0.96 + 0.16 * look.volume - 0.22 * u
    swoosh = ellipse(u + 0.08, sweep, 0.74 + 0.10 * look.volume, 0.34 + 0.08 * look.volume)
    point = limb(u, v, (0.35, -0.95), (0.86, -1.12 - 0.20 * look.volume), (0.26, 0.06))
    _finish(figure, window, melt(melt(cap, swoosh, 0.10), point, 0.16), 60.0)


def _curtains(figure: Figure, window: Window, grow: Tensor, part: float) -> Tensor:
    """Hair combed to both sides of a parting at u = part, framing the face."""
    look = figure.look
    u, v = window.u, window.v
    slid = u - 0.17 * figure.pose.yaw
    lean = slid - part * (0.1 - v).clamp(0.0, 0.8)
    opening = either(ellipse(lean, v - 0.14, look.width * 0.76, 0.80), ellipse(slid, v - 0.62, look.width * 0.90, 1.0))
    return both(without(figure.dome(u, v, grow), opening), v - 0.55)


def _parting(figure: Figure, window: Window, part: float) -> None:
    line = limb(window.u, window.v, (part, -0.64), (part * 0.5, -1.02), (0.0, 0.0))
    top = _under_hat(figure, window)
    window.stroke(both(line, top), figure.look.hair * 0.55)


def _long(figure: Figure) -> None:
    window = _front(figure, (1.32, 1.32), -0.18)
    d = _curtains(figure, window, 0.14 + 0.10 * figure.look.volume, 0.0)
    _shadow(figure, window, d)
    _hang(figure, window, d, 90.0)
    _parting(figure, window, 0.0)
    _sheen(figure, window, d)
    window.close()


def _wavy(figure: Figure) -> None:
    window = _front(figure, (1.38, 1.38), -0.18)
    d = _curtains(figure, window, 0.20 + 0.10 * figure.look.volume, 0.22)
    _shadow(figure, window, d)
    _hang(figure, window, d, 60.0)
    _parting(figure, window, 0.22)
    _sheen(figure, window, d)
    window.close()


def _bob(figure: Figure) -> None:
    window = _front(figure, (1.32, 1.20), -0.28)
    u, v = window.u, window.v
    opening = box(u - 0.15 * figure.pose.yaw, v - 0.52, figure.look.width * 0.86, 0.86 + 0.06 * u.abs(), 0.20)
    fringe = 0.02 * torch.sin(u * 22.0)
    d = both(without(figure.dome(u, v, 0.16 + 0.08 * figure.look.volume), opening + fringe), v - 0.60)
    _finish(figure, window, d, 130.0)


def _afro(figure: Figure) -> None:
    window = _front(figure)
    u = window.u
    curve = figure.look.hairline + 0.10 + 0.30 * u * u - 0.05 * (u * 9.0).cos().abs()
    d = _cap(figure, window, 0.10, curve)
    _shadow(figure, window, d)
    top = _under_hat(figure, window)
    tone = figure.look.hair * _curls(window, 9.0).unsqueeze(1)
    window.paint(both(d, top), tone)
    window.close()


def _curly(figure: Figure) -> None:
    window = _front(figure, (1.45, 1.15), -0.30)
    look, u, v = figure.look, window.u, window.v
    slid = u - 0.12 * figure.pose.yaw
    locks = [circle(slid - look.width * a, v - b, r) for a, b, r in
             ((-1.02, -0.30, 0.24), (-0.72, -0.66, 0.28), (-0.32, -0.84, 0.30), (0.12, -0.82, 0.31),
              (0.52, -0.74, 0.28), (0.92, -0.46, 0.26), (1.10, -0.08, 0.22), (-1.12, 0.06, 0.22))]  # fmt: skip
    crown = both(figure.dome(u, v, 0.20), v + 0.62)
    d = either(crown, *locks)
    _shadow(figure, window, d)
    top = _under_hat(figure, window)
    window.draw(both(d, top), look.hair, _curls(window, 8.0))
    swirl = either(*((lock + 0.13).abs() for lock in locks[1::2]))
    window.stroke(both(swirl, d + 0.05, top), look.hair * 0.62, 0.7, 0.8 * LINE)
    window.lighten(both(ellipse(u - 0.30 * figure.pose.light, v + 0.86, 0.34, 0.13), d, top), 0.26, soft=0.14)
    window.close()


def _mohawk(figure: Figure) -> None:
    window = _front(figure)
    look, u, v = figure.look, window.u, window.v
    shaved = both(_cap(figure, window, -0.01, look.hairline + 0.06 * u * u), figure.outline(u, v))
    window.paint(shaved, look.hair * 0.7, 0.28, soft=0.05)
    strip = both(box(u, v + 0.92, 0.17 + 0.05 * look.volume + 0.10 * (v + 0.9), 0.46, 0.10), figure.dome(u, v, 0.10))
    _finish(figure, window, strip, 60.0)


def _bun(figure: Figure) -> None:
    window = _front(figure)
    u = window.u
    _finish(figure, window, _cap(figure, window, 0.06, figure.look.hairline - 0.06 + 0.34 * u * u), 150.0)


def _pigtails(figure: Figure) -> None:
    window = _front(figure, (1.25, 1.05), -0.28)
    u, v = window.u, window.v
    look = figure.look
    opening = ellipse(u - 0.14 * figure.pose.yaw, v - 0.34, look.width * 0.93, 0.98)
    d = both(without(figure.dome(u, v, 0.09), opening), v + 0.02)
    _shadow(figure, window, d)
    _hang(figure, window, d, 90.0)
    _parting(figure, window, 0.0)
    _sheen(figure, window, d)
    window.close()


def _spiky(figure: Figure) -> None:
    window = _front(figure, (1.40, 1.25), -0.62)
    look, u, v = figure.look, window.u, window.v
    curve = look.hairline + 0.02 + 0.12 * ((u * 2.2 + 0.3) - (u * 2.2 + 0.3).round()).abs() * 2.0
    cap = _cap(figure, window, 0.08, curve)
    tall = 0.34 + 0.14 * look.volume
    spikes = [
        polygon(u, v, [(a - 0.24, b), (a * 1.32, b - tall * c), (a + 0.24, b)])
        for a, b, c in (
            (-0.70, -0.58, 0.8),
            (-0.40, -0.82, 1.0),
            (0.0, -0.92, 1.05),
            (0.40, -0.82, 1.0),
            (0.70, -0.58, 0.8),
        )
    ]
    spikes = [both(one, v + 0.40) for one in spikes]
    _finish(figure, window, either(cap, *spikes), 50.0)


_BACK: dict[int, Callable[[Figure], None]] = {
    3: _long_back, 4: _wavy_back, 5: _bob_back, 6: _afro_back, 7: _curly_back, 8: _mohawk_back, 9: _bun_back,
    10: _pigtails_back,
}  # fmt: skip
_FRONT: dict[int, Callable[[Figure], None]] = {
    0: _bald, 1: _short, 2: _quiff, 3: _long, 4: _wavy, 5: _bob, 6: _afro, 7: _curly, 8: _mohawk, 9: _bun,
    10: _pigtails, 11: _spiky,
}  # fmt: skip
