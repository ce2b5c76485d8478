"""Benchmarks of time and memory, and celebctl with a model of true size."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from celebctl_runtime.bundle.bundle import Bundle

ROOT = Path(__file__).parents[1]


def script(name: str) -> Any:
    """Import a module of benchmarks/ by name."""
    return importlib.import_module(f"benchmarks.{name}")


def test_run_measures_a_process_and_raises_when_it_fails(tmp_path: Path) -> None:
    processes = script("processes")
    code = "import json, time; block = bytearray(200_000_000); time.sleep(0.2); print(json.dumps({'made': 3}))"
    done = processes.run([sys.executable, "-c", code], tmp_path)
    assert done.output == {"made": 3} and 0.2 < done.seconds < 20
    assert 200e6 < done.peak_bytes < 400e6
    small = processes.run([sys.executable, "-c", "pass"], tmp_path)
    assert small.peak_bytes < 100e6 and small.output == {}, "each process has its own peak"
    with pytest.raises(RuntimeError, match="ended with 3"):
        processes.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_the_chart_accepts_missing_series(tmp_path: Path) -> None:
    for counts, first in (((1,), 0.3), ((1, 2, 4, 8, 16), 300.0)):
        rows = [
            {"people": n, "steps": 5, "seconds_per_person": first / n, "process_seconds_per_person": 2 * first / n}
            for n in counts
        ]
        if first > 1:
            for row in rows:
                del row["seconds_per_person"]  # one mode only
        script("joint_cost").draw_chart(rows, tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as picture:
            assert picture.size == (900, 500) and len(picture.convert("RGB").getcolors(2**20) or ()) > 50


def test_a_prediction_is_marked_as_predicted() -> None:
    flops = script("true_size_flops")
    parts = ("unet_forward", "unet_forward_backward", "text_encoder_forward_backward", "vae_encode", "vae_decode")
    prediction = flops.predict_times(dict.fromkeys(parts, 1e12))
    assert prediction["predicted"] is True and prediction["assumed_utilisation"] == flops.UTILISATION
    for times in prediction["seconds"].values():
        assert times["floor_views_only"] < times["predicted_views_only"] < times["predicted_all"]
        assert times["predicted_views_only"] == pytest.approx(
            flops.VIEWS * 2e12 / times["dense_bf16_peak"] / flops.UTILISATION, abs=0.01
        )


def test_adding_a_person_reads_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adding = script("adding")
    names = ("text_encoder.data", "text_encoder_2.data", "step.data", "vae_decoder.data", "vae_encoder.data")
    for name, value in (
        ("VOCABULARY", 64),
        ("PEOPLE", 3),
        ("MODELS", {"tiny": ((8, 12), dict.fromkeys(names, 5_000_000))}),
    ):
        monkeypatch.setattr(adding, name, value)
    results = adding.measure("tiny", tmp_path, 1)
    assert results["weight_file_bytes"] == 25_000_000 and results["token_table_bytes"] == (64 + 256) * 20 * 4
    assert 0 < results["add_ms"] < 1e3 * results["add_command_s"] and results["weights_touched"] == []
    assert results.get("add_rchar", 0) < 1e6
    assert "new" in Bundle.open(tmp_path / "tiny", verify="full").names


@pytest.mark.slow
def test_stable_diffusion_15_of_true_size_is_learned_exported_and_generated(tmp_path: Path) -> None:
    """Random weights, 256 px, one step; each process below 12 GB. 7 GB of disk, five minutes."""
    command = [sys.executable, "-m", "benchmarks.true_size", "--reduced", "--out", str(tmp_path / "a.json")]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "work")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "a.json").read_text())
    assert all(results[stage]["peak_rss_bytes"] < 12e9 for stage in ("build", "learn", "export", "gen"))
    assert results["learn"]["coefficients"] == 1024
    # variants for ONNX Runtime have a suffix
    graphs = {name.partition(" ")[0] for name in results["export"]["worst_parity"]}
    assert graphs == {"text_encoder", "step", "vae_decoder", "vae_encoder"}
    assert max(results["export"]["worst_parity"].values()) < 1e-4
    assert (results["gen"]["width"], results["gen"]["steps"]) == (256, 1)
    assert 1.9 < results["predict"]["operations_per_sample_512px"]["unet_forward_backward"] / 803e9 < 2.3
    assert not (tmp_path / "work").exists(), "the files are deleted"
