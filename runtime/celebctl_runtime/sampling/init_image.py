"""Init images (image-to-image): reading them, and fitting them to the size that is generated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.credentials import Ingredient

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class InitImage:
    """An upright RGB image, and the hex SHA-256 of its file, which :attr:`Request.source` refers to.

    ``file``: the file itself, which becomes an ingredient in the credentials of what is drawn from it.
    """

    image: Image
    digest: str
    file: Ingredient | None = None

    @classmethod
    def read(cls, path: str | Path) -> InitImage:
        """Read an image file. Raises the errors of :func:`celebctl_runtime.image_files.read_image`."""
        from celebctl_runtime.image_files import read_image

        file = read_image(path)
        return cls(file.image, file.digest, Ingredient(file.content, file.format, Path(path).name))

    def pixels(self, width: int, height: int) -> NDArray[np.float32]:
        """Center-cropped and resized: (3, height, width) float32 in [-1, 1]."""
        from PIL import Image, ImageOps

        fitted = ImageOps.fit(self.image, (width, height), Image.Resampling.LANCZOS)
        return np.asarray(fitted, np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
