"""Reads photo files as upright RGB images; celebctl_runtime.image_files does the work."""

from pathlib import Path

from PIL import Image

from celebctl_runtime.errors import NotFoundError
from celebctl_runtime.image_files import ImageFile, read_image


def open_photo(path: str | Path) -> Image.Image:
    """The pixels of `read_photo`; raises as that does."""
    return read_photo(path).image


def read_photo(path: str | Path) -> ImageFile:
    """Read a photo as an upright RGB image with 8 bits per channel, beside its file.

    Raises:
        NotFoundError: There is no such file (reason "no_photo", with the value `sample`, a path for a sample photo),
            or it cannot be read.
        UsageError, SetupError, InvalidInputError: As `celebctl_runtime.image_files.read_image`.
    """
    try:
        return read_image(path)
    except NotFoundError as error:
        if error.reason != "no_image_file":
            raise
        file = Path(str(error.values["path"]))
        sample = file if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") else "face.png"
        raise NotFoundError(error.problem, error.hint, reason="no_photo", sample=sample) from error
