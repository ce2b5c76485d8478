"""`gen --refine-faces` and `--best-of`: matching faces to people, drawing them again, recipes, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from console_fakes import CommandLine, refused
from numpy.typing import NDArray
from PIL import Image

import celebctl.pipeline
from celebctl.drawn_faces import REFERENCE_IMAGES, DrawnFaces, open_drawn_faces
from celebctl.library import Library
from celebctl.pipeline import Pipeline, make_requests, same_pixels
from celebctl_models.faces.analysis import Face
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import NotFoundError, SetupError, UsageError
from celebctl_runtime.face_redrawing import blend_faces, crop_box, crop_request
from celebctl_runtime.picture import GeneratedImage
from celebctl_runtime.pipeline import complete, generate, redraw_faces
from celebctl_runtime.prompting.layout import parse_layout
from celebctl_runtime.prompting.prompt import leave_out_others
from celebctl_runtime.request import Request, resolve
from celebctl_runtime.sampling.init_image import InitImage

ALICE, BOB, NOBODY = np.eye(3, dtype=np.float32)
LEFT, RIGHT = (2.0, 4.0, 12.0, 16.0), (20.0, 6.0, 30.0, 18.0)


def face(feature: NDArray[np.float32], box: Sequence[float] = LEFT) -> Face:
    nothing = np.zeros((112, 112, 3), np.uint8)
    return Face(np.array(box, np.float32), 0.9, np.zeros((5, 2), np.float32), nothing, feature)


class ScriptedAnalyser:
    """Finds nothing but what the script has: the faces of the next images, one entry per image."""

    def __init__(self, *script: Sequence[Face]) -> None:
        self.script = list(script)

    def analyse(self, photo: Image.Image) -> list[Face]:
        assert photo.mode == "RGB"
        return list(self.script.pop(0))


def references(*features: NDArray[np.float32]) -> list[list[Face]]:
    """What the analyser finds in the reference images of people with these features."""
    return [[face(feature)] for feature in features for _ in range(REFERENCE_IMAGES)]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    return Library()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = write_bundle(tmp_path / "bundle", encodes=True)
    for seed, name in enumerate(("alice", "bob"), 1):
        bundle.add(make_identity(name, seed))
    return bundle


def open_faces(bundle: Bundle, library: Library, *script: Sequence[Face]) -> DrawnFaces:
    return DrawnFaces(bundle, OrtBackend(bundle, "cpu", 1), ScriptedAnalyser(*script), "scripted", library)


def draw(bundle: Bundle, request: Request) -> GeneratedImage:
    return generate(bundle, OrtBackend(bundle, "cpu", 1), request)[0]


def use(monkeypatch: pytest.MonkeyPatch, library: Library, *script: Sequence[Face]) -> None:
    """Let pipelines find the faces of the script."""

    def opened(bundle: Bundle, backend: OrtBackend, *_: object) -> DrawnFaces:
        return DrawnFaces(bundle, backend, ScriptedAnalyser(*script), "scripted", library)

    monkeypatch.setattr(celebctl.pipeline, "open_drawn_faces", opened)


# Geometry and prompts.


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("alice and bob playing chess", "bob playing chess"),
        ("a photo of Alice with <bob>, smiling", "a photo of <bob>, smiling"),
        ("alice, carol and bob", "bob"),
        ("bob in the snow", "bob in the snow"),
        ("bob and bob", "bob and bob"),
        ("alice talks to bob", "talks to bob"),
        (r"\alice the dog and bob", r"\alice the dog and bob"),
        ("bob & a tree", "bob & a tree"),
    ],
)
def test_the_other_people_are_left_out_of_a_prompt(prompt: str, expected: str) -> None:
    assert leave_out_others(prompt, {"alice", "bob", "carol"}, "bob") == expected


@pytest.mark.parametrize("native", [(64, 64), (64, 32)])
@pytest.mark.parametrize("box", [(20, 20, 40, 44), (0, 0, 10, 12), (80, 70, 100, 90), (0, 0, 100, 90)])
def test_a_crop_lies_in_the_image_around_the_face(box: tuple[int, int, int, int], native: tuple[int, int]) -> None:
    left, top, right, bottom = crop_box(box, (100, 90), native)
    assert 0 <= left < right <= 100 and 0 <= top < bottom <= 90
    assert abs((right - left) / (bottom - top) - native[0] / native[1]) < 0.1
    if box[3] - box[1] < 50:
        assert left <= box[0] and top <= box[1] and right >= box[2] and bottom >= box[3]


def test_only_the_ellipse_of_a_face_changes() -> None:
    picture = Image.new("RGB", (100, 100), (10, 20, 30))
    (region,) = regions = parse_layout("alice@0.4,0.4,0.6,0.6")
    pixels = np.asarray(blend_faces(picture, regions, [Image.new("RGB", (64, 64), (200, 200, 200))]))
    assert region.name == "alice" and pixels[50, 50].tolist() == [200, 200, 200]
    rows, columns = np.nonzero((pixels != (10, 20, 30)).any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (39, 60, 39, 60)
    assert pixels[41, 41].tolist() == [10, 20, 30]


# The runtime draws listed faces again.

FACES = "alice@0.1,0.1,0.4,0.5,bob@0.6,0.2,0.9,0.6"


def test_listed_faces_are_drawn_again_and_nothing_else(bundle: Bundle) -> None:
    request = Request("alice and bob", seed=3, steps=10, guidance=3.0)
    before, after = draw(bundle, request), draw(bundle, replace(request, refine_faces=FACES))
    changed = (np.asarray(before.image) != np.asarray(after.image)).any(axis=2)
    assert changed[5:14, 5:11].mean() > 0.8 and changed[8:18, 21:27].mean() > 0.8
    assert not changed[22:].any() and not changed[:, 15:18].any()
    assert after.request == replace(before.request, refine_faces=FACES) and after.record == before.record
    assert same_pixels(
        draw(bundle, Request.from_json(json.loads(json.dumps(after.request.to_json())))).image, after.image
    )
    stronger = draw(bundle, replace(after.request, refine_strength=0.9))
    assert not same_pixels(stronger.image, after.image)


def test_each_face_is_drawn_as_that_person_alone(bundle: Bundle) -> None:
    """With the same regions for the other person, both faces differ; without the other region, one stays."""
    request = Request("alice and bob", seed=3, steps=10, refine_strength=0.8)
    swapped = FACES.replace("alice", "x").replace("bob", "alice").replace("x", "bob")
    one, other = (np.asarray(draw(bundle, replace(request, refine_faces=f)).image, int) for f in (FACES, swapped))
    alone = np.asarray(draw(bundle, replace(request, refine_faces=FACES.partition(",bob")[0])).image, int)
    assert (one != other)[8:12, 6:10].any() and (one != other)[8:18, 21:27].any()
    assert np.array_equal(alone[:, :15], one[:, :15]) and not np.array_equal(alone, one)


def test_faces_are_drawn_again_once_after_the_second_pass(bundle: Bundle) -> None:
    request = Request("alice and bob", seed=3, steps=10, guidance=3.0, hires="2x")
    before, after = draw(bundle, request), draw(bundle, replace(request, refine_faces=FACES))
    assert after.image.size == before.image.size == (64, 64)
    assert same_pixels(
        redraw_faces(bundle, OrtBackend(bundle, "cpu", 1), [replace(before, request=after.request)])[0].image,
        after.image,
    )
    assert not same_pixels(before.image, after.image)
    assert after.request == replace(before.request, refine_faces=FACES)


@pytest.mark.parametrize("changes", [{"mask": "1" * 64}, {"was": "bob"}], ids=["mask", "edit"])
@pytest.mark.parametrize("faces", ["alice@0,0,1,1", "auto"])
def test_what_a_mask_keeps_is_not_drawn_again(bundle: Bundle, changes: dict[str, str], faces: str) -> None:
    request = Request.from_json({"prompt": "alice", "source": "0" * 64, "refine_faces": faces, **changes})
    with pytest.raises(UsageError) as caught:
        resolve(request, bundle.manifest)
    assert caught.value.reason == "refine_with_mask"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": "[bob:alice:8] and bob"}, ("alice", "", 0.0)),
        ({"prompt": "[alice:bob:8] smiling"}, ("alice smiling", "", 0.0)),
        ({"prompt": "[<alice>:<carol>:3]"}, ("<alice>", "", 0.0)),
        ({"prompt": "[alice:bob:8]", "syntax": "plain"}, ("[alice::8]", "", 0.0)),
        ({"prompt": "alice", "toward": "alice and [bob:snow:8]", "blend": 0.4}, ("alice", "alice and snow", 0.4)),
        ({"prompt": "alice", "toward": "bob", "blend": 0.4}, ("alice", "", 0.0)),
    ],
)
def test_a_face_is_drawn_under_the_last_prompt_of_its_person(
    changes: dict[str, object], expected: tuple[str, str, float]
) -> None:
    values = {"steps": 10, "identities": ["alice", "bob"], "syntax": "weighted", "seed": 1, **changes}
    image = GeneratedImage(Image.new("RGB", (32, 32)), Request.from_json(values), {})
    request, _ = crop_request(image, parse_layout("alice@0,0,0.5,0.5")[0], (32, 32))
    assert (request.prompt, request.toward, request.blend) == expected


def test_a_second_pass_keeps_the_people_of_the_first(bundle: Bundle, library: Library) -> None:
    request = Request("[bob:alice:8]", steps=10, hires="2x", syntax="weighted", likeness=(("alice", 0.8),))
    request = replace(request, layout="left:alice,right:bob")
    image = draw(bundle, request)
    assert image.request.identities == ("bob", "alice") and set(image.record["identities"]) == {"alice", "bob"}
    faces = open_faces(bundle, library, *references(BOB, ALICE), [face(ALICE)])
    assert [one.name for one in faces.find(image)] == ["alice"]


def test_people_who_are_never_drawn_are_not_searched(bundle: Bundle, library: Library) -> None:
    faces = open_faces(bundle, library, *references(BOB), [face(BOB)])
    request = Request("[<alice>:<bob>:0.2]", steps=4, syntax="weighted")
    faces.check([request])
    assert faces.likeness(draw(bundle, request)) == pytest.approx(1.0)
    with pytest.raises(UsageError) as caught:
        faces.check([replace(request, prompt="[alice:a dog:0.2]")])
    assert caught.value.reason == "no_people_to_find"


def test_faces_to_be_found_are_refused_before_the_first_image(bundle: Bundle) -> None:
    for changes in ({"hires": "2x"}, {"source": InitImage.of(Image.new("RGB", (32, 32))).digest}):
        request = replace(Request("alice", steps=10, refine_faces="auto"), **changes)
        (error,) = complete(bundle, OrtBackend(bundle, "cpu", 1), [request])
        assert isinstance(error, UsageError) and error.reason == "faces_not_found_yet"


def test_recipes_without_faces_leave_both_entries_out() -> None:
    assert not {"refine_faces", "refine_strength"} & Request("a").to_json().keys()
    for wrong in ({"refine_faces": 1}, {"refine_faces": FACES, "refine_strength": "0.3"}):
        with pytest.raises(UsageError):
            Request.from_json({"prompt": "alice and bob", **wrong})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"refine_faces": "auto"}, "faces_not_found_yet"),
        ({"refine_faces": "carol@0,0,1,1"}, "not_in_prompt_refine_faces"),
        ({"refine_faces": "alice@0,0,2,2"}, "invalid_layout"),
        ({"refine_faces": FACES, "refine_strength": 0.0}, "refine_strength_out_of_range"),
        ({"refine_faces": FACES, "refine_strength": 0.01}, "no_refine_steps_left"),
    ],
)
def test_what_cannot_be_refined_is_refused(bundle: Bundle, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        draw(bundle, Request.from_json({"prompt": "alice and bob", "steps": 5, **changes}))
    assert caught.value.reason == reason


def test_faces_need_an_image_encoder(tmp_path: Path, library: Library) -> None:
    plain = write_bundle(tmp_path / "plain")
    plain.add(make_identity("alice", 1))
    with pytest.raises(SetupError) as caught:
        draw(plain, Request("alice", refine_faces="alice@0,0,1,1"))
    assert caught.value.reason == "no_image_encoder"
    with pytest.raises(SetupError):
        open_faces(plain, library).check([Request("alice", refine_faces="auto")])


# Matching.


def test_faces_are_matched_by_the_recogniser_not_by_position(bundle: Bundle, library: Library) -> None:
    image = draw(bundle, Request("alice and bob"))
    near_bob = (BOB + 0.4 * ALICE).astype(np.float32) / np.float32(np.hypot(1, 0.4))
    faces = open_faces(bundle, library, *references(ALICE, BOB), [face(near_bob), face(ALICE, RIGHT)])
    found = faces.find(image)
    assert [one.name for one in found] == ["bob", "alice"]
    assert found[0].cosine == pytest.approx(1 / np.hypot(1, 0.4)) and found[1].cosine == pytest.approx(1.0)


def test_other_people_and_second_faces_are_left_alone(bundle: Bundle, library: Library) -> None:
    image = draw(bundle, Request("alice and bob"))
    unknown = (NOBODY + 0.2 * BOB).astype(np.float32) / np.float32(np.hypot(1, 0.2))
    script = [face(ALICE), face(ALICE, RIGHT), face(unknown, (0.0, 20.0, 9.0, 30.0))]
    faces = open_faces(bundle, library, *references(ALICE, BOB), script)
    assert [one.name for one in faces.find(image)] == ["alice"]


@pytest.mark.parametrize(("layout", "left"), [("left:alice,right:bob", "alice"), ("left:bob,right:alice", "bob")])
def test_a_layout_decides_between_people_who_look_alike(
    bundle: Bundle, library: Library, layout: str, left: str
) -> None:
    image = draw(bundle, Request("alice and bob", layout=layout))
    faces = open_faces(bundle, library, *references(ALICE, ALICE), [face(ALICE), face(ALICE, RIGHT)])
    assert faces.find(image)[0].name == left


def test_references_are_drawn_once_and_removed_with_the_person(bundle: Bundle, library: Library) -> None:
    image, alice = draw(bundle, Request("alice")), make_identity("alice", 1)
    library.save(alice)
    assert open_faces(bundle, library, *references(ALICE), [face(ALICE)]).find(image)
    (file,) = (library.cache() / "face-references").iterdir()
    assert file.name.startswith(alice.digest[:32]) and file.stat().st_size < 1000
    assert open_faces(bundle, library, [face(ALICE)]).find(image)  # the script has no reference images
    file.write_bytes(b"damaged")
    assert open_faces(bundle, library, *references(ALICE), [face(ALICE)]).find(image)
    library.remove("alice")
    assert not file.exists()
    library.save(alice)
    file.touch()
    library.save(make_identity("alice", 9), overwrite=True)
    assert not file.exists()


# From the shell and Python.


def test_gen_refines_small_faces_and_regen_needs_no_face_models(
    bundle: Bundle, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = (0.0, 0.0, 20.0, 20.0)
    use(monkeypatch, library, *references(ALICE, BOB), [face(ALICE), face(BOB, RIGHT)], [face(ALICE, large)])
    pipe = Pipeline(bundle, device="cpu", threads=1)
    output = pipe("alice and bob", seed=3, steps=10, num_images=2, refine_faces=True, refine_strength=0.5)
    regions = [parse_layout(request.refine_faces) for request in output.requests]
    assert [[region.name for region in some] for some in regions] == [["alice", "bob"], []]
    assert regions[0][0].box == tuple(edge / 32 for edge in LEFT)
    plain = pipe("alice and bob", seed=3, steps=10, num_images=2)
    assert [same_pixels(*pair) for pair in zip(output.images, plain.images, strict=True)] == [False, True]
    monkeypatch.undo()
    assert same_pixels(pipe.reproduce(output.save(tmp_path / "x.png")[0]).images[0], output.images[0])


def test_an_image_without_faces_is_kept_with_a_warning(
    console: CommandLine, bundle: Bundle, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, library, *references(ALICE), [])
    result = console("gen", "alice", "--refine-faces", "--seed", "1", "-o", "x.png", "--bundle", bundle.path)
    assert result.code == 0 and "no face was recognised in the image of seed 1" in result.err
    assert console("regen", "x.png", "-o", "y.png", "--bundle", bundle.path, "--json").document["identical"]


def test_the_best_of_several_images_is_kept(
    console: CommandLine, bundle: Bundle, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = (ALICE + NOBODY) / np.float32(np.sqrt(2))
    script = [[], [face(half)], [face(ALICE)], [face(ALICE)], [], [face(half)]]
    use(monkeypatch, library, *references(ALICE), *script)
    options = ["--bundle", bundle.path, "-n", "2", "--best-of", "3", "--seed", "10", "-o", "x.png", "--json"]
    images = console("gen", "alice", *options).document["images"]
    assert [image["path"] for image in images] == ["x-12.png", "x-13.png"]
    assert images[0]["record"]["best_of"] == {"images": 3, "face_models": "scripted", "likeness": 1.0}
    assert console("regen", "x-12.png", "-o", "y.png", "--bundle", bundle.path, "--json").document["identical"]
    (console.folder / "x-15.png").touch()
    (console.folder / "x-12.png").unlink()
    (console.folder / "x-13.png").unlink()
    refused(console("gen", "alice", *options[:-1]), 2, "x-15.png", "--force")


def test_a_preview_shows_the_chosen_image(
    console: CommandLine, bundle: Bundle, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, library, *references(ALICE), [], [face(ALICE)])
    words = ["gen", "alice", "--best-of", "2", "--steps", "2", "--seed", "1", "--scale", "4", "-o", "x.png"]
    result = console(*words, "--preview", "p.png", "--bundle", bundle.path)
    assert result.code == 0, result.err
    with Image.open("x.png") as drawn, Image.open("p.png") as shown:
        difference = np.asarray(drawn.convert("RGB"), int) - np.asarray(shown.convert("RGB"), int)
    assert np.abs(difference).mean() < 4  # both are enlarged, by different filters


def test_chosen_and_refined_images_keep_what_they_were_drawn_from(
    bundle: Bundle, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "source.png")
    use(monkeypatch, library, *references(ALICE), [face(ALICE)], [], [face(ALICE)], [face(ALICE)])
    pipe = Pipeline(bundle, device="cpu", threads=1)
    request = Request("alice", seed=4, steps=10, refine_faces="auto")
    (request,), sources = make_requests(request, 1, tmp_path / "source.png")
    (refined,) = pipe.generate([request], init_images=sources)
    for image in (refined, pipe.generate_best(request, 2, sources)):
        assert image.request.refine_faces.startswith("alice@")
        assert [ingredient.title for ingredient in image.ingredients] == ["source.png"]


def test_a_chosen_image_is_refined(bundle: Bundle, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, library, *references(ALICE), [], [face(ALICE)], [face(ALICE)])
    output = Pipeline(bundle, device="cpu", threads=1)("alice", seed=4, best_of=2, refine_faces=True)
    assert output.requests[0].seed == 5 and output.requests[0].refine_faces.startswith("alice@")
    assert output.records[0]["best_of"]["images"] == 2


def test_listed_faces_are_drawn_again_in_a_chosen_image(
    bundle: Bundle, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, library, *references(ALICE), [], [face(ALICE)])
    request = Request("alice", seed=4, steps=10, refine_faces="alice@0.1,0.1,0.4,0.5")
    best = Pipeline(bundle, device="cpu", threads=1).generate_best(request, 2)
    assert best.request.seed == 5 and best.request.refine_faces == "alice@0.1,0.1,0.4,0.5"
    assert same_pixels(best.image, draw(bundle, best.request).image)


def test_candidates_have_seeds_of_their_own() -> None:
    requests, _ = make_requests(Request("alice", seed=5), 3, best_of=4)
    assert [request.seed for request in requests] == [5, 9, 13]
    for count, best_of, seed in ((1, 0, 0), (1, 101, 0), (2, 2, 2**63 - 3)):
        with pytest.raises(UsageError):
            make_requests(Request("alice", seed=seed), count, best_of=best_of)


@pytest.mark.parametrize(
    ("words", "code", "texts"),
    [
        (["beach", "--refine-faces"], 2, ("names no person", "celebctl list")),
        (["beach", "--best-of", "2"], 2, ("names no person", "--best-of")),
        (["alice", "--refine-strength", "0.5"], 2, ("0.5", "--refine-faces")),
        (["alice", "--refine-faces", "--refine-strength", "2"], 2, ("2", "--refine-strength")),
        (["alice", "--refine-faces", "--refine-strength", "0.01"], 2, ("0.01", "--steps")),
        (["alice", "--best-of", "0"], 2, ("0", "--best-of 1 to 100")),
    ],
)
def test_errors_come_before_the_first_image(
    console: CommandLine,
    bundle: Bundle,
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    texts: Sequence[str],
) -> None:
    use(monkeypatch, library)
    refused(console("gen", *words, "--bundle", bundle.path), code, *texts)
    assert not list(console.folder.glob("*.png"))


def test_missing_face_models_are_named_with_the_command(console: CommandLine, bundle: Bundle) -> None:
    words = ["gen", "alice", "--refine-faces", "--bundle", bundle.path]
    for pack in ("buffalo_l", "yunet_sface"):
        refused(console(*words, "--face-models", pack), 4, pack, f"celebctl download {pack}")


def test_a_bundle_whose_model_is_gone_uses_the_default_pack(bundle: Bundle, library: Library) -> None:
    with pytest.raises(NotFoundError) as caught:
        open_drawn_faces(bundle, OrtBackend(bundle, "cpu", 1), None, library)
    assert caught.value.reason == "face_models_missing" and caught.value.values["name"] == "buffalo_l"


def test_the_face_finder_needs_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    """With mini's face models, in a process in which torch cannot be imported; the toy images show no face."""
    from celebctl_models.checkpoints.registry import find_card

    card = find_card("mini")
    assert card is not None
    code = (
        "import sys\nfor name in ('torch', 'diffusers', 'transformers'): sys.modules[name] = None\n"
        "from celebctl.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["gen", "alice", "--seed", "1", "-o", "x.png", "--refine-faces", "--bundle", str(bundle.path)]
    command = [sys.executable, "-c", code, *words, "--face-models", str(card.faces_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "it stays as it is" in done.stderr and (tmp_path / "x.png").is_file()
