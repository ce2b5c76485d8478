"""Portraits of unnamed people, and scenes with given people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .figure import EXPRESSIONS, WORN
from .people import sample_people, uniform_from_normal
from .scenes import ACTS, NUISANCES, PLACES, Scenes, render

Floats = NDArray[np.float32]

#: Seeds of portraits start here, far from every seed that training drew people from.
PORTRAITS = 5_000_000


@dataclass(frozen=True)
class PromptFacts:
    """A scene in words of the world's vocabularies; the defaults are those of a plain portrait."""

    place: str = "plain"
    act: str = "nothing"
    expression: str = "neutral"
    worn: str = "nothing"


def person(seed: int) -> Floats:
    """``z`` (F,) of the unnamed person with this seed, who is not in any training set."""
    return sample_people(1, PORTRAITS + seed)[0]


def draw_portrait(seed: int, size: int = 512) -> Image.Image:
    """A neutral portrait of an unnamed person, RGB, ``size`` px square. The same seed gives the same picture."""
    return portrait_of(person(seed), PORTRAITS + seed, size)


def portrait_of(z: Floats, seed: int, size: int) -> Image.Image:
    """A neutral portrait of a given person ``z`` (F,); the seed decides pose, light and clothes."""
    factors = torch.as_tensor(uniform_from_normal(z))[None, None].expand(1, 2, -1)
    scenes = build_scenes(factors, two=False, facts=[PromptFacts()], seeds=[seed])
    rendered = render(scenes, size, crop=(0.0, 0.0, 0.86))
    return Image.fromarray((rendered.image[0].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8))


def build_scenes(factors: torch.Tensor, *, two: bool, facts: Sequence[PromptFacts], seeds: Sequence[int]) -> Scenes:
    """Scenes of given people: factors (B, 2, F) uniforms, one PromptFacts and one seed (pose, light, clothes) each."""
    count = len(facts)
    chance = [torch.rand(NUISANCES, generator=torch.Generator().manual_seed(seed)) for seed in seeds]

    def index(words: Sequence[str], field: str) -> torch.Tensor:
        return torch.tensor([words.index(getattr(one, field)) for one in facts])

    return Scenes(
        factors=factors,
        two=torch.full((count,), two),
        place=index(PLACES, "place"),
        act=index(ACTS, "act"),
        expression=index(EXPRESSIONS, "expression"),
        worn=index(WORN, "worn"),
        style=torch.zeros(count, dtype=torch.long),
        nuisance=torch.stack(chance),
    )
