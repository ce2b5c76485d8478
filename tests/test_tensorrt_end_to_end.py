"""Commands and benchmark with a fake TensorRT and GPU: engines are built, measured, listed, used and timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from numpy.typing import NDArray
from PIL import Image
from polygraphy_fakes import runners
from tensorrt_fakes import FakeTrt, fake_device

from celebctl.bench.runner import step_seconds
from celebctl.bench.worker import EventClock, answer, create_worker
from celebctl.cli import engines, main
from celebctl.cli.console import CliConsole
from celebctl.library import Library
from celebctl_export import tensorrt_graph, tensorrt_parity
from celebctl_runtime.backends import ort_session
from celebctl_runtime.backends.cuda_memory import Cuda
from celebctl_runtime.backends.tensorrt_runner import TensorRt
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import SetupError
from celebctl_runtime.request import Request, resolve


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    made = write_bundle(tmp_path / "toy", encodes=True)
    made.add(make_identity("alice"))
    return made


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTrt:
    """A machine with TensorRT, CUDA and Polygraphy."""
    trt, _, device = fake_device()
    monkeypatch.setattr(TensorRt, "load", lambda: device.library)
    monkeypatch.setattr(Cuda, "load", Mock(return_value=device.cuda))
    monkeypatch.setattr(tensorrt_parity, "polygraphy_runners", lambda: runners(0.0))
    return trt


def pixels(path: str) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def draw(bundle: Bundle, device: str, *words: str) -> NDArray[np.uint8]:
    place = ["--bundle", str(bundle.path), "--force", "-o", f"{device}.png", "--device", device]
    assert main(["gen", "alice", "-s", "1", *words, *place]) == 0
    return pixels(f"{device}.png")


def test_engines_are_built_measured_listed_and_used(
    bundle: Bundle, trt: FakeTrt, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--trt", "--bundle", str(bundle.path), "--engine", "1x32x48"]
    graphs, sizes = ("step", "step_nocfg", "vae_decoder", "vae_encoder"), ("b1-32x48", "dynamic")
    assert main([*words, "--json"]) == 0
    output = capsys.readouterr()
    built = json.loads(output.out)["engines"]
    expected = {"text_encoder-dynamic", *(f"{graph}-{size}" for graph in graphs for size in sizes)}
    assert {Path(engine["file"]).stem for engine in built} == expected
    assert all(row["max_abs_error"] == 0 and row["tensorrt_ms"] == 2.0 for engine in built for row in engine["parity"])
    assert main(words) == 0 and len(trt.built) == len(built), "nothing is built twice"
    assert "9 engines, 0 of them built now" in capsys.readouterr().err
    for size in ("48x32", "40x40"):
        assert np.array_equal(draw(bundle, "trt", "--size", size), draw(bundle, "cpu", "--size", size))
    begun = ("--from", "photo.png", "--size", "48x32")
    assert np.array_equal(draw(bundle, "trt", *begun), draw(bundle, "cpu", *begun))


def test_one_engine_that_fails_is_named_and_the_others_are_there(
    bundle: Bundle, trt: FakeTrt, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    words = ["export", "--trt", "--bundle", str(bundle.path), "--no-dynamic"]
    trt.fails, trt.fails_for = "no tactic found", "vae_encoder.onnx"
    assert main(words) == SetupError.exit_code
    assert "no tactic found" in capsys.readouterr().err
    assert [message.partition(":")[0] for message in caplog.messages] == ["vae_encoder-b1-32x32.plan"]
    assert np.array_equal(draw(bundle, "trt"), draw(bundle, "cpu"))
    trt.fails = ""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    files = [engine["file"] for engine in json.loads(capsys.readouterr().out)["engines"]]
    assert len(files) == len(trt.built) == 5 and not any(file.startswith("step-dynamic") for file in files)


def test_an_engine_too_large_is_refused_with_the_way_on(
    bundle: Bundle, trt: FakeTrt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensorrt_graph, "MAX_ELEMENTS", 5000)  # a 48x48 picture has 6912 numbers, a 32x32 one 3072
    assert main(["export", "--trt", "--bundle", str(bundle.path), "--engine", "1x48x48", "--no-dynamic"]) == 2
    output = capsys.readouterr().err
    assert "6,912 elements (1x3x48x48), and the limit is 5,000" in output and "--no-dynamic" in output


def test_the_dry_run_shows_which_engines_exist(
    bundle: Bundle, trt: FakeTrt, capsys: pytest.CaptureFixture[str]
) -> None:
    def built(size: str) -> dict[str, bool]:
        assert main(["export", "--trt", "--dry-run", "--bundle", str(bundle.path), "--engine", size, "--json"]) == 0
        return {engine["file"]: engine["built"] for engine in json.loads(capsys.readouterr().out)["engines"]}

    assert not any(built("1x32x96").values())
    assert main(["export", "--trt", "--bundle", str(bundle.path), "--engine", "1x32x96"]) == 0
    capsys.readouterr()
    assert all(built("1x32x96").values())
    other = built("1x128x32")
    assert other["text_encoder-dynamic.plan"] and other["step-dynamic.plan"] and not other["step-b1-128x32.plan"]


def test_graphs_are_checked_by_tensorrt(bundle: Bundle, trt: FakeTrt, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "--check", "--bundle", str(bundle.path), "--json"]
    assert main(words) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["tensorrt"] == trt.__version__
    assert {graph["file"] for graph in output["graphs"]} == {facts.file for facts in bundle.manifest.graphs.values()}
    trt.refuses = "Resize"
    assert main(words) == 3
    assert "vae_decoder.onnx: Resize " in capsys.readouterr().err and trt.built == []


def test_the_table_of_measured_engines_fits_a_narrow_terminal(
    bundle: Bundle, trt: FakeTrt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CliConsole, "interactive", True)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["export", "--trt", "--bundle", str(bundle.path)]) == 0
    output = capsys.readouterr().err
    rows = [line for line in output.splitlines() if "0.0e+00" in line]
    assert len(rows) == 13 and "TensorRT against ONNX Runtime" in output, "a row for each output, none folded"
    assert any(line.split()[:2] == ["vae_encoder-b1-32x32", "latent"] for line in rows)


def test_an_init_image_that_fits_no_engine_is_named(
    bundle: Bundle, trt: FakeTrt, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["export", "--trt", "--bundle", str(bundle.path)]) == 0
    words = ["gen", "alice", "--from", "photo.png", "--size", "512x512", "--bundle", str(bundle.path), "-o", "x.png"]
    capsys.readouterr()
    assert main([*words, "--device", "trt"]) == SetupError.exit_code
    output = capsys.readouterr().err
    assert "1 image of 512x512 pixels" in output and "export --trt --engine 1x512x512" in output
    assert not Path("x.png").exists() and main(words) == 0
    assert any("1 image of 512x512 pixels" in message for message in caplog.messages)
    capsys.readouterr()
    recipe = main(["inspect", "x.png", "--json"])
    assert recipe == 0 and "vae_encoder" in json.dumps(json.loads(capsys.readouterr().out))


def test_the_benchmark_builds_what_it_times_once(bundle: Bundle, trt: FakeTrt) -> None:
    request = resolve(Request("alice", width=48, height=32), bundle.manifest)
    for _ in range(2):
        engines.ensure(CliConsole(), Library(), bundle, request)
        assert len(trt.built) == 5, "the second time there is nothing left to do"
    engines.ensure(CliConsole(), Library(), bundle, resolve(Request("alice", width=32, height=32), bundle.manifest))
    assert len(trt.built) == 9, "the text encoder serves all sizes"


def test_a_captured_run_has_a_time_per_step(bundle: Bundle, trt: FakeTrt) -> None:
    request = resolve(Request("alice", steps=4), bundle.manifest)
    engines.ensure(CliConsole(), Library(), bundle, request)
    spec: dict[str, Any] = {"kind": "celebctl", "bundle": str(bundle.path), "engines": str(Library().engines)}
    spec |= {"device": "trt", "threads": 1, "request": request.to_json()}
    contestant = create_worker(spec)
    for seed in (1, 2):
        drawn = answer({"do": "generate", "seed": seed}, contestant, spec, [])
        assert len(drawn["marks"]) == 1 and 0 < drawn["loop"] < drawn["seconds"]
        assert step_seconds(drawn["marks"], drawn["loop"], 4) == drawn["loop"] / 4
    assert contestant.facts()["engine"] == "tensorrt"


def test_steps_on_a_gpu_are_timed_by_the_gpu() -> None:
    """A host that only launches work is long past a step when the step ends."""

    class Event:
        made, waited = 0, False

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at = -1.0

        def record(self) -> None:
            Event.made += 1
            self.at = 100.0 * Event.made

        def synchronize(self) -> None:
            Event.waited = True

        def elapsed_time(self, other: Event) -> float:
            assert Event.waited, "an unsynchronized event has no time"
            return other.at - self.at

    torch: Any = type("torch", (), {"cuda": type("cuda", (), {"Event": Event})})
    clock = EventClock(torch)
    for _ in range(3):
        clock.mark()
    assert clock.marks() == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("words", "code", "output"),
    [
        (["--variants", "--device", "trt"], 2, "--device cuda"),
        (["--device", "trt"], 6, "celebctl[trt]"),
        (["--device", "cuda"], 6, "celebctl[cuda]"),
    ],
)
def test_what_this_machine_cannot_time_is_refused_before_anything_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    output: str,
) -> None:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    without_cuda = SimpleNamespace(get_available_providers=lambda: [ort_session.CPU])
    monkeypatch.setattr(ort_session, "load_onnxruntime", lambda: without_cuda)
    assert main(["bench", *words]) == code
    assert output in capsys.readouterr().err and not (tmp_path / "home" / "bundles").exists()
