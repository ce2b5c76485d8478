"""The linear map from latents to colours with which the runtime shows an image while it is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import interpolate

from celebctl_export.graphs import graph_makers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from celebctl_models.checkpoints.diffusion import DiffusionParts

_SAMPLES, _SIDE = 16, 16  # latents that are decoded, and their side
_SCALES = (1, 2, 4, 8, 16)  # cells of noise along a side
_DIGITS = 5


def fit_latent_rgb(parts: DiffusionParts) -> tuple[tuple[float, ...], ...]:
    """Three rows (red, green, blue) of C weights and a constant: latent -> mean colour of its pixels in [-1, 1].

    Least squares on the decoder's own output, so that it fits every autoencoder. There are no pictures to fit on: the
    latents are random fields with as much detail at every scale, as latents of pictures have, of standard deviation 1.
    On latents of images that mini draws, this explains 90 % of the variance; 92 % is the most a linear map can
    (benchmarks/preview.py). A map fitted on white noise explained a tenth less. A decoder with random weights has no
    such map.
    """
    generator = torch.Generator().manual_seed(0)
    shape = _SAMPLES, parts.latent_channels
    fields = [torch.randn(*shape, cells, cells, generator=generator) for cells in _SCALES]
    large = [interpolate(field, size=(_SIDE, _SIDE), mode="bilinear") for field in fields]
    latents = torch.stack(large).sum(0) / len(_SCALES) ** 0.5
    decoder = graph_makers(parts)[-2](torch.float32)
    assert decoder.name == "vae_decoder"
    with torch.inference_mode():
        pixels = torch.cat([decoder.module(latent[None]) for latent in latents])
        colours = torch.nn.functional.avg_pool2d(pixels, pixels.shape[-1] // _SIDE)
    inputs = torch.cat([latents, torch.ones(_SAMPLES, 1, _SIDE, _SIDE)], dim=1)
    solution = np.linalg.lstsq(_columns(inputs), _columns(colours), rcond=None)[0]
    return tuple(tuple(round(float(weight), _DIGITS) for weight in row) for row in solution.T)


def _columns(images: torch.Tensor) -> NDArray[np.float64]:
    """(B, C, h, w) -> (B h w, C)."""
    return images.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
