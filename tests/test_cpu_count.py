"""Threads are counted from the cores a process may use: siblings share one, and a container's share is the limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from celebctl_runtime.backends import cpu_count


def allow(monkeypatch: pytest.MonkeyPatch, cpus: set[int]) -> None:
    def affinity(_process: int) -> set[int]:
        return cpus

    monkeypatch.setattr(os, "sched_getaffinity", affinity, raising=False)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight logical CPUs in pairs (0 and 4, 1 and 5, ...), all allowed, no limit."""
    for cpu in range(8):
        place = tmp_path / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(cpu_count, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(cpu_count, "_QUOTA", tmp_path / "cpu.max")
    allow(monkeypatch, set(range(8)))
    return tmp_path


@pytest.mark.parametrize(
    ("allowed", "expected"), [({0, 4}, 1), ({0, 1}, 2), (set(range(8)), 4), ({0, 1, 4, 5, 6}, 3), ({3}, 1)]
)
def test_siblings_count_once(machine: Path, monkeypatch: pytest.MonkeyPatch, allowed: set[int], expected: int) -> None:
    allow(monkeypatch, allowed)
    assert cpu_count.physical_core_count() == expected


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("?", 4)],
)
def test_a_containers_share_is_the_limit(machine: Path, quota: str, expected: int) -> None:
    (machine / "cpu.max").write_text(f"{quota}\n")
    assert cpu_count.physical_core_count() == expected


def test_without_topology_all_cpus_count(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_count, "_TOPOLOGY", machine / "nowhere")
    assert cpu_count.physical_core_count() == 8
