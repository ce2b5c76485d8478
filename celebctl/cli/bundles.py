"""Which bundle to make pictures with, and the people in it. Torch-free: `gen` comes through here each time."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from celebctl.library import Library, format_model_key, origin_of
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import CelebctlError
from celebctl_runtime.prompting.prompt import Mention, split_prompt

if TYPE_CHECKING:
    from celebctl_runtime.identity import Identity


def find_bundle(library: Library, model: str) -> Path | None:
    """The newest bundle in the library that was made of `model`, or None.

    A bundle that was brought here from elsewhere is known by what its manifest says.
    """
    wanted = origin_of(model)
    for path in library.bundles():
        origin = library.origin(path)
        if origin == wanted or (origin is None and model in _said_origins(path)):
            return path
    return None


def bundles_of(library: Library, model_key: str) -> list[Bundle]:
    """The library's bundles that people of one shelf fit."""
    bundles: list[Bundle] = []
    for path in library.bundles():
        try:
            bundle = Bundle.open(path, verify="none")
        except CelebctlError:
            continue  # a bundle too broken to open keeps nobody from learning, renaming or forgetting
        if model_key_of(bundle) == model_key:
            bundles.append(bundle)
    return bundles


def model_key_of(bundle: Bundle) -> str:
    """The shelf whose people fit this bundle."""
    return format_model_key(bundle.manifest.model.family, bundle.manifest.model.table_hash)


def add_mentioned_people(bundle: Bundle, library: Library, prompts: Iterable[str]) -> list[str]:
    """Put the people whom `prompts` name, and whom the library knows better, into the bundle; returns their names.

    Raises NotFoundError for a <name> that neither knows.
    """
    model_key = model_key_of(bundle)
    names = {*bundle.manifest.identities, *library.names(model_key)}
    mentioned = {part.name for prompt in prompts for part in split_prompt(prompt, names) if isinstance(part, Mention)}
    known = [entry for entry in library.entries(model_key) if entry.name in mentioned]
    return add_people(bundle, [entry.load() for entry in known])


def people_of_other_models(bundle: Bundle, library: Library, prompts: Iterable[str]) -> list[tuple[str, str]]:
    """(name, shelf) of people whom `prompts` name, but who were learned for another model only."""
    at_home = {*bundle.manifest.identities, *library.names(model_key_of(bundle))}
    away = {entry.name: entry.model_key for entry in library.entries() if entry.name not in at_home}
    names = {*at_home, *away}
    mentioned = [part.name for prompt in prompts for part in split_prompt(prompt, names) if isinstance(part, Mention)]
    return [(name, away[name]) for name in dict.fromkeys(mentioned) if name in away]


def add_people(bundle: Bundle, people: Sequence["Identity"]) -> list[str]:
    """Add people to the bundle, or replace those it knows with other numbers; returns whom it changed."""
    changed: list[str] = []
    for identity in people:
        baked = bundle.manifest.identities.get(identity.name)
        if baked is None:
            bundle.add(identity)
        elif baked.digest != identity.digest:
            bundle.replace(identity)
        else:
            continue
        changed.append(identity.name)
    return changed


def _said_origins(path: Path) -> set[str]:
    try:
        model = Bundle.open(path, verify="none").manifest.model
    except CelebctlError:
        return set()
    return {model.name, model.source}
