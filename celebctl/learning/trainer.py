"""Learning people: the paper's method, from one photo each to 1024 coefficients each.

Every network is frozen. A small mapper reads the recogniser's feature v of the photo and writes coefficients of the
celeb basis; basis and coefficients give two token embeddings; those stand for the person in captions of the photo; the
denoising loss of the diffusion model (paper, equation 1) says how the mapper must change. Several people share the
mapper and every batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from celebctl.basis.basis import CelebBasis
from celebctl_runtime.errors import IntegrityError, InvalidInputError
from celebctl_runtime.files import atomic_write
from celebctl_runtime.identity import Identity, check_name

from .config import LearnConfig
from .denoising import Batch, DenoisingLoss, IdentityEmbeddings, encode_views
from .initialization import describe_framing, framing_of, initialize, with_model_framing
from .instant import identity_of, provenance_of
from .mapper import CoefficientMapper
from .sampling import draw

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.faces.analysis import Face, FaceAnalyser

CACHED_VIEWS = 48  # augmented views per person, encoded once
LIKENESS_EVALS = 4  # how often likeness is measured on the way
_CHECKPOINT_EVERY = 50  # steps between checkpoints


@dataclass(frozen=True)
class LearnStep:
    """News after an optimiser step. loss: weighted denoising loss of this batch. likeness: mean cosine between the
    photos' features and those of freshly drawn pictures, when it was measured last (None before). seconds, eta: of
    wall time."""

    step: int
    steps: int
    loss: float
    likeness: float | None
    seconds: float
    eta: float | None


def learn_people(
    parts: DiffusionParts,
    analyser: FaceAnalyser,
    photos: Sequence[Image],
    names: Sequence[str],
    config: LearnConfig,
    *,
    basis: CelebBasis,
    micro_batch_size: int = 64,
    tell: Callable[[str], None] = lambda line: None,
    on_step: Callable[[LearnStep], None] = lambda step: None,
    resume_from: Path | None = None,
    checkpoint: Path | None = None,
) -> list[Identity]:
    """Learn one person from each photo, all of them together.

    Args:
        photos: RGB, any size; each shows one face (or the analyser knows which one is meant).
        names: what the people will be called in prompts, one per photo.
        together: most views the network sees at once, for machines with little memory; the result is the same up to
            rounding.
        tell: hears, in one line, that nobody measured where the model draws faces.
        checkpoint: where progress is kept every few steps and on Ctrl-C; ``resume_from`` goes on from such a file and
            arrives at the very numbers an uninterrupted run would have reached.

    Raises:
        InvalidInputError: a photo without a face.
        IntegrityError: ``resume_from`` belongs to other people, another model or other settings.
    """
    names = [check_name(name) for name in names]
    faces = [_one_face(analyser, photo, name) for photo, name in zip(photos, names, strict=True)]
    trainer = PersonTrainer.create(parts, basis, photos, faces, config, micro_batch_size)
    if resume_from is not None:
        trainer.load(resume_from, names)
    if config.canvas == "photo" and config.face_height_min is None and framing_of(parts)[1] == "assumed":
        tell("faces stand as on photographs in general; celebctl basis build --faces finds this model's own places")
    try:
        _training_loop(trainer, analyser, on_step, None if checkpoint is None else lambda: trainer.save(checkpoint, names))
    except KeyboardInterrupt:
        if checkpoint is not None:
            trainer.save(checkpoint, names)
        raise
    return trainer.identities(names)


def _training_loop(
    trainer: PersonTrainer,
    analyser: FaceAnalyser,
    on_step: Callable[[LearnStep], None],
    save: Callable[[], None] | None,
) -> None:
    """All steps that are left."""
    steps, first, before = trainer.config.steps, trainer.step, trainer.seconds
    started, likeness = time.monotonic(), trainer.likeness
    while not trainer.finished:
        loss = trainer.train_step()
        if trainer.step % max(1, steps // LIKENESS_EVALS) == 0:
            likeness = trainer.measure_likeness(analyser)
        trainer.seconds = before + time.monotonic() - started
        if save is not None and trainer.step % _CHECKPOINT_EVERY == 0 and trainer.step < steps:
            save()
        spent = time.monotonic() - started
        left = spent / (trainer.step - first) * (steps - trainer.step)
        on_step(LearnStep(trainer.step, steps, loss, likeness, spent, left))


def _one_face(analyser: FaceAnalyser, photo: Image, name: str) -> Face:
    faces = analyser.analyse(photo)
    if len(faces) != 1:
        found = f"{len(faces)} faces" if faces else "no face"
        raise InvalidInputError(
            f"{found} in the photo of {name}", "use a photo that shows one face, or say which: --face N"
        )
    return faces[0]


@dataclass
class PersonTrainer:
    """People being learned: what is fixed, what is trained, and where the training stands.

    P people, V encoded views each, S coefficients over all text encoders. features: (P, 512); latents: (P, V, 4, h, w);
    weights: (P, V, 1, h, w); start: (P, S) units the prior pulls to; total, mass: running average of coefficients;
    together: how many views the network sees at once; a step is the same however it is cut. seconds: of wall time so
    far.
    """

    parts: DiffusionParts
    basis: CelebBasis
    config: LearnConfig
    mapper: CoefficientMapper
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    denoiser: DenoisingLoss
    features: Tensor
    latents: Tensor
    weights: Tensor
    start: Tensor
    ema_sum: Tensor
    micro_batch_size: int
    ema_weight: float = 0.0
    step: int = 0
    likeness: float | None = None
    seconds: float = 0.0
    embed: IdentityEmbeddings = field(init=False)

    def __post_init__(self) -> None:
        self.embed = IdentityEmbeddings(self.basis, self.features.device)

    @classmethod
    def create(
        cls,
        parts: DiffusionParts,
        basis: CelebBasis,
        photos: Sequence[Image],
        faces: Sequence[Face],
        config: LearnConfig,
        together: int,
    ) -> PersonTrainer:
        """Encode the views, set the mapper to its start, and stand at step 0."""
        begun = time.monotonic()
        device, config = next(parts.unet.parameters()).device, with_model_framing(config, parts)
        generator = torch.Generator().manual_seed(config.seed)
        mapper = CoefficientMapper(basis, config, generator)
        initialize(mapper, parts, basis)
        mapper = mapper.to(device)
        features = torch.as_tensor(np.stack([face.feature for face in faces])).to(device)
        latents, weights = _encoded_views(parts, photos, faces, config, generator)
        with torch.no_grad():
            start = mapper.normalized(features)
        trainer = cls(
            parts=parts, basis=basis, config=config, mapper=mapper,
            optimiser=torch.optim.AdamW(
                [p for p in mapper.parameters() if p.requires_grad],
                lr=config.learning_rate, weight_decay=config.weight_decay,
            ),
            generator=generator,
            denoiser=DenoisingLoss(parts, config.captions, config.max_noise_sigma),
            features=features, latents=latents, weights=weights, start=start,
            ema_sum=torch.zeros_like(mapper.scaled(start)), micro_batch_size=together,
        )  # fmt: skip
        trainer.seconds = time.monotonic() - begun
        return trainer

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.step >= self.config.steps

    def train_step(self) -> float:
        """One optimiser step over ``views`` views of everybody; returns the denoising loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        batch = self._batch()
        self.optimiser.zero_grad(set_to_none=True)
        loudness = self.denoiser.loss_scale
        total = self.denoiser.backward(batch, self._rows, self.micro_batch_size)
        pull = ((self.mapper.normalized(self.features) - self.start) ** 2).mean()
        torch.autograd.backward(self.config.init_l2 * pull * loudness)
        for parameter in self.mapper.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(loudness)
        self.optimiser.step()
        self.step += 1
        self._average()
        return total

    def _rows(self, who: Tensor) -> list[Tensor]:
        """Token rows (b, 2, D) per text encoder of the people ``who`` (b,)."""
        return [rows[who] for rows in self.embed(self.mapper.split(self.mapper(self.features)))]

    def _learning_rate(self) -> float:
        share = self.step / self.config.steps
        return self.config.learning_rate * (0.5 + 0.5 * math.cos(math.pi * share) if self.config.anneal else 1.0)

    def _batch(self) -> Batch:
        """``views`` views of everybody."""
        people, kept = self.latents.shape[:2]
        who = torch.arange(people).repeat_interleave(self.config.views)
        view = torch.randint(kept, (len(who),), generator=self.generator)
        at = who.to(self.latents.device)
        return self.denoiser.batch(self.latents[who, view], self.weights[who, view], at, self.generator)

    @torch.no_grad()
    def _average(self) -> None:
        """Keep the running average that becomes the result. Both kinds divide by their true mass, so neither remembers
        where it was started (the release's average starts from noise of norm 22.6 and never quite forgets it)."""
        coefficients = self.mapper(self.features)
        if self.config.average == "momentum":
            keep = 0.99**self.config.views
            self.ema_sum, self.ema_weight = keep * self.ema_sum + (1.0 - keep) * coefficients, keep * self.ema_weight + (1.0 - keep)
        elif self.step > self.config.steps // 2:
            self.ema_sum, self.ema_weight = self.ema_sum + coefficients, self.ema_weight + 1.0

    @torch.no_grad()
    def coefficients(self) -> Tensor:
        """The people as they stand, (P, S)."""
        return self.ema_sum / self.ema_weight if self.ema_weight else self.mapper(self.features)

    @torch.no_grad()
    def measure_likeness(self, analyser: FaceAnalyser) -> float | None:
        """Draw everybody once and compare with the photos: the mean cosine of those whose face is found."""
        from PIL import Image

        rows = zip(*self.embed(self.mapper.split(self.coefficients())), strict=True)
        people = {f"p{i}": row for i, row in enumerate(rows)}
        steps = max(4, int(self.parts.card.defaults["steps"]) // 2)
        drawn = draw(
            self.parts,
            [f"a photo of <{name}>" for name in people],
            [self.config.seed] * len(people),
            people,
            steps=steps,
        )
        cosines: list[float] = []
        for pixels, feature in zip(drawn, self.features.cpu().numpy(), strict=True):
            found = analyser.analyse(Image.fromarray(pixels))
            if found:
                cosines.append(float(max(found, key=lambda face: face.size).feature @ feature))
        self.likeness = sum(cosines) / len(cosines) if cosines else None
        return self.likeness

    def identities(self, names: Sequence[str]) -> list[Identity]:
        """What goes into the library."""
        made: list[Identity] = []
        spread = self.mapper.spread.cpu().numpy()
        for name, flat in zip(names, self.coefficients().float().cpu().numpy(), strict=True):
            units = np.divide(flat, spread, out=np.zeros_like(flat), where=spread > 0)[spread > 0]
            told = provenance_of(self.parts, self.config, len(names), units)
            told |= {"torch": str(torch.__version__), "steps": str(self.step), "coefficients": str(flat.size)}
            if self.likeness is not None:
                told |= {"likeness": f"{self.likeness:.3f}", "likeness_measure": "mean cosine, recogniser of learning"}
            told["seconds"] = f"{self.seconds / len(names):.2f}"  # of the call, divided among its people
            told["framing"] = describe_framing(self.config, self.parts)
            made.append(identity_of(name, flat, self.parts, self.basis, told))
        return made

    def save(self, path: Path, names: Sequence[str]) -> None:
        """Everything needed to go on, atomically."""
        state = {
            "key": self._key(names), "step": self.step, "mapper": self.mapper.state_dict(),
            "optimiser": self.optimiser.state_dict(), "generator": self.generator.get_state(),
            "total": self.ema_sum, "mass": self.ema_weight, "likeness": self.likeness,
            "seconds": self.seconds,
        }  # fmt: skip
        atomic_write(path, lambda partial: torch.save(state, partial))

    def load(self, path: Path, names: Sequence[str]) -> None:
        """Go on from ``save``. Raises IntegrityError when it belongs to something else."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.features.device, weights_only=True)
            same = state["key"] == self._key(names)
        except Exception as error:  # torch raises anything from EOFError to UnpicklingError
            raise IntegrityError(
                f"{path.name} cannot be resumed: {error}", "run the same command without --resume"
            ) from error
        if not same:
            raise IntegrityError(
                "what was interrupted had other photos, names or settings", "run the same command without --resume"
            )
        self.mapper.load_state_dict(state["mapper"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        self.seconds += state["seconds"]
        self.ema_sum, self.ema_weight = state["total"], state["mass"]
        self.step, self.likeness = state["step"], state["likeness"]

    def _key(self, names: Sequence[str]) -> str:
        seen = np.round(self.features.cpu().numpy(), 3).tobytes().hex()[:64]
        return "|".join([*names, repr(self.config), self.basis.hash, self.parts.table_hash, seen])


@torch.no_grad()
def _encoded_views(
    parts: DiffusionParts,
    photos: Sequence[Image],
    faces: Sequence[Face],
    config: LearnConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Latents (P, V, 4, h, w) and weights (P, V, 1, h, w) of everybody's views; the photo is never needed again."""
    count = CACHED_VIEWS if config.steps else 1
    encoded = [
        encode_views(parts, photo, face, count, config, generator) for photo, face in zip(photos, faces, strict=True)
    ]
    latents, weights = zip(*encoded, strict=True)
    return torch.stack(latents), torch.stack(weights)
