"""Reading image files of unknown origin: photos, init images, and images that carry a recipe.

The only place that decodes an image from outside. It handles EXIF orientation, CMYK, 16 bits, palettes, alpha channels,
colour profiles, animations, truncated and renamed files, and files made to exhaust memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps

from .errors import CelebctlError, InvalidInputError, NotFoundError, SetupError, UsageError
from .files import read_regular

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")  # an allow-list: every decoder is an attack surface
MAX_PIXELS = 120_000_000  # 360 MB decoded; more than phones save by default
MAX_BYTES = 256 << 20

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/{1,2}[^/]")
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_ANIMATED = {"GIF", "PNG", "WEBP", "TIFF"}  # a HEIC or a phone's JPEG opens at its main image
_TOO_MUCH_TEXT = re.compile("Decompressed data too large|Too much memory used in text chunks")  # of Pillow
_WIDE_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageFile:
    """What :func:`read_image` found in a file.

    Attributes:
        image: Upright RGB pixels in sRGB with 8 bits per channel, without metadata.
        alpha: The upright alpha channel, mode "L"; None for an opaque image. The pixels are already composed with it.
        format: Pillow's name of the file format, such as "PNG" or "JPEG".
        mode: Pillow's name of the stored pixel format, such as "RGBA", "P" or "I;16".
        digest: Hex SHA-256 of the file.
        text: Text chunks of a PNG, by keyword. Unchecked.
        exif: The EXIF block as stored, b"" where there is none. Unchecked.
        comment: The comment of a GIF, b"" where there is none. Unchecked.
        content: The file.
    """

    image: Image.Image
    alpha: Image.Image | None
    format: str
    mode: str
    digest: str
    text: Mapping[str, str]
    exif: bytes
    comment: bytes
    content: bytes


def read_image(path: str | Path, *, animated: bool = False) -> ImageFile:
    """Read an image file.

    EXIF orientation is applied, transparency is composed over white, a colour profile is converted to sRGB, and of an
    animation the first frame is read (with a warning in the log). Texts and the colour profile of a PNG that would
    exceed Pillow's limits (1 MiB each, 64 MiB in all) are skipped (with a warning).

    Args:
        path: A regular file of at most 256 MiB with at most 120 million pixels: JPEG, PNG, WebP, GIF, TIFF, BMP, and
            HEIC where pillow-heif is installed. The content decides, not the suffix.
        animated: Whether an animation is expected, of which the first frame suffices: there is no warning.

    Raises:
        UsageError: ``path`` is a URL (reason "web_address").
        NotFoundError: There is no such file ("no_image_file"), or it cannot be read ("unreadable").
        SetupError: A HEIC file, without pillow-heif ("heif_decoder_missing").
        InvalidInputError: Not an image of an allowed format ("unsupported_image_format"), damaged ("damaged_image"),
            empty ("empty_file"), or too large ("file_too_large", "too_many_pixels").

    Example:
        >>> from PIL import Image
        >>> Image.new("RGBA", (8, 4), (255, 0, 0, 0)).save(folder / "clear.png")
        >>> read = read_image(folder / "clear.png")
        >>> read.format, read.image.size, read.image.getpixel((0, 0))
        ('PNG', (8, 4), (255, 255, 255))
    """
    file = Path(path)
    with contextlib.suppress(RuntimeError):  # ~ of an unknown user
        file = file.expanduser()
    data = _read(str(path), file)
    return _decode(data, file, hashlib.sha256(data).hexdigest(), animated)


def to_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """An image as upright RGB in sRGB with 8 bits per channel and without metadata, see :func:`read_image`.

    ``name`` is used in messages. Raises InvalidInputError for floating-point pixels (reason "float_pixels").
    """
    # Order matters: the colour profile describes the stored channels, transparency the stored colours.
    profile: Any = image.info.get("icc_profile")
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise InvalidInputError(
            f"{name} has floating-point pixels of unknown range", "save it as 8-bit JPEG or PNG", reason="float_pixels"
        )
    if upright.mode in _WIDE_MODES:
        upright = _eight_bits(upright)
    elif upright.has_transparency_data:
        upright = _over_white(upright)
    elif upright.mode == "P":
        upright = upright.convert("RGB")
    rgb = _to_srgb(upright, profile) if isinstance(profile, bytes) else upright.convert("RGB")
    rgb.info.clear()
    return rgb


def _decode(data: bytes, file: Path, digest: str, animated: bool) -> ImageFile:
    formats = _register_formats() + _heif_format(data, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own warning: MAX_PIXELS is checked below, before decoding
        try:
            with Image.open(io.BytesIO(data), formats=formats) as image:
                _check_size(image, file)
                if getattr(image, "n_frames", 1) > 1 and image.format in _ANIMATED:
                    if not animated:
                        _logger.warning("%s is animated or has several pages; the first frame is used", file.name)
                    image.seek(0)
                image.load()  # text chunks of a PNG may follow the pixels
                text = {str(key): str(value) for key, value in getattr(image, "text", {}).items()}
                exif, comment = image.info.get("exif", b""), image.info.get("comment", b"")
                rgb, alpha = to_rgb(image, str(file)), _alpha_of(image)
        except CelebctlError:
            raise
        except Exception as error:  # on hostile bytes Pillow's decoders raise nearly anything
            if _TOO_MUCH_TEXT.search(str(error)) and len(smaller := _without_texts(data)) < len(data):
                _logger.warning("%s has too much compressed text, or too large a colour profile: skipped", file.name)
                return _decode(smaller, file, digest, animated)
            raise _unusable(error, file, len(data)) from error
    name = "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG with further images
    block, note = (value if isinstance(value, bytes) else b"" for value in (exif, comment))
    return ImageFile(rgb, alpha, name, image.mode, digest, text, block, note, data)


def _without_texts(png: bytes) -> bytes:
    """A PNG without its texts and colour profile. Every chunk has its length, its type, its data and a checksum."""
    kept, at = [png[:8]], 8
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def looks_like_image(data: bytes) -> bool:
    """Whether a file that begins with ``data`` (12 bytes or more) claims to be an image that can be read here."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    bmp = data[:2] == b"BM" and data[6:10] == bytes(4)  # its reserved field
    return webp or bmp or data.startswith(_SIGNATURES) or _is_heif(data)


