"""Drawing an image again from its recipe: with which bundle, and whether it came out the same. Torch-free."""

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from celebctl.bundles import find_bundle
from celebctl.library import Library
from celebctl.pipeline import find_source_bundle, no_bundle, same_pixels
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import CelebctlError, NotFoundError
from celebctl_runtime.image_files import ImageFile
from celebctl_runtime.picture import DEFAULT_QUALITY, GeneratedImage, Marks, encode_image
from celebctl_runtime.recipes.recipe import Recipe
from celebctl_runtime.watermark import PUBLIC_KEY

_LEAST_HASH = 8  # digits of a hash that identify a model


@dataclass(frozen=True)
class Comparison:
    """An image file and the image drawn from its recipe.

    Attributes:
        identical: Whether all RGB values are equal. Of a JPEG or lossy WebP: after encoding the new image in the same
            way, so equality does not prove that the pixels were equal before they were encoded.
        lossy: Whether the file's format loses information.
        psnr: Peak signal-to-noise ratio in dB, infinite for equal images; None when the sizes differ.
    """

    identical: bool
    lossy: bool
    psnr: float | None


def marks_of(recipe: Recipe, marks: Marks) -> Marks:
    """The marks of an image that is drawn again: a watermark if it had one, with the user's key if that was private.

    The recipes of other programs do not say; then they are the user's, `marks`.
    """
    if recipe.format != "celebctl":
        return marks
    keys = {"public": PUBLIC_KEY, "private": marks.watermark_key}
    return replace(marks, watermark_key=keys.get(str(recipe.record.get("watermark"))))


def compare_with_file(file: ImageFile, recipe: Recipe, again: GeneratedImage, marks: Marks) -> Comparison:
    """Compare a file with the image drawn from its own recipe (of the format "celebctl").

    marks: Those of the file (`marks_of`).
    """
    scale, stored = int(recipe.record.get("scale", 1)), recipe.record.get("quality")
    quality = stored if isinstance(stored, int) and 1 <= stored <= 100 else DEFAULT_QUALITY
    name = {"JPEG": "jpeg", "WEBP": "webp"}.get(file.format)
    if name == "jpeg" or name == "webp":
        content = encode_image(again, name, metadata=False, scale=scale, quality=quality, marks=marks)
    else:
        content = encode_image(again, metadata=False, scale=scale, marks=marks)
    with Image.open(io.BytesIO(content)) as opened:
        drawn = opened.convert("RGB")
    lossy = name == "jpeg" or (name == "webp" and quality < 100)
    return Comparison(same_pixels(file.image, drawn), lossy, _psnr(file.image, drawn))


def find_recipe_bundle(library: Library, recipe: Recipe, model: str | None = None) -> Bundle:
    """The library's bundle for a recipe: of the model it names, or of `model`.

    The model of another program's recipe matches a bundle by its name or file name, upper and lower case alike, or, in
    a recipe of celebctl, by the hash of its token table.

    Raises:
        NotFoundError: There is no such bundle: reason "no_bundle", or "no_bundle_of_recipe" where the recipe of another
            program names none that is known, with the values `program` and `model`.
    """
    if model is not None:
        path = find_bundle(library, model)
        if path is None:
            raise no_bundle(model)
        return Bundle.open(path, verify="quick")
    if recipe.format == "celebctl":
        return find_source_bundle(library, recipe.record)
    for path in library.bundles():
        try:
            bundle = Bundle.open(path, verify="none")
        except CelebctlError:
            continue  # a damaged bundle must not hide the others
        if _is_of_model(bundle, recipe):
            bundle.verify("quick")
            return bundle
    named = str(recipe.record.get("model") or "")
    raise NotFoundError(
        f"the recipe is of {recipe.program}; there is no bundle of its model{f' {named!r}' if named else ''}",
        "name a model or a bundle",
        reason="no_bundle_of_recipe",
        program=recipe.program,
        model=named,
    )


def _is_of_model(bundle: Bundle, recipe: Recipe) -> bool:
    model = bundle.manifest.model
    if bundle.manifest.loras:
        return False
    name, digest = (str(recipe.record.get(key) or "").casefold() for key in ("model", "model_hash"))
    names = {model.name.casefold(), model.source.casefold(), Path(model.source).stem.casefold()}
    return bool(name and name in names) or (len(digest) >= _LEAST_HASH and model.table_hash.startswith(digest))


def _psnr(one: Image.Image, other: Image.Image) -> float | None:
    if one.size != other.size:
        return None
    error = float(np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
