"""verify: images with their marks, without them, and with marks that contradict one another."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from console_fakes import CommandLine, toy_bundle
from PIL import Image, PngImagePlugin

from celebctl.cli.verify import SUMMARIES
from celebctl.reproduction import compare_with_file, marks_of
from celebctl_runtime.image_files import read_image
from celebctl_runtime.picture import GeneratedImage, ImageFormat, Marks, encode_image, watermark_payload
from celebctl_runtime.recipes.reading import read_recipe
from celebctl_runtime.request import Request
from celebctl_runtime.watermark import find_watermark

pytest.importorskip("c2pa")


@pytest.fixture
def drawn(console: CommandLine) -> Path:
    """An image that gen saved, large enough for a watermark."""
    toy_bundle(console.library)
    assert console("gen", "beach", "--seed", "3", "--scale", "16", "-o", "beach.png").code == 0
    return console.folder / "beach.png"


def verdict(console: CommandLine, path: Path | str, code: int) -> dict[str, object]:
    result = console("verify", str(path), "--json")
    assert result.code == code
    (found,) = result.document["files"]
    return found


def test_an_image_of_gen_carries_three_marks_that_agree(console: CommandLine, drawn: Path) -> None:
    found = verdict(console, drawn, 0)
    assert found["verdict"] == "generated" and found["contradictions"] == []
    assert found["credentials"]["state"] == "trusted" and found["credentials"]["self_signed"]  # pyright: ignore
    assert found["recipe"] == {"format": "celebctl", "program": "celebctl"}
    assert found["watermark"] is not None


def test_what_is_left_out_is_not_found(console: CommandLine, drawn: Path) -> None:
    del drawn
    words = ("gen", "beach", "--seed", "3", "--scale", "16", "--no-metadata")
    assert console(*words, "-o", "marked.png").code == 0
    found = verdict(console, "marked.png", 0)
    assert (found["credentials"], found["recipe"]) == (None, None) and found["watermark"] is not None
    assert console(*words, "--no-watermark", "-o", "bare.png").code == 0
    assert verdict(console, "bare.png", 3)["verdict"] == "unmarked"


def test_a_recipe_alone_is_said_to_be_the_only_mark(console: CommandLine) -> None:
    content = encode_image(GeneratedImage(Image.new("RGB", (32, 32)), Request("alice")), marks=Marks(None))
    (console.folder / "a.png").write_bytes(content)
    result = console("verify", "a.png")
    assert result.code == 0 and SUMMARIES["recipe"] in result.out and SUMMARIES["generated"] not in result.out


def test_saving_again_keeps_the_watermark_only(console: CommandLine, drawn: Path) -> None:
    with Image.open(drawn) as image:
        image.convert("RGB").save(console.folder / "again.jpg", quality=80)
    found = verdict(console, "again.jpg", 0)
    assert (found["credentials"], found["recipe"]) == (None, None) and found["verdict"] == "generated"


def test_a_chunk_added_after_signing_is_code_5(console: CommandLine, drawn: Path) -> None:
    content, text = drawn.read_bytes(), b"tEXtComment\0drawn by hand"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    (console.folder / "added.png").write_bytes(content[:-12] + chunk + content[-12:])
    found = verdict(console, "added.png", 5)
    assert found["credentials"]["problems"] == ["assertion.dataHash.mismatch"]  # pyright: ignore


def test_pixels_that_are_not_the_recipes_are_code_5(console: CommandLine, drawn: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    with Image.open(drawn) as image:
        for key, text in image.text.items():  # pyright: ignore
            texts.add_text(key, text)  # pyright: ignore
        Image.new("RGB", image.size).save(console.folder / "black.png", pnginfo=texts)
    found = verdict(console, "black.png", 5)
    assert found["verdict"] == "changed" and found["watermark"] is None


def test_a_watermark_of_another_recipe_contradicts(console: CommandLine) -> None:
    pixels = np.random.default_rng(0).integers(60, 190, (16, 16, 3), np.uint8)
    image = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC)
    one, other = Request("alice", seed=1), Request("alice", seed=2)
    marked = Image.open(io.BytesIO(encode_image(GeneratedImage(image, one), marks=Marks()))).convert("RGB")
    mark = find_watermark(marked)
    assert mark is not None and mark.payload == watermark_payload(one.to_json())
    content = encode_image(GeneratedImage(marked, other), marks=Marks(None))
    (console.folder / "a.png").write_bytes(content)
    found = verdict(console, "a.png", 5)
    assert len(found["contradictions"]) == 1  # pyright: ignore


@pytest.mark.parametrize(
    ("image_format", "quality", "marked"),
    [("jpeg", 30, False), ("webp", 50, False), ("jpeg", 60, True), ("webp", 90, True), ("png", None, True)],
)
def test_a_file_claims_a_watermark_only_where_its_encoder_left_one(
    console: CommandLine, image_format: ImageFormat, quality: int | None, marked: bool
) -> None:
    pixels = np.random.default_rng(0).integers(60, 190, (16, 16, 3), np.uint8)
    drawn = GeneratedImage(Image.fromarray(pixels).resize((200, 200), Image.Resampling.BICUBIC), Request("a"))
    path = console.folder / f"a.{image_format}"
    path.write_bytes(encode_image(drawn, image_format, quality=quality))
    found = verdict(console, path, 0)
    assert found["contradictions"] == [] and (found["watermark"] is not None) is marked
    recipe = read_recipe(path)
    assert (recipe.record.get("watermark") == "public") is marked
    marks = marks_of(recipe, Marks())
    assert compare_with_file(read_image(path), recipe, drawn, marks).identical


def test_numbers_written_as_integers_or_fractions_have_one_payload() -> None:
    one, other = Request("alice", strength=1, guidance=3), Request("alice", strength=1.0, guidance=3.0)
    assert watermark_payload(one.to_json()) == watermark_payload(other.to_json())


def test_a_private_key_hides_the_watermark(console: CommandLine, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del drawn
    monkeypatch.setenv("CELEBCTL_WATERMARK_KEY", "ours")
    assert console("gen", "beach", "--scale", "16", "-o", "private.png").code == 0
    assert verdict(console, "private.png", 0)["watermark"] is not None
    monkeypatch.setenv("CELEBCTL_WATERMARK_KEY", "theirs")
    found = verdict(console, "private.png", 0)
    assert found["watermark"] is None and found["contradictions"] == []


def test_of_several_files_the_worst_counts(console: CommandLine, drawn: Path) -> None:
    Image.new("RGB", (200, 200), "red").save(console.folder / "red.png")
    result = console("verify", str(drawn), "red.png")
    assert result.code == 3 and "red.png" in result.out and "beach.png" in result.out


def test_what_is_no_image_is_refused(console: CommandLine) -> None:
    (console.folder / "a.txt").write_text("hello")
    assert console("verify", "a.txt").code == 3
    assert console("verify", "b.png").code == 4
    assert console("verify", "a.txt", "--trust", "a.txt").code == 2


def test_regen_gives_the_same_pixels(console: CommandLine, drawn: Path) -> None:
    for file in (drawn, console.folder / "beach.jpg"):
        if not file.exists():
            assert console("gen", "beach", "--seed", "3", "--scale", "16", "-o", "beach.jpg").code == 0
        result = console("regen", str(file), "-o", f"again{file.suffix}", "--json")
        assert result.document["identical"] is True


def test_no_credentials_where_they_are_off(console: CommandLine, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del drawn
    monkeypatch.setenv("CELEBCTL_CREDENTIALS", "off")
    assert console("gen", "beach", "--scale", "16", "-o", "unsigned.png").code == 0
    assert verdict(console, "unsigned.png", 0)["credentials"] is None


def test_half_a_certificate_is_refused(console: CommandLine, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del drawn
    monkeypatch.setenv("CELEBCTL_CERTIFICATE", "mine.pem")
    assert console("gen", "beach").code == 2
    monkeypatch.setenv("CELEBCTL_PRIVATE_KEY", "mine.pem")
    assert console("gen", "beach").code == 2
