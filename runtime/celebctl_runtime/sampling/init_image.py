"""Init images (image-to-image) and masks: reading them, and fitting them to the size that is generated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.files import read_regular

if TYPE_CHECKING:
    from PIL.Image import Image

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
        image, digest = _read_upright(path)
        return cls.of(image, digest, str(path))

    @classmethod
    def of(cls, image: Image, digest: str = "", name: str = "the mask") -> Mask:
        """A mask from an image; ``digest`` "" is that of its pixels; ``name`` is for errors.

        Raises InvalidInputError as :meth:`read`.
        """
        if _alpha_of(image) is not None:
            raise InvalidInputError(
                f"{name} has transparent parts", "save it as white (change) on black (keep)", reason="mask_with_alpha"
            )
        if image.mode not in _MODES:
            raise InvalidInputError(
                f"{name} has the pixel format {image.mode}", "save it with 8 bits of grey", reason="mask_mode"
            )
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
    """

    image: Image
    digest: str
    mask: Mask | None = None

    @classmethod
    def read(cls, path: Path) -> InitImage:
        """Read an image file. Raises NotFoundError when there is none, InvalidInputError when it is not an image."""
        image, digest = _read_upright(path)
        try:
            return cls.of(image, digest)
        except ValueError as error:  # a pixel format that does not convert
            raise _unreadable(path) from error

    @classmethod
    def of(cls, image: Image, digest: str = "") -> InitImage:
        """An image of any mode; where it is transparent, it may change. ``digest`` "" is that of its pixels."""
        alpha, rgb = _alpha_of(image), image.convert("RGB")
        digest = digest or _pixel_digest(rgb if alpha is None else image.convert("RGBA"))
        mask = None if alpha is None else Mask(alpha.point(lambda value: 255 - value), digest)
        return cls(rgb, digest, mask)

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


def _read_upright(path: Path) -> tuple[Image, str]:
    """An image turned upright, and the hex SHA-256 of its file. Raises NotFoundError and InvalidInputError."""
    import io

    from PIL import Image, ImageOps

    try:
        raw = read_regular(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"there is no file {path}", "check the path", reason="no_image_file", path=path) from error
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", "name an image file") from error
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            upright = ImageOps.exif_transpose(opened)
            upright.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path) from error
    return upright, hashlib.sha256(raw).hexdigest()


def _pixel_digest(image: Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def _unreadable(path: Path) -> InvalidInputError:
    return InvalidInputError(f"{path} is not a readable image", "name a PNG, JPEG or WebP file")
