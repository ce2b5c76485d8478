"""What a person really looks like: true pictures of a drawn world under the same prompt, or the photo of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from celebctl_models.checkpoints.registry import ModelCard
from celebctl_models.mini.people import uniform_from_normal
from celebctl_models.mini.scenes import STYLES, render
from celebctl_models.mini.world import PromptFacts, staged

from .prompts import Prompt
from .scorers import ImageScores, Scorer

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_CHUNK = 32  # true pictures rendered at once


def draws_mini(card: ModelCard) -> bool:
    """Whether a model draws mini's world, the only one of which there are true pictures; others need photos."""
    return card.world == "mini"


class Reference(Protocol):
    """What faces in pictures are compared with."""

    def see(self, person: int, prompts: Sequence[Prompt]) -> list[tuple[ImageScores, ...]]:
        """True looks of a person (and the other one, to the right) for each prompt: none, one or more pictures."""
        ...


class WorldReference:
    """Two fresh renders of every prompt, of people ``z`` (n, F) and whoever stands beside them.

    partners: index of the person beside in pairs. beside: (n, F), who is beside in pictures with a celebrity.
    """

    def __init__(self, panel: Scorer, z: Floats, partners: Sequence[int], beside: Floats) -> None:
        self._panel, self._z, self._partners, self._beside = panel, z, partners, beside

    def see(self, person: int, prompts: Sequence[Prompt]) -> list[tuple[ImageScores, ...]]:
        answers: list[tuple[ImageScores, ...]] = [()] * len(prompts)
        for people, numbers in _by_people(prompts):
            rounds = [self._draw(person, [prompts[i] for i in numbers], people, draw) for draw in range(2)]
            looks = [self._panel.score(drawn, [""] * len(drawn), people) for drawn in rounds]
            for i, *seen in zip(numbers, *looks, strict=True):
                answers[i] = tuple(seen)
        return answers

    def pictures(self, person: int, prompts: Sequence[Prompt], draw: int) -> list[Pixels]:
        """A true picture (H, W, 3) uint8 of every prompt; ``draw`` 0, 1, ... are other poses and noise of the same."""
        found: dict[int, Pixels] = {}
        for people, numbers in _by_people(prompts):
            drawn = self._draw(person, [prompts[i] for i in numbers], people, draw)
            found |= dict(zip(numbers, drawn, strict=True))
        return [found[i] for i in range(len(prompts))]

    def _draw(self, person: int, prompts: Sequence[Prompt], people: int, draw: int) -> list[Pixels]:
        """``prompts`` are all of those with so many people."""
        seeds = [render_seed(people, k, draw) + person for k in range(len(prompts))]
        others = [self._z[self._partners[person]] if p.category == "pair" else self._beside[person] for p in prompts]
        first = np.repeat(self._z[person : person + 1], len(prompts), 0)
        return true_pictures(first, prompts, seeds, np.stack(others) if people == 2 else None)


def _by_people(prompts: Sequence[Prompt]) -> list[tuple[int, list[int]]]:
    """How many people, and the numbers of the prompts that show so many."""
    numbers = {people: [i for i, prompt in enumerate(prompts) if prompt.people == people] for people in (1, 2)}
    return [(people, some) for people, some in numbers.items() if some]


def render_seed(people: int, number: int, draw: int) -> int:
    """Seed of true picture ``draw`` of prompt ``number`` of those with so many people (benchmarks/likeness.py)."""
    return (10**6 if people == 1 else 77 * 10**6) * (draw + 1) + 1000 * number


def wanted_of(prompt: Prompt) -> PromptFacts:
    """The scene that a prompt states, style apart."""
    return PromptFacts(**{name: value for name, value in prompt.states.items() if name != "style"})


def true_pictures(
    z: Floats, prompts: Sequence[Prompt], seeds: Sequence[int], partner: Floats | None, size: int = 64
) -> list[Pixels]:
    """Renders (size, size, 3) of people ``z`` (B, F), with ``partner`` (B, F) on the right, as the prompts say."""
    first = torch.as_tensor(uniform_from_normal(z))
    second = first if partner is None else torch.as_tensor(uniform_from_normal(partner))
    scenes = staged(
        torch.stack([first, second], 1), two=partner is not None, wanted=[wanted_of(p) for p in prompts], seeds=seeds
    )
    style = torch.tensor([STYLES.index(prompt.states.get("style", STYLES[0])) for prompt in prompts])
    scenes = replace(scenes, style=style)
    drawn: list[Pixels] = []
    for start in range(0, len(prompts), _CHUNK):
        drawn += pixels_of(render(scenes[slice(start, start + _CHUNK)], size))
    return drawn


def pixels_of(rendered: Any) -> list[Pixels]:
    """A batch of renders as pictures (H, W, 3) uint8."""
    return list((rendered.image.permute(0, 2, 3, 1).numpy() * 255 + 0.5).astype(np.uint8))


class PhotoReference:
    """One photo of each person: ``looks`` (F,) each; a celebrity beside has none."""

    def __init__(self, looks: Sequence[Floats], partners: Sequence[int]) -> None:
        self._looks, self._partners = looks, partners

    def see(self, person: int, prompts: Sequence[Prompt]) -> list[tuple[ImageScores, ...]]:
        own = self._looks[person][None]
        both = np.stack([self._looks[person], self._looks[self._partners[person]]])
        rows = [both if prompt.category == "pair" else own for prompt in prompts]
        return [(ImageScores(row, np.zeros((len(row), 3), np.float32)),) for row in rows]
