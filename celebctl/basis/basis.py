"""The celeb basis: a PCA over the token embeddings of celebrity names (paper, section 3.2 and equations 2 and 3).

For each token position j, first name and last name: the mean over the names' rows of the checkpoint's own token table,
and the directions in which those rows differ. A person is ``embedding_j = mean_j + coefficients_j @ components_j``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import InvalidInputError
from celebctl_runtime.files import atomic_write

from .names import TokenPairs, read_names, token_pairs

Floats = NDArray[np.float32]

#: Components per token position in the paper; 2 x 512 = 1024 coefficients.
COMPONENTS = 512
_BEFORE_HASH = 8  # decimals that survive different LAPACKs in practice


@dataclass(frozen=True, eq=False)
class CelebBasis:
    """Mean and components per text encoder (E of them), token position (2) and component (K).

    mean: E arrays (2, D) float32. components: E arrays (2, K, D), rows orthonormal, sign fixed so that the entry of
    largest magnitude is positive. spread: E arrays (2, K), standard deviation of the celebrities along each component,
    zero for null-space directions. names: how many names went in. kind: "distinct" or "release".
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
        """SHA-256 of the arrays; an identity is tied to it."""
        digest = hashlib.sha256(f"{self.kind}:{self.names}".encode())
        for arrays in (self.mean, self.components, self.spread):
            for array in arrays:
                digest.update(f"{array.shape}".encode() + np.round(array, _BEFORE_HASH).astype("<f4").tobytes())
        return digest.hexdigest()

    def embed(self, coefficients: tuple[Floats, ...]) -> tuple[Floats, ...]:
        """Coefficients, E arrays (2, K), to token embeddings, E arrays (2, D) (paper, equation 3)."""
        return tuple(
            (mean + np.einsum("jk,jkd->jd", given, components)).astype(np.float32)
            for given, mean, components in zip(coefficients, self.mean, self.components, strict=True)
        )

    def split(self, flat: NDArray[Any]) -> tuple[Floats, ...]:
        """All coefficients (S,), those of one text encoder after the other's, as E arrays (2, K)."""
        ends = np.cumsum([spread.size for spread in self.spread])[:-1]
        parts = zip(np.split(flat, ends), self.spread, strict=True)
        return tuple(part.reshape(spread.shape).astype(np.float32) for part, spread in parts)

    def project(self, embeddings: Floats, encoder: int = 0) -> Floats:
        """Embeddings (n, 2, D) to the coefficients (n, 2, K) of their nearest points in the basis."""
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
    """The basis from the token table (V, D) of every text encoder. Raises InvalidInputError when too few names are left."""
    if len(pairs.names) < 3:
        raise InvalidInputError(
            f"only {len(pairs.names)} of {len(pairs.names) + len(pairs.dropped)} names can be used for the celeb basis",
            "give a list with more two-word names that the tokenizer keeps whole",
        )
    mean, components, spread = zip(*(_of_one_table(table, pairs, release) for table in tables), strict=True)
    count = len(pairs.names) + len(pairs.first_only)
    return CelebBasis(mean, components, spread, count, "release" if release else "distinct")


def _of_one_table(table: Floats, pairs: TokenPairs, release: bool) -> tuple[Floats, Floats, Floats]:
    """Mean (2, D), components (2, K, D) and spread (2, K); K is what both positions have."""
    found: list[tuple[Floats, Floats, Floats]] = []
    for position in range(2):
        column = np.array(pairs.column(position)) if release else np.unique(pairs.column(position))
        found.append(principal_components(table[column], min(COMPONENTS, table.shape[1]), fill=release))
    shared = min(len(components) for _, components, _ in found)
    mean, components, spread = (np.stack([part[i][:shared] if i else part[i] for part in found]) for i in range(3))
    return mean, components, spread


def build_basis(parts: Any, cache: Path | None = None, *, release: bool = False) -> CelebBasis:
    """The celeb basis of a loaded model, from its token table and its names; cached on disk under ``cache``.

    The cache key holds table, names and kind, so a fine-tuned text encoder or an edited list never meets an old basis.
    """
    names = read_names(parts)
    key = hashlib.sha256("\n".join([parts.table_hash, str(release), *names]).encode()).hexdigest()[:16]
    path = None if cache is None else cache / f"basis-{key}.safetensors"
    if path is not None and path.is_file():
        found = load_basis(path)
        if found is not None:
            return found
    pairs = token_pairs(parts.tokenizers[0], names, release=release)
    tables = [parts.token_rows(encoder) for encoder in range(len(parts.tokenizers))]
    basis = basis_from_tables(tables, pairs, release=release)
    if path is not None:
        save_basis(basis, path)
    return basis


def save_basis(basis: CelebBasis, path: Path) -> None:
    from safetensors.numpy import save

    tensors = {
        f"{kind}.{encoder}": np.ascontiguousarray(array)
        for kind, arrays in (("mean", basis.mean), ("components", basis.components), ("spread", basis.spread))
        for encoder, array in enumerate(arrays)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, save(tensors, metadata={"names": str(basis.names), "kind": basis.kind, "hash": basis.hash}))


def load_basis(path: Path) -> CelebBasis | None:
    """A cached basis, or None when the file is damaged: the caller builds it again."""
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
