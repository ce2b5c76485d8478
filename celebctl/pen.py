"""Lines, dots and words for the few charts that celebctl draws itself, with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
Colour = tuple[int, int, int]

PAPER, INK, FAINT, GRID = (252, 251, 248), (52, 50, 47), (128, 124, 117), (228, 225, 218)
COLOURS: tuple[Colour, Colour] = ((31, 98, 158), (208, 100, 26))  # blue and orange, told apart by everybody
_SHARP = 3  # drawn so many times larger and then reduced, for smooth lines


class Pen:
    """Draws in pixels of the finished picture on a larger canvas."""

    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._canvas = Image.new("RGB", (width * _SHARP, height * _SHARP), PAPER)
        self._draw = ImageDraw.Draw(self._canvas)

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        scaled = [(x * _SHARP, y * _SHARP) for x, y in points]
        self._draw.line(scaled, fill=colour, width=max(1, round(width * _SHARP)), joint="curve")

    def dot(self, at: Point, colour: Colour, radius: float) -> None:
        for size, fill in ((radius + 1.5, PAPER), (radius, colour)):
            self._draw.circle((at[0] * _SHARP, at[1] * _SHARP), size * _SHARP, fill=fill)

    def text(self, at: Point, said: str, size: int, colour: Colour = INK, anchor: str = "la") -> None:
        font = ImageFont.load_default(size * _SHARP)
        self._draw.text((at[0] * _SHARP, at[1] * _SHARP), said, fill=colour, font=font, anchor=anchor)

    def width(self, said: str, size: int) -> float:
        return self._draw.textlength(said, ImageFont.load_default(size * _SHARP)) / _SHARP

    def finish(self) -> Image.Image:
        return self._canvas.resize(self._size, Image.Resampling.LANCZOS)
