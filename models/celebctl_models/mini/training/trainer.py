"""What every training stage of mini shares: a time box, checkpoints, progress lines, moving averages, a schedule.

A stage runs until its minutes are up, not for a number of steps, so that any machine gives its best in the time it is
granted; a checkpoint every two minutes means an interrupted stage loses at most that.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainingContext:
    """Where and how a training runs. ``folder`` holds data and checkpoints."""

    folder: Path
    device: torch.device
    seed: int = 0
    compiled: bool = False

    def path(self, name: str) -> Path:
        """A file or folder of the work folder, which is created when missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def say(self, text: str) -> None:
        """Print one line with the time of day on stderr."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def compile(self, *networks: nn.Module) -> None:
        """Fuse a network's small operations where asked to; needs a C++ compiler, and a minute before the first step.

        Upsamplers stay as they are: compiled for a CPU by torch 2.13, the gradient that goes back through one is zero.
        """
        for network in networks if self.compiled else ():
            for part in network.modules():
                if type(part).__name__ == "Upsample2D":
                    part.forward = cast(Any, torch.compiler).disable(part.forward)
            cast(Any, network).compile()  # in place: the names in the state dict stay

    def autocast(self) -> torch.autocast:
        """bfloat16 autocast on the device of the run."""
        return torch.autocast(self.device.type, torch.bfloat16)


@dataclass
class ExponentialMovingAverage:
    """Exponential moving average of a network's floating-point state, with warm-up so early weights fade quickly."""

    decay: float
    shadow: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    updates: int = 0

    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's present state."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for key, value in network.state_dict().items():
                if not value.is_floating_point():
                    continue
                if key in self.shadow:
                    self.shadow[key].lerp_(value.detach(), 1.0 - decay)
                else:
                    self.shadow[key] = value.detach().clone()

    def copy_to(self, network: nn.Module) -> None:
        """Load the average into a network."""
        network.load_state_dict(self.shadow, strict=False)


@dataclass
class TimeBox:
    """Learning rate as a function of the time spent: short warm-up, plateau, cosine to zero over the last half."""

    minutes: float
    spent: float = 0.0  # seconds, over all runs
    steps: int = 0

    @property
    def share(self) -> float:
        """Share of the time that is spent, in [0, 1]."""
        return min(1.0, self.spent / (60.0 * self.minutes))

    def rate(self, peak: float) -> float:
        """The learning rate now, given its peak."""
        warm = min(1.0, (self.steps + 1) / 200)
        anneal = 1.0 if self.share < 0.5 else 0.5 + 0.5 * math.cos(math.pi * (self.share - 0.5) * 2)
        return peak * warm * max(anneal, 0.01)


@dataclass(frozen=True)
class _Checkpoint:
    """Everything a stage needs to go on, in one file."""

    path: Path
    networks: dict[str, nn.Module]
    optimiser: torch.optim.Optimizer
    averages: dict[str, ExponentialMovingAverage]
    box: TimeBox

    def resume(self, device: torch.device) -> bool:
        """Load the file when it exists; returns whether it did."""
        if not self.path.exists():
            return False
        state = torch.load(self.path, map_location=device, weights_only=True)
        for key, network in self.networks.items():
            network.load_state_dict(state["networks"][key])
        self.optimiser.load_state_dict(state["optimiser"])
        self.box.spent, self.box.steps = state["spent"], state["steps"]
        for key, average in self.averages.items():
            average.shadow, average.updates = state["averages"][key]["shadow"], state["averages"][key]["updates"]
        return True

    def save(self) -> None:
        """Write the file atomically: a half-written checkpoint never replaces a complete one."""
        partial = self.path.with_suffix(".partial")
        torch.save({
            "networks": {key: network.state_dict() for key, network in self.networks.items()},
            "optimiser": self.optimiser.state_dict(), "spent": self.box.spent, "steps": self.box.steps,
            "averages": {key: {"shadow": a.shadow, "updates": a.updates} for key, a in self.averages.items()},
        }, partial)  # fmt: skip
        partial.replace(self.path)


def run_stage(
    run: TrainingContext,
    stage: tuple[str, float],
    networks: dict[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    step: Callable[[TimeBox], dict[str, float]],
    averages: dict[str, ExponentialMovingAverage] | None = None,
) -> None:
    """Train until the minutes are spent, resuming from ``<name>.pt`` if it is there.

    stage: its name and its minutes. ``step`` does forward and backward on one batch and returns figures to print;
    the optimiser step, the schedule, the averages and the checkpoints happen here. Each parameter group keeps its own
    peak rate under "peak".
    """
    name, minutes = stage
    box, averages = TimeBox(minutes), averages or {}
    checkpoint = _Checkpoint(run.path(f"{name}.pt"), networks, optimiser, averages, box)
    if checkpoint.resume(run.device):
        run.say(f"{name}: resumed at {box.spent / 60:.1f} of {minutes:.1f} min, step {box.steps}")
    for group in optimiser.param_groups:
        group.setdefault("peak", group["lr"])
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    if box.share >= 1.0:
        return  # its file stays as it is: another process may be training on from it
    printed = saved = time.monotonic()
    torch.manual_seed(run.seed + box.steps)  # pyright: ignore[reportUnknownMemberType]
    while box.share < 1.0:
        begun = time.monotonic()
        for group in optimiser.param_groups:
            group["lr"] = box.rate(group["peak"])
        optimiser.zero_grad(set_to_none=True)
        figures = step(box)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        for key, average in averages.items():
            average.update(networks[key])
        now = time.monotonic()
        # a step that takes far longer than usual was held up (a suspended machine, a compiler): it does not count
        pace = box.spent / box.steps if box.steps > 20 else math.inf
        box.spent, box.steps = box.spent + min(now - begun, 8 * pace), box.steps + 1
        if now - printed > 20:
            printed = now
            shown = "  ".join(f"{k} {v:.4f}" for k, v in figures.items())
            run.say(f"{name}: {box.spent / 60:5.1f}/{minutes:.1f} min  step {box.steps}  {shown}")
        if now - saved > 120:
            saved = now
            checkpoint.save()
    checkpoint.save()
    run.say(f"{name}: done after {box.steps} steps, {box.spent / 60:.1f} min")


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled index batches over ``count`` items."""
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
