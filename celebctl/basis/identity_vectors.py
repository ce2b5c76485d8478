"""Arithmetic on identities: mixing them, sampling new ones, and finding the nearest.

An identity is a point of the celeb basis, so all of this is linear algebra on embeddings or coefficients. This module
knows neither torch, nor files, nor the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityError, InvalidInputError, UsageError
from celebctl_runtime.identity import Identity
from celebctl_runtime.sampling.noise import initial_noise, step_noise

from .basis import CelebBasis
from .names import read_names, shared_pairs

if TYPE_CHECKING:
    from celebctl.learning.instant import IdentityPrior
    from celebctl_models.checkpoints.token_tables import TokenTables

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

#: A sample at least this near to a celebrity (cosine) is rejected. Celebrities who share a name are at about 0.5.
MAX_COSINE = 0.6
_MAX_DRAWS = 100
_DECIMALS = 12  # of weights: 1 - 0.7 becomes 0.3, so that a mix does not depend on the order


@dataclass(frozen=True, eq=False)
class Celebrities:
    """The names behind a basis, (n,), and their embeddings: ``rows``, E arrays (n, 2, D)."""

    names: tuple[str, ...]
    rows: tuple[Floats, ...]


@dataclass(frozen=True)
class Neighbour:
    """A celebrity or identity near another identity.

    Attributes:
        celebrity: Whether it is a name of the basis; otherwise an identity.
        cosine: Between the differences from the average celebrity, in [-1, 1].
        first: The same cosine for the first token alone.
        last: The same cosine for the last token alone.
        distance: Between the two, in units of a celebrity's distance from the average.
    """

    name: str
    celebrity: bool
    cosine: float
    first: float
    last: float
    distance: float


def mixing_weights(count: int, weights: float | Sequence[float] | None = None) -> tuple[float, ...]:
    """Weights of ``count`` identities that add up to 1.

    Args:
        weights: One number per identity, in any unit; a single number from 0 to 1 for the second of two; None for
            equal weights.

    Raises:
        UsageError: Fewer than two identities, or weights that do not fit them.
    """
    if count < 2:
        raise UsageError("a mix needs at least two people", "give another one", reason="mix_needs_two")
    if isinstance(weights, (int, float)):
        if count != 2 or not 0.0 <= weights <= 1.0:
            problem = f"weight {weights:g} is out of range" if count == 2 else f"one weight cannot mix {count} people"
            hint = "use 0 (the first) to 1 (the second), or one weight per person"
            raise UsageError(problem, hint, reason="mix_weight", weight=weights)
        weights = (1.0 - weights, weights)
    given = np.array(weights if weights is not None else [1.0] * count, dtype=np.float64)
    if len(given) != count:
        raise UsageError(f"{len(given)} weights do not match {count} people", "give one number for each person")
    if not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise UsageError(f"invalid weights {', '.join(f'{w:g}' for w in given)}", "use numbers from 0, not all 0")
    shares: list[float] = (given / given.sum()).round(_DECIMALS).tolist()
    return tuple(shares)


def mix(
    identities: Sequence[Identity], weights: float | Sequence[float] | None = None, *, name: str = "mix"
) -> Identity:
    """The weighted mean of identities: of their coefficients and of their embeddings.

    Args:
        identities: Two or more, of one model and one celeb basis. Their order does not matter.
        weights: As in `mixing_weights`. A weight of 1 gives exactly that identity's numbers.
        name: The result's name in prompts.

    Raises:
        UsageError: Weights that do not fit.
        IntegrityError: Identities of different models or bases.

    Example:
        >>> from celebctl import Model, mix
        >>> model = Model.load("mini")
        >>> mix([model.sample("ann", seed=1), model.sample("bob", seed=2)], [3, 1], name="carol").name
        'carol'
    """
    shares = mixing_weights(len(identities), weights)
    require_same_model(identities)
    order = sorted(range(len(identities)), key=lambda i: identities[i].digest)
    parts = [(identities[i], shares[i]) for i in order if shares[i] > 0.0]
    used = [share for _, share in parts]
    coefficients = _weighted_sum([one.coefficients for one, _ in parts], used)
    embeddings = _weighted_sum([one.embeddings for one, _ in parts], used)
    parents = ", ".join(f"{one.name} {w:g} ({one.digest[:12]})" for one, w in zip(identities, shares, strict=True))
    first = identities[0]
    return Identity(
        name, coefficients, embeddings, first.basis_hash, first.family, first.table_hash, {"mixed_from": parents}
    )


def require_same_model(people: Sequence[Identity], *, bases: bool = True) -> None:
    """Raise IntegrityError for people of different models, and with ``bases`` of different celeb bases."""
    first = people[0]
    for other in people[1:]:
        if (other.family, other.table_hash) != (first.family, first.table_hash):
            raise IntegrityError(
                f"{first.name} was learned for one model ({first.family}, {first.table_hash[:8]}) and {other.name} for"
                f" another ({other.family}, {other.table_hash[:8]})",
                "learn both for the same model", reason="different_models", name=other.name,
            )  # fmt: skip
        if bases and other.basis_hash != first.basis_hash:
            raise IntegrityError(
                f"{first.name} and {other.name} were learned on different celeb bases ({first.basis_hash[:8]},"
                f" {other.basis_hash[:8]})",
                f"learn {other.name} again with the names and preset of {first.name}",
            )


def require_model(person: Identity, family: str, table_hash: str) -> None:
    """Raise IntegrityError for an identity of another model."""
    if (person.family, person.table_hash) != (family, table_hash):
        raise IntegrityError(
            f"{person.name} was learned for another model ({person.family}, {person.table_hash[:8]})",
            "load the model it was learned for", reason="identity_of_other_model", name=person.name,
        )  # fmt: skip


def require_widths(person: Identity, basis: CelebBasis) -> None:
    """Raise IntegrityError for an identity whose embeddings have other widths than those of the basis."""
    theirs = [array.shape[1] for array in person.embeddings]
    ours = [mean.shape[1] for mean in basis.mean]
    if theirs != ours:
        raise IntegrityError(
            f"{person.name} has embeddings of width {' and '.join(map(str, theirs))}; the model's are"
            f" {' and '.join(map(str, ours))}",
            "learn the person again", reason="identity_width", name=person.name, widths=theirs,
        )  # fmt: skip


def _weighted_sum(given: Sequence[Sequence[Floats]], shares: Sequence[float]) -> tuple[Floats, ...]:
    """Weighted sums, array by array: P people of E arrays each."""
    if len(given) == 1:
        return tuple(given[0])
    sums = [
        sum(share * array.astype(np.float64) for array, share in zip(arrays, shares, strict=True))
        for arrays in zip(*given, strict=True)
    ]
    return tuple(np.asarray(total, np.float32) for total in sums)


def deviations(rows: Sequence[Floats], basis: CelebBasis) -> Doubles:
    """Differences of embeddings, E arrays (n, 2, D), from the average celebrity: (n, 2, W), W the sum of widths.

    Every text encoder has the same weight and a celebrity has length 1 on average. Components are not whitened:
    whitening agrees less with the faces (benchmarks/vectors.py).
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
    """Celebrities and ``known`` identities of one model, the nearest to ``person`` first.

    Args:
        read: Text encoder features of embeddings, E arrays (n, 2, D) to (n, W). With it ``cosine`` and ``distance``
            compare features instead of embeddings, which agrees better with the faces (benchmarks/vectors.py).

    Raises:
        IntegrityError: Identities of different models.
    """
    require_same_model([person, *known], bases=False)
    here = deviations([array[None] for array in person.embeddings], basis)
    rows = [
        np.concatenate([theirs, *(one.embeddings[encoder][None] for one in known)])
        for encoder, theirs in enumerate(celebrities.rows)
    ]
    there = deviations(rows, basis)
    first, last = _cosines(here[:, :1], there[:, :1]), _cosines(here[:, 1:], there[:, 1:])
    if read is not None:
        own = read([array[None] for array in person.embeddings])
        here, there = _relative_features(own, read(rows), len(celebrities.names))
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
    prior: IdentityPrior | None = None,
) -> tuple[Identity, Neighbour]:
    """An identity of no real person, and the celebrity nearest to it. The same seed gives the same identity.

    Args:
        model: Family and table hash.
        prior: The distribution of people the model's mapper was trained on. Without it, a sample of the Gaussian with
            the celebrities' mean and covariance: a random sum of their deviations, whose images agree less with each
            other (benchmarks/vectors.py).

    Raises:
        InvalidInputError: Every draw is too near to a celebrity.
    """
    for attempt in range(_MAX_DRAWS):
        count = (len(celebrities.names) if prior is None else prior.size,)
        noise = initial_noise(seed, count) if attempt == 0 else step_noise(seed, attempt, count)
        if prior is None:
            coefficients = _sum_of_celebrities(noise, celebrities, basis)
        else:
            parts = zip(basis.split(prior.normalized(noise)), basis.spread, strict=True)
            coefficients = tuple((normalized * spread).astype(np.float32) for normalized, spread in parts)
        person = Identity(name, coefficients, basis.embed(coefficients), basis.hash, *model)
        nearest = neighbours(person, celebrities, [], basis)[0]
        if nearest.cosine < MAX_COSINE:
            provenance = {
                "sample_seed": str(seed), "sample_draw": str(attempt + 1),
                "nearest_celebrity": nearest.name, "nearest_cosine": f"{nearest.cosine:.3f}",
            }  # fmt: skip
            return replace(person, provenance=provenance), nearest
    raise InvalidInputError(
        f"all of {_MAX_DRAWS} samples are too near to one of {len(celebrities.names)} celebrities",
        "choose more names for the celeb basis", reason="too_few_names",
    )  # fmt: skip


