"""The speed report: what its numbers mean, who may take part, and that a missing rival is said and harms nothing."""

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
from typing import Any

import numpy as np
import pytest
import typer
from bundle_fakes import write_bundle
from PIL import Image

from celebctl.bench import worker
from celebctl.bench.chart import draw_report
from celebctl.bench.roofline import gpu_peak, machine
from celebctl.bench.runner import (
    Contender,
    Score,
    WorkerProcess,
    hold,
    largest_difference,
    ratios,
    report,
    step_seconds,
)
from celebctl.bench.worker import SCHEDULERS
from celebctl.cli import main
from celebctl.cli.app import app
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import NotFoundError, SetupError
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
NOTHING: dict[str, Any] = {"count": None, "peak": None, "differences": {}}


def scores() -> list[Score]:
    ours = Score("celebctl cpu", False, "cpu", {"device": "cpu"})
    ours.cold, ours.first, ours.picture, ours.step = [1.0, 2.0], [0.5], [0.1, 0.2, 0.1], [0.01, 0.02, 0.01]
    theirs = Score("diffusers cpu", True, "cpu", {"device": "cpu"})
    theirs.cold, theirs.first, theirs.picture, theirs.step = [5.0, 8.0], [4.0], [0.2, 0.4, 0.3], [0.02, 0.04, 0.02]
    ours.memory, theirs.memory = 100 << 20, 250 << 20
    return [ours, theirs]


def entrant(bundle: Path, **changes: Any) -> Contender:
    request = {"prompt": "a", "steps": 3, "guidance": 2.5, "sampler": "ddim", "width": 32, "height": 32}
    spec = {"kind": "celebctl", "bundle": str(bundle), "engines": "none", "device": "cpu", "threads": 1}
    spec |= {"request": {**request, "seed": 0, "identities": []}}
    return Contender("celebctl cpu", {**spec, **changes}, (sys.executable, "-c", "pass"))


def test_ratios_are_medians_of_pairs_within_a_round() -> None:
    """A machine that slows down for a whole round slows down both, so pairs are compared and not medians."""
    (ratio,) = ratios(scores())
    assert ratio.values == {"cold": 4.5, "first": 8.0, "picture": 2.0, "step": 2.0, "memory": 2.5}


def test_contestants_on_other_chips_are_not_compared() -> None:
    ours, theirs = scores()
    theirs.chip = "cuda"
    assert ratios([ours, theirs]) == []


def test_a_loop_that_ends_all_steps_at_once_has_no_time_per_step() -> None:
    assert step_seconds([0.1, 0.3, 0.5, 0.8]) == pytest.approx(0.2)
    assert math.isnan(step_seconds([0.8])) and step_seconds([0.8], 0.6, 4) == pytest.approx(0.15)
    ours, theirs = scores()
    ours.step = [math.nan] * 3
    document = report([ours, theirs], NOTHING, SETTINGS, machine())
    assert document["contestants"][0]["step_ms"] is None and "step" not in document["ratios"][0]["values"]
    assert "NaN" not in json.dumps(document)


def test_the_limit_is_operations_over_peak() -> None:
    extras = {"count": {"step": 2e9}, "peak": {"flops": 400e9, "source": "measured"}, "differences": {}}
    document = report(scores(), extras, SETTINGS, machine())
    row = document["roofline"][0]
    assert row["floor_ms_per_step"] == 5.0 and row["share_of_limit"] == 0.5 and row["source"] == "measured"


def test_peaks_of_gpus_are_found_by_name() -> None:
    found = {
        name: gpu_peak(name, "fp16")
        for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H200", "A toaster")
    }
    flops = [None if peak is None else peak["flops"] for peak in found.values()]
    assert flops == [989.4e12, 756e12, 989.5e12, None]
    assert gpu_peak("NVIDIA H200", "fp32") is None, "no peak of one dtype is told for another"


def on_gpu() -> tuple[list[Score], dict[str, Any]]:
    found = scores()
    for score, device in zip(found, ("cuda", "NVIDIA H200"), strict=True):
        score.chip, score.facts = "cuda", {"device": device}
    found[0].gpu_memory, found[1].gpu_memory = 2 << 30, 5 << 30
    return found, {"gpus": ["NVIDIA H200, driver 580.1"], "cpu": "one", "cores": 1, "packages": {}}


@pytest.mark.parametrize(("dtype", "names"), [("fp16", ["celebctl cpu", "diffusers cpu"]), ("fp32", [])])
def test_the_limit_is_that_of_the_dtype_and_the_gpu(dtype: str, names: list[str]) -> None:
    found, gpu = on_gpu()
    extras = {"count": {"step": 1e12}, "peak": {"flops": 4e11, "source": "measured"}, "differences": {}}
    document = report(found, extras, {**SETTINGS, "dtype": dtype}, gpu)
    assert [row["name"] for row in document["roofline"]] == names
    half = report(scores(), extras, {**SETTINGS, "dtype": "fp16"}, machine())
    assert half["roofline"] == [], "the CPU's peak is measured in float32"


def test_memory_of_the_gpu_is_compared_and_drawn() -> None:
    found, gpu = on_gpu()
    document = report(found, NOTHING, SETTINGS, gpu)
    assert document["ratios"][0]["values"]["gpu_memory"] == 2.5
    assert [row["gpu_memory_mib"] for row in document["contestants"]] == [2048, 5120]
    assert draw_report(document).height > draw_report(report(scores(), NOTHING, SETTINGS, gpu)).height


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


