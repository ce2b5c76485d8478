"""Which bundle to make pictures with, and the people in it. Torch-free: `gen` comes through here each time."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from celebctl.library import Library, origin_of, shelf_name
from celebctl_runtime.bundle import Bundle
from celebctl_runtime.errors import CelebctlError
from celebctl_runtime.prompt import Mention, split_prompt

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


def bundles_of(library: Library, shelf: str) -> list[Bundle]:
    """The library's bundles that people of one shelf fit."""
    bundles: list[Bundle] = []
    for path in library.bundles():
        try:
            bundle = Bundle.open(path, verify="none")
        except CelebctlError:
            continue  # a bundle too broken to open keeps nobody from learning, renaming or forgetting
        if shelf_of(bundle) == shelf:
            bundles.append(bundle)
    return bundles


def shelf_of(bundle: Bundle) -> str:
    """The shelf whose people fit this bundle."""
    return shelf_name(bundle.manifest.model.family, bundle.manifest.model.table_hash)


def bring_mentioned(bundle: Bundle, library: Library, prompts: Iterable[str]) -> list[str]:
    """Put the people whom `prompts` name, and whom the library knows better, into the bundle; returns their names.

    Raises NotFound for a <name> that neither knows.
    """
    shelf = shelf_of(bundle)
    names = {*bundle.manifest.identities, *library.names(shelf)}
    mentioned = {part.name for prompt in prompts for part in split_prompt(prompt, names) if isinstance(part, Mention)}
    known = [entry for entry in library.entries(shelf) if entry.name in mentioned]
    return take_in(bundle, [entry.load() for entry in known])


def strangers(bundle: Bundle, library: Library, prompts: Iterable[str]) -> list[tuple[str, str]]:
    """(name, shelf) of people whom `prompts` name, but who were learned for another model only."""
    at_home = {*bundle.manifest.identities, *library.names(shelf_of(bundle))}
    away = {entry.name: entry.shelf for entry in library.entries() if entry.name not in at_home}
    names = {*at_home, *away}
    mentioned = [part.name for prompt in prompts for part in split_prompt(prompt, names) if isinstance(part, Mention)]
    return [(name, away[name]) for name in dict.fromkeys(mentioned) if name in away]


def take_in(bundle: Bundle, people: Sequence["Identity"]) -> list[str]:
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
