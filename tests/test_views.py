"""Training views are cut from the photo's own pixels, whatever its size and wherever the face stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from celebctl.learning import views

WIDTH, HEIGHT = 301, 203
Window = tuple[float, float, float, float]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Noise over a slope: every pixel differs from its neighbours, so a shift of one is seen."""
    slope = np.linspace(0, 120, WIDTH)[None, :, None] + np.linspace(0, 60, HEIGHT)[:, None, None]
    noise = np.random.default_rng(3).uniform(0, 75, (HEIGHT, WIDTH, 3))
    return Image.fromarray((slope + noise).astype(np.uint8))


def padded_whole(photo: Image.Image, window: Window, size: int) -> Image.Image:
    """The same cut by padding the whole photo: slow, and plainly right."""
    side = window[2] - window[0]
    border = int(np.ceil(max(0.0, -window[0], -window[1], window[2] - photo.width, window[3] - photo.height))) + 1
    canvas = Image.fromarray(np.pad(np.asarray(photo), ((border, border), (border, border), (0, 0)), mode="edge"))
    left, top = window[0] + border, window[1] + border
    return canvas.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def square(left: float, top: float, side: float) -> Window:
    return (left, top, left + side, top + side)


WINDOWS = {
    "inside": square(90.3, 60.7, 80.4),
    "left": square(-31.6, 60.2, 90.1),
    "right": square(251.2, 50.9, 90.6),
    "top": square(100.5, -40.3, 90.2),
    "bottom": square(100.1, 161.8, 90.9),
    "top left": square(-20.7, -33.1, 90.0),
    "top right": square(240.4, -12.2, 90.5),
    "bottom left": square(-50.9, 150.6, 90.3),
    "bottom right": square(270.2, 170.3, 90.8),
    "a hair outside": square(-0.3, -0.2, 120.0),
    "just inside": square(0.4, 0.3, 120.0),
    "all of it and more": square(-60.5, -80.5, 420.0),
    "beyond the corner": square(330.5, 240.5, 60.0),
    "whole pixels": square(10.0, 20.0, 64.0),
}


@pytest.mark.parametrize("size", [32, 64, 256])
@pytest.mark.parametrize("where", list(WINDOWS))
def test_a_part_of_the_photo_gives_the_pixels_of_the_whole(photo: Image.Image, where: str, size: int) -> None:
    cut = np.asarray(views._cut(photo, WINDOWS[where], size), np.int16)  # pyright: ignore[reportPrivateUsage]
    whole = np.asarray(padded_whole(photo, WINDOWS[where], size), np.int16)
    assert np.abs(cut - whole).max() <= 1


def test_no_more_of_a_large_photo_is_touched_than_the_window_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    padded: list[int] = []
    pad: Any = np.pad

    def watched(*given: Any, **more: Any) -> Any:
        made = pad(*given, **more)
        padded.extend(made.shape[:2])
        return made

    monkeypatch.setattr(np, "pad", watched)
    views._cut(Image.new("RGB", (4000, 3000)), square(1200.5, 900.5, 640.0), 512)  # pyright: ignore[reportPrivateUsage]
    assert padded and max(padded) < 660
