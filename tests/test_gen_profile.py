"""benchmarks/gen_profile.py: each part is measured once, and the parts add up to the total."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from bundle_fakes import make_identity, write_bundle


def test_the_parts_of_an_image_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")  # its version is in the description of the machine
    gen_profile: Any = import_module("benchmarks.gen_profile")

    bundle = write_bundle(tmp_path / "toy")
    bundle.add(make_identity("alice"))
    arguments = [str(bundle.path), "--prompt", "alice", "--steps", "3", "--size", "48x32", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["gen_profile.py", *arguments, "--out", str(tmp_path / "out.json")])
    assert gen_profile.main() == 0
    results = json.loads((tmp_path / "out.json").read_text("utf-8"))
    first, second = ([part["name"] for part in results[number]] for number in ("first", "second"))
    assert [name for name in first if name.startswith("step ")] == ["step 1", "step 2", "step 3"]
    assert len(first) == len(set(first)) and len([name for name in first if name.startswith("session")]) >= 3
    assert {"start of Python", "encoding texts", "decoding", "writing the PNG"} <= set(first)
    assert not any(name.startswith("session") for name in second), "opened once"
    total = sum(part["seconds"] for part in results["first"])
    assert total == pytest.approx(results["seconds"], rel=0.05, abs=0.02) and results["peak_bytes"] > 0
    assert all(part["seconds"] >= 0 and part["faults"] >= 0 for part in results["first"] + results["second"])
    assert results["request"]["width"] == 48 and len(results["as_command"]) == 2 and results["machine"]["processor"]
    output = capsys.readouterr().out
    assert "the second image of a process" in output and "with hashing; then" in output
