"""People for one run: they look as if they lived in the bundle, and the bundle never hears of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_fakes import AVERAGE, make_identity, write_bundle
from numpy.typing import NDArray

from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import IntegrityError, NotFoundError, SetupError, UsageError
from celebctl_runtime.files import sha256_file
from celebctl_runtime.identity import Identity
from celebctl_runtime.pipeline import generate
from celebctl_runtime.prompting.likeness import Likeness, parse_likeness, scale_identity
from celebctl_runtime.request import Request, batch

ALICE, BOB, CAROL = (make_identity(name, seed) for seed, name in enumerate(("alice", "bob", "carol"), 1))


@pytest.fixture(params=["float32", "float16"])
def bundle(tmp_path: Path, request: pytest.FixtureRequest) -> Bundle:
    bundle = write_bundle(tmp_path / "bundle", dtype=str(request.param))
    bundle.add(ALICE)
    bundle.add(BOB)
    return bundle


def drawn(bundle: Bundle, *wanted: Request, guests: tuple[Identity, ...] = ()) -> list[NDArray[Any]]:
    pictures = generate(bundle, OrtBackend(bundle, "cpu", 1), list(wanted), overrides=guests)
    return [np.asarray(picture.image) for picture in pictures]


def test_a_guest_is_drawn_like_a_resident_and_leaves_no_trace(bundle: Bundle) -> None:
    before = {path.name: sha256_file(path) for path in bundle.path.iterdir() if path.is_file()}
    picture = generate(bundle, OrtBackend(bundle, "cpu", 1), Request("carol and alice"), overrides=[CAROL])[0]
    assert {path.name: sha256_file(path) for path in bundle.path.iterdir() if path.is_file()} == before
    assert picture.record["identities"] == {"carol": CAROL.digest, "alice": ALICE.digest}
    bundle.add(CAROL)
    assert np.array_equal(np.asarray(picture.image), drawn(bundle, Request("carol and alice"))[0])
    bundle.verify("full")


def test_a_guest_goes_before_a_namesake_for_one_run_only(bundle: Bundle) -> None:
    backend = OrtBackend(bundle, "cpu", 1)
    double = CAROL.renamed("alice")
    plain, guest, again = (
        np.asarray(generate(bundle, backend, Request("alice"), overrides=guests)[0].image) for guests in ([], [double], [])
    )
    assert np.array_equal(plain, again) and not np.array_equal(plain, guest)
    assert np.array_equal(guest, drawn(bundle, Request("carol"), guests=(CAROL,))[0])
    with pytest.raises(NotFoundError):
        generate(bundle, backend, Request("<carol>"))


def test_guests_need_free_places_and_the_same_model(bundle: Bundle) -> None:
    crowd = tuple(make_identity(f"p{number}", number) for number in range(3))
    with pytest.raises(SetupError, match="2 more people, not for 3") as caught:
        drawn(bundle, Request("p1"), guests=crowd)
    assert "--spare-rows" in caught.value.hint
    with pytest.raises(IntegrityError, match="another model"):
        drawn(bundle, Request("dora"), guests=(make_identity("dora", table_hash="f" * 16),))


# The likeness dial.


def test_full_likeness_is_no_dial(bundle: Bundle) -> None:
    plain = drawn(bundle, Request("alice and bob"))[0]
    for likeness in (1.0, (("alice", 1.0),), (("alice", 1.0), ("bob", 1.0))):
        assert np.array_equal(plain, drawn(bundle, Request("alice and bob", likeness=likeness))[0])


def test_without_likeness_everybody_is_the_same(bundle: Bundle) -> None:
    alice, bob, carol = drawn(
        bundle, *(Request(f"{name} as an", likeness=0.0) for name in ("alice", "bob", "carol")), guests=(CAROL,)
    )
    assert np.array_equal(alice, bob) and np.array_equal(alice, carol)
    assert not np.array_equal(alice, drawn(bundle, Request("alice as an"))[0])


def test_the_dial_moves_rows_in_a_straight_line(bundle: Bundle) -> None:
    """A dialled person is the person with those rows."""
    rows = scale_identity(bundle.embeddings("alice"), AVERAGE, 0.25)
    assert np.allclose(rows[0], AVERAGE[0] + 0.25 * (bundle.embeddings("alice")[0] - AVERAGE[0]), atol=1e-6)
    by_hand = replace(ALICE, name="carol", embeddings=rows)
    dial = drawn(bundle, Request("alice of bob", likeness=(("alice", 0.25),)))[0]
    assert np.array_equal(dial, drawn(bundle, Request("carol of bob"), guests=(by_hand,))[0])


def test_a_batch_with_different_dials_is_its_single_pictures(bundle: Bundle) -> None:
    dials: list[Likeness] = [1.0, 0.5, (("alice", 0.5),), 0.0, 1.0]
    wanted = [Request("alice with bob", likeness=dial) for dial in dials]
    for one, together in zip(wanted, drawn(bundle, *wanted), strict=True):
        assert np.array_equal(together, drawn(bundle, one)[0])
    assert len({picture.tobytes() for picture in drawn(bundle, *wanted)}) == 4


def test_the_recipe_of_a_dialled_picture_draws_it_again(bundle: Bundle) -> None:
    wanted = batch(Request("alice", likeness=(("alice", 0.3),)), 2)
    for picture in generate(bundle, OrtBackend(bundle, "cpu", 1), wanted):
        recipe = Request.from_json(picture.request.to_json())
        assert recipe == picture.request and np.array_equal(drawn(bundle, recipe)[0], np.asarray(picture.image))


@pytest.mark.parametrize("likeness", [1.5, -0.1, float("nan"), (("carol", 0.5),)])
def test_impossible_dials_are_refused(bundle: Bundle, likeness: Likeness) -> None:
    with pytest.raises(UsageError, match="likeness"):
        drawn(bundle, Request("alice", likeness=likeness))


def test_a_bundle_without_the_average_says_how_to_get_it(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "old", average=None)
    bundle.add(ALICE)
    drawn(bundle, Request("alice", likeness=1.0))
    with pytest.raises(IntegrityError, match="average celebrity") as caught:
        drawn(bundle, Request("alice", likeness=0.5))
    assert "celebctl export" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "meant"),
    [("0.8", 0.8), ("1", 1.0), ("alice=0.8, Bob=1", (("alice", 0.8), ("bob", 1.0))), ("alice=0", (("alice", 0.0),))],
)
def test_dials_as_they_are_typed(text: str, meant: Likeness) -> None:
    assert parse_likeness(text) == meant


@pytest.mark.parametrize("text", ["", "much", "1.1", "-1", "nan", "alice", "alice=0.5,bob", "alice=x", "42=0.5"])
def test_mistyped_dials_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_likeness(text)
    assert caught.value.hint
