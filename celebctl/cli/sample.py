"""invent and nearest: somebody new out of the celebrities' distribution, and who is close to whom."""

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

COLUMNS = ("who", "known as", "alike", "first name", "last name", "distance")
MOST = 1000  # people in one table


def sample(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="What to call them.", show_default="nobody-1")
    ] = None,
    seed: options.Seed = None,
    model: options.Model = None,
    force: options.Force = False,
) -> None:
    """Make up somebody who does not exist, the same in every picture."""
    from celebctl.library import Library, format_model_key
    from celebctl.settings import Settings

    from .extras import requires_extra
    from .gen import check_count, random_seed
    from .naming import name_person, next_sample_name

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    called = next_sample_name(library.names()) if name is None else name_person(name)
    chosen = random_seed() if seed is None else seed
    check_count(1, chosen)
    with requires_extra("learn", "the celeb basis"):
        parts, basis, celebrities = open_basis(console, library, settings, model)
        from celebctl.basis.identity_vectors import sampled_identity
        from celebctl.learning.instant import identity_prior
        from celebctl.mapper_training.store import with_latest

        if not force:
            library.require_free([called], format_model_key(parts.family, parts.table_hash))
        hashes, strangers = (
            (parts.family, parts.table_hash),
            identity_prior(with_latest(parts, library.cache(), basis), basis),
        )
        person, nearest = sampled_identity(called, chosen, celebrities, basis, hashes, strangers)
    path = library.save(person, overwrite=force)
    console.info(
        f"{called} is nobody (seed {chosen}); nearest celebrity: {nearest.name.title()}, alike {nearest.cosine:.2f}"
    )
    facts = {"name": called, "path": str(path), "seed": chosen, "digest": person.digest}
    console.output([str(path)], {**facts, "nearest": _document(nearest)})
    console.suggest(f'celebctl gen "{called} on the beach"')


def nearest(
    ctx: typer.Context,
    name: options.Person,
    top: Annotated[int, typer.Option("--top", help="How many to show.")] = 5,
    model: options.Model = None,
    model_key: options.ForModel = None,
) -> None:
    """Tell which celebrities and which people you know are most like somebody."""
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.errors import IntegrityError, UsageError

    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    if not 1 <= top <= MOST:
        raise UsageError(f"--top {top} is out of range", f"use 1 to {MOST}")
    entry = library.find(name, model_key)
    person = entry.load()
    with requires_extra("learn", "the celeb basis"):
        parts, basis, celebrities = open_basis(console, library, settings, model)
        from celebctl.basis.identity_vectors import neighbours

        if (person.family, person.table_hash) != (parts.family, parts.table_hash):
            raise IntegrityError(
                f"{person.name} was learned for another model ({entry.model_key}) than {parts.name}",
                "name that model: --model",
            )
        known = [other.load() for other in library.entries(entry.model_key) if other.name != entry.name]
        with console.status("reading the names"):
            found = neighbours(person, celebrities, known, basis, reader_of(parts))[:top]
    document = {"name": person.name, "model": parts.name, "nearest": [_document(one) for one in found]}
    rows = [_cells(one) for one in found]
    console.output_table(["\t".join(row) for row in rows], document, lambda: console.table(person.name, COLUMNS, rows))
    console.info(
        "alike: cosine of the directions from the average celebrity, as the model reads the names; distance: 1 is a"
        " celebrity's from the average"
    )


def open_basis(
    console: CliConsole, library: "Library", settings: "Settings", model: str | None
) -> "tuple[TokenTables, CelebBasis, Celebrities]":
    """What a model reads with the names chosen for it, its celeb basis, and the people the basis is made of."""
    from celebctl.basis.basis import build_basis
    from celebctl.basis.identity_vectors import celebrities_of
    from celebctl.basis.names import with_names

    from .basis import choice_for
    from .loading import open_tables

    opened = open_tables(console, settings, model)
    parts = with_names(opened, choice_for(library, opened).file)
    return parts, build_basis(parts, library.cache()), celebrities_of(parts)


def reader_of(parts: "TokenTables") -> "Callable[[Sequence[Floats]], NDArray[np.float64]]":
    """What a model makes of token rows; opens its text encoders."""
    from celebctl.basis.text_features import readings
    from celebctl_models.checkpoints.text_encoders import load_texts

    return partial(readings, load_texts(parts.path))


def _document(one: "Neighbour") -> dict[str, object]:
    numbers = {"cosine": one.cosine, "first": one.first, "last": one.last, "distance": one.distance}
    rounded = {key: round(value, 6) for key, value in numbers.items()}
    return {"name": one.name, "kind": "celebrity" if one.celebrity else "identity", **rounded}


def _cells(one: "Neighbour") -> Sequence[str]:
    said = one.name.title() if one.celebrity else one.name
    numbers = (one.cosine, one.first, one.last, one.distance)
    return [said, "celebrity" if one.celebrity else "yours", *(f"{round(number, 2) + 0.0:.2f}" for number in numbers)]
