"""A picture to begin with instead of noise: reading it, and fitting it to the size that is drawn.

What this module does not know: latents and noise.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class InitImage:
    """A picture, RGB, and the hex SHA-256 of the file it came from."""

    image: Image
    digest: str

    @classmethod
    def read(cls, path: Path) -> InitImage:
        """Raises NotFoundError when there is no file, InvalidInputError when it is no picture."""
        import io

        from PIL import Image, ImageOps

        try:
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"there is no picture {path}", "check the path") from error
        except (IsADirectoryError, PermissionError) as error:
            raise NotFoundError(f"cannot read {path}: {error.strerror}", "name a picture file") from error
        try:
            with Image.open(io.BytesIO(raw)) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InvalidInputError(f"{path} is not a readable picture", "name a PNG, JPEG or WebP file") from error
        return cls(upright, hashlib.sha256(raw).hexdigest())

    def pixels(self, width: int, height: int) -> NDArray[np.float32]:
        """Cut to the shape of width x height from its middle and scaled: (3, height, width) in [-1, 1]."""
        from PIL import Image, ImageOps

        fitted = ImageOps.fit(self.image, (width, height), Image.Resampling.LANCZOS)
        return np.asarray(fitted, np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
