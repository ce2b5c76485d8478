"""Photo checks: each fault added to a good photo lowers its own grade and is named in its finding."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from face_fakes import photo_of, turned, write_face_models
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from celebctl.cli.check import check
from celebctl.cli.console import CliConsole
from celebctl.cli.error_handling import report_error
from celebctl.photo_quality import (
    COLOURS,
    Grade,
    Report,
    Verdict,
    annotate,
    check_face,
    grade_detection,
    grade_eyes,
    grade_face_count,
    grade_framing,
    grade_halves,
    grade_light,
    grade_pose,
    grade_sharpness,
    grade_size,
    mirror_likeness,
    pose,
    sharpness,
    worst,
)
from celebctl_models.checkpoints.registry import card_for, locate
from celebctl_models.faces.analysis import Face, OnnxFaceAnalyser

# The recogniser's template as a head: eyes, nose tip and corners of the mouth; x to the picture's right, y down, z
# towards the camera.
HEAD = np.array([[-17.6, -20.1, 0], [17.6, -20.1, 0], [0, 0, 15.1], [-14.6, 20.6, 0], [14.6, 20.6, 0]])


def landmarks_of(roll: float = 0.0, yaw: float = 0.0, pitch: float = 0.0, scale: float = 3.0) -> NDArray[np.float32]:
    """Landmarks (5, 2) of a head turned to the right, then up, then tilted clockwise; degrees."""
    r, y, p = np.radians((roll, yaw, pitch))
    nod = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    turn = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    tilt = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return ((HEAD @ (tilt @ nod @ turn).T)[:, :2] * scale + 200).astype(np.float32)


def face_of(landmarks: NDArray[np.float32], size: float = 200, score: float = 0.8) -> Face:
    x, y = (float(value) for value in landmarks.mean(axis=0))
    box = np.array([x - size / 2, y - 0.65 * size, x + size / 2, y + 0.65 * size], np.float32)
    crop = np.full((112, 112, 3), 128, np.uint8)
    return Face(box, score, landmarks, crop, np.eye(512, dtype=np.float32)[0])


@pytest.fixture(scope="module")
def analyser() -> OnnxFaceAnalyser:
    folder = card_for(locate("mini").path).faces_dir
    assert folder is not None
    return OnnxFaceAnalyser(folder)


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    from celebctl_models.mini.world import draw_portrait

    return draw_portrait(seed=5, size=512)


def checked(analyser: OnnxFaceAnalyser, photo: Image.Image) -> Report:
    found = analyser.analyse(photo)
    return check_face(photo, found, None, min_face=16, native=64, recognise=analyser.recognise)


def grade(report: Report, what: str) -> Grade:
    (found,) = [one for one in report.grades if one.name == what]
    return found


# Pose.


@given(st.floats(-80, 80), st.floats(-60, 60), st.floats(1, 20))
@settings(max_examples=50, deadline=None)
def test_roll_and_yaw_of_an_average_head_are_exact(roll: float, yaw: float, scale: float) -> None:
    found = pose(landmarks_of(roll, yaw, scale=scale))
    assert abs(found[0] - roll) < 0.5 and abs(found[1] - yaw) < 1.0 and abs(found[2]) < 6.0


@given(st.floats(-25, 25))
@settings(max_examples=25, deadline=None)
def test_pitch_is_roughly_right(pitch: float) -> None:
    roll, yaw, found = pose(landmarks_of(pitch=pitch))
    assert abs(roll) < 0.1 and abs(yaw) < 0.5 and abs(found - pitch) < 6.0


def test_degenerate_landmarks_have_no_pose() -> None:
    assert pose(np.zeros((5, 2), np.float32)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("degrees", [-40, -12, 0, 20, 65])
def test_roll_comes_through_insightfaces_own_loader(tmp_path: Path, degrees: float) -> None:
    (face,) = OnnxFaceAnalyser(write_face_models(tmp_path, landmarks=turned(degrees))).analyse(photo_of((1, 1)))
    assert abs(pose(face.landmarks)[0] - degrees) < 3


def test_the_direction_of_a_turned_head_is_named() -> None:
    front = grade_pose(face_of(landmarks_of()))
    assert front.verdict == "good" and front.finding == "seen from the front"
    for turn, words in (
        ({"yaw": 50}, "to the right"),
        ({"yaw": -50}, "to the left"),
        ({"roll": 50}, "tilted 50° to the right"),
        ({"pitch": 45}, "looking up"),
        ({"pitch": -45}, "looking down"),
    ):
        found = grade_pose(face_of(landmarks_of(**turn)))
        assert found.verdict == "poor" and words in found.finding
    assert grade_pose(face_of(landmarks_of(yaw=28))).verdict == "fair"


# Faults put into a good portrait.


def test_a_good_portrait_is_good(analyser: OnnxFaceAnalyser, portrait: Image.Image) -> None:
    report = checked(analyser, portrait)
    assert report.verdict == "good" and report.usable, [one for one in report.grades if one.verdict != "good"]
    assert [one.name for one in report.grades][:2] == ["size", "sharpness"]


def test_the_more_blurred_the_less_sharp(analyser: OnnxFaceAnalyser, portrait: Image.Image) -> None:
    (face,) = analyser.analyse(portrait)
    values = [sharpness(portrait.filter(ImageFilter.GaussianBlur(sigma)), face.landmarks) for sigma in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True) and values[0] > 10 * values[3]
    report = checked(analyser, portrait.filter(ImageFilter.GaussianBlur(4)))
    assert grade(report, "sharpness").verdict == report.verdict == "poor"
    assert "blurred" in grade(report, "sharpness").finding


def test_sharpness_depends_on_neither_contrast_nor_the_size_of_large_photos(
    analyser: OnnxFaceAnalyser, portrait: Image.Image
) -> None:
    (face,) = analyser.analyse(portrait)
    value = sharpness(portrait, face.landmarks)
    pale = Image.blend(portrait, Image.new("RGB", portrait.size, "grey"), 0.5)
    assert np.isclose(sharpness(pale, face.landmarks), value, rtol=0.1)
    large = portrait.resize((1536, 1536), Image.Resampling.LANCZOS)
    assert grade_sharpness(large, replace(face, landmarks=face.landmarks * 3)).verdict == "good"


def test_an_enlarged_small_photo_counts_as_blurred(analyser: OnnxFaceAnalyser, portrait: Image.Image) -> None:
    enlarged = portrait.resize((64, 64), Image.Resampling.LANCZOS).resize((512, 512), Image.Resampling.BICUBIC)
    assert grade(checked(analyser, enlarged), "sharpness").verdict == "poor"


def test_a_landmark_outside_the_photo_does_no_harm(portrait: Image.Image) -> None:
    for centre in (-500.0, 0.0, 511.0, 5000.0):
        assert sharpness(portrait, (landmarks_of() - 200 + centre).astype(np.float32)) >= 0.0


def shaded(photo: Image.Image) -> Image.Image:
    """Light that comes from the right."""
    pixels = np.asarray(photo, np.float64) * np.clip(np.linspace(-0.6, 2.2, photo.width), 0.12, 1)[None, :, None]
    return Image.fromarray(pixels.astype(np.uint8))


BAD_LIGHT: dict[str, Callable[[Image.Image], Image.Image]] = {
    "dark": lambda photo: ImageEnhance.Brightness(photo).enhance(0.25),
    "burnt out": lambda photo: ImageEnhance.Brightness(photo).enhance(3.0),
    "flat": lambda photo: ImageEnhance.Contrast(photo).enhance(0.15),
    "one side": shaded,
}


@pytest.mark.parametrize("words", BAD_LIGHT)
def test_bad_light_is_named(analyser: OnnxFaceAnalyser, portrait: Image.Image, words: str) -> None:
    (face,) = analyser.analyse(portrait)
    assert grade_light(face.crop112).verdict == "good"
    found = grade_light(np.asarray(BAD_LIGHT[words](Image.fromarray(face.crop112)), np.uint8))
    assert found.verdict != "good" and words in found.finding


def test_a_darkened_photo_is_dark(analyser: OnnxFaceAnalyser, portrait: Image.Image) -> None:
    found = grade(checked(analyser, ImageEnhance.Brightness(portrait).enhance(0.35)), "light")
    assert found.verdict != "good" and "dark" in found.finding


def test_dark_skin_in_good_light_is_no_fault() -> None:
    y, x = np.mgrid[:112, :112]
    skin = 55 + 85 * np.exp(-(((x - 50) / 22) ** 2 + ((y - 60) / 30) ** 2))  # mean of about 90, highlights of 140
    found = grade_light(np.repeat(skin[:, :, None], 3, axis=2).astype(np.uint8))
    assert found.verdict == "good" and found.measured["mean"] < 110


def test_a_covered_half_is_detected(analyser: OnnxFaceAnalyser, portrait: Image.Image) -> None:
    (face,) = analyser.analyse(portrait)
    whole = grade_halves(face.crop112, analyser.recognise)
    assert whole.verdict == "good" and "mask" in whole.finding
    covered = face.crop112.copy()
    covered[:, 56:] = (90, 60, 50)
    found = grade_halves(covered, analyser.recognise)
    assert found.verdict == "poor" and "halves differ" in found.finding
    assert all(found.measured[name] < whole.measured[name] for name in whole.measured)


def test_likeness_with_the_mirror_image_is_a_correlation() -> None:
    random = np.random.default_rng(0)
    one = random.integers(0, 255, (112, 112, 3), dtype=np.uint8)
    half = one.copy()
    half[:, 56:] = half[:, 55::-1]
    assert mirror_likeness(half) > 0.999
    assert np.isclose(mirror_likeness(one), mirror_likeness(np.ascontiguousarray(one[:, ::-1])), atol=1e-6)
    assert mirror_likeness(one) < 0.5
    empty = np.zeros((112, 112, 3), np.uint8)
    assert mirror_likeness(empty) == 1.0
    empty[:, 64:] = one[:, 64:]
    assert mirror_likeness(empty) < 0.9


def test_the_tighter_the_crop_the_worse_the_framing(analyser: OnnxFaceAnalyser, portrait: Image.Image) -> None:
    (face,) = analyser.analyse(portrait)
    x0, y0, x1, y1 = (round(float(edge)) for edge in face.box)
    tight = replace(face, box=face.box - np.array([x0, y0, x0, y0], np.float32))
    cut = replace(face, box=face.box - np.array([(x0 + x1) / 2, y0, (x0 + x1) / 2, y0], np.float32))
    inside = [
        grade_framing(size, one).measured["inside"]
        for size, one in ((portrait.size, face), ((x1 - x0, y1 - y0), tight), (((x1 - x0) // 2, y1 - y0), cut))
    ]
    assert inside == sorted(inside, reverse=True) and inside[0] > 0.75 > 0.6 > inside[1]


def test_size_is_compared_with_what_learning_needs() -> None:
    def at(size: float) -> Grade:
        return grade_size(face_of(landmarks_of(), size), min_face=64, native=512)

    assert [at(size).verdict for size in (300, 200, 100, 40)] == ["good", "fair", "poor", "poor"]
    assert "256 or more" in at(200).finding and "refuses less than 64" in at(40).finding
    assert grade_size(face_of(landmarks_of(), 120), min_face=16, native=64).verdict == "good"


def test_doubtful_detections_and_several_faces_are_graded() -> None:
    assert [grade_detection(score).verdict for score in (0.9, 0.55, 0.3)] == ["good", "fair", "poor"]
    assert grade_face_count(1, None).verdict == grade_face_count(3, 2).verdict == "good"
    assert grade_face_count(3, None).verdict == "fair"


def test_the_verdict_is_the_worst_grade() -> None:
    verdicts: list[Verdict] = ["good", "fair", "good"]
    assert worst(verdicts) == "fair" and worst([*verdicts, "poor"]) == "poor" and worst(["good"]) == "good"


def test_of_several_faces_the_largest_is_graded_unless_one_is_chosen(analyser: OnnxFaceAnalyser) -> None:
    faces = [face_of(landmarks_of(), size) for size in (100, 300, 200)]
    photo = Image.new("RGB", (400, 400), "grey")

    def chosen(pick: int | None) -> Report:
        return check_face(photo, faces, pick, min_face=150, native=512, recognise=analyser.recognise)

    assert chosen(None).number == 2 and chosen(3).number == 3
    assert chosen(None).usable and not chosen(1).usable
    assert "too small" in chosen(1).summary and "faces" in chosen(None).summary + str(chosen(None).grades)


# The annotated picture.


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (3000, 4000), (4000, 300), (10, 300)])
def test_annotating_works_at_every_size(size: tuple[int, int]) -> None:
    scale = min(size) / 400
    face = face_of(landmarks_of(scale=3 * scale) * np.float32(1), 200 * scale)
    photo = Image.new("RGB", size, (10, 60, 200))
    report = Report([face, face], 2, [Grade("size", "poor", "much too small " * 9)], True)
    page = annotate(photo, report)
    assert page.mode == "RGB" and 400 <= page.width <= 1200 and page.height <= 1600
    pixels = np.asarray(page).reshape(-1, 3)
    for colour in ((10, 60, 200), COLOURS["poor"]):
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) <= 2).any()
    assert photo.getpixel((0, 0)) == (10, 60, 200) and annotate(photo, report).tobytes() == page.tobytes()


def test_the_box_and_the_landmarks_lie_where_the_face_is() -> None:
    face = face_of(landmarks_of(scale=4), 260)
    page = annotate(Image.new("RGB", (768, 768), "white"), Report([face], 1, [Grade("pose", "fair", "so")], True))
    for x, y in (*face.landmarks, (face.box[0] + 1, 200.0), (face.box[2] - 1, 200.0)):
        assert page.getpixel((round(float(x)), round(float(y)))) == COLOURS["fair"]


def test_without_a_face_the_picture_says_so() -> None:
    page = annotate(Image.new("RGB", (300, 200), "white"), None)
    assert page.width >= 400 and (np.asarray(page) == COLOURS["poor"]).all(axis=2).any()


# The command.


class Shell:
    """`celebctl check` in an empty folder, with an empty library and the doubles as face models."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        app = typer.Typer()
        app.command()(check)
        console, rest = CliConsole.from_argv(list(words))
        try:
            code = int(app(rest, standalone_mode=False, obj=console) or 0)
        except Exception as error:
            code = report_error(error, console)
        out, err = self._capsys.readouterr()
        return code, out, err

    def photo(self, *cells: tuple[int, int], size: int = 128, enlarge: int = 1) -> str:
        photo_of(*cells, size=size).resize((size * enlarge, size * enlarge), Image.Resampling.NEAREST).save("a.png")
        return "a.png"