def _register_formats() -> tuple[str, ...]:
    """FORMATS, registered with Pillow: for an unregistered one it would load all its decoders."""
    for name in FORMATS:
        import_module(f"PIL.{'WebP' if name == 'WEBP' else name.title()}ImagePlugin")
    return FORMATS


def _read(given: str, file: Path) -> bytes:
    """The bytes of a file; ``given`` is its path as passed."""
    if _URL.match(given) and not file.exists():
        problem = f"{given} is a web address; celebctl downloads no images"
        raise UsageError(problem, "download it and pass the file", reason="web_address")
    try:
        data = read_regular(file, MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        problem = f"there is no file {given!r}"
        raise NotFoundError(problem, "check the path", reason="no_image_file", path=file) from error
    except OSError as error:
        problem, hint = f"cannot read {given!r}: {error.strerror}", "name an image file, and check its permissions"
        raise NotFoundError(problem, hint, reason="unreadable", path=file) from error
    if not data:
        problem = f"{file} is empty (0 bytes)"
        raise InvalidInputError(problem, "copy or download it again", reason="empty_file", path=file)
    return data


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def _heif_format(data: bytes, file: Path) -> tuple[str, ...]:
    """("HEIF",) for the bytes of an iPhone photo, else (). Raises SetupError without its decoder."""
    if not _is_heif(data):
        return ()
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore
    except ImportError:
        raise SetupError(
            f"{file.name} is a HEIC image and its decoder is not installed",
            'pip install "celebctl[heif]", or save the image as JPEG',
            reason="heif_decoder_missing",
        ) from None
    register_heif_opener()
    return ("HEIF",)


def _check_size(image: Image.Image, file: Path) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_many_pixels(f"{file} has {width} x {height} pixels; the limit is {MAX_PIXELS // 1_000_000} million")


def _too_many_pixels(problem: str) -> InvalidInputError:
    return InvalidInputError(problem, "resize it, or crop it", reason="too_many_pixels", limit=MAX_PIXELS)


def _unusable(error: Exception, file: Path, size: int) -> InvalidInputError:
    """The error for an exception of Pillow."""
    if isinstance(error, Image.UnidentifiedImageError):
        problem = f"{file} is not an image in a supported format ({', '.join(FORMATS)})"
        return InvalidInputError(problem, "save it again as JPEG or PNG", reason="unsupported_image_format", path=file)
    if isinstance(error, Image.DecompressionBombError):
        return _too_many_pixels(f"{file} has more pixels than the limit ({MAX_PIXELS // 1_000_000} million)")
    problem = f"{file} ({size} bytes) is damaged or truncated: {str(error)[:120]}"
    return InvalidInputError(problem, "save it again as JPEG or PNG", reason="damaged_image", path=file)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale with 16 bits (or 32-bit integers holding them) to 8 bits. convert("L") would clip, not scale."""
    values = np.asarray(image, dtype=np.int64)
    shift = 8 if values.max(initial=0) > 255 else 0
    return Image.fromarray((values >> shift).clip(0, 255).astype(np.uint8))


def _alpha_of(image: Image.Image) -> Image.Image | None:
    """The upright alpha channel; None without transparent parts."""
    if not image.has_transparency_data or image.mode in _WIDE_MODES:
        return None
    alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


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
    return cast("Image.Image", converted)
