"""The bundles of a library: finding the one of a model, and keeping the people in it up to date. Torch-free."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from celebctl.library import Library, format_model_key, origin_of
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import CelebctlError, IntegrityError
from celebctl_runtime.prompting.prompt import Mention, split_prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from celebctl_runtime.bundle.manifest import Manifest
    from celebctl_runtime.identity import Identity

_SAME_ROW = 1e-3  # relative distance up to which rows are equal but for the rounding of float16


def find_bundle(library: Library, model: str) -> Path | None:
    """The newest bundle in the library exported from `model` (name, folder, file or hub id), or None.

    A bundle copied into the library from elsewhere matches by the model name or source in its manifest. Bundles with
    LoRAs are not the model's own: they are opened by their folder. A damaged bundle is returned when there is no other.
    """
    wanted, damaged = origin_of(model), None
    for path in library.bundles():
        origin = library.origin(path)
        if origin not in (wanted, None):
            continue
        manifest = _manifest(path)
        known = origin == wanted or (manifest is not None and model in (manifest.model.name, manifest.model.source))
        if known and manifest is None:
            damaged = damaged or path
        elif known and manifest is not None and not manifest.loras:
            return path
    return damaged


def bundles_of(library: Library, model_key: str) -> list[Bundle]:
    """The library's bundles of the model with this key; bundles that cannot be opened are skipped."""
    bundles: list[Bundle] = []
    for path in library.bundles():
        try:
            bundle = Bundle.open(path, verify="none")
        except CelebctlError:
            continue  # a damaged bundle must not prevent learning, renaming or removing
        if model_key_of(bundle) == model_key:
            bundles.append(bundle)
    return bundles


def plain_bundle_of(library: Library, model_key: str) -> Bundle | None:
    """The newest of `bundles_of` that has no LoRAs, or None."""
    return next((bundle for bundle in bundles_of(library, model_key) if not bundle.manifest.loras), None)


def model_key_of(bundle: Bundle) -> str:
    """The model key of the identities that fit this bundle."""
    return format_model_key(bundle.manifest.model.family, bundle.manifest.model.table_hash)


def add_people(bundle: Bundle, people: Sequence["Identity"]) -> list[str]:
    """Add identities to the bundle, or replace those stored with other embeddings; returns the names changed."""
    changed: list[str] = []
    for identity in people:
        stored = bundle.manifest.identities.get(identity.name)
        if stored is None:
            bundle.add(identity)
        elif stored.digest != identity.digest:
            bundle.replace(identity)
        else:
            continue
        changed.append(identity.name)
    return changed


def add_mentioned_people(bundle: Bundle, library: Library, prompts: Iterable[str]) -> list[str]:
    """Add the library's identities that `prompts` mention to the bundle; returns the names added or updated.

    Raises NotFoundError for a <name> that is in neither the bundle nor the library.
    """
    return add_people(bundle, mentioned_people(bundle, library, prompts))


def mentioned_people(bundle: Bundle, library: Library, prompts: Iterable[str]) -> "list[Identity]":
    """The library's identities for this bundle that `prompts` mention, sorted by name.

    Raises NotFoundError for a <name> that is in neither the bundle nor the library.
    """
    entries = {entry.name: entry for entry in library.entries(model_key_of(bundle))}
    mentioned = _mentions(prompts, {*bundle.names, *entries})
    return [entry.load() for name, entry in entries.items() if name in mentioned]


def people_of_other_models(bundle: Bundle, library: Library, prompts: Iterable[str]) -> list[tuple[str, str]]:
    """(name, model key) of identities that `prompts` mention and that exist for other models only."""
    usable = {*bundle.names, *library.names(model_key_of(bundle))}
    others = {entry.name: entry.model_key for entry in library.entries() if entry.name not in usable}
    return [(name, others[name]) for name in _mentions(prompts, {*usable, *others}) if name in others]


def refuse_other_models(
    library: Library, names: Iterable[str], model_key: str, tables: "Callable[[], Sequence[NDArray[np.float32]]]"
) -> None:
    """Raise IntegrityError for a name that is known for other models only, with the distance of the token tables.

    Args:
        library: Where the identities are.
        names: Of identities.
        model_key: Of the model that they are wanted for.
        tables: Returns its token tables, (V, D) each; called when there is such a name.
    """
    known = set(library.names(model_key))
    others = {entry.name: entry.model_key for entry in library.entries() if entry.name not in known}
    for name in names:
        if name in others:
            difference = table_difference(library, others[name], tables())
            raise IntegrityError(
                f"{name} was learned for another model ({others[name]}) than this one ({model_key})"
                + (f": {difference}" if difference else ""),
                f"learn {name} for this model, or import the embedding for it",
                reason="other_token_table",
                name=name,
                model_key=others[name],
            )


def table_difference(library: Library, model_key: str, tables: "Sequence[NDArray[np.float32]]") -> str:
    """How far token tables (V, D) are from those of another model, in words; "" unless it has a bundle in the library.

    A row differs when the distance is more than 0.1 % of its length, which is more than float16 rounds.
    """
    bundle = plain_bundle_of(library, model_key)
    if bundle is None:
        return ""
    theirs = bundle.vocabularies()
    shapes, other_shapes = [[table.shape for table in some] for some in (tables, theirs)]
    if shapes != other_shapes:
        return f"its token table is {_sizes(other_shapes)}, this one's {_sizes(shapes)}"
    distances = np.concatenate([
        np.linalg.norm(ours - other, axis=1) / np.maximum(np.linalg.norm(other, axis=1), 1e-12)
        for ours, other in zip(tables, theirs, strict=True)
    ])  # fmt: skip
    changed = distances[distances > _SAME_ROW]
    if not len(changed):
        return f"the token tables differ only by rounding (all {len(distances)} rows)"
    return f"{len(changed)} of {len(distances)} rows of the token table differ, by {changed.mean():.1%} on average"


def _sizes(shapes: Iterable[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in shapes)


def _mentions(prompts: Iterable[str], names: set[str]) -> dict[str, None]:
    """Names in the order of their first mention."""
    parts = (part for prompt in prompts for part in split_prompt(prompt, names))
    return dict.fromkeys(part.name for part in parts if isinstance(part, Mention))


def _manifest(path: Path) -> "Manifest | None":
    """The manifest of a bundle; None for a damaged one."""
    try:
        return Bundle.open(path, verify="none").manifest
    except CelebctlError:
        return None