def no_other_kind(*_: object) -> None:
    """In place of `other_kind`: every picture is of the kind that the model knows."""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CELEBCTL_FACE_MODELS", str(write_face_models(tmp_path / "faces")))
    monkeypatch.delenv("CELEBCTL_MODEL", raising=False)
    monkeypatch.setattr("celebctl.picture_kind.other_kind", no_other_kind)  # a red square is no drawn person
    return Shell(tmp_path, capsys)


def test_one_line_per_grade_and_the_next_command(shell: Shell) -> None:
    code, out, err = shell(shell.photo((1, 1), enlarge=4), "-o", "marked.png")
    assert code == 0
    words = [line.split()[:2] for line in out.splitlines()]
    assert [word[1] for word in words][:3] == ["size:", "sharpness:", "pose:"]
    assert {word[0] for word in words} <= {"good", "fair", "poor"}
    assert "next: celebctl learn a.png --name alice" in err and "annotated: marked.png" in err
    assert Image.open("marked.png").width > 700


def test_the_document_holds_the_numbers(shell: Shell) -> None:
    code, out, _ = shell(shell.photo((0, 0), (3, 3)), "--json")
    found: Any = json.loads(out)
    assert code == 0 and found["usable"] and len(found["faces"]) == 2 and found["face"] in (1, 2)
    assert found["verdict"] in ("good", "fair", "poor") and found["annotated"] is None
    roll = next(one for one in found["grades"] if one["name"] == "pose")["measured"]["roll"]
    assert roll == 0.0 and len(found["faces"][0]["landmarks"]) == 5


