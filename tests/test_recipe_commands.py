"""Image formats and recipes on the command line: `gen`, `regen` and `inspect`, on the toy bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from console_fakes import CommandLine, recipe, refused, toy_bundle
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from celebctl.reproduction import marks_of
from celebctl_runtime.picture import Marks
from celebctl_runtime.recipes.recipe import Recipe
from celebctl_runtime.watermark import PUBLIC_KEY

SETTINGS = "Steps: 4, Sampler: Euler a, CFG scale: 3, Seed: 9, Size: 32x32, Model: Toy"
COMFY = {
    "3": {"inputs": {"positive": ["6", 0], "negative": ["7", 0]}},
    "6": {"inputs": {"text": "a fox\x1b[31m"}},
    "7": {"inputs": {"text": "fog"}},
}


def foreign(name: str, **chunks: str) -> str:
    info = PngInfo()
    for key, text in chunks.items():
        info.add_itxt(key, text)
    Image.new("RGB", (32, 32)).save(name, pnginfo=info)
    return name


# gen


@pytest.mark.parametrize(
    ("words", "file", "kind"),
    [
        (("-o", "a.jpg"), "a.jpg", "JPEG"),
        (("-o", "a.JPEG", "--quality", "70"), "a.JPEG", "JPEG"),
        (("-o", "a.webp"), "a.webp", "WEBP"),
        (("-o", "out/", "--format", "webp"), "out/beach-1.webp", "WEBP"),
        (("--format", "jpeg"), "beach-1.jpg", "JPEG"),
        (("--format", "jpg"), "beach-1.jpg", "JPEG"),
        (("-o", "a.png", "--format", "png"), "a.png", "PNG"),
    ],
)
def test_gen_writes_every_format_with_its_recipe(
    console: CommandLine, words: tuple[str, ...], file: str, kind: str
) -> None:
    toy_bundle(console.library)
    result = console("gen", "beach", "--seed", "1", *words)
    assert result.lines == [file], result.err
    with Image.open(file) as image:
        assert image.format == kind
    assert recipe(Path(file)).prompt == "beach"


@pytest.mark.parametrize(
    ("words", "problem", "hint"),
    [
        (("-o", "a.gif"), "a.gif", ".png, .jpg, .jpeg, .webp"),
        (("-o", "a.png", "--format", "webp"), "a.png", "--format"),
        (("--format", "tiff"), "tiff", "png, jpeg, webp"),
        (("--quality", "80"), "PNG", "--quality"),
        (("-o", "a.jpg", "--quality", "101"), "quality 101", "--quality 1 to 100"),
    ],
)
def test_gen_refuses_other_formats_before_it_draws(
    console: CommandLine, words: tuple[str, ...], problem: str, hint: str
) -> None:
    refused(console("gen", "beach", *words), 2, problem, hint)  # there is no bundle yet


def test_stdout_gets_the_format_asked_for(console: CommandLine) -> None:
    toy_bundle(console.library)
    words = [sys.executable, "-m", "celebctl", "gen", "beach", "--seed", "1", "-o", "-", "--format", "webp"]
    done = subprocess.run(words, capture_output=True, check=True, env={**os.environ})
    assert done.stdout[:4] == b"RIFF" and done.stdout[8:12] == b"WEBP"


# regen of our own images


@pytest.mark.parametrize(
    ("file", "quality", "lossy"), [("a.jpg", "80", True), ("a.webp", "60", True), ("a.webp", "100", False)]
)
def test_regen_compares_after_the_same_encoding(console: CommandLine, file: str, quality: str, lossy: bool) -> None:
    toy_bundle(console.library)
    console("gen", "beach", "-o", file, "--quality", quality)
    result = console("regen", file, "--json")
    assert (result.document["identical"], result.document["lossy"]) == (True, lossy)
    assert ("lossy" in result.err) is lossy and result.document["path"] == "a-regen.png"


def test_regen_of_an_image_that_was_encoded_again_states_the_difference(console: CommandLine) -> None:
    toy_bundle(console.library)
    console("gen", "beach", "-o", "a.jpg")
    with Image.open("a.jpg") as image:
        image.save("b.jpg", exif=image.getexif(), quality=20)
    result = console("regen", "b.jpg", "-o", "again.webp", "--json")
    assert result.code == 0 and result.document["identical"] is False
    assert "PSNR" in result.err and "may have been encoded again" in result.err
    assert recipe(Path("again.webp")) == recipe(Path("a.jpg"))


# regen of other programs' images


def test_regen_draws_the_recipe_of_a_web_ui(console: CommandLine) -> None:
    console.add_people("alice")
    toy_bundle(console.library)
    foreign("a.png", parameters=f"alice <lora:glow:1>\nNegative prompt: fog\n{SETTINGS}, Clip skip: 2\x1b")
    result = console("regen", "a.png", "--json")
    assert result.code == 0, result.err
    assert (result.document["identical"], result.document["recipe"]) == (None, "a1111")
    assert result.document["ignored"] == ["LoRA glow", "Clip skip 2\x1b"]
    assert "not reproduced: LoRA glow, Clip skip 2\\x1b" in result.err and "another one" in result.err
    drawn = recipe(Path("a-regen.png"))
    assert (drawn.prompt, drawn.negative, drawn.seed, drawn.sampler) == ("alice", "fog", 9, "euler_a")
    assert drawn.identities == ("alice",)


def test_marks_are_those_of_the_recipe_or_else_the_users() -> None:
    users = Marks(b"secret")
    for record, key in (({"watermark": "private"}, b"secret"), ({"watermark": "public"}, PUBLIC_KEY), ({}, None)):
        assert marks_of(Recipe("celebctl", {}, record), users).watermark_key == key
    assert marks_of(Recipe("a1111", {}), users) == users


def test_regen_asks_for_the_model_and_the_sampler_it_does_not_have(console: CommandLine) -> None:
    bundle = toy_bundle(console.library)
    other = {"positive_prompt": "a fox", "seed": 1, "steps": 3, "width": 32, "height": 32, "model": {"name": "Other"}}
    foreign("a.png", invokeai_metadata=json.dumps({**other, "scheduler": "unipc"}))
    foreign("b.png", invokeai_metadata=json.dumps({"positive_prompt": "a fox", "steps": 3}))
    refused(console("regen", "a.png"), 3, "unipc", "--sampler")
    refused(console("regen", "a.png", "--sampler", "lcm"), 4, "Other", "--model")
    refused(console("regen", "a.png", "--sampler", "lcm", "--model", "nothing"), 4, "nothing")
    assert console("regen", "a.png", "--sampler", "euler", "--model", "toy").code == 0
    assert console("regen", "a.png", "--sampler", "ddim", "--bundle", bundle.path).lines == ["a-regen-2.png"]
    assert recipe(Path("a-regen-2.png")).sampler == "ddim"
    assert "no seed" in console("regen", "b.png", "--model", "toy").err


@pytest.mark.parametrize("model", ["x" * 5000, "~nobody-here", "../../etc", "a\x1b[31m"])
def test_a_recipe_with_an_odd_model_is_code_4(console: CommandLine, model: str) -> None:
    document = {"schema": 1, "request": {"prompt": "a"}, "record": {"model": model, "identities": {"x": "1"}}}
    refused(console("regen", foreign("a.png", celebctl=json.dumps(document))), 4, "no bundle")
    refused(console("regen", foreign("b.png", parameters=f"a\n{SETTINGS.removesuffix('Toy')}{model}")), 4, "no bundle")


@pytest.mark.parametrize("record", [{"identities": {"x": [1]}}, {"identities": ["x"]}, {"scale": True}, {"scale": 17}])
def test_a_record_of_the_wrong_types_is_code_5(console: CommandLine, record: dict[str, object]) -> None:
    document = {"schema": 1, "request": {"prompt": "a"}, "record": {"model": "toy", **record}}
    refused(console("regen", foreign("a.png", celebctl=json.dumps(document))), 5, "damaged")


def test_regen_refuses_a_comfyui_graph(console: CommandLine) -> None:
    refused(console("regen", foreign("a.png", prompt=json.dumps(COMFY))), 3, "ComfyUI", "celebctl inspect")


# inspect


def test_inspect_describes_the_recipes_of_all_programs(console: CommandLine) -> None:
    toy_bundle(console.library)
    console("gen", "beach", "--seed", "3", "-o", "own.jpg")
    foreign("webui.png", parameters=f"a fox\n{SETTINGS}, Hires upscale: 2")
    foreign("invoke.png", invokeai_metadata=json.dumps({"positive_prompt": "a fox", "scheduler": "unipc"}))
    foreign("comfy.png", prompt=json.dumps(COMFY))
    Image.new("RGB", (8, 4)).save("plain.jpg")
    foreign("embedding.png", **{"sd-ti-embedding": "e30="})
    names = ["own.jpg", "webui.png", "invoke.png", "comfy.png", "plain.jpg", "embedding.png"]
    own, webui, invoke, comfy, plain, embedding = console("inspect", *names, "--json").document["files"]
    assert (own["recipe"], own["prompt"], own["seed"], own["made_with"]["quality"]) == ("celebctl", "beach", 3, 90)
    assert (webui["recipe"], webui["seed"], webui["model"]) == ("a1111", 9, "Toy")
    assert webui["warnings"] == ["not reproduced: Hires upscale 2"]
    assert invoke["recipe"] == "invokeai" and "unipc" in invoke["warnings"][0]
    assert (comfy["prompt"], comfy["negative"]) == ("a fox\x1b[31m", "fog") and len(comfy["warnings"]) == 1
    assert "embedding" in embedding["format"] and len(embedding["warnings"]) == 1
    assert plain == {
        "path": "plain.jpg", "kind": "picture", "pixels": [8, 4], "mode": "RGB",
        "format": "JPEG without a recipe", "warnings": [],
    }  # fmt: skip


def test_inspect_prints_no_control_characters_of_a_file(console: CommandLine) -> None:
    result = console("inspect", foreign("comfy.png", prompt=json.dumps(COMFY)))
    assert "prompt: a fox\\x1b[31m" in result.lines and "\x1b" not in result.out + result.err
    assert "note: cannot be drawn again" in result.err


def test_inspect_of_a_damaged_image_is_code_3_and_of_a_damaged_recipe_code_5(console: CommandLine) -> None:
    Path("cut.png").write_bytes(Path(foreign("a.png", parameters="x")).read_bytes()[:60])
    refused(console("inspect", "cut.png"), 3, "cut.png")
    refused(console("inspect", "a.png", foreign("b.png", celebctl="{")), 5, "b.png")


def test_inspect_of_an_image_never_loads_torch(console: CommandLine) -> None:
    foreign("a.png", parameters=f"a fox\n{SETTINGS}")
    code = (
        "import sys; from celebctl.cli import main\n"
        "assert main(['inspect', 'a.png']) == 0 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
