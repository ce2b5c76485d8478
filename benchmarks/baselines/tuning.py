"""Hyperparameters of each method (rate, share of the budget, batch, data), chosen on people who are never scored.

Coordinate search: all learning rates first, and further ones while the best is the first or the last; then each other
hyperparameter at the best rate, as far as it helps; where one changed, the rates around the best once more. The
best has the highest mean of likeness and prompt fidelity over all prompts of the tuning people.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from celebctl_runtime.files import atomic_write

from .methods import Method
from .training import Hyperparameters

_FURTHER, _FACTOR = 5, 3.0  # how often the list of rates may grow at its end, and by what
FIRST_TUNING = 9000  # seeds of the people that hyperparameters are chosen on
FIRST_SCORED = 60_000  # seeds of the people of the comparison, unused in tuning
CHOICES: dict[str, tuple[Any, ...]] = {"share": (0.5,), "batch": (2, 1), "data": ("script",)}


Score = Callable[[Method, Hyperparameters], tuple[float, float]]  # likeness and prompt fidelity


class _Sweep:
    """Runs of one method, stored under ``key``; every run is stored, so an interrupted sweep continues."""

    def __init__(self, method: Method, file: Path, score: Score, key: str) -> None:
        self.method, self.file, self.score = method, file, score
        self.kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        self.runs: list[dict[str, Any]] = self.kept.setdefault(method.name, {}).setdefault(key, [])

    def value(self, values: Hyperparameters) -> float:
        """The objective: mean of likeness and prompt fidelity."""
        wanted = asdict(values)
        found: dict[str, Any] | None = next((run for run in self.runs if run["hyperparameters"] == wanted), None)
        if found is None:
            likeness, fidelity = self.score(self.method, values)
            found = {"hyperparameters": wanted, "likeness": likeness, "prompt_fidelity": fidelity}
            self.runs.append(found)
            self._write()
            print(
                f"{self.method.name:12s} {describe(values)}: likeness {likeness:.3f}, prompt {fidelity:.3f}", flush=True
            )
        return (float(found["likeness"]) + float(found["prompt_fidelity"])) / 2

    def store_best(self, best: Hyperparameters) -> Hyperparameters:
        """Store the method's best hyperparameters."""
        self.kept[self.method.name]["best"] = asdict(best)
        self._write()
        return best

    def _write(self) -> None:
        atomic_write(self.file, (json.dumps(self.kept, indent=1) + "\n").encode())


def tune_again(method: Method, file: Path, score: Score, weights: str) -> Hyperparameters:
    """For a model trained further since the sweep: search the rates beside the best one, as far as that helps.

    Raises SystemExit when there was no sweep.
    """
    best = tuned(method, file)
    sweep = _Sweep(method, file, score, f"again with {weights}")
    return sweep.store_best(_rate_around(best, sweep.value))


def tune(method: Method, file: Path, score: Score) -> Hyperparameters:
    """Find a method's best hyperparameters, or read what is in ``file``."""
    sweep = _Sweep(method, file, score, "runs")
    value = sweep.value
    tried = list(method.rates)
    best = max((Hyperparameters(rate) for rate in tried), key=value)
    for _ in range(_FURTHER):  # a best rate at the end of the list may not be the best there is
        if min(tried) < best.rate < max(tried):
            break
        tried.append(best.rate * _FACTOR if best.rate == max(tried) else best.rate / _FACTOR)
        best = max(best, Hyperparameters(tried[-1]), key=value)
    for name in method.tunable:
        for choice in CHOICES[name]:
            if name == "batch" and choice < 2 and method.joint:
                break  # prior preservation shows a picture of the class beside each view
            other = replace(best, **{name: choice})
            if value(other) <= value(best):
                break
            best = other
    if best != Hyperparameters(best.rate):
        best = _rate_around(best, value)
    return sweep.store_best(best)


def _rate_around(best: Hyperparameters, value: Callable[[Hyperparameters], float]) -> Hyperparameters:
    """The best rate beside the current one, as far up or down as it helps."""
    for factor in (_FACTOR, 1 / _FACTOR):
        moved = best
        for _ in range(_FURTHER):
            other = replace(moved, rate=moved.rate * factor)
            if value(other) <= value(moved):
                break
            moved = other
        if moved != best:
            return moved
    return best


def tuned(method: Method, file: Path) -> Hyperparameters:
    """The hyperparameters that a sweep found. Ends the program when there was none."""
    kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    best = kept.get(method.name, {}).get("best")
    if best is None:
        raise SystemExit(
            f"{file} has no hyperparameters of {method.name}: run python -m benchmarks.baselines --tune first"
        )
    return Hyperparameters(**best)


def describe(values: Hyperparameters) -> str:
    """Hyperparameters in words."""
    return f"rate {values.rate:g}, {values.share:.0%} of the budget, batch {values.batch}, {values.data} views"
