"""`celebctl prove`: stages one after the other, an interrupted run, failures, the budget, people, page and document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("jinja2")

from celebctl.cli import main
from celebctl.evaluation.copying import copy_paste, copy_paste_of
from celebctl.evaluation.prompts import Prompt
from celebctl.evaluation.results import Sample, SubjectRecord
from celebctl.evaluation.scorers import ImageScores
from celebctl.library import Library
from celebctl.prove import MAX_BYTES, ProveOptions, ProveRun, execute, prove
from celebctl.prove.run import Skipped
from celebctl.prove.stages import STAGES
from celebctl_runtime.errors import InvalidInputError, NotFoundError, SetupError, UsageError

Result = Mapping[str, Any]


def fake_stages(monkeypatch: pytest.MonkeyPatch, **stages: Any) -> list[str]:
    """Replace the stages by functions, or errors to raise; returns the names of those that ran."""
    ran: list[str] = []

    def stage(name: str, value: Any) -> Any:
        def run(_: ProveRun) -> Result:
            ran.append(name)
            if isinstance(value, BaseException):
                raise value
            return value

        return run

    monkeypatch.setattr(execute, "STAGES", {name: stage(name, value) for name, value in stages.items()})
    return ran


def statuses(run: ProveRun) -> dict[str, str]:
    return {name: entry["status"] for name, entry in run.stages.items()}


def test_a_failing_stage_stops_no_other_and_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_stages(
        monkeypatch, one={"a": 1}, two=SetupError("no card", "buy one"), three=ValueError("odd"),
        four=Skipped("nothing to do"), five={"b": 2},
    )  # fmt: skip
    run = prove(tmp_path)
    assert statuses(run) == {"one": "done", "two": "failed", "three": "failed", "four": "skipped", "five": "done"}
    assert run.failed == ["two", "three"]
    assert (run.stages["two"]["code"], run.stages["two"]["problem"]) == ("environment", "no card")
    assert run.stages["three"]["code"] == "bug"
    assert "ValueError at test_prove.py" in run.stages["three"]["problem"]
    assert run.stages["four"]["reason"] == "nothing to do"
    assert json.loads((tmp_path / "report.json").read_text()) == run.document


def test_an_interrupted_run_continues_and_repeats_no_finished_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_stages(monkeypatch, one={"a": 1}, two=KeyboardInterrupt(), three={"c": 3})
    with pytest.raises(KeyboardInterrupt):
        prove(tmp_path)
    ran = fake_stages(monkeypatch, one={"a": 9}, two={"b": 2}, three={"c": 3})
    run = prove(tmp_path)
    assert ran == ["two", "three"]
    assert run.result("one") == {"a": 1}
    assert set(statuses(run).values()) == {"done"}


def test_no_stage_begins_when_the_time_is_used_up_and_more_time_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = fake_stages(monkeypatch, one={"a": 1})
    assert statuses(prove(tmp_path, ProveOptions(minutes=0))) == {"one": "skipped"}
    assert not ran
    assert statuses(prove(tmp_path, ProveOptions(minutes=5))) == {"one": "done"}


def test_a_folder_of_other_options_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = fake_stages(monkeypatch, one={"a": 1})
    prove(tmp_path)
    with pytest.raises(UsageError) as caught:
        prove(tmp_path, ProveOptions(steps=3))
    assert caught.value.reason == "prove_settings_differ"
    prove(tmp_path, ProveOptions(steps=3), overwrite=True)
    assert ran == ["one", "one"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"stages": 3}', '{"stages": {"one": {}}}', '{"stages": {"one": 1}}']
)
def test_a_damaged_document_begins_anew(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_stages(monkeypatch, one={"a": 1})
    (tmp_path / "report.json").write_text(content)
    assert statuses(prove(tmp_path)) == {"one": "done"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"devices": ("tpu",)}, "unknown_device"),
        ({"devices": ("openvino",)}, "unknown_device"),
        ({"rounds": 0}, "count_out_of_range"),
        ({"minutes": -1}, "count_out_of_range"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        ProveOptions(**options)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("devices", "torch_device"), [(("cpu",), "cpu"), (("cpu", "cuda:1"), "cuda:1"), (("trt:1", "cpu"), "cuda:1")]
)
def test_learning_runs_on_the_first_gpu_asked_for(devices: tuple[str, ...], torch_device: str, tmp_path: Path) -> None:
    run = ProveRun(tmp_path, ProveOptions(devices=devices), Library(tmp_path / "home"))
    assert run.model.device == torch_device


def test_no_path_of_the_user_is_in_the_document(tmp_path: Path) -> None:
    options = ProveOptions(str(tmp_path / "my-model"), tmp_path / "photos", face_models=str(tmp_path / "faces"))
    assert str(tmp_path) not in json.dumps(options.settings())


def test_photos_are_grouped_by_person_and_the_unnumbered_one_comes_first(tmp_path: Path) -> None:
    for name, side in {"alice-10": 40, "alice": 32, "alice-2": 36, "bob": 48}.items():
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    photos = ProveRun(tmp_path / "out", ProveOptions(photos=tmp_path), Library(tmp_path / "home")).photos
    assert {name: [one.width for one in own] for name, own in photos.items()} == {"alice": [32, 36, 40], "bob": [48]}


def test_a_folder_without_photos_or_of_too_many_people_is_refused(tmp_path: Path) -> None:
    run = ProveRun(tmp_path / "out", ProveOptions(photos=tmp_path), Library(tmp_path / "home"))
    with pytest.raises(NotFoundError):
        _ = run.photos
    for name in "abcde":
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    with pytest.raises(InvalidInputError) as caught:
        _ = run.photos
    assert caught.value.values["count"] == 5


def test_people_and_bundle_are_missing_where_an_earlier_stage_failed(tmp_path: Path) -> None:
    run = ProveRun(tmp_path, ProveOptions(), Library(tmp_path / "home"))
    for stage in ("export", "images", "speed"):
        with pytest.raises(Skipped):
            STAGES[stage](run)


def test_the_command_ends_with_8_when_a_stage_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_stages(monkeypatch, one={"a": 1}, two=SetupError("no card", "buy one"))
    assert main(["prove", "--out", str(tmp_path / "p")]) == 8
    capsys.readouterr()
    fake_stages(monkeypatch, one={"a": 1})
    assert main(["prove", "--out", str(tmp_path / "q")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "q" / name) for name in ("report.html", "report.json")]
    assert main(["prove", "--out", str(tmp_path / "q"), "--steps", "3"]) == 2


def test_copy_paste_is_1_for_a_copy_and_0_halfway_and_unknown_for_equal_photos() -> None:
    photo, other = np.array([1, 0, 0], np.float32), np.array([0, 1, 0], np.float32)
    middle = np.array([0.5**0.5, 0.5**0.5, 0], np.float32)
    assert copy_paste(photo, photo, other) == pytest.approx(1.0)
    assert copy_paste(middle, photo, other) == pytest.approx(0.0, abs=1e-6)
    assert copy_paste(other, photo, other) == pytest.approx(-1.0)
    assert copy_paste(middle, photo, photo) is None


class PixelScorer:
    """The feature of an image is its first pixel, as a unit vector; black has no face."""

    description = "pixels"

    def score(self, images: Any, texts: Any, faces: int) -> Any:
        raise NotImplementedError

    def embed_face(self, photo: Any) -> Any:
        pixel = photo[0, 0].astype(np.float32)
        return pixel / np.linalg.norm(pixel) if pixel.any() else None


def test_copy_paste_of_a_person_is_a_mean_over_single_images_and_other_photos() -> None:
    def sample(prompt: int, *feature: float) -> Sample:
        features = np.array([feature] if feature else np.zeros((0, 3)), np.float32)
        return Sample(prompt, 0, ImageScores(features, np.zeros((len(features), 3), np.float32)))

    prompts = [Prompt("action", "{}"), Prompt("pair", "{} and {}")]
    record = SubjectRecord("alice", (sample(0, 1, 0, 0), sample(0, 0, 1, 0), sample(0), sample(1, 1, 0, 0)), ())
    red, green, black = (Image.new("RGB", (2, 2), color) for color in ("red", "lime", "black"))
    scores = copy_paste_of([record], prompts, PixelScorer(), [red], [[green, black]])
    assert scores["alice"] == pytest.approx((1.0 - 1.0) / 2)
    only_copies = SubjectRecord("alice", (sample(0, 1, 0, 0),), ())
    assert copy_paste_of([only_copies], prompts, PixelScorer(), [red], [[green]])["alice"] == pytest.approx(1.0)
    assert copy_paste_of([record], prompts, PixelScorer(), [red], [[]])["alice"] is None


@pytest.mark.slow
def test_a_whole_run_of_mini_makes_a_page_and_a_document_that_can_be_sent(tmp_path: Path) -> None:
    options = ProveOptions(devices=("cpu",), steps=10, rounds=1, minutes=60)
    run = prove(tmp_path / "proof", options)
    assert statuses(run) == {name: "skipped" if name == "engines" else "done" for name in STAGES}
    page = (run.folder / "report.html").read_text()
    assert len(page.encode()) <= MAX_BYTES
    assert run.file.stat().st_size <= MAX_BYTES
    assert str(Path.home()) not in run.file.read_text() + page
    assert {one["name"] for one in run.result("learn")["people"]} == {"ada", "ben"}
    assert all(
        row["max_abs_error"] <= row["floor"] * max(1.0, row["largest_value"]) for row in run.result("export")["parity"]
    )
    assert run.result("likeness")["metrics"]["summary"]["detection_rate"]["mean"] > 0.5
    assert page.count("data:image/jpeg;base64,") == 1 + len(run.result("images")["images"])
    before = json.loads(run.file.read_text())
    assert prove(tmp_path / "proof", options).document == before
