"""Masks: what stays, what is refused, what recipes hold; edits by prompt (DiffEdit); second passes at a larger size."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from console_fakes import MODEL, TABLE_HASH, CommandLine, recipe, refused
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_samplers import network

from celebctl.library import Library
from celebctl.pipeline import Pipeline, edit_request, make_requests
from celebctl_runtime.backends.base import Conditioning
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.diffedit import predict
from celebctl_runtime.errors import CelebctlError, InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.picture import GeneratedImage, save_image
from celebctl_runtime.pipeline import generate
from celebctl_runtime.progress import Progress
from celebctl_runtime.request import SAMPLERS, Request, batch
from celebctl_runtime.sampling.init_image import InitImage, Mask
from celebctl_runtime.sampling.inpainting import feather
from celebctl_runtime.sampling.samplers import StepTable, inversion_table, step_table
from celebctl_runtime.sampling.schedule import ScheduleConfig

SIDE = 32  # pixels of the toy bundle's images; a latent pixel covers 4


class BatchingBackend(OrtBackend):
    """The same engine with a batch limit of 3."""

    @property
    def batch_limit(self) -> int:
        return 3


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", encodes=True)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def box_mask(left: int, top: int, right: int, bottom: int, side: int = SIDE) -> Image.Image:
    mask = Image.new("L", (side, side))
    mask.paste(255, (left, top, right, bottom))
    return mask


def masked(photo: Path, mask: Image.Image) -> InitImage:
    return InitImage.read(photo).with_mask(Mask.of(mask))


def inpainting(image: InitImage, prompt: str = "a", **values: Any) -> Request:
    assert image.mask is not None
    return Request(prompt, steps=8, source=image.digest, mask=image.mask.digest, **values)


def draw(bundle: Bundle, request: Request, *images: InitImage, engine: type[OrtBackend] = OrtBackend) -> NDArray[Any]:
    (picture,) = generate(bundle, engine(bundle, "cpu", 1), request, init_images=images)
    return np.asarray(picture.image, np.int16)


# What stays and what changes


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inside_is_the_plain_image_outside_the_source(
    bundle: Bundle, photo: Path, sampler: str, strength: float
) -> None:
    """The toy network does not mix pixels: inside a mask of whole latent pixels nothing may differ from an image drawn
    without it, whatever the sampler remembers of earlier steps; outside, not one pixel may differ from the source."""
    image = masked(photo, box_mask(8, 4, 24, 20))
    request = inpainting(image, sampler=sampler, strength=strength, mask_blur=0)
    drawn, plain = draw(bundle, request, image), draw(bundle, replace(request, mask="", mask_blur=None), image)
    source, inside = np.asarray(image.image, np.int16), np.zeros((SIDE, SIDE), bool)
    inside[4:20, 8:24] = True
    assert np.array_equal(drawn[~inside], source[~inside])
    assert np.abs(drawn[inside] - plain[inside]).max() <= 1 and np.abs(drawn[inside] - source[inside]).max() > 20


def test_half_a_latent_pixel_is_half_of_both(bundle: Bundle, photo: Path) -> None:
    """By hand: after every step x = M x + (1 - M) (signal z + sigma n), and the same of the predicted clean latent."""
    grey = Image.new("L", (SIDE, SIDE), 128)
    image = InitImage.read(photo).with_mask(Mask.of(grey))
    request = inpainting(image, sampler="dpmpp_2m", guidance=1.0, seed=5)
    seen: list[NDArray[np.float32]] = []

    class Recording(OrtBackend):
        def step(self, state: Any, index: int, noise: Any, conditioning: Any, table: StepTable) -> Any:
            seen.append(state)
            return super().step(state, index, noise, conditioning, table)

        def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
            seen.append(latent)
            return super().decode(latent)

    backend = Recording(bundle, "cpu", 1)
    generate(bundle, backend, request, init_images=[image])
    steps, share = step_table("dpmpp_2m", bundle.schedule, 8, 1.0), 128 / 255
    clean = backend.encode_image(image.pixels(SIDE, SIDE)[None])
    noise = (seen[0][0] - steps.mixes[0, 0] * clean) / steps.mixes[0, 1]
    ids = bundle.tokenizer().encode("a", {}).ids[None]
    text = Conditioning(backend.encode(ids)[0][None])
    for index in range(8):
        free = OrtBackend(bundle, "cpu", 1).step(seen[index], index, np.zeros_like(noise), text, steps)
        signal, sigma = steps.mixes[index + 1]
        known = np.stack([signal * clean + sigma * noise, clean])
        expected = share * free + (1 - share) * known
        assert np.allclose(seen[index + 1], expected if index < 7 else expected[0], atol=1e-4)


def test_edges_fade_inside_the_mask_only() -> None:
    mask = np.zeros((16, 16), np.float32)
    mask[4:14, 4:14], mask[1, 2:9] = 1, 1  # a square, and a line of one pixel
    soft = feather(mask, 3)
    assert not soft[mask == 0].any() and soft[4, 8] == 0.25 and soft[9, 9] == 1
    assert (soft[1, 2:9] > 0.2).all() and np.array_equal(feather(mask, 0), mask)
    line = np.zeros((9, 9), np.float32)
    line[4, :] = 1
    assert np.array_equal(feather(line, 3), line)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m"])
def test_image_k_of_a_batch_equals_the_single_image(bundle: Bundle, photo: Path, sampler: str) -> None:
    for seed, name in enumerate(("alice", "bob"), 1):
        bundle.add(make_identity(name, seed))
    one, other = masked(photo, box_mask(8, 4, 24, 20)), masked(photo, box_mask(0, 0, 32, 9))
    request = inpainting(one, "alice and bob", sampler=sampler, seed=3, layout="left:alice,right:bob")
    assert other.mask is not None
    wanted = [*batch(request, 3), replace(request, mask=other.mask.digest), replace(request, mask="")]
    drawn = generate(bundle, BatchingBackend(bundle, "cpu", 1), wanted, init_images=[one, other])
    for each, picture in zip(wanted, drawn, strict=True):
        assert np.array_equal(np.asarray(picture.image, np.int16), draw(bundle, each, one, other))


def test_an_inverted_mask_changes_the_rest(bundle: Bundle, photo: Path) -> None:
    image = masked(photo, box_mask(0, 0, 16, 32))
    drawn, source = draw(bundle, inpainting(image, mask_invert=True), image), np.asarray(image.image, np.int16)
    assert np.array_equal(drawn[:, :16], source[:, :16]) and not np.array_equal(drawn[:, 16:], source[:, 16:])


def test_transparent_parts_are_the_mask(bundle: Bundle, photo: Path, tmp_path: Path) -> None:
    with Image.open(photo) as opaque:
        clear = opaque.convert("RGBA")
    clear.putalpha(box_mask(0, 0, 16, 32))
    clear.save(tmp_path / "clear.png")
    (request,), (image,) = make_requests(Request("a", steps=8), 1, tmp_path / "clear.png")
    assert request.mask == request.source == image.digest and request.strength == 1
    drawn, source = draw(bundle, request, image), np.asarray(image.image, np.int16)
    assert np.array_equal(drawn[:, :16], source[:, :16]) and not np.array_equal(drawn[:, 16:], source[:, 16:])
    (plain,), _ = make_requests(Request("a", steps=8), 1, photo)
    assert not plain.mask and plain.strength == 0.6


# What is refused


@pytest.mark.parametrize(
    ("mode", "fill", "reason"),
    [
        ("RGB", (200, 30, 30), "mask_in_colour"),
        ("RGBA", (255, 255, 255, 90), "mask_with_alpha"),
        ("I;16", 65535, "mask_mode"),
        ("F", 1.0, "mask_mode"),
    ],
)
def test_an_image_that_is_no_mask_is_refused(mode: str, fill: Any, reason: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Mask.of(Image.new(mode, (SIDE, SIDE), fill))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"source": ""}, "mask_without_image"),
        ({"mask": "f" * 64}, "mask_missing"),
        ({"mask_blur": 129}, "mask_blur_out_of_range"),
        ({"mask": "", "mask_blur": 3}, "mask_options_without_mask"),
        ({"was": "b"}, "edit_with_mask"),
        ({"hires": "2x"}, "hires_with_mask"),
    ],
)
def test_requests_that_do_not_fit_are_refused(bundle: Bundle, photo: Path, values: dict[str, Any], reason: str) -> None:
    image = masked(photo, box_mask(8, 8, 16, 16))
    with pytest.raises(CelebctlError) as caught:
        draw(bundle, replace(inpainting(image), **values), image)
    assert caught.value.reason == reason


def test_masks_that_change_nothing_or_everything_are_refused(bundle: Bundle, photo: Path) -> None:
    for value, reason in ((0, "mask_empty"), (255, "mask_full")):
        image = masked(photo, Image.new("L", (SIDE, SIDE), value))
        with pytest.raises(InvalidInputError) as caught:
            draw(bundle, inpainting(image), image)
        assert caught.value.reason == reason


def test_a_mask_has_the_proportions_of_its_image(bundle: Bundle, photo: Path) -> None:
    large = masked(photo, box_mask(16, 8, 48, 40, side=64))
    same = masked(photo, box_mask(8, 4, 24, 20))
    assert np.array_equal(draw(bundle, inpainting(large), large), draw(bundle, inpainting(same), same))
    with pytest.raises(UsageError) as caught:
        masked(photo, Image.new("L", (SIDE, SIDE + 4), 255))
    assert caught.value.reason == "mask_size"


# Recipes and the command line


def test_recipes_hold_only_what_is_set() -> None:
    added = {"mask", "mask_blur", "mask_invert", "was", "threshold", "hires", "hires_strength"}
    assert not added & Request("a").to_json().keys()
    full = Request(
        "a", source="0" * 64, mask="1" * 64, mask_blur=0, mask_invert=True, was="", threshold=0.3, hires="64x64",
        hires_strength=0.2,
    )  # fmt: skip
    assert added <= full.to_json().keys()
    assert Request.from_json(json.loads(json.dumps(full.to_json()))) == full
    for key, wrong in {"mask_invert": 1, "mask_blur": True, "threshold": "0.5", "was": 3}.items():
        with pytest.raises(UsageError):
            Request.from_json({"prompt": "a", key: wrong})


def test_gen_and_regen_with_a_mask(console: CommandLine, bundle: Bundle, photo: Path) -> None:
    box_mask(8, 4, 24, 20).save("mask.png")
    Image.new("L", (SIDE, SIDE), 9).save("other.png")
    options = ("--bundle", bundle.path, "--scale", "1")
    source = ("--from", photo, "--mask", "mask.png")
    done = console("gen", "a", "-s", "1", *source, "--mask-blur", "2", "-o", "new.png", *options)
    assert done.code == 0, done.err
    request = recipe(console.folder / "new.png")
    assert request.mask == hashlib.sha256(Path("mask.png").read_bytes()).hexdigest()
    assert (request.mask_blur, request.mask_invert, request.strength) == (2, False, 1.0)
    kept = np.asarray(box_mask(8, 4, 24, 20)) == 0
    with Image.open("new.png") as new, Image.open(photo) as old:
        assert np.array_equal(np.asarray(new)[kept], np.asarray(old)[kept])
    again = ("regen", "new.png", "--bundle", bundle.path)
    refused(console(*again, "--from", photo), 4, "mask", "--mask")
    refused(console(*again, "--from", photo, "--mask", "other.png"), 2, "another mask")
    refused(console(*again, "--from", "other.png", "--mask", "mask.png"), 2, "another init image")
    assert console(*again, *source, "--json").document["identical"]
    refused(console("gen", "a", "--mask", "mask.png", *options), 2, "init image", "--from")
    refused(console("gen", "a", "--from", photo, "--mask-blur", "2", *options), 2, "mask", "--mask")


# Edits


def test_the_output_of_the_network_is_read_from_a_fused_step(bundle: Bundle) -> None:
    generator = np.random.default_rng(1)
    latent = generator.standard_normal((2, 4, 8, 8), np.float32)
    text = Conditioning(generator.standard_normal((1, 2, 77, 8), np.float32))
    steps = step_table("euler", bundle.schedule, 6, 1.0)
    scale, time, _ = steps.aux[3]
    expected = np.tanh(latent * scale + text.context[0].mean(1)[:, :4, None, None] + 0.001 * time)
    assert np.abs(predict(OrtBackend(bundle, "cpu", 1), latent, 3, text, steps) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("sampler", "prediction"),
    [(name, kind) for name in ("ddim", "euler", "dpmpp_2m") for kind in ("epsilon", "v_prediction")]
    + [("euler", "flow_prediction")],
)
def test_drawing_from_the_inverted_noise_gives_the_image_back(sampler: str, prediction: str) -> None:
    config = ScheduleConfig(prediction_type=prediction)
    latent = np.random.default_rng(2).standard_normal((1, 4, 8, 8)).astype(np.float32)

    def run(table: StepTable, x: NDArray[np.float32]) -> NDArray[np.float32]:
        state = np.stack([x, np.zeros_like(x)])
        for (scale, time, _), matrix in zip(table.aux, table.table, strict=True):
            output = np.float32(0.3) * network(state[0] * scale, float(time))
            seen = np.concatenate([state, output[None], np.zeros_like(x)[None]]).reshape(4, -1)
            state = (matrix @ seen).reshape(state.shape)
        return state[0]

    def error(steps: int) -> float:
        inverted = run(inversion_table(sampler, config, steps, 1.0, skip=steps // 5), latent)
        assert np.abs(inverted - latent).max() > 0.1
        return float(np.abs(run(step_table(sampler, config, steps, 1.0, skip=steps // 5), inverted) - latent).max())

    assert error(200) < 0.08 and error(200) < error(20)


def test_the_noise_levels_of_an_inversion_are_those_of_the_sampler_reversed() -> None:
    steps, back = (make("ddim", ScheduleConfig(), 10, 1.0, skip=3) for make in (step_table, inversion_table))
    assert np.array_equal(back.mixes[::-1], steps.mixes) and back.steps == steps.steps == 7


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_an_edit_keeps_what_is_outside_its_mask(bundle: Bundle, sampler: str) -> None:
    """Where the image is grey, the toy network's tanh makes more of a change of words than where it is white."""
    for seed, name in enumerate(("alice", "bob"), 1):
        bundle.add(make_identity(name, seed))
    pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)
    pixels[:, :16] = 255
    image, backend, events = InitImage.of(Image.fromarray(pixels)), OrtBackend(bundle, "cpu", 1), list[Progress]()
    request = Request(
        "bob smiling", steps=8, sampler=sampler, source=image.digest, strength=0.8, was="alice", threshold=0.9
    )
    (picture,) = generate(bundle, backend, request, events.append, init_images=[image])
    assert picture.request.identities == ("bob", "alice") and picture.mask is not None
    mask, drawn = np.asarray(picture.mask), np.asarray(picture.image)
    assert set(np.unique(mask)) == {0, 255} and mask[:, 16:].mean() > 2 * mask[:, :16].mean()
    assert np.array_equal(drawn[mask == 0], pixels[mask == 0]) and not np.array_equal(drawn, pixels)
    assert [event.step for event in events] == sorted(event.step for event in events)
    assert events[-1].step == events[-1].total == (20 + 6 + 6 if sampler == "ddim" else 20 + 6)
    (less,) = generate(bundle, backend, replace(request, threshold=1.0), init_images=[image])
    assert less.mask is not None and 0 < np.asarray(less.mask).mean() < mask.mean()
    several = [*batch(request, 2), replace(request, threshold=1.0)]
    together = generate(bundle, BatchingBackend(bundle, "cpu", 1), several, init_images=[image])
    for alone, number in ((picture, 0), (less, 2)):
        assert np.array_equal(np.asarray(together[number].image), np.asarray(alone.image))


