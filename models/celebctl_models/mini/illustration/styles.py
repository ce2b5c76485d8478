"""Styles: what is done to a finished picture to make it a pencil drawing, a watercolour, an oil painting and so on."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, pad

STYLES: tuple[str, ...] = ("colour", "pencil", "watercolour", "oil", "pixels", "night", "black and white")
PAPER = (0.97, 0.95, 0.90)
#: Side of the mosaic of the style "pixels".
MOSAIC = 32


def apply_styles(image: Tensor, style: Tensor, chance: Tensor) -> Tensor:
    """Pictures in their styles.

    Args:
        image: (B, 3, S, S) in [0, 1].
        style: (B,) int64 indices into STYLES.
        chance: (B, 3) uniforms: where grain and lights lie.
    """
    out = image.clone()
    for kind, name in enumerate(STYLES):
        rows = (style == kind).nonzero()[:, 0]
        if kind and len(rows):
            out[rows] = _STYLES[name](image[rows], chance[rows])
    return out.clamp(0.0, 1.0)


@cache
def _noise(cells: int, size: int) -> Tensor:
    """Smooth noise about 0 with ``cells`` cells across twice the picture, (1, 2, 2 size, 2 size)."""
    values = torch.randn(1, 2, cells, cells, generator=torch.Generator().manual_seed(cells))
    return interpolate(values, size=(2 * size, 2 * size), mode="bicubic", align_corners=False)


def _grain(image: Tensor, chance: Tensor, cells: int) -> Tensor:
    """Noise (n, 2, S, S), another part of the field for every picture."""
    size = image.shape[-1]
    field = _noise(cells, size).to(image.device)[0]
    first = (chance[:, :2] * size).long()
    steps = torch.arange(size, device=image.device)
    ys, xs = first[:, :1] + steps, first[:, 1:] + steps
    return field[:, ys[:, :, None], xs[:, None, :]].transpose(0, 1)


def _luma(image: Tensor) -> Tensor:
    weights = torch.tensor([0.30, 0.59, 0.11], device=image.device).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)


def _colour(image: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rgb, device=image.device).view(1, 3, 1, 1)


def _blur(image: Tensor, radius: int) -> Tensor:
    return avg_pool2d(pad(image, [radius] * 4, mode="replicate"), 2 * radius + 1, stride=1)


def _grid(image: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates in pixels of a picture of 128, (1, S) and (S, 1)."""
    size = image.shape[-1]
    steps = (torch.arange(size, device=image.device) + 0.5) * (128.0 / size)
    return steps[None, :], steps[:, None]


def _scale(image: Tensor) -> int:
    return max(1, round(image.shape[-1] / 128))


