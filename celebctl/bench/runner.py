"""Contestants take turns; what comes out is one report of times, ratios of pairs, and the hardware's limit beside them.

What this module does not know: how anybody draws (worker.py), how a report looks (chart.py), the command line.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO, Any, cast

from celebctl_runtime.errors import CelebctlError, SetupError, UsageError

SCHEMA = 1
BASELINE = "diffusers"
_MIB = 1 << 20
_COUNTED = (
    "operations of the networks as diffusers runs them; ONNX Runtime's form of the step leaves out what is"
    " the same for both guides, or for all steps"
)
# Variables that would let a contestant reach for the network or talk instead of answering.
_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}


@dataclass(frozen=True)
class Contender:
    """Who takes part. `spec` is the worker's; `command` draws one picture into the PNG appended to it, from nothing."""

    name: str
    spec: Mapping[str, Any]
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict[str, str])  # of the command's environment

    @property
    def is_rival(self) -> bool:
        """Whether it is somebody else's program."""
        return self.spec["kind"] == BASELINE

    @property
    def chip(self) -> str:
        """What it computes on: comparisons stay on one chip."""
        return "cpu" if self.spec["device"] == "cpu" else "cuda"


@dataclass
class Score:
    """What was measured of one contestant; seconds, one entry per round, unless the name says otherwise.

    cold: from the process's start to the PNG. first: imports, opening the model and a picture, in a fresh interpreter.
    picture: further pictures. step: one step of the sampler. memory: peak bytes of main memory; gpu_memory: bytes
    held on the GPU, by process where nvidia-smi knows it, else by how much more was used after the first picture.
    """

    name: str
    rival: bool
    chip: str
    facts: dict[str, str] = field(default_factory=dict[str, str])
    cold: list[float] = field(default_factory=list[float])
    first: list[float] = field(default_factory=list[float])
    picture: list[float] = field(default_factory=list[float])
    step: list[float] = field(default_factory=list[float])
    memory: int = 0
    gpu_memory: int = 0


@dataclass(frozen=True)
class Ratio:
    """How many times faster (or, of memory, smaller) `ours` is than `theirs`: medians over rounds of pairs."""

    ours: str
    theirs: str
    values: Mapping[str, float]


