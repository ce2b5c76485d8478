"""Recipes in image files: what celebctl writes, by genuine readers; and what it reads from other programs."""

from __future__ import annotations

import base64
import importlib
import io
import json
import logging
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from celebctl_runtime.errors import CelebctlError, IntegrityError, InvalidInputError, UsageError
from celebctl_runtime.picture import GeneratedImage, encode_image, read_request, save_image
from celebctl_runtime.recipes.infotext import format_parameters, parse_parameters
from celebctl_runtime.recipes.reading import read_recipe
from celebctl_runtime.recipes.recipe import MAX_TEXT
from celebctl_runtime.recipes.sampler_names import INVOKEAI, WEBUI, sampler_from
from celebctl_runtime.request import SAMPLERS, Request

REQUEST = Request(
    'alice, on the moon: ünï 日本 😀\nin a "suit"', "fog, grey", 7, 20, 6.5, "dpmpp_2m_karras", 512, 384, ("alice",)
)
RECORD: dict[str, Any] = {
    "celebctl": "0.1.0", "model": "toy", "family": "sd1", "table_hash": "ab" * 32, "identities": {"alice": "12" * 32}
}  # fmt: skip
PICTURE = GeneratedImage(Image.effect_noise((64, 48), 50).convert("RGB"), REQUEST, RECORD)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
#: A PNG as version 0.1.0 wrote it before there were other formats.
OLD_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAMCAIAAADkharWAAADUXRFWHRjZWxlYmN0bAB7InNjaGVtYSI6IDEsICJyZXF1ZXN0IjogeyJwcm9tcH"
    "QiOiAiYWxpY2UgYW5kIGJvYiwgcGxheWluZyBjaGVzcyIsICJuZWdhdGl2ZSI6ICJmb2c6IGdyZXkiLCAic2VlZCI6IDQ2MTE2ODYwMTg0Mjcz"
    "ODc5MDQsICJzdGVwcyI6IDcsICJndWlkYW5jZSI6IDMuNSwgInNhbXBsZXIiOiAiZHBtcHBfMm1fa2FycmFzIiwgIndpZHRoIjogNTEyLCAiaG"
    "VpZ2h0IjogMzg0LCAiaWRlbnRpdGllcyI6IFsiYWxpY2UiLCAiYm9iIl0sICJsaWtlbmVzcyI6IHsiYWxpY2UiOiAwLjgsICJib2IiOiAxLjB9"
    "LCAibGF5b3V0IjogImxlZnQ6YWxpY2UscmlnaHQ6Ym9iIn0sICJyZWNvcmQiOiB7ImNlbGViY3RsIjogIjAuMS4wIiwgIm1vZGVsIjogInRveS"
    "IsICJmYW1pbHkiOiAic2QxIiwgInRhYmxlX2hhc2giOiAiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFi"
    "YWJhYmFiYWJhYmFiYWJhYiIsICJidW5kbGUiOiAiY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZG"
    "NkY2RjZGNkY2RjZCIsICJkdHlwZSI6ICJmcDMyIiwgImJhY2tlbmQiOiB7Im5hbWUiOiAib3J0In0sICJudW1weSI6ICIyLjQuNiIsICJpZGVu"
    "dGl0aWVzIjogeyJhbGljZSI6ICIxMjEyMTIxMjEyMTIxMjEyMTIxMjEyMTIxMjEyMTIxMjEyMTIxMjEyMTIxMjEyMTIxMjEyMTIxMjEyMTIxMj"
    "EyIiwgImJvYiI6ICIzNDM0MzQzNDM0MzQzNDM0MzQzNDM0MzQzNDM0MzQzNDM0MzQzNDM0MzQzNDM0MzQzNDM0MzQzNDM0MzQzNDM0In0sICJk"
    "cm9wcGVkX3RleHQiOiAiIiwgInNjYWxlIjogMiwgImNyZWF0ZWQiOiAiMjAyNi0wOS0yMVQxNDoxMzoyMFoifX0T3tfaAAABYWlUWHRwYXJhbW"
    "V0ZXJzAAAAAABhbGljZSBhbmQgYm9iLCBwbGF5aW5nIGNoZXNzCk5lZ2F0aXZlIHByb21wdDogZm9nOiBncmV5ClN0ZXBzOiA3LCBTYW1wbGVy"
    "OiBEUE0rKyAyTSBLYXJyYXMsIENGRyBzY2FsZTogMy41LCBTZWVkOiA0NjExNjg2MDE4NDI3Mzg3OTA0LCBTaXplOiA1MTJ4Mzg0LCBNb2RlbC"
    "BoYXNoOiBhYmFiYWJhYmFiLCBNb2RlbDogdG95LCBMaWtlbmVzczogIntcImFsaWNlXCI6IDAuOCwgXCJib2JcIjogMS4wfSIsIExheW91dDog"
    "ImxlZnQ6YWxpY2UscmlnaHQ6Ym9iIiwgVEkgaGFzaGVzOiAiYWxpY2U6IDEyMTIxMjEyMTIxMiwgYm9iOiAzNDM0MzQzNDM0MzQiLCBWZXJzaW"
    "9uOiBjZWxlYmN0bCAwLjEuMH6SxgsAAAAXSURBVHicYzzBJcdACmAiSfWohhGkAQBEBAEIvrBsLwAAAABJRU5ErkJggg=="
)


