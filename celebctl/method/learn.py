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
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from celebctl_models.diffusion import Extras, latents_from_pixels, network_output, read_texts
from celebctl_runtime.errors import InputRejected, IntegrityProblem
from celebctl_runtime.files import atomic_write
from celebctl_runtime.identity import Identity, check_name
from celebctl_runtime.schedule import ScheduleConfig

from .basis import CelebBasis
from .batch import Batch
from .captions import Captions, encode_templates
from .compiled import compiled
from .config import LearnConfig
from .mapper import CoefficientMapper
from .places import has_bfloat16_units, suit_attention
from .sampling import draw
from .starts import framing_of, framing_story, placed, set_start, start_of
from .views import make_views

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl_models.diffusion import DiffusionParts
    from celebctl_models.faces import Face, FaceAnalyser

VIEWS_KEPT = 48  # augmented views per person, encoded once
LOOKS = 4  # how often likeness is measured on the way
_KEEP_EVERY = 50  # steps between checkpoints


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
    together: int = 64,
    compiling: bool = False,
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
        compiling: compile the network where that is faster and gives the same gradients (compiled.py).
        tell: hears, in one line each, what came of compiling, and that nobody measured where the model draws faces.
        checkpoint: where progress is kept every few steps and on Ctrl-C; ``resume_from`` goes on from such a file and
            arrives at the very numbers an uninterrupted run would have reached.

    Raises:
        InputRejected: a photo without a face.
        IntegrityProblem: ``resume_from`` belongs to other people, another model or other settings.
    """
    names = [check_name(name) for name in names]
    faces = [_one_face(analyser, photo, name) for photo, name in zip(photos, names, strict=True)]
    sitting = Sitting.begin(parts, basis, photos, faces, config, together)
    if resume_from is not None:
        sitting.load(resume_from, names)
    if config.canvas == "photo" and config.smallest is None and framing_of(parts)[1] == "assumed":
        tell("faces stand as on photographs in general; celebctl basis build --faces finds this model's own places")
    try:
        worth = compiling and sitting.step < config.steps
        with compiled(parts.unet, sitting, tell) if worth else nullcontext(parts.unet) as sitting.network:
            _go(sitting, analyser, on_step, None if checkpoint is None else lambda: sitting.save(checkpoint, names))
    except KeyboardInterrupt:
        if checkpoint is not None:
            sitting.save(checkpoint, names)
        raise
    return sitting.identities(names)


def _go(
    sitting: Sitting,
    analyser: FaceAnalyser,
    on_step: Callable[[LearnStep], None],
    save: Callable[[], None] | None,
) -> None:
    """All steps that are left."""
    steps, first = sitting.config.steps, sitting.step
    started, likeness = time.monotonic(), sitting.likeness
    while sitting.step < steps:
        loss = sitting.advance()
        if sitting.step % max(1, steps // LOOKS) == 0:
            likeness = sitting.look(analyser)
        if save is not None and sitting.step % _KEEP_EVERY == 0 and sitting.step < steps:
            save()
        spent = time.monotonic() - started
        left = spent / (sitting.step - first) * (steps - sitting.step)
        on_step(LearnStep(sitting.step, steps, loss, likeness, spent, left))


def _one_face(analyser: FaceAnalyser, photo: Image, name: str) -> Face:
    faces = analyser.analyse(photo)
    if len(faces) != 1:
        found = f"{len(faces)} faces" if faces else "no face"
        raise InputRejected(
            f"{found} in the photo of {name}", "use a photo that shows one face, or say which: --face N"
        )
    return faces[0]


@dataclass
class Sitting:
    """People being learned: what is fixed, what is trained, and where the training stands.

    P people, V encoded views each, S coefficients over all text encoders. features: (P, 512); latents: (P, V, 4, h, w);
    weights: (P, V, 1, h, w); start: (P, S) units the prior pulls to; total, mass: running average of coefficients;
    mean, components: the basis as tensors, (2, D) and (2, K, D) per text encoder. together: how many views the network
    sees at once; a step is the same however it is cut. network: the UNet, or the same compiled for one batch size.
    fast: the network computes in bfloat16, where the processor has units for it.
    """

    parts: DiffusionParts
    basis: CelebBasis
    config: LearnConfig
    mapper: CoefficientMapper
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    captions: Captions
    alphas: Tensor
    features: Tensor
    latents: Tensor
    weights: Tensor
    start: Tensor
    total: Tensor
    together: int
    mass: float = 0.0
    step: int = 0
    likeness: float | None = None
    network: Any = field(init=False)
    fast: bool = field(init=False)
    mean: list[Tensor] = field(init=False)
    components: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        device, self.network = self.features.device, self.parts.unet
        self.fast = self.parts.unet.dtype == torch.float32 and has_bfloat16_units(device)
        suit_attention(self.parts)
        self.mean = [torch.as_tensor(mean).to(device) for mean in self.basis.mean]
        self.components = [torch.as_tensor(components).to(device) for components in self.basis.components]

    @classmethod
    def begin(
        cls,
        parts: DiffusionParts,
        basis: CelebBasis,
        photos: Sequence[Image],
        faces: Sequence[Face],
        config: LearnConfig,
        together: int,
    ) -> Sitting:
        """Encode the views, set the mapper to its start, and stand at step 0."""
        device, config = next(parts.unet.parameters()).device, placed(config, parts)
        generator = torch.Generator().manual_seed(config.seed)
        mapper = CoefficientMapper(basis, config, generator)
        set_start(mapper, parts, basis)
        mapper = mapper.to(device)
        features = torch.as_tensor(np.stack([face.feature for face in faces])).to(device)
        latents, weights = _encoded_views(parts, photos, faces, config, generator)
        with torch.no_grad():
            start = mapper.units(features)
        schedule = ScheduleConfig.from_dict(parts.scheduler_config)
        return cls(
            parts=parts, basis=basis, config=config, mapper=mapper,
            optimiser=torch.optim.AdamW(
                [p for p in mapper.parameters() if p.requires_grad],
                lr=config.learning_rate, weight_decay=config.weight_decay,
            ),
            generator=generator, captions=encode_templates(parts.tokenizers[0], parts.max_length, config.captions),
            alphas=torch.as_tensor(schedule.alphas_cumprod()).float().to(device),
            features=features, latents=latents, weights=weights, start=start,
            total=torch.zeros_like(mapper.scaled(start)), together=together,
        )  # fmt: skip

    def advance(self) -> float:
        """One optimiser step over ``views`` views of everybody; returns the denoising loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        batch = self._batch()
        mass = (batch.weight.sum() * batch.x0.shape[1]).clamp_min(1e-6)
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for part in batch.split(self.together):
            network = self.network if len(part.who) == min(self.together, len(batch.who)) else self.parts.unet
            error = self._error(part, self.mapper(self.features), network)
            loss = (error * part.weight).sum() / mass
            torch.autograd.backward(loss * self._loudness)
            total += float(loss.detach())
        pull = ((self.mapper.units(self.features) - self.start) ** 2).mean()
        torch.autograd.backward(self.config.prior * pull * self._loudness)
        for parameter in self.mapper.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(self._loudness)
        self.optimiser.step()
        self.step += 1
        self._average()
        return total

    @property
    def _loudness(self) -> float:
        """Factor of the loss: gradients on their way through a float16 network would vanish below 6e-8."""
        return 1024.0 if self.parts.unet.dtype == torch.float16 else 1.0

    def gradient(self, network: Any) -> Tensor:
        """Of the loss of the coming batch's first part through ``network`` by the coefficients, (P, S) on the CPU.

        Nothing moves on: the next step sees the same batch.
        """
        before = self.generator.get_state()
        part = self._batch().split(self.together)[0]
        self.generator.set_state(before)
        coefficients = self.mapper(self.features).detach().requires_grad_()
        loss = (self._error(part, coefficients, network) * part.weight).sum()
        found: tuple[Tensor, ...] = cast(Any, torch.autograd).grad(loss * self._loudness, coefficients)
        return found[0].cpu()

    def _error(self, given: Batch, coefficients: Tensor, network: Any) -> Tensor:
        """Squared error (B, 4, h, w) of what ``network`` predicts for noisy views of people with these coefficients
        (P, S)."""
        x0, alpha = given.x0, self.alphas[given.t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * x0 + (1.0 - alpha).sqrt() * given.noise
        rows = [embeddings[given.who] for embeddings in self.embed(coefficients)]
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=self.fast):
            context, pooled = read_texts(self.parts, given.ids, rows, given.positions)
        guidance = torch.full((1,), float(self.parts.card.defaults["guidance"]), device=x0.device)
        extras = Extras(pooled, self.parts.size_ids(*self.parts.native_size), guidance)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=self.fast):
            dtype = self.parts.unet.dtype
            predicted = network_output(network, noisy.to(dtype), given.t, context.to(dtype), extras)
        return (predicted.float() - self._target(x0, given.noise, alpha)) ** 2

    def _learning_rate(self) -> float:
        share = self.step / self.config.steps
        return self.config.learning_rate * (0.5 + 0.5 * math.cos(math.pi * share) if self.config.anneal else 1.0)

    def _batch(self) -> Batch:
        """The coming batch: people x views."""
        people, kept = self.latents.shape[:2]
        who = torch.arange(people).repeat_interleave(self.config.views)
        view = torch.randint(kept, (len(who),), generator=self.generator)
        x0, weight = self.latents[who, view], self.weights[who, view]
        t, noise = self._timesteps(len(who)), torch.randn(x0.shape, generator=self.generator).to(x0.device)
        ids, positions = (given.to(x0.device) for given in self.captions.draw(len(who), self.generator))
        return Batch(x0, weight, who.to(x0.device), t, noise, ids, positions)

    def _timesteps(self, count: int) -> Tensor:
        """Uniform over the training steps, stratified over the batch so that every batch sees all noise levels."""
        total = len(self.alphas)
        spot = (torch.arange(count) + torch.rand(count, generator=self.generator)) / count
        return (
            (spot[torch.randperm(count, generator=self.generator)] * total)
            .long()
            .clamp(max=total - 1)
            .to(self.alphas.device)
        )

    def embed(self, coefficients: Tensor) -> list[Tensor]:
        """Coefficients (P, S) to (P, 2, D) per text encoder: mean + coefficients x components (paper, equation 3)."""
        parts = zip(self.mapper.split(coefficients), self.mean, self.components, strict=True)
        return [mean + torch.einsum("pjk,jkd->pjd", given, components) for given, mean, components in parts]

    def _target(self, x0: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
        kind = self.parts.prediction_type
        if kind == "v_prediction":
            return alpha.sqrt() * noise - (1.0 - alpha).sqrt() * x0
        return noise if kind == "epsilon" else x0

    @torch.no_grad()
    def _average(self) -> None:
        """Keep the running average that becomes the result. Both kinds divide by their true mass, so neither remembers
        where it was started (the release's average starts from noise of norm 22.6 and never quite forgets it)."""
        coefficients = self.mapper(self.features)
        if self.config.average == "momentum":
            keep = 0.99**self.config.views
            self.total, self.mass = keep * self.total + (1.0 - keep) * coefficients, keep * self.mass + (1.0 - keep)
        elif self.step > self.config.steps // 2:
            self.total, self.mass = self.total + coefficients, self.mass + 1.0

    @torch.no_grad()
    def coefficients(self) -> Tensor:
        """The people as they stand, (P, S)."""
        return self.total / self.mass if self.mass else self.mapper(self.features)

    @torch.no_grad()
    def look(self, analyser: FaceAnalyser) -> float | None:
        """Draw everybody once and compare with the photos: the mean cosine of those whose face is found."""
        from PIL import Image

        rows = zip(*self.embed(self.coefficients()), strict=True)
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
        from celebctl import __version__

        made: list[Identity] = []
        spread = self.mapper.spread
        for name, flat in zip(names, self.coefficients(), strict=True):
            distance = float((flat / spread.clamp_min(1e-12))[spread > 0].square().mean().sqrt())
            rows = tuple(part.cpu().numpy().astype(np.float32) for part in self.mapper.split(flat))
            likeness = "not measured"
            if self.likeness is not None:
                likeness = f"{self.likeness:.3f} (mean cosine, the learning recogniser)"
            provenance = {
                "celebctl": __version__, "torch": str(torch.__version__), "model": self.parts.name,
                "preset": self.config.preset, "steps": str(self.step), "views": str(self.config.views),
                "seed": str(self.config.seed), "learned_together": str(len(names)), "coefficients": str(flat.numel()),
                "start": start_of(self.parts, self.config), "likeness": likeness,
                "framing": framing_story(self.config, self.parts),
                "distance": f"{distance:.3f} celebrity standard deviations (rms)",
            }  # fmt: skip
            made.append(
                Identity(
                    name,
                    rows,
                    self.basis.embed(rows),
                    self.basis.hash,
                    self.parts.family,
                    self.parts.table_hash,
                    provenance,
                )
            )
        return made

    def save(self, path: Path, names: Sequence[str]) -> None:
        """Everything needed to go on, atomically."""
        state = {
            "key": self._key(names), "step": self.step, "mapper": self.mapper.state_dict(),
            "optimiser": self.optimiser.state_dict(), "generator": self.generator.get_state(),
            "total": self.total, "mass": self.mass, "likeness": self.likeness,
        }  # fmt: skip
        atomic_write(path, lambda partial: torch.save(state, partial))

    def load(self, path: Path, names: Sequence[str]) -> None:
        """Go on from ``save``. Raises IntegrityProblem when it belongs to something else."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.features.device, weights_only=True)
            same = state["key"] == self._key(names)
        except Exception as error:  # torch raises anything from EOFError to UnpicklingError
            raise IntegrityProblem(
                f"{path.name} cannot be resumed: {error}", "run the same command without --resume"
            ) from error
        if not same:
            raise IntegrityProblem(
                "what was interrupted had other photos, names or settings", "run the same command without --resume"
            )
        self.mapper.load_state_dict(state["mapper"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        self.total, self.mass, self.step, self.likeness = (
            state["total"],
            state["mass"],
            state["step"],
            state["likeness"],
        )

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
    device, size = next(parts.unet.parameters()).device, parts.card.native_size
    latents: list[Tensor] = []
    weights: list[Tensor] = []
    for photo, face in zip(photos, faces, strict=True):
        views = make_views(photo.convert("RGB"), face, size, VIEWS_KEPT if config.steps else 1, config, generator)
        noise = torch.Generator(device).manual_seed(config.seed)
        pixels = views.pixels.to(device, parts.vae.dtype)
        encoded = torch.cat([latents_from_pixels(parts.vae, part, noise) for part in torch.split(pixels, 16)]).float()
        latents.append(encoded)
        weights.append(F.adaptive_avg_pool2d(views.weight, (encoded.shape[-2], encoded.shape[-1])).to(device))
    return torch.stack(latents), torch.stack(weights)