class WorkerProcess:
    """A worker process that answers orders."""

    def __init__(self, entrant: Contender) -> None:
        """Start it and let it draw its first picture. Raises as the worker did, SetupError when it died."""
        self.entrant = entrant
        command = [sys.executable, "-m", "celebctl.bench.worker", json.dumps(dict(entrant.spec))]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        self._last_words: deque[str] = deque(maxlen=5)
        self._listener = Thread(target=self._listen, args=(cast("IO[str]", self._process.stderr),), daemon=True)
        self._listener.start()
        self.greeting = self._hear()

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Give an order and wait for the answer."""
        stdin = cast("IO[str]", self._process.stdin)
        try:
            stdin.write(json.dumps({"do": do, **more}) + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # it has died; hearing nothing tells why
        return self._hear()

    def leave(self) -> None:
        """End the process."""
        cast("IO[str]", self._process.stdin).close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        cast("IO[str]", self._process.stdout).close()

    def _hear(self) -> dict[str, Any]:
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            self._process.wait()
            self._listener.join(timeout=1)
            said = self._last_words[-1] if self._last_words else f"exit code {self._process.returncode}"
            raise SetupError(f"{self.entrant.name} ended early: {said[:300]}", "run with fewer contestants")
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            self.leave()
            raise _as_error(self.entrant.name, document["error"])
        return document

    def _listen(self, stderr: IO[str]) -> None:
        for line in stderr:
            if line.strip():
                self._last_words.append(line.strip())
        stderr.close()


def hold(
    entrants: Sequence[Contender],
    *,
    rounds: int,
    cold_rounds: int,
    say: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[list[Score], dict[str, Any]]:
    """Let all take turns; returns their scores, and what only one of them can tell: operations, peak, differences.

    A rival that cannot take part is noted and left out. Raises what a contestant of ours raises.
    """
    scores = {entrant.name: Score(entrant.name, entrant.is_rival, entrant.chip) for entrant in entrants}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celebctl-bench-")))
        seats = _seat(entrants, scores, stack, say, note)
        steady(seats, scores, rounds, say)
        extras = _ask_around(seats, scores, folder, say)
    present = [entrant for entrant in entrants if entrant.name in {seat.entrant.name for seat in seats}]
    with tempfile.TemporaryDirectory(prefix="celebctl-bench-") as folder:
        for number in range(cold_rounds):
            for entrant in _turned(present, number):
                say(f"cold start {number + 1} of {cold_rounds}: {entrant.name}")
                scores[entrant.name].cold.append(_cold(entrant, Path(folder) / "cold.png"))
    return [scores[entrant.name] for entrant in present], extras


def _seat(
    entrants: Sequence[Contender],
    scores: Mapping[str, Score],
    stack: ExitStack,
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> list[WorkerProcess]:
    seats: list[WorkerProcess] = []
    for entrant in entrants:
        say(f"first picture: {entrant.name}")
        try:
            seat = WorkerProcess(entrant)
        except CelebctlError as problem:
            if not entrant.is_rival:
                raise
            note(f"{entrant.name} is left out: {problem.problem}")
            continue
        stack.callback(seat.leave)
        scores[entrant.name].facts = dict(seat.greeting["facts"])
        scores[entrant.name].gpu_memory = int(seat.greeting["gpu_grown"])
        scores[entrant.name].first.append(float(seat.greeting["first_seconds"]))
        seats.append(seat)
    return seats


def steady(seats: Sequence[WorkerProcess], scores: Mapping[str, Score], rounds: int, say: Callable[[str], None]) -> None:
    """Rounds of one picture each; who begins changes from round to round, so that no place in the row is better."""
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for seat in _turned(seats, number):
            drawn = seat.ask("draw", seed=number + 1)
            score = scores[seat.entrant.name]
            score.picture.append(float(drawn["seconds"]))
            steps = int(seat.entrant.spec["request"]["steps"])
            score.step.append(step_seconds(drawn["marks"], drawn.get("loop"), steps))


def step_seconds(marks: Sequence[float], loop: float | None = None, steps: int = 1) -> float:
    """The middle time between the ends of two steps.

    Where all steps ended at once (a captured loop), a share of what the loop took, inputs and result copied; NaN where
    nobody timed it.
    """
    gaps = [after - before for before, after in itertools.pairwise(marks)]
    if gaps:
        return statistics.median(gaps)
    return float("nan") if loop is None else loop / steps


def _ask_around(
    seats: Sequence[WorkerProcess], scores: Mapping[str, Score], folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Memory of all; operations from whoever counts them; the CPU's peak; how alike the pictures are."""
    say("memory, operations, limits")
    extras: dict[str, Any] = {"count": None, "peak": None, "differences": {}}
    reference: Path | None = None
    for number, seat in enumerate(seats):
        score = scores[seat.entrant.name]
        held = seat.ask("memory")
        score.memory, score.gpu_memory = int(held["bytes"]), int(held["gpu_bytes"] or score.gpu_memory)
        seat.ask("draw", seed=1)
        path = Path(seat.ask("save", path=str(folder / f"{number}.png"))["path"])
        if reference is None:
            reference = path
        else:
            extras["differences"][seat.entrant.name] = largest_difference(reference, path)
        extras["count"] = extras["count"] or seat.ask("count")["count"]
    if any(seat.entrant.chip == "cpu" for seat in seats):
        last = next(seat for seat in reversed(seats) if seat.entrant.chip == "cpu")
        extras["peak"] = last.ask("peak")["peak"]
    return extras


def largest_difference(one: Path, other: Path) -> int:
    """The largest difference of two pictures' pixels, 0 to 255; 255 for pictures of different sizes."""
    import numpy as np
    from PIL import Image

    with Image.open(one) as a, Image.open(other) as b:
        if a.size != b.size:
            return 255
        return int(np.abs(np.asarray(a.convert("RGB"), np.int16) - np.asarray(b.convert("RGB"), np.int16)).max())


def _cold(entrant: Contender, path: Path) -> float:
    begun = time.perf_counter()
    done = subprocess.run(
        [*entrant.command, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**_environment(), **entrant.variables},
    )
    seconds = time.perf_counter() - begun
    if done.returncode or not path.is_file():
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise SetupError(f"{entrant.name} drew nothing: {said[:300]}", "run the command by itself to see why")
    path.unlink()
    return seconds


def ratios(scores: Sequence[Score]) -> list[Ratio]:
    """Every one of ours against every rival on the same chip, and against its own variants."""
    found: list[Ratio] = []
    for ours in (score for score in scores if not score.rival):
        for theirs in (score for score in scores if score.chip == ours.chip):
            if not (theirs.rival or theirs.name.startswith(f"{ours.name}, ")):
                continue
            pairs = {
                key: [b / a for a, b in zip(getattr(ours, key), getattr(theirs, key), strict=True)]
                for key in ("cold", "first", "picture", "step")
            }
            for key in ("memory", "gpu_memory"):
                one, other = getattr(ours, key), getattr(theirs, key)
                pairs[key] = [other / one] if one and other else []
            values = {key: middle for key, values in pairs.items() if (middle := _middle(values)) is not None}
            found.append(Ratio(ours.name, theirs.name, {key: round(value, 3) for key, value in values.items()}))
    return found


