"""What a file or folder is: identities and embeddings in any format, bundles, models, images with a recipe."""

import errno
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from celebctl.textual_inversion import FAMILIES, EmbeddingFile, flaws, read_contents
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import CelebctlError, InvalidInputError, NotFoundError
from celebctl_runtime.identity import TOKENS, Identity
from celebctl_runtime.image_files import looks_like_image, read_image
from celebctl_runtime.recipes.reading import recipe_in

Facts = dict[str, Any]

_NO_FAMILY = "no well-known model has this width"
# CLIP's token embeddings are initialised with this standard deviation (initialize_parameters in CLIP's model.py) and
# stay of that order.
_CLIP_STD = 0.02


def describe(path: Path | str) -> Facts:
    """Describe a file or folder without running code from it.

    Returns:
        JSON-ready facts: "path", "kind" (identity, embedding, coefficients, basis, bundle, model, picture or unknown),
        "format", what the kind has (shapes, norms, hashes, names; of a picture the recipe), and for files of tensors
        and pictures "warnings", sentences.

    Raises:
        NotFoundError: There is no such file.
        IntegrityError: The file or its recipe is damaged, or a pickle that would run code.
        InvalidInputError: An image that cannot be read.

    Example:
        >>> facts = describe(bundle_path)
        >>> facts["kind"], facts["people"]
        ('bundle', ['alice'])
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"there is no file {path}", "check the path", reason="missing_file", path=path)
    facts: Facts = {"path": str(path)}
    if path.is_dir() or path.name == "manifest.json":
        return facts | _describe_folder(path if path.is_dir() else path.parent)
    try:
        if not path.is_file():
            raise OSError(errno.ENXIO, "it is a device or pipe")
        with path.open("rb") as file:
            is_image = looks_like_image(file.read(12))
    except OSError as error:
        hint = "check the path and its permissions"
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint, reason="unreadable", path=path) from error
    read: Callable[[Path], Facts] = _describe_image if is_image else _describe_tensors
    return facts | read(path)


def _describe_folder(folder: Path) -> Facts:
    if (folder / "model_index.json").is_file():
        return {"kind": "model", "format": "diffusers folder"}
    if not (folder / "manifest.json").is_file():
        return {"kind": "unknown", "format": "a folder that is neither a bundle nor a model"}
    manifest = Bundle.open(folder, verify="none").manifest
    return {
        "kind": "bundle",
        "format": f"celebctl bundle, version {manifest.schema_version}",
        "model": manifest.model.name,
        "family": manifest.model.family,
        "table_hash": manifest.model.table_hash,
        "dtype": manifest.dtype,
        "prediction": str(manifest.scheduler.get("prediction_type", "epsilon")),
        "clip_skip": manifest.model.clip_skip,
        "vae": manifest.model.vae,
        "loras": [asdict(lora) for lora in manifest.loras],
        "people": sorted(manifest.identities),
        "created_by": dict(manifest.created_by),
    }


def _describe_image(path: Path) -> Facts:
    """The image and its recipe; in "warnings" what of the recipe celebctl cannot draw."""
    file = read_image(path)
    facts: Facts = {"kind": "picture", "pixels": list(file.image.size), "mode": file.mode}
    if "sd-ti-embedding" in file.text:
        warning = "celebctl imports embeddings from .safetensors and .pt files only"
        return facts | {"format": "PNG that holds an embedding of a Stable Diffusion web UI", "warnings": [warning]}
    try:
        recipe = recipe_in(file, path)
    except InvalidInputError as error:
        if error.reason != "no_recipe":
            raise
        return facts | {"format": f"{file.format} without a recipe", "warnings": []}
    facts |= {"format": f"{file.format} with a recipe of {recipe.program}", "recipe": recipe.format}
    facts |= _stated(recipe.values)
    warnings = [f"not reproduced: {', '.join(recipe.ignored)}"] if recipe.ignored else []
    try:
        recipe.request()
    except CelebctlError as error:
        warnings.append(f"cannot be drawn again as it is: {error.problem}")
    if recipe.format == "celebctl":
        return facts | {"made_with": _stated(recipe.record), "warnings": warnings}
    return facts | _stated(recipe.record) | {"warnings": warnings}


def _stated(entries: Mapping[str, Any]) -> Facts:
    """The entries that say something."""
    return {key: value for key, value in entries.items() if value not in ("", None, [], {}, ())}


def _describe_tensors(path: Path) -> Facts:
    contents = read_contents(path)
    facts: Facts = {"kind": contents.kind, "format": contents.layout}
    if contents.name or contents.origin:
        facts["name"] = contents.origin.get("name") or contents.name
    if contents.dtype:
        facts["dtype"] = contents.dtype
    if len(contents.people) > 1:
        facts["people"] = len(contents.people)
    if contents.people:
        facts |= _shapes(contents)
    if contents.origin:
        facts["made_for"] = {key: value for key, value in contents.origin.items() if key != "name"}
    if contents.identity is not None:
        facts |= _describe_identity(contents.identity)
    return facts | {"warnings": _warnings(contents)}


def _describe_identity(identity: Identity) -> Facts:
    return {
        "family": identity.family,
        "coefficients": [list(array.shape) for array in identity.coefficients],
        "digest": identity.digest,
        "basis_hash": identity.basis_hash,
        "table_hash": identity.table_hash,
        "provenance": dict(identity.provenance),
    }


def _shapes(contents: EmbeddingFile) -> Facts:
    """Shapes and norms, under the names that suit the kind of file."""
    first = contents.people[0]
    if contents.kind == "basis":
        _, components, width = first[0].shape
        return {"components": components - 1, "widths": [width], "likely_for": FAMILIES.get((width,), _NO_FAMILY)}
    norms = [[_norm(row) for row in array] for person in contents.people for array in person]
    if contents.kind == "coefficients":
        return {"coefficients": list(first[0].shape), "norms": norms}
    widths = tuple(array.shape[1] for array in first)
    facts: Facts = {"vectors": len(first[0]), "widths": list(widths), "norms": norms}
    if contents.kind == "embedding":
        facts["likely_for"] = FAMILIES.get(widths, _NO_FAMILY)
    return facts


def _norm(row: Any) -> float | None:
    """The Euclidean norm to four digits; None where it is not finite, because JSON has no NaN."""
    norm = float(np.linalg.norm(row))
    return float(f"{norm:.4g}") if np.isfinite(norm) else None


def _warnings(contents: EmbeddingFile) -> list[str]:
    """What is wrong or unusual about the arrays, a sentence each."""
    if contents.kind == "basis":
        return []
    warnings: list[str] = []
    for number, person in enumerate(contents.people, 1):
        prefix = f"person {number}: " if len(contents.people) > 1 else ""
        for array in person:
            warnings += [prefix + sentence for sentence in (*flaws(array), *_scale_warnings(contents.kind, array))]
    vectors = {len(array) for person in contents.people for array in person}
    if contents.kind == "embedding" and vectors != {TOKENS}:
        warnings.append(f"celebctl imports embeddings of two vectors; this one has {max(vectors)}")
    return warnings


def _scale_warnings(kind: str, array: Any) -> list[str]:
    """Whether rows are far longer than usual.

    The release initialises coefficients as unit normal noise, and learned ones have a norm of about 1.
    """
    longest, root = float(np.linalg.norm(array, axis=-1).max()), float(np.sqrt(array.shape[-1]))
    if kind in ("embedding", "identity") and np.isfinite(longest) and longest > 10 * _CLIP_STD * root:
        return [f"a vector has norm {longest:.3g}; a text encoder's own tokens have about {_CLIP_STD * root:.1g}"]
    if kind == "coefficients" and np.isfinite(longest) and longest > root / 2:
        return ["the coefficients have the norm of the noise that learning starts from: probably not a learned person"]
    return []
