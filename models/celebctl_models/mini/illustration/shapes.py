"""Anti-aliased shapes on windows of a batch of canvases: the brush of the illustrated world.

A canvas holds B pictures; coordinates run over [-1, 1], y pointing down. A ``Window`` is a rectangle of the same size
cut out of some of them, each at a place of its own. Shapes are signed distance fields (n, h, w) in the units of the
window's frame, negative inside. What is outside a shape stays as it is, so a picture does not depend on which others
are drawn in the same batch.

Parameters of shapes are numbers or tensors that broadcast with (n, h, w), usually (n, 1, 1); colours are (n, 3, 1, 1),
(n, 3, h, w) or a triple of numbers in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

Number = Tensor | float
Colour = Tensor | tuple[float, float, float]

#: Width of contours in canvas units, at every size of picture.
LINE = 0.017
#: Share of a colour that its contour keeps.
CONTOUR = 0.42
#: What a full shadow leaves of red, green and blue.
SHADOW = (0.70, 0.62, 0.70)


class Rows:
    """A frozen dataclass of tensors that share the first dimension; indexing selects rows of all of them."""

    def __getitem__(self, index: Tensor | slice) -> Self:
        one: Any = self
        return replace(one, **{field.name: getattr(one, field.name)[index] for field in fields(one)})


def col(values: Tensor) -> Tensor:
    """(n,) to (n, 1, 1), to meet (n, h, w) grids."""
    return values.view(-1, 1, 1)


class Canvas:
    """B pictures being painted: ``image`` (B, 3, S, S) float32 in [0, 1]."""

    def __init__(self, batch: int, size: int, device: torch.device | str = "cpu") -> None:
        self.image = torch.zeros(batch, 3, size, size, device=device)
        self.size, self.pixel = size, 2.0 / size

    def whole(self, rows: Tensor) -> Window:
        """The full pictures ``rows`` (n,), coordinates x and y in canvas units."""
        centres = ((torch.arange(self.size, device=self.image.device) + 0.5) * self.pixel - 1.0).float()
        return Window(self, rows, None, None, self.image[rows], centres.view(1, 1, -1), centres.view(1, -1, 1))

    def window(self, rows: Tensor, x: Tensor, y: Tensor, half: tuple[Number, Number]) -> Window:
        """Rectangles of one size around x, y (n, 1, 1) with the half-sizes given, in canvas units."""
        across, down = (self._pixels(one) for one in half)
        xs = self._offsets(x, half[0], across)
        ys = self._offsets(y, half[1], down)
        part = self.image[rows[:, None, None], :, ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2).contiguous()
        centres = [((at + 0.5) * self.pixel - 1.0).float() for at in (xs, ys)]
        return Window(self, rows, ys, xs, part, centres[0][:, None, :], centres[1][:, :, None])

    def _pixels(self, half: Number) -> int:
        widest = float(half.max()) if isinstance(half, Tensor) else half
        return max(1, min(self.size, int(2.0 * widest / self.pixel) + 4))

    def _offsets(self, centre: Tensor, half: Number, count: int) -> Tensor:
        first = ((centre - half + 1.0) / self.pixel).floor().long().view(-1, 1) - 1
        steps = torch.arange(count, device=centre.device)[None]
        return first.clamp(0, self.size - count) + steps


@dataclass
class Window:
    """A part of some pictures, painted on and then put back with ``close``.

    rows: (n,); ys, xs: pixel positions (n, h) and (n, w), None for whole pictures; image: (n, 3, h, w);
    x, y: coordinates in canvas units; u, v: coordinates in the frame, whose unit is ``unit`` canvas units.
    """

    canvas: Canvas
    rows: Tensor
    ys: Tensor | None
    xs: Tensor | None
    image: Tensor
    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        self.u, self.v = self.x, self.y
        self.unit: Number = 1.0

    def frame(self, x: Number, y: Number, unit: Number, roll: Tensor | None = None) -> Self:
        """Coordinates u, v with the origin at (x, y), in units of ``unit`` canvas units, turned by roll (radians)."""
        du, dv = (self.x - x) / unit, (self.y - y) / unit
        if roll is None:
            self.u, self.v = du, dv
        else:
            cos, sin = torch.cos(roll), torch.sin(roll)
            self.u, self.v = du * cos + dv * sin, dv * cos - du * sin
        self.unit = unit
        return self

    def cover(self, distance: Tensor, grow: float = 0.0, soft: Number | None = None) -> Tensor:
        """How much of each pixel a shape covers; grow in canvas units; soft: width of the edge in frame units."""
        if soft is not None:
            edge = (0.5 - distance / soft).clamp_(0.0, 1.0)
            return edge * edge * (3.0 - 2.0 * edge)
        scale = self.unit / self.canvas.pixel
        return (0.5 + grow / self.canvas.pixel - distance * scale).clamp_(0.0, 1.0)

    def colour(self, value: Colour) -> Tensor:
        """A colour that broadcasts with (n, 3, h, w)."""
        if isinstance(value, Tensor):
            return value
        return torch.tensor(value, device=self.image.device).view(1, 3, 1, 1)

    def _blend(self, cover: Tensor, colour: Tensor) -> None:
        self.image.add_((colour - self.image).mul_(cover.unsqueeze(1)))

    def paint(self, distance: Tensor, colour: Colour, opacity: Number = 1.0, soft: Number | None = None) -> None:
        """Lay a colour over the inside of a shape, without a contour."""
        cover = self.cover(distance, soft=soft)
        self._blend(cover * opacity, self.colour(colour))

    def draw(self, distance: Tensor, colour: Colour, shade: Number = 1.0, opacity: Number = 1.0) -> None:
        """Lay a shape with a contour in a darker tone of its colour; shade multiplies the colour."""
        inner = self.cover(distance).mul_(1.0 - CONTOUR).add_(CONTOUR)
        tone = self.colour(colour) * (inner * shade).unsqueeze(1)
        self._blend(self.cover(distance, LINE) * opacity, tone)

    def stroke(self, distance: Tensor, colour: Colour, opacity: Number = 1.0, width: float = LINE) -> None:
        """A line of ``width`` canvas units along the zero of a distance field."""
        cover = self.cover(distance.abs(), 0.5 * width)
        self._blend(cover * opacity, self.colour(colour))

    def darken(self, distance: Tensor, amount: Number, soft: Number | None = None) -> None:
        """A shadow: multiplies what is there; amount in [0, 1]."""
        cover = (self.cover(distance, soft=soft) * amount).unsqueeze(1)
        self.image.mul_(1.0 - cover * (1.0 - self.colour(SHADOW)))

    def lighten(self, distance: Tensor, amount: Number, soft: Number | None = None) -> None:
        """A highlight: goes towards white; amount in [0, 1]."""
        self._blend(self.cover(distance, soft=soft) * amount, self.colour((1.0, 1.0, 0.97)))

    def close(self) -> None:
        """Put the window back into the pictures."""
        if self.ys is None or self.xs is None:
            self.canvas.image[self.rows] = self.image
            return
        part = self.image.permute(0, 2, 3, 1)
        self.canvas.image[self.rows[:, None, None], :, self.ys[:, :, None], self.xs[:, None, :]] = part


def circle(u: Tensor, v: Tensor, radius: Number) -> Tensor:
    """Distance to a circle at the origin."""
    return (u * u + v * v + 1e-9).sqrt() - radius


def ellipse(u: Tensor, v: Tensor, rx: Number, ry: Number) -> Tensor:
    """Distance to an ellipse at the origin with half-axes rx, ry; first order, exact on the edge."""
    a, b = u / rx, v / ry
    size = (a * a + b * b + 1e-9).sqrt()
    slope = ((a / rx) ** 2 + (b / ry) ** 2 + 1e-9).sqrt()
    return size * (size - 1.0) / slope


def box(u: Tensor, v: Tensor, rx: Number, ry: Number, radius: Number = 0.0) -> Tensor:
    """Distance to a box at the origin with half-sizes rx, ry and round corners."""
    a, b = u.abs() - rx + radius, v.abs() - ry + radius
    if isinstance(radius, float) and radius == 0.0:
        return torch.maximum(a, b)
    outside = (a.clamp_min(0.0) ** 2 + b.clamp_min(0.0) ** 2 + 1e-9).sqrt()
    return outside + torch.maximum(a, b).clamp_max(0.0) - radius


Point = tuple[Number, Number]


def limb(u: Tensor, v: Tensor, start: Point, end: Point, radii: tuple[Number, Number]) -> Tensor:
    """Distance to a capsule from start to end whose radius changes from the first to the second."""
    du, dv = end[0] - start[0], end[1] - start[1]
    pu, pv = u - start[0], v - start[1]
    along = ((pu * du + pv * dv) / (du * du + dv * dv + 1e-9)).clamp(0.0, 1.0)
    away = ((pu - along * du) ** 2 + (pv - along * dv) ** 2 + 1e-9).sqrt()
    return away - (radii[0] + along * (radii[1] - radii[0]))


def arc(u: Tensor, v: Tensor, half: Number, bend: Number, radius: Number) -> Tensor:
    """Distance to a brush stroke of half-length ``half`` along v = bend (u / half)^2, thin at its ends."""
    t = (u / half).clamp(-1.0, 1.0)
    down = v - bend * t * t
    slope = (1.0 + (2.0 * bend * t / half) ** 2).sqrt()
    beyond = (u.abs() - half).clamp_min(0.0)
    return ((down / slope) ** 2 + beyond**2 + 1e-9).sqrt() - radius * (1.0 - 0.55 * t * t)


def polygon(u: Tensor, v: Tensor, points: Sequence[Point]) -> Tensor:
    """Distance to a convex polygon whose corners are given clockwise as seen (y down); sharp outside its corners."""
    distance: Tensor | None = None
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        ex, ey = bx - ax, by - ay
        length = (ex * ex + ey * ey) ** 0.5
        side = ((u - ax) * ey - (v - ay) * ex) / length
        distance = side if distance is None else torch.maximum(distance, side)
    assert distance is not None
    return distance


def both(*distances: Tensor) -> Tensor:
    """Intersection."""
    out = distances[0]
    for one in distances[1:]:
        out = torch.maximum(out, one)
    return out


def either(*distances: Tensor) -> Tensor:
    """Union."""
    out = distances[0]
    for one in distances[1:]:
        out = torch.minimum(out, one)
    return out


def melt(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Union whose inner corner is rounded with ``radius``."""
    mix = (0.5 + 0.5 * (b - a) / radius).clamp(0.0, 1.0)
    return b + mix * (a - b) - radius * mix * (1.0 - mix)


def without(a: Tensor, b: Tensor) -> Tensor:
    """``a`` minus ``b``."""
    return torch.maximum(a, -b)


def bumpy(u: Tensor, v: Tensor, rx: Number, ry: Number, bumps: tuple[int, float]) -> Tensor:
    """An ellipse with a cloud-like edge: number of bumps per half turn, and their height as a share of the radius."""
    turn = torch.atan2(v / ry, u / rx)
    grow = 1.0 + bumps[1] * ((turn * bumps[0]).cos().abs() - 0.5)
    return ellipse(u / grow, v / grow, rx, ry)


def palette(values: Sequence[Sequence[float]]) -> Tensor:
    """(N, 3) colours."""
    return torch.tensor([list(one) for one in values])


def pick(colours: Tensor, index: Tensor) -> Tensor:
    """Rows of a palette (N, 3) by index (n,) as (n, 3, 1, 1)."""
    return colours.to(index.device)[index.clamp(0, len(colours) - 1)][:, :, None, None]


def where(flag: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Colours or numbers by a flag (n,), shaped to fit."""
    return torch.where(flag.view(-1, *[1] * (max(yes.dim(), no.dim()) - 1)), yes, no)
