"""Training a mapper for any model on photos of many people (the paper's joint training, on many more people).

feature -> mapper -> coefficients -> embeddings -> frozen text encoder -> frozen UNet -> denoising loss on that person's
views; only the mapper is trained. Generalisation is measured on a held-out validation split: the loss at fixed views,
noise and timesteps with each person's own embeddings, with another's, and with the average celebrity's. The mapper with
the lowest validation loss is the result. This module does not know where photos and mappers are stored.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from celebctl.learning.config import CLEAN
from celebctl.learning.denoising import Batch, DenoisingLoss, IdentityEmbeddings, TokenEmbeddings
from celebctl.learning.mapper import CoefficientMapper, PretrainedMapper
from celebctl.learning.training import (
    cosine_decay,
    frozen_copy,
    load_checkpoint,
    optimizer_step,
    run_training,
    save_checkpoint,
    set_learning_rate,
    warmup_steps,
)
from celebctl_runtime.errors import InvalidInputError
from celebctl_runtime.progress import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from celebctl.learning.prepared import PreparedModel
    from celebctl_models.checkpoints.diffusion import DiffusionParts

MIN_PEOPLE = 32  # photos of people that a mapper can be trained on
MAX_VALIDATION = 64  # people in the validation split
_VALIDATION_DIVISOR = 8  # one in so many people is held out
_SAME_PERSON = 0.6  # cosine of features above which two photos may show one person, who must not be in both splits
INIT_STEPS = 400  # steps of `distill_initialization`


@dataclass(frozen=True)
class MapperTrainingConfig:
    """Settings of a mapper's training."""

    #: Optimizer steps.
    steps: int = 2400
    #: Views per step, each of another person while there are enough.
    batch_size: int = 16
    #: Peak learning rate of AdamW, after a linear warm-up and before cosine decay to zero.
    learning_rate: float = 2e-3
    #: Weight decay of AdamW.
    weight_decay: float = 0.02
    #: Weight of the mean squared normalized coefficient, which keeps outputs among the celebrities.
    coefficient_l2: float = 3e-4
    #: Validations in a run.
    num_evals: int = 10
    #: Seed of everything random.
    seed: int = 0


@dataclass(frozen=True)
class FaceDataset:
    """Photos of many people, encoded.

    Attributes:
        features: (n, F) unit rows of the recogniser.
        latents: (n, V, 4, h, w), views of each photo, any float dtype and device.
        weights: (n, V, 1, h, w), their loss weights.
    """

    features: Tensor
    latents: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class ValidationLoss:
    """Mean denoising loss on held-out people with the embeddings of the average celebrity, of another person, and
    their own."""

    average: float
    other: float
    own: float

    def __str__(self) -> str:
        return f"{self.own:.4f} own, {self.other:.4f} another person, {self.average:.4f} average celebrity"


