"""A mapper for any checkpoint, trained on nothing but photos of many people (the paper's joint learning, at large).

Feature -> mapper -> coefficients -> token rows -> frozen text encoder -> frozen UNet -> denoising loss on that person's
views, averaged over many people; only the mapper is trained. What is right for people it was not shown is measured on
people held back: the loss at fixed views, noises and timesteps with the rows of the average celebrity, with those of
somebody else and with their own. The state that did best for them is the one that is kept.

What this module does not know: photos, files in folders, where a mapper is kept.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from celebctl.basis.basis import CelebBasis
from celebctl.basis.celebrities import has_faces, load_faces, pairs_for_fit
from celebctl.learning.config import CLEAN
from celebctl.learning.denoising import Batch, DenoisingLoss, IdentityEmbeddings, TokenEmbeddings
from celebctl.learning.mapper import CoefficientMapper, PretrainedMapper
from celebctl_runtime.errors import IntegrityError, InvalidInputError
from celebctl_runtime.files import atomic_write

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

MIN_PEOPLE = 32  # photos of people that a mapper can be trained on
VALIDATION_SIZE = 64  # most people that are held back
_SHARE = 8  # of the people, one in so many is held back
_SAME = 0.6  # cosine of features above which two photos may show one person, who must not be on both sides
INIT_STEPS = 400  # steps in which a fresh mapper is told the start
_KEEP_EVERY = 50  # steps between checkpoints


@dataclass(frozen=True)
class MapperTrainingConfig:
    """steps, people: optimiser steps, and views in each, all of different people while there are enough. rate: of
    AdamW, after a short warm-up with cosine decay to zero. decay: AdamW's weight decay. pull: weight of the mean square
    of the coefficients in celebrity deviations, which keeps answers among the celebrities. looks: how often people held
    back are measured. seed: of everything random."""

    steps: int = 2400
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    coefficient_l2: float = 3e-4
    num_evals: int = 10
    seed: int = 0


@dataclass(frozen=True)
class FaceDataset:
    """Many people as the model sees them. features: (n, 512) unit rows; latents: (n, V, 4, h, w) and weights:
    (n, V, 1, h, w), in any floating type, on any device."""

    features: Tensor
    latents: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class ValidationLoss:
    """Mean denoising loss on the people held back: with the rows of the average celebrity, of another of them, and with
    their own."""

    average: float
    other: float
    own: float

    def __str__(self) -> str:
        return f"{self.own:.4f} as themselves, {self.other:.4f} as another, {self.average:.4f} as the average"


@dataclass(frozen=True)
class TrainStep:
    """News after an optimiser step. loss: of this batch. held: as measured last. seconds, eta: of wall time."""

    step: int
    steps: int
    loss: float
    validation: ValidationLoss
    seconds: float
    eta: float


class MapperTrainer:
    """A mapper in training.

    taught, held: indices into the crowd. start: what it began with, "celebrities" or "average". first, reached: how the
    people held back fared at the start and at best; best: the mapper of that moment.
    """

    def __init__(
        self, denoiser: DenoisingLoss, basis: CelebBasis, crowd: FaceDataset, config: MapperTrainingConfig, together: int = 64
    ) -> None:
        """Split the people, set the mapper to its start, measure it. ``together``: views the network sees at once.

        Raises InvalidInputError when the people are too few.
        """
        self.denoiser, self.basis, self.crowd, self.config, self.together = denoiser, basis, crowd, config, together
        self.step, device = 0, denoiser.device
        self.taught, self.held = split(crowd.features.float().cpu(), config.seed)
        self.fitted = PretrainedMapper.fresh(basis.size, config.seed)
        self.start = distill_initialization(self.fitted, denoiser.parts, basis, crowd.features.float().cpu())
        self.mapper = CoefficientMapper(basis, CLEAN, torch.Generator())
        self.mapper.init_from_average()
        self.mapper.linear.requires_grad_(False)
        self.mapper.fitted = self.fitted
        self.mapper.to(device)
        self.token_rows = IdentityEmbeddings(basis, device)
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            self.fitted.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self._exam = self._set_exam()
        nobody = torch.zeros(1, basis.size, device=device)
        self._average = self._examined(lambda who: self._embed(nobody.expand(len(who), -1)))
        self.first = self.reached = self.now = self.validate()
        self.best = self._state()

    def train(
        self, on_step: Callable[[TrainStep], None] = lambda step: None, checkpoint: Path | None = None
    ) -> PretrainedMapper:
        """Go on to the last step; progress is kept in ``checkpoint`` every few steps and on Ctrl-C.

        Returns the mapper of the moment that was best for the people held back, frozen, on the CPU.
        """
        started, first, steps = time.monotonic(), self.step, self.config.steps
        try:
            while self.step < steps:
                loss = self.train_step()
                if self.step % max(1, steps // self.config.num_evals) == 0 or self.step == steps:
                    self._remember()
                if checkpoint is not None and self.step % _KEEP_EVERY == 0:
                    self.save(checkpoint)
                spent = time.monotonic() - started
                on_step(
                    TrainStep(
                        self.step, steps, loss, self.now, spent, spent / (self.step - first) * (steps - self.step)
                    )
                )
        except KeyboardInterrupt:
            if checkpoint is not None:
                self.save(checkpoint)
            raise
        best = PretrainedMapper(self.basis.size)
        best.load_state_dict(self.best)
        best.fit_code_statistics(self.crowd.features[self.taught.to(self.crowd.features.device)].float().cpu())
        return best.eval().requires_grad_(False)

    def train_step(self) -> float:
        """One optimiser step on a view each of ``people`` people; returns the denoising loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        chosen = self._choose()
        view = torch.randint(self.crowd.latents.shape[1], (len(chosen),), generator=self.generator)
        batch = self._batch(chosen, view, self.generator)
        loudness = self.denoiser.loss_scale
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.denoiser.backward(batch, self._rows, self.together)
        pull = (self.mapper.normalized(self._features(batch.person_index)) ** 2).mean()
        torch.autograd.backward(self.config.coefficient_l2 * pull * loudness)
        for parameter in self.fitted.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(loudness)
        torch.nn.utils.clip_grad_norm_(self.fitted.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return loss

    @torch.no_grad()
    def validate(self) -> ValidationLoss:
        """How the people held back fare with what the mapper says now."""
        own = self._examined(self._rows)
        after = torch.zeros(len(self.crowd), dtype=torch.long)
        after[self.held] = self.held.roll(1)
        after = after.to(self.denoiser.device)
        other = self._examined(lambda who: self._rows(after[who]))
        return ValidationLoss(self._average, other, own)

    def refuse_useless(self) -> None:
        """Raise InvalidInputError when the best mapper is no better for people held back than the average celebrity."""
        if self.reached.own >= self.reached.average:
            raise InvalidInputError(
                f"the mapper does not help people it has not seen ({self.reached}); it is not kept",
                "add photos of more people, or train for more --steps; with --resume the photos are not read again",
            )

    def save(self, path: Path) -> None:
        """Everything needed to go on, atomically."""
        state = {
            "key": self._key(), "step": self.step, "mapper": self.fitted.state_dict(),
            "optimiser": self.optimiser.state_dict(), "generator": self.generator.get_state(),
            "best": self.best, "reached": asdict(self.reached), "now": asdict(self.now),
        }  # fmt: skip
        atomic_write(path, lambda partial: torch.save(state, partial))

    def load(self, path: Path) -> None:
        """Go on from ``save``. Raises IntegrityError when it belongs to something else."""
        again = "run the same command without --resume"
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            same = state["key"] == self._key()
        except Exception as error:  # torch raises anything from EOFError to UnpicklingError
            raise IntegrityError(f"{path.name} cannot be resumed: {error}", again) from error
        if not same:
            raise IntegrityError("what was interrupted had other photos, another model or other settings", again)
        self.fitted.load_state_dict(state["mapper"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.best, self.step = state["best"], state["step"]
        self.reached, self.now = ValidationLoss(**state["reached"]), ValidationLoss(**state["now"])

    def _remember(self) -> None:
        self.now = self.validate()
        if self.now.own < self.reached.own:
            self.reached, self.best = self.now, self._state()

    def _state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.fitted.state_dict().items()}

    def _rate(self) -> float:
        steps = self.config.steps
        warm = min(1.0, (self.step + 1) / min(100, 1 + steps // 10))
        return self.config.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * self.step / steps))

    def _choose(self) -> Tensor:
        """Indices (B,) of people to learn from, each once while there are enough."""
        count = self.config.batch_size
        order = [
            torch.randperm(len(self.taught), generator=self.generator) for _ in range(-(-count // len(self.taught)))
        ]
        return self.taught[torch.cat(order)[:count]]

    def _batch(self, who: Tensor, view: Tensor, generator: torch.Generator) -> Batch:
        device = self.denoiser.device
        x0, weight = (kept[who, view].to(device).float() for kept in (self.crowd.latents, self.crowd.weights))
        return self.denoiser.batch(x0, weight, who.to(device), generator)

    def _set_exam(self) -> Batch:
        """Everybody held back in two views, the same each time."""
        generator = torch.Generator().manual_seed(self.config.seed + 2)
        who = self.held.repeat(2)
        view = torch.randint(self.crowd.latents.shape[1], (len(who),), generator=generator)
        return self._batch(who, view, generator)

    def _examined(self, rows: TokenEmbeddings) -> float:
        return float(self.denoiser.loss(self._exam, rows, self.together).mean())

    def _features(self, who: Tensor) -> Tensor:
        return self.crowd.features[who.to(self.crowd.features.device)].to(who.device).float()

    def _rows(self, who: Tensor) -> list[Tensor]:
        return self._embed(self.mapper(self._features(who)))

    def _embed(self, coefficients: Tensor) -> list[Tensor]:
        return self.token_rows(self.mapper.split(coefficients))

    def _key(self) -> str:
        parts = self.denoiser.parts
        seen = hashlib.sha256(np.round(self.crowd.features.float().cpu().numpy(), 3).tobytes()).hexdigest()
        return "|".join([repr(self.config), self.basis.hash, parts.table_hash, self.start, seen])


def split(features: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of people to learn from, and of people held back, of features (n, 512).

    Nobody is on both sides: what may be another photo of somebody held back is left out. Raises InvalidInputError when
    too few are left.
    """
    count = len(features)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = order[: min(VALIDATION_SIZE, count // _SHARE)]
    known = order[len(held) :]
    alike = (features[known] @ features[held].T).amax(1) if len(held) else torch.zeros(len(known))
    taught = known[alike < _SAME]
    if len(taught) + len(held) < MIN_PEOPLE:
        raise InvalidInputError(
            f"{len(taught) + len(held)} people are too few to train a mapper on; at least {MIN_PEOPLE} are needed",
            "give a folder with photos of more people; several hundred are a good start",
        )
    return taught, held


def distill_initialization(fitted: PretrainedMapper, parts: DiffusionParts, basis: CelebBasis, features: Tensor) -> str:
    """Let a fresh mapper answer what the ridge fit to the celebrities' faces does, else the average for everybody.

    features: (n, 512), faces it will be asked about. Returns "celebrities" or "average".
    """
    if not has_faces(parts):
        with torch.no_grad():
            fitted.up.weight.zero_()
        return "average"
    known, units = pairs_for_fit(parts, basis, load_faces(parts))
    ridge = CoefficientMapper(basis, CLEAN, torch.Generator())
    ridge.fit_linear(known, units)
    asked = torch.cat([torch.as_tensor(known), features])
    with torch.no_grad():
        wanted = ridge.linear(asked)
    generator = torch.Generator().manual_seed(0)
    optimiser: Any = torch.optim.AdamW(fitted.parameters(), lr=3e-3)
    for step in range(INIT_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (0.5 + 0.5 * math.cos(math.pi * step / INIT_STEPS))
        chosen = torch.randint(len(asked), (256,), generator=generator)
        loss = ((fitted(asked[chosen]) - wanted[chosen]) ** 2).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return "celebrities"
