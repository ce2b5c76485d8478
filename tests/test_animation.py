"""animate: frames between prompts under one noise, their timing, the files, and their recipes."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from bundle_fakes import make_identity
from console_fakes import CommandLine, recipe, refused, toy_bundle
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from celebctl.animation import MAX_PIXELS, Animation, Easing, Keyframe, Route, Timing, animate, keyframes
from celebctl.animation_files import read_frame, save_animation
from celebctl.pipeline import Pipeline
from celebctl_runtime.errors import CelebctlError, IntegrityError, InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.picture import UNMARKED, WATERMARKED, GeneratedImage, read_request
from celebctl_runtime.request import Request

ROUTES: tuple[Route, ...] = ("loop", "boomerang", "once")
EASINGS: tuple[Easing, ...] = ("cosine", "linear")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


# The key frames.


@given(st.integers(2, 5), st.integers(2, 40), st.sampled_from(ROUTES), st.sampled_from(EASINGS))
def test_every_prompt_is_a_frame_and_each_frame_lies_between_two_that_follow(
    keys: int, count: int, route: Route, easing: Easing
) -> None:
    least = {"loop": keys, "boomerang": 2 * keys - 2, "once": keys}[route]
    timing = Timing(count, route=route, easing=easing)
    if count < least:
        with pytest.raises(UsageError) as refusal:
            keyframes(keys, timing)
        assert refusal.value.reason == "too_few_frames" and refusal.value.values["least"] == least
        return
    frames = keyframes(keys, timing)
    assert len(frames) == count and frames[0] == Keyframe(0, 0)
    assert {one.first for one in frames if one.first == one.second} == set(range(keys))
    neighbours = {(k, k + 1) for k in range(keys - 1)}
    if route == "loop":
        neighbours.add((0, keys - 1))
    for one in frames:
        assert one.first == one.second or ((one.first, one.second) in neighbours and 0 < one.blend < 1)
    assert route != "once" or frames[-1] == Keyframe(keys - 1, keys - 1)


def test_the_way_back_has_the_frames_of_the_way_there() -> None:
    frames = keyframes(2, Timing(24))
    assert frames[1:12] == frames[:12:-1] and len(set(frames)) == 13
    assert keyframes(2, Timing(24, route="boomerang")) == frames
    loop, boomerang = (keyframes(3, Timing(12, route=route)) for route in ("loop", "boomerang"))
    assert (loop[-1].first, loop[-1].second) == (0, 2) and boomerang[-1].first == 0 and boomerang[-1].second == 1
    assert len(set(boomerang)) == 7


def test_easing_is_slow_at_the_prompts() -> None:
    linear, cosine = ([one.blend for one in keyframes(2, Timing(9, easing=one, route="once"))] for one in EASINGS[::-1])
    assert linear[:8] == [0.0, *(k / 8 for k in range(1, 8))]
    assert cosine[4] == linear[4] == 0.5 and cosine[1] < linear[1] / 2 and cosine[7] > 1 - linear[1] / 2


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"frames": 1}, "frames_out_of_range"),
        ({"frames": 241}, "frames_out_of_range"),
        ({"fps": 0.001}, "fps_out_of_range"),
        ({"fps": 0.0}, "fps_out_of_range"),
        ({"fps": float("nan")}, "fps_out_of_range"),
        ({"hold": -1.0}, "hold_out_of_range"),
        ({"hold": float("inf")}, "hold_out_of_range"),
    ],
)
def test_invalid_timing_is_refused(values: dict[str, float], reason: str) -> None:
    with pytest.raises(UsageError) as refusal:
        replace(Timing(), **values)
    assert refusal.value.reason == reason


# The images.


@pytest.fixture
def pipe(console: CommandLine) -> Pipeline:
    console.add_people("alice", "bob")
    return Pipeline(toy_bundle(console.library), device="cpu", library=console.library)


def test_a_frame_is_the_image_of_its_request_and_key_frames_are_those_of_their_prompts(pipe: Pipeline) -> None:
    timing = Timing(5, route="once", easing="linear")
    drawn = animate(pipe, Request("", seed=3, steps=2), ["alice chess", "<bob> beach"], timing)
    assert not pipe.bundle.names, "people are not added to the bundle"
    assert [one.request.blend for one in drawn.images] == [0, 0.25, 0.5, 0.75, 0]
    assert drawn.images[2].request.identities == ("alice", "bob")
    pipe.add_people = True
    for one, prompt in ((drawn.images[0], "alice chess"), (drawn.images[4], "bob beach")):
        alone = pipe(prompt, seed=3, steps=2)
        assert alone.images[0].tobytes() == one.image.tobytes()
    again = pipe.generate([drawn.images[2].request])[0]
    assert again.image.tobytes() == drawn.images[2].image.tobytes()
    total = np.abs(pixels(drawn.images[0].image) - pixels(drawn.images[4].image)).mean()
    steps = [np.abs(pixels(a.image) - pixels(b.image)).mean() for a, b in pairwise(drawn.images)]
    assert max(steps) < 0.6 * total and total > 1


def test_a_likeness_by_name_goes_with_the_person(pipe: Pipeline, tmp_path: Path) -> None:
    request = Request("", seed=3, steps=1, likeness=(("alice", 0.8), ("bob", 0.5)))
    drawn = animate(pipe, request, ["alice chess", "bob beach", "chess"], Timing(5, route="once"))
    likeness = [one.request.likeness for one in drawn.images]
    assert likeness == [(("alice", 0.8),), request.likeness, (("bob", 0.5),), (("bob", 0.5),), 1.0]
    (path,) = save_animation(drawn, tmp_path / "a.webp")
    assert [read_frame(path, number).request() for number in range(1, 6)] == [one.request for one in drawn.images]
    with pytest.raises(UsageError) as refusal:
        animate(pipe, request, ["alice chess", "alice beach"], Timing(2))
    assert refusal.value.reason == "not_in_prompt_likeness"


def test_a_blend_mixes_the_encodings_of_both_prompts_in_every_region(pipe: Pipeline) -> None:
    """In the middle between one prompt and the other and the other and the one is the same image."""
    pipe.add_people = True
    layout = "left:alice,right:bob"
    one = Request("alice and bob of chess", seed=1, steps=2, layout=layout, toward="bob beach alice", blend=0.25)
    other = replace(one, prompt=one.toward, toward=one.prompt, blend=0.75)
    plain = replace(one, toward="", blend=0.0)
    images = [pixels(drawn.image) for drawn in pipe.generate([one, other, plain, replace(one, blend=0.0)])]
    assert np.abs(images[0] - images[1]).max() <= 1
    assert np.array_equal(images[2], images[3]) and not np.array_equal(images[0], images[2])


def test_invalid_blends_are_refused(pipe: Pipeline) -> None:
    for request, reason in (
        (Request("a", blend=0.5), "blend_without_prompt"),
        (Request("a", toward="b", blend=1.5), "blend_out_of_range"),
        (Request("a", toward="b", blend=float("nan")), "blend_out_of_range"),
    ):
        with pytest.raises(UsageError) as refusal:
            pipe.generate([request])
        assert refusal.value.reason == reason
    with pytest.raises(UsageError):
        Request.from_json({"prompt": "a", "toward": "b", "blend": "0.5"})
    with pytest.raises(NotFoundError):
        pipe.generate([Request("a", toward="<carol>", blend=0.5)])
    assert {"toward", "blend"}.isdisjoint(Request("a").to_json())


def test_an_animation_has_a_limit_of_pixels(pipe: Pipeline) -> None:
    assert MAX_PIXELS < 240 * 1024 * 1024
    with pytest.raises(UsageError) as refusal:
        animate(pipe, Request("", width=1024, height=1024), ["a", "b"], Timing(240, route="once"))
    assert refusal.value.reason == "animation_too_large" and refusal.value.values["most"] == 128


# The files.


def an_animation(repeats: bool = True) -> Animation:
    images = [
        GeneratedImage(Image.new("RGB", (32, 16), colour), Request("a", toward=toward, blend=blend), {"model": "toy"})
        for colour, toward, blend in (((200, 0, 0), "", 0.0), ((0, 200, 0), "b", 0.5), ((0, 0, 200), "b", 0.75))
    ]
    return Animation(images, [0, 1, 2, 1], [0.5, 0.1, 0.1, 0.1], repeats)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
@pytest.mark.parametrize("repeats", [True, False])
def test_files_have_every_frame_its_time_and_its_recipe(tmp_path: Path, suffix: str, repeats: bool) -> None:
    made = an_animation(repeats)
    (path,) = save_animation(made, tmp_path / f"a{suffix}", scale=2)
    with Image.open(path) as file:
        assert getattr(file, "n_frames", 1) == 4 and file.size == (64, 32)
        assert file.info.get("loop", 1) == (0 if repeats else 1)
        for number, (index, seconds) in enumerate(zip(made.order, made.seconds, strict=True)):
            file.seek(number)
            file.load()
            assert file.info["duration"] == pytest.approx(1000 * seconds)
            assert np.abs(pixels(file) - pixels(made.images[index].image)[0, 0]).max() <= 12
    for number, index in enumerate(made.order, 1):
        recipe = read_frame(path, number)
        assert recipe.request() == made.images[index].request
        assert recipe.record == {"model": "toy", "scale": 2, "identities": {}}
    for number in (0, 5):
        with pytest.raises(UsageError) as refusal:
            read_frame(path, number)
        assert refusal.value.reason == "frame_out_of_range"


def test_a_folder_has_a_recipe_in_each_frame(tmp_path: Path) -> None:
    made = an_animation()
    files = save_animation(made, tmp_path / "frames")
    assert [path.name for path in files] == [f"frame-00{number}.png" for number in (1, 2, 3, 4)]
    assert [read_request(path)[0] for path in files] == [made.images[index].request for index in made.order]
    with pytest.raises(UsageError) as refusal:
        save_animation(made, tmp_path / "frames")
    assert refusal.value.reason == "file_exists"
    assert save_animation(made, tmp_path / "frames", overwrite=True) == files


def test_mp4_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CelebctlError) as refusal:
        save_animation(an_animation(), tmp_path / "a.mp4")
    assert refusal.value.reason == "video_missing" and refusal.value.exit_code == 6
    assert not list(tmp_path.iterdir())


def test_mp4_has_every_frame_for_its_time(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    (path,) = save_animation(an_animation(), tmp_path / "a.mp4")
    with av.open(str(path)) as file:
        assert '"frames"' in file.metadata["comment"]
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(video=0)]
    colours = [frame[8, 16].argmax() for frame in frames]
    assert colours == [0] * 5 + [1, 2, 1]


def test_damaged_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_frame(tmp_path / "none.gif", 1)
    plain = tmp_path / "plain.gif"
    Image.new("RGB", (8, 8)).save(plain)
    (tmp_path / "text.webp").write_text("no image")
    for path in (plain, tmp_path / "text.webp"):
        with pytest.raises(InvalidInputError) as refusal:
            read_frame(path, 1)
        assert refusal.value.reason == "no_frames"
    for text in (
        '{"frames": []}',
        '{"schema": 1, "request": {"prompt": "a"}, "record": {}, "frames": [{"blend": "x"}]}',
        '{"schema": 1, "request": {"prompt": "a"}, "record": {}, "frames": 3}',
        '{"schema": 9, "request": {"prompt": "a"}, "record": {}, "frames": [{}]}',
        '{"schema": 1, "request": {"prompt": "a"}, "record": {"scale": "x"}, "frames": [{}]}',
        '"frames"',
        '{"frames": ',
    ):
        Image.new("RGB", (8, 8)).save(plain, comment=text.encode())
        with pytest.raises(IntegrityError):
            read_frame(plain, 1)


# The command.


def test_a_person_and_states_or_whole_prompts(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    toy_bundle(console.library)

    def prompts(*words: str) -> list[str]:
        return console("animate", *words, "--frames", "4", "--steps", "1", "-f", "-o", "a.gif", "--json").document[
            "prompts"
        ]

    assert prompts("alice", "beach", "chess") == ["alice beach", "alice chess"]
    assert prompts("<Alice>", "beach") == ["<Alice>", "<Alice> beach"]
    assert prompts("alice", "", "chess") == ["alice", "alice chess"]
    assert prompts("alice", "bob") == ["alice", "bob"]
    assert prompts("alice chess", "bob chess") == ["alice chess", "bob chess"]
    assert prompts("beach", "alice") == ["beach", "alice"]


def test_key_prompts_have_weights_and_wildcards(console: CommandLine) -> None:
    console.add_people("alice")
    toy_bundle(console.library)
    more = ("--frames", "4", "--steps", "2", "--seed", "1", "--json", "-f", "-o", "a.webp")
    made = console("animate", "alice", "(chess:1.3)", "{beach|beach}", *more).document
    assert made["prompts"] == ["alice (chess:1.3)", "alice beach"]
    assert [frame.get("syntax", "plain") for frame in made["frames"]] == ["weighted", "weighted", "plain", "weighted"]
    assert [read_frame(Path("a.webp"), number).request().to_json() for number in (1, 2, 3, 4)] == made["frames"]
    plain = console("animate", "alice", "(chess:1.3)", "{beach|beach}", "--plain-prompt", *more).document
    assert plain["prompts"][1] == "alice {beach|beach}" and not any("syntax" in frame for frame in plain["frames"])


def test_frames_in_a_folder_are_marked_as_the_settings_say(tmp_path: Path) -> None:
    image = Image.new("RGB", (160, 160), (120, 90, 60))
    made = Animation([GeneratedImage(image, Request("a"), {})], [0, 0], [0.1, 0.1], repeats=True)
    for marks, expected in ((WATERMARKED, "public"), (UNMARKED, None)):
        (path, _) = save_animation(made, tmp_path / f"frames-{expected}", marks=marks)
        assert read_request(path)[1].get("watermark") == expected
    (path,) = save_animation(made, tmp_path / "a.apng")
    with Image.open(path) as file:
        assert file.convert("RGB").tobytes() == image.tobytes()


def test_animate_writes_a_file_whose_frames_can_be_drawn_again(console: CommandLine) -> None:
    console.add_people("alice")
    toy_bundle(console.library)
    words = ("animate", "alice", "beach", "chess", "--frames", "6", "--seed", "4", "--steps", "2", "--route", "once")
    result = console(*words, "--json", "-o", "frames")
    assert result.code == 0 and len(result.document["files"]) == 6, result.err
    assert console(*words).lines == ["alice-beach-chess-4.gif"]
    assert console("regen", "alice-beach-chess-4.gif", "--frame", "3", "-o", "third.png").code == 0
    with Image.open("third.png") as one, Image.open("frames/frame-003.png") as other:
        assert one.tobytes() == other.tobytes()
    assert recipe(Path("third.png")) == recipe(Path("frames/frame-003.png"))
    assert recipe(Path("third.png")).toward == "alice chess"
    assert console("regen", "frames/frame-003.png", "--json").document["identical"] is True


def test_animate_refuses_before_it_draws(console: CommandLine) -> None:
    console.add_people("alice")
    toy_bundle(console.library, make_identity("carol", 3))
    refused(console("animate", "alice"), 2, "alice", "celebctl animate alice smiling")
    refused(console("animate", "alice", "a", "b", "c", "--frames", "2"), 2, "2 frames", "--frames 3")
    refused(console("animate", "alice", "a", "--frames", "1"), 2, "frames 1", "--frames 2")
    refused(console("animate", "alice", "a", "--fps", "0"), 2, "fps 0", "--fps")
    refused(console("animate", "alice", "a", "--route", "back"), 2, "back")
    refused(console("animate", "alice", "a", "-o", "a.avi"), 2, "a.avi", ".gif")
    refused(console("animate", "<dora>", "a"), 4, "<dora>")
    Path("a.gif").write_text("mine")
    refused(console("animate", "alice", "a", "-o", "a.gif"), 2, "a.gif exists", "--force")
    assert Path("a.gif").read_text() == "mine" and len(list(Path().iterdir())) == 1
    refused(console("regen", "a.gif", "--frame", "1"), 3, "a.gif")
