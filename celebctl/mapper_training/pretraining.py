"""The mapper before anybody is learned: trained once per checkpoint on many people, then left alone.

    python -m celebctl.mapper_training.pretraining --model mini --lessons lessons.safetensors --out mapper.safetensors

A lesson is the recogniser's feature of a person's photo, and what a reader of the text encoder's output should say of
that person. The mapper answers with token rows, the rows stand in captions, the frozen text encoder reads them, and
whatever the reader misses of the person is the loss: no picture is drawn. Where the model's people live is learned on
the way, so an answer is always somebody the model can draw. (Least squares on the token rows themselves asks for what
no face can tell, and answers with a blend of people.)

What a face tells at all is learned before that, without the text encoder, where a step costs a hundredth: readers go
from features straight to looks. The mapper's first two layers are those of a reader, and what it is asked to make the
text encoder say is what the readers together say of a face, noise and all, instead of how one stranger happened to
look. So the slow half neither learns to see nor learns strangers by heart.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from celebctl.basis.basis import CelebBasis, build_basis, read_tensors
from celebctl.learning.captions import place_people
from celebctl.learning.config import CLEAN
from celebctl.learning.instant import read_layers
from celebctl.learning.mapper import CODE, HIDDEN, CoefficientMapper, PretrainedMapper
from celebctl_models.checkpoints.diffusion import read_texts
from celebctl_models.faces.analysis import FEATURE_DIM
from celebctl_runtime.errors import IntegrityError, InvalidInputError
from celebctl_runtime.files import atomic_write

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

Floats = NDArray[np.float32]
HELD = 500  # people whose lessons are only used to measure
_SHORT = 24  # tokens: captions that are longer are left out, the others cut to it
_PEAK = 2e-3
READING = 20_000  # steps of each reader, about a minute on one core
_READERS = (HIDDEN, 512, 512, 512, 512)  # hidden numbers of the readers; the first is the mapper's own
_HAZE = 0.3  # length of the noise that is added to features of length 1, so that readers go by no single stranger
_PULL = 3e-3  # weight of the mean square of units, which keeps answers among the celebrities


@dataclass(frozen=True, eq=False)
class AttributeDataset:
    """What there is to learn from.

    features: (n, 512) unit rows; looks: (n, A), zero mean and unit variance each; weight (A, D) and bias (A,) read
    looks off the text encoder's output at a person's last token; captions: with ``{}`` where a person stands, once or
    twice.
    """

    features: Floats
    looks: Floats
    weight: Floats
    bias: Floats
    captions: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> AttributeDataset:
        """Raises IntegrityError when the file is damaged or something else."""
        try:
            tensors, metadata = read_tensors(path)
            features, looks, weight, bias = (
                tensors[name].astype(np.float32) for name in ("features", "looks", "weight", "bias")
            )
            return cls(features, looks, weight, bias, tuple(metadata["captions"].split("\n")))
        except (OSError, KeyError, ValueError) as error:
            raise IntegrityError(f"{path.name} holds no lessons: {error}", "make the file again") from error


class AttributeClassifier(nn.Module):
    """From features (B, 512) to looks (B, A), through layers like those of `PretrainedMapper`."""

    def __init__(self, looks: int, code: int, hidden: int) -> None:
        super().__init__()
        self.down, self.middle = nn.Linear(FEATURE_DIM, code), nn.Linear(code, hidden)
        self.head = nn.Linear(hidden, looks)
        with torch.no_grad():
            self.down.weight.normal_()  # a unit feature gives codes of unit size

    def forward(self, features: Tensor) -> Tensor:
        return self.head(F.gelu(self.middle(self.down(features))))


def add_feature_noise(features: Tensor, generator: torch.Generator) -> Tensor:
    """Features (B, 512) with noise of length about ``_HAZE``."""
    return features + _HAZE / FEATURE_DIM**0.5 * torch.randn(features.shape, generator=generator)


def read_faces(lessons: AttributeDataset, hidden: int, steps: int, seed: int) -> AttributeClassifier:
    """Least squares from features to looks of everybody who is not held back; frozen."""
    # the caller's random numbers stay as they are
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.default_generator.manual_seed(seed)
        reader = AttributeClassifier(lessons.looks.shape[1], CODE, hidden)
    generator = torch.Generator().manual_seed(seed)
    known, looks = torch.as_tensor(lessons.features), torch.as_tensor(lessons.looks)
    optimiser: Any = torch.optim.AdamW(reader.parameters(), lr=_PEAK, weight_decay=0.1)
    for step in range(steps):
        _set_rate(optimiser, step, steps)
        who = torch.randint(HELD, len(known), (256,), generator=generator)
        loss = ((reader(add_feature_noise(known[who], generator)) - looks[who]) ** 2).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return reader.eval().requires_grad_(False)


def _set_rate(optimiser: Any, step: int, steps: int) -> None:
    """A short warm-up, then cosine decay to zero."""
    warm = min(1.0, (step + 1) / min(100, 1 + steps // 10))
    for group in optimiser.param_groups:
        group["lr"] = _PEAK * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps))


@dataclass
class PretrainTrainer:
    """A mapper in training. ids: (C, 24) captions; positions: (C, 4) of first and second person, -1 where alone."""

    parts: DiffusionParts
    basis: CelebBasis
    lessons: AttributeDataset
    seed: int = 0
    batch: int = 128
    mapper: CoefficientMapper = field(init=False)
    ids: Tensor = field(init=False)
    positions: Tensor = field(init=False)

    def __post_init__(self) -> None:
        if len(self.parts.text_encoders) > 1:
            raise InvalidInputError(f"{self.parts.name} has two text encoders", "lessons are read off one alone")
        if len(self.lessons.features) <= HELD:
            raise InvalidInputError(f"{len(self.lessons.features)} people are too few", f"give more than {HELD}")
        self.mapper = CoefficientMapper(self.basis, CLEAN, torch.Generator())
        self.mapper.init_from_average()
        self.mapper.fitted = PretrainedMapper.fresh(self.basis.size, self.seed)
        self.ids, self.positions = self._captions(self.lessons.captions)

    def _captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows: list[Tensor] = []
        places: list[Tensor] = []
        for text in captions:
            ids, found = place_people(self.parts.tokenizers[0], self.parts.max_length, text.split("{}"))
            if not bool((ids[:_SHORT] == self.parts.end_id).any()) or not 1 <= len(found) <= 2:
                continue
            rows.append(ids[:_SHORT])
            places.append(torch.cat([*found, torch.full((4 - 2 * len(found),), -1)]))
        if not rows:
            raise InvalidInputError("no caption names one or two people in few words", "write {} where a person stands")
        return torch.stack(rows), torch.stack(places)

    def error(self, features: Tensor, looks: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """What is missed of everybody whom the captions (B,) name, and units.

        features, looks: (2 B, ...) of those whom the captions name first, and second.
        """
        mapper, positions = self.mapper, self.positions[caption]
        units = mapper.normalized(features)
        given = mapper.split(mapper.scaled(units))[0]
        rows = torch.as_tensor(self.basis.mean[0]) + torch.einsum(
            "pjk,jkd->pjd", given, torch.as_tensor(self.basis.components[0])
        )
        rows = torch.cat(rows.chunk(2), dim=1)  # (B, 4, D)
        with torch.autocast("cpu", torch.bfloat16):
            context, _ = read_texts(self.parts, self.ids[caption], [rows], positions)
        last = torch.cat([positions[:, 1], positions[:, 3]])
        seen = context.float().repeat(2, 1, 1)[torch.arange(len(features)), last.clamp_min(0)]
        read = seen @ torch.as_tensor(self.lessons.weight).T + torch.as_tensor(self.lessons.bias)
        missed = ((read - looks) ** 2).mean(1)
        return missed[last >= 0], units

    @torch.no_grad()
    def held(self) -> float:
        """Share of the variance of looks that is missed of people who were held back."""
        order = torch.arange(HELD)
        both = torch.cat([order, order.roll(1)])
        known, looks = torch.as_tensor(self.lessons.features)[both], torch.as_tensor(self.lessons.looks)[both]
        return float(self.error(known, looks, order % len(self.ids))[0].mean())

    def train(self, steps: int, on_step: Callable[[int, float], None], reading: int = READING) -> PretrainedMapper:
        """Readers first, ``reading`` steps each; then the mapper, whose step and loss ``on_step`` hears."""
        fitted, generator = self.mapper.fitted, torch.Generator().manual_seed(self.seed + 1)
        assert fitted is not None
        readers = [read_faces(self.lessons, hidden, reading, self.seed + i) for i, hidden in enumerate(_READERS)]
        fitted.down.load_state_dict(readers[0].down.state_dict())
        fitted.middle.load_state_dict(readers[0].middle.state_dict())
        known = torch.as_tensor(self.lessons.features)
        optimiser: Any = torch.optim.AdamW(fitted.parameters(), lr=_PEAK, weight_decay=0.02)
        for step in range(steps):
            _set_rate(optimiser, step, steps)
            who = torch.randint(HELD, len(known), (2 * self.batch,), generator=generator)
            seen = add_feature_noise(known[who], generator)
            with torch.no_grad():
                told = torch.stack([reader(seen) for reader in readers]).mean(0)
            missed, units = self.error(seen, told, torch.randint(len(self.ids), (self.batch,), generator=generator))
            loss = missed.mean() + _PULL * (units**2).mean()
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(fitted.parameters(), 1.0)
            optimiser.step()
            on_step(step + 1, float(loss.detach()))
        fitted.fit_code_statistics(torch.as_tensor(self.lessons.features[HELD:]))
        return fitted.eval().requires_grad_(False)


def save_mapper(fitted: PretrainedMapper, basis: CelebBasis, path: Path, about: Mapping[str, str] | None = None) -> None:
    """``mapper.safetensors``: the layers in float16, the hash of the basis they answer in, and what else is told."""
    from safetensors.numpy import save

    halves = {name: tensor.detach().numpy().astype(np.float16) for name, tensor in fitted.state_dict().items()}
    atomic_write(path, save(halves, metadata={**(about or {}), "basis": basis.hash}))


def load_mapper(path: Path, basis: CelebBasis) -> PretrainedMapper:
    """A saved mapper, frozen, float32. Raises IntegrityError: damaged, or of another basis."""
    layers = read_layers(path, basis)
    fitted = PretrainedMapper(basis.size, *layers["down.weight"].shape[:1], *layers["middle.weight"].shape[:1])
    fitted.load_state_dict({name: torch.as_tensor(array) for name, array in layers.items()})
    return fitted.eval().requires_grad_(False)


def main() -> None:
    from celebctl_models.checkpoints.diffusion import load_parts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--lessons", type=Path, required=True, help="features, looks and their reader")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1800, help="after the readers; 14 minutes in all on one core")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    parts = load_parts(args.model)
    basis = build_basis(parts)
    school = PretrainTrainer(parts, basis, AttributeDataset.load(args.lessons), args.seed)
    print(f"{len(school.lessons.features)} people, {len(school.ids)} captions; missed at first {school.held():.3f}")

    def told(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step} of {args.steps}  loss {loss:.3f}  missed of others {school.held():.3f}", flush=True)

    fitted = school.train(args.steps, told)
    save_mapper(fitted, basis, args.out)
    print(f"missed of people held back {school.held():.3f}; {args.out} ({args.out.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
