"""Laws of the celeb basis and of the names it is made from."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from celebctl.basis.basis import basis_from_tables, load_basis, principal_components, save_basis
from celebctl.basis.names import token_pairs
from celebctl_runtime.errors import InvalidInputError


class Words:
    """A tokenizer whose words are single tokens, except those with a hyphen, which split at it."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, texts: list[str], add_special_tokens: bool = False) -> "Words":
        del add_special_tokens
        pieces = [text.replace("-", " -").split() for text in texts]
        self.input_ids = [[self.known.setdefault(p, len(self.known)) for p in row] for row in pieces]
        return self


NAMES = [f"first{i} last{i}" for i in range(40)]


def table(rows: int = 200, width: int = 24) -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((rows, width)).astype(np.float32)


def test_names_that_are_not_two_whole_words_are_dropped_with_a_reason() -> None:
    found = token_pairs(Words(), ["Ada Byron", "ada  byron", "cher", "jean-luc picard", "ana de armas", ""])
    assert found.names == ("ada byron",)
    assert set(found.dropped) == {"cher", "jean-luc picard", "ana de armas"}
    assert "3 tokens" in found.dropped["jean-luc picard"]


def test_the_release_keeps_the_first_two_tokens_of_anything() -> None:
    found = token_pairs(Words(), ["jean-luc picard", "cher"], release=True)
    assert found.names == ("jean-luc picard",)


def test_components_are_orthonormal_and_their_sign_is_fixed() -> None:
    _, components, spread = principal_components(table(), 512, fill=False)
    np.testing.assert_allclose(components @ components.T, np.eye(24), atol=1e-5)
    largest = np.abs(components).argmax(1)
    assert (components[np.arange(24), largest] > 0).all()
    assert (np.diff(spread) <= 1e-6).all()


def test_rank_is_measured_and_null_space_is_only_filled_on_request() -> None:
    rows = table(10)  # ten rows span nine directions around their mean
    assert len(principal_components(rows, 512, fill=False)[1]) == 9
    _, filled, spread = principal_components(rows, 24, fill=True)
    assert filled.shape == (24, 24)
    assert (spread[9:] == 0).all() and (spread[:9] > 0).all()


def test_zero_coefficients_are_the_mean_and_every_celebrity_is_reached_exactly() -> None:
    tokenizer, rows = Words(), table()
    pairs = token_pairs(tokenizer, NAMES)
    basis = basis_from_tables([rows], pairs)
    nothing = np.zeros_like(basis.spread[0])
    np.testing.assert_array_equal(basis.embed((nothing,))[0], basis.mean[0])
    celebrity = rows[np.array(pairs.pairs)]  # (n, 2, D)
    again = np.stack([basis.embed((c,))[0] for c in basis.project(celebrity)])
    np.testing.assert_allclose(again, celebrity, atol=1e-4)


def test_repeated_tokens_weigh_once_unless_the_release_is_wanted() -> None:
    rows = table()
    pairs = token_pairs(Words(), [*NAMES, *[f"first0 other{i}" for i in range(30)]])
    distinct, release = basis_from_tables([rows], pairs), basis_from_tables([rows], pairs, release=True)
    assert distinct.kind == "distinct" and release.kind == "release"
    pull = [float(np.linalg.norm(b.mean[0][0] - rows[pairs.pairs[0][0]])) for b in (distinct, release)]
    assert pull[1] < pull[0]
    assert distinct.hash != release.hash


def test_too_few_names_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="only 1 of 2 names"):
        basis_from_tables([table()], token_pairs(Words(), ["ada byron", "cher"]))


def test_a_basis_survives_the_disk_and_a_damaged_one_is_not_believed(tmp_path: Path) -> None:
    basis = basis_from_tables([table()], token_pairs(Words(), NAMES))
    path = tmp_path / "basis.safetensors"
    save_basis(basis, path)
    again = load_basis(path)
    assert again is not None and again.hash == basis.hash
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 0x55
    path.write_bytes(raw)
    assert load_basis(path) is None
