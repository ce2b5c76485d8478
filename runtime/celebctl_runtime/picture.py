"""Generated images, and image files that carry their own recipe.

A PNG has three text chunks: ``celebctl``, a JSON document with the complete request and a record of what ran it;
``parameters``, in the format of the Stable Diffusion web UI, which many viewers show; and ``invokeai_metadata``. A JPEG
or WebP has the first two in its EXIF, see recipes/carriers.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np

from .dates import record_time
from .errors import SetupError, UsageError, out_of_range
from .files import atomic_write, refuse_existing
from .recipes.carriers import INVOKEAI, JPEG_LIMIT, OWN, PARAMETERS, exif_block, png_info
from .recipes.infotext import format_parameters
from .recipes.invokeai import format_metadata
from .recipes.reading import MAX_SCALE, SCHEMA, read_recipe
from .request import Request
from .watermark import PUBLIC_KEY, SMALLEST, add_watermark, find_watermark

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from .credentials import Ingredient, Signer
    from .sampling.init_image import InitImage

_log = logging.getLogger(__name__)
CHUNK = OWN
MAX_QUALITY = 100
DEFAULT_QUALITY = 90  # of JPEG and WebP
_PNG_LEVEL = 2  # of zlib: a third of the time of its default 6 for files that are a tenth to a fifth larger
_SURE_SIDE, _SURE_QUALITY = 256, 75  # pixels of the shorter side, and JPEG: from these on a watermark is found
ImageFormat = Literal["png", "jpeg", "webp"]
#: The suffixes of files that can be written.
SUFFIXES: dict[str, ImageFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """A generated image.

    Attributes:
        image: PIL image, RGB.
        request: The request that ran, fully resolved.
        record: JSON-ready facts: model, bundle, engine, versions, digests of the people, prompt text that did not fit.
        ingredients: Files that it was drawn from, for its credentials.
        mask: Where an init image was changed: mode "L", 255 is drawn; None without a mask.
    """

    image: Image
    request: Request
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])
    ingredients: Sequence[Ingredient] = ()
    mask: Image | None = None


@dataclass(frozen=True)
class Marks:
    """What is put into a saved image besides its recipe.

    Attributes:
        watermark_key: Key of the watermark; None for no watermark.
        signer: Signs content credentials; None for none. They are metadata, and left out with it.
        unsigned_on_failure: Whether an image that cannot be signed is saved all the same, with a warning.
    """

    watermark_key: bytes | None = PUBLIC_KEY
    signer: Signer | None = None
    unsigned_on_failure: bool = False


WATERMARKED, UNMARKED = Marks(), Marks(None)


class EncodingOptions(TypedDict, total=False):
    """How an image is encoded, see :func:`encode_image`."""

    metadata: bool
    scale: int
    quality: int | None
    marks: Marks


def with_ingredients(images: Sequence[GeneratedImage], init_images: Sequence[InitImage]) -> list[GeneratedImage]:
    """The images, each with the file of the init image that its request names, if it was read from one."""
    files = {image.digest: (image.file,) for image in init_images if image.file is not None}
    return [replace(image, ingredients=files.get(image.request.source, ())) for image in images]


def to_image(values: NDArray[np.float32]) -> Image:
    """Numbers in [0, 1] as an image of 8 bits: greys (H, W) or RGB (H, W, 3). Values outside are clipped."""
    from PIL import Image

    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def save_image(
    generated: GeneratedImage, path: Path, *, overwrite: bool = False, **options: Unpack[EncodingOptions]
) -> Path:
    """Write an image file atomically; the suffix of its path selects the format.

    Args:
        generated: The image to write.
        path: The file: .png, .jpg, .jpeg or .webp.
        overwrite: Whether to replace an existing file.
        options: metadata, scale, quality and marks, as for :func:`encode_image`.

    Returns:
        ``path``.

    Raises:
        UsageError: When ``path`` exists and ``overwrite`` is not set, its suffix is another (reason
            "unknown_image_suffix"), or ``scale`` or ``quality`` is out of range.
        SetupError: When the file cannot be written.
    """
    refuse_existing(path, overwrite)
    atomic_write(path, encode_image(generated, format_of(path), **options), overwrite=overwrite)
    return path


def encode_image(
    generated: GeneratedImage,
    image_format: ImageFormat = "png",
    *,
    metadata: bool = True,
    scale: int = 1,
    quality: int | None = None,
    marks: Marks = WATERMARKED,
) -> bytes:
    """The content of an image file: the enlarged pixels with their watermark, encoded with the recipe, and signed.

    SOURCE_DATE_EPOCH fixes the date in the record.

    Args:
        generated: The image.
        image_format: "png", "jpeg" or "webp".
        metadata: Whether to include the recipe.
        scale: Enlargement, 1 to 16.
        quality: Of JPEG and WebP, 1 to 100; at 100 a WebP is lossless. None: 90.
        marks: Watermark and content credentials. A side under 128 pixels is too short for a watermark, and there is
            none where the encoder would remove it: in a JPEG of quality 30, say.

    Raises:
        UsageError: ``scale`` or ``quality`` is out of range, or a PNG is given a quality ("quality_of_png").
        SetupError: It cannot be signed (unless ``marks.unsigned_on_failure``).
    """
    if not 1 <= scale <= MAX_SCALE:
        raise out_of_range("scale", scale, 1, MAX_SCALE)
    check_quality(quality, image_format)
    lossy = None if image_format == "png" else quality or DEFAULT_QUALITY
    pixels, key = _enlarged(generated.image, scale), marks.watermark_key
    facts: dict[str, Any] = {"scale": scale} | ({} if lossy is None else {"quality": lossy})
    if key is not None and min(pixels.size) >= SMALLEST:
        marked = add_watermark(pixels, watermark_payload(generated.request.to_json()), key)
        if _keeps_watermark(marked, image_format, lossy, key):
            pixels = marked
            facts["watermark"] = "public" if key == PUBLIC_KEY else "private"
    content = _encoded(pixels, image_format, lossy, _texts(generated, facts) if metadata else {})
    if marks.signer is None or not metadata:
        return content
    title = generated.request.prompt[:100]
    try:
        return marks.signer.sign(content, image_format.upper(), title, generated.ingredients)
    except SetupError as error:
        if not marks.unsigned_on_failure:
            raise
        _log.warning("saved without content credentials: %s", error.problem)
        return content


def _keeps_watermark(marked: Image, image_format: ImageFormat, quality: int | None, key: bytes) -> bool:
    """Whether the watermark can be found in the file: encoders remove it at low quality, WebP from flat areas, too.

    A PNG, a lossless WebP and a JPEG of good quality are not searched unless they are small: searching takes longer
    than encoding.
    """
    from PIL import Image

    sure = quality in (None, MAX_QUALITY) or (image_format == "jpeg" and quality >= _SURE_QUALITY)
    if sure and min(marked.size) >= _SURE_SIDE:
        return True
    with Image.open(io.BytesIO(_encoded(marked, image_format, quality, {}))) as decoded:
        return find_watermark(decoded, key) is not None


def watermark_payload(request: Mapping[str, Any]) -> int:
    """The number in the watermark: the first 32 bits of the SHA-256 of a request, as JSON with sorted keys.

    The request is read and written first, so that 1 and 1.0 have the same number.
    """
    request = Request.from_json(request).to_json()
    return int(hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8], 16)


def png_bytes(generated: GeneratedImage, *, metadata: bool = True, scale: int = 1) -> bytes:
    """The content of a PNG file, see :func:`encode_image`."""
    return encode_image(generated, metadata=metadata, scale=scale)


def format_of(path: Path) -> ImageFormat:
    """The format that a path's suffix names. Raises UsageError (reason "unknown_image_suffix")."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        problem, hint = f"{path} is not an image file that celebctl writes", f"end it in {', '.join(SUFFIXES)}"
        raise UsageError(problem, hint, reason="unknown_image_suffix", path=path)
    return SUFFIXES[suffix]