def _sample(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Colours at pixel coordinates (n, S, S) of a picture of 128."""
    return grid_sample(
        image,
        torch.stack([x / 64.0 - 1.0, y / 64.0 - 1.0], -1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )


def _pencil(image: Tensor, chance: Tensor) -> Tensor:
    step = _scale(image)
    grey = _luma(image)
    soft = _blur(grey, step)
    edge = ((soft - grey - 0.015) * 6.0).clamp(0.0, 1.0)
    x, y = _grid(image)
    wobble = _grain(image, chance, 24)[:, :1] * 0.8
    one = (0.5 + 0.5 * torch.sin((x + y) * 1.45 + wobble)).clamp(0.0, 1.0)
    two = (0.5 + 0.5 * torch.sin((x - y) * 1.45 + wobble)).clamp(0.0, 1.0)
    dark = 1.0 - grey
    hatch = (dark - 0.26).clamp(0.0, 0.5) * one * 0.75 + (dark - 0.60).clamp(0.0, 0.4) * two * 1.1 + 0.30 * dark * dark
    tooth = 1.0 + 0.25 * _grain(image, chance, 128)[:, 1:]
    ink = ((edge + hatch) * tooth).clamp(0.0, 0.92)
    tinted = torch.lerp(_colour(image, PAPER), image, 0.14)
    return tinted + (_colour(image, (0.20, 0.20, 0.24)) - tinted) * ink


def _watercolour(image: Tensor, chance: Tensor) -> Tensor:
    step = _scale(image)
    bleed = _grain(image, chance, 40)
    x, y = _grid(image)
    shifted = _sample(image, x + 0.8 * bleed[:, 0], y + 0.8 * bleed[:, 1])
    wash = torch.lerp(shifted, _blur(shifted, 2 * step), 0.45)
    rim = (_luma(_blur(shifted, 2 * step)) - _luma(shifted)).clamp(-0.06, 0.22)
    pools = 1.0 + 0.07 * _grain(image, chance, 14)[:, :1] + 0.05 * _grain(image, chance, 128)[:, 1:]
    paint = (1.0 - (1.0 - wash).clamp_min(0.0) ** 0.92 * 0.86) * (1.0 - 0.55 * rim)
    paint = 1.0 - (1.0 - paint) * pools
    border = (
        torch.minimum(torch.minimum(x, 128.0 - x), torch.minimum(y, 128.0 - y)) + 3.0 * _grain(image, chance, 24)[:, 0]
    )
    inside = ((border - 3.5) / 2.5).clamp(0.0, 1.0).unsqueeze(1)
    return torch.lerp(_colour(image, PAPER).expand_as(paint), paint, inside)


def _oil(image: Tensor, chance: Tensor) -> Tensor:
    x, y = _grid(image)
    out = _blur(image, _scale(image))
    for angle, long, wide, layer in ((0.9, 6.0, 3.0, 0), (-0.5, 4.5, 2.2, 1)):
        cos, sin = math.cos(angle), math.sin(angle)
        bend = _grain(image, chance, 12)[:, layer] * 2.2
        a, b = x * cos + y * sin + 0.0 * bend, y * cos - x * sin + bend
        row = (b / wide).floor()
        a = a + (row % 3.0) * long / 3.0
        mid_a, mid_b = ((a / long).floor() + 0.5) * long - (row % 3.0) * long / 3.0, (row + 0.5) * wide - bend
        stroke = _sample(image, mid_a * cos - mid_b * sin, mid_a * sin + mid_b * cos)
        ridge = (
            1.0 + 0.09 * torch.sin((b / wide - row) * 6.2832) + 0.05 * torch.sin((a / long).floor() * 2.4 + row * 1.7)
        )
        weight = (0.60 if layer == 0 else 0.38) * ((a / long - (a / long).floor() - 0.04) * 12.0).clamp(
            0.35, 1.0
        ).unsqueeze(1)
        out = torch.lerp(out, stroke * ridge.unsqueeze(1), weight)
    vivid = torch.lerp(_luma(out), out, 1.22)
    return torch.lerp(vivid, image, 0.32)


def _pixels(image: Tensor, chance: Tensor) -> Tensor:
    cells = avg_pool2d(image, image.shape[-1] // MOSAIC)
    vivid = torch.lerp(_luma(cells), cells, 1.12).clamp(0.0, 1.0)
    levels = (vivid * 10.0).round() / 10.0
    return interpolate(levels, size=image.shape[-2:], mode="nearest")


def _night(image: Tensor, chance: Tensor) -> Tensor:
    x, y = _grid(image)
    blue = image * _colour(image, (0.36, 0.43, 0.78)) + _colour(image, (0.0, 0.01, 0.06))
    side = torch.where(chance[:, 0] > 0.5, 118.0, 10.0).view(-1, 1, 1)
    away = ((x - side) ** 2 + (y - 26.0) ** 2).sqrt()
    lamp = (1.0 - away / 120.0).clamp(0.0, 1.0).unsqueeze(1) ** 1.6
    out = blue + image * _colour(image, (0.62, 0.46, 0.20)) * lamp
    bright = (image[:, :1] * 0.6 + image[:, 1:2] * 0.4 - image[:, 2:] * 0.45 - 0.50).clamp(0.0, 0.4) * 0.9
    out = out + bright * _colour(image, (1.0, 0.72, 0.30))
    glow = (1.0 - away / 26.0).clamp(0.0, 1.0).unsqueeze(1) ** 2
    core = (5.5 - away).clamp(0.0, 1.0).unsqueeze(1)
    out = out + glow * _colour(image, (0.75, 0.58, 0.28))
    out = torch.lerp(out, _colour(image, (1.0, 0.95, 0.76)).expand_as(out), core)
    for k in range(6):
        at_x = ((chance[:, 1] + 0.31 * k) % 1.0 * 128.0).view(-1, 1, 1)
        at_y = ((chance[:, 2] + 0.53 * k) % 1.0 * 34.0).view(-1, 1, 1)
        star = (1.1 - ((x - at_x) ** 2 + (y - at_y) ** 2).sqrt()).clamp(0.0, 1.0).unsqueeze(1)
        dim = (1.0 - _luma(image)).clamp_min(0.25)
        out = out + star * dim * 0.9
    return out


def _grey(image: Tensor, chance: Tensor) -> Tensor:
    grey = _luma(image)
    contrast = (grey - 0.5) * 1.12 + 0.5
    return contrast.expand_as(image)


_STYLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pencil": _pencil, "watercolour": _watercolour, "oil": _oil, "pixels": _pixels, "night": _night,
    "black and white": _grey,
}  # fmt: skip