def test_an_edit_that_says_the_same_is_refused(bundle: Bundle, photo: Path) -> None:
    image = InitImage.read(photo)
    with pytest.raises(UsageError) as caught:
        draw(bundle, Request("beach", source=image.digest, was="beach"), image)
    assert caught.value.reason == "edit_changes_nothing"


def test_edit_takes_the_old_prompt_and_the_size_from_the_recipe(console: CommandLine, bundle: Bundle) -> None:
    options = ("--bundle", bundle.path, "-s", "1", "--scale", "1", "--steps", "6")
    console("gen", "a beach", "--size", "40x48", "-o", "beach.png", *options)
    edit = ("edit", "beach.png", "a chess beach", *options)
    done = console(*edit, "-o", "new.png", "--mask-out", "mask.png")
    assert done.code == 0 and "a beach" in done.err, done.err
    request = recipe(console.folder / "new.png")
    assert (request.was, request.width, request.height, request.strength) == ("a beach", 40, 48, 0.8)
    with Image.open("new.png") as new, Image.open("beach.png") as old, Image.open("mask.png") as mask:
        kept = np.asarray(mask) == 0
        assert mask.size == new.size == (40, 48) and np.array_equal(np.asarray(new)[kept], np.asarray(old)[kept])
    assert console("regen", "new.png", "--from", "beach.png", "--bundle", bundle.path, "--json").document["identical"]
    refused(console("regen", "new.png", "--bundle", bundle.path), 4, "init image", "--from")
    refused(console("edit", "beach.png", "a beach", *options), 2, "same", "new prompt")
    refused(console(*edit, "--threshold", "2"), 2, "threshold", "--threshold")
    refused(console(*edit, "--mask-out", "mask.png"), 2, "mask.png exists", "--force")
    refused(console("edit", "nowhere.png", "a", *options), 4, "nowhere.png")


