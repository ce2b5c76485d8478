"""Init images (image-to-image): reading them, and fitting them to the size that is generated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import InvalidInputError, NotFoundError
from celebctl_runtime.files import read_regular

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_STRENGTH = 0.6  # of a request with an init image


@dataclass(frozen=True, eq=False)
class InitImage:
    """An upright RGB image, and the hex SHA-256 of its file, which :attr:`Request.source` refers to."""

    image: Image
    digest: str

    @classmethod
    def read(cls, path: Path) -> InitImage:
        """Read an image file. Raises NotFoundError when there is none, InvalidInputError when it is not an image."""
        import io

        from PIL import Image, ImageOps

        try:
            raw = read_regular(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(
                f"there is no file {path}", "check the path", reason="no_image_file", path=path
            ) from error
        except OSError as error:
            raise NotFoundError(f"cannot read {path}: {error.strerror}", "name an image file") from error
        try:
            with Image.open(io.BytesIO(raw)) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InvalidInputError(f"{path} is not a readable image", "name a PNG, JPEG or WebP file") from error
        return cls(upright, hashlib.sha256(raw).hexdigest())

    def pixels(self, width: int, height: int) -> NDArray[np.float32]:
        """Center-cropped and resized: (3, height, width) float32 in [-1, 1]."""
        from PIL import Image, ImageOps

        fitted = ImageOps.fit(self.image, (width, height), Image.Resampling.LANCZOS)
        return np.asarray(fitted, np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
