"""People as vectors: mixing them, inventing new ones, and finding who is close to whom.

A person is a point of the celeb basis, so all of this is arithmetic on token rows, which coefficients are another
writing of. What this module does *not* know: torch, files, the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl.learning.instant import IdentityPrior
from celebctl_runtime.errors import IntegrityError, InvalidInputError, UsageError
from celebctl_runtime.identity import Identity
from celebctl_runtime.sampling.noise import initial_noise, step_noise

from .basis import CelebBasis
from .names import read_names, shared_pairs

if TYPE_CHECKING:
    from celebctl_models.checkpoints.token_tables import TokenTables

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

#: An invented person this near to a celebrity (cosine) is drawn anew. Celebrities who share a name are about 0.5 apart.
TOO_NEAR = 0.6
_DRAWS = 100
_DECIMALS = 12  # of weights: 1 - 0.7 is 0.3, so that a mix does not depend on who is named first


@dataclass(frozen=True, eq=False)
class Celebrities:
    """The people a basis is made of. names: (n,); rows: token rows, E arrays (n, 2, D)."""

    names: tuple[str, ...]
    rows: tuple[Floats, ...]


@dataclass(frozen=True)
class Neighbour:
    """Somebody near. celebrity: whether the model knows them by name, else they are in the library.

    cosine, first, last: between the directions in which both stand from the average celebrity, in [-1, 1], of the whole
    name and of the rows of its parts. distance: between the two, where a celebrity is 1 from the average.
    """

    name: str
    celebrity: bool
    cosine: float
    first: float
    last: float
    distance: float


def weights_of(count: int, t: float | None, weights: Sequence[float] | None) -> tuple[float, ...]:
    """What each of ``count`` people counts, adding up to 1: equal shares, ``t`` for the second of two, or ``weights``.

    Raises UsageError for what makes no mix of so many people.
    """
    if count < 2:
        raise UsageError("a mix needs at least two people", "celebctl mix alice bob --name carol")
    if t is not None and weights is not None:
        raise UsageError("--t and --weights say the same thing", "give one of them")
    if t is not None:
        if count != 2 or not 0.0 <= t <= 1.0:
            problem = f"--t {t:g} is out of range" if count == 2 else f"--t is for two people, not for {count}"
            raise UsageError(problem, "use --t 0 (the first) to 1 (the second), or --weights 2,1,1 for more people")
        weights = (1.0 - t, t)
    given = np.array(weights if weights is not None else [1.0] * count, dtype=np.float64)
    if len(given) != count:
        raise UsageError(f"{len(given)} weights do not go with {count} people", "give one number for each person")
    if not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise UsageError(f"--weights {', '.join(f'{w:g}' for w in given)} make no mix", "use numbers from 0 up")
    shares: list[float] = (given / given.sum()).round(_DECIMALS).tolist()
    return tuple(shares)


def mixed(people: Sequence[Identity], weights: Sequence[float], name: str) -> Identity:
    """The person at ``weights``, which add up to 1, between ``people``: rows and coefficients in a straight line.

    A weight of 1 gives that person's own numbers, to the last bit; the order of people does not matter. Raises
    IntegrityError for people of different models or bases.
    """
    check_alike(people)
    order = sorted(range(len(people)), key=lambda i: people[i].digest)
    parts = [(people[i], weights[i]) for i in order if weights[i] > 0.0]
    first = people[0]
    shares = [share for _, share in parts]
    coefficients = _blend([person.coefficients for person, _ in parts], shares)
    embeddings = _blend([person.embeddings for person, _ in parts], shares)
    told = ", ".join(f"{p.name} {w:g} ({p.digest[:12]})" for p, w in zip(people, weights, strict=True))
    return Identity(
        name, coefficients, embeddings, first.basis_hash, first.family, first.table_hash, {"mixed_from": told}
    )


def check_alike(people: Sequence[Identity], *, bases: bool = True) -> None:
    """Raise IntegrityError for people of different models, and with ``bases`` of different celeb bases."""
    first = people[0]
    for other in people[1:]:
        if (other.family, other.table_hash) != (first.family, first.table_hash):
            raise IntegrityError(
                f"{first.name} was learned for one model ({first.family}, {first.table_hash[:8]}) and {other.name} for"
                f" another ({other.family}, {other.table_hash[:8]})",
                f"learn both for the same model: celebctl learn PHOTO --name {other.name}",
            )
        if bases and other.basis_hash != first.basis_hash:
            raise IntegrityError(
                f"{first.name} and {other.name} were learned on different celeb bases ({first.basis_hash[:8]},"
                f" {other.basis_hash[:8]})",
                f"learn {other.name} again with the names and preset that {first.name} was learned with",
            )


def _blend(given: Sequence[Sequence[Floats]], shares: Sequence[float]) -> tuple[Floats, ...]:
    """Weighted sums, array by array: P people of E arrays each."""
    if len(given) == 1:
        return tuple(given[0])
    sums = [
        sum(share * array.astype(np.float64) for array, share in zip(arrays, shares, strict=True))
        for arrays in zip(*given, strict=True)
    ]
    return tuple(np.asarray(total, np.float32) for total in sums)


def deviations(rows: Sequence[Floats], basis: CelebBasis) -> Doubles:
    """Where people stand from the average celebrity, (n, 2, W), W the widths of all text encoders together.

    rows: E arrays (n, 2, D). Every text encoder counts the same, and a celebrity has length 1 on average. This weighs
    components by how much celebrities differ in them; weighing all the same follows the looks of people less well
    (benchmarks/vectors.py).
    """
    parts: list[Doubles] = []
    for array, mean, radius in zip(rows, basis.mean, basis.radius, strict=True):
        usual = float(np.sqrt(np.square(radius, dtype=np.float64).sum() * len(basis.mean)))
        parts.append((array.astype(np.float64) - mean) / max(usual, 1e-12))
    return np.concatenate(parts, axis=-1)


def neighbours(
    person: Identity,
    celebrities: Celebrities,
    known: Sequence[Identity],
    basis: CelebBasis,
    read: Callable[[Sequence[Floats]], Doubles] | None = None,
) -> list[Neighbour]:
    """Celebrities and people of the library, those most like ``person`` first. All must be of one model.

    ``read``: what the model makes of token rows, E arrays (n, 2, D) to (n, W). With it, ``cosine`` and ``distance`` are
    between readings and not between rows, which follows looks better (benchmarks/vectors.py).
    """
    check_alike([person, *known], bases=False)
    here = deviations([array[None] for array in person.embeddings], basis)
    rows = [
        np.concatenate([theirs, *(one.embeddings[encoder][None] for one in known)])
        for encoder, theirs in enumerate(celebrities.rows)
    ]
    there = deviations(rows, basis)
    first, last = _cosines(here[:, :1], there[:, :1]), _cosines(here[:, 1:], there[:, 1:])
    if read is not None:
        here, there = _as_read(read([array[None] for array in person.embeddings]), read(rows), len(celebrities.names))
    whole = _cosines(here, there)
    apart = np.sqrt(np.square(there - here).reshape(len(there), -1).sum(1))
    names = [*celebrities.names, *(one.name for one in known)]
    order: list[int] = np.argsort(-whole, kind="stable").tolist()
    count = len(celebrities.names)
    return [
        Neighbour(names[i], i < count, float(whole[i]), float(first[i]), float(last[i]), float(apart[i])) for i in order
    ]


def sampled_identity(
    name: str,
    seed: int,
    celebrities: Celebrities,
    basis: CelebBasis,
    model: tuple[str, str],
    strangers: IdentityPrior | None = None,
) -> tuple[Identity, Neighbour]:
    """Somebody who does not exist, and the celebrity nearest to them. The same seed gives the same person.

    Without ``strangers`` a draw from the normal distribution with the celebrities' mean and covariance: a random sum of
    the celebrities' own deviations has exactly their covariance, between both names and all text encoders, in as many
    directions as there are celebrities. Whoever comes out too near to one of them is drawn again.

    Args:
        model: family and table hash.
        strangers: what the model's mapper was taught with. Somebody like them is drawn where they are known: a sum of
            celebrities is half of one hair style and half of another, which no picture can show, and pictures of the
            same person agree less (benchmarks/vectors.py).

    Raises:
        InvalidInputError: no draw is far enough from all celebrities.
    """
    for attempt in range(_DRAWS):
        count = (len(celebrities.names) if strangers is None else strangers.size,)
        drawn = initial_noise(seed, count) if attempt == 0 else step_noise(seed, attempt, count)
        if strangers is None:
            coefficients = _sum_of_celebrities(drawn, celebrities, basis)
        else:
            told = zip(basis.split(strangers.units(drawn)), basis.spread, strict=True)
            coefficients = tuple((units * spread).astype(np.float32) for units, spread in told)
        person = Identity(name, coefficients, basis.embed(coefficients), basis.hash, *model)
        nearest = neighbours(person, celebrities, [], basis)[0]
        if nearest.cosine < TOO_NEAR:
            told = {
                "invented": f"seed {seed}, draw {attempt + 1}",
                "nearest_celebrity": f"{nearest.name}, cosine {nearest.cosine:.3f}",
            }
            return replace(person, provenance=told), nearest
    raise InvalidInputError(
        f"nobody who is unlike all {len(celebrities.names)} celebrities was found in {_DRAWS} draws",
        "the celeb basis has too few names: choose more with celebctl basis build --names FILE",
    )


def _sum_of_celebrities(drawn: Floats, celebrities: Celebrities, basis: CelebBasis) -> tuple[Floats, ...]:
    """Coefficients of a sum of the celebrities' deviations, weighted by ``drawn`` (n,) of variance 1."""
    weights = drawn.astype(np.float64) / max(len(drawn) - 1, 1) ** 0.5
    found: list[Floats] = []
    for rows, components in zip(celebrities.rows, basis.components, strict=True):
        moved = np.einsum("n,njd->jd", weights, rows - rows.mean(0, dtype=np.float64))
        found.append(np.einsum("jd,jkd->jk", moved, components).astype(np.float32))
    return tuple(found)


