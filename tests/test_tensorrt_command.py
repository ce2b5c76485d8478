"""`export --trt`, `--dry-run`, `--check` and `gen --device trt` where there is no GPU: plans, checks, clear words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundle_fakes import write_bundle

from celebctl.cli import main


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    monkeypatch.chdir(tmp_path)
    return str(write_bundle(tmp_path / "toy").path)


def test_the_plan_is_shown_without_a_gpu(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--trt", "--dry-run", "--bundle", toy, "--engine", "1x32x48", "--json"]) == 0
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert document["machine"] is None and document["strongly_typed"] is True
    assert any(engine["path"].endswith("engines/KEY/step-b1-32x48.plan") for engine in document["engines"])
    assert "TensorRT is not installed" in output.err
    assert not list(Path.cwd().rglob("*.plan"))


@pytest.mark.parametrize(
    ("words", "code", "output"),
    [
        (["export", "--dry-run"], 2, "--trt"),
        (["export", "--trt", "--dry-run", "--engine", "big"], 2, "1x512x512"),
        (["export", "--trt", "--engine", "1x33x32"], 2, "multiples of 8"),
        (["export", "--no-dynamic"], 2, "--trt"),
        (["export", "--device", "trt:1"], 2, "--trt"),
        (["export", "--trt", "--device", "cuda:1"], 2, "trt:1"),
        (["export", "--trt", "--device", "trt:x"], 2, "trt:1"),
        (["export", "--trt"], 6, "celebctl[trt]"),
        (["export", "--check"], 6, "celebctl[trt]"),
        (["gen", "an", "--device", "trt", "-o", "x.png"], 6, "celebctl[trt]"),
    ],
)
def test_invalid_uses_have_their_exit_codes(
    toy: str, capsys: pytest.CaptureFixture[str], words: list[str], code: int, output: str
) -> None:
    bundle = [] if words == ["export", "--dry-run"] else ["--bundle", toy]
    assert main([*words, *bundle]) == code
    assert output in capsys.readouterr().err
