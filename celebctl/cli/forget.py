"""forget: remove every trace of a person, and say what was removed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.forgetting import Forgotten


def forget(
    ctx: typer.Context,
    name: options.Person,
    bundles: Annotated[
        list[Path] | None,
        typer.Option("--bundle", help="A bundle outside the library; repeat it for several.", metavar="DIR"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed, and remove nothing.")] = False,
    model_key: options.ForModel = None,
) -> None:
    """Remove every trace of a person: identities, rows in bundles, checkpoints, contact sheets in the library.

    Afterwards all files of the library are searched for the person's embedding. Images, copies and backups elsewhere
    are out of reach. Exit code 5: the embedding is still in a file, which is named, or a file could not be searched.
    """
    from celebctl.forgetting import Forgotten, find_traces
    from celebctl.forgetting import forget as forget_person
    from celebctl.library import Library
    from celebctl_runtime.errors import IntegrityError

    console = ctx.ensure_object(CliConsole)
    library, places = Library(), bundles or []
    if dry_run:
        removed = find_traces(library, name, places, model_key)
        if not removed:
            library.find(name, model_key)  # raises
        done = Forgotten(removed, 0, 0, [], [])
    else:
        done = forget_person(library, name, places, model_key)
    verb, left = "would remove" if dry_run else "removed", [str(path) for path in done.left]
    console.output(
        [f"{verb} {trace.kind}: {trace.path}" for trace in done.removed],
        {
            "name": name, "dry_run": dry_run,
            "removed": [{"kind": trace.kind, "path": str(trace.path)} for trace in done.removed],
            "searched_files": done.searched_files, "searched_bytes": done.searched_bytes,
            "left": left, "unsearched": [str(path) for path in done.unsearched], "derived": list(done.derived),
        },
    )  # fmt: skip
    if not dry_run:
        _report(console, name, done)
    if left or done.unsearched:
        raise typer.Exit(IntegrityError.exit_code)


def _report(console: CliConsole, name: str, done: "Forgotten") -> None:
    """Print what the search found, what was mixed from the person, and what is out of reach."""
    from .naming import counted, listed

    searched = f"searched {counted(done.searched_files, 'file')} ({done.searched_bytes / 1e6:.1f} MB)"
    if not done.searched_files:
        console.warn("no identity could be read, so files were not searched for its embedding")
    elif done.left:
        console.warn(f"{searched}; the embedding of {name} is still in {listed([str(path) for path in done.left])}")
    else:
        console.info(f"{searched}: none has the embedding of {name}")
    if done.unsearched:
        console.warn(f"could not be read, and so not searched: {listed([str(path) for path in done.unsearched])}")
    if done.derived:
        console.warn(f"mixed from {name}, and kept: {listed(done.derived)}")
    console.info("out of reach: images, exported embeddings, copies and backups outside the library")
