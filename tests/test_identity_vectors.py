"""People as vectors: what mixing, inventing and comparing must hold whoever the people are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundle_fakes import FAMILY, TABLE_HASH, make_identity
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_basis import NAMES, Words, table

from celebctl.animation import Timing, keyframes
from celebctl.basis.basis import CelebBasis, basis_from_tables
from celebctl.basis.identity_vectors import (
    MAX_COSINE,
    Celebrities,
    deviations,
    mix,
    mixing_weights,
    neighbours,
    sampled_identity,
)
from celebctl.basis.names import token_pairs
from celebctl.interpolation_strip import labels, lay_out, weights_of
from celebctl.learning.instant import SAMPLE_SCALE, IdentityPrior
from celebctl_runtime.errors import IntegrityError, InvalidInputError, UsageError
from celebctl_runtime.identity import Identity

ALICE, BOB, CAROL = (make_identity(name, seed) for seed, name in enumerate(("alice", "bob", "carol"), 1))
MODEL = (FAMILY, TABLE_HASH)
shares = st.floats(0, 1).map(lambda t: round(t, 6))


def same_numbers(one: Identity, other: Identity) -> bool:
    return one.digest == other.digest


@pytest.fixture(scope="module")
def world() -> tuple[CelebBasis, Celebrities]:
    """Forty celebrities of two text encoders, of different widths and scales."""
    pairs = token_pairs(Words(), NAMES)
    tables = [table(), 3 * table(width=40)]
    rows = tuple(rows[np.array(pairs.pairs)] for rows in tables)
    return basis_from_tables(tables, pairs), Celebrities(pairs.names, rows)


# Mixing.


def test_the_ends_of_a_mix_are_the_parents_to_the_last_bit() -> None:
    flat = replace(ALICE, embeddings=(-np.zeros((2, 8), np.float32) + np.eye(2, 8, dtype=np.float32),))
    for parent, t in ((flat, 0.0), (BOB, 1.0)):
        made = mix([flat, BOB], t, name="dora")
        assert same_numbers(made, parent) and made.name == "dora"
        assert made.embeddings[0].tobytes() == parent.embeddings[0].tobytes()


@settings(max_examples=60, deadline=None)
@given(shares)
def test_who_is_named_first_does_not_matter(t: float) -> None:
    one = mix([ALICE, BOB], t, name="dora")
    other = mix([BOB, ALICE], round(1 - t, 12), name="dora")
    assert same_numbers(one, other)


def test_a_mix_of_many_is_their_weighted_sum_in_any_order() -> None:
    people, weights = [ALICE, BOB, CAROL], [2.0, 1.0, 1.0]
    made = mix(people, weights, name="dora")
    expected = 0.5 * ALICE.embeddings[0] + 0.25 * BOB.embeddings[0] + 0.25 * CAROL.embeddings[0]
    assert np.allclose(made.embeddings[0], expected, atol=1e-6)
    assert same_numbers(made, mix(people[::-1], weights[::-1], name="dora"))
    assert same_numbers(mix([ALICE, ALICE], (0.5, 0.5), name="x"), ALICE)


def test_a_mix_says_where_it_comes_from_and_survives_its_file(tmp_path: Path) -> None:
    made = mix([ALICE, BOB], 0.3, name="dora")
    made.save(tmp_path / "dora.safetensors")
    again = Identity.load(tmp_path / "dora.safetensors")
    assert again == made and made.basis_hash == ALICE.basis_hash
    assert again.provenance["mixed_from"] == f"alice 0.7 ({ALICE.digest[:12]}), bob 0.3 ({BOB.digest[:12]})"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(BOB, table_hash="f" * 16), "another"),
        (replace(BOB, family="sdxl"), "another"),
        (replace(BOB, basis_hash="other"), "celeb bases"),
    ],
)
def test_people_of_different_kinds_do_not_mix(other: Identity, words: str) -> None:
    with pytest.raises(IntegrityError, match=words) as caught:
        mix([ALICE, other], (0.5, 0.5), name="dora")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("count", "weights"),
    [
        (1, None),
        (2, 1.5),
        (2, float("nan")),
        (3, 0.5),
        (2, [1.0]),
        (2, [0.0, 0.0]),
        (2, [1.0, -1.0]),
        (2, [1.0, float("inf")]),
    ],
)
def test_invalid_weights_are_refused(count: int, weights: float | list[float] | None) -> None:
    with pytest.raises(UsageError) as caught:
        mixing_weights(count, weights)
    assert caught.value.hint


# Inventing and comparing.


def test_the_same_seed_is_the_same_person(world: tuple[CelebBasis, Celebrities]) -> None:
    basis, celebrities = world
    one, again, other = (sampled_identity("dana", seed, celebrities, basis, MODEL)[0] for seed in (5, 5, 6))
    assert one == again and one.digest != other.digest
    assert one.basis_hash == basis.hash and one.provenance["sample_seed"] == "5"
    for row, embedded in zip(one.embeddings, basis.embed(one.coefficients), strict=True):
        assert np.array_equal(row, embedded)


def test_invented_people_spread_as_celebrities_do(world: tuple[CelebBasis, Celebrities]) -> None:
    """Mean and covariance of many draws are the celebrities', over both names and both text encoders."""
    basis, celebrities = world
    people = [sampled_identity("dana", seed, celebrities, basis, MODEL)[0] for seed in range(3000)]
    drawn = deviations([np.stack([one.embeddings[e] for one in people]) for e in range(2)], basis)[:, :, :30]
    real = deviations(celebrities.rows, basis)[:, :, :30]
    assert np.abs(drawn.mean(0)).max() < 0.02
    covariance, wanted = (np.cov(points.reshape(len(points), -1).T) for points in (drawn, real))
    assert np.abs(covariance - wanted).max() < 0.15 * np.abs(wanted).max()


