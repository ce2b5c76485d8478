"""One person on some canvases: where head and body are, and the windows to paint them in.

Head frame: origin between eyes and nose, u to the right, v down, one unit half the height of an average face, turned
by the roll of the head. Body frame: the same origin and unit without roll; shoulders at v = 1.7, waist 3.1, soles 5.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .people import Look
from .shapes import Canvas, Number, Rows, Window, box, ellipse

EXPRESSIONS: tuple[str, ...] = ("neutral", "smiling", "laughing", "surprised", "crying", "angry", "tired")
WORN: tuple[str, ...] = (
    "nothing", "hat", "suit", "sunglasses", "crown", "scarf", "sweater", "jacket", "santa hat", "wizard hat",
    "spacesuit", "headphones", "apron",
)  # fmt: skip
#: What covers the top of the hair.
HATS: tuple[str, ...] = ("hat", "santa hat", "wizard hat")
#: Hair above this height is under the hat.
HAT_LINE = -0.50
#: How far features slide over the head when it turns by one unit of yaw.
SLIDE = 0.24


@dataclass(frozen=True)
class Pose(Rows):
    """What changes from picture to picture. Numbers (n, 1, 1), colours (n, 3, 1, 1), classes (n,) int64.

    x, y: head centre in canvas units; size: canvas units per face unit; roll: radians; yaw, gaze: [-1, 1], negative to
    the left; light: where it comes from, negative is left; shirt, trousers: colours; tint, item: colours of the thing
    worn and of the thing held; outfit: index into clothes.OUTFITS; expression, worn: indices into EXPRESSIONS and WORN.
    """

    x: Tensor
    y: Tensor
    size: Tensor
    roll: Tensor
    yaw: Tensor
    gaze: Tensor
    light: Tensor
    shirt: Tensor
    trousers: Tensor
    tint: Tensor
    item: Tensor
    outfit: Tensor
    expression: Tensor
    worn: Tensor


@dataclass(frozen=True)
class Figure:
    """People drawn at once, at most one on each canvas: rows (n,) of the canvas, their looks and poses."""

    canvas: Canvas
    rows: Tensor
    look: Look
    pose: Pose

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, flag: Tensor) -> Figure:
        """The people for which flag (n,) holds."""
        index = flag.nonzero()[:, 0]
        return Figure(self.canvas, self.rows[index], self.look[index], self.pose[index])

    def wears(self, *names: str) -> Tensor:
        """Whether each wears one of the things, (n,) bool."""
        return torch.stack([self.pose.worn == WORN.index(name) for name in names]).any(0)

    def feels(self, *names: str) -> Tensor:
        """Whether each has one of the expressions, (n,) bool."""
        return torch.stack([self.pose.expression == EXPRESSIONS.index(name) for name in names]).any(0)

    def body(self, u: Number, v: Number, half: tuple[Number, Number]) -> Window:
        """A window around a point of the body frame."""
        p = self.pose
        window = self.canvas.window(self.rows, p.x + u * p.size, p.y + v * p.size, (half[0] * p.size, half[1] * p.size))
        return window.frame(p.x, p.y, p.size)

    def head(self, u: Number, v: Number, half: tuple[Number, Number]) -> Window:
        """A window around a point of the head frame."""
        p = self.pose
        cos, sin = torch.cos(p.roll), torch.sin(p.roll)
        x, y = u * cos - v * sin, u * sin + v * cos
        lean = sin.abs()
        across, down = half[0] + lean * half[1], half[1] + lean * half[0]
        window = self.canvas.window(self.rows, p.x + x * p.size, p.y + y * p.size, (across * p.size, down * p.size))
        return window.frame(p.x, p.y, p.size, p.roll)

    def outline(self, u: Tensor, v: Tensor) -> Tensor:
        """Distance to the head."""
        look = self.look
        below = v.clamp(0.0, 1.2)
        narrow = u / (1.0 - look.taper * below * below)
        oval = ellipse(narrow, v, look.width, look.height)
        angular = box(narrow, v, look.width, look.height, 0.52)
        return oval + look.square * (angular - oval)

    def dome(self, u: Tensor, v: Tensor, grow: Number) -> Tensor:
        """Distance to the skull with hair ``grow`` face units thick."""
        return ellipse(u, v + 0.06, self.look.width + grow, self.look.height + grow)

    def eye(self, side: float) -> tuple[Tensor, Tensor]:
        """Centre of an eye in u and what turning leaves of its width; side: -1 left, 1 right."""
        yaw = self.pose.yaw
        away = (side * yaw).clamp_min(0.0)
        near = (-side * yaw).clamp_min(0.0)
        return yaw * SLIDE + side * self.look.eye_gap * (1.0 - 0.22 * away - 0.06 * near), 1.0 - 0.22 * away

    def landmarks(self) -> Tensor:
        """Left eye, right eye, nose, left and right mouth corner as (n, 5, 2) canvas coordinates (x, y)."""
        yaw, look = self.pose.yaw, self.look
        (left, _), (right, _) = self.eye(-1.0), self.eye(1.0)
        slide = yaw * (SLIDE * 1.04)
        rows: list[tuple[Tensor, float]] = [
            (left, -0.10), (right, -0.10), (yaw * (SLIDE * 1.35), 0.26),
            (slide - look.mouth, 0.58), (slide + look.mouth, 0.58),
        ]  # fmt: skip
        u = torch.cat([row[0].view(-1, 1) for row in rows], 1)
        v = torch.tensor([row[1] for row in rows], device=u.device)[None]
        p = self.pose
        cos, sin = torch.cos(p.roll).view(-1, 1), torch.sin(p.roll).view(-1, 1)
        size = p.size.view(-1, 1)
        return torch.stack(
            [p.x.view(-1, 1) + (u * cos - v * sin) * size, p.y.view(-1, 1) + (u * sin + v * cos) * size], -1
        )

    def face_box(self) -> Tensor:
        """The face as (n, 4) canvas coordinates x1, y1, x2, y2 (roll ignored, as detectors do)."""
        p, look = self.pose, self.look
        half = torch.cat([(look.width * p.size).view(-1, 1), (look.height * p.size).view(-1, 1)], 1)
        centre = torch.cat([p.x.view(-1, 1), p.y.view(-1, 1)], 1)
        return torch.cat([centre - half, centre + half], 1)
