"""What both trainers share: the training loop, the learning-rate schedule, the scaled step and checkpoints.

`PersonTrainer` (learning/trainer.py) and `MapperTrainer` (mapper_training/trainer.py) differ in what they train; the
loop around a step is the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from celebctl_runtime.errors import IntegrityError
from celebctl_runtime.files import atomic_write
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from torch.optim import Optimizer

CHECKPOINT_EVERY = 50  # steps


@dataclass(frozen=True)
class TrainerOptions:
    """How a trainer runs, which does not change its result beyond rounding.

    Attributes:
        micro_batch_size: Views per forward pass; gradients are accumulated over the batch.
        checkpoint: File that receives the state every 50 steps and on Ctrl-C.
        resume: Continue from ``checkpoint``: on a CPU to exactly the numbers of an uninterrupted run, on a GPU to
            similar ones, because its kernels add in any order.
    """

    micro_batch_size: int = 64
    checkpoint: Path | None = None
    resume: bool = False


class Trainer(Protocol):
    """What `run_training` needs. step: steps taken. seconds: wall time so far, over all runs."""

    step: int
    seconds: float

    @property
    def steps(self) -> int:
        """Steps in all."""
        ...

    def train_step(self) -> float:
        """One optimizer step; returns the loss."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Metrics of the present state, by name."""
        ...

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        ...


def run_training(
    trainer: Trainer, stage: str, checkpoint: Path | None = None, progress: ProgressCallback = ignore_progress
) -> None:
    """Take all remaining steps; metrics are ``loss``, ``seconds``, ``eta_seconds`` and those of ``evaluate``."""
    first, earlier, started = trainer.step, trainer.seconds, time.monotonic()
    try:
        while trainer.step < trainer.steps:
            loss = trainer.train_step()
            measured = trainer.evaluate()
            seconds = time.monotonic() - started
            trainer.seconds = earlier + seconds
            if checkpoint is not None and trainer.step % CHECKPOINT_EVERY == 0 and trainer.step < trainer.steps:
                trainer.save(checkpoint)
            eta = seconds / (trainer.step - first) * (trainer.steps - trainer.step)
            metrics = {"loss": loss, **measured, "seconds": seconds, "eta_seconds": eta}
            progress(Progress(stage, trainer.step, trainer.steps, metrics))
    except KeyboardInterrupt:
        if checkpoint is not None:
            trainer.save(checkpoint)
        raise


def cosine_decay(step: int, steps: int, *, warmup: int = 0) -> float:
    """Factor on the learning rate at ``step``: linear warm-up over ``warmup`` steps times cosine decay to zero."""
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return warm * (0.5 + 0.5 * math.cos(math.pi * (step / steps)))


def warmup_steps(steps: int) -> int:
    """Length of the warm-up of a mapper's training."""
    return min(100, 1 + steps // 10)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def optimizer_step(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], loss_scale: float = 1.0, max_norm: float | None = None
) -> None:
    """One step on gradients of the loss times ``loss_scale``, clipped to ``max_norm`` after unscaling."""
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(loss_scale)
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


def save_checkpoint(path: Path, key: str, state: Mapping[str, Any]) -> None:
    """Write a training state atomically. key: identifies the run; a checkpoint of another key is not resumed."""
    atomic_write(path, lambda partial: torch.save({"key": key, **state}, partial))


def load_checkpoint(path: Path, key: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state written by `save_checkpoint`. Raises IntegrityError for a damaged file or another run's."""
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        found = state["key"]
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError
        raise IntegrityError(
            f"the checkpoint {path.name} cannot be read: {error}", "start again without resuming",
            reason="checkpoint_damaged", path=path,
        ) from error  # fmt: skip
    if found != key:
        raise IntegrityError(
            f"the checkpoint {path.name} belongs to other photos, another model or other settings",
            "start again without resuming", reason="checkpoint_mismatch", path=path,
        )  # fmt: skip
    return state


def frozen_copy(module: nn.Module) -> dict[str, Tensor]:
    """The module's state on the CPU, independent of further training."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
