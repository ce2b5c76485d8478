"""Learning people from one photo each (paper, section 3.3): the training step and its loop.

Everything pretrained is frozen: recogniser, text encoders, UNet, autoencoder. A small mapper M turns the recogniser's
feature v of a photo into coefficients of the celeb basis, the basis turns those into the embeddings of two tokens, and
the tokens stand for the person in captions of views of the photo:

    coefficients = M(v)                                  mapper.py
    embedding    = mean + coefficients x components      equation 3, denoising.IdentityEmbeddings
    loss         = E ||eps - eps_theta(z_t, t, c)||^2    equation 1, denoising.DenoisingLoss

Only M is trained, for all people of a call together. What is kept of a person are the coefficients.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from celebctl_models.faces.analysis import largest_face
from celebctl_runtime.errors import NotFoundError
from celebctl_runtime.identity import Identity, check_name
from celebctl_runtime.progress import ProgressCallback, ignore_progress

from .config import LearnConfig
from .denoising import Batch, DenoisingLoss, IdentityEmbeddings, encode_views
from .initialization import describe_framing, initialize, with_model_framing
from .instant import base_provenance, identity_from_coefficients
from .mapper import CoefficientMapper
from .sampling import draw
from .training import (
    TrainerOptions,
    cosine_decay,
    load_checkpoint,
    optimizer_step,
    run_training,
    save_checkpoint,
    set_learning_rate,
)

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.faces.analysis import FaceAnalyser

    from .prepared import PreparedModel
    from .subject import Subject

CACHED_VIEWS = 48  # augmented views per person, encoded once
NUM_EVALS = 4  # likeness measurements in a run
EMA_DECAY = 0.99  # per sample, as the release

_log = logging.getLogger(__name__)


def learn_people(
    model: PreparedModel[DiffusionParts],
    subjects: Sequence[Subject],
    config: LearnConfig,
    analyser: FaceAnalyser | None = None,
    options: TrainerOptions | None = None,
    progress: ProgressCallback = ignore_progress,
) -> list[Identity]:
    """Learn one identity per subject, all of them together.

    Args:
        model: The prepared model; its basis must be of the kind ``config.names`` asks for.
        subjects: Analysed photos, with the names of the people.
        config: Settings of the method.
        analyser: Measures the likeness of generated images during training; None measures none.
        options: Memory use and checkpoint.
        progress: Receives the metrics ``loss``, ``likeness`` (mean cosine between the features of the photos and of
            generated images, once measured), ``seconds`` and ``eta_seconds``.

    Returns:
        Identities in the order of ``subjects``.

    Raises:
        NotFoundError: ``options.resume`` without a checkpoint.
        IntegrityError: The checkpoint belongs to other people, another model or other settings.
    """
    options = options or TrainerOptions()
    if options.resume and (options.checkpoint is None or not options.checkpoint.is_file()):
        raise NotFoundError(
            "there is no checkpoint to resume from", "start again without resuming", reason="no_checkpoint"
        )
    if config.canvas == "photo" and config.face_height_min is None and model.framing[1] == "assumed":
        _log.info("faces are placed as in photographs; measuring the celebrities' faces finds this model's framing")
    trainer = PersonTrainer(model, subjects, config, analyser, options.micro_batch_size)
    if options.resume and options.checkpoint is not None:
        trainer.load(options.checkpoint)
    run_training(trainer, "learning", options.checkpoint, progress)
    return trainer.identities()


class PersonTrainer:
    """Trains a mapper for P people on V cached views each.

    S is the number of coefficients of all text encoders together.

    Attributes:
        mapper: Features to coefficients; its trainable part is what the optimizer updates.
        features: (P, F), the recogniser's unit features of the photos.
        latents: (P, V, C, h, w), encoded views.
        weights: (P, V, 1, h, w), loss weights of the views.
        initial: (P, S), normalized coefficients at initialization.
        ema_sum: (P, S), weighted sum of the coefficients of past steps.
        ema_weight: Sum of those weights.
        likeness: Mean cosine to the photos as last measured, None before.
        step: Optimizer steps taken.
        seconds: Wall time so far, over all runs.
    """

    def __init__(
        self,
        model: PreparedModel[DiffusionParts],
        subjects: Sequence[Subject],
        config: LearnConfig,
        analyser: FaceAnalyser | None = None,
        micro_batch_size: int = 64,
    ) -> None:
        started = time.monotonic()
        self.model, self.analyser, self.micro_batch_size = model, analyser, micro_batch_size
        self.names = [check_name(subject.name) for subject in subjects]
        self.config = config = with_model_framing(config, model)
        self.denoising_loss = DenoisingLoss(model.parts, config.captions, config.max_noise_sigma)
        device = self.denoising_loss.device
        self.embed = IdentityEmbeddings(model.basis, device)
        self.generator = torch.Generator().manual_seed(config.seed)

        features = np.stack([subject.face.feature for subject in subjects])
        mapper = CoefficientMapper(model.basis, config, self.generator, features.shape[1])
        initialize(mapper, model)
        self.mapper = mapper.to(device)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            [parameter for parameter in mapper.parameters() if parameter.requires_grad],
            lr=config.learning_rate, weight_decay=config.weight_decay,
        )  # fmt: skip

        self.features = torch.as_tensor(features).to(device)
        self.latents, self.weights = _encode_subjects(model.parts, subjects, config, self.generator)
        with torch.no_grad():
            self.initial = self.mapper.normalized(self.features)
            self.ema_sum, self.ema_weight = torch.zeros_like(self.mapper.scaled(self.initial)), 0.0
        self.likeness: float | None = None
        self.step, self.seconds = 0, time.monotonic() - started

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.config.steps

    def train_step(self) -> float:
        """One optimizer step on ``config.views`` views of every person; returns the denoising loss."""
        scale = self.denoising_loss.loss_scale
        decay = cosine_decay(self.step, self.steps) if self.config.anneal else 1.0
        set_learning_rate(self.optimizer, self.config.learning_rate * decay)
        batch = self.sample_batch()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.denoising_loss.backward(batch, self.token_embeddings, self.micro_batch_size)
        init_l2 = ((self.mapper.normalized(self.features) - self.initial) ** 2).mean()
        torch.autograd.backward(self.config.init_l2 * init_l2 * scale)
        optimizer_step(self.optimizer, self.mapper.parameters(), scale)
        self.step += 1
        self._average_coefficients()
        return loss

    def token_embeddings(self, person_index: Tensor) -> list[Tensor]:
        """Embeddings (b, 2, D) per text encoder of the people ``person_index`` (b,) (equation 3)."""
        coefficients = self.mapper.split(self.mapper(self.features))
        return [embeddings[person_index] for embeddings in self.embed(coefficients)]

    def sample_batch(self) -> Batch:
        """Random cached views, each with a random timestep, noise and caption."""
        people, cached = self.latents.shape[:2]
        person = torch.arange(people).repeat_interleave(self.config.views)
        view = torch.randint(cached, (len(person),), generator=self.generator)
        x0, weight = self.latents[person, view], self.weights[person, view]
        return self.denoising_loss.sample_batch(x0, weight, person.to(x0.device), self.generator)

    @torch.no_grad()
    def coefficients(self) -> Tensor:
        """Averaged coefficients (P, S), in units of the token table."""
        return self.ema_sum / self.ema_weight if self.ema_weight else self.mapper(self.features)

    @torch.no_grad()
    def _average_coefficients(self) -> None:
        """Update the average; dividing by ``ema_weight`` debiases it (the release's starts from noise instead)."""
        if self.config.average == "momentum":
            keep, new = EMA_DECAY**self.config.views, 1.0 - EMA_DECAY**self.config.views
        elif self.step > self.steps // 2:
            keep, new = 1.0, 1.0
        else:
            return
        self.ema_sum = keep * self.ema_sum + new * self.mapper(self.features)
        self.ema_weight = keep * self.ema_weight + new

    def evaluate(self) -> dict[str, float]:
        """The likeness, measured every quarter of the run."""
        if self.step % max(1, self.steps // NUM_EVALS) == 0:
            self.measure_likeness()
        return {} if self.likeness is None else {"likeness": self.likeness}

    @torch.no_grad()
    def measure_likeness(self) -> float | None:
        """Mean cosine between the photos' features and those of one generated image each; None without a face."""
        from PIL import Image

        if self.analyser is None:
            return None
        embeddings = zip(*self.embed(self.mapper.split(self.coefficients())), strict=True)
        people = {f"p{index}": rows for index, rows in enumerate(embeddings)}
        steps = max(4, int(self.model.parts.card.defaults["steps"]) // 2)
        prompts, seeds = [f"a photo of <{name}>" for name in people], [self.config.seed] * len(people)
        cosines: list[float] = []
        drawn = draw(self.model.parts, prompts, seeds, people, steps=steps)
        for pixels, feature in zip(drawn, self.features.cpu().numpy(), strict=True):
            faces = self.analyser.analyse(Image.fromarray(pixels))
            if faces:
                cosines.append(float(largest_face(faces).feature @ feature))
        self.likeness = sum(cosines) / len(cosines) if cosines else None
        return self.likeness

    def identities(self) -> list[Identity]:
        """The people as identities, with the provenance of this run."""
        spread = self.mapper.spread.cpu().numpy()
        made: list[Identity] = []
        for name, flat in zip(self.names, self.coefficients().float().cpu().numpy(), strict=True):
            normalized = np.divide(flat, spread, out=np.zeros_like(flat), where=spread > 0)[spread > 0]
            provenance = base_provenance(self.model, self.config, len(self.names), normalized) | {
                "torch": str(torch.__version__), "steps": str(self.step), "coefficients": str(flat.size),
                "framing": describe_framing(self.config, self.model), "clip_skip": str(self.model.parts.context_layer),
                "prediction": self.model.parts.prediction_type,
                "seconds": f"{self.seconds / len(self.names):.2f}",  # of the call, divided among its people
            }  # fmt: skip
            if self.likeness is not None:
                provenance["likeness"] = f"{self.likeness:.3f}"
            made.append(identity_from_coefficients(name, flat, self.model, provenance))
        return made

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        state = {
            "step": self.step, "mapper": self.mapper.state_dict(), "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(), "ema_sum": self.ema_sum, "ema_weight": self.ema_weight,
            "likeness": self.likeness, "seconds": self.seconds,
        }  # fmt: skip
        save_checkpoint(path, self._key(), state)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint. Raises IntegrityError when it is damaged or another run's."""
        state = load_checkpoint(path, self._key(), self.features.device)
        self.mapper.load_state_dict(state["mapper"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.likeness = state["step"], state["likeness"]
        self.ema_sum, self.ema_weight = state["ema_sum"], state["ema_weight"]
        self.seconds += state["seconds"]

    def _key(self) -> str:
        """Identifies the run: people, settings, basis and model."""
        photos = np.round(self.features.cpu().numpy(), 3).tobytes().hex()[:64]
        parts = self.model.parts
        model = self.model.basis.hash, parts.table_hash, repr(parts.scheduler_config), str(parts.context_layer)
        return "|".join([*self.names, repr(self.config), *model, parts.vae_source, photos])


@torch.no_grad()
def _encode_subjects(
    parts: DiffusionParts, subjects: Sequence[Subject], config: LearnConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents (P, V, C, h, w) and weights (P, V, 1, h, w) of all views; the photos are not needed again."""
    count = CACHED_VIEWS if config.steps else 1
    encoded = [encode_views(parts, one.image, one.face, count, config, generator) for one in subjects]
    latents, weights = zip(*encoded, strict=True)
    return torch.stack(latents), torch.stack(weights)
