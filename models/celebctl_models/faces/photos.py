"""Reads photo files as upright RGB images.

Handles EXIF orientation, CMYK, 16 bits, alpha channels, animations, truncated and renamed files, and files made to
exhaust memory.
"""

import io
import logging
import re
import stat
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageOps

from celebctl_runtime.errors import CelebctlError, InvalidInputError, NotFoundError, SetupError, UsageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")  # an allow-list: every decoder is an attack surface
MAX_PIXELS = 120_000_000  # 360 MB decoded; more than phones save by default
MAX_BYTES = 256 << 20

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/{1,2}[^/]")
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
_ANIMATED = {"GIF", "PNG", "WEBP", "TIFF"}  # a HEIC or a phone's JPEG opens at its main image
_WIDE_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}

_logger = logging.getLogger(__name__)


def open_photo(path: str | Path) -> Image.Image:
    """Read a photo as an upright RGB image with 8 bits per channel, without its metadata.

    EXIF orientation is applied, transparency is composed over white, a colour profile is converted to sRGB, and of an
    animation the first frame is read (with a warning in the log).

    Raises:
        UsageError: `path` is a URL.
        NotFoundError: There is no readable file.
        SetupError: A HEIC file, without pillow-heif.
        InvalidInputError: Not an image of an allowed format, damaged, or too large.
    """
    file = Path(path).expanduser()
    data = _read(str(path), file)
    formats = _register_formats() + _heif_format(data, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own warning: MAX_PIXELS is checked below, before decoding
        try:
            with Image.open(io.BytesIO(data), formats=formats) as image:
                _check_size(image, file)
                if getattr(image, "n_frames", 1) > 1 and image.format in _ANIMATED:
                    _logger.warning("%s is animated or has several pages; the first frame is used", file.name)
                    image.seek(0)
                return _upright_rgb(image, file)
        except CelebctlError:
            raise
        except Exception as error:  # on hostile bytes Pillow's decoders raise nearly anything
            raise InvalidInputError(_problem(error, file, len(data)), "save it again as JPEG or PNG") from error


def _register_formats() -> tuple[str, ...]:
    """FORMATS, registered with Pillow: for an unregistered one it would load all its decoders."""
    for name in FORMATS:
        import_module(f"PIL.{'WebP' if name == 'WEBP' else name.title()}ImagePlugin")
    return FORMATS


def _read(given: str, file: Path) -> bytes:
    """The bytes of a file; `given` is its path as passed."""
    if _URL.match(given) and not file.exists():
        raise UsageError(f"{given} is a web address; celebctl downloads no photos", "download it and pass the file")
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
            raise NotFoundError(f"{file} is {kind}, not a photo", "pass one image file")
        if status.st_size > MAX_BYTES:
            problem = f"{file} has {status.st_size >> 20} MB; the limit for photos is {MAX_BYTES >> 20} MB"
            raise InvalidInputError(problem, "resize it")
        data = file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        cause = error.strerror if isinstance(error, OSError) else str(error)
        if "\0" in given or file.exists():
            raise NotFoundError(f"cannot read {given!r}: {cause}", "check the permissions of the file") from error
        sample = file if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") else "face.png"
        hint = "check the path"
        raise NotFoundError(f"cannot read {given!r}: {cause}", hint, reason="no_photo", sample=sample) from error
    if not data:
        raise InvalidInputError(f"{file} is empty (0 bytes)", "copy or download it again")
    return data


def _heif_format(data: bytes, file: Path) -> tuple[str, ...]:
    """("HEIF",) for the bytes of an iPhone photo, else (). Raises SetupError without its decoder."""
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS:
        return ()
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore
    except ImportError:
        raise SetupError(
            f"{file.name} is a HEIC photo and its decoder is not installed",
            'pip install "celebctl[heif]", or save the photo as JPEG',
        ) from None
    register_heif_opener()
    return ("HEIF",)


def _check_size(image: Image.Image, file: Path) -> None:
    """Raise InvalidInputError for more than MAX_PIXELS."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InvalidInputError(
            f"{file} has {width} x {height} pixels; the limit is {MAX_PIXELS // 1_000_000} million",
            "resize it, or crop it to the face",
        )


def _problem(error: Exception, file: Path, size: int) -> str:
    """The message for an exception of Pillow."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{file} is not an image in a supported format ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return f"{file} has more pixels than the limit ({MAX_PIXELS // 1_000_000} million)"
    return f"{file} ({size} bytes) is damaged or truncated: {str(error)[:120]}"


def _upright_rgb(image: Image.Image, file: Path) -> Image.Image:
    """Decode. Order matters: the colour profile describes the stored channels, transparency the stored colours."""
    image.load()
    profile: Any = image.info.get("icc_profile")
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise InvalidInputError(f"{file} has floating-point pixels of unknown range", "save it as 8-bit JPEG or PNG")
    if upright.mode in _WIDE_MODES:
        upright = _eight_bits(upright)
    elif upright.has_transparency_data:
        upright = _over_white(upright)
    elif upright.mode == "P":
        upright = upright.convert("RGB")
    rgb = _to_srgb(upright, profile) if isinstance(profile, bytes) else upright.convert("RGB")
    rgb.info.clear()
    return rgb


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale with 16 bits (or 32-bit integers holding them) to 8 bits. convert("L") would clip, not scale."""
    import numpy as np

    values = np.asarray(image, dtype=np.int64)
    shift = 8 if values.max(initial=0) > 255 else 0
    return Image.fromarray((values >> shift).clip(0, 255).astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    """Compose an image with transparency over white."""
    coloured = image.convert("RGBA")
    canvas = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(canvas, coloured).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert with the embedded ICC profile; a broken profile is ignored."""
    cms: Any = import_module("PIL.ImageCms")  # half of its signatures are untyped
    try:
        source = cms.ImageCmsProfile(io.BytesIO(profile))
        converted = cms.profileToProfile(image, source, cms.createProfile("sRGB"), outputMode="RGB")
    except (cms.PyCMSError, ImportError, OSError, ValueError):  # ImportError: a Pillow built without LittleCMS
        return image.convert("RGB")
    return cast(Image.Image, converted)