def test_prior_are_drawn_where_the_model_was_taught_with_some(world: tuple[CelebBasis, Celebrities]) -> None:
    """Mean and covariance of the codes are those that the mapper remembers, stretched; nothing else is drawn."""
    basis, celebrities = world
    rng = np.random.default_rng(0)
    root = np.tril(rng.standard_normal((3, 3))).astype(np.float32)
    layers = {
        "code_mean": np.array([1.0, -2.0, 0.5], np.float32), "code_cov_sqrt": root,
        "middle.weight": np.eye(3, dtype=np.float32), "middle.bias": np.full(3, 50.0, np.float32),  # GELU is 1 here
        "up.weight": 1e-3 * np.linalg.qr(rng.standard_normal((basis.size, 3)))[0].astype(np.float32),
        "up.bias": np.zeros(basis.size, np.float32),
    }  # fmt: skip
    met = IdentityPrior(layers, bound=2.5)
    people = [sampled_identity("dana", seed, celebrities, basis, MODEL, met)[0] for seed in range(2000)]
    units = np.stack([
        np.concatenate([(c / s).ravel() for c, s in zip(one.coefficients, basis.spread, strict=True)]) for one in people
    ])  # fmt: skip
    codes = units @ layers["up.weight"] * 1e6 - 50.0
    assert np.abs(codes.mean(0) - layers["code_mean"]).max() < 0.3
    wanted = SAMPLE_SCALE**2 * root @ root.T
    assert np.abs(np.cov(codes.T) - wanted).max() < 0.15 * np.abs(wanted).max()
    again = sampled_identity("dana", 7, celebrities, basis, MODEL, met)[0]
    assert again == people[7] and again.digest != people[8].digest


def test_no_sampled_identity_is_a_celebrity(world: tuple[CelebBasis, Celebrities]) -> None:
    basis, celebrities = world
    for seed in range(50):
        person, nearest = sampled_identity("dana", seed, celebrities, basis, MODEL)
        assert nearest.cosine < MAX_COSINE and nearest == neighbours(person, celebrities, [], basis)[0]
    two = Celebrities(celebrities.names[:2], tuple(rows[:2] for rows in celebrities.rows))
    with pytest.raises(InvalidInputError):  # of two celebrities there is only the line through both
        mean = tuple(rows[:2].mean(0) for rows in celebrities.rows)
        sampled_identity("dana", 1, two, replace(basis, mean=mean), MODEL)


