"""Scenes of mini's world: who is there, where, doing what, and the pixels.

A ``Scenes`` batch is data only; ``random_scenes`` draws one from a generator, ``render`` paints it. The same batch, the
same size and the same device give the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .drawing import Canvas, both, box, col, either, ellipse, segment
from .figure import EXPRESSIONS, WORN, Figure, Pose

PLACES: tuple[str, ...] = ("plain", "beach", "snow", "space", "forest", "city")
ACTS: tuple[str, ...] = ("nothing", "chess", "tea", "guitar", "handshake")
STYLES: tuple[str, ...] = ("colour", "black and white")


@dataclass(frozen=True)
class Scenes:
    """B scenes.

    factors: (B, 2, F) identity uniforms, the second row unused when alone. two: (B,) bool. place, act, expression,
    worn, style: (B,) int64. nuisance: (B, 40) uniforms that decide pose, light, clothes and scenery details.
    """

    factors: Tensor
    two: Tensor
    place: Tensor
    act: Tensor
    expression: Tensor
    worn: Tensor
    style: Tensor
    nuisance: Tensor

    def __len__(self) -> int:
        return self.two.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


NUISANCES = 40


def choose(generator: torch.Generator, shares: list[float], count: int) -> Tensor:
    """``count`` class indices with the given shares."""
    return torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator)


def random_scenes(factors: Tensor, two: Tensor, generator: torch.Generator) -> Scenes:
    """Scenes around the given people, as often as in training (expressions often: small mouths need it)."""
    count = two.shape[0]
    act = torch.where(
        two,
        torch.tensor([0, 1, 2, 4])[choose(generator, [0.34, 0.24, 0.18, 0.24], count)],
        choose(generator, [0.55, 0.15, 0.15, 0.15], count),
    )
    return Scenes(
        factors=factors,
        two=two,
        place=choose(generator, [0.42, 0.13, 0.12, 0.11, 0.11, 0.11], count),
        act=act,
        expression=choose(generator, [0.40, 0.20, 0.20, 0.20], count),
        worn=choose(generator, [0.52, 0.12, 0.12, 0.12, 0.12], count),
        style=choose(generator, [0.95, 0.05], count),
        nuisance=torch.rand(count, NUISANCES, generator=generator),
    )


@dataclass(frozen=True)
class Rendered:
    """Painted scenes and where the faces are.

    image: (B, 3, S, S) float32 in [0, 1]; landmarks: (B, 2, 5, 2) and boxes: (B, 2, 4) in pixels; present: (B, 2) bool.
    """

    image: Tensor
    landmarks: Tensor
    boxes: Tensor
    present: Tensor


def pose_of(scenes: Scenes, who: int) -> Pose:
    """Pose, light and clothes of person ``who`` (0 = named first, on the left when there are two)."""
    n = scenes.nuisance[:, 12 * who : 12 * who + 12]
    centred = n - 0.5
    side = -0.48 if who == 0 else 0.48
    alone = ~scenes.two
    return Pose(
        x=torch.where(alone, 0.22 * centred[:, 0], side + 0.08 * centred[:, 0]),
        y=torch.where(alone, -0.05 + 0.12 * centred[:, 1], -0.02 + 0.14 * centred[:, 1]),
        size=torch.where(alone, 0.54 + 0.08 * centred[:, 2], 0.37 + 0.04 * centred[:, 2]),
        roll=0.22 * centred[:, 3],
        yaw=1.6 * centred[:, 4],
        light=2.0 * centred[:, 5],
        gaze=2.0 * centred[:, 6],
        shirt=0.15 + 0.8 * n[:, 7:10],
        expression=scenes.expression,
        worn=scenes.worn,
    )


def render(scenes: Scenes, size: int = 64, crop: tuple[float, float, float] | None = None) -> Rendered:
    """Paint a batch at ``size`` x ``size`` pixels.

    ``crop`` (x, y, half) frames part of the canvas, for larger portraits.
    """
    device = scenes.nuisance.device
    canvas = Canvas.blank(len(scenes), size, device)
    if crop is not None:
        canvas.x, canvas.y = canvas.x * crop[2] + crop[0], canvas.y * crop[2] + crop[1]
    _background(canvas, scenes)
    figures = [
        Figure(canvas, scenes.factors[:, who], pose_of(scenes, who), scenes.two | torch.tensor(who == 0, device=device))
        for who in (1, 0)
    ]
    for figure in figures:
        figure.paint()
    figures.reverse()
    _props(canvas, scenes, figures)
    grey = canvas.image.mean(1, keepdim=True).expand_as(canvas.image)
    image = torch.where((scenes.style == 1).view(-1, 1, 1, 1), grey, canvas.image)
    brightness = (0.92 + 0.16 * scenes.nuisance[:, 36]).view(-1, 1, 1, 1)
    to_pixels = size / 2
    return Rendered(
        image=(image * brightness).clamp(0.0, 1.0),
        landmarks=(torch.stack([f.landmarks() for f in figures], 1) + 1.0) * to_pixels,
        boxes=(torch.stack([f.face_box() for f in figures], 1) + 1.0) * to_pixels,
        present=torch.stack([torch.ones_like(scenes.two), scenes.two], 1),
    )


def _rgb(scenes: Scenes, r: float, g: float, b: float) -> Tensor:
    return torch.tensor([[r, g, b]], device=scenes.nuisance.device).expand(len(scenes), 3)


def _background(canvas: Canvas, scenes: Scenes) -> None:
    n, y = scenes.nuisance, canvas.y
    everywhere = torch.full_like(y, -1.0).expand(len(scenes), -1, -1)
    wall = 0.25 + 0.65 * n[:, 24:27]
    canvas.paint(everywhere, wall)
    canvas.paint(-(y - 0.55).expand_as(everywhere), wall * 0.78)
    _outdoors(canvas, scenes, everywhere)
    _forest_and_city(canvas, scenes, everywhere)
    _space(canvas, scenes, everywhere)


def _outdoors(canvas: Canvas, scenes: Scenes, everywhere: Tensor) -> None:
    n, x, y = scenes.nuisance, canvas.x, canvas.y
    beach, snow = (scenes.place == 1).float(), (scenes.place == 2).float()
    canvas.paint(everywhere, _rgb(scenes, 0.55, 0.83, 0.98), beach)
    sun = ellipse(x - col(1.5 * (n[:, 27] - 0.5)), y + 0.78, 0.14, 0.14)
    canvas.paint(sun, _rgb(scenes, 1.0, 0.87, 0.25), beach)
    canvas.paint(-(y + 0.08).expand_as(everywhere), _rgb(scenes, 0.13, 0.48, 0.76), beach)
    canvas.paint(-(y - 0.32).expand_as(everywhere), _rgb(scenes, 0.94, 0.84, 0.60), beach)
    canvas.paint(everywhere, _rgb(scenes, 0.66, 0.76, 0.87), snow)
    for at in (28, 29):
        peak = 0.55 * (x - col(2.0 * (n[:, at] - 0.5))).abs() * 1.6 - (y + 0.55)
        canvas.paint(peak, _rgb(scenes, 0.50, 0.57, 0.68), snow)
    canvas.paint(-(y - 0.22).expand_as(everywhere), _rgb(scenes, 0.97, 0.98, 1.0), snow)
    for k in range(10):
        flake = ellipse(
            x - col(((n[:, 30] + 0.37 * k) % 1.0) * 2 - 1), y - col(((n[:, 31] + 0.61 * k) % 1.0) * 2 - 1), 0.035, 0.035
        )
        canvas.paint(flake, _rgb(scenes, 1.0, 1.0, 1.0), snow)


def _forest_and_city(canvas: Canvas, scenes: Scenes, everywhere: Tensor) -> None:
    n, x, y = scenes.nuisance, canvas.x, canvas.y
    forest, city = (scenes.place == 4).float(), (scenes.place == 5).float()
    canvas.paint(everywhere, _rgb(scenes, 0.74, 0.90, 0.80), forest)
    canvas.paint(everywhere, _rgb(scenes, 0.98, 0.66, 0.42), city)
    for k in range(4):
        centre = (k - 1.5) * 0.62 + 0.25 * (n[:, 27 + k] - 0.5)
        canvas.paint(box(x - col(centre), y - 0.2, 0.05, 0.5), _rgb(scenes, 0.42, 0.27, 0.15), forest)
        tree = both(1.7 * (x - col(centre)).abs() - (y + 1.05), y - 0.05)
        canvas.paint(tree, _rgb(scenes, 0.10, 0.42 + 0.05 * (k % 2), 0.20), forest)
        height = 0.55 + 0.45 * n[:, 31 + k]
        tower = box(x - col(centre), y - (0.9 - col(height)), 0.24, height)
        canvas.paint(tower, _rgb(scenes, 0.33, 0.30, 0.46), city)
        windows = both(
            tower + 0.05,
            torch.maximum(((x - col(centre)) * 7 % 1.0 - 0.5).abs(), (y * 6 % 1.0 - 0.5).abs()) / 7 - 0.035,
        )
        canvas.paint(windows, _rgb(scenes, 1.0, 0.88, 0.45), city)
    canvas.paint(-(y - 0.5).expand_as(everywhere), _rgb(scenes, 0.28, 0.55, 0.22), forest)
    canvas.paint(-(y - 0.6).expand_as(everywhere), _rgb(scenes, 0.36, 0.36, 0.40), city)


def _space(canvas: Canvas, scenes: Scenes, everywhere: Tensor) -> None:
    n, x, y = scenes.nuisance, canvas.x, canvas.y
    space = (scenes.place == 3).float()
    canvas.paint(everywhere, _rgb(scenes, 0.05, 0.04, 0.15), space)
    for k in range(14):
        star = ellipse(
            x - col(((n[:, 30] + 0.381 * k) % 1.0) * 2 - 1), y - col(((n[:, 31] + 0.727 * k) % 1.0) * 2 - 1), 0.03, 0.03
        )
        canvas.paint(star, _rgb(scenes, 0.95, 0.95, 1.0), space)
    planet_x = col(torch.where(n[:, 27] > 0.5, 0.72, -0.72))
    planet = ellipse(x - planet_x, y + 0.70, 0.19, 0.19)
    canvas.paint(planet, 0.45 + 0.5 * n[:, 32:35], space)
    canvas.paint(segment(x - planet_x, y + 0.70, 0.28, 0.03), _rgb(scenes, 0.95, 0.88, 0.70), space)


def _props(canvas: Canvas, scenes: Scenes, figures: list[Figure]) -> None:
    _chess(canvas, scenes)
    _tea(canvas, scenes)
    _guitar(scenes, figures[0])
    _handshake(canvas, scenes, figures)


def _chess(canvas: Canvas, scenes: Scenes) -> None:
    x, y, chess = canvas.x, canvas.y, (scenes.act == 1).float()
    board = both(-(y - 0.70), x.abs() - (0.50 + 0.9 * (y - 0.45)))
    board = board.expand(len(scenes), -1, -1)
    dark = torch.tensor([0.36, 0.20, 0.10], device=x.device).view(1, 3, 1, 1)
    light = torch.tensor([0.95, 0.84, 0.62], device=x.device).view(1, 3, 1, 1)
    squeeze = 0.70 + 0.9 * (y - 0.70)
    squares = ((x / squeeze * 4).floor() + (y * 10).floor()) % 2
    canvas.paint(board, torch.where(squares.unsqueeze(1) > 0, dark, light), chess)
    for k, colour in ((0, 0.08), (1, 0.98), (2, 0.08), (3, 0.98)):
        px = (k - 1.5) * 0.30 + 0.12 * (scenes.nuisance[:, 32 + k] - 0.5)
        piece = either(ellipse(x - col(px), y - 0.62, 0.065, 0.065), box(x - col(px), y - 0.72, 0.045, 0.09))
        piece = either(piece, box(x - col(px), y - 0.81, 0.085, 0.03))
        canvas.paint(piece, _rgb(scenes, colour, colour, colour), chess)


def _tea(canvas: Canvas, scenes: Scenes) -> None:
    x, y = canvas.x, canvas.y
    tea, pair = (scenes.act == 2).float(), scenes.two.float()
    table = -(y - 0.82).expand(len(scenes), -1, -1)
    canvas.paint(table, _rgb(scenes, 0.55, 0.33, 0.18), tea)
    for sign, shown in ((0.0, tea * (1 - pair)), (-1.0, tea * pair), (1.0, tea * pair)):
        cx = sign * 0.40
        handle = ellipse(x - cx - 0.20, y - 0.70, 0.10, 0.10).abs() - 0.03
        canvas.paint(handle.expand_as(table), _rgb(scenes, 0.80, 0.90, 0.98), shown)
        cup = both(box(x - cx, y - 0.70, 0.19, 0.16), (x - cx).abs() - 0.19 + 0.25 * (y - 0.62).clamp_min(0))
        canvas.paint(cup.expand_as(table), _rgb(scenes, 0.93, 0.97, 1.0), shown)
        canvas.paint(ellipse(x - cx, y - 0.555, 0.17, 0.04).expand_as(table), _rgb(scenes, 0.50, 0.24, 0.08), shown)


def _guitar(scenes: Scenes, figure: Figure) -> None:
    guitar = scenes.act == 3
    bu, bv = figure.body_u, figure.body_v
    cos, sin = 0.913, -0.408
    gu, gv = (bu + 0.15) * cos + (bv - 1.72) * sin, (bv - 1.72) * cos - (bu + 0.15) * sin
    neck = box(gu - 1.05, gv, 1.0, 0.075)
    body = either(ellipse(gu + 0.35, gv, 0.48, 0.42), ellipse(gu - 0.15, gv, 0.38, 0.32))
    figure.lay(neck, _rgb(scenes, 0.25, 0.13, 0.07), guitar)
    figure.lay(body, _rgb(scenes, 0.84, 0.47, 0.14), guitar)
    figure.lay(ellipse(gu - 0.05, gv, 0.15, 0.15), _rgb(scenes, 0.16, 0.08, 0.05), guitar)


def _handshake(canvas: Canvas, scenes: Scenes, figures: list[Figure]) -> None:
    shake = (scenes.act == 4).float()
    x, y = canvas.x, canvas.y
    for figure, side in zip(figures, (-1.0, 1.0), strict=True):
        suit = (scenes.worn == 2)[:, None]
        sleeve = torch.where(suit, _rgb(scenes, 0.17, 0.19, 0.34), figure.moment.shirt * 0.85)
        arm = segment(x - side * 0.32, (y - 0.76) + side * 0.12 * (x - side * 0.32), 0.22, 0.085)
        canvas.paint(arm.expand(len(scenes), -1, -1), sleeve, shake)
        hand = ellipse(x - side * 0.055, y - 0.74, 0.125, 0.095)
        outline = hand - 0.02
        canvas.paint(outline.expand(len(scenes), -1, -1), figure.skin * 0.55, shake)
        canvas.paint(hand.expand(len(scenes), -1, -1), figure.skin, shake)


__all__ = [
    "ACTS",
    "EXPRESSIONS",
    "NUISANCES",
    "PLACES",
    "STYLES",
    "WORN",
    "Rendered",
    "Scenes",
    "pose_of",
    "random_scenes",
    "render",
]
