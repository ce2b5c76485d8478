"""mix, interpolate, sample, nearest, and the likeness and layout of gen."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from bundle_fakes import AVERAGE, FAMILY, TABLE_HASH, WIDTH, make_identity
from console_fakes import MODEL_KEY, CommandLine, recipe, refused, toy_bundle
from PIL import Image
from test_basis import NAMES, Words, table

import celebctl.basis.identity_vectors  # noqa: F401  # pyright: ignore[reportUnusedImport]
from celebctl.basis.basis import basis_from_tables
from celebctl.basis.identity_vectors import Celebrities
from celebctl.basis.names import token_pairs
from celebctl.bundles import bundles_of, plain_bundle_of
from celebctl.grid import GAP
from celebctl.identity_card import card_facts
from celebctl.model import Model
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request


@pytest.mark.parametrize("command", ["mix", "interpolate", "sample", "nearest"])
def test_every_command_explains_itself(console: CommandLine, command: str) -> None:
    result = console(command, "--help")
    assert result.code == 0 and f"celebctl {command}" in result.out and not result.err


# mix


def test_mix_saves_a_weighted_average(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    result = console("mix", "alice", "bob", "--weight", "0.3", "--name", "carol")
    assert result.code == 0 and "carol is 70 % alice and 30 % bob" in result.err and "next: celebctl gen" in result.err
    carol, alice, bob = (console.library.load(name) for name in ("carol", "alice", "bob"))
    assert np.allclose(carol.embeddings[0], 0.7 * alice.embeddings[0] + 0.3 * bob.embeddings[0], atol=1e-6)
    assert "mixed_from" in console("show", "carol").out


def test_mix_of_three_as_a_document(console: CommandLine) -> None:
    console.add_people("alice", "bob", "carol")
    document = console("mix", "alice", "bob", "carol", "--weights", "2,1,1", "--name", "dora", "--json").document
    assert [(parent["name"], parent["weight"]) for parent in document["parents"]] == [
        ("alice", 0.5), ("bob", 0.25), ("carol", 0.25),
    ]  # fmt: skip


def test_invalid_mixes_are_refused(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    console.library.save(make_identity("zoe", table_hash="f" * 16))
    refused(console("mix", "alice", "--name", "carol"), 2, "at least two")
    refused(console("mix", "alice", "carol", "--name", "dora"), 4, "carol")
    refused(console("mix", "alice", "zoe", "--name", "dora"), 5, "one model")
    refused(console("mix", "alice", "bob", "--weight", "2", "--name", "dora"), 2, "2")
    refused(console("mix", "alice", "bob", "--weights", "2,x", "--name", "dora"), 2, "'2,x'")
    refused(console("mix", "alice", "bob", "--name", "photo"), 2, "'photo'")
    refused(console("mix", "alice", "bob", "--name", "bob"), 2, "'bob' is taken")
    assert console.library.names() == ["alice", "bob", "zoe"]
    assert console("mix", "alice", "bob", "--name", "bob", "--force").code == 0


def test_a_mix_without_a_name_is_named_after_its_parents(console: CommandLine) -> None:
    console.add_people("alice", "bob", "b" * 30)
    for name in ("alice-bob", "alice-bob-2"):
        result = console("mix", "alice", "bob", "--weight", "0.3")
        assert result.code == 0 and f"{name} is 70 % alice and 30 % bob" in result.err, result.err
    assert console.library.load("alice-bob") == console.library.load("alice-bob-2").renamed("alice-bob")
    assert console("mix", "alice", "bob", "--json", "--force").document["name"] == "alice-bob-3"
    long = [console("mix", "alice", "b" * 30, "--json").document["name"] for _ in range(2)]
    assert long == [f"alice-{'b' * 26}", f"alice-{'b' * 24}-2"]


# interpolate


def test_interpolate_writes_an_animation_unless_disabled(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    toy_bundle(console.library)
    words = ("interpolate", "alice", "bob", "--frames", "3", "--seed", "3", "--prompt", "{} as an")
    result = console(*words, "--out", "way.png")
    assert result.code == 0 and result.lines == ["way.png", "way.gif"], result.err
    with Image.open("way.gif") as moving:
        assert getattr(moving, "n_frames", 1) == 4, "there and back"
    assert console(*words, "--no-gif", "--json").document["gif"] is None
    assert not Path("strip.gif").exists()
    refused(console(*words, "--no-gif", "--gif", "x.gif"), 2, "contradict")
    refused(console(*words, "--out", "way.jpg"), 2, "way.gif exists")


def test_interpolate_leaves_the_bundle_alone_and_starts_with_the_first_person(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    bundle = toy_bundle(console.library)
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir() if path.is_file()}
    words = (
        "interpolate",
        "alice",
        "bob",
        "--frames",
        "5",
        "--seed",
        "3",
        "--prompt",
        "{} as an",
        "--gif",
        "strip.gif",
    )
    result = console(*words)
    assert result.code == 0 and result.lines == ["strip.png", "strip.gif"], result.err
    assert {path.name: path.read_bytes() for path in bundle.path.iterdir() if path.is_file()} == before
    with Image.open("strip.png") as sheet:
        left = np.asarray(sheet.convert("RGB").crop((GAP, GAP, GAP + 128, GAP + 128)))
    alone = generate(
        bundle, OrtBackend(bundle), Request("alice as an", seed=3), overrides=[console.library.load("alice")]
    )[0]
    assert np.array_equal(left, np.asarray(alone.image.resize((128, 128), Image.Resampling.LANCZOS)))
    refused(console(*words), 2, "exists")
    assert console(*words, "--force", "--json").document["weights"][2] == [0.5, 0.5]


def test_interpolate_needs_a_free_slot_for_each_person_who_is_not_in_the_bundle(console: CommandLine) -> None:
    console.add_people("alice", "bob", "carol")
    bundle = toy_bundle(console.library, console.library.load("alice"), make_identity("p1", 9))
    result = console("interpolate", "alice", "bob", "carol", "--frames", "5", "--seed", "1", "--prompt", "{} of carol")
    assert result.code == 0, result.err
    bundle.add(make_identity("p2", 5))
    bundle.add(make_identity("p3", 6))
    refused(console("interpolate", "alice", "bob", "--force"), 6, "0 more people", "--spare-rows")


def test_invalid_interpolations_are_refused(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    refused(console("interpolate", "alice"), 2, "at least two")
    refused(console("interpolate", "alice", "bob", "--frames", "1"), 2, "--frames 1")
    refused(console("interpolate", "alice", "bob", "--prompt", "a photo"), 2, "{}")
    refused(console("interpolate", "alice", "bob", "--out", "x.gif"), 2, "x.gif")
    refused(console("interpolate", "alice", "bob", "--gif", "x.png"), 2, "x.png")
    toy_bundle(console.library)
    refused(console("interpolate", "alice", "bert"), 4, "bert")
    assert not list(Path().iterdir())


# sample, nearest


@pytest.fixture
def celebrities(monkeypatch: pytest.MonkeyPatch) -> Celebrities:
    """Forty celebrities of the toy model."""
    pairs, rows = token_pairs(Words(), NAMES), table(width=WIDTH)
    basis, found = basis_from_tables([rows], pairs), Celebrities(pairs.names, (rows[np.array(pairs.pairs)],))
    prepared = SimpleNamespace(assets=SimpleNamespace(mapper=None))

    def reads(_parts: Any, rows: Any) -> Any:
        return rows[0].reshape(len(rows[0]), -1).astype(float)

    monkeypatch.setattr(Model, "tables", SimpleNamespace(name="toy", family=FAMILY, table_hash=TABLE_HASH, path=None))
    monkeypatch.setattr(Model, "basis", basis)
    monkeypatch.setattr(Model, "celebrities", found)
    monkeypatch.setattr(Model, "prepared", Mock(return_value=prepared))
    monkeypatch.setattr("celebctl.basis.text_features.text_features", reads)
    monkeypatch.setattr("celebctl_models.checkpoints.text_encoders.load_texts", Mock(return_value=None))
    return found


@pytest.mark.usefixtures("celebrities")
def test_sample_is_reproducible(console: CommandLine) -> None:
    result = console("sample", "--seed", "5", "--name", "dana")
    assert result.code == 0 and "created dana from seed 5; nearest celebrity: First" in result.err
    dana = console.library.load("dana")
    refused(console("sample", "--seed", "6", "--name", "dana"), 2, "'dana' is taken")
    document = console("sample", "--seed", "5", "--name", "dora", "--json").document
    assert document["digest"] == dana.digest and document["nearest"]["cosine"] < 0.6
    refused(console("sample", "--seed", "-1", "--name", "dina"), 2, "seed -1")
    assert "created sample-1 from seed " in console("sample").err
    assert console("sample", "--json").document["name"] == "sample-2"
    toy_bundle(console.library)
    assert console("gen", "dana and dora", "-s", "1").code == 0


@pytest.mark.usefixtures("celebrities")
def test_nearest_lists_celebrities_and_learned_people(console: CommandLine) -> None:
    for name, seed in (("dana", "5"), ("dora", "5"), ("dina", "9")):
        console("sample", "--seed", seed, "--name", name)
    result = console("nearest", "dana", "--top", "3")
    assert result.code == 0 and len(result.lines) == 3
    assert result.lines[0].split("\t") == ["dora", "learned", "1.00", "1.00", "1.00", "0.00"]
    found = console("nearest", "dana", "--top", "100", "--json").document["nearest"]
    assert len(found) == 42 and {one["kind"] for one in found} == {"celebrity", "identity"}
    refused(console("nearest", "dana", "--top", "0"), 2, "--top 0")
    refused(console("nearest", "carol"), 4, "carol")
    console.library.save(make_identity("zoe", table_hash="f" * 16))
    refused(console("nearest", "zoe"), 5, "another model")


# Likeness and layout of gen.


def test_likeness_and_layout_are_in_the_recipe_and_regen_uses_them(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    toy_bundle(console.library)
    words = ("gen", "alice and bob", "-s", "4", "--likeness", "alice=0.5,bob=1", "--layout", "right:alice,left:bob")
    result = console(*words)
    assert "guidance 2.5, likeness alice=0.5,bob=1, layout right:alice,left:bob" in result.err
    path = Path(result.lines[0])
    request = recipe(path)
    assert request.likeness == (("alice", 0.5), ("bob", 1.0)) and request.layout == "right:alice,left:bob"
    result = console("regen", path)
    assert result.code == 0 and "identical" in result.err
    with Image.open(path) as picture:
        assert "Layout" in picture.info["parameters"] and "Likeness" in picture.info["parameters"]
    plain = Path(console("gen", "alice and bob", "-s", "4", "-o", "plain.png").lines[0])
    full = Path(
        console("gen", "alice and bob", "-s", "4", "-o", "full.png", "--likeness", "1", "--layout", "none").lines[0]
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
def test_gen_refuses_invalid_likeness_and_layout(
    console: CommandLine, words: tuple[str, str], problem: str
) -> None:  # fmt: skip
    console.add_people("alice", "bob")
    toy_bundle(console.library)
    refused(console("gen", "alice", *words), 2, problem)
    assert not list(Path().glob("*.png"))


def test_export_stores_the_average_celebrity(console: CommandLine) -> None:
    console.add_people("alice")
    assert console("export").code == 0
    bundle: Bundle = console.bundle()
    assert np.array_equal(bundle.average_embeddings()[0], AVERAGE[0])
    assert MODEL_KEY == "toy-01234567" and console("gen", "alice", "-s", "1", "--likeness", "0.5").code == 0


# Identity cards.


def test_a_card_shows_facts_and_portraits(console: CommandLine) -> None:
    console.add_people("alice")
    plain = console("show", "alice", "--card", "plain.png", "--json")
    assert plain.code == 0 and plain.document["name"] == "alice"
    toy_bundle(console.library)
    assert console("show", "alice", "--card", "card.png").code == 0
    with Image.open("plain.png") as without, Image.open("card.png") as card:
        assert card.width == without.width and card.height > without.height + 150
        strip = np.asarray(card.convert("RGB"))[-180:]
        assert len(np.unique(strip.reshape(-1, 3), axis=0)) > 50, "portraits are no blank area"
    assert console.bundle().names == (), "the bundle is left as it is"
    refused(console("show", "alice", "--card", "card.png"), 2, "card.png")
    refused(console("show", "alice", "--card", "card.jpg"), 2, "card.jpg")
    assert console("show", "alice", "--card", "card.png", "--force").code == 0


def test_a_bundle_with_loras_is_not_the_model(console: CommandLine) -> None:
    console.add_people("alice")
    bundle, styled = toy_bundle(console.library), console.library.root / "bundles" / "styled"
    shutil.copytree(bundle.path, styled)
    document = json.loads((styled / "manifest.json").read_text())
    document["loras"] = [{"file": "style.safetensors", "sha256": "0" * 64, "weight": 0.5}]
    (styled / "manifest.json").write_text(json.dumps(document))
    os.utime(bundle.path / "manifest.json", (100, 100))
    assert [one.path for one in bundles_of(console.library, MODEL_KEY)] == [styled, bundle.path]
    found = plain_bundle_of(console.library, MODEL_KEY)
    assert found is not None and found.path == bundle.path
    shutil.rmtree(bundle.path)
    assert plain_bundle_of(console.library, MODEL_KEY) is None
    assert console("show", "alice", "--card", "styled.png").code == 0
    shutil.rmtree(styled)
    assert console("show", "alice", "--card", "plain.png").code == 0
    with Image.open("styled.png") as with_loras, Image.open("plain.png") as without:
        assert with_loras.size == without.size, "no portraits"


def test_a_card_states_consent_model_and_digest() -> None:
    facts = {"model": "toy", "consent": "self: given", "consent_date": "2026-11-28", "forced": "training_forbidden"}
    alice = dataclasses.replace(make_identity("alice"), provenance=facts)
    rows = dict(card_facts(alice, MODEL_KEY, datetime.date(2026, 11, 27)))
    assert rows == {
        "model": f"toy ({MODEL_KEY})",
        "saved": "2026-11-27",
        "consent": "self: given (2026-11-28)",
        "forced": "training_forbidden",
        "digest": alice.digest,
    }
    assert dict(card_facts(make_identity("bob"), MODEL_KEY, datetime.date(2026, 1, 2)))["consent"] == "not stated"