def _sum_of_celebrities(noise: Floats, celebrities: Celebrities, basis: CelebBasis) -> tuple[Floats, ...]:
    """Coefficients of the celebrities' deviations summed with weights ``noise`` (n,) of variance 1."""
    weights = noise.astype(np.float64) / max(len(noise) - 1, 1) ** 0.5
    found: list[Floats] = []
    for rows, components in zip(celebrities.rows, basis.components, strict=True):
        moved = np.einsum("n,njd->jd", weights, rows - rows.mean(0, dtype=np.float64))
        found.append(np.einsum("jd,jkd->jk", moved, components).astype(np.float32))
    return tuple(found)


def _relative_features(here: Doubles, there: Doubles, celebrities: int) -> tuple[Doubles, Doubles]:
    """Features (n, W) relative to the mean of the celebrities (the first of ``there``), at mean distance 1."""
    middle = there[:celebrities].mean(0)
    usual = float(np.sqrt(np.square(there[:celebrities] - middle).sum(1).mean()))
    return (here - middle) / max(usual, 1e-12), (there - middle) / max(usual, 1e-12)


def _cosines(one: Doubles, others: Doubles) -> Doubles:
    """Cosines of (1, k, W) to each of (n, k, W); 0 for a zero vector."""
    a, b = one.reshape(-1), others.reshape(len(others), -1)
    lengths = np.linalg.norm(a) * np.linalg.norm(b, axis=1)
    return np.divide(b @ a, lengths, out=np.zeros(len(b)), where=lengths > 0)


def celebrities_of(parts: TokenTables, names: Path | None = None) -> Celebrities:
    """The names behind a model's basis (None: its own list) with their embeddings."""
    pairs = shared_pairs(parts.tokenizers, read_names(parts, names))
    tables = [parts.token_rows(encoder) for encoder in range(len(pairs))]
    rows = tuple(table[np.array(one.pairs)] for table, one in zip(tables, pairs, strict=True))
    return Celebrities(pairs[0].names, rows)
