"""list, show, rename, forget: the people you know."""

from datetime import datetime
from typing import TYPE_CHECKING

import typer

from . import options
from .console import Desk

if TYPE_CHECKING:
    from celebctl.library import Entry


def list_people(ctx: typer.Context, shelf: options.Shelf = None) -> None:
    """Who you know, and for which model."""
    from celebctl.library import Library

    desk = ctx.ensure_object(Desk)
    library = Library()
    entries = library.entries(shelf)
    if not entries:
        desk.tell(f"nobody{f' for {shelf}' if shelf else ''} yet")
        desk.next("celebctl learn face.jpg --name alice")
    rows = [(entry.name, entry.shelf, _learned(entry), str(entry.path)) for entry in entries]
    people = [dict(zip(("name", "shelf", "learned", "path"), row, strict=True)) for row in rows]
    desk.give_list(
        [entry.name for entry in entries],
        {"people": people},
        lambda: desk.table("", ("name", "model", "learned", "file"), rows) if rows else None,
    )


def show(ctx: typer.Context, name: options.Person, shelf: options.Shelf = None) -> None:
    """One person: their file, numbers and where they come from."""
    from celebctl.library import Library

    desk = ctx.ensure_object(Desk)
    entry = Library().find(name, shelf)
    facts = _facts(entry)
    rows = [(key, str(value)) for key, value in facts.items() if key != "provenance"]
    rows += [(f"provenance.{key}", value) for key, value in sorted(entry.load().provenance.items())]
    desk.give_list(
        [f"{key}: {value}" for key, value in rows], facts, lambda: desk.table(entry.name, ("what", "value"), rows)
    )
    desk.next(f'celebctl gen "{entry.name} on the beach"')


def rename(ctx: typer.Context, old: options.Person, new: options.Person, shelf: options.Shelf = None) -> None:
    """Give somebody another name, here and in the exported bundle."""
    from celebctl.library import Library, shelf_name

    from .bundles import bundles_of, take_in
    from .naming import name_person

    desk = ctx.ensure_object(Desk)
    library = Library()
    entry = library.find(old, shelf)
    path = library.rename(old, name_person(new), entry.shelf)
    identity = library.load(path.stem, entry.shelf)
    for bundle in bundles_of(library, shelf_name(identity.family, identity.table_hash)):
        if entry.name in bundle.manifest.identities:
            bundle.remove(entry.name)
            take_in(bundle, [identity])
    desk.tell(f"{entry.name} is now {path.stem}")
    desk.give([str(path)], {"old": entry.name, "name": path.stem, "shelf": entry.shelf, "path": str(path)})
    desk.next(f'celebctl gen "{path.stem} on the beach"')


def forget(ctx: typer.Context, names: options.People, shelf: options.Shelf = None) -> None:
    """Delete people: their files, what unfinished learning left, and their rows in exported bundles."""
    from celebctl.library import Library

    from .bundles import bundles_of
    from .naming import listed

    desk = ctx.ensure_object(Desk)
    library = Library()
    entries = [library.find(name, shelf) for name in dict.fromkeys(names)]  # all are known, or nothing is deleted
    for entry in entries:
        for bundle in bundles_of(library, entry.shelf):
            if entry.name in bundle.manifest.identities:
                bundle.remove(entry.name)
        library.forget(entry.name, entry.shelf)
    desk.tell(f"forgot {listed([entry.name for entry in entries])}; pictures and contact sheets are left alone")
    desk.give([], {"forgotten": [{"name": entry.name, "shelf": entry.shelf} for entry in entries]})


def _learned(entry: "Entry") -> str:
    return datetime.fromtimestamp(entry.path.stat().st_mtime).astimezone().strftime("%Y-%m-%d %H:%M")


def _facts(entry: "Entry") -> dict[str, object]:
    identity = entry.load()
    return {
        "name": identity.name,
        "path": str(entry.path),
        "bytes": entry.path.stat().st_size,
        "learned": _learned(entry),
        "model": entry.shelf,
        "coefficients": sum(array.size for array in identity.coefficients),
        "embeddings": [list(array.shape) for array in identity.embeddings],
        "digest": identity.digest,
        "basis_hash": identity.basis_hash,
        "table_hash": identity.table_hash,
        "provenance": dict(identity.provenance),
    }
