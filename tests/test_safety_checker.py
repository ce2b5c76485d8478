"""The safety checker: an image over the limit is not written, and never turned black."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from bundle_fakes import write_bundle
from console_fakes import MODEL, TABLE_HASH, CommandLine, refused, toy_bundle
from PIL import Image

from celebctl.cli.console import CliConsole
from celebctl.cli.preview import choose_preview
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError
from celebctl_runtime.safety_checker import SafetyChecker


def write_checker(path: Path, scale: float = 1.0, side: str = "H, W", output: str = "float[N, 1] score") -> Path:
    """A classifier whose score is the mean of all pixels times `scale`."""
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    mean (float[N, 3, {side}] image) => ({output}) <float scale = {{{scale}}}, int64[2] shape = {{-1, 1}}> {{
        mean = ReduceMean <axes = [1, 2, 3], keepdims = 0> (image)
        flat = Reshape (mean, shape)
        score = Mul (flat, scale)
    }}
    """
    onnx.save(onnx.parser.parse_model(text), str(path))  # pyright: ignore[reportUnknownMemberType]
    return path


def test_a_score_is_read_at_the_size_of_the_graph(tmp_path: Path) -> None:
    grey = Image.new("RGB", (50, 30), (51, 102, 153))
    for side in ("H, W", "224, 224", "8, 16"):
        assert SafetyChecker(write_checker(tmp_path / "a.onnx", side=side)).score(grey) == pytest.approx(0.4, abs=1e-3)
    checker = SafetyChecker(tmp_path / "a.onnx", 0.25)
    assert checker.refuses(0.26) and not checker.refuses(0.25)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        SafetyChecker(tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    for path in (tmp_path / "text.onnx", write_flat(tmp_path / "flat.onnx")):
        with pytest.raises(InvalidInputError) as raised:
            SafetyChecker(path)
        assert raised.value.reason == "not_a_safety_checker"
    for scale in (3.0, -1.0):
        with pytest.raises(IntegrityError):
            SafetyChecker(write_checker(tmp_path / "b.onnx", scale)).score(Image.new("RGB", (8, 8), "white"))


def write_flat(path: Path) -> Path:
    text = '<ir_version: 8, opset_import: ["" : 17]> flat (float[N, 3] x) => (float[N, 3] y) { y = Identity (x) }'
    onnx.save(onnx.parser.parse_model(text), str(path))  # pyright: ignore[reportUnknownMemberType]
    return path


def mean_of(path: str | Path) -> float:
    with Image.open(path) as image:
        return float(np.asarray(image.convert("RGB")).mean() / 255)


def test_refused_images_are_not_written(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    console.add_people("alice")
    toy_bundle(console.library)
    words: tuple[Any, ...] = ("gen", "alice", "-s", "1", "-n", "4", "--json")
    scores = [mean_of(image["path"]) for image in console(*words).document["images"]]
    checker, middle = write_checker(Path("checker.onnx")), (sorted(scores)[1] + sorted(scores)[2]) / 2
    Path("out").mkdir()
    monkeypatch.setenv("CELEBCTL_SAFETY_THRESHOLD", f"{middle:.6f}")
    result = console(*words, "-o", "out", "--safety-checker", checker)
    assert result.code == 8 and result.err.count("not written") == 2
    assert [one["seed"] for one in result.document["refused"]] == [k + 1 for k in range(4) if scores[k] > middle]
    assert len(list(Path("out").iterdir())) == 2 and all(mean_of(path) > 0.01 for path in Path("out").iterdir())
    monkeypatch.setenv("CELEBCTL_SAFETY_THRESHOLD", "0")
    monkeypatch.setenv("CELEBCTL_SAFETY_CHECKER", str(checker))
    drawn = sorted(Path().glob("*.png"))
    refused(console("gen", "alice", "-s", "1", "-o", "one.png"), 7, "score", "--seed")
    refused(console("regen", drawn[0]), 7, "no image was written")
    assert sorted(Path().glob("*.png")) == drawn
    monkeypatch.setenv("CELEBCTL_SAFETY_THRESHOLD", "2")
    refused(console("gen", "alice"), 2, "safety_threshold")
    monkeypatch.setenv("CELEBCTL_SAFETY_THRESHOLD", "1")
    assert console("gen", "alice", "-s", "1", "-o", "one.png").code == 0


def test_every_command_that_draws_images_uses_the_setting(
    console: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    console.add_people("alice")
    write_bundle(console.library.bundle_path(MODEL, TABLE_HASH), encodes=True)
    Image.new("RGB", (32, 32), "grey").save("source.png")
    monkeypatch.setenv("CELEBCTL_SAFETY_CHECKER", str(write_checker(Path("checker.onnx"))))
    monkeypatch.setenv("CELEBCTL_SAFETY_THRESHOLD", "0")
    Path("jobs.txt").write_text("alice\nalice on the beach\n")
    edit = ("edit", "source.png", "alice on the beach", "--was", "alice", "--steps", "4", "-o", "edited.png")
    refused(console(*edit), 7, "no image was written")
    refused(console("grid", "alice", "--x", "seed=1,2", "--steps", "1", "--separate", "cells"), 7, "score", "--seed")
    refused(console("animate", "alice", "beach", "--frames", "2", "--steps", "1", "-o", "a.gif"), 7, "score")
    result = console("run", "jobs.txt", "--json")
    assert result.code == 8 and [one["error"]["reason"] for one in result.document["images"]] == ["unsafe_image"] * 2
    assert {path.name for path in Path().rglob("*.[pg][ni][gf]")} == {"source.png"}


@pytest.mark.parametrize("wanted", ["kitty", "shown.png"])
def test_no_preview_before_the_checker_has_seen_an_image(console: CommandLine, wanted: str) -> None:
    checker = write_checker(Path("checker.onnx"))
    refused(console("gen", "alice", "--safety-checker", checker, "--preview", wanted), 2, "--preview", "off")
    assert not list(Path().glob("*.png"))
    assert choose_preview(cast("CliConsole", None), "auto", force=False, screened=True) is None
