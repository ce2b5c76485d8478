"""A complete benchmark: timings of all contenders, what adding a person costs, and the settings, as one document."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celebctl_runtime.progress import ProgressCallback

from .add_person import measure_adding
from .contenders import Contender, Workload
from .report import report
from .roofline import machine
from .runner import run_benchmark


def benchmark_document(
    workload: Workload, contenders: Sequence[Contender], rounds: int, cold_starts: int, progress: ProgressCallback
) -> dict[str, Any]:
    """Time the contenders in turns (report.py lists the keys).

    Args:
        workload: What all of them generate.
        contenders: celebctl on each device, then the baselines.
        rounds: Images of each contender, 1 to 1000.
        cold_starts: Cold starts of each contender, 0 to 1000.
        progress: Called after every measurement with stage, step and total.

    Raises:
        SetupError: A contender cannot run (reason "cold_start_failed" when its command wrote no image).
    """
    timings, measurements = run_benchmark(contenders, rounds=rounds, cold_rounds=cold_starts, progress=progress)
    with tempfile.TemporaryDirectory(prefix="celebctl-bench-") as folder:
        adding = measure_adding(workload.bundle, Path(folder), max(1, cold_starts))
    manifest = workload.bundle.manifest
    settings = {
        **workload.request.to_json(), "model": manifest.model.name, "dtype": manifest.dtype,
        "rounds": rounds, "cold_rounds": cold_starts, "threads": workload.threads,
    }  # fmt: skip
    return {**report(timings, measurements, settings, machine()), "add_person": adding}