class MapperTrainer:
    """Trains a `PretrainedMapper`.

    Attributes:
        train_idx: Indices into the dataset of the people trained on.
        val_idx: Indices of the held-out people.
        init: Initialization of the mapper, "celebrities" or "average".
        first: Validation loss at initialization.
        current: Validation loss last measured.
        best: Lowest validation loss so far, by own embeddings.
        best_state: The mapper's state at ``best``.
    """

    def __init__(
        self,
        model: PreparedModel[DiffusionParts],
        dataset: FaceDataset,
        config: MapperTrainingConfig,
        micro_batch_size: int = 64,
    ) -> None:
        """Split the people, initialize the mapper and validate it. Raises InvalidInputError for too few people."""
        self.model, self.dataset, self.config, self.micro_batch_size = model, dataset, config, micro_batch_size
        self.denoising_loss = DenoisingLoss(model.parts, CLEAN.captions)
        device, features = self.denoising_loss.device, dataset.features.float().cpu()
        self.train_idx, self.val_idx = split_people(features, config.seed)
        self.pretrained = PretrainedMapper.fresh(model.basis.size, config.seed, features.shape[1])
        self.init = distill_initialization(self.pretrained, model, features)
        self.mapper = CoefficientMapper(model.basis, CLEAN, torch.Generator(), features.shape[1])
        self.mapper.init_from_average()
        self.mapper.linear.requires_grad_(False)
        self.mapper.pretrained = self.pretrained
        self.mapper.to(device)
        self.embed = IdentityEmbeddings(model.basis, device)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.pretrained.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.step, self.seconds = 0, 0.0

        self._val_batch = self._make_val_batch()
        average = torch.zeros(1, model.basis.size, device=device)
        self._average_loss = self._val_loss(lambda person: self._embeddings(average.expand(len(person), -1)))
        self.first = self.best = self.current = self.validate()
        self.best_state = frozen_copy(self.pretrained)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.config.steps

    def train(self, checkpoint: Path | None = None, progress: ProgressCallback = ignore_progress) -> PretrainedMapper:
        """Take the remaining steps; returns the mapper with the lowest validation loss, frozen, on the CPU.

        The metrics of ``progress`` are ``loss``, ``validation_loss``, ``average_loss``, ``seconds``, ``eta_seconds``.
        """
        run_training(self, "training the mapper", checkpoint, progress)
        best = PretrainedMapper(self.model.basis.size, features=self.dataset.features.shape[1])
        best.load_state_dict(self.best_state)
        best.fit_code_statistics(self.dataset.features[self.train_idx.to(self.dataset.features.device)].float().cpu())
        return best.eval().requires_grad_(False)

    def train_step(self) -> float:
        """One optimizer step on one view each of ``batch_size`` people; returns the denoising loss."""
        decay = cosine_decay(self.step, self.steps, warmup=warmup_steps(self.steps))
        set_learning_rate(self.optimizer, self.config.learning_rate * decay)
        person = self._sample_people()
        view = torch.randint(self.dataset.latents.shape[1], (len(person),), generator=self.generator)
        batch = self._batch(person, view, self.generator)
        scale = self.denoising_loss.loss_scale
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.denoising_loss.backward(batch, self.token_embeddings, self.micro_batch_size)
        coefficient_l2 = (self.mapper.normalized(self._features(batch.person_index)) ** 2).mean()
        torch.autograd.backward(self.config.coefficient_l2 * coefficient_l2 * scale)
        optimizer_step(self.optimizer, self.pretrained.parameters(), scale, max_norm=1.0)
        self.step += 1
        return loss

    def token_embeddings(self, person_index: Tensor) -> list[Tensor]:
        """Embeddings (b, 2, D) per text encoder of the people ``person_index`` (b,)."""
        return self._embeddings(self.mapper(self._features(person_index)))

    def evaluate(self) -> dict[str, float]:
        """Validate when it is due, and keep the best mapper."""
        if self.step % max(1, self.steps // self.config.num_evals) == 0 or self.step == self.steps:
            self.current = self.validate()
            if self.current.own < self.best.own:
                self.best, self.best_state = self.current, frozen_copy(self.pretrained)
        return {"validation_loss": self.current.own, "average_loss": self.current.average}

    @torch.no_grad()
    def validate(self) -> ValidationLoss:
        """The loss of held-out people with the present mapper."""
        other = torch.zeros(len(self.dataset), dtype=torch.long)
        other[self.val_idx] = self.val_idx.roll(1)
        other = other.to(self.denoising_loss.device)
        own_loss = self._val_loss(self.token_embeddings)
        other_loss = self._val_loss(lambda person: self.token_embeddings(other[person]))
        return ValidationLoss(self._average_loss, other_loss, own_loss)

    def require_improvement(self) -> None:
        """Raise InvalidInputError when the best mapper is no better on held-out people than the average celebrity."""
        if self.best.own >= self.best.average:
            raise InvalidInputError(
                f"the mapper does not help people it has not seen ({self.best}); it is not kept",
                "add photos of more people, or train for more steps", reason="mapper_not_better",
            )  # fmt: skip

    def facts(self) -> dict[str, str | int | float]:
        """Figures of the training, for the mapper file and for display."""
        return {
            "people": len(self.train_idx), "validation_people": len(self.val_idx), "steps": self.step,
            "seed": self.config.seed, "init": self.init, "loss_average": round(self.best.average, 6),
            "loss_other": round(self.best.other, 6), "loss_own": round(self.best.own, 6),
            "model": self.model.parts.name,
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        state = {
            "step": self.step, "mapper": self.pretrained.state_dict(), "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(), "best_state": self.best_state, "best": asdict(self.best),
            "current": asdict(self.current), "seconds": self.seconds,
        }  # fmt: skip
        save_checkpoint(path, self._key(), state)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint. Raises IntegrityError when it is damaged or another run's."""
        state = load_checkpoint(path, self._key())
        self.pretrained.load_state_dict(state["mapper"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.best_state, self.step, self.seconds = state["best_state"], state["step"], state["seconds"]
        self.best, self.current = ValidationLoss(**state["best"]), ValidationLoss(**state["current"])

    def _sample_people(self) -> Tensor:
        """Indices (B,) of people to train on, without repetition while there are enough."""
        count, people = self.config.batch_size, len(self.train_idx)
        orders = [torch.randperm(people, generator=self.generator) for _ in range(-(-count // people))]
        return self.train_idx[torch.cat(orders)[:count]]

    def _batch(self, person: Tensor, view: Tensor, generator: torch.Generator) -> Batch:
        device = self.denoising_loss.device
        x0, weight = (kept[person, view].to(device).float() for kept in (self.dataset.latents, self.dataset.weights))
        return self.denoising_loss.sample_batch(x0, weight, person.to(device), generator)

    def _make_val_batch(self) -> Batch:
        """Two views of every held-out person, always the same."""
        generator = torch.Generator().manual_seed(self.config.seed + 2)
        person = self.val_idx.repeat(2)
        view = torch.randint(self.dataset.latents.shape[1], (len(person),), generator=generator)
        return self._batch(person, view, generator)

    def _val_loss(self, embeddings: TokenEmbeddings) -> float:
        return float(self.denoising_loss.evaluate(self._val_batch, embeddings, self.micro_batch_size).mean())

    def _features(self, person: Tensor) -> Tensor:
        return self.dataset.features[person.to(self.dataset.features.device)].to(person.device).float()

    def _embeddings(self, coefficients: Tensor) -> list[Tensor]:
        return self.embed(self.mapper.split(coefficients))

    def _key(self) -> str:
        """Identifies the run: settings, basis, model, initialization and photos."""
        photos = hashlib.sha256(np.round(self.dataset.features.float().cpu().numpy(), 3).tobytes()).hexdigest()
        return "|".join([repr(self.config), self.model.basis.hash, self.model.parts.table_hash, self.init, photos])


def split_people(features: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the validation split of features (n, 512).

    What may be another photo of a held-out person is in neither. Raises InvalidInputError when too few remain.
    """
    count = len(features)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    val_idx = order[: min(MAX_VALIDATION, count // _VALIDATION_DIVISOR)]
    rest = order[len(val_idx) :]
    nearest = (features[rest] @ features[val_idx].T).amax(1) if len(val_idx) else torch.zeros(len(rest))
    train_idx = rest[nearest < _SAME_PERSON]
    if len(train_idx) + len(val_idx) < MIN_PEOPLE:
        raise InvalidInputError(
            f"{len(train_idx) + len(val_idx)} people are too few to train a mapper; at least {MIN_PEOPLE} are needed",
            "give a folder with photos of more people; several hundred are a good start",
        )
    return train_idx, val_idx


def distill_initialization(mapper: PretrainedMapper, model: PreparedModel[DiffusionParts], features: Tensor) -> str:
    """Initialize a new mapper to the ridge fit to the celebrities' faces, else to the average celebrity.

    features: (n, 512), faces it will see. Returns "celebrities" or "average".
    """
    if model.assets.faces is None:
        with torch.no_grad():
            mapper.up.weight.zero_()
        return "average"
    known, coefficients = model.celebrity_pairs()
    fit = CoefficientMapper(model.basis, CLEAN, torch.Generator(), features.shape[1])
    fit.fit_linear(known, coefficients)
    inputs = torch.cat([torch.as_tensor(known), features])
    with torch.no_grad():
        targets = fit.linear(inputs)
    generator = torch.Generator().manual_seed(0)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(mapper.parameters(), lr=3e-3)
    for step in range(INIT_STEPS):
        set_learning_rate(optimizer, 3e-3 * cosine_decay(step, INIT_STEPS))
        chosen = torch.randint(len(inputs), (256,), generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(((mapper(inputs[chosen]) - targets[chosen]) ** 2).mean())
        optimizer_step(optimizer, mapper.parameters())
    return "celebrities"
