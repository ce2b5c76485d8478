"""Redraw the faces of a finished image one by one, and blend them back.

A face that covers a quarter of an image has only a few latent elements. Each one is cut out with a margin, enlarged to
the model's native size, drawn again from there (img2img) under the image's prompt with the other people left out,
reduced, and blended back with a soft border. The regions of the faces are part of the request: no face detector is
needed to repeat the image. This module has the geometry; pipeline.py draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .prompting.layout import AUTO, NONE, Box, Region, parse_layout
from .prompting.likeness import likeness_for
from .prompting.prompt import leave_out_others
from .prompting.prompt_schedule import last_mention
from .prompting.weights import WEIGHTED
from .request import Request
from .sampling.init_image import InitImage

if TYPE_CHECKING:
    from PIL.Image import Image

    from .picture import GeneratedImage

#: Height of a face's box as a fraction of what is cut out around it.
FACE_HEIGHT = 0.55
#: A drawn face is blended in inside the ellipse in its box: outer radius and width of the soft border, where 1 is the
#: ellipse itself.
OUTER, BORDER = 1.1, 0.3


#: Left, top, right, bottom.
PixelBox = tuple[int, int, int, int]


def pixel_box(box: Box, width: int, height: int) -> PixelBox:
    """The whole pixels (left, top, right, bottom) of a box; at least one each way."""
    left, top = min(round(box[0] * width), width - 1), min(round(box[1] * height), height - 1)
    return left, top, max(round(box[2] * width), left + 1), max(round(box[3] * height), top + 1)


def crop_box(face: PixelBox, image: tuple[int, int], native: tuple[int, int]) -> PixelBox:
    """What is cut out around a face: (left, top, right, bottom) with the sides in the ratio of ``native``.

    Args:
        face: Its box in pixels.
        image: (width, height) of the image in pixels; the crop is shifted, and reduced if it must be, to lie inside.
        native: (width, height) that the model draws.
    """
    scale = (face[3] - face[1]) / FACE_HEIGHT / native[1]
    scale = min(max(scale, (face[2] - face[0]) / native[0]), image[0] / native[0], image[1] / native[1])
    width, height = (max(1, round(scale * side)) for side in native)
    left = min(max((face[0] + face[2] - width) // 2, 0), image[0] - width)
    top = min(max((face[1] + face[3] - height) // 2, 0), image[1] - height)
    return left, top, left + width, top + height


def crop_request(image: GeneratedImage, region: Region, native: tuple[int, int]) -> tuple[Request, InitImage]:
    """The request that draws one face again, and the enlarged crop it starts from. native: (width, height)."""
    from PIL import Image

    whole, picture = image.request, image.image
    box = crop_box(pixel_box(region.box, *picture.size), picture.size, native)
    crop = picture.crop(box).resize(native, Image.Resampling.LANCZOS)
    source = InitImage.of(crop)
    names = whole.identities or ()
    prompt, toward = (_alone(whole, text, region.name) for text in (whole.prompt, whole.toward))
    request = Request(
        prompt,
        whole.negative, whole.seed, whole.steps, whole.guidance, whole.sampler, *native, names,
        source.digest, whole.refine_strength, likeness_for(whole.likeness, region.name), NONE, syntax=whole.syntax,
        toward=toward, blend=whole.blend if toward else 0.0,
    )  # fmt: skip
    return request, source


def _alone(whole: Request, prompt: str, name: str) -> str:
    """A prompt of an image for one of its people alone: of one that changes, the last text with that person."""
    names = whole.identities or ()
    if whole.syntax == WEIGHTED:
        prompt = last_mention(prompt, whole.steps - whole.skipped, names, name)
    return leave_out_others(prompt, names, name)


def blend_faces(picture: Image, regions: Sequence[Region], drawn: Sequence[Image]) -> Image:
    """The picture with its faces replaced by those drawn again, one image of native size per region."""
    from PIL import Image

    canvas = np.asarray(picture, np.float32).copy()
    for region, face in zip(regions, drawn, strict=True):
        box = pixel_box(region.box, *picture.size)
        left, top, right, bottom = crop_box(box, picture.size, face.size)
        reduced = face.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        mask = _soft_ellipse(box, (left, top, right, bottom))[:, :, None]
        part = canvas[top:bottom, left:right]
        part += mask * (np.asarray(reduced, np.float32) - part)
    return Image.fromarray((canvas + 0.5).clip(0, 255).astype(np.uint8))


def _soft_ellipse(face: PixelBox, crop: PixelBox) -> NDArray[Any]:
    """Weights (H, W) of a drawn face in its crop: 1 inside the ellipse in its box, falling to 0 across the border."""
    x, y = (
        (2 * np.arange(crop[axis], crop[axis + 2]) + 1 - face[axis] - face[axis + 2]) / (face[axis + 2] - face[axis])
        for axis in (0, 1)
    )
    radius = np.hypot(x, y[:, None])
    return ((OUTER - radius) / BORDER).clip(0.0, 1.0)


def regions_of(request: Request) -> tuple[Region, ...]:
    """The faces that a request redraws; () for none. Raises UsageError while they are still to be found."""
    if request.refine_faces == AUTO:
        raise UsageError(
            "the faces to redraw have not been found yet", "give their regions, or use celebctl.pipeline.Pipeline",
            reason="faces_not_found_yet",
        )  # fmt: skip
    return parse_layout(request.refine_faces)
