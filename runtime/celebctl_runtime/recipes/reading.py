"""Reads the recipe in an image, whichever program wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from celebctl_runtime.errors import CelebctlError, IntegrityError, InvalidInputError
from celebctl_runtime.image_files import ImageFile, read_image
from celebctl_runtime.request import Request
from celebctl_runtime.strict_json import parse_json

from .carriers import INVOKEAI, OWN, PARAMETERS, texts_in
from .comfyui import parse_prompt_graph
from .infotext import parse_parameters
from .invokeai import parse_dream, parse_metadata, parse_sd_metadata
from .recipe import MAX_TEXT, Recipe

SCHEMA = 1
MAX_SCALE = 16  # how many times an image can be enlarged
_Parsed = TypeVar("_Parsed")


def read_recipe(path: Path | str) -> Recipe:
    """The recipe in an image file: PNG text chunks or EXIF, of celebctl, the web UI, InvokeAI or ComfyUI.

    Of several recipes in a file the first in this order is read: celebctl, InvokeAI, web UI, ComfyUI.

    Raises:
        InvalidInputError: There is no recipe in it (reason "no_recipe"), or it is not a readable image.
        IntegrityError: The recipe is damaged ("recipe_damaged"), or was written by a newer version ("newer_format").
        NotFoundError: There is no such file.
    """
    return recipe_in(read_image(path), path)


def recipe_in(file: ImageFile, path: Path | str) -> Recipe:
    """As :func:`read_recipe`, for a file that was read; ``path`` is used in messages."""
    texts = texts_in(file)
    for key, parse in _PARSERS.items():
        if key in texts and (recipe := parse_text(texts[key], path, parse)) is not None:
            return recipe
    raise InvalidInputError(
        f"{path} has no recipe", "use an image that was saved with its metadata", reason="no_recipe", path=path
    )


def parse_text(text: str, path: Path | str, parse: Callable[[str], _Parsed]) -> _Parsed:
    """What ``parse`` returns for a text in the file ``path``. Raises IntegrityError: it is damaged, or newer."""
    try:
        return parse(_checked(text))
    except CelebctlError as error:
        if error.reason == "newer_format":
            raise
        raise _damaged(path, error.problem) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path | str, cause: str) -> IntegrityError:
    problem = f"the recipe in {path} is damaged: {cause[:200]}"
    return IntegrityError(problem, "generate the image again", reason="recipe_damaged", path=path)


def _checked(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise ValueError(f"it has {len(text)} characters; the limit is {MAX_TEXT}")
    if "\0" in text:
        raise ValueError("it contains a NUL character")
    text.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair
    return text


def _parse_document(text: str) -> Recipe:
    return recipe_of_document(cast("dict[str, Any]", parse_json(text)))


def recipe_of_document(document: Mapping[str, Any]) -> Recipe:
    """The recipe in celebctl's document. Raises IntegrityError, UsageError, ValueError, KeyError, TypeError."""
    version = int(document["schema"])
    if version > SCHEMA:
        raise IntegrityError(
            f"the recipe has format {version}; this celebctl reads up to {SCHEMA}",
            "upgrade celebctl",
            reason="newer_format",
            version=version,
        )
    request, record = Request.from_json(document["request"]), _checked_record(document["record"])
    return Recipe("celebctl", request.to_json(), record)


def _checked_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose entries that are used again have their types. Raises ValueError, TypeError or AttributeError."""
    scale, people = record.get("scale", 1), record.get("identities", {})
    if type(scale) is not int or not 1 <= scale <= MAX_SCALE:
        raise ValueError(f"its scale is {str(scale)[:40]}")
    if not all(isinstance(digest, str) for digest in people.values()):
        raise ValueError("its people have digests that are no text")
    return dict(record)


#: Keyword -> parser; the first that is found counts.
_PARSERS: dict[str, Callable[[str], Recipe | None]] = {
    OWN: _parse_document,
    INVOKEAI: parse_metadata,
    "sd-metadata": parse_sd_metadata,
    "Dream": parse_dream,
    PARAMETERS: parse_parameters,
    "prompt": parse_prompt_graph,
}
