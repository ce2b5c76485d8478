"""sample and nearest: a new person from the distribution of celebrities, and the people most similar to one."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from celebctl.basis.basis import CelebBasis
    from celebctl.basis.identity_vectors import Celebrities, Floats, Neighbour
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_models.checkpoints.token_tables import TokenTables

COLUMNS = ("name", "kind", "cosine", "first name", "last name", "distance")
MAX_ROWS = 1000


def sample(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Name of the person.", show_default="sample-1")
    ] = None,
    seed: options.Seed = None,
    model: options.Model = None,
    force: options.Force = False,
) -> None:
    """Sample a new person who does not exist, and save them under a name."""
    from celebctl.library import Library, format_model_key
    from celebctl.settings import Settings

    from .extras import requires_extra
    from .gen import random_seed
    from .naming import name_person, next_sample_name

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    name = next_sample_name(library.names()) if name is None else name_person(name)
    seed = _checked_seed(random_seed() if seed is None else seed)
    with requires_extra("learn", "the celeb basis"):
        parts, basis, celebrities = open_basis(console, library, settings, model)
        from celebctl.basis.identity_vectors import sampled_identity
        from celebctl.learning.instant import identity_prior
        from celebctl.mapper_training.store import with_latest

        model_ids = (parts.family, parts.table_hash)
        if not force:
            library.require_free([name], format_model_key(*model_ids))
        prior = identity_prior(with_latest(parts, library.cache(), basis), basis)
        identity, closest = sampled_identity(name, seed, celebrities, basis, model_ids, prior)
    path = library.save(identity, overwrite=force)
    celebrity = f"{closest.name.title()} (cosine {closest.cosine:.2f})"
    console.info(f"created {name} from seed {seed}; nearest celebrity: {celebrity}")
    facts = {"name": name, "path": str(path), "seed": seed, "digest": identity.digest}
    console.output([str(path)], {**facts, "nearest": _document(closest)})
    console.suggest(f'celebctl gen "{name} on the beach"')


def nearest(
    ctx: typer.Context,
    name: options.Person,
    top: Annotated[int, typer.Option("--top", help="Number of people to list.")] = 5,
    model: options.Model = None,
    model_key: options.ForModel = None,
) -> None:
    """List the celebrities and the learned people most similar to a person."""
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.errors import IntegrityError, UsageError

    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    if not 1 <= top <= MAX_ROWS:
        raise UsageError(f"--top {top} is out of range", f"use 1 to {MAX_ROWS}")
    entry = library.find(name, model_key)
    identity = entry.load()
    with requires_extra("learn", "the celeb basis"):
        parts, basis, celebrities = open_basis(console, library, settings, model)
        from celebctl.basis.identity_vectors import neighbours

        if (identity.family, identity.table_hash) != (parts.family, parts.table_hash):
            raise IntegrityError(
                f"{identity.name} was learned for another model ({entry.model_key}) than {parts.name}",
                "choose that model with --model",
            )
        others = [other.load() for other in library.entries(entry.model_key) if other.name != entry.name]
        with console.status("encoding the names"):
            found = neighbours(identity, celebrities, others, basis, reader_of(parts))[:top]
    document = {"name": identity.name, "model": parts.name, "nearest": [_document(one) for one in found]}
    rows = [_cells(one) for one in found]
    lines = ["\t".join(row) for row in rows]
    console.output_table(lines, document, lambda: console.table(identity.name, COLUMNS, rows))
    console.info(
        "cosine: of the directions from the average celebrity, in the text encoder's output; distance: 1 is the"
        " distance of a celebrity from the average"
    )


def open_basis(
    console: CliConsole, library: "Library", settings: "Settings", model: str | None
) -> "tuple[TokenTables, CelebBasis, Celebrities]":
    """A model's token tables with the names chosen for it, its celeb basis, and the celebrities of the basis."""
    from celebctl.basis.basis import build_basis
    from celebctl.basis.identity_vectors import celebrities_of
    from celebctl.basis.names import with_names

    from .basis import choice_for
    from .loading import open_tables

    opened = open_tables(console, settings, model)
    parts = with_names(opened, choice_for(library, opened).file)
    return parts, build_basis(parts, library.cache()), celebrities_of(parts)


def reader_of(parts: "TokenTables") -> "Callable[[Sequence[Floats]], NDArray[np.float64]]":
    """The model's text encoders as a function of token rows."""
    from celebctl.basis.text_features import readings
    from celebctl_models.checkpoints.text_encoders import load_texts

    return partial(readings, load_texts(parts.path))


def _checked_seed(seed: int) -> int:
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.request import MAX_SEED

    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed {seed} is out of range", f"use 0 to {MAX_SEED}")
    return seed


def _document(one: "Neighbour") -> dict[str, object]:
    numbers = {"cosine": one.cosine, "first": one.first, "last": one.last, "distance": one.distance}
    rounded = {key: round(value, 6) for key, value in numbers.items()}
    return {"name": one.name, "kind": "celebrity" if one.celebrity else "identity", **rounded}


def _cells(one: "Neighbour") -> Sequence[str]:
    name = one.name.title() if one.celebrity else one.name
    numbers = (one.cosine, one.first, one.last, one.distance)
    kind = "celebrity" if one.celebrity else "learned"
    return [name, kind, *(f"{round(number, 2) + 0.0:.2f}" for number in numbers)]