def test_the_chosen_face_is_passed_on(shell: Shell) -> None:
    code, out, err = shell(shell.photo((0, 0), (3, 3)), "--face", "2")
    assert code == 0 and "2 faces; number 2 was chosen" in out
    assert "face 2:" in err and "--face 2 --name alice" in err


def test_no_face_is_an_error_with_a_picture(shell: Shell) -> None:
    code, out, err = shell(shell.photo(), "-o", "marked.png")
    assert code == 3 and out == "" and "no face was found in a.png" in err and "hint: " in err
    assert Path("marked.png").is_file()


def test_a_face_that_learning_would_refuse_is_refused_here(shell: Shell) -> None:
    settings_file = shell.folder / "faces" / "faces.json"
    settings_file.write_text('{"det_size": [128, 128], "min_face": 97}')
    for flags in ((), ("--json",)):
        code, out, err = shell(shell.photo((1, 1)), *flags)
        assert code == 3 and "too small to learn from" in err and "refuses less than 97" in err
        assert ("error" in json.loads(out)) if flags else out == ""


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("--face", "5"), 2, "has no face number 5"),
        (("-o", "marked.txt"), 2, "marked.txt"),
        (("-o", "a.png"), 2, "a.png"),
        (("--face-models", "nowhere"), 4, "nowhere"),
        (("--face-models", "antelopev2"), 4, "antelopev2"),
        (("--model", "no such model"), 4, "no such model"),
    ],
)
def test_invalid_options_are_refused(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, problem: str
) -> None:
    monkeypatch.setenv("HOME", str(shell.folder))
    ended, out, err = shell(shell.photo((1, 1)), *words)
    assert (ended, out) == (code, "") and problem in err and "hint: " in err


def test_sunglasses_are_detected_and_hats_are_not() -> None:
    """On drawn people of all skins; nothing here is learned from."""
    torch: Any = pytest.importorskip("torch")
    from celebctl_models.mini.people import uniform_from_normal
    from celebctl_models.mini.scenes import render
    from celebctl_models.mini.world import PromptFacts, build_scenes, person

    faces = card_for(locate("mini").path).faces_dir
    assert faces is not None
    analyser = OnnxFaceAnalyser(faces)
    for worn, verdict in (("nothing", "good"), ("red hat", "good"), ("sunglasses", "fair")):
        for seed in range(7000, 7006):
            factors = torch.as_tensor(uniform_from_normal(person(seed)))[None, None].expand(1, 2, -1)
            scenes = build_scenes(factors, two=False, facts=[PromptFacts(worn=worn)], seeds=[seed])
            drawn = render(scenes, 384, crop=(0.0, 0.0, 0.86)).image[0].permute(1, 2, 0).numpy()
            (face,) = analyser.analyse(Image.fromarray((drawn * 255 + 0.5).astype(np.uint8)))
            assert grade_eyes(face.crop112).verdict == verdict, (worn, seed)