def roofline(
    scores: Sequence[Score], count: Mapping[str, float] | None, peak: Mapping[str, Any] | None, dtype: str, gpu: str
) -> list[dict[str, Any]]:
    """Each contestant's share of its hardware's limit: a step's operations over the peak, over the step's time.

    Peaks are of the dtype that is run, the CPU's `peak` of fp32: where there is none for it, nothing is said. `gpu`:
    the machine's GPU, for contestants that know it as "cuda" only.
    """
    from .roofline import gpu_peak

    rows: list[dict[str, Any]] = []
    for score in scores:
        on_cpu = peak if dtype == "fp32" else None
        name = score.facts.get("device", "")
        limit = on_cpu if score.chip == "cpu" else gpu_peak(gpu if name == "cuda" else name, dtype)
        if not (count and limit):
            continue
        floor, middle = count["step"] / float(limit["flops"]), _middle(score.step)
        rows.append(
            {
                "name": score.name,
                "step_gflop": round(count["step"] / 1e9, 3),
                "limit_gflops": round(float(limit["flops"]) / 1e9, 1),
                "source": limit["source"],
                "floor_ms_per_step": round(1e3 * floor, 4),
                "share_of_limit": None if middle is None else round(floor / middle, 4),
            }
        )
    return rows


def report(
    scores: Sequence[Score], extras: Mapping[str, Any], settings: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything as one JSON document; times in seconds, `_ms` in milliseconds, memory in MiB."""
    found = ratios(scores)
    gpu = str(machine["gpus"][0]) if len(machine["gpus"]) == 1 else ""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": dict(machine),
        "settings": dict(settings),
        "contestants": [_row(score) for score in scores],
        "ratios": [asdict(ratio) for ratio in found],
        "roofline": roofline(scores, extras["count"], extras["peak"], settings["dtype"], gpu),
        "count": extras["count"],
        "largest_pixel_difference": extras["differences"],
    }
    if extras["count"]:
        document["counted"] = _COUNTED
    if not any(score.rival for score in scores):
        document["missing"] = "no comparison: diffusers could not take part"
    return document


def title_of(report: Mapping[str, Any]) -> str:
    """What was drawn."""
    settings = report["settings"]
    size = f"{settings['width']} x {settings['height']}"
    guided = f", guidance {settings['guidance']:g}" if settings["guidance"] > 1 else ""
    return f"{settings['model']}: {size}, {settings['steps']} steps of {settings['sampler']}{guided}"


def machine_of(report: Mapping[str, Any]) -> str:
    """What it was drawn on."""
    machine, packages = report["machine"], report["machine"]["packages"]
    threads = report["settings"]["threads"] or machine["cores"]
    chips = [*machine["gpus"], f"{machine['cpu']}, {threads} thread{'' if threads == 1 else 's'}"]
    tools = [f"{name} {packages[name]}" for name in ("onnxruntime", "torch", "diffusers") if name in packages]
    return "; ".join([*chips, ", ".join(tools)])


def _row(score: Score) -> dict[str, Any]:
    cold, first, picture, step = (_middle(times) for times in (score.cold, score.first, score.picture, score.step))
    return {
        "name": score.name,
        "rival": score.rival,
        "chip": score.chip,
        "facts": score.facts,
        "cold": cold and round(cold, 4),
        "first": first and round(first, 4),
        "picture": picture and round(picture, 5),
        "step_ms": None if step is None else round(1e3 * step, 3),
        "memory_mib": round(score.memory / _MIB) or None,
        "gpu_memory_mib": round(score.gpu_memory / _MIB) or None,
        "rounds": {key: [round(v, 5) for v in getattr(score, key)] for key in ("cold", "picture")},
    }


def _middle(values: Sequence[float]) -> float | None:
    """The median of what was measured; None where nothing was."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else None


def _turned(entrants: Sequence[Any], number: int) -> list[Any]:
    """The row, begun at another place every time."""
    start = number % max(1, len(entrants))
    return [*entrants[start:], *entrants[:start]]


def _environment() -> dict[str, str]:
    return {**os.environ, **_QUIET}


def _as_error(name: str, found: Mapping[str, str]) -> CelebctlError:
    """A worker's error as one of ours: of the same kind where it told one."""
    kinds = {kind.code: kind for kind in CelebctlError.__subclasses__()}
    kind = kinds.get(found["code"], SetupError)
    return kind(f"{name}: {found['problem']}", found["hint"])


def check_counts(rounds: int, cold: int) -> None:
    """Raise UsageError for numbers of rounds that there cannot be."""
    for flag, number, least in (("--rounds", rounds, 1), ("--cold", cold, 0)):
        if not least <= number <= 1000:
            raise UsageError(f"{flag} {number} is out of range", f"use {least} to 1000")
