"""Init images: what they change, how recipes store them, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from numpy.typing import NDArray
from PIL import Image

from celebctl.cli import main
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import InvalidInputError, NotFoundError, SetupError, UsageError
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request
from celebctl_runtime.sampling.init_image import InitImage


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", encodes=True)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def draw(bundle: Bundle, request: Request, *init_images: InitImage) -> NDArray[np.int16]:
    (picture,) = generate(bundle, OrtBackend(bundle, "cpu", 1), request, init_images=init_images)
    return np.asarray(picture.image, np.int16)


def test_image_and_strength_change_the_result(bundle: Bundle, photo: Path) -> None:
    source = InitImage.read(photo)
    request = Request("a", steps=10, source=source.digest, strength=0.5)
    first = draw(bundle, request, source)
    assert np.array_equal(draw(bundle, request, source), first)
    with Image.open(photo) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(photo.with_name("other.png"))
    other = InitImage.read(photo.with_name("other.png"))
    assert not np.array_equal(draw(bundle, replace(request, source=other.digest), other), first)
    assert not np.array_equal(draw(bundle, replace(request, strength=0.8), source), first)
    assert not np.array_equal(draw(bundle, Request("a", steps=10)), first)


def test_layout_and_likeness_work_with_an_init_image(bundle: Bundle, photo: Path) -> None:
    for seed, name in enumerate(("alice", "bob"), 1):
        bundle.add(make_identity(name, seed))
    source = InitImage.read(photo)
    one = Request("alice and alice", steps=10, source=source.digest, strength=0.5, likeness=0.5)
    plain = draw(bundle, one, source)
    everywhere = replace(one, prompt="alice and bob", layout="alice@0,0,1,1,bob@0,0,0.001,0.001")
    assert np.abs(draw(bundle, everywhere, source) - plain).max() <= 1
    halves = replace(everywhere, layout="left:alice,right:bob")
    drawn = draw(bundle, halves, source)
    assert not np.array_equal(drawn, plain)
    assert not np.array_equal(drawn, draw(bundle, replace(halves, likeness=1.0), source))
    assert not np.array_equal(drawn, draw(bundle, replace(halves, strength=0.8), source))
    recipe = Request.from_json(json.loads(json.dumps(halves.to_json())))
    assert recipe == halves and np.array_equal(draw(bundle, recipe, source), drawn)


def test_less_strength_lowers_the_influence_of_the_seed(bundle: Bundle, photo: Path) -> None:
    source = InitImage.read(photo)

    def spread(strength: float) -> float:
        request = Request("a", steps=20, source=source.digest, strength=strength)
        return float(np.abs(draw(bundle, request, source) - draw(bundle, replace(request, seed=9), source)).mean())

    assert spread(0.1) < spread(0.3) < spread(0.5)


def test_init_images_are_center_cropped(photo: Path) -> None:
    pixels = InitImage.read(photo).pixels(40, 40)
    with Image.open(photo) as image:
        center = np.asarray(image.crop((8, 0, 48, 40)), np.float32).transpose(2, 0, 1) / 127.5 - 1
    assert pixels.shape == (3, 40, 40) and np.abs(pixels - center).max() < 0.01 and np.abs(pixels).max() <= 1


def test_recipes_without_init_image_omit_source_and_strength(photo: Path) -> None:
    """So that versions without these fields can read them."""
    plain, with_image = Request("a"), Request("a", source="0" * 64, strength=0.5)
    assert not {"source", "strength"} & plain.to_json().keys()
    assert Request.from_json(json.loads(json.dumps(with_image.to_json()))) == with_image


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5, 0.01, float("nan")])
def test_invalid_strengths_are_refused(bundle: Bundle, photo: Path, strength: float) -> None:
    source = InitImage.read(photo)
    with pytest.raises(UsageError, match="strength"):
        draw(bundle, Request("a", steps=5, source=source.digest, strength=strength), source)


def test_missing_parts_are_refused_before_anything_is_drawn(bundle: Bundle, photo: Path, tmp_path: Path) -> None:
    source = InitImage.read(photo)
    request = Request("a", source=source.digest, strength=0.5)
    with pytest.raises(NotFoundError) as caught:
        draw(bundle, request)
    assert caught.value.reason == "init_image_missing"
    without_encoder = write_bundle(tmp_path / "without")
    with pytest.raises(SetupError) as refusal:
        draw(without_encoder, request, source)
    assert refusal.value.reason == "no_image_encoder"
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(InvalidInputError, match=r"text\.png"):
        InitImage.read(tmp_path / "text.png")
    with pytest.raises(NotFoundError):
        InitImage.read(tmp_path / "nowhere.png")


def test_gen_from_and_regen_from(
    bundle: Bundle, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    image, options = tmp_path / "image.png", ["--bundle", str(bundle.path)]
    assert main(["gen", "a", "--from", str(photo), "--strength", "0.4", "-s", "1", "-o", str(image), *options]) == 0
    capsys.readouterr()
    assert main(["regen", str(image), "-o", str(tmp_path / "again.png"), *options]) == 4
    assert "--from" in capsys.readouterr().err
    arguments = ["regen", str(image), "--from", str(photo), "-o", str(tmp_path / "again.png"), *options, "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["identical"] and document["request"]["strength"] == 0.4
    assert main(["gen", "a", "--strength", "0.4", "-o", str(tmp_path / "x.png"), *options]) == 2