def test_edit_draws_images_of_other_programs_with_the_default_model(console: CommandLine) -> None:
    write_bundle(console.library.bundle_path(MODEL, TABLE_HASH), encodes=True)
    info = PngInfo()
    info.add_text("parameters", "a (beach:1.2)\nSteps: 4, Sampler: Euler a, Seed: 5, Size: 32x32, Model: elsewhere")
    Image.new("RGB", (SIDE, SIDE), "red").save("webui.png", pnginfo=info)
    words = ("edit", "webui.png", "a chess (beach:1.2)", "-s", "1", "--steps", "6")
    assert (done := console(*words, "-o", "new.png")).code == 0, done.err
    request = recipe(console.folder / "new.png")
    assert (request.was, request.syntax) == ("a (beach:1.2)", "weighted")


def test_edit_in_python_takes_an_image_and_its_prompt(bundle: Bundle, tmp_path: Path) -> None:
    pipe = Pipeline(bundle, device="cpu", library=Library(tmp_path / "home"))
    before = pipe("beach", seed=1, steps=4)
    after = pipe.edit(before.images[0], "chess", was="beach", seed=1, steps=4, threshold=0.6)
    assert (after.requests[0].was, after.requests[0].threshold) == ("beach", 0.6)
    assert after.masks[0] is not None and before.masks == [None]


