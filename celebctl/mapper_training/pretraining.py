"""Pretraining of a mapper on people with known attributes, without generating images. Used for the bundled model.

    python -m celebctl.mapper_training.pretraining --model mini --dataset people.safetensors --out mapper.safetensors

An example is a recogniser feature with the attributes of that person. Two stages:

1. Attribute classifiers from features, without the text encoder (a hundredth of the cost per step). The mapper's first
   two layers are initialized from one of them, and the ensemble's predictions are the targets of stage 2.
2. Feature -> mapper -> embeddings -> caption -> frozen text encoder -> linear attribute probe; the loss is the probe's
   error. So the expensive stage learns only the language mapping, and cannot memorise training people.

Regression on the embeddings themselves fails: it asks for what a face does not determine, and gives blends of people.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from celebctl.basis.basis import CelebBasis, build_basis, read_tensors
from celebctl.learning.captions import place_people
from celebctl.learning.config import CLEAN
from celebctl.learning.denoising import IdentityEmbeddings
from celebctl.learning.mapper import CODE_DIM, HIDDEN_DIM, CoefficientMapper, PretrainedMapper
from celebctl.learning.training import cosine_decay, optimizer_step, set_learning_rate, warmup_steps
from celebctl_models.checkpoints.diffusion import read_texts
from celebctl_models.faces.analysis import FEATURE_DIM
from celebctl_runtime.errors import IntegrityError, InvalidInputError
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress

from .mapper_store import save_mapper

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

Floats = NDArray[np.float32]
VALIDATION_SIZE = 500  # people held out
_CAPTION_LENGTH = 24  # tokens; longer captions are left out, the others cut
_LEARNING_RATE = 2e-3
CLASSIFIER_STEPS = 20_000  # per classifier, about a minute on one core
_CLASSIFIER_WIDTHS = (HIDDEN_DIM, 512, 512, 512, 512)  # hidden widths of the ensemble; the first initializes the mapper
_FEATURE_NOISE = 0.3  # norm of the noise on unit features, against memorising single people
_COEFFICIENT_L2 = 3e-3  # weight of the mean squared coefficient, which keeps outputs among the celebrities


@dataclass(frozen=True, eq=False)
class AttributeDataset:
    """People with known attributes.

    Attributes:
        features: (n, 512) unit rows.
        attributes: (n, A), zero mean and unit variance.
        weight: (A, D), with ``bias`` (A,) a linear probe of the attributes in the context at a person's last token.
        captions: With ``{}`` for a person, once or twice.
    """

    features: Floats
    attributes: Floats
    weight: Floats
    bias: Floats
    captions: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> AttributeDataset:
        """Read a dataset file. Raises IntegrityError when it is damaged or another kind of file."""
        try:
            tensors, metadata = read_tensors(path)
            arrays = [tensors[name].astype(np.float32) for name in ("features", "looks", "weight", "bias")]
            return cls(*arrays, captions=tuple(metadata["captions"].split("\n")))
        except (OSError, KeyError, ValueError) as error:
            raise IntegrityError(f"{path.name} is no attribute dataset: {error}", "create the file again") from error


class AttributeClassifier(nn.Module):
    """Features (B, 512) to attributes (B, A), with the first two layers of `PretrainedMapper`."""

    def __init__(self, attributes: int, code: int, hidden: int) -> None:
        super().__init__()
        self.down, self.middle = nn.Linear(FEATURE_DIM, code), nn.Linear(code, hidden)
        self.head = nn.Linear(hidden, attributes)
        with torch.no_grad():
            self.down.weight.normal_()  # a unit feature gives a code of about unit variance

    def forward(self, features: Tensor) -> Tensor:
        return self.head(F.gelu(self.middle(self.down(features))))


def add_feature_noise(features: Tensor, generator: torch.Generator) -> Tensor:
    """Features (B, 512) with Gaussian noise of norm about 0.3."""
    return features + _FEATURE_NOISE / FEATURE_DIM**0.5 * torch.randn(features.shape, generator=generator)


def train_classifier(dataset: AttributeDataset, hidden: int, steps: int, seed: int) -> AttributeClassifier:
    """Fit a classifier to the training people by least squares; returns it frozen."""
    # the caller's random numbers stay as they are
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.default_generator.manual_seed(seed)
        classifier = AttributeClassifier(dataset.attributes.shape[1], CODE_DIM, hidden)
    generator = torch.Generator().manual_seed(seed)
    features, attributes = torch.as_tensor(dataset.features), torch.as_tensor(dataset.attributes)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(classifier.parameters(), lr=_LEARNING_RATE, weight_decay=0.1)
    for step in range(steps):
        set_learning_rate(optimizer, _LEARNING_RATE * cosine_decay(step, steps, warmup=warmup_steps(steps)))
        person = torch.randint(VALIDATION_SIZE, len(features), (256,), generator=generator)
        predicted = classifier(add_feature_noise(features[person], generator))
        optimizer.zero_grad()
        torch.autograd.backward(((predicted - attributes[person]) ** 2).mean())
        optimizer_step(optimizer, classifier.parameters())
    return classifier.eval().requires_grad_(False)


@dataclass
class PretrainTrainer:
    """Trains a mapper through the text encoder (stage 2).

    Attributes:
        ids: (C, 24) token ids of captions.
        positions: (C, 4) token positions of the first and second person, -1 where there is no second.
    """

    parts: DiffusionParts
    basis: CelebBasis
    dataset: AttributeDataset
    seed: int = 0
    batch_size: int = 128
    mapper: CoefficientMapper = field(init=False)
    pretrained: PretrainedMapper = field(init=False)
    ids: Tensor = field(init=False)
    positions: Tensor = field(init=False)

    def __post_init__(self) -> None:
        if len(self.parts.text_encoders) > 1:
            raise InvalidInputError(f"{self.parts.name} has two text encoders", "the attribute probe reads one")
        if len(self.dataset.features) <= VALIDATION_SIZE:
            raise InvalidInputError(
                f"{len(self.dataset.features)} people are too few", f"give more than {VALIDATION_SIZE}"
            )
        self.mapper = CoefficientMapper(self.basis, CLEAN, torch.Generator())
        self.mapper.init_from_average()
        self.mapper.pretrained = self.pretrained = PretrainedMapper.fresh(self.basis.size, self.seed)
        self.embed = IdentityEmbeddings(self.basis, torch.device("cpu"))
        self.ids, self.positions = self._tokenize(self.dataset.captions)

    def _tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows: list[Tensor] = []
        positions: list[Tensor] = []
        for text in captions:
            ids, found = place_people(self.parts.tokenizers[0], self.parts.max_length, text.split("{}"))
            ids = ids[:_CAPTION_LENGTH]
            if bool((ids == self.parts.end_id).any()) and 1 <= len(found) <= 2:
                rows.append(ids)
                positions.append(torch.cat([*found, torch.full((4 - 2 * len(found),), -1)]))
        if not rows:
            raise InvalidInputError("no short caption names one or two people", "write {} for a person")
        return torch.stack(rows), torch.stack(positions)

    def error(self, features: Tensor, attributes: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of the probed attributes per person in captions (B,), and normalized coefficients.

        features, attributes: (2 B, ...) of the first and then of the second person of each caption.
        """
        positions = self.positions[caption]
        normalized = self.mapper.normalized(features)
        (embeddings,) = self.embed(self.mapper.split(self.mapper.scaled(normalized)))
        both = torch.cat(embeddings.chunk(2), dim=1)  # (B, 4, D)
        with torch.autocast("cpu", torch.bfloat16):
            context, _ = read_texts(self.parts, self.ids[caption], [both], positions)
        last = torch.cat([positions[:, 1], positions[:, 3]])
        context = context.float().repeat(2, 1, 1)[torch.arange(len(features)), last.clamp_min(0)]
        probed = context @ torch.as_tensor(self.dataset.weight).T + torch.as_tensor(self.dataset.bias)
        return ((probed - attributes) ** 2).mean(1)[last >= 0], normalized

    @torch.no_grad()
    def validate(self) -> float:
        """Unexplained fraction of the attributes' variance on held-out people."""
        order = torch.arange(VALIDATION_SIZE)
        both = torch.cat([order, order.roll(1)])
        features, attributes = (torch.as_tensor(x)[both] for x in (self.dataset.features, self.dataset.attributes))
        return float(self.error(features, attributes, order % len(self.ids))[0].mean())

    def train(
        self,
        steps: int,
        progress: ProgressCallback = ignore_progress,
        classifier_steps: int = CLASSIFIER_STEPS,
    ) -> PretrainedMapper:
        """Run both stages; the metric of ``progress`` is ``loss`` of stage 2."""
        mapper, generator = self.pretrained, torch.Generator().manual_seed(self.seed + 1)
        classifiers = [
            train_classifier(self.dataset, hidden, classifier_steps, self.seed + i)
            for i, hidden in enumerate(_CLASSIFIER_WIDTHS)
        ]
        mapper.down.load_state_dict(classifiers[0].down.state_dict())
        mapper.middle.load_state_dict(classifiers[0].middle.state_dict())
        features = torch.as_tensor(self.dataset.features)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(mapper.parameters(), lr=_LEARNING_RATE, weight_decay=0.02)
        for step in range(steps):
            set_learning_rate(optimizer, _LEARNING_RATE * cosine_decay(step, steps, warmup=warmup_steps(steps)))
            person = torch.randint(VALIDATION_SIZE, len(features), (2 * self.batch_size,), generator=generator)
            noisy = add_feature_noise(features[person], generator)
            with torch.no_grad():
                targets = torch.stack([classifier(noisy) for classifier in classifiers]).mean(0)
            caption = torch.randint(len(self.ids), (self.batch_size,), generator=generator)
            error, normalized = self.error(noisy, targets, caption)
            loss = error.mean() + _COEFFICIENT_L2 * (normalized**2).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer_step(optimizer, mapper.parameters(), max_norm=1.0)
            progress(Progress("pretraining the mapper", step + 1, steps, {"loss": float(loss.detach())}))
        mapper.fit_code_statistics(torch.as_tensor(self.dataset.features[VALIDATION_SIZE:]))
        return mapper.eval().requires_grad_(False)


def main() -> None:
    """Command line of this module."""
    from celebctl_models.checkpoints.diffusion import load_parts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--dataset", "--lessons", type=Path, required=True, help="features, attributes and probe")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1800, help="of stage 2; 14 minutes in all on one core")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    parts = load_parts(args.model)
    basis = build_basis(parts)
    trainer = PretrainTrainer(parts, basis, AttributeDataset.load(args.dataset), args.seed)
    print(f"{len(trainer.dataset.features)} people, {len(trainer.ids)} captions; validation {trainer.validate():.3f}")

    def show(now: Progress) -> None:
        if now.step % 100 == 0:
            loss = now.metrics["loss"]
            print(f"step {now.step}/{now.total}  loss {loss:.3f}  validation {trainer.validate():.3f}", flush=True)

    save_mapper(trainer.train(args.steps, show), basis, args.out)
    print(f"validation {trainer.validate():.3f}; {args.out} ({args.out.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
