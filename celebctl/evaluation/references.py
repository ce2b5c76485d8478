"""References: what a person really looks like. Renders of the drawn world under the same prompt, or a photo."""

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
from celebctl_models.mini.world import PromptFacts, build_scenes

from .prompts import Prompt
from .scorers import ImageScores, Scorer

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_BATCH = 32  # images rendered at once


def has_rendered_references(card: ModelCard) -> bool:
    """Whether reference images of any person can be rendered: only for mini's drawn world. Others need photos."""
    return card.world == "mini"


class Reference(Protocol):
    """What faces in generated images are compared with."""

    def scores(self, subject: int, prompts: Sequence[Prompt]) -> list[tuple[ImageScores, ...]]:
        """Scores of the reference images of a subject (with the partner on the right) for each prompt: none or more."""
        ...


class WorldReference:
    """Two renders of every prompt.

    Args:
        scorer: Scores the renders.
        z: (n, F) world parameters of the subjects.
        partners: Index of each subject's partner in pair prompts.
        celebrities: (n, F) world parameters of the celebrity beside each subject.
    """

    def __init__(self, scorer: Scorer, z: Floats, partners: Sequence[int], celebrities: Floats) -> None:
        self._scorer, self._z, self._partners, self._celebrities = scorer, z, partners, celebrities

    def scores(self, subject: int, prompts: Sequence[Prompt]) -> list[tuple[ImageScores, ...]]:
        """See `Reference.scores`; two of each prompt."""
        rows: list[tuple[ImageScores, ...]] = [()] * len(prompts)
        for people, indices in _by_people(prompts):
            renders = [self._render(subject, [prompts[i] for i in indices], people, index) for index in range(2)]
            scored = [self._scorer.score(images, [""] * len(images), people) for images in renders]
            for i, *pair in zip(indices, *scored, strict=True):
                rows[i] = tuple(pair)
        return rows

    def images(self, subject: int, prompts: Sequence[Prompt], index: int) -> list[Pixels]:
        """A render (H, W, 3) uint8 of every prompt; each ``index`` 0, 1, ... has other poses and noise."""
        images: dict[int, Pixels] = {}
        for people, indices in _by_people(prompts):
            rendered = self._render(subject, [prompts[i] for i in indices], people, index)
            images |= dict(zip(indices, rendered, strict=True))
        return [images[i] for i in range(len(prompts))]

    def _render(self, subject: int, prompts: Sequence[Prompt], people: int, index: int) -> list[Pixels]:
        """``prompts``: all of those with this number of people, because seeds depend on their order."""
        seeds = [render_seed(people, k, index) + subject for k in range(len(prompts))]
        partner = self._z[self._partners[subject]]
        others = [partner if p.category == "pair" else self._celebrities[subject] for p in prompts]
        first = np.repeat(self._z[subject : subject + 1], len(prompts), 0)
        return render_prompts(first, prompts, seeds, np.stack(others) if people == 2 else None)


def _by_people(prompts: Sequence[Prompt]) -> list[tuple[int, list[int]]]:
    """Number of people, and the indices of the prompts that show so many."""
    indices = {people: [i for i, prompt in enumerate(prompts) if prompt.people == people] for people in (1, 2)}
    return [(people, some) for people, some in indices.items() if some]


def render_seed(people: int, prompt: int, index: int) -> int:
    """Seed of reference ``index`` of prompt number ``prompt`` among those with ``people`` people."""
    return (10**6 if people == 1 else 77 * 10**6) * (index + 1) + 1000 * prompt


def stated_scene(prompt: Prompt) -> PromptFacts:
    """The scene that a prompt states, except its style."""
    return PromptFacts(**{name: value for name, value in prompt.states.items() if name != "style"})


def render_prompts(
    z: Floats, prompts: Sequence[Prompt], seeds: Sequence[int], partner: Floats | None, size: int = 64
) -> list[Pixels]:
    """Renders (size, size, 3) of people ``z`` (B, F), with ``partner`` (B, F) on the right, one per prompt and seed."""
    first = torch.as_tensor(uniform_from_normal(z))
    second = first if partner is None else torch.as_tensor(uniform_from_normal(partner))
    scenes = build_scenes(
        torch.stack([first, second], 1), two=partner is not None, facts=[stated_scene(p) for p in prompts], seeds=seeds
    )
    style = torch.tensor([STYLES.index(prompt.states.get("style", STYLES[0])) for prompt in prompts])
    scenes = replace(scenes, style=style)
    images: list[Pixels] = []
    for start in range(0, len(prompts), _BATCH):
        images += to_images(render(scenes[slice(start, start + _BATCH)], size))
    return images


def to_images(rendered: Any) -> list[Pixels]:
    """A batch of renders as images (H, W, 3) uint8."""
    return list((rendered.image.permute(0, 2, 3, 1).numpy() * 255 + 0.5).astype(np.uint8))


class PhotoReference:
    """One photo per subject: ``features`` (F,) each. A celebrity beside them has none."""

    def __init__(self, features: Sequence[Floats], partners: Sequence[int]) -> None:
        self._features, self._partners = features, partners

    def scores(self, subject: int, prompts: Sequence[Prompt]) -> list[tuple[ImageScores, ...]]:
        """See `Reference.scores`; one of each prompt."""
        own = self._features[subject][None]
        both = np.stack([self._features[subject], self._features[self._partners[subject]]])
        rows = [both if prompt.category == "pair" else own for prompt in prompts]
        return [(ImageScores(row, np.zeros((len(row), 3), np.float32)),) for row in rows]
