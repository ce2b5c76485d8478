"""list, show, rename and rm: the learned people."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import IdentityFile, Library
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


def show(
    ctx: typer.Context,
    name: options.Person,
    model_key: options.ForModel = None,
    card: Annotated[
        Path | None,
        typer.Option(
            "--card",
            help="Write an identity card: name, model, date, consent, digest, and portraits if the library has a"
            " bundle of the model.",
            metavar="FILE.png",
        ),
    ] = None,
    force: options.Force = False,
) -> None:
    """Show one person: file, shapes, hashes and provenance."""
    from celebctl.library import Library

    console = ctx.ensure_object(CliConsole)
    library = Library()
    entry = library.find(name, model_key)
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
    if card is not None:
        _write_card(console, library, entry, identity, card, force)
    console.output_table(lines, facts, lambda: console.table(entry.name, ("property", "value"), rows))
    console.suggest(f'celebctl gen "{entry.name} on the beach"')


def _write_card(
    console: CliConsole, library: "Library", entry: "IdentityFile", identity: "Identity", path: Path, force: bool
) -> None:
    """Write an identity card, with portraits where the library has a bundle of the model."""
    from celebctl.bundles import plain_bundle_of
    from celebctl.identity_card import PROMPTS, card_facts, identity_card
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import atomic_write, refuse_existing
    from celebctl_runtime.request import Request

    from .gen import draw, open_pipeline

    if path.suffix.lower() != ".png":
        raise UsageError(f"--card {path} is not a PNG file", "end it in .png")
    refuse_existing(path, force)
    bundle, portraits = plain_bundle_of(library, entry.model_key), []
    if bundle is not None:
        pipe = open_pipeline(library, bundle, None, None)
        requests = [Request(prompt.format(identity.name), seed=1) for prompt in PROMPTS]
        portraits = [one.image for one in draw(console, pipe, requests, overrides=[identity])]
    saved = datetime.fromtimestamp(entry.path.stat().st_mtime).date()
    picture = identity_card(identity, card_facts(identity, entry.model_key, saved), portraits)
    atomic_write(path, picture.save)
    console.info(f"identity card: {path}")


def rename(
    ctx: typer.Context,
    old: options.Person,
    new: Annotated[str, typer.Argument(help="The new name.", metavar="NEW")],
    model_key: options.ForModel = None,
) -> None:
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