def test_an_edit_reads_both_prompts_as_they_were_drawn(tmp_path: Path) -> None:
    image = Image.new("RGB", (SIDE, SIDE))

    def shown(prompt: str, **more: Any) -> tuple[str | None, str]:
        request = Request(prompt, steps=4, width=SIDE, height=SIDE, **more)
        path = save_image(GeneratedImage(image, request, {}), tmp_path / "a.png", overwrite=True)
        request, _, _ = edit_request(path, "chess", {})
        return request.was, request.syntax

    assert shown("(beach) [day:night:2]", syntax="weighted") == ("(beach) night", "weighted")
    assert shown("[day:night:0.6]", syntax="weighted", source="0" * 64, strength=0.5) == ("night", "weighted")
    assert shown("(beach)") == ("(beach)", "plain") and shown("beach") == ("beach", "weighted")
    request, _, _ = edit_request(image, "(chess:1.2)", {"was": "(beach)"})
    assert (request.was, request.syntax) == ("(beach)", "weighted")


# Second passes


def test_a_second_pass_is_gen_and_gen_from(bundle: Bundle) -> None:
    backend, events = OrtBackend(bundle, "cpu", 1), list[Progress]()
    request = Request("beach", steps=10, seed=4, hires="2x", hires_strength=0.4)
    plain, both = replace(request, hires="", hires_strength=0.5), [request, replace(request, hires="")]
    drawn = generate(bundle, backend, both, events.append)
    (first,) = generate(bundle, backend, plain)
    source = InitImage.of(first.image)
    second = replace(plain, width=64, height=64, source=source.digest, strength=0.4)
    (expected,) = generate(bundle, backend, second, init_images=[source])
    assert drawn[0].image.size == (64, 64) and np.array_equal(np.asarray(drawn[0].image), np.asarray(expected.image))
    assert np.array_equal(np.asarray(drawn[1].image), np.asarray(first.image))
    assert drawn[0].request.hires == "64x64" and drawn[0].request.size == (64, 64)
    assert (events[-1].step, events[-1].total) == (24, 24)
    (again,) = generate(bundle, backend, drawn[0].request)
    assert np.array_equal(np.asarray(again.image), np.asarray(expected.image))


