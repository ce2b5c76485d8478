"""The speed report: ratios, limits, contenders, and a missing baseline."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import typer
from bundle_fakes import write_bundle
from matplotlib.transforms import Bbox
from PIL import Image

from celebctl.bench import worker
from celebctl.bench.chart import draw_report, make_figure
from celebctl.bench.contenders import Contender
from celebctl.bench.report import busy_share, ratios, report
from celebctl.bench.roofline import gpu_peak, machine
from celebctl.bench.runner import (
    Measurements,
    Timings,
    WorkerProcess,
    largest_difference,
    run_benchmark,
    step_seconds,
    time_rounds,
)
from celebctl.bench.worker import SCHEDULERS
from celebctl.cli import main
from celebctl.cli.app import app
from celebctl.cli.bench import cells_of, noise_lines, share_of
from celebctl.plotting import chart_style
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import NotFoundError, SetupError
from celebctl_runtime.progress import Progress
from celebctl_runtime.request import SAMPLERS, Request

SETTINGS = {
    "model": "toy",
    "dtype": "fp32",
    "width": 32,
    "height": 32,
    "steps": 5,
    "sampler": "ddim",
    "guidance": 2.5,
} | {
    "rounds": 3,
    "cold_rounds": 2,
    "threads": 1,
}
NOTHING = Measurements()


def some_timings() -> list[Timings]:
    ours = Timings("celebctl cpu", False, "cpu", {"device": "cpu"})
    ours.cold, ours.first, ours.picture, ours.step = [1.0, 2.0], [0.5], [0.1, 0.2, 0.1], [0.01, 0.02, 0.01]
    theirs = Timings("diffusers cpu", True, "cpu", {"device": "cpu"})
    theirs.cold, theirs.first, theirs.picture, theirs.step = [5.0, 8.0], [4.0], [0.2, 0.4, 0.3], [0.02, 0.04, 0.02]
    ours.memory, theirs.memory = 100 << 20, 250 << 20
    return [ours, theirs]


def contender(bundle: Path, **changes: Any) -> Contender:
    request = {"prompt": "a", "steps": 3, "guidance": 2.5, "sampler": "ddim", "width": 32, "height": 32}
    spec = {"kind": "celebctl", "bundle": str(bundle), "engines": "none", "device": "cpu", "threads": 1}
    spec |= {"request": {**request, "seed": 0, "identities": []}}
    return Contender("celebctl cpu", {**spec, **changes}, (sys.executable, "-c", "pass"))


def test_ratios_are_medians_of_pairs_within_a_round() -> None:
    """A machine that slows down for a whole round slows down both, so pairs are compared and not medians."""
    (ratio,) = ratios(some_timings())
    assert ratio.values == {"cold": 4.5, "first": 8.0, "picture": 2.0, "step": 2.0, "memory": 2.5}
    assert ratio.spread["cold"] == (4.25, 4.75) and ratio.spread["first"] == (8.0, 8.0)


def test_contenders_on_other_hardware_are_not_compared() -> None:
    ours, theirs = some_timings()
    theirs.device_type = "cuda"
    assert ratios([ours, theirs]) == []


def test_a_loop_that_ends_all_steps_at_once_has_no_time_per_step() -> None:
    assert step_seconds([0.1, 0.3, 0.5, 0.8]) == pytest.approx(0.2)
    assert math.isnan(step_seconds([0.8])) and step_seconds([0.8], 0.6, 4) == pytest.approx(0.15)
    ours, theirs = some_timings()
    ours.step = [math.nan] * 3
    document = report([ours, theirs], NOTHING, SETTINGS, machine())
    assert document["contenders"][0]["step_ms"] is None and "step" not in document["ratios"][0]["values"]
    assert "NaN" not in json.dumps(document)


def test_the_limit_is_operations_over_peak() -> None:
    extras = Measurements({"step": 2e9}, {"flops": 400e9, "source": "measured"})
    document = report(some_timings(), extras, SETTINGS, machine())
    row = document["roofline"][0]
    assert row["floor_ms_per_step"] == 5.0 and row["share_of_limit"] == 0.5 and row["source"] == "measured"


class ScriptedWorker:
    """A contender on a CPU of 400 Gflop/s; `speeds`: what other programs leave of it, in each round."""

    def __init__(self, name: str, speeds: list[float], share: float) -> None:
        spec = {"kind": "celebctl", "device": "cpu", "request": {"steps": 2}}
        self.contender = Contender(name, spec, ())
        self.speeds, self.share, self.round = speeds, share, 0

    def ask(self, do: str, seed: int = 0) -> dict[str, Any]:
        if do == "peak":
            return {"peak": {"flops": 400e9 * self.speeds[self.round], "source": "scripted"}}
        self.round = seed - 1
        step = 2e9 / (400e9 * self.share * self.speeds[self.round])
        return {"seconds": 2 * step, "marks": [step, 2 * step]}


def scripted_report(speeds: list[float], share: float) -> dict[str, Any]:
    workers: Any = [ScriptedWorker(name, speeds, share) for name in ("celebctl cpu", "celebctl cpu, plain graphs")]
    timings = {one.contender.name: Timings(one.contender.name, False, "cpu") for one in workers}
    peak = time_rounds(workers, timings, len(speeds), lambda _: None)
    return report(list(timings.values()), Measurements({"step": 2e9}, peak), SETTINGS, machine())


@pytest.mark.parametrize("noisy", [0, 2, 4])
def test_a_noisy_round_leaves_the_share_of_the_limit_as_it_is(noisy: int) -> None:
    """Measured once, in the noisy round, the limit would be a tenth of the real one and the share 800 %."""
    speeds = [0.1 if number == noisy else 1.0 for number in range(5)]
    document = scripted_report(speeds, share=0.8)
    row = document["roofline"][0]
    assert row["share_of_limit"] == pytest.approx(0.8) and row["reliable"]
    assert document["cpu_peak"]["rounds"] == [400e9 * speed for speed in speeds]
    assert document["contenders"][0]["step_ms"] == pytest.approx(6.25) and busy_share(document) is None
    assert document["contenders"][0]["spread"]["step_ms"] == pytest.approx((6.25, 6.25))


def test_what_is_over_its_limit_is_called_unreliable() -> None:
    document = scripted_report([1.0, 1.0, 1.0], share=1.9)
    assert document["roofline"][0]["share_of_limit"] == pytest.approx(1.9) and not document["roofline"][0]["reliable"]
    assert "\n".join(noise_lines(document)).count("not reliable") == 2
    assert "unreliable" in share_of(document["roofline"][0])


def test_a_busy_machine_and_the_spread_are_shown() -> None:
    speeds = [1.0, 0.5, 0.25, 0.5, 0.5]
    document = scripted_report(speeds, share=0.5)
    assert busy_share(document) == 0.5
    row = document["contenders"][0]
    assert row["step_ms"] == 20.0 and row["spread"]["step_ms"] == (20.0, 20.0)
    assert json.loads(json.dumps(document))["contenders"][0]["spread"]["picture"] == [0.04, 0.04]
    slower = scripted_report([1.0, 0.5, 0.25], share=0.5)["contenders"][0]
    assert slower["spread"]["step_ms"] == (15.0, 30.0)
    cells = cells_of(slower, "")
    assert "20.00 (15.00-30.00)" in cells and "40 ms (30-60)" in cells


def test_the_fastest_product_is_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_MATMUL", 8)
    times = iter([0.0, 10.0, 10.0, 11.0, 11.0, 16.0])
    assert worker.measured_peak(None, lambda: next(times))["flops"] == 2 * 8**3


def test_no_float32_limit_is_held_against_bfloat16() -> None:
    found = some_timings()
    found[0].facts["precision"] = "bf16"
    extras = Measurements({"step": 2e9}, {"flops": 400e9, "source": "measured"})
    assert [row["name"] for row in report(found, extras, SETTINGS, machine())["roofline"]] == ["diffusers cpu"]


@pytest.mark.parametrize("gflop", [1.0, 4.0, 9.0, 40.0])
def test_labels_of_the_chart_do_not_touch_the_limits(gflop: float) -> None:
    """Limits inside the bars, at their ends, where the labels were, and far beyond."""
    extras = Measurements({"step": gflop * 1e9}, {"flops": 400e9, "source": "measured"})
    with chart_style():
        figure = make_figure(report(some_timings(), extras, SETTINGS, machine()))
        figure.draw_without_rendering()
        (axes,) = [one for one in figure.axes if one.collections]
        segments = [cast(Any, line).get_segments()[0] for line in axes.collections]
        lines = [Bbox(axes.transData.transform(segment)) for segment in segments]
        labels = [text.get_window_extent() for text in axes.texts]
        assert len(lines) == len(labels) == 2
        assert not any(label.overlaps(line) for line in lines for label in labels)
        assert all(one.x1 <= figure.bbox.x1 for one in labels), "a label leaves the page"


def test_peaks_of_gpus_are_found_by_name() -> None:
    found = {
        name: gpu_peak(name, "fp16")
        for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H200", "A toaster")
    }
    flops = [None if peak is None else peak["flops"] for peak in found.values()]
    assert flops == [989.4e12, 756e12, 989.5e12, None]
    assert gpu_peak("NVIDIA H200", "fp32") is None, "peaks are per dtype"


def on_gpu() -> tuple[list[Timings], dict[str, Any]]:
    found = some_timings()
    for score, device in zip(found, ("cuda", "NVIDIA H200"), strict=True):
        score.device_type, score.facts = "cuda", {"device": device}
    found[0].gpu_memory, found[1].gpu_memory = 2 << 30, 5 << 30
    return found, {"gpus": ["NVIDIA H200, driver 580.1"], "cpu": "one", "cores": 1, "packages": {}}


@pytest.mark.parametrize(("dtype", "names"), [("fp16", ["celebctl cpu", "diffusers cpu"]), ("fp32", [])])
def test_the_limit_is_that_of_the_dtype_and_the_gpu(dtype: str, names: list[str]) -> None:
    found, gpu = on_gpu()
    extras = Measurements({"step": 1e12}, {"flops": 4e11, "source": "measured"})
    document = report(found, extras, {**SETTINGS, "dtype": dtype}, gpu)
    assert [row["name"] for row in document["roofline"]] == names
    half = report(some_timings(), extras, {**SETTINGS, "dtype": "fp16"}, machine())
    assert half["roofline"] == [], "the CPU's peak is measured in float32"


def test_memory_of_the_gpu_is_compared_and_drawn() -> None:
    found, gpu = on_gpu()
    document = report(found, NOTHING, SETTINGS, gpu)
    assert document["ratios"][0]["values"]["gpu_memory"] == 2.5
    assert [row["gpu_memory_mib"] for row in document["contenders"]] == [2048, 5120]
    assert draw_report(document).height > draw_report(report(some_timings(), NOTHING, SETTINGS, gpu)).height


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_memory_of_the_gpu_is_known_where_processes_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container nvidia-smi names other processes, or none; what all hold together it knows."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$1" in *apps*) echo "4000000000, 900";; *) echo 1500; echo 20;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert (worker.gpu_memory(), worker.used_on_gpus()) == (0, 1520 << 20)
    program.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert (worker.gpu_memory(), worker.used_on_gpus()) == (0, 0)


def test_variants_are_compared_with_the_default() -> None:
    ours, theirs = some_timings()
    plain = replace(theirs, name="celebctl cpu, plain graphs", baseline=False)
    assert [(ratio.ours, ratio.theirs) for ratio in ratios([ours, plain])] == [("celebctl cpu", plain.name)]
    assert "no_baseline" in report([ours, plain], NOTHING, SETTINGS, machine()), "variants are not a baseline"


@pytest.mark.parametrize("target", ["bench-speed", "bench-gpu"])
def test_what_make_times_is_a_command_line(target: str) -> None:
    """The words of the Makefile, as make writes them out, are understood by the command."""
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    ready = [word for name in (".venv", ".venv-gpu") for word in ("-o", f"{name}/.ready")]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        ["make", "-n", *ready, target],
        cwd=root,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    words = shlex.split(done.stdout.replace("\\\n", " "))
    program = root / (".venv-gpu" if target == "bench-gpu" else ".venv") / "bin" / "celebctl"
    begun = words.index(str(program))
    commands: Any = typer.main.get_command(app)
    assert words[begun + 1] == "bench"
    given = commands.commands["bench"].make_context("bench", words[begun + 2 :]).params
    assert given["out"].parent == given["chart"].parent == Path("benchmarks/results") and given["force"]
    if target == "bench-gpu":
        assert given["device"] == ["cuda", "trt"] and given["compiled"] and given["variants"]


def test_a_report_without_a_baseline_says_so_and_has_a_chart() -> None:
    document = report(some_timings()[:1], NOTHING, SETTINGS, machine())
    assert "no comparison" in document["no_baseline"]
    alone, both = draw_report(document), draw_report(report(some_timings(), NOTHING, SETTINGS, machine()))
    assert alone.width == both.width and alone.height < both.height
    blue, orange = (0, 114, 178), (213, 94, 0)
    colours = [{colour for _, colour in image.getcolors(1 << 20) or []} for image in (alone, both)]
    assert blue in colours[0] and orange not in colours[0] and {blue, orange} <= colours[1]


def test_every_sampler_has_a_scheduler_of_diffusers() -> None:
    assert set(SCHEDULERS) == set(SAMPLERS)
    diffusers = pytest.importorskip("diffusers")
    for name, _ in SCHEDULERS.values():
        assert hasattr(diffusers, name)


def test_a_worker_generates_the_same_image_for_the_same_seed(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    worker_process = WorkerProcess(contender(bundle.path))
    try:
        paths = [Path(), Path(), Path()]
        for number, seed in enumerate((4, 5, 4)):
            drawn = worker_process.ask("generate", seed=seed)
            assert drawn["seconds"] > 0 and len(drawn["marks"]) == 3
            paths[number] = Path(worker_process.ask("save", path=str(tmp_path / f"{number}.png"))["path"])
        assert largest_difference(paths[0], paths[2]) == 0 < largest_difference(paths[0], paths[1])
        assert worker_process.ask("memory")["bytes"] > 1 << 20
        assert worker_process.ask("peak")["peak"]["flops"] > 1e8
    finally:
        worker_process.close()


def test_a_workers_error_keeps_its_class_and_a_failed_cold_start_raises(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="celebctl cpu: "):
        WorkerProcess(contender(tmp_path / "nowhere"))
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(SetupError, match="ouch") as caught:
        dying = (sys.executable, "-c", "raise SystemExit('ouch')")
        run_benchmark([Contender("celebctl cpu", contender(bundle.path).spec, dying)], rounds=1, cold_rounds=1)
    assert caught.value.reason == "cold_start_failed"


def test_a_baseline_that_cannot_start_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, events = write_bundle(tmp_path / "bundle"), list[Progress]()
    baseline = Contender(
        "diffusers cpu", {**contender(bundle.path).spec, "kind": "diffusers", "bundle": "", "request": 3}, ()
    )
    found, extras = run_benchmark([contender(bundle.path), baseline], rounds=2, cold_rounds=0, progress=events.append)
    assert [score.name for score in found] == ["celebctl cpu"] and len(found[0].picture) == 2
    assert extras.operations is None and "diffusers cpu" in caplog.text
    assert [event.step for event in events] == [1, 2, 3, 4, 5] and {event.total for event in events} == {5}


def test_bench_needs_no_diffusers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle, real = write_bundle(tmp_path / "bundle"), importlib.util.find_spec

    def find_spec(name: str) -> object:
        return None if name == "diffusers" else real(name)

    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    words = ["bench", "a", "--bundle", str(bundle.path), "--rounds", "1", "--cold-starts", "1", "--variants", "--json"]
    assert main([*words, "--chart", str(tmp_path / "c.png")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in document["contenders"]] == ["celebctl cpu", "celebctl cpu, plain graphs"]
    (ratio,) = document["ratios"]
    assert ratio["theirs"] == "celebctl cpu, plain graphs" and ratio["values"].keys() >= {"cold", "picture", "step"}
    assert set(document["add_person"]) == {"import_s", "add_ms", "add_command_s"} and bundle.manifest.identities == {}
    assert Bundle.open(bundle.path, verify="full").names == (), "the real bundle does not change"
    assert "diffusers" in caplog.text and "no_baseline" in document and document["contenders"][0]["cold"] > 0
    with Image.open(tmp_path / "c.png") as chart:
        assert chart.width > 1000 and chart.height > 100


def test_the_baseline_is_diffusers_on_the_same_weights_and_noise() -> None:
    """The baseline generates the same image as our networks, and counts the operations of a step."""
    torch: Any = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from celebctl.bench.worker import DiffusersWorker
    from celebctl.learning.sampling import draw
    from celebctl_models.checkpoints.diffusion import load_parts
    from celebctl_models.checkpoints.registry import locate

    request = Request("a photo of anne on the beach", seed=3, steps=4, sampler="ddim", guidance=2.5)
    spec: dict[str, Any] = {
        "model": str(locate("mini").path), "device": "cpu", "threads": torch.get_num_threads(), "dtype": "fp32",
        "compile": False, "request": {**request.to_json(), "width": 64, "height": 64},
    }  # fmt: skip
    baseline = DiffusersWorker(spec)
    drawn, parts = baseline.generate(3), load_parts("mini")
    (ours,) = draw(parts, [request.prompt], [3], {}, steps=4, guidance=2.5, sampler="ddim", fast=False)
    assert np.abs(np.asarray(drawn.image, np.int16) - ours.astype(np.int16)).max() <= 2
    assert len(drawn.marks) == 4 and drawn.marks == sorted(drawn.marks) and drawn.marks[-1] < drawn.seconds
    counted = baseline.count()
    assert counted is not None and counted["step"] > 1e9 and 0 < counted["decode"] < counted["step"]
    facts = baseline.facts()
    assert (facts["engine"], facts["device"], facts.get("compiled")) == ("diffusers", "cpu", None)