def check_quality(quality: int | None, image_format: ImageFormat) -> None:
    """Raise UsageError unless ``quality`` is None or can be used with the format."""
    if quality is None:
        return
    if image_format == "png":
        raise UsageError(
            "a PNG is always lossless", "leave out quality, or write JPEG or WebP", reason="quality_of_png"
        )
    if not 1 <= quality <= MAX_QUALITY:
        raise out_of_range("quality", quality, 1, MAX_QUALITY)


def read_request(path: Path) -> tuple[Request, dict[str, Any]]:
    """The request and the record in an image file, whichever program wrote it.

    For other programs' recipes the record has what is known of model, model_hash and version, see
    :func:`celebctl_runtime.recipes.reading.read_recipe`.

    Raises:
        NotFoundError: When there is no file.
        InvalidInputError: When it is not an image, has no recipe, or the recipe cannot be drawn.
        IntegrityError: When the recipe is damaged or was written by a newer version.
    """
    recipe = read_recipe(path)
    return recipe.request(), dict(recipe.record)


def _enlarged(image: Image, scale: int) -> Image:
    from PIL import Image

    size = image.width * scale, image.height * scale
    return image.resize(size, Image.Resampling.LANCZOS) if scale > 1 else image


def _encoded(image: Image, image_format: ImageFormat, quality: int | None, texts: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    if image_format == "png":
        image.save(buffer, "PNG", pnginfo=png_info(texts), compress_level=_PNG_LEVEL)
    elif image_format == "jpeg":  # colour at full resolution: faces are small
        exif = exif_block(texts, JPEG_LIMIT)
        image.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True, exif=exif)
    else:
        image.save(buffer, "WEBP", quality=quality, lossless=quality == MAX_QUALITY, exif=exif_block(texts))
    return buffer.getvalue()


def _texts(generated: GeneratedImage, facts: Mapping[str, Any]) -> dict[str, str]:
    """The recipe in all formats, by the keyword of its text chunk. facts: how the image is saved."""
    request, record = generated.request, generated.record
    return {
        OWN: json.dumps(_document(generated, facts)),
        PARAMETERS: format_parameters(request, record),
        INVOKEAI: format_metadata(request, record),
    }


def _document(generated: GeneratedImage, facts: Mapping[str, Any]) -> dict[str, Any]:
    record = {**generated.record, **facts, "created": record_time().strftime("%Y-%m-%dT%H:%M:%SZ")}
    return {"schema": SCHEMA, "request": generated.request.to_json(), "record": record}
