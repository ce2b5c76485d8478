"""list, show, rename and rm: the learned people."""

from datetime import datetime
from typing import TYPE_CHECKING

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import IdentityFile
    from celebctl_runtime.identity import Identity


def list_people(ctx: typer.Context, model_key: options.ForModel = None) -> None:
    """List learned people, with the key of the model each was learned for."""
    from celebctl.library import Library

    console = ctx.ensure_object(CliConsole)
    entries = Library().entries(model_key)
    if not entries:
        console.info(f"no people yet{f' for {model_key}' if model_key else ''}")
        console.suggest("celebctl learn face.jpg --name alice")
    rows = [(entry.name, entry.model_key, _learned(entry), str(entry.path)) for entry in entries]
    people = [dict(zip(("name", "model_key", "learned", "path"), row, strict=True)) for row in rows]
    console.output_table(
        [entry.name for entry in entries],
        {"people": people},
        lambda: console.table("", ("name", "model", "learned", "file"), rows) if rows else None,
    )


def show(ctx: typer.Context, name: options.Person, model_key: options.ForModel = None) -> None:
    """Show one person: file, shapes, hashes and provenance."""
    from celebctl.library import Library

    console = ctx.ensure_object(CliConsole)
    entry = Library().find(name, model_key)
    identity = entry.load()
    facts: dict[str, object] = {
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
    rows = [(key, str(value)) for key, value in facts.items() if key != "provenance"]
    rows += [(f"provenance.{key}", value) for key, value in sorted(identity.provenance.items())]
    lines = [f"{key}: {value}" for key, value in rows]
    console.output_table(lines, facts, lambda: console.table(entry.name, ("property", "value"), rows))
    console.suggest(f'celebctl gen "{entry.name} on the beach"')


def rename(ctx: typer.Context, old: options.Person, new: options.Person, model_key: options.ForModel = None) -> None:
    """Rename a person, in the library and in its bundles."""
    from celebctl.bundles import add_people, bundles_of
    from celebctl.library import Library

    from .naming import name_person

    console = ctx.ensure_object(CliConsole)
    library = Library()
    entry = library.find(old, model_key)

    def rename_in_bundles(identity: "Identity") -> None:
        for bundle in bundles_of(library, entry.model_key):
            if entry.name in bundle.manifest.identities:
                bundle.remove(entry.name)
                add_people(bundle, [identity])

    path = library.rename(old, name_person(new), entry.model_key, rename_in_bundles)
    console.info(f"renamed {entry.name} to {path.stem}")
    facts = {"old": entry.name, "name": path.stem, "model_key": entry.model_key, "path": str(path)}
    console.output([str(path)], facts)
    console.suggest(f'celebctl gen "{path.stem} on the beach"')


def remove(ctx: typer.Context, names: options.People, model_key: options.ForModel = None) -> None:
    """Remove people: their files, checkpoints of interrupted learning, and their rows in the library's bundles."""
    from celebctl.bundles import bundles_of
    from celebctl.library import Library

    from .naming import listed

    console = ctx.ensure_object(CliConsole)
    library = Library()
    entries = [library.find(name, model_key) for name in dict.fromkeys(names)]  # raises before anything is removed
    for entry in entries:
        for bundle in bundles_of(library, entry.model_key):
            if entry.name in bundle.manifest.identities:
                bundle.remove(entry.name)
        library.remove(entry.name, entry.model_key)
    console.info(f"removed {listed([entry.name for entry in entries])}; images and contact sheets are kept")
    console.output([], {"removed": [{"name": entry.name, "model_key": entry.model_key} for entry in entries]})


def _learned(entry: "IdentityFile") -> str:
    return datetime.fromtimestamp(entry.path.stat().st_mtime).astimezone().strftime("%Y-%m-%d %H:%M")