@pytest.mark.parametrize(
    ("hires", "reason"),
    [("9" * 309 + "x", "invalid_hires"),
     ("big", "invalid_hires"), ("1x", "hires_too_small"), ("16x16", "hires_too_small"), ("66x66", "invalid_size"),
     ("500x", "invalid_size"), ("99999x99999", "invalid_size")],
)  # fmt: skip
def test_sizes_of_a_second_pass_are_checked_before_the_first(bundle: Bundle, hires: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        draw(bundle, Request("beach", hires=hires))
    assert caught.value.reason == reason


def test_hires_on_the_command_line(console: CommandLine, bundle: Bundle) -> None:
    options = ("--bundle", bundle.path, "-s", "1", "--steps", "6", "--scale", "1")
    done = console("gen", "beach", "--hires", "2x", "--hires-strength", "0.5", "-o", "large.png", *options)
    assert done.code == 0, done.err
    assert recipe(console.folder / "large.png").hires == "64x64"
    assert console("regen", "large.png", "--bundle", bundle.path, "--json").document["identical"]
    refused(console("gen", "beach", "--hires", "0.5x", *options), 2, "not larger", "--hires")
    refused(console("gen", "beach", "--hires", "2x", "--hires-strength", "0", *options), 2, "strength")


def test_a_missing_init_image_of_a_mask_is_named(bundle: Bundle, photo: Path) -> None:
    image = masked(photo, box_mask(8, 8, 16, 16))
    with pytest.raises(NotFoundError) as caught:
        draw(bundle, inpainting(image), InitImage.read(photo))
    assert caught.value.reason == "mask_missing"
