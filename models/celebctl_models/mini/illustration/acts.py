"""What people do: where their hands are, the table before them, and the things in their hands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import things, vehicles
from .arms import draw_arm
from .figure import Figure
from .shapes import Number, Window, both, box, circle, ellipse

Painter = Callable[[Figure], None]
Spot = tuple[Number, Number]
#: Height of table tops in the body frame.
TABLE_V = 2.36


@dataclass(frozen=True)
class Act:
    """How an act is drawn.

    hands: where the left and right hand are, in the body frame; grip: 0 for open hands, 1 for closed ones; table:
    painter of what stands before the whole company, once a picture; behind, before: painters of what is under and over
    the hands of each person.
    """

    hands: tuple[Spot, Spot] = ((-1.06, 3.40), (1.06, 3.40))
    grip: float = 0.3
    table: Callable[[Window, Figure], None] | None = None
    behind: Painter | None = None
    before: Painter | None = None


def draw_table(figure: Figure, act: Act) -> None:
    """The shared table of the scenes of these people, who are those in the middle of their company."""
    if act.table is None:
        return
    pose = figure.pose
    top = pose.y + 1.5 * pose.size
    window = figure.canvas.window(figure.rows, torch.zeros_like(top), (top + 1.0) / 2, (1.0, (1.0 - top) / 2))
    act.table(window.frame(pose.x, pose.y, pose.size), figure)
    window.close()


def draw_act(figure: Figure, act: Act) -> None:
    """Arms, hands and what they hold."""
    if act.behind is not None:
        act.behind(figure)
    for side, hand in zip((-1.0, 1.0), act.hands, strict=True):
        draw_arm(figure, side, hand, act.grip)
    if act.before is not None:
        act.before(figure)


def draw_handshake(left: Figure, right: Figure) -> None:
    """Two companies of equal length, shaking hands pairwise in the middle between them."""
    middle = (left.pose.x + right.pose.x) / 2
    height = (left.pose.y + right.pose.y) / 2
    for figure, side in ((left, 1.0), (right, -1.0)):
        draw_arm(figure, -side, (-side * 1.06, 3.40), 0.3)
        p = figure.pose
        draw_arm(figure, side, ((middle - p.x) / p.size - side * 0.12, (height - p.y) / p.size + 2.36), 1.0)


def _board(window: Window, figure: Figure, colour: tuple[float, float, float] = (0.72, 0.50, 0.33)) -> None:
    """A wooden table across the picture."""
    u, v = window.u, window.v
    half = 0.94 / figure.pose.size
    middle = -figure.pose.x / figure.pose.size
    a = u - middle
    for side in (-1.0, 1.0):
        window.draw(both(box(a * side - half * 0.90, v - 4.0, 0.16, 1.40), 2.6 - v), window.colour(colour) * 0.72)
    window.darken(both(ellipse(a, v - TABLE_V - 0.44, half * 0.96, 0.10), 2.70 - v), 0.5, soft=0.14)
    slab = box(a, v - TABLE_V - 0.22, half, 0.24, 0.08)
    window.draw(slab, colour, 1.0 + 0.035 * torch.sin(v * 60.0 + 2.0 * torch.sin(a * 2.0)))
    edge = box(a, v - TABLE_V - 0.42, half, 0.09, 0.04)
    window.draw(edge, window.colour(colour) * 0.78)


def _cloth(window: Window, figure: Figure) -> None:
    """A table with a white cloth."""
    _board(window, figure)
    half = 0.86 / figure.pose.size
    a = window.u + figure.pose.x / figure.pose.size
    v = window.v
    fall = 0.42 + 0.07 * torch.sin(a * 5.0)
    window.draw(
        both(box(a, v - TABLE_V - 0.40, half, 0.46, 0.06), v - TABLE_V - 0.42 - fall),
        (0.97, 0.95, 0.92),
        1.0 - 0.07 * (v > TABLE_V + 0.42) - 0.05 * torch.sin(a * 5.0),
    )
    window.stroke(both((v - TABLE_V - 0.42).abs() + 0.0 * a, a.abs() - half), (0.80, 0.77, 0.76))


def _chess(window: Window, figure: Figure) -> None:
    _board(window, figure)
    u, v = window.u, window.v
    deep = (v - TABLE_V - 0.02) / 0.36
    wide = 0.88 + 0.26 * deep
    plate = both(u.abs() - wide - 0.06, (v - TABLE_V - 0.20).abs() - 0.23)
    window.draw(plate, (0.40, 0.24, 0.16))
    squares = ((u / wide * 4.0).floor() + (deep * 4.0).floor()) % 2 > 0.5
    tone = torch.where(squares.unsqueeze(1), window.colour((0.34, 0.21, 0.15)), window.colour((0.96, 0.88, 0.70)))
    window.paint(both(u.abs() - wide, (v - TABLE_V - 0.20).abs() - 0.18), tone)
    for k in range(8):
        at = (k % 4 - 1.5) * 0.42 + 0.10 * (k // 4)
        tone = (0.97, 0.94, 0.86) if (k * 5 + k // 4) % 2 else (0.20, 0.18, 0.22)
        things.piece(window, u - at, v - TABLE_V - (0.04 if k < 4 else 0.24), tone, crowned=k % 3 == 0)


def _tea(window: Window, figure: Figure) -> None:
    _board(window, figure, (0.80, 0.60, 0.42))
    things.teapot(window, window.u - 1.05, window.v - TABLE_V + 0.10, figure.pose.item)


def _kitchen(window: Window, figure: Figure) -> None:
    _board(window, figure, (0.86, 0.84, 0.80))
    u, v = window.u, window.v
    things.pan(window, u + 0.10, v - TABLE_V + 0.12)
    for k, tone in enumerate(((0.88, 0.26, 0.22), (0.98, 0.62, 0.18), (0.42, 0.66, 0.28))):
        window.draw(circle(u + 1.55 - 0.26 * k, v - TABLE_V - 0.10 - 0.06 * (k % 2), 0.14), tone)


def _piano(window: Window, figure: Figure) -> None:
    things.piano(window, window.u + figure.pose.x / figure.pose.size, window.v - TABLE_V, 0.90 / figure.pose.size)


def _cake(window: Window, figure: Figure) -> None:
    _cloth(window, figure)
    things.cake(window, window.u, window.v - TABLE_V - 0.20, figure.pose.item)


def _bricks(window: Window, figure: Figure) -> None:
    _board(window, figure, (0.86, 0.74, 0.56))
    things.bricks(window, window.u, window.v - TABLE_V - 0.22)


def _dinner(window: Window, figure: Figure) -> None:
    _cloth(window, figure)
    u, v = window.u, window.v
    for at in (-0.62, 0.62):
        things.plate(window, u - at, v - TABLE_V - 0.24)
    things.candles(window, u, v - TABLE_V - 0.10)


ACTS: dict[str, Act] = {
    "nothing": Act(),
    "chess": Act(hands=((-0.74, 2.34), (0.62, 2.28)), grip=0.7, table=_chess, before=things.held_piece),
    "tea": Act(hands=((-0.60, 2.40), (0.50, 1.86)), grip=1.0, table=_tea, before=things.held_cup),
    "guitar": Act(hands=((-0.34, 2.46), (1.30, 1.86)), grip=0.7, behind=things.guitar),
    "handshake": Act(),
    "reading": Act(hands=((-0.62, 2.36), (0.62, 2.36)), grip=0.9, before=things.open_book),
    "cooking": Act(hands=((-0.78, 2.30), (0.62, 2.10)), grip=1.0, table=_kitchen, before=things.spoon),
    "basketball": Act(hands=((-0.80, 2.90), (0.92, 1.95)), grip=0.0, behind=things.basketball),
    "piano": Act(hands=((-0.58, 2.34), (0.58, 2.34)), grip=0.1, table=_piano),
    "cake": Act(hands=((-0.92, 2.40), (0.92, 2.40)), grip=0.3, table=_cake),
    "bricks": Act(hands=((-0.62, 2.34), (0.66, 2.22)), grip=0.8, table=_bricks, before=things.held_brick),
    "dinner": Act(hands=((-0.98, 2.42), (0.98, 2.36)), grip=1.0, table=_dinner, before=things.cutlery),
    "bags": Act(hands=((-1.22, 2.08), (1.22, 2.08)), grip=1.0, behind=things.bags),
    "waving": Act(hands=((-1.06, 3.40), (1.42, 0.62)), grip=0.0),
    "painting": Act(
        hands=((-0.90, 2.46), (1.06, 1.90)), grip=1.0, behind=things.picture_stand, before=things.palette_and_brush
    ),
    "camera": Act(hands=((-0.48, 2.02), (0.48, 2.02)), grip=0.8, behind=things.camera),
    "eating": Act(hands=((-1.06, 3.40), (0.52, 1.34)), grip=1.0, behind=things.bread),
    "jet": Act(hands=((-0.70, 2.30), (0.70, 2.30)), grip=1.0, before=vehicles.jet),
    "motorbike": Act(hands=((-1.02, 2.10), (1.02, 2.10)), grip=1.0, behind=vehicles.motorbike),
}  # fmt: skip

ITEMS: dict[str, Act] = {
    "nothing": Act(),
    "cup": Act(hands=((-1.06, 3.40), (0.50, 1.98)), grip=1.0, before=things.held_cup),
    "balloon": Act(hands=((-1.06, 3.40), (0.70, 2.10)), grip=1.0, behind=things.balloon),
    "flower": Act(hands=((-1.06, 3.40), (0.52, 2.10)), grip=1.0, behind=things.flower),
    "umbrella": Act(hands=((-1.06, 3.40), (0.66, 2.08)), grip=1.0, behind=things.umbrella),
    "apple": Act(hands=((-1.06, 3.40), (0.54, 2.10)), grip=0.4, before=things.apple),
    "gift": Act(hands=((-0.58, 2.62), (0.58, 2.62)), grip=0.5, behind=things.gift),
}


def centred(figures: list[Figure], rows: Tensor) -> Figure:
    """The first person of each of the canvases ``rows``, moved to the middle of the company."""
    first = figures[0]
    total = torch.zeros(int(first.canvas.image.shape[0]), 1, 1, device=rows.device)
    count = torch.zeros_like(total)
    for figure in figures:
        total[figure.rows] += figure.pose.x
        count[figure.rows] += 1.0
    flag = torch.isin(first.rows, rows)
    chosen = first.only(flag)
    x = total[chosen.rows] / count[chosen.rows]
    return replace(chosen, pose=replace(chosen.pose, x=x))
