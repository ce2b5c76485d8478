"""Tuning of each method's hyperparameters (rate, share of the budget, batch, data), on people who are never scored.

Coordinate search: all learning rates first, and more while the best is the first or the last; then each other
hyperparameter at the best rate, as long as it helps; if one changed, the rates around the best again. The objective is
the mean of likeness and prompt fidelity over all prompts of the tuning people.
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

_MORE_RATES, _FACTOR = 5, 3.0  # how often the list of rates may be extended, and the factor
FIRST_TUNING = 9000  # seeds of the people that hyperparameters are chosen on
FIRST_SCORED = 60_000  # seeds of the people of the comparison, unused in tuning
CHOICES: dict[str, tuple[Any, ...]] = {"share": (0.5,), "batch": (2, 1), "data": ("script",)}


Score = Callable[[Method, Hyperparameters], tuple[float, float]]  # likeness and prompt fidelity


class _Sweep:
    """Runs of one method, stored under ``key`` after each run, so that an interrupted sweep continues."""

    def __init__(self, method: Method, file: Path, score: Score, key: str) -> None:
        self.method, self.file, self.score = method, file, score
        self.results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        self.runs: list[dict[str, Any]] = self.results.setdefault(method.name, {}).setdefault(key, [])

    def value(self, values: Hyperparameters) -> float:
        """The objective: mean of likeness and prompt fidelity."""
        fields = asdict(values)
        run: dict[str, Any] | None = next((run for run in self.runs if run["hyperparameters"] == fields), None)
        if run is None:
            likeness, fidelity = self.score(self.method, values)
            run = {"hyperparameters": fields, "likeness": likeness, "prompt_fidelity": fidelity}
            self.runs.append(run)
            self._write()
            print(
                f"{self.method.name:12s} {describe(values)}: likeness {likeness:.3f}, prompt {fidelity:.3f}", flush=True
            )
        return (float(run["likeness"]) + float(run["prompt_fidelity"])) / 2

    def store_best(self, best: Hyperparameters) -> Hyperparameters:
        """Store the method's best hyperparameters and return them."""
        self.results[self.method.name]["best"] = asdict(best)
        self._write()
        return best

    def _write(self) -> None:
        atomic_write(self.file, (json.dumps(self.results, indent=1) + "\n").encode())


def tune_again(method: Method, file: Path, score: Score, weights: str) -> Hyperparameters:
    """Search the rates around the best one, for a model that was trained more after the sweep.

    Raises SystemExit when there was no sweep.
    """
    best = tuned(method, file)
    sweep = _Sweep(method, file, score, f"again with {weights}")
    return sweep.store_best(_rate_around(best, sweep.value))


def tune(method: Method, file: Path, score: Score) -> Hyperparameters:
    """Find a method's best hyperparameters. Runs in ``file`` are not repeated."""
    sweep = _Sweep(method, file, score, "runs")
    value = sweep.value
    tried = list(method.rates)
    best = max((Hyperparameters(rate) for rate in tried), key=value)
    for _ in range(_MORE_RATES):  # a best rate at the end of the list may not be the optimum
        if min(tried) < best.rate < max(tried):
            break
        tried.append(best.rate * _FACTOR if best.rate == max(tried) else best.rate / _FACTOR)
        best = max(best, Hyperparameters(tried[-1]), key=value)
    for name in method.tunable:
        for choice in CHOICES[name]:
            if name == "batch" and choice < 2 and method.joint:
                break  # prior preservation needs a class image beside each view
            other = replace(best, **{name: choice})
            if value(other) <= value(best):
                break
            best = other
    if best != Hyperparameters(best.rate):
        best = _rate_around(best, value)
    return sweep.store_best(best)


def _rate_around(best: Hyperparameters, value: Callable[[Hyperparameters], float]) -> Hyperparameters:
    """The best rate in steps of ``_FACTOR`` up or down from the current one."""
    for factor in (_FACTOR, 1 / _FACTOR):
        better = best
        for _ in range(_MORE_RATES):
            other = replace(better, rate=better.rate * factor)
            if value(other) <= value(better):
                break
            better = other
        if better != best:
            return better
    return best


def tuned(method: Method, file: Path) -> Hyperparameters:
    """The hyperparameters that a sweep found. Raises SystemExit when there was none."""
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    best = results.get(method.name, {}).get("best")
    if best is None:
        raise SystemExit(
            f"{file} has no hyperparameters of {method.name}: run python -m benchmarks.baselines --tune first"
        )
    return Hyperparameters(**best)


def describe(values: Hyperparameters) -> str:
    """Hyperparameters as text."""
    return f"rate {values.rate:g}, {values.share:.0%} of the budget, batch {values.batch}, {values.data} views"
