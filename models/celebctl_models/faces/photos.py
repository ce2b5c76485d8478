"""From a file that somebody took with some camera to upright RGB pixels, or to a clear refusal.

Photos come rotated by EXIF, in CMYK, with 16 bits, with an alpha channel, animated, cut short, renamed, or made to
exhaust memory. This module knows that, and nothing about faces.
"""

import io
import re
import stat
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageOps

from celebctl_runtime.errors import CelebctlError, InvalidInputError, NotFoundError, SetupError, UsageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")  # an allow-list: each decoder is a door
MAX_PIXELS = 120_000_000  # 360 MB once decoded; larger than what phones save by default
MAX_BYTES = 256 << 20

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/{1,2}[^/]")
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
_ANIMATED = {"GIF", "PNG", "WEBP", "TIFF"}  # a HEIC or a phone's JPEG opens at its main picture, which is to stay
_WIDE_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}

Note = Callable[[str], object]


def _no_note(text: str) -> None:
    """The default for `note`: nobody listens."""


def open_photo(path: str | Path, note: Note = _no_note) -> Image.Image:
    """Read a photo as an upright RGB image with 8 bits a channel.

    EXIF orientation is applied, transparency laid over white, a colour profile converted to sRGB, and of an animation
    the first frame is taken (`note` is told so). The file's metadata does not come along.

    Raises UsageError for a URL, NotFoundError when there is no readable file, SetupError for HEIC without
    pillow-heif, InvalidInputError when the bytes are no image of an allowed format or are too large.
    """
    place = Path(path).expanduser()
    data = _read(str(path), place)
    formats = _registered() + _heif(data, place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own bomb warning: our limit is checked below, before decoding
        try:
            with Image.open(io.BytesIO(data), formats=formats) as image:
                _check_size(image, place)
                if getattr(image, "n_frames", 1) > 1 and image.format in _ANIMATED:
                    note(f"{place.name} is animated or has several pages; the first frame is used")
                    image.seek(0)
                return _upright_rgb(image, place)
        except CelebctlError:
            raise
        except Exception as error:  # on hostile bytes Pillow's decoders raise nearly anything
            raise InvalidInputError(_complaint(error, place, len(data)), "save it again as JPEG or PNG") from error


def _registered() -> tuple[str, ...]:
    """FORMATS, known to Pillow by now: asked for one it has not met, it would load every decoder it has."""
    for name in FORMATS:
        import_module(f"PIL.{'WebP' if name == 'WEBP' else name.title()}ImagePlugin")
    return FORMATS


def _read(given: str, place: Path) -> bytes:
    if _URL.match(given) and not place.exists():
        raise UsageError(f"{given} is a web address; celebctl fetches nothing", "download the photo, give the file")
    try:
        facts = place.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise NotFoundError(f"{place} is {_kind(facts.st_mode)}, not a photo", "name one image file")
        if facts.st_size > MAX_BYTES:
            raise InvalidInputError(f"{place} has {facts.st_size >> 20} MB; photos may have {MAX_BYTES >> 20}", "resize it")
        data = place.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NotFoundError(f"cannot read {given!r}: {reason}", _missing_hint(given, place)) from error
    if not data:
        raise InvalidInputError(f"{place} is empty (0 bytes)", "copy or download it again")
    return data


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a device or pipe"


def _missing_hint(given: str, place: Path) -> str:
    if "\0" in given or place.exists():
        return "check the permissions of the file"
    drawable = place if place.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") else "face.png"
    return f"no photo at hand? celebctl portrait {drawable} draws somebody"


def _heif(data: bytes, place: Path) -> tuple[str, ...]:
    """("HEIF",) when the bytes are an iPhone photo and its reader is installed, () for any other bytes."""
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS:
        return ()
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore
    except ImportError:
        raise SetupError(
            f"{place.name} is a HEIC photo and its reader is not installed",
            'pip install "celebctl[heif]", or save the photo as JPEG',
        ) from None
    register_heif_opener()
    return ("HEIF",)


def _check_size(image: Image.Image, place: Path) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InvalidInputError(
            f"{place} claims {width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} million are read",
            "resize it, or cut out the face",
        )


def _complaint(error: Exception, place: Path, size: int) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{place} is no image that celebctl reads ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return f"{place} claims more pixels than are read ({MAX_PIXELS // 1_000_000} million)"
    return f"{place} ({size} bytes) is damaged or cut short: {str(error)[:120]}"


def _upright_rgb(image: Image.Image, place: Path) -> Image.Image:
    """Decode. Order matters: the colour profile describes the stored channels, transparency the stored colours."""
    image.load()
    profile: Any = image.info.get("icc_profile")
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise InvalidInputError(f"{place} holds floating-point pixels of unknown range", "save it as 8-bit JPEG or PNG")
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
    coloured = image.convert("RGBA")
    canvas = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(canvas, coloured).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Through the embedded ICC profile where it is usable; a broken profile is worth less than the pixels."""
    cms: Any = import_module("PIL.ImageCms")  # half of its signatures are untyped
    try:
        source = cms.ImageCmsProfile(io.BytesIO(profile))
        converted = cms.profileToProfile(image, source, cms.createProfile("sRGB"), outputMode="RGB")
    except (cms.PyCMSError, ImportError, OSError, ValueError):  # ImportError: a Pillow built without LittleCMS
        return image.convert("RGB")
    return cast(Image.Image, converted)
