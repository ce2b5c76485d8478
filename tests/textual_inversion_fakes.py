"""Identities, and torch files that hold them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from celebctl.textual_inversion import read_contents, token_rows
from celebctl_runtime.identity import Identity

torch: Any = pytest.importorskip("torch")

Rows = NDArray[np.float32]
ROWS = np.random.default_rng(0).normal(0, 0.02, (2, 768)).astype(np.float32)
XL_ROWS = np.random.default_rng(1).normal(0, 0.02, (2, 1280)).astype(np.float32)
FACTS: dict[str, Any] = {"basis_hash": "b" * 64, "table_hash": "c" * 64}


def alice() -> Identity:
    return Identity("alice", (ROWS[:, :5],), (ROWS,), family="sd1", **FACTS)


def alice_xl() -> Identity:
    return Identity("alice", (ROWS[:, :5], ROWS[:, :4]), (ROWS, XL_ROWS), family="sdxl", **FACTS)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def torch_file(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def rows_in(path: Path, **options: Any) -> tuple[Rows, ...]:
    return token_rows(read_contents(path), path, **options)


TENSOR = torch.from_numpy(ROWS)


def release_files(folder: Path, components: int = 7) -> tuple[Path, Path, Rows]:
    """celeb_basis.pt and id_coefficient_000.pt as extract_pt.py writes them, and the rows that they stand for."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.randn(2, 1 + components, 768, generator=generator)
    coefficients = torch.randn(2, 1, components, generator=generator)
    rows = torch.einsum("ehk,ekc->ehc", coefficients, basis[:, 1:]) + basis[:, 0].unsqueeze(1)
    paths = torch_file(folder / "celeb_basis.pt", basis), torch_file(folder / "id_coefficient_000.pt", coefficients)
    return *paths, rows.reshape(2, 768).numpy()


class Evil:
    """Asks whoever unpickles it to make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)
