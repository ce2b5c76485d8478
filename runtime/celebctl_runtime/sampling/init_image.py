"""Init images (image-to-image) and masks: reading them, and fitting them to the size that is generated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.credentials import Ingredient
from celebctl_runtime.errors import InvalidInputError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_STRENGTH = 0.6  # of a request with an init image
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_COLOUR_TOLERANCE = 24  # of 255, between the channels of a pixel: JPEG leaves a little colour in greys


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask for inpainting, and the hex SHA-256 of its file, which :attr:`Request.mask` refers to.

    Attributes:
        image: Mode "L": 255 is changed, 0 is kept.
        digest: Of the mask's file; for the mask in an image's alpha channel, of the image's file.
    """

    image: Image
    digest: str

    @classmethod
    def read(cls, path: Path) -> Mask:
        """Read a mask from an image file of greys without transparency.

        Raises:
            NotFoundError: There is no file.
            InvalidInputError: It is no image, or has colours (reason "mask_in_colour"), transparent parts
                ("mask_with_alpha") or more than 8 bits ("mask_mode").
        """
        from celebctl_runtime.image_files import read_image

        file = read_image(path)
        _check_mask(file.mode, file.alpha, str(path))
        return cls.of(file.image, file.digest, str(path))

    @classmethod
    def of(cls, image: Image, digest: str = "", name: str = "the mask") -> Mask:
        """A mask from an image; ``digest`` "" is that of its pixels; ``name`` is for errors.

        Raises InvalidInputError as :meth:`read`.
        """
        _check_mask(image.mode, _alpha_of(image), name)
        channels = np.asarray(image.convert("RGB"), np.int16)
        if np.ptp(channels, axis=2).max() > _COLOUR_TOLERANCE:
            raise InvalidInputError(
                f"{name} has colours, so it is no mask", "paint what may change white on black", reason="mask_in_colour"
            )
        grey = image.convert("L")
        return cls(grey, digest or _pixel_digest(grey))

    def weights(self, width: int, height: int, invert: bool) -> NDArray[np.float32]:
        """Fitted as :meth:`InitImage.pixels` fits an image: (height, width) float32 in [0, 1], 1 is changed."""
        from PIL import Image, ImageOps

        fitted = ImageOps.fit(self.image, (width, height), Image.Resampling.BOX)
        weights = np.asarray(fitted, np.float32) / np.float32(255)
        return np.float32(1) - weights if invert else weights


@dataclass(frozen=True, eq=False)
class InitImage:
    """An upright RGB image, and the hex SHA-256 of its file, which :attr:`Request.source` refers to.

    ``mask``: what requests with a :attr:`Request.mask` change; an image with transparent parts brings its own.
    ``file``: the file itself, which becomes an ingredient in the credentials of what is drawn from it.
    """

    image: Image
    digest: str
    mask: Mask | None = None
    file: Ingredient | None = None

    @classmethod
    def read(cls, path: str | Path) -> InitImage:
        """Read an image file. Raises the errors of :func:`celebctl_runtime.image_files.read_image`."""
        from celebctl_runtime.image_files import read_image

        file = read_image(path)
        ingredient = Ingredient(file.content, file.format, Path(path).name)
        return cls(file.image, file.digest, _transparent_parts(file.alpha, file.digest), ingredient)

    @classmethod
    def of(cls, image: Image, digest: str = "") -> InitImage:
        """An image of any mode; where it is transparent, it may change. ``digest`` "" is that of its pixels."""
        from celebctl_runtime.image_files import to_rgb

        alpha, rgb = _alpha_of(image), to_rgb(image)
        digest = digest or _pixel_digest(rgb if alpha is None else image.convert("RGBA"))
        return cls(rgb, digest, _transparent_parts(alpha, digest))

    def with_mask(self, mask: Mask) -> InitImage:
        """This image with another mask, which has its size or its proportions. Raises UsageError ("mask_size")."""
        (width, height), (across, down) = self.image.size, mask.image.size
        if abs(across * height - down * width) > max(width, height, across, down) / 2:  # more than rounding
            raise UsageError(
                f"the mask has {across}x{down} pixels, the image {width}x{height}",
                "give the mask the size of the image, or its proportions",
                reason="mask_size",
                mask=f"{across}x{down}",
                image=f"{width}x{height}",
            )
        return replace(self, mask=mask)

    def pixels(self, width: int, height: int) -> NDArray[np.float32]:
        """Center-cropped and resized: (3, height, width) float32 in [-1, 1]."""
        from PIL import Image, ImageOps

        fitted = ImageOps.fit(self.image, (width, height), Image.Resampling.LANCZOS)
        return np.asarray(fitted, np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)


def _alpha_of(image: Image) -> Image | None:
    """The alpha channel of an image, mode "L"; None without transparent parts."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def _transparent_parts(alpha: Image | None, digest: str) -> Mask | None:
    return None if alpha is None else Mask(alpha.point(lambda value: 255 - value), digest)


def _check_mask(mode: str, alpha: Image | None, name: str) -> None:
    if alpha is not None:
        raise InvalidInputError(
            f"{name} has transparent parts", "save it as white (change) on black (keep)", reason="mask_with_alpha"
        )
    if mode not in _MODES:
        raise InvalidInputError(
            f"{name} has the pixel format {mode}", "save it with 8 bits of grey", reason="mask_mode"
        )


def _pixel_digest(image: Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
