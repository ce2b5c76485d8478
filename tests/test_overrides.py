"""Overrides: people for one run are drawn as if stored in the bundle, whose files do not change."""

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


def drawn(bundle: Bundle, *wanted: Request, overrides: tuple[Identity, ...] = ()) -> list[NDArray[Any]]:
    pictures = generate(bundle, OrtBackend(bundle, "cpu", 1), list(wanted), overrides=overrides)
    return [np.asarray(picture.image) for picture in pictures]


def test_an_override_is_drawn_like_a_stored_person_and_changes_no_file(bundle: Bundle) -> None:
    before = {path.name: sha256_file(path) for path in bundle.path.iterdir() if path.is_file()}
    picture = generate(bundle, OrtBackend(bundle, "cpu", 1), Request("carol and alice"), overrides=[CAROL])[0]
    assert {path.name: sha256_file(path) for path in bundle.path.iterdir() if path.is_file()} == before
    assert picture.record["identities"] == {"carol": CAROL.digest, "alice": ALICE.digest}
    bundle.add(CAROL)
    assert np.array_equal(np.asarray(picture.image), drawn(bundle, Request("carol and alice"))[0])
    bundle.verify("full")


def test_an_override_replaces_a_stored_person_for_one_run(bundle: Bundle) -> None:
    backend = OrtBackend(bundle, "cpu", 1)
    double = CAROL.renamed("alice")
    plain, overridden, again = (
        np.asarray(generate(bundle, backend, Request("alice"), overrides=people)[0].image)
        for people in ([], [double], [])
    )
    assert np.array_equal(plain, again) and not np.array_equal(plain, overridden)
    assert np.array_equal(overridden, drawn(bundle, Request("carol"), overrides=(CAROL,))[0])
    with pytest.raises(NotFoundError):
        generate(bundle, backend, Request("<carol>"))


def test_overrides_need_free_rows_and_the_same_model(bundle: Bundle) -> None:
    people = tuple(make_identity(f"p{number}", number) for number in range(3))
    with pytest.raises(SetupError) as caught:
        drawn(bundle, Request("p1"), overrides=people)
    assert caught.value.reason == "bundle_full" and caught.value.values["spare_rows"] == 32
    with pytest.raises(IntegrityError, match="dora"):
        drawn(bundle, Request("dora"), overrides=(make_identity("dora", table_hash="f" * 16),))


# Likeness.


def test_full_likeness_changes_nothing(bundle: Bundle) -> None:
    plain = drawn(bundle, Request("alice and bob"))[0]
    for likeness in (1.0, (("alice", 1.0),), (("alice", 1.0), ("bob", 1.0))):
        assert np.array_equal(plain, drawn(bundle, Request("alice and bob", likeness=likeness))[0])


def test_without_likeness_all_people_are_the_same(bundle: Bundle) -> None:
    alice, bob, carol = drawn(
        bundle, *(Request(f"{name} as an", likeness=0.0) for name in ("alice", "bob", "carol")), overrides=(CAROL,)
    )
    assert np.array_equal(alice, bob) and np.array_equal(alice, carol)
    assert not np.array_equal(alice, drawn(bundle, Request("alice as an"))[0])


def test_likeness_scales_embeddings_linearly(bundle: Bundle) -> None:
    """A person with likeness s is drawn like an override with the scaled embeddings."""
    rows = scale_identity(bundle.embeddings("alice"), AVERAGE, 0.25)
    assert np.allclose(rows[0], AVERAGE[0] + 0.25 * (bundle.embeddings("alice")[0] - AVERAGE[0]), atol=1e-6)
    scaled = replace(ALICE, name="carol", embeddings=rows)
    image = drawn(bundle, Request("alice of bob", likeness=(("alice", 0.25),)))[0]
    assert np.array_equal(image, drawn(bundle, Request("carol of bob"), overrides=(scaled,))[0])


def test_a_batch_with_different_likenesses_equals_single_images(bundle: Bundle) -> None:
    likenesses: list[Likeness] = [1.0, 0.5, (("alice", 0.5),), 0.0, 1.0]
    wanted = [Request("alice with bob", likeness=likeness) for likeness in likenesses]
    for request, image in zip(wanted, drawn(bundle, *wanted), strict=True):
        assert np.array_equal(image, drawn(bundle, request)[0])
    assert len({picture.tobytes() for picture in drawn(bundle, *wanted)}) == 4


def test_the_recipe_reproduces_an_image_with_likeness(bundle: Bundle) -> None:
    wanted = batch(Request("alice", likeness=(("alice", 0.3),)), 2)
    for picture in generate(bundle, OrtBackend(bundle, "cpu", 1), wanted):
        recipe = Request.from_json(picture.request.to_json())
        assert recipe == picture.request and np.array_equal(drawn(bundle, recipe)[0], np.asarray(picture.image))


@pytest.mark.parametrize("likeness", [1.5, -0.1, float("nan"), (("carol", 0.5),)])
def test_invalid_likeness_is_refused(bundle: Bundle, likeness: Likeness) -> None:
    with pytest.raises(UsageError, match="likeness"):
        drawn(bundle, Request("alice", likeness=likeness))


def test_a_bundle_without_the_average_refuses_likeness(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "old", average=None)
    bundle.add(ALICE)
    drawn(bundle, Request("alice", likeness=1.0))
    with pytest.raises(IntegrityError) as caught:
        drawn(bundle, Request("alice", likeness=0.5))
    assert caught.value.reason == "no_average_embeddings"


@pytest.mark.parametrize(
    ("text", "likeness"),
    [("0.8", 0.8), ("1", 1.0), ("alice=0.8, Bob=1", (("alice", 0.8), ("bob", 1.0))), ("alice=0", (("alice", 0.0),))],
)
def test_likeness_is_parsed(text: str, likeness: Likeness) -> None:
    assert parse_likeness(text) == likeness


@pytest.mark.parametrize("text", ["", "much", "1.1", "-1", "nan", "alice", "alice=0.5,bob", "alice=x", "42=0.5"])
def test_invalid_likeness_text_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_likeness(text)
    assert caught.value.hint
