"""Run contenders in turns and measure their times and memory.

What this module does not know: how a contender generates (worker.py), what a report says (report.py), the command line.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO, Any, TypeVar, cast

from celebctl_runtime.errors import CelebctlError, SetupError, UsageError
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress

from .contenders import Contender

# Variables that keep contenders off the network and their libraries quiet.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass
class Timings:
    """Measurements of one contender; seconds, one entry per round, unless stated otherwise.

    Attributes:
        name: The contender's name.
        baseline: Whether it is diffusers.
        device_type: "cpu", "cuda" or "cuda:1".
        facts: Engine, versions, device, threads.
        cold: From the start of a process to the PNG.
        first: Imports, opening the model and one image, in a fresh interpreter.
        picture: Every further image.
        step: One sampler step.
        memory: Peak resident memory in bytes.
        gpu_memory: Bytes held on the GPU: by process where nvidia-smi knows it, else the growth after the first image.
    """

    name: str
    baseline: bool
    device_type: str
    facts: dict[str, str] = field(default_factory=dict[str, str])
    cold: list[float] = field(default_factory=list[float])
    first: list[float] = field(default_factory=list[float])
    picture: list[float] = field(default_factory=list[float])
    step: list[float] = field(default_factory=list[float])
    memory: int = 0
    gpu_memory: int = 0


@dataclass
class Measurements:
    """Facts that one contender reports for all.

    Attributes:
        operations: Floating-point operations of one guided "step" and of "decode"; None without diffusers.
        cpu_peak: Measured peak of the CPU: the best of all rounds in ``flops``, each round's in ``rounds``, and its
            ``source``; None without a CPU contender.
        pixel_differences: Largest difference, 0 to 255, between each contender's image and the first one's.
    """

    operations: Mapping[str, float] | None = None
    cpu_peak: Mapping[str, Any] | None = None
    pixel_differences: dict[str, int] = field(default_factory=dict[str, int])


class WorkerProcess:
    """A running worker.

    Raises:
        CelebctlError: As raised by the worker.
        SetupError: The worker died.
    """

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        command = [sys.executable, "-m", "celebctl.bench.worker", json.dumps(dict(contender.spec))]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=_environment())
        self._stderr_tail: deque[str] = deque(maxlen=5)
        self._stderr_reader = Thread(
            target=self._read_stderr, args=(cast("IO[str]", self._process.stderr),), daemon=True
        )
        self._stderr_reader.start()
        self.ready_message = self._receive()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for the answer."""
        stdin = cast("IO[str]", self._process.stdin)
        try:
            stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # it has died; the missing answer raises
        return self._receive()

    def close(self) -> None:
        """End the process."""
        cast("IO[str]", self._process.stdin).close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        cast("IO[str]", self._process.stdout).close()

    def _receive(self) -> dict[str, Any]:
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            self._process.wait()
            self._stderr_reader.join(timeout=1)
            cause = self._stderr_tail[-1] if self._stderr_tail else f"exit code {self._process.returncode}"
            raise SetupError(
                f"{self.contender.name} ended early: {cause[:300]}", "run with fewer contenders", reason="worker_died"
            )
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            self.close()
            raise _as_error(self.contender.name, document["error"])
        return document

    def _read_stderr(self, stderr: IO[str]) -> None:
        for line in stderr:
            if line.strip():
                self._stderr_tail.append(line.strip())
        stderr.close()


def run_benchmark(
    contenders: Sequence[Contender], *, rounds: int, cold_rounds: int, progress: ProgressCallback = ignore_progress
) -> tuple[list[Timings], Measurements]:
    """Time all contenders in turns. A baseline that fails to start is left out with a warning.

    Args:
        rounds: Images of each contender.
        cold_rounds: Cold starts of each contender; 0 for none.
        progress: Called before each measurement.

    Raises:
        CelebctlError: As raised by a contender that is not the baseline.
    """
    total = rounds + cold_rounds * len(contenders) + len(contenders) + 1
    numbers = itertools.count(1)

    def advance(stage: str) -> None:
        progress(Progress(stage, min(next(numbers), total), total))

    timings = {one.name: Timings(one.name, one.is_baseline, one.device_type) for one in contenders}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celebctl-bench-")))
        workers = _start(contenders, timings, stack, advance)
        peak = time_rounds(workers, timings, rounds, advance)
        advance("memory, operations")
        measurements = _measure(workers, timings, folder)
        measurements.cpu_peak = peak
    present = [worker.contender for worker in workers]
    with tempfile.TemporaryDirectory(prefix="celebctl-bench-") as path:
        for number in range(cold_rounds):
            for contender in _rotated(present, number):
                advance(f"cold start {number + 1} of {cold_rounds}: {contender.name}")
                timings[contender.name].cold.append(_cold_start(contender, Path(path) / "cold.png"))
    return [timings[contender.name] for contender in present], measurements