def test_a_celebrity_is_nearest_to_themself(world: tuple[CelebBasis, Celebrities]) -> None:
    basis, celebrities = world
    star = Identity(
        "star", tuple(basis.project(rows[7:8], e)[0] for e, rows in enumerate(celebrities.rows)),
        tuple(rows[7] for rows in celebrities.rows), basis.hash, *MODEL,
    )  # fmt: skip
    found = neighbours(star, celebrities, [star.renamed("twin")], basis)
    assert {one.name for one in found[:2]} == {celebrities.names[7], "twin"}
    for one in found[:2]:
        assert one.cosine == pytest.approx(1) and one.first == pytest.approx(1) and one.distance < 1e-6
    assert [one.cosine for one in found] == sorted((one.cosine for one in found), reverse=True)
    assert sum(one.celebrity for one in found) == 40


def test_a_celebrity_is_one_from_the_average(world: tuple[CelebBasis, Celebrities]) -> None:
    lengths = np.square(deviations(world[1].rows, world[0])).sum((1, 2))
    assert lengths.mean() == pytest.approx(1, abs=0.05)


def test_what_the_model_reads_decides_where_it_is_asked(world: tuple[CelebBasis, Celebrities]) -> None:
    """A reading that only hears last names makes those nearest who share one; the parts are told as ever."""
    basis, celebrities = world
    person, _ = sampled_identity("dana", 1, celebrities, basis, MODEL)
    twin = replace(person, name="twin", embeddings=tuple(
        np.stack([other[0], own[1]]) for own, other in zip(person.embeddings, basis.mean, strict=True)
    ))  # fmt: skip
    plain = neighbours(person, celebrities, [twin], basis)
    result = neighbours(person, celebrities, [twin], basis, lambda rows: rows[1][:, 1].astype(float))
    assert result[0].name == "twin" and result[0].cosine == pytest.approx(1) and result[0].distance < 1e-6
    (before,) = (one for one in plain if one.name == "twin")
    assert (before.first, before.last) == (result[0].first, result[0].last) and before.cosine < 0.99
    middle = np.sqrt(np.mean([one.distance**2 for one in result if one.celebrity]))
    assert 0.5 < middle < 4, "a celebrity is 1 from the average in readings too"


def test_people_of_another_model_are_not_compared(world: tuple[CelebBasis, Celebrities]) -> None:
    basis, celebrities = world
    person, _ = sampled_identity("dana", 1, celebrities, basis, MODEL)
    neighbours(person, celebrities, [replace(person, basis_hash="older")], basis)
    with pytest.raises(IntegrityError):
        neighbours(person, celebrities, [replace(person, table_hash="other")], basis)


# Strips.


def test_labels_tell_who_it_is() -> None:
    assert labels(["alice", "bob"], weights_of(keyframes(2, Timing(5, route="once", easing="linear")), 2)) == [
        "alice",
        "25 % bob",
        "50 % bob",
        "75 % bob",
        "bob",
    ]


def test_strips_show_every_picture() -> None:
    colours = [(255, 0, 0), (0, 160, 0), (0, 0, 255)]
    pictures = [Image.new("RGB", (300, 200), colour) for colour in colours]
    sheet = lay_out(pictures, ["alice", "a label that is much too long for such a small picture", "bob"])
    assert {sheet.getpixel((at, 100)) for at in range(sheet.width)} >= set(colours)
    many = lay_out(pictures * 4, ["x"] * 12)
    assert many.height > 1.9 * sheet.height and many.width < 11 * 270


def test_mixing_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import celebctl.basis.identity_vectors, celebctl.interpolation_strip, celebctl.cli.mix"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
