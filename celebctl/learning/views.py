"""Training views: augmented crops of the one photo, with a loss weight per pixel (paper, section 4, "implementation").

With ``canvas="photo"`` views are resampled once from the photo, at the scale at which the model draws faces, with a
soft mask over face and hair. With ``canvas="black"`` they repeat the release: an aligned face warped at half size and
enlarged, flipped, jittered, shrunk without antialiasing and pasted on black, with weight 1 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from celebctl_models.faces.framing import Framing

from .config import LearnConfig, framing_from_config

#: Five landmarks of the release's 512 px alignment template (METHOD: `ffhq`), px.
FFHQ = np.array([[192.98, 239.95], [318.90, 240.19], [256.63, 314.02], [201.26, 371.41], [313.09, 371.15]])


@dataclass(frozen=True)
class Views:
    """pixels: (V, 3, S, S) float32 in [-1, 1]; weight: (V, 1, S, S) float32, 1 on the face, less elsewhere."""

    pixels: Tensor
    weight: Tensor


def make_views(
    photo: Image.Image, face: Any, size: int, count: int, config: LearnConfig, generator: torch.Generator
) -> Views:
    """``count`` views of ``size`` px of the face in an RGB photo. Deterministic in the generator.

    ``config`` must be complete: see `with_model_framing`.
    """
    draw = _black_canvas if config.canvas == "black" else _from_photo
    framing = framing_from_config(config)
    made = [draw(photo, face, size, config, framing, generator) for _ in range(count)]
    return Views(torch.stack([m[0] for m in made]), torch.stack([m[1] for m in made]))


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.as_tensor(np.asarray(image, np.float32).copy()).permute(2, 0, 1) / 127.5 - 1.0


def _from_photo(
    photo: Image.Image, face: Any, size: int, config: LearnConfig, framing: Framing, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    x0, y0, x1, y1 = (float(edge) for edge in face.box)
    width, height = x1 - x0, y1 - y0
    side = height / _uniform(generator, framing.face_height_min, framing.face_height_max)
    # where the model draws faces: elsewhere the loss would be about the position
    across, down = (_uniform(generator, -framing.face_jitter, framing.face_jitter) * side for _ in range(2))
    cx, cy = (x0 + x1) / 2 + across, (y0 + y1) / 2 + (0.5 - framing.face_center_y) * side + down
    window = (cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2)
    pixels = _to_tensor(_cut(photo, window, size))
    scale = size / side
    centre = ((x0 + x1) / 2 - window[0]) * scale, ((y0 + y1) / 2 - 0.12 * height - window[1]) * scale
    weight = _ellipse_mask(size, centre, (0.78 * width * scale, 0.80 * height * scale))
    inside = _inside(photo.size, window, size)
    if float(torch.rand((), generator=generator)) < config.flip:
        pixels, weight, inside = pixels.flip(-1), weight.flip(-1), inside.flip(-1)
    weight = (config.background_weight + (1.0 - config.background_weight) * weight) * inside
    return _jitter(pixels, generator, 0.08), weight


def _cut(photo: Image.Image, window: tuple[float, float, float, float], size: int) -> Image.Image:
    """The window (left, top, right, bottom in photo pixels, may reach outside) resampled once to size x size."""
    left, top, right, bottom = window
    side = right - left
    border = int(np.ceil(max(0.0, -left, -top, right - photo.width, bottom - photo.height))) + 1
    # the bicubic filter reaches two output pixels beyond; cropping first avoids copying a large photo for every view
    reach = int(np.ceil(2.0 * max(1.0, side / size))) + 1
    columns = _span(left, right, reach, photo.width, border)
    rows = _span(top, bottom, reach, photo.height, border)
    part = np.asarray(photo.crop((columns.start, rows.start, columns.stop, rows.stop)))
    # edge padding: a border of another colour would be learned as part of the person
    canvas = Image.fromarray(np.pad(part, (rows.outside, columns.outside, (0, 0)), mode="edge"))
    x, y = left - columns.start + columns.outside[0], top - rows.start + rows.outside[0]
    return canvas.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))


class _Span(NamedTuple):
    """Pixels start to stop of a photo along one axis, and how many to add before and after them by padding."""

    start: int
    stop: int
    outside: tuple[int, int]


def _span(low: float, high: float, reach: int, length: int, border: int) -> _Span:
    """The pixels a filter of ``reach`` px needs for [low, high] of a photo of ``length`` px, padded by ``border``.

    At least one pixel of the photo, whose edge the padding repeats.
    """
    first = max(int(np.floor(low)) - reach, -border)
    last = min(int(np.ceil(high)) + reach, length + border)
    start = min(max(first, 0), length - 1)
    stop = max(min(last, length), start + 1)
    return _Span(start, stop, (max(0, start - first), max(0, last - stop)))


def _inside(photo_size: tuple[int, int], window: tuple[float, float, float, float], size: int) -> Tensor:
    """(1, size, size): 1 where the view shows the photo, 0 where it shows padding."""
    grid = (torch.arange(size) + 0.5) / size
    x = window[0] + grid * (window[2] - window[0])
    y = window[1] + grid * (window[3] - window[1])
    return (((y >= 0) & (y <= photo_size[1]))[:, None] & ((x >= 0) & (x <= photo_size[0]))[None]).float()[None]


def _ellipse_mask(size: int, centre: tuple[float, float], half: tuple[float, float]) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    distance = torch.sqrt(((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2)
    return ((1.15 - distance) / 0.3).clamp(0.0, 1.0)[None]


def _jitter(pixels: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Brightness, contrast and saturation, each within 1 +- strength."""
    bright, contrast, colour = (_uniform(generator, 1 - strength, 1 + strength) for _ in range(3))
    pixels = (pixels + 1.0) * bright - 1.0
    pixels = (pixels - pixels.mean()) * contrast + pixels.mean()
    grey = pixels.mean(0, keepdim=True)
    return (grey + (pixels - grey) * colour).clamp(-1.0, 1.0)


