"""The celeb basis: a PCA over the token embeddings of celebrity names (paper, section 3.2, equations 2 and 3).

For each token position j (first name, last name): the mean of the names' rows in the checkpoint's token table, and the
principal components of those rows. A person is ``embedding_j = mean_j + coefficients_j @ components_j``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import InvalidInputError
from celebctl_runtime.files import atomic_write

from .names import TokenPairs, names_file, read_name_list, token_pairs

if TYPE_CHECKING:
    from celebctl_models.checkpoints.token_tables import TokenTables

Floats = NDArray[np.float32]

#: Components per token position in the paper; 2 x 512 = 1024 coefficients.
COMPONENTS = 512
_HASH_DECIMALS = 8  # that agree between LAPACK builds in practice


@dataclass(frozen=True, eq=False)
class CelebBasis:
    """The basis of E text encoders (paper, equation 2): K components for each of 2 token positions.

    Attributes:
        mean: E arrays (2, D) float32, in units of the token table.
        components: E arrays (2, K, D), orthonormal rows whose entry of largest magnitude is positive.
        spread: E arrays (2, K), standard deviation of the celebrities along each component; 0 for the null-space
            directions of the release.
        names: Number of names behind it.
        kind: "distinct" or "release".
    """

    mean: tuple[Floats, ...]
    components: tuple[Floats, ...]
    spread: tuple[Floats, ...]
    names: int
    kind: str

    @property
    def size(self) -> int:
        """Coefficients per person: 2 K for every text encoder."""
        return sum(2 * components.shape[1] for components in self.components)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the arrays; identities store it."""
        digest = hashlib.sha256(f"{self.kind}:{self.names}".encode())
        for arrays in (self.mean, self.components, self.spread):
            for array in arrays:
                digest.update(f"{array.shape}".encode() + np.round(array, _HASH_DECIMALS).astype("<f4").tobytes())
        return digest.hexdigest()

    def embed(self, coefficients: tuple[Floats, ...]) -> tuple[Floats, ...]:
        """embedding = mean + coefficients x components (equation 3): E arrays (2, K) to E arrays (2, D)."""
        return tuple(
            (mean + np.einsum("jk,jkd->jd", x, components)).astype(np.float32)
            for x, mean, components in zip(coefficients, self.mean, self.components, strict=True)
        )

    def split(self, flat: NDArray[Any]) -> tuple[Floats, ...]:
        """The coefficients (S,) of all text encoders as E arrays (2, K)."""
        ends = np.cumsum([spread.size for spread in self.spread])[:-1]
        parts = zip(np.split(flat, ends), self.spread, strict=True)
        return tuple(part.reshape(spread.shape).astype(np.float32) for part, spread in parts)

    def project(self, embeddings: Floats, encoder: int = 0) -> Floats:
        """Orthogonal projection of embeddings (n, 2, D) to coefficients (n, 2, K)."""
        return np.einsum("njd,jkd->njk", embeddings - self.mean[encoder], self.components[encoder]).astype(np.float32)

    @cached_property
    def radius(self) -> tuple[Floats, ...]:
        """Root mean square distance of a celebrity from the mean, per position, E arrays (2,), token-table units."""
        return tuple(np.sqrt((spread.astype(np.float64) ** 2).sum(1)).astype(np.float32) for spread in self.spread)


def principal_components(rows: Floats, components: int, *, fill: bool) -> tuple[Floats, Floats, Floats]:
    """PCA of rows (m, D): mean (D,), components (k, D), standard deviations (k,), in float64 inside.

    Directions without variance are left out, unless ``fill`` asks for ``components`` of them whatever the rank (the
    release's ``torch.svd(some=False)``, which completes with arbitrary orthonormal directions).
    """
    exact = rows.astype(np.float64)
    mean = exact.mean(0)
    _, singular, directions = np.linalg.svd(exact - mean, full_matrices=fill)
    rank = int((singular > singular[0] * 1e-6).sum()) if len(singular) and singular[0] > 0 else 0
    keep = min(components, directions.shape[0] if fill else rank)
    deviation = np.zeros(keep)
    real = min(rank, keep)
    deviation[:real] = singular[:real] / np.sqrt(max(len(rows) - 1, 1))
    chosen = directions[:keep]
    largest = np.abs(chosen).argmax(1)
    chosen = chosen * np.sign(chosen[np.arange(keep), largest])[:, None]
    return mean.astype(np.float32), chosen.astype(np.float32), deviation.astype(np.float32)


