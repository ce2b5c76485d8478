"""list, show, rename, forget: the people you know."""

from datetime import datetime
from typing import TYPE_CHECKING

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import IdentityFile


def list_people(ctx: typer.Context, model_key: options.ForModel = None) -> None:
    """Who you know, and for which model."""
    from celebctl.library import Library

    console = ctx.ensure_object(CliConsole)
    library = Library()
    entries = library.entries(model_key)
    if not entries:
        console.info(f"nobody{f' for {model_key}' if model_key else ''} yet")
        console.suggest("celebctl learn face.jpg --name alice")
    rows = [(entry.name, entry.model_key, _learned(entry), str(entry.path)) for entry in entries]
    people = [dict(zip(("name", "shelf", "learned", "path"), row, strict=True)) for row in rows]
    console.output_table(
        [entry.name for entry in entries],
        {"people": people},
        lambda: console.table("", ("name", "model", "learned", "file"), rows) if rows else None,
    )


def show(ctx: typer.Context, name: options.Person, model_key: options.ForModel = None) -> None:
    """One person: their file, numbers and where they come from."""
    from celebctl.library import Library

    console = ctx.ensure_object(CliConsole)
    entry = Library().find(name, model_key)
    facts = _facts(entry)
    rows = [(key, str(value)) for key, value in facts.items() if key != "provenance"]
    rows += [(f"provenance.{key}", value) for key, value in sorted(entry.load().provenance.items())]
    console.output_table(
        [f"{key}: {value}" for key, value in rows], facts, lambda: console.table(entry.name, ("what", "value"), rows)
    )
    console.suggest(f'celebctl gen "{entry.name} on the beach"')


def rename(ctx: typer.Context, old: options.Person, new: options.Person, model_key: options.ForModel = None) -> None:
    """Give somebody another name, here and in the exported bundle."""
    from celebctl.library import Library, format_model_key

    from .bundles import add_people, bundles_of
    from .naming import name_person

    console = ctx.ensure_object(CliConsole)
    library = Library()
    entry = library.find(old, model_key)
    path = library.rename(old, name_person(new), entry.model_key)
    identity = library.load(path.stem, entry.model_key)
    for bundle in bundles_of(library, format_model_key(identity.family, identity.table_hash)):
        if entry.name in bundle.manifest.identities:
            bundle.remove(entry.name)
            add_people(bundle, [identity])
    console.info(f"{entry.name} is now {path.stem}")
    console.output([str(path)], {"old": entry.name, "name": path.stem, "shelf": entry.model_key, "path": str(path)})
    console.suggest(f'celebctl gen "{path.stem} on the beach"')


def forget(ctx: typer.Context, names: options.People, model_key: options.ForModel = None) -> None:
    """Delete people: their files, what unfinished learning left, and their rows in exported bundles."""
    from celebctl.library import Library

    from .bundles import bundles_of
    from .naming import listed

    console = ctx.ensure_object(CliConsole)
    library = Library()
    entries = [library.find(name, model_key) for name in dict.fromkeys(names)]  # all are known, or nothing is deleted
    for entry in entries:
        for bundle in bundles_of(library, entry.model_key):
            if entry.name in bundle.manifest.identities:
                bundle.remove(entry.name)
        library.forget(entry.name, entry.model_key)
    console.info(f"forgot {listed([entry.name for entry in entries])}; pictures and contact sheets are left alone")
    console.output([], {"forgotten": [{"name": entry.name, "shelf": entry.model_key} for entry in entries]})


def _learned(entry: "IdentityFile") -> str:
    return datetime.fromtimestamp(entry.path.stat().st_mtime).astimezone().strftime("%Y-%m-%d %H:%M")


def _facts(entry: "IdentityFile") -> dict[str, object]:
    identity = entry.load()
    return {
        "name": identity.name,
        "path": str(entry.path),
        "bytes": entry.path.stat().st_size,
        "learned": _learned(entry),
        "model": entry.model_key,
        "coefficients": sum(array.size for array in identity.coefficients),
        "embeddings": [list(array.shape) for array in identity.embeddings],
        "digest": identity.digest,
        "basis_hash": identity.basis_hash,
        "table_hash": identity.table_hash,
        "provenance": dict(identity.provenance),
    }