def _black_canvas(
    photo: Image.Image, face: Any, size: int, config: LearnConfig, framing: Framing, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    aligned = _to_tensor(align_ffhq(photo, face.landmarks, size // 2).resize((size, size), Image.Resampling.BILINEAR))
    if float(torch.rand((), generator=generator)) < config.flip:
        aligned = aligned.flip(-1)
    aligned = _jitter(aligned, generator, 0.2)
    height = max(2, int(size * _uniform(generator, framing.face_height_min, framing.face_height_max)))
    width = min(size, max(2, int(height * _uniform(generator, 0.9, 1.1))))
    small = F.interpolate(aligned[None], (height, width), mode="bilinear", align_corners=True)[0]
    canvas = torch.full((3, size, size), -1.0)
    top = int(_uniform(generator, 0, size - height + 0.999))
    left = int(_uniform(generator, 0, size - width + 0.999))
    canvas[:, top : top + height, left : left + width] = small
    return canvas, torch.ones(1, size, size)


def align_ffhq(photo: Image.Image, landmarks: np.ndarray, size: int) -> Image.Image:
    """Warp a photo so that its five landmarks (5, 2) meet the 512 px template scaled to ``size``; black outside."""
    target = FFHQ * (size / 512.0)
    a, b, tx, ty = similarity(target, np.asarray(landmarks, np.float64))
    # PIL maps output coordinates to input coordinates
    return photo.transform((size, size), Image.Transform.AFFINE, (a, -b, tx, b, a, ty), Image.Resampling.BILINEAR)


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, float, float, float]:
    """Least-squares similarity (a, b, tx, ty): target ~ [[a, -b], [b, a]] source + t, for (n, 2) points."""
    s, t = source - source.mean(0), target - target.mean(0)
    norm = float((s**2).sum())
    a = float((s * t).sum()) / norm
    b = float((s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum()) / norm
    mx, my = source.mean(0)
    return a, b, float(target[:, 0].mean() - a * mx + b * my), float(target[:, 1].mean() - b * mx - a * my)
