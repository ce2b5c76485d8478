"""PNG files carry their recipe, and the recipe reproduces the image."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.picture import CHUNK, GeneratedImage, png_bytes, read_request, save_image
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request

PROMPT = 'alice, "bob": <3\nNegative prompt: müde 日本'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle = write_bundle(tmp_path_factory.mktemp("picture") / "bundle")
    bundle.add(make_identity("alice"))
    return bundle


@pytest.fixture(scope="module")
def picture(bundle: Bundle) -> GeneratedImage:
    return generate(bundle, OrtBackend(bundle, "cpu", 1), Request(PROMPT, negative="blurry", seed=2**62, steps=3))[0]


def png_with(path: Path, **chunks: str) -> Path:
    info = PngInfo()
    for key, value in chunks.items():
        info.add_text(key, value)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def test_the_recipe_reproduces_the_image(bundle: Bundle, picture: GeneratedImage, tmp_path: Path) -> None:
    path = save_image(picture, tmp_path / "deep" / "alice.png")
    request, record = read_request(path)
    assert request == picture.request
    assert {key: record[key] for key in picture.record} == picture.record
    again = generate(bundle, OrtBackend(bundle, "cpu", 1), request)[0]
    with Image.open(path) as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(again.image))


def test_parameters_are_in_the_web_ui_format(picture: GeneratedImage, tmp_path: Path) -> None:
    with Image.open(save_image(picture, tmp_path / "a.png")) as image:
        image.load()
        text: str = getattr(image, "text", {})["parameters"]
    head, last = text.rsplit("\n", 1)
    assert head == f"{PROMPT}\nNegative prompt: blurry"
    for pair in ("Steps: 3", "Sampler: DDIM", "CFG scale: 2.5", f"Seed: {2**62}", "Size: 32x32", "Model: toy"):
        assert pair in last.split(", ")
    assert f'TI hashes: "alice: {make_identity("alice").digest[:12]}"' in last


def test_enlarging_is_recorded_and_keeps_the_recipe(picture: GeneratedImage, tmp_path: Path) -> None:
    path = save_image(picture, tmp_path / "a.png", scale=3)
    with Image.open(path) as image:
        assert image.size == (96, 96)
    request, record = read_request(path)
    assert (request.width, record["scale"]) == (32, 3)
    with pytest.raises(UsageError) as caught:
        save_image(picture, tmp_path / "b.png", scale=0)
    assert caught.value.reason == "scale_out_of_range" and caught.value.values["value"] == 0


def test_metadata_can_be_left_out(picture: GeneratedImage, tmp_path: Path) -> None:
    path = save_image(picture, tmp_path / "a.png", metadata=False)
    assert b"alice" not in path.read_bytes()
    with pytest.raises(InvalidInputError) as caught:
        read_request(path)
    assert caught.value.reason == "no_recipe"


def test_files_are_not_overwritten_unless_requested(picture: GeneratedImage, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("precious")
    with pytest.raises(UsageError) as caught:
        save_image(picture, path)
    assert caught.value.reason == "file_exists" and path.read_text() == "precious"
    save_image(picture, path, overwrite=True)
    assert read_request(path)[0] == picture.request


def test_the_date_can_be_fixed(picture: GeneratedImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    first = png_bytes(picture)
    assert first == png_bytes(picture)
    assert b"1970-01-02T00:00:00Z" in first


@pytest.mark.parametrize("epoch", ["99999999999999", "9" * 5000])
def test_a_date_out_of_range_is_ignored(picture: GeneratedImage, monkeypatch: pytest.MonkeyPatch, epoch: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert f"{datetime.datetime.now(datetime.UTC):%Y-%m-}".encode() in png_bytes(picture)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"just text"])
def test_other_files_are_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InvalidInputError):
        read_request(tmp_path / "x.png")


def test_jpegs_directories_and_missing_files_are_rejected(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.jpg")
    with pytest.raises(InvalidInputError):
        read_request(tmp_path / "x.jpg")
    for path in (tmp_path, tmp_path / "nothing.png", tmp_path / "x.jpg" / "y.png"):
        with pytest.raises(NotFoundError):
            read_request(path)


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        "{}",
        '{"schema": 1}',
        '{"schema": 1, "request": {}, "record": {}}',
        '{"schema": 1, "request": {"prompt": 1}, "record": {}}',
        '{"schema": 1, "request": {"prompt": ""}, "record": 3}',
        '{"schema": "new", "request": {"prompt": ""}, "record": {}}',
        json.dumps({"schema": 2, "request": {"prompt": ""}, "record": {}}),
    ],
)
def test_damaged_and_newer_recipes_are_refused(tmp_path: Path, document: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_request(png_with(tmp_path / "x.png", **{CHUNK: document}))
    assert caught.value.hint


def test_a_recipe_bomb_is_rejected(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text(CHUNK, "a" * 5_000_000, zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(InvalidInputError):
        read_request(tmp_path / "x.png")


def test_a_recipe_written_by_hand_needs_only_a_prompt(tmp_path: Path) -> None:
    document: dict[str, Any] = {"schema": 1, "request": {"prompt": "alice"}, "record": {}}
    path = png_with(tmp_path / "x.png", **{CHUNK: json.dumps(document)})
    assert read_request(path) == (Request("alice"), {})