def basis_from_tables(tables: Sequence[Floats], pairs: TokenPairs, *, release: bool = False) -> CelebBasis:
    """The basis from the token table (V, D) of every text encoder.

    Raises InvalidInputError when fewer than three names remain.
    """
    if len(pairs.names) < 3:
        raise InvalidInputError(
            f"only {len(pairs.names)} of {len(pairs.names) + len(pairs.dropped)} names can be used for the celeb basis",
            "give a list with more two-word names that the tokenizer keeps whole",
        )
    mean, components, spread = zip(*(_basis_of_table(table, pairs, release) for table in tables), strict=True)
    count = len(pairs.names) + len(pairs.first_only)
    return CelebBasis(mean, components, spread, count, "release" if release else "distinct")


def _basis_of_table(table: Floats, pairs: TokenPairs, release: bool) -> tuple[Floats, Floats, Floats]:
    """Mean (2, D), components (2, K, D) and spread (2, K); K is the smaller rank of the two positions."""
    found: list[tuple[Floats, Floats, Floats]] = []
    for position in range(2):
        column = np.array(pairs.column(position)) if release else np.unique(pairs.column(position))
        found.append(principal_components(table[column], min(COMPONENTS, table.shape[1]), fill=release))
    shared = min(len(components) for _, components, _ in found)
    mean, components, spread = (np.stack([part[i][:shared] if i else part[i] for part in found]) for i in range(3))
    return mean, components, spread


def build_basis(
    parts: TokenTables, cache: Path | None = None, *, names: Path | None = None, release: bool = False
) -> CelebBasis:
    """The celeb basis of a model.

    Args:
        parts: The model, or its token tables.
        cache: Folder where bases are kept, by token table, names and kind.
        names: List of names (names.py); None for the model's own.
        release: Keep repeated tokens and null-space directions, as the published release does.

    Raises:
        InvalidInputError: Fewer than three names remain.

    Example:
        >>> from celebctl_models.checkpoints.token_tables import load_tables
        >>> basis = build_basis(load_tables("mini"))
        >>> basis.size, basis.mean[0].shape[0]
        (1024, 2)
    """
    listed = read_name_list(names_file(parts, names))
    key = hashlib.sha256("\n".join([parts.table_hash, str(release), *listed]).encode()).hexdigest()[:16]
    path = None if cache is None else cache / f"basis-{key}.safetensors"
    if path is not None and path.is_file():
        found = load_basis(path)
        if found is not None:
            return found
    pairs = token_pairs(parts.tokenizers[0], listed, release=release)
    tables = [parts.token_rows(encoder) for encoder in range(len(parts.tokenizers))]
    basis = basis_from_tables(tables, pairs, release=release)
    if path is not None:
        save_basis(basis, path)
    return basis


def save_basis(basis: CelebBasis, path: Path) -> None:
    """Write a basis with its hash, atomically."""
    from safetensors.numpy import save

    tensors = {
        f"{kind}.{encoder}": np.ascontiguousarray(array)
        for kind, arrays in (("mean", basis.mean), ("components", basis.components), ("spread", basis.spread))
        for encoder, array in enumerate(arrays)
    }
    atomic_write(path, save(tensors, metadata={"names": str(basis.names), "kind": basis.kind, "hash": basis.hash}))


def load_basis(path: Path) -> CelebBasis | None:
    """A cached basis, or None when the file is damaged."""
    try:
        tensors, metadata = read_tensors(path)
        encoders = sum(key.startswith("mean.") for key in tensors)
        mean, components, spread = (
            tuple(tensors[f"{kind}.{e}"] for e in range(encoders)) for kind in ("mean", "components", "spread")
        )
        basis = CelebBasis(mean, components, spread, int(metadata["names"]), metadata["kind"])
    except (OSError, KeyError, ValueError):
        return None
    return basis if encoders and basis.hash == metadata.get("hash") else None


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Every tensor of a safetensors file, in the dtypes it was written with, and its metadata ({} without any).

    Raises OSError when the file cannot be read, ValueError when it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    # the library's stub gives safe_open neither types nor the context manager's methods
    loose = cast(Any, safe_open)
    try:
        with loose(str(path), framework="np") as opened:
            metadata = cast("dict[str, str]", opened.metadata() or {})
            names = cast("list[str]", opened.keys())
            tensors: dict[str, NDArray[Any]] = {name: opened.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return tensors, metadata
