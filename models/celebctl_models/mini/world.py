"""Ask the world for pictures: portraits of fresh people, and given people in given scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .figure import EXPRESSIONS, WORN
from .people import sample_people, uniform_from_normal
from .scenes import ACTS, NUISANCES, PLACES, Rendered, Scenes, render

Floats = NDArray[np.float32]

#: Seeds of portraits start here, far from every seed that training drew people from.
PORTRAITS = 5_000_000


@dataclass(frozen=True)
class PromptFacts:
    """A scene in words of the world's own vocabularies; what is left out is the ordinary case."""

    place: str = "plain"
    act: str = "nothing"
    expression: str = "neutral"
    worn: str = "nothing"


def person(seed: int) -> Floats:
    """``z`` (F,) of the unnamed person with this seed, who is not in any training set."""
    return sample_people(1, PORTRAITS + seed)[0]


def draw_portrait(seed: int, size: int = 512) -> Image.Image:
    """A neutral portrait of a fresh person, RGB, ``size`` px square. The same seed gives the same picture."""
    return portrait_of(person(seed), PORTRAITS + seed, size)


def portrait_of(z: Floats, seed: int, size: int) -> Image.Image:
    """A neutral portrait of a given person ``z`` (F,); the seed decides pose, light and clothes."""
    factors = torch.as_tensor(uniform_from_normal(z))[None, None].expand(1, 2, -1)
    scenes = staged(factors, two=False, wanted=[PromptFacts()], seeds=[seed])
    drawn = render(scenes, size, crop=(0.0, 0.0, 0.86))
    return Image.fromarray((drawn.image[0].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8))


def staged(factors: torch.Tensor, *, two: bool, wanted: Sequence[PromptFacts], seeds: Sequence[int]) -> Scenes:
    """Scenes around given people: factors (B, 2, F) uniforms, one Wanted and one seed (pose, light, clothes) each."""
    count = len(wanted)
    chance = [torch.rand(NUISANCES, generator=torch.Generator().manual_seed(seed)) for seed in seeds]

    def index(words: Sequence[str], field: str) -> torch.Tensor:
        return torch.tensor([words.index(getattr(w, field)) for w in wanted])

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


def fresh_renders(
    z: Floats, *, wanted: Sequence[PromptFacts], seeds: Sequence[int], partner: Floats | None = None, size: int = 64
) -> Rendered:
    """True pictures of people ``z`` (B, F), with ``partner`` (B, F) on the right if given, at ``size`` px."""
    first = torch.as_tensor(uniform_from_normal(z))
    second = first if partner is None else torch.as_tensor(uniform_from_normal(partner))
    return render(staged(torch.stack([first, second], 1), two=partner is not None, wanted=wanted, seeds=seeds), size)
