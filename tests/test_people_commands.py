"""mix, strip, invent, nearest, and the dials of gen, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundle_doubles import AVERAGE, FAMILY, TABLE_HASH, WIDTH, make_identity
from desk_doubles import SHELF, Desk, recipe, refused, toy_bundle
from PIL import Image
from test_basis import NAMES, Words, table

import celebctl.method.vectors  # noqa: F401  # pyright: ignore[reportUnusedImport]
from celebctl.cli import kin
from celebctl.method.basis import basis_from_tables
from celebctl.method.names import token_pairs
from celebctl.method.vectors import Celebrities
from celebctl_runtime.bundle import Bundle
from celebctl_runtime.ort_backend import OrtBackend
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request


@pytest.mark.parametrize("command", ["mix", "strip", "invent", "nearest"])
def test_every_command_explains_itself(desk: Desk, command: str) -> None:
    said = desk(command, "--help")
    assert said.code == 0 and f"celebctl {command}" in said.out and not said.err


# mix


def test_mix_keeps_somebody_in_between(desk: Desk) -> None:
    desk.know("alice", "bob")
    said = desk("mix", "alice", "bob", "--t", "0.3", "--name", "carol")
    assert said.code == 0 and "carol is 70 % alice and 30 % bob" in said.err and "next: celebctl gen" in said.err
    carol, alice, bob = (desk.library.load(name) for name in ("carol", "alice", "bob"))
    assert np.allclose(carol.embeddings[0], 0.7 * alice.embeddings[0] + 0.3 * bob.embeddings[0], atol=1e-6)
    assert "mixed_from" in desk("show", "carol").out


def test_mix_of_three_as_a_document(desk: Desk) -> None:
    desk.know("alice", "bob", "carol")
    document = desk("mix", "alice", "bob", "carol", "--weights", "2,1,1", "--name", "dora", "--json").document
    assert [(parent["name"], parent["weight"]) for parent in document["parents"]] == [
        ("alice", 0.5), ("bob", 0.25), ("carol", 0.25),
    ]  # fmt: skip


def test_mixes_that_cannot_be(desk: Desk) -> None:
    desk.know("alice", "bob")
    desk.library.save(make_identity("zoe", table_hash="f" * 16))
    refused(desk("mix", "alice", "--name", "carol"), 2, "at least two")
    refused(desk("mix", "alice", "carol", "--name", "dora"), 4, "carol")
    refused(desk("mix", "alice", "zoe", "--name", "dora"), 5, "one model")
    refused(desk("mix", "alice", "bob", "--t", "2", "--name", "dora"), 2, "--t 2")
    refused(desk("mix", "alice", "bob", "--weights", "2,x", "--name", "dora"), 2, "'2,x'")
    refused(desk("mix", "alice", "bob", "--name", "photo"), 2, "'photo'")
    refused(desk("mix", "alice", "bob", "--name", "bob"), 2, "already know bob")
    assert desk.library.names() == ["alice", "bob", "zoe"]
    assert desk("mix", "alice", "bob", "--name", "bob", "--force").code == 0


def test_a_mix_without_a_name_takes_its_parents_and_nobody_elses_place(desk: Desk) -> None:
    desk.know("alice", "bob", "b" * 30)
    for name in ("alice-bob", "alice-bob-2"):
        said = desk("mix", "alice", "bob", "--t", "0.3")
        assert said.code == 0 and f"{name} is 70 % alice and 30 % bob" in said.err, said.err
    assert desk.library.load("alice-bob") == desk.library.load("alice-bob-2").renamed("alice-bob")
    assert desk("mix", "alice", "bob", "--json", "--force").document["name"] == "alice-bob-3"
    long = [desk("mix", "alice", "b" * 30, "--json").document["name"] for _ in range(2)]
    assert long == [f"alice-{'b' * 26}", f"alice-{'b' * 24}-2"]


# strip


def test_a_strip_moves_unless_it_is_to_stand_still(desk: Desk) -> None:
    desk.know("alice", "bob")
    toy_bundle(desk.library)
    words = ("strip", "alice", "bob", "--frames", "3", "--seed", "3", "--prompt", "{} as an")
    said = desk(*words, "--out", "way.png")
    assert said.code == 0 and said.lines == ["way.png", "way.gif"], said.err
    with Image.open("way.gif") as moving:
        assert getattr(moving, "n_frames", 1) == 4, "there and back"
    assert desk(*words, "--no-gif", "--json").document["gif"] is None
    assert not Path("strip.gif").exists()
    refused(desk(*words, "--no-gif", "--gif", "x.gif"), 2, "contradict")
    refused(desk(*words, "--out", "way.jpg"), 2, "way.gif exists")


def test_a_strip_changes_nothing_and_ends_with_the_parents(desk: Desk) -> None:
    desk.know("alice", "bob")
    bundle = toy_bundle(desk.library)
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir() if path.is_file()}
    words = ("strip", "alice", "bob", "--frames", "5", "--seed", "3", "--prompt", "{} as an", "--gif", "strip.gif")
    said = desk(*words)
    assert said.code == 0 and said.lines == ["strip.png", "strip.gif"], said.err
    assert {path.name: path.read_bytes() for path in bundle.path.iterdir() if path.is_file()} == before
    with Image.open("strip.png") as sheet:
        left = np.asarray(sheet.convert("RGB").crop((6, 6, 6 + 128, 6 + 128)))
    alone = generate(bundle, OrtBackend(bundle), Request("alice as an", seed=3), guests=[desk.library.load("alice")])[0]
    assert np.array_equal(left, np.asarray(alone.image.resize((128, 128), Image.Resampling.LANCZOS)))
    refused(desk(*words), 2, "exists")
    assert desk(*words, "--force", "--json").document["weights"][2] == [0.5, 0.5]


def test_a_full_bundle_still_has_room_for_a_strip_when_one_place_is_left(desk: Desk) -> None:
    desk.know("alice", "bob", "carol")
    bundle = toy_bundle(desk.library, *(make_identity(f"p{number}", number) for number in range(2)))
    said = desk("strip", "alice", "bob", "carol", "--frames", "5", "--seed", "1", "--prompt", "{} of carol")
    assert said.code == 0, said.err
    bundle.add(make_identity("p2", 5))
    bundle.add(make_identity("p3", 6))
    refused(desk("strip", "alice", "bob", "--force"), 6, "0 more people", "--spare-rows")


def test_strips_that_cannot_be(desk: Desk) -> None:
    desk.know("alice", "bob")
    refused(desk("strip", "alice"), 2, "from one person to another")
    refused(desk("strip", "alice", "bob", "--frames", "1"), 2, "--frames 1")
    refused(desk("strip", "alice", "bob", "--prompt", "a photo"), 2, "no place")
    refused(desk("strip", "alice", "bob", "--out", "x.gif"), 2, "x.gif")
    refused(desk("strip", "alice", "bob", "--gif", "x.png"), 2, "x.png")
    toy_bundle(desk.library)
    refused(desk("strip", "alice", "bert"), 4, "bert")
    assert not list(Path().iterdir())


# invent, nearest


@pytest.fixture
def celebrities(monkeypatch: pytest.MonkeyPatch) -> Celebrities:
    """Forty celebrities of the toy model."""
    pairs, rows = token_pairs(Words(), NAMES), table(width=WIDTH)
    basis, found = basis_from_tables([rows], pairs), Celebrities(pairs.names, (rows[np.array(pairs.pairs)],))
    card = SimpleNamespace(mapper_file=None)
    parts = SimpleNamespace(name="toy", family=FAMILY, table_hash=TABLE_HASH, card=card)

    def open_basis(*_: Any) -> Any:
        return parts, basis, found

    def reader_of(_: Any) -> Any:
        def read(rows: Any) -> Any:
            return rows[0].reshape(len(rows[0]), -1).astype(float)

        return read

    monkeypatch.setattr(kin, "open_basis", open_basis)
    monkeypatch.setattr(kin, "reader_of", reader_of)
    return found


@pytest.mark.usefixtures("celebrities")
def test_invent_keeps_somebody_who_can_be_told_again(desk: Desk) -> None:
    said = desk("invent", "--seed", "5", "--name", "dana")
    assert said.code == 0 and "dana is nobody (seed 5); nearest celebrity: First" in said.err
    dana = desk.library.load("dana")
    refused(desk("invent", "--seed", "6", "--name", "dana"), 2, "already know dana")
    document = desk("invent", "--seed", "5", "--name", "dora", "--json").document
    assert document["digest"] == dana.digest and document["nearest"]["cosine"] < 0.6
    refused(desk("invent", "--seed", "-1", "--name", "dina"), 2, "seed -1")
    assert "nobody-1 is nobody (seed " in desk("invent").err
    assert desk("invent", "--json").document["name"] == "nobody-2"
    toy_bundle(desk.library)
    assert desk("gen", "dana and dora", "-s", "1").code == 0


@pytest.mark.usefixtures("celebrities")
def test_nearest_tells_celebrities_and_acquaintances(desk: Desk) -> None:
    for name, seed in (("dana", "5"), ("dora", "5"), ("dina", "9")):
        desk("invent", "--seed", seed, "--name", name)
    said = desk("nearest", "dana", "--top", "3")
    assert said.code == 0 and len(said.lines) == 3
    assert said.lines[0].split("\t") == ["dora", "yours", "1.00", "1.00", "1.00", "0.00"]
    found = desk("nearest", "dana", "--top", "100", "--json").document["nearest"]
    assert len(found) == 42 and {one["kind"] for one in found} == {"celebrity", "identity"}
    refused(desk("nearest", "dana", "--top", "0"), 2, "--top 0")
    refused(desk("nearest", "carol"), 4, "carol")
    desk.library.save(make_identity("zoe", table_hash="f" * 16))
    refused(desk("nearest", "zoe"), 5, "another model")


# The dials of gen.


def test_gen_writes_dials_into_the_recipe_and_regen_follows_it(desk: Desk) -> None:
    desk.know("alice", "bob")
    toy_bundle(desk.library)
    words = ("gen", "alice and bob", "-s", "4", "--likeness", "alice=0.5,bob=1", "--layout", "right:alice,left:bob")
    said = desk(*words)
    assert "guidance 2.5, likeness alice=0.5,bob=1, layout right:alice,left:bob" in said.err
    path = Path(said.lines[0])
    request = recipe(path)
    assert request.likeness == (("alice", 0.5), ("bob", 1.0)) and request.layout == "right:alice,left:bob"
    said = desk("regen", path)
    assert said.code == 0 and "the same, to the last pixel" in said.err
    with Image.open(path) as picture:
        assert "Layout" in picture.info["parameters"] and "Likeness" in picture.info["parameters"]
    plain = Path(desk("gen", "alice and bob", "-s", "4", "-o", "plain.png").lines[0])
    full = Path(
        desk("gen", "alice and bob", "-s", "4", "-o", "full.png", "--likeness", "1", "--layout", "none").lines[0]
    )
    assert np.array_equal(np.asarray(Image.open(plain)), np.asarray(Image.open(full)))
    for path in (plain, full):
        with Image.open(path) as picture:
            assert not {"likeness", "layout"} & json.loads(picture.info["celebctl"])["request"].keys()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--likeness", "2"), "likeness 2"),
        (("--likeness", "bob=0.5"), "bob"),
        (("--likeness", "alice"), "'alice'"),
        (("--layout", "north:alice"), "north"),
        (("--layout", "left:bob"), "bob"),
        (("--layout", "alice@0,0,2,1"), "outside"),
    ],
)
def test_gen_refuses_dials_that_make_no_sense(
    desk: Desk, words: tuple[str, str], problem: str
) -> None:  # fmt: skip
    desk.know("alice", "bob")
    toy_bundle(desk.library)
    refused(desk("gen", "alice", *words), 2, problem)
    assert not list(Path().glob("*.png"))


def test_export_tells_the_bundle_who_the_average_celebrity_is(desk: Desk) -> None:
    desk.know("alice")
    assert desk("export").code == 0
    bundle: Bundle = desk.bundle()
    assert np.array_equal(bundle.average()[0], AVERAGE[0])
    assert SHELF == "toy-01234567" and desk("gen", "alice", "-s", "1", "--likeness", "0.5").code == 0
