"""Generated images, and PNG files that carry their own recipe.

The PNG has two text chunks: ``celebctl``, a JSON document with the complete request and a record of what ran it, and
``parameters`` in the format of the Stable Diffusion web UI, which many viewers show.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .errors import CelebctlError, IntegrityError, InvalidInputError, NotFoundError, out_of_range
from .files import atomic_write, read_regular, refuse_existing
from .prompting.likeness import FULL_LIKENESS, likeness_to_json
from .request import Request
from .strict_json import parse_json

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMA = 1
CHUNK = "celebctl"
MAX_SCALE = 16
_UI_NAMES = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "lcm": "LCM",
}


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """A generated image.

    Attributes:
        image: PIL image, RGB.
        request: The request that ran, fully resolved.
        record: JSON-ready facts: model, bundle, engine, versions, digests of the people, prompt text that did not fit.
    """

    image: Image
    request: Request
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])


def save_image(
    generated: GeneratedImage, path: Path, *, metadata: bool = True, scale: int = 1, overwrite: bool = False
) -> Path:
    """Write a PNG atomically.

    Args:
        generated: The image to write.
        path: The file.
        metadata: Whether to include the recipe.
        scale: Enlargement, 1 to 16.
        overwrite: Whether to replace an existing file.

    Returns:
        ``path``.

    Raises:
        UsageError: When ``path`` exists and ``overwrite`` is not set, or ``scale`` is out of range.
        SetupError: When the file cannot be written.
    """
    refuse_existing(path, overwrite)
    atomic_write(path, png_bytes(generated, metadata=metadata, scale=scale), overwrite=overwrite)
    return path


def png_bytes(generated: GeneratedImage, *, metadata: bool = True, scale: int = 1) -> bytes:
    """The PNG file's content, see :func:`save_image`. SOURCE_DATE_EPOCH fixes the date in the record."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if not 1 <= scale <= MAX_SCALE:
        raise out_of_range("scale", scale, 1, MAX_SCALE)
    image = generated.image
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    info = PngInfo()
    if metadata:
        info.add_text(CHUNK, json.dumps(_document(generated, scale)))
        info.add_itxt("parameters", _parameters(generated))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_request(path: Path) -> tuple[Request, dict[str, Any]]:
    """The request and the record in a PNG written by celebctl.

    Raises:
        NotFoundError: When there is no file.
        InvalidInputError: When it is not a PNG or has no recipe.
        IntegrityError: When the recipe is damaged or was written by a newer version.
    """
    text = _read_chunk(path)
    try:
        document = cast("dict[str, Any]", parse_json(text))
        version = int(document["schema"])
        if version > SCHEMA:
            raise IntegrityError(
                f"{path} has recipe format {version}; this celebctl reads up to {SCHEMA}",
                "upgrade celebctl",
                reason="newer_format",
                version=version,
            )
        return Request.from_json(document["request"]), dict(document["record"])
    except CelebctlError as error:
        raise IntegrityError(f"the recipe in {path} is damaged: {error.problem}", error.hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"the recipe in {path} is damaged: {error}", "generate the image again") from error


def _read_chunk(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(read_regular(path)), formats=["PNG"]) as image:
            text: str | None = getattr(image, "text", {}).get(CHUNK)
            if text is None:
                image.load()  # chunks may also follow the pixels
                text = getattr(image, "text", {}).get(CHUNK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"there is no file {path}", "check the path", reason="no_image_file", path=path) from error
    except UnidentifiedImageError as error:
        raise _no_recipe(path) from error
    except OSError as error:
        if error.errno is not None:  # not Pillow's
            hint = "check the path and its permissions"
            raise NotFoundError(f"cannot read {path}: {error.strerror}", hint, reason="unreadable") from error
        raise _no_recipe(path) from error
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _no_recipe(path) from error
    if text is None:
        raise InvalidInputError(
            f"{path} has no recipe", "use an image that celebctl saved with metadata", reason="no_recipe", path=path
        )
    return str(text)


def _no_recipe(path: Path) -> InvalidInputError:
    problem, hint = f"{path} is not a readable PNG file", "use an image that celebctl saved"
    return InvalidInputError(problem, hint, reason="no_recipe", path=path)


def _document(generated: GeneratedImage, scale: int) -> dict[str, Any]:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = time.gmtime(int(epoch) if epoch.isdecimal() else None)
    record = {**generated.record, "scale": scale, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", now)}
    return {"schema": SCHEMA, "request": generated.request.to_json(), "record": record}


def _parameters(generated: GeneratedImage) -> str:
    """The web UI's format: prompt, negative prompt, then one line of ``key: value`` pairs."""
    request, record = generated.request, generated.record
    people = cast("Mapping[str, str]", record.get("identities", {}))
    pairs: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": _UI_NAMES.get(request.sampler, request.sampler),
        "CFG scale": f"{request.guidance or 0:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": str(record.get("table_hash", ""))[:10],
        "Model": record.get("model", ""),
        "Likeness": "" if request.likeness == FULL_LIKENESS else json.dumps(likeness_to_json(request.likeness)),
        "Layout": request.layout,
        "Toward": request.toward,
        "Blend": f"{request.blend:g}" if request.toward else "",
        "TI hashes": ", ".join(f"{name}: {digest[:12]}" for name, digest in people.items()),
        "Version": f"celebctl {record.get('celebctl', '')}",
    }
    lines = [request.prompt]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in pairs.items() if value != ""))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value
