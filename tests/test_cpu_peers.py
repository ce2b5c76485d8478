"""The comparison of programs on a CPU: turns, resuming, ratios, the table. No program runs here but stand-ins."""

from __future__ import annotations

import json
import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

peers: Any = import_module("benchmarks.cpu_peers")
worker: Any = import_module("benchmarks.cpu_peers_worker")
NAMES = ["diffusers", "celebctl, ONNX Runtime", "stable-diffusion.cpp"]
SETTINGS = {"size": 64, "steps": 2, "threads": 2}


def found(seconds: float, gigabytes: float = 1.0) -> dict[str, Any]:
    return {"seconds": seconds, "load_seconds": 1.0, "peak_bytes": int(gigabytes * 1e9), "version": "1.0"}


class Scripted:
    """Runs of peers with the given results, in order."""

    def __init__(self, results: list[dict[str, Any]]) -> None:
        self.results, self.asked = iter(results), list[str]()

    def __call__(self, name: str) -> dict[str, Any]:
        self.asked.append(name)
        return next(self.results)


def test_peers_take_turns_and_a_run_continues_where_it_stopped(tmp_path: Path) -> None:
    path, order = tmp_path / "result.json", list[str]()

    def stopping(name: str) -> dict[str, Any]:
        if len(order) == 4:
            raise KeyboardInterrupt
        order.append(name)
        return found(2.0)

    with pytest.raises(KeyboardInterrupt):
        peers.measure(path, NAMES, 2, SETTINGS, stopping)
    assert order == [*NAMES, NAMES[1]], "the second round starts with the second peer"
    assert [len(one) for one in json.loads(path.read_text())["rounds"]] == [3, 1]
    again = Scripted([found(2.0)] * 2)
    document = peers.measure(path, NAMES, 2, SETTINGS, again)
    assert again.asked == [NAMES[2], NAMES[0]] and all(len(one) == 3 for one in document["rounds"])
    with pytest.raises(ValueError, match="choose another file"):
        peers.measure(path, NAMES, 2, {**SETTINGS, "steps": 3}, again)


def test_a_failure_is_kept_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    document = peers.measure(path, NAMES[:1], 1, SETTINGS, Scripted([{"error": "no | memory"}]))
    assert "did not run: no   memory" in peers.table(document)
    document = peers.measure(path, NAMES[:1], 1, SETTINGS, Scripted([found(3.0)]))
    assert document["rounds"] == [{"diffusers": found(3.0)}]


def test_ratios_are_of_pairs_with_an_interval() -> None:
    """The second round is ten times slower for both: the ratio does not notice."""
    rounds = [{"diffusers": found(scale * 4.0, 8), NAMES[1]: found(scale * 2.0, 2)} for scale in (1, 10)]
    document = {"settings": SETTINGS, "rounds": rounds}
    assert peers.ratio(document, NAMES[1], "seconds") == pytest.approx((2.0, 2.0, 2.0))
    assert peers.ratio(document, NAMES[1], "peak_bytes") == pytest.approx((4.0, 4.0, 4.0))
    rounds[1][NAMES[1]] = found(5.0, 2)
    mean, low, high = peers.ratio(document, NAMES[1], "seconds")
    assert mean == pytest.approx(4.0) and low < 2.0 and high > 8.0 and mean / low == pytest.approx(high / mean)
    assert peers.ratio(document, NAMES[2], "seconds") is None
    line = next(line for line in peers.table(document).splitlines() if NAMES[1] in line)
    assert "(1.0)" in line and "4.00 (4.00 to 4.00)" in line and math.isfinite(mean)


def test_a_peer_that_dies_or_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "HERE", tmp_path)
    script = tmp_path / "cpu_peers_worker.py"
    settings = {"threads": 1}
    script.write_text("raise SystemExit('no memory')")
    assert peers.run_peer(Path(sys.executable), "diffusers", settings, 60) == {"error": "no memory"}
    script.write_text("import time; time.sleep(60)")
    assert "not finished" in peers.run_peer(Path(sys.executable), "diffusers", settings, 0.2)["error"]
    said = "json.dumps({'seconds': int(os.environ['OMP_NUM_THREADS'])})"
    script.write_text(f"import json, os; print('noise'); print({said})")
    assert peers.run_peer(Path(sys.executable), "diffusers", settings, 60) == {"seconds": 1}


def test_every_peer_has_a_worker_and_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(peers.REQUIREMENTS) == set(worker.PEERS) and peers.BASELINE in peers.REQUIREMENTS
    assert worker.peak_memory() > 1 << 20
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        commands.append(command)
        (tmp_path / "one" / "lib" / "python3" / "site-packages").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(peers.subprocess, "run", run)
    python = peers.make_environment(tmp_path / "one", ["torch", "diffusers"])
    assert peers.make_environment(tmp_path / "one", ["torch", "diffusers"]) == python, "made once"
    assert [command[1:3] for command in commands] == [["-m", "venv"], ["-m", "pip"]] and commands[1][0] == str(python)
    assert commands[1][-1] == "diffusers", "torch is shared, not installed"
    shared = (tmp_path / "one/lib/python3/site-packages/shared.pth").read_text().strip()
    assert Path(shared, "pytest").is_dir()