def _as_read(here: Doubles, there: Doubles, celebrities: int) -> tuple[Doubles, Doubles]:
    """Readings (n, W) from the average celebrity's, the first ``celebrities`` of ``there``, who are 1 from it."""
    middle = there[:celebrities].mean(0)
    usual = float(np.sqrt(np.square(there[:celebrities] - middle).sum(1).mean()))
    return (here - middle) / max(usual, 1e-12), (there - middle) / max(usual, 1e-12)


def _cosines(one: Doubles, others: Doubles) -> Doubles:
    """Of (1, k, W) to each of (n, k, W); 0 for somebody who is the average."""
    a, b = one.reshape(-1), others.reshape(len(others), -1)
    lengths = np.linalg.norm(a) * np.linalg.norm(b, axis=1)
    return np.divide(b @ a, lengths, out=np.zeros(len(b)), where=lengths > 0)


def celebrities_of(parts: TokenTables) -> Celebrities:
    """Everybody the basis is made of, with the rows of all text encoders."""
    pairs = shared_pairs(parts.tokenizers, read_names(parts))
    tables = [parts.token_rows(encoder) for encoder in range(len(pairs))]
    rows = tuple(table[np.array(one.pairs)] for table, one in zip(tables, pairs, strict=True))
    return Celebrities(pairs[0].names, rows)