def test_our_variants_are_compared_with_us() -> None:
    ours, theirs = scores()
    plain = replace(theirs, name="celebctl cpu, plain graphs", rival=False)
    assert [(ratio.ours, ratio.theirs) for ratio in ratios([ours, plain])] == [("celebctl cpu", plain.name)]
    assert "missing" in report([ours, plain], NOTHING, SETTINGS, machine()), "we are no rival of ourselves"


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


def test_a_report_without_a_rival_says_so_and_can_be_drawn() -> None:
    document = report(scores()[:1], NOTHING, SETTINGS, machine())
    assert "no comparison" in document["missing"]
    alone, both = draw_report(document), draw_report(report(scores(), NOTHING, SETTINGS, machine()))
    assert alone.width == both.width and alone.height < both.height
    blue, orange = (31, 98, 158), (208, 100, 26)
    colours = [{colour for _, colour in image.getcolors(1 << 20) or []} for image in (alone, both)]
    assert blue in colours[0] and orange not in colours[0] and {blue, orange} <= colours[1]


def test_every_sampler_has_a_scheduler_of_diffusers() -> None:
    assert set(SCHEDULERS) == set(SAMPLERS)
    diffusers = pytest.importorskip("diffusers")
    for name, _ in SCHEDULERS.values():
        assert hasattr(diffusers, name)


def test_a_worker_draws_the_same_picture_for_the_same_seed(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    seat = WorkerProcess(entrant(bundle.path))
    try:
        paths = [Path(), Path(), Path()]
        for number, seed in enumerate((4, 5, 4)):
            drawn = seat.ask("draw", seed=seed)
            assert drawn["seconds"] > 0 and len(drawn["marks"]) == 3
            paths[number] = Path(seat.ask("save", path=str(tmp_path / f"{number}.png"))["path"])
        assert largest_difference(paths[0], paths[2]) == 0 < largest_difference(paths[0], paths[1])
        assert seat.ask("memory")["bytes"] > 1 << 20
        assert seat.ask("peak")["peak"]["flops"] > 1e8
    finally:
        seat.leave()


def test_a_workers_error_keeps_its_kind_and_a_dead_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="celebctl cpu: there is no bundle"):
        WorkerProcess(entrant(tmp_path / "nowhere"))
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(SetupError, match="drew nothing: ouch"):
        dying = (sys.executable, "-c", "raise SystemExit('ouch')")
        hold([Contender("celebctl cpu", entrant(bundle.path).spec, dying)], rounds=1, cold_rounds=1)


def test_a_rival_that_cannot_take_part_is_noted_and_left_out(tmp_path: Path) -> None:
    bundle, notes = write_bundle(tmp_path / "bundle"), list[str]()
    rival = Contender("diffusers cpu", {**entrant(bundle.path).spec, "kind": "diffusers", "bundle": "", "request": 3}, ())
    found, extras = hold([entrant(bundle.path), rival], rounds=2, cold_rounds=0, note=notes.append)
    assert [score.name for score in found] == ["celebctl cpu"] and len(found[0].picture) == 2
    assert extras["count"] is None and "diffusers cpu is left out" in notes[0]


def test_bench_needs_no_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, real = write_bundle(tmp_path / "bundle"), importlib.util.find_spec

    def find_spec(name: str) -> object:
        return None if name == "diffusers" else real(name)

    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    words = ["bench", "a", "--bundle", str(bundle.path), "--rounds", "1", "--cold", "1", "--variants", "--json"]
    assert main([*words, "--chart", str(tmp_path / "c.png")]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [row["name"] for row in document["contestants"]] == ["celebctl cpu", "celebctl cpu, plain graphs"]
    (ratio,) = document["ratios"]
    assert ratio["theirs"] == "celebctl cpu, plain graphs" and ratio["values"].keys() >= {"cold", "picture", "step"}
    assert set(document["moving"]) == {"import_s", "add_ms", "add_command_s"} and bundle.manifest.identities == {}
    assert Bundle.open(bundle.path, verify="full").names == (), "nobody moves into the real bundle"
    assert "diffusers not installed" in err and "missing" in document and document["contestants"][0]["cold"] > 0
    with Image.open(tmp_path / "c.png") as chart:
        assert chart.width > 1000 and chart.height > 100


def test_the_rival_is_diffusers_on_the_same_weights_and_noise() -> None:
    """What is timed beside us draws what our own networks draw, and counts the operations of a step."""
    torch: Any = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from celebctl.bench.worker import Diffusers
    from celebctl.learning.sampling import draw
    from celebctl_models.checkpoints.diffusion import load_parts
    from celebctl_models.checkpoints.registry import locate

    request = Request("a photo of anne on the beach", seed=3, steps=4, sampler="ddim", guidance=2.5)
    spec: dict[str, Any] = {
        "model": str(locate("mini").path), "device": "cpu", "threads": torch.get_num_threads(), "dtype": "fp32",
        "compile": False, "request": {**request.to_json(), "width": 64, "height": 64},
    }  # fmt: skip
    rival = Diffusers(spec)
    drawn, parts = rival.draw(3), load_parts("mini")
    (ours,) = draw(parts, [request.prompt], [3], {}, steps=4, guidance=2.5, sampler="ddim", fast=False)
    assert np.abs(np.asarray(drawn.image, np.int16) - ours.astype(np.int16)).max() <= 2
    assert len(drawn.marks) == 4 and drawn.marks == sorted(drawn.marks) and drawn.marks[-1] < drawn.seconds
    counted = rival.count()
    assert counted is not None and counted["step"] > 1e9 and 0 < counted["decode"] < counted["step"]
    facts = rival.facts()
    assert (facts["engine"], facts["device"], facts.get("compiled")) == ("diffusers", "cpu", None)
