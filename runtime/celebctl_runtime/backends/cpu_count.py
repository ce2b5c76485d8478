"""The number of CPU threads a session should use."""

from __future__ import annotations

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def physical_core_count() -> int:
    """Physical cores this process may use, at least 1; logical CPUs where the system does not report siblings.

    Matrix products gain nothing from two threads on one core. A container's CPU quota (cgroup v2) is an upper limit.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota() or len(cores)))


def _siblings(cpu: int) -> str:
    """The logical CPUs on the same core, as Linux lists them."""
    try:
        return (_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """Whole CPUs granted to the container; 0 without a limit."""
    try:
        limit, period = _QUOTA.read_text().split()
        return 0 if limit == "max" else max(1, int(limit) // int(period))
    except (OSError, ValueError):
        return 0
