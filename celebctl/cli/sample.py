"""sample and nearest: a new person from the distribution of celebrities, and the people most similar to one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import CliConsole
from .loading import choose_model

if TYPE_CHECKING:
    from celebctl.basis.identity_vectors import Neighbour
    from celebctl.library import IdentityFile
    from celebctl_runtime.identity import Identity

COLUMNS = ("name", "kind", "cosine", "first name", "last name", "distance")
MAX_ROWS = 1000


def sample(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Option("--name", "-n", help="The name.", show_default="sample-1")] = None,
    seed: options.Seed = None,
    model: options.Model = None,
    force: options.Force = False,
) -> None:
    """Sample a new person who does not exist, and save them under a name."""
    from celebctl.library import Library
    from celebctl.pipeline import random_seed
    from celebctl.settings import Settings
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.request import MAX_SEED

    from .extras import requires_extra
    from .naming import name_person, next_sample_name

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    called = next_sample_name(library.names()) if name is None else name_person(name)
    chosen = random_seed() if seed is None else seed
    if not 0 <= chosen <= MAX_SEED:
        raise UsageError(f"seed {chosen} is out of range", f"use 0 to {MAX_SEED}")
    with requires_extra("learn", "the celeb basis"):
        loaded = choose_model(settings, library, model)
        if not force:
            library.require_free([called], loaded.key)
        person = loaded.sample(called, chosen)
    path = library.save(person, overwrite=force)
    near, cosine = person.provenance["nearest_celebrity"], float(person.provenance["nearest_cosine"])
    console.info(f"created {called} from seed {chosen}; nearest celebrity: {near.title()} (cosine {cosine:.2f})")
    facts = {"name": called, "path": str(path), "seed": chosen, "digest": person.digest}
    console.output([str(path)], {**facts, "nearest": {"name": near, "cosine": cosine}})
    console.suggest(f'celebctl gen "{called} on the beach"')


def nearest(
    ctx: typer.Context,
    name: options.Person,
    top: Annotated[int, typer.Option("--top", help="How many to show.")] = 5,
    model: options.Model = None,
    model_key: options.ForModel = None,
) -> None:
    """List the celebrities and the learned people most similar to a person."""
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.errors import UsageError

    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    if not 1 <= top <= MAX_ROWS:
        raise UsageError(f"--top {top} is out of range", f"use 1 to {MAX_ROWS}")
    entry = library.find(name, model_key)
    person = entry.load()
    with requires_extra("learn", "the celeb basis"):
        loaded = choose_model(settings, library, model)
        known = _readable(console, [other for other in library.entries(entry.model_key) if other.name != entry.name])
        known = _of_width(console, known, [array.shape for array in person.embeddings])
        with console.status("comparing the names"):
            found = loaded.nearest(person, top, known=known)
    document = {"name": person.name, "model": loaded.name, "nearest": [_document(one) for one in found]}
    rows = [_cells(one) for one in found]
    console.output_table(["\t".join(row) for row in rows], document, lambda: console.table(person.name, COLUMNS, rows))
    console.info(
        "cosine: of the directions from the average celebrity, as the model reads the names; distance 1: an average"
        " celebrity's"
    )


def _readable(console: CliConsole, entries: "Sequence[IdentityFile]") -> "list[Identity]":
    """The identities that can be read; the others are named."""
    from celebctl_runtime.errors import CelebctlError

    people: list[Identity] = []
    for entry in entries:
        try:
            people.append(entry.load())
        except CelebctlError as error:
            console.warn(f"left out: {error.problem}")
    return people


def _of_width(
    console: CliConsole, people: "Sequence[Identity]", shapes: "Sequence[tuple[int, ...]]"
) -> "list[Identity]":
    """The identities whose embeddings have these shapes; the others are named."""
    fitting = [one for one in people if [array.shape for array in one.embeddings] == shapes]
    for one in people:
        if one not in fitting:
            console.warn(f"left out: {one.name} has embeddings of another width")
    return fitting


def _document(one: "Neighbour") -> dict[str, object]:
    numbers = {"cosine": one.cosine, "first": one.first, "last": one.last, "distance": one.distance}
    rounded = {key: round(value, 6) for key, value in numbers.items()}
    return {"name": one.name, "kind": "celebrity" if one.celebrity else "identity", **rounded}


def _cells(one: "Neighbour") -> Sequence[str]:
    name = one.name.title() if one.celebrity else one.name
    numbers = (one.cosine, one.first, one.last, one.distance)
    return [name, "celebrity" if one.celebrity else "learned", *(f"{round(number, 2) + 0.0:.2f}" for number in numbers)]