def _start(
    contenders: Sequence[Contender], timings: Mapping[str, Timings], stack: ExitStack, advance: Callable[[str], None]
) -> list[WorkerProcess]:
    workers: list[WorkerProcess] = []
    for contender in contenders:
        advance(f"first image: {contender.name}")
        try:
            worker = WorkerProcess(contender)
        except CelebctlError as error:
            if not contender.is_baseline:
                raise
            logger.warning("%s is left out: %s", contender.name, error.problem)
            continue
        stack.callback(worker.close)
        row = timings[contender.name]
        row.facts = dict(worker.ready_message["facts"])
        row.gpu_memory = int(worker.ready_message["gpu_grown"])
        row.first.append(float(worker.ready_message["first_seconds"]))
        workers.append(worker)
    return workers


def time_rounds(
    workers: Sequence[WorkerProcess], timings: Mapping[str, Timings], rounds: int, advance: Callable[[str], None]
) -> dict[str, Any] | None:
    """Rounds of one image each; the first contender changes from round to round.

    The CPU's peak is measured in every round, beside what it limits; the best counts, because other programs can only
    make it smaller. Returns :attr:`Measurements.cpu_peak`.
    """
    on_cpu = [worker for worker in workers if worker.contender.device_type == "cpu"]
    peaks: list[dict[str, Any]] = []
    for number in range(rounds):
        advance(f"round {number + 1} of {rounds}")
        for worker in _rotated(workers, number):
            image = worker.ask("generate", seed=number + 1)
            row = timings[worker.contender.name]
            row.picture.append(float(image["seconds"]))
            steps = int(worker.contender.spec["request"]["steps"])
            row.step.append(step_seconds(image["marks"], image.get("loop"), steps))
        if on_cpu:
            peaks.append(on_cpu[-1].ask("peak")["peak"])
    return max(peaks, key=_flops) | {"rounds": [_flops(peak) for peak in peaks]} if peaks else None


def _flops(peak: Mapping[str, Any]) -> float:
    return float(peak["flops"])


def step_seconds(marks: Sequence[float], loop: float | None = None, steps: int = 1) -> float:
    """Median time between the ends of two steps.

    Where all steps run as one call, the mean over the call (its inputs and result copied); NaN without any timing.
    """
    gaps = [after - before for before, after in itertools.pairwise(marks)]
    if gaps:
        return statistics.median(gaps)
    return float("nan") if loop is None else loop / steps


def _measure(workers: Sequence[WorkerProcess], timings: Mapping[str, Timings], folder: Path) -> Measurements:
    """Memory of all contenders, operations, and differences between images."""
    measurements, reference = Measurements(), None
    for number, worker in enumerate(workers):
        row = timings[worker.contender.name]
        memory = worker.ask("memory")
        row.memory, row.gpu_memory = int(memory["bytes"]), int(memory["gpu_bytes"] or row.gpu_memory)
        worker.ask("generate", seed=1)
        path = Path(worker.ask("save", path=str(folder / f"{number}.png"))["path"])
        if reference is None:
            reference = path
        else:
            measurements.pixel_differences[row.name] = largest_difference(reference, path)
        measurements.operations = measurements.operations or worker.ask("count")["count"]
    return measurements


def largest_difference(one: Path, other: Path) -> int:
    """Largest difference between two images' pixels, 0 to 255; 255 for images of different sizes."""
    import numpy as np
    from PIL import Image

    with Image.open(one) as a, Image.open(other) as b:
        if a.size != b.size:
            return 255
        return int(np.abs(np.asarray(a.convert("RGB"), np.int16) - np.asarray(b.convert("RGB"), np.int16)).max())


def _cold_start(contender: Contender, path: Path) -> float:
    environment = {**_environment(), **contender.variables}
    start = time.perf_counter()
    done = subprocess.run([*contender.command, str(path)], capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode or not path.is_file():
        cause = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        hint = "run the command by itself to see the cause"
        raise SetupError(f"{contender.name} wrote no image: {cause[:300]}", hint, reason="cold_start_failed")
    path.unlink()
    return seconds


def _rotated(items: Sequence[T], number: int) -> list[T]:
    """The items, starting at another one every time."""
    start = number % max(1, len(items))
    return [*items[start:], *items[:start]]


def _environment() -> dict[str, str]:
    return {**os.environ, **_ENVIRONMENT}


def _as_error(name: str, document: Mapping[str, str]) -> CelebctlError:
    """A worker's error in the class of its code, with its reason."""
    classes = {kind.code: kind for kind in CelebctlError.__subclasses__()}
    kind = classes.get(document["code"], SetupError)
    return kind(f"{name}: {document['problem']}", document["hint"], reason=document["reason"])


def check_counts(rounds: int, cold_starts: int) -> None:
    """Raise UsageError for a number of rounds or cold starts that is out of range."""
    for name, number, least in (("rounds", rounds, 1), ("cold starts", cold_starts, 0)):
        if not least <= number <= 1000:
            raise UsageError(
                f"{number} {name} are out of range", f"use {least} to 1000", reason="count_out_of_range", count=number
            )
