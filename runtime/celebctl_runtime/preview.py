"""Previews: what an image looks like while it is drawn, without running the decoder.

After every step the sampler's state contains the clean latent that the network predicts. A linear map, fitted when the
bundle was exported, turns it into one colour per latent element: an image eight times smaller, for a few microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .progress import Progress, ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from PIL.Image import Image

SHARE = 0.02  # of the drawing time that previews may take
INTERVAL = 0.1  # seconds between two previews
_FIRST_COST = 0.004  # seconds that the first preview is expected to take


@dataclass(frozen=True, eq=False)
class Preview:
    """What is being drawn.

    Attributes:
        pixels: (B, h, w, 3) uint8: the images of the batch, one pixel for each element of their latents.
        step: Steps finished, over all images of the call.
        total: Steps of all images of the call.
    """

    pixels: NDArray[np.uint8]
    step: int
    total: int

    def image(self) -> Image:
        """The images of the batch side by side, RGB."""
        from PIL import Image

        return Image.fromarray(np.concatenate(list(self.pixels), axis=1))


PreviewCallback = Callable[[Preview], None]


def latent_to_rgb(latent: NDArray[np.float32], matrix: Sequence[Sequence[float]]) -> NDArray[np.uint8]:
    """Latents (B, C, h, w) -> images (B, h, w, 3).

    Args:
        latent: Latents as the decoder takes them.
        matrix: `Manifest.latent_rgb`: for each colour C weights and a constant.

    Example:
        >>> latent_to_rgb(np.zeros((1, 1, 1, 2), np.float32), [[1, 0], [0, 1], [0, -1]]).tolist()
        [[[[128, 255, 0], [128, 255, 0]]]]
    """
    weights = np.asarray(matrix, np.float32)
    colours = np.moveaxis(latent, 1, -1) @ weights[:, :-1].T + weights[:, -1]
    return ((colours * 0.5 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)


def previews(
    show: PreviewCallback, progress: ProgressCallback = ignore_progress, interval: float = INTERVAL
) -> ProgressCallback:
    """A progress callback that also calls ``show`` with previews.

    There are no more than one per ``interval``, and only as many as take 2 % of the time since the first step, with
    what ``show`` does. Bundles that were exported without the map, and TensorRT engines, give none.

    Args:
        show: Receives the previews.
        progress: Receives the progress.
        interval: Seconds between two previews, 0 or more.

    Example:
        >>> from celebctl import Pipeline
        >>> seen = []
        >>> callback = previews(seen.append, interval=0)
        >>> pipe = Pipeline(bundle_path, device="cpu")
        >>> output = pipe("alice", seed=7, steps=4, progress=callback)
        >>> all(preview.pixels.shape[-1] == 3 for preview in seen)
        True
    """
    started: float | None = None
    spent, cost, last = 0.0, _FIRST_COST, 0.0

    def report(event: Progress) -> None:
        nonlocal started, spent, cost, last
        progress(event)
        now = time.perf_counter()
        if started is None:
            started = last = now
        if event.preview is None or now - last < interval or SHARE * (now - started) < spent + cost:
            return
        show(Preview(event.preview(), event.step, event.total))
        last = time.perf_counter()
        cost = last - now
        spent += cost

    return report
