"""invent and nearest: somebody new out of the celebrities' distribution, and who is close to whom."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import Desk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from celebctl.library import Library
    from celebctl.method import CelebBasis
    from celebctl.method.vectors import Celebrities, Floats, Neighbour
    from celebctl.settings import Settings
    from celebctl_models.tables import HasTables

COLUMNS = ("who", "known as", "alike", "first name", "last name", "distance")
MOST = 1000  # people in one table


def invent(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="What to call them.", show_default="nobody-1")
    ] = None,
    seed: options.Seed = None,
    model: options.Model = None,
    force: options.Force = False,
) -> None:
    """Make up somebody who does not exist, the same in every picture."""
    from celebctl.library import Library, shelf_name
    from celebctl.settings import Settings

    from .extras import needs
    from .gen import check_count, fresh_seed
    from .naming import name_of_nobody, name_person

    desk = ctx.ensure_object(Desk)
    settings, library = Settings.read(), Library()
    called = name_of_nobody(library.names()) if name is None else name_person(name)
    chosen = fresh_seed() if seed is None else seed
    check_count(1, chosen)
    with needs("learn", "the celeb basis"):
        parts, basis, celebrities = open_basis(desk, library, settings, model)
        from celebctl.method.instant import strangers_of
        from celebctl.method.trained import with_latest
        from celebctl.method.vectors import invented

        if not force:
            library.refuse_taken([called], shelf_name(parts.family, parts.table_hash))
        hashes, strangers = (
            (parts.family, parts.table_hash),
            strangers_of(with_latest(parts, library.cache(), basis), basis),
        )
        person, nearest = invented(called, chosen, celebrities, basis, hashes, strangers)
    path = library.save(person, overwrite=force)
    desk.tell(
        f"{called} is nobody (seed {chosen}); nearest celebrity: {nearest.name.title()}, alike {nearest.cosine:.2f}"
    )
    facts = {"name": called, "path": str(path), "seed": chosen, "digest": person.digest}
    desk.give([str(path)], {**facts, "nearest": _document(nearest)})
    desk.next(f'celebctl gen "{called} on the beach"')


def nearest(
    ctx: typer.Context,
    name: options.Person,
    top: Annotated[int, typer.Option("--top", help="How many to show.")] = 5,
    model: options.Model = None,
    shelf: options.Shelf = None,
) -> None:
    """Tell which celebrities and which people you know are most like somebody."""
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.errors import IntegrityProblem, UsageProblem

    from .extras import needs

    desk = ctx.ensure_object(Desk)
    settings, library = Settings.read(), Library()
    if not 1 <= top <= MOST:
        raise UsageProblem(f"--top {top} is out of range", f"use 1 to {MOST}")
    entry = library.find(name, shelf)
    person = entry.load()
    with needs("learn", "the celeb basis"):
        parts, basis, celebrities = open_basis(desk, library, settings, model)
        from celebctl.method.vectors import neighbours

        if (person.family, person.table_hash) != (parts.family, parts.table_hash):
            raise IntegrityProblem(
                f"{person.name} was learned for another model ({entry.shelf}) than {parts.name}",
                "name that model: --model",
            )
        known = [other.load() for other in library.entries(entry.shelf) if other.name != entry.name]
        with desk.working("reading the names"):
            found = neighbours(person, celebrities, known, basis, reader_of(parts))[:top]
    document = {"name": person.name, "model": parts.name, "nearest": [_document(one) for one in found]}
    rows = [_cells(one) for one in found]
    desk.give_list(["\t".join(row) for row in rows], document, lambda: desk.table(person.name, COLUMNS, rows))
    desk.tell(
        "alike: cosine of the directions from the average celebrity, as the model reads the names; distance: 1 is a"
        " celebrity's from the average"
    )


def open_basis(
    desk: Desk, library: "Library", settings: "Settings", model: str | None
) -> "tuple[HasTables, CelebBasis, Celebrities]":
    """What a model reads with the names chosen for it, its celeb basis, and the people the basis is made of."""
    from celebctl.method import build_basis
    from celebctl.method.names import with_names
    from celebctl.method.vectors import celebrities_of

    from .basis import choice_for
    from .opening import open_tables

    opened = open_tables(desk, settings, model)
    parts = with_names(opened, choice_for(library, opened).file)
    return parts, build_basis(parts, library.cache()), celebrities_of(parts)


def reader_of(parts: "HasTables") -> "Callable[[Sequence[Floats]], NDArray[np.float64]]":
    """What a model makes of token rows; opens its text encoders."""
    from celebctl.method.readings import readings
    from celebctl_models.texts import load_texts

    return partial(readings, load_texts(parts.path))


def _document(one: "Neighbour") -> dict[str, object]:
    numbers = {"cosine": one.cosine, "first": one.first, "last": one.last, "distance": one.distance}
    rounded = {key: round(value, 6) for key, value in numbers.items()}
    return {"name": one.name, "kind": "celebrity" if one.celebrity else "identity", **rounded}


def _cells(one: "Neighbour") -> Sequence[str]:
    said = one.name.title() if one.celebrity else one.name
    numbers = (one.cosine, one.first, one.last, one.distance)
    return [said, "celebrity" if one.celebrity else "yours", *(f"{round(number, 2) + 0.0:.2f}" for number in numbers)]