def saved(folder: Path, suffix: str = ".png", picture: GeneratedImage = PICTURE, **options: Any) -> Path:
    return save_image(picture, folder / f"a{suffix}", **options)


def png_with(path: Path, **chunks: str) -> Path:
    info = PngInfo()
    for key, text in chunks.items():
        info.add_itxt(key.replace("_metadata_", "-metadata"), text)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def user_comment(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.getexif().get_ifd(0x8769)[0x9286]


def webui_reader(path: Path) -> dict[str, str]:
    """The web UI's rules, written from its source: where the text is, and how it is divided."""
    with Image.open(path) as image:
        image.load()
        text: str = image.info.get("parameters", "")
    if not text:
        comment = user_comment(path)
        assert comment[:8] == b"UNICODE\0"
        text = comment[8:].decode("utf-16-be")
    *lines, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(pairs) >= 3
    values = {key: json.loads(value) if value[:1] == '"' else value for key, value in pairs}
    start = next((n for n, line in enumerate(lines) if line.strip().startswith("Negative prompt:")), len(lines))
    values["prompt"] = "\n".join(line.strip() for line in lines[:start])
    values["negative"] = "\n".join(lines[start:]).partition(":")[2].strip()
    return values


# what celebctl writes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_carries_the_whole_recipe(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, suffix, scale=2)
    recipe = read_recipe(path)
    assert recipe.format == "celebctl" and recipe.request() == REQUEST and not recipe.ignored
    assert {key: recipe.record[key] for key in RECORD} == RECORD and recipe.record["scale"] == 2
    assert recipe.record.get("quality") == (None if suffix == ".png" else 90)
    with Image.open(path) as image:
        assert (image.size, image.mode) == ((128, 96), "RGB")
        assert image.format == {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_web_ui_reads_every_format(tmp_path: Path, suffix: str) -> None:
    values = webui_reader(saved(tmp_path, suffix))
    assert (values["prompt"], values["negative"]) == (REQUEST.prompt, REQUEST.negative)
    assert [values[key] for key in ("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model")] == [
        "20", "DPM++ 2M Karras", "6.5", "7", "512x384", "toy"
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sd_parsers_reads_every_format(tmp_path: Path, suffix: str) -> None:
    sd_parsers: Any = pytest.importorskip("sd_parsers")
    parsers: Any = importlib.import_module("sd_parsers.parsers")
    wanted = [parsers.AUTOMATIC1111Parser] + ([parsers.InvokeAIParser] if suffix == ".png" else [])
    for parser, name in zip(wanted, ("DPM++ 2M Karras", "dpmpp_2m_k"), strict=False):
        found = sd_parsers.ParserManager(managed_parsers=[parser]).parse(saved(tmp_path, suffix, overwrite=True))
        (sampler,) = found.samplers
        assert [prompt.value for prompt in found.prompts] == [REQUEST.prompt]
        assert [prompt.value for prompt in found.negative_prompts] == [REQUEST.negative]
        assert (sampler.name, sampler.model.name) == (name, "toy")
        assert [float(sampler.parameters[key]) for key in ("seed", "steps", "cfg_scale")] == [7, 20, 6.5]


def test_invokeai_metadata_has_the_fields_of_core_metadata(tmp_path: Path) -> None:
    with Image.open(saved(tmp_path)) as image:
        data = json.loads(image.info["invokeai_metadata"])
    assert (data["positive_prompt"], data["negative_prompt"]) == (REQUEST.prompt, REQUEST.negative)
    assert [data[key] for key in ("seed", "steps", "cfg_scale", "width", "height")] == [7, 20, 6.5, 512, 384]
    assert (data["scheduler"], data["generation_mode"]) == ("dpmpp_2m_k", "txt2img")
    assert {key: data["model"][key] for key in ("name", "base", "type")} == {
        "name": "toy",
        "base": "sd-1",
        "type": "main",
    }


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_the_recipe_survives_another_encoding_by_pillow(tmp_path: Path, suffix: str) -> None:
    with Image.open(saved(tmp_path, suffix)) as image:
        image.save(tmp_path / f"b{suffix}", exif=image.getexif(), quality=50)
    assert read_request(tmp_path / f"b{suffix}")[0] == REQUEST


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_metadata_nothing_is_left(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, suffix, metadata=False)
    assert b"alice" not in path.read_bytes() and "alice".encode("utf-16-be") not in path.read_bytes()
    with Image.open(path) as image:
        image.load()
        assert not image.getexif() and not getattr(image, "text", {}) and "exif" not in image.info
    with pytest.raises(InvalidInputError) as caught:
        read_recipe(path)
    assert caught.value.reason == "no_recipe"


def test_a_webp_of_quality_100_is_lossless(tmp_path: Path) -> None:
    same = {quality: encode_image(PICTURE, "webp", quality=quality) for quality in (60, 100)}
    decoded = {quality: Image.open(io.BytesIO(content)).convert("RGB") for quality, content in same.items()}
    assert decoded[100].tobytes() == PICTURE.image.tobytes() != decoded[60].tobytes()
    assert len(encode_image(PICTURE, "jpeg", quality=30)) < len(encode_image(PICTURE, "jpeg", quality=95))


@pytest.mark.parametrize(
    ("suffix", "options", "reason"),
    [
        (".gif", {}, "unknown_image_suffix"),
        ("", {}, "unknown_image_suffix"),
        (".png", {"quality": 90}, "quality_of_png"),
        (".jpg", {"quality": 0}, "quality_out_of_range"),
        (".webp", {"quality": 101}, "quality_out_of_range"),
    ],
)
def test_other_suffixes_and_qualities_are_refused(
    tmp_path: Path, suffix: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError) as caught:
        saved(tmp_path, suffix, **options)
    assert caught.value.reason == reason and not list(tmp_path.iterdir())


def test_what_does_not_fit_into_a_jpeg_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for length, warnings in ((10_000, 0), (30_000, 1), (80_000, 2)):
        caplog.clear()
        picture = GeneratedImage(PICTURE.image, replace(REQUEST, prompt="x" * length), RECORD)
        path = saved(tmp_path, ".jpg", picture, overwrite=True)
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * warnings
        if warnings < 2:
            assert len(read_request(path)[0].prompt) == length
        else:
            with pytest.raises(InvalidInputError):
                read_recipe(path)
        assert len(read_request(saved(tmp_path, ".webp", picture, overwrite=True))[0].prompt) == length


def test_images_of_earlier_versions_still_open(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(base64.b64decode("".join(OLD_PNG)))
    request, record = read_request(tmp_path / "old.png")
    assert request == Request(
        "alice and bob, playing chess", "fog: grey", 2**62, 7, 3.5, "dpmpp_2m_karras", 512, 384, ("alice", "bob"),
        likeness=(("alice", 0.8), ("bob", 1.0)), layout="left:alice,right:bob",
    )  # fmt: skip
    assert (record["scale"], record["created"], record["model"]) == (2, "2026-09-21T14:13:20Z", "toy")


# what celebctl reads


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_have_a_name_in_every_program(name: str) -> None:
    assert sampler_from(name) == sampler_from(WEBUI[name]) == sampler_from(INVOKEAI[name]) == name


@pytest.mark.parametrize(
    ("name", "schedule", "ours"),
    [
        ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
        ("DPM++ 2M", "Automatic", "dpmpp_2m_karras"),
        ("DPM++ 2M", "", "dpmpp_2m"),
        ("DPM++ 2M Karras", "Karras", "dpmpp_2m_karras"),
        ("Euler a", "Automatic", "euler_a"),
        ("Euler", "Uniform", "euler"),
        ("k_euler_a", "", "euler_a"),
        ("k_dpmpp_2m_ka", "", "dpmpp_2m_karras"),
        ("euler_ancestral", "normal", "euler_a"),
    ],
)
def test_other_names_of_samplers(name: str, schedule: str, ours: str) -> None:
    assert sampler_from(name, schedule) == ours


@pytest.mark.parametrize(
    ("name", "schedule", "nearest"),
    [("DPM++ SDE", "Karras", "dpmpp_2m_karras"), ("Euler", "Karras", "euler"), ("DDIM CFG++", "", "ddim")],
)
def test_unknown_samplers_are_refused_with_the_nearest(name: str, schedule: str, nearest: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        sampler_from(name, schedule)
    assert caught.value.reason == "recipe_sampler" and caught.value.values["nearest"] == nearest


WEBUI_TEXT = (
    "a red fox <lora:detail:0.8>, (forest:1.2),\nin autumn\nNegative prompt: blurry,\n<hypernet:old:1> text\n"
    "Steps: 24, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 4294967295, Size: 640x512,"
    " Model hash: 6ce0161689, Model: v1-5-pruned, VAE: vae-ft.pt, Denoising strength: 0.5, Clip skip: 2,"
    ' Hires prompt: "a fox: big, red", Lora hashes: "detail: 0123", Hashes: {"lora:detail": "01", "model": "6c"},'
    " Version: v1.10.1"
)


def exif_with(comment: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    return exif


def test_the_web_uis_text_is_read_from_png_jpeg_and_webp(tmp_path: Path) -> None:
    paths = [png_with(tmp_path / "a.png", parameters=WEBUI_TEXT)]
    comments = {
        "be.jpg": b"UNICODE\0" + WEBUI_TEXT.encode("utf-16-be"),
        "le.jpg": b"UNICODE\0" + WEBUI_TEXT.encode("utf-16-le"),
        "be.webp": b"UNICODE\0" + WEBUI_TEXT.encode("utf-16-be"),
        "ascii.jpg": b"ASCII\0\0\0" + WEBUI_TEXT.encode(),
    }
    for name, comment in comments.items():
        paths.append(tmp_path / name)
        Image.new("RGB", (8, 8)).save(paths[-1], exif=exif_with(comment))
    for path in paths:
        recipe = read_recipe(path)
        assert recipe.format == "a1111" and recipe.record["model"] == "v1-5-pruned", path
        assert recipe.request() == Request(
            "a red fox, (forest:1.2),\nin autumn", "blurry,\n text", 4294967295, 24, 6.5, "dpmpp_2m_karras", 640, 512,
            syntax="weighted",
        )  # fmt: skip
        phrases = (
            "LoRA detail|hypernetwork old|VAE vae-ft.pt|Denoising strength 0.5|Clip skip 2|Hires prompt a fox: big, red"
        )
        assert recipe.ignored == tuple(phrases.split("|"))


def test_our_own_text_is_enough_to_draw_the_image_again() -> None:
    request = replace(REQUEST, identities=None, likeness=(("alice", 0.5),), layout="left:alice,right:bob")
    recipe = parse_parameters(format_parameters(request, RECORD))
    assert recipe is not None and recipe.request() == request and not recipe.ignored
    assert recipe.record["model_hash"] == RECORD["table_hash"][:10]
    request = replace(request, toward="alice, bob: smiling", blend=0.017037, syntax="weighted")
    recipe = parse_parameters(format_parameters(request, RECORD))
    assert recipe is not None and recipe.request() == request and not recipe.ignored


def test_an_unknown_syntax_is_no_recipe() -> None:
    text = format_parameters(replace(REQUEST, syntax="weighted"), RECORD)
    with pytest.raises(ValueError, match="Syntax is 'other'"):
        parse_parameters(text.replace("Syntax: weighted", "Syntax: other"))


INVOKE = {
    "app_version": "5.12.0", "generation_mode": "sdxl_img2img", "positive_prompt": "a fox", "negative_prompt": "fog",
    "width": 832, "height": 1216, "seed": 3735928559, "rand_device": "cpu", "cfg_scale": 5.5, "steps": 30,
    "scheduler": "dpmpp_2m_k", "clip_skip": 0, "vae": None, "loras": [{"model": {"name": "detail"}, "weight": 0.7}],
    "model": {"key": "0f", "hash": "blake3:00", "name": "Juggernaut", "base": "sdxl", "type": "main"},
}  # fmt: skip
SD_METADATA = {
    "model": "stable diffusion", "model_weights": "sd-1.5", "model_hash": "cc" * 32, "app_id": "invoke-ai/InvokeAI",
    "image": {
        "prompt": [{"prompt": "a fox [fog] in autumn", "weight": 1.0}], "steps": 50, "cfg_scale": 7.5, "seed": 42,
        "sampler": "k_euler_a", "width": 512, "height": 640, "type": "txt2img",
    },
}  # fmt: skip
DREAM = '"a fox [fog] in autumn" -s 50 -S 42 -W 512 -H 640 -C 7.5 -A k_euler_a'


def test_invokeais_metadata_of_all_versions_is_read(tmp_path: Path) -> None:
    recipe = read_recipe(png_with(tmp_path / "a.png", invokeai_metadata=json.dumps(INVOKE)))
    assert recipe.request() == Request("a fox", "fog", 3735928559, 30, 5.5, "dpmpp_2m_karras", 832, 1216)
    assert (recipe.record["model"], recipe.ignored) == ("Juggernaut", ("LoRAs", "the mode sdxl_img2img"))
    older = Request("a fox  in autumn", "fog", 42, 50, 7.5, "euler_a", 512, 640)
    recipe = read_recipe(png_with(tmp_path / "b.png", sd_metadata_=json.dumps(SD_METADATA)))
    assert recipe.request() == older and recipe.record["model"] == "sd-1.5"
    recipe = read_recipe(png_with(tmp_path / "c.png", Dream=DREAM))
    assert recipe.format == "invokeai" and recipe.request() == older


COMFY = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 5, "positive": ["6", 0], "negative": ["7", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "fog", "clip": ["4", 1]}},
}


def test_of_a_comfyui_graph_the_prompts_are_found_and_nothing_is_drawn(tmp_path: Path) -> None:
    paths = [png_with(tmp_path / "a.png", prompt=json.dumps(COMFY)), tmp_path / "a.webp"]
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{json.dumps(COMFY)}"
    Image.new("RGB", (8, 8)).save(paths[1], exif=exif)
    for path in paths:
        recipe = read_recipe(path)
        assert dict(recipe.values) == {"prompt": "a fox", "negative": "fog", "nodes": 3}
        with pytest.raises(InvalidInputError) as caught:
            recipe.request()
        assert caught.value.reason == "recipe_is_workflow"


def test_the_most_exact_of_several_recipes_is_read(tmp_path: Path) -> None:
    path = png_with(tmp_path / "a.png", parameters=WEBUI_TEXT, prompt=json.dumps(COMFY))
    assert read_recipe(path).format == "a1111"
    path = png_with(tmp_path / "b.png", parameters=WEBUI_TEXT, invokeai_metadata=json.dumps(INVOKE))
    assert read_recipe(path).format == "invokeai"


@pytest.mark.parametrize(
    "text", ["a comment of a camera", "", "prompt only\nNegative prompt: x", '{"prompt": "a", "x": 1}']
)
def test_a_text_without_settings_is_no_recipe(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_recipe(png_with(tmp_path / "a.png", parameters=text, prompt="a plain prompt"))
    assert caught.value.reason == "no_recipe"


# hostile files


SETTINGS = "\nSteps: 20, Sampler: Euler, Seed: 1"
HOSTILE = {
    "more digits than a seed has": ("parameters", "a\nSteps: 20, Sampler: Euler, Seed: " + "9" * 5000),
    "other digits": ("parameters", "a\nSteps: ²٣, Sampler: Euler, Seed: 1"),
    "blend above 1": ("parameters", "a\nSteps: 2, Seed: 1, Toward: b, Blend: 1.5, Version: celebctl 1"),
    "negative seed": ("parameters", "a\nSteps: 20, Sampler: Euler, Seed: -1"),
    "size of one side": ("parameters", "a\nSteps: 20, Sampler: Euler, Seed: 1, Size: 512"),
    "guidance nan": ("parameters", "a\nSteps: 20, CFG scale: nan, Seed: 1"),
    "too many steps": ("parameters", "a\nSteps: 20000, Sampler: Euler, Seed: 1"),
    "huge size": ("parameters", "a\nSteps: 20, Sampler: Euler, Seed: 1, Size: 999999x8"),
    "no sampler of ours": ("parameters", "a\nSteps: 20, Sampler: \x1b[31mred, Seed: 1"),
    "huge": ("parameters", "a" * (MAX_TEXT + 1) + SETTINGS),
    "NUL": ("parameters", "a\0b" + SETTINGS),
    "deep JSON": ("invokeai_metadata", '{"a":' * 5000 + "1" + "}" * 5000),
    "half a surrogate pair": ("invokeai_metadata", '{"positive_prompt": "\\ud800"}'),
    "no object": ("invokeai_metadata", "[1, 2]"),
    "prompt is a number": ("invokeai_metadata", '{"positive_prompt": 5}'),
    "seed is a list": ("invokeai_metadata", '{"positive_prompt": "a", "seed": [1]}'),
    "seed of 399 digits": ("invokeai_metadata", '{"positive_prompt": "a", "seed": %s}' % ("9" * 399)),
    "guidance out of range": ("invokeai_metadata", '{"positive_prompt": "a", "cfg_scale": 1e300}'),
    "doubled key": ("invokeai_metadata", '{"seed": 1, "seed": 2}'),
    "no image": ("sd_metadata_", "{}"),
    "prompts of numbers": ("sd_metadata_", '{"image": {"prompt": [1]}}'),
    "no quotation mark": ("Dream", "a -s 5"),
    "workflow": ("prompt", '{"1": []}'),
    "broken workflow": ("prompt", "{"),
    "scale of text": ("celebctl", '{"schema": 1, "request": {"prompt": "a"}, "record": {"scale": "2"}}'),
    "people of text": ("celebctl", '{"schema": 1, "request": {"prompt": "a"}, "record": {"identities": "ab"}}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recipes_are_codes_3_and_5(tmp_path: Path, name: str) -> None:
    key, text = HOSTILE[name]
    with pytest.raises((IntegrityError, InvalidInputError)) as caught:
        read_request(png_with(tmp_path / "a.png", **{key: text}))
    assert caught.value.reason and "\x1b" not in caught.value.problem


@pytest.mark.parametrize(
    "unit", ["a", "a ", " ", 'aa: "', 'aa: "\\', "aa:", "<lora:", "Hashes: {", "aa: \\", ",", '"', "[", "\n"]
)
def test_reading_takes_linear_time(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    started = time.process_time()
    parse_parameters(text)
    parse_parameters(text + SETTINGS)
    assert time.process_time() - started < 2


def test_damaged_exif_is_no_recipe(tmp_path: Path) -> None:
    block = exif_with(b"UNICODE\0" + WEBUI_TEXT.encode("utf-16-be")).tobytes()
    for number, exif in enumerate((block[:40], b"Exif\0\0" + b"\xff" * 50, block[:10] + b"\xff" * 20 + block[30:])):
        path = tmp_path / f"{number}.jpg"
        Image.new("RGB", (8, 8)).save(path, exif=exif)
        with pytest.raises(CelebctlError):
            read_recipe(path)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for candidate in (text, text + SETTINGS, f"a\nSteps: 1, Seed: 2, Sampler: {text}"):
        try:
            parse_parameters(candidate)
        except (ValueError, UsageError):
            continue
