"""Stage 2: tokenizer and CLIPTextModel, taught what names and words look like before any picture is drawn.

As in mini: at a last name a linear head must read off how that person looks, at a model's name how that car looks, at
the end-of-text token everything the scene states. Nothing is painted. The encoder is frozen afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from celebctl_models.mini.illustration.captions import all_words
from celebctl_models.mini.illustration.scenes import PEOPLE
from celebctl_models.mini.tokenizer import build_tokenizer
from celebctl_models.mini.training.text import WIDTH, build
from celebctl_models.mini.training.trainer import TimeBox, TrainingContext, run_stage

from .data import (
    STATEMENTS,
    NamedScenes,
    captions_of,
    car_looks_of,
    car_names,
    class_loss,
    looks_of,
    mean_where,
    named_scenes,
    people_book,
    statements,
    step_generator,
)

STAGE, BATCH = 2, 160


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of all words and names, written to the folder first if it is not there."""
    from transformers import CLIPTokenizer

    if not (folder / "tokenizer.json").exists():
        build_tokenizer(all_words(people_book(), car_names()), folder)
    return cast(Any, CLIPTokenizer).from_pretrained(folder)


class TextHeads(nn.Module):
    """Linear heads on the text encoder; only ``person`` is used after the stage, for the mapper."""

    def __init__(self, looks: int, car_looks: int) -> None:
        super().__init__()
        self.person = nn.Linear(WIDTH, looks)
        self.position = nn.Linear(WIDTH, PEOPLE)
        self.people = nn.Linear(WIDTH, PEOPLE * looks)
        self.car = nn.Linear(WIDTH, car_looks)
        self.car_at_end = nn.Linear(WIDTH, car_looks)
        self.scene = nn.Linear(WIDTH, sum(STATEMENTS.values()))


@dataclass(frozen=True)
class CaptionBatch:
    """Captions with all that is known.

    ids: (B, L); names: (B, 4) token positions of the last names of three people and of the car's model, -1 if not
    named; looks: (B, 3, A); car_looks: (B, C); facts: (B, 12) as ``statements``.
    """

    ids: Tensor
    names: Tensor
    looks: Tensor
    car_looks: Tensor
    facts: Tensor

    def to(self, device: torch.device) -> CaptionBatch:
        """The same on another device."""
        parts = (self.ids, self.names, self.looks, self.car_looks, self.facts)
        return CaptionBatch(*(one.to(device) for one in parts))


def name_tokens(tokenizer: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids of all last names of people, and of all models of cars."""
    people, cars = (
        np.array(tokenizer.convert_tokens_to_ids([name + "</w>" for name in book.last_names]))
        for book in (people_book(), car_names())
    )
    return people, cars


def positions(named: NamedScenes, ids: Tensor, tokens: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Tensor:
    """(B, 4) as in CaptionBatch. People are named from left to right, which tells namesakes apart."""
    found = torch.full((len(ids), PEOPLE + 1), -1)
    for row in range(len(ids)):
        text: list[int] = cast(Any, ids[row]).tolist()
        start = 0
        for slot in range(int(named.scenes.count[row])):
            last = named.people[row, slot, 1]
            if last >= 0:
                start = text.index(int(tokens[0][last]), start) + 1
                found[row, slot] = start - 1
        if named.scenes.car[row]:
            found[row, PEOPLE] = text.index(int(tokens[1][named.cars[row, 1]]))
    return found


def caption_batch(
    tokenizer: Any, tokens: tuple[NDArray[np.int64], NDArray[np.int64]], count: int, seed: int
) -> CaptionBatch:
    """``count`` captions of scenes of this seed."""
    named = named_scenes(count, seed)
    texts = captions_of(named, torch.arange(count), np.random.Generator(np.random.PCG64([seed, 2])))
    ids = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt").input_ids
    looks = looks_of(named.scenes.factors.flatten(0, 1)).view(count, PEOPLE, -1)
    return CaptionBatch(
        ids, positions(named, ids, tokens), looks, car_looks_of(named.scenes.car_factors), statements(named.scenes)
    )


def text_loss(model: Any, heads: TextHeads, batch: CaptionBatch, end: int) -> tuple[Tensor, dict[str, float]]:
    """Squared errors of the looks that are read plus cross-entropies of the statements."""
    hidden = model(input_ids=batch.ids).last_hidden_state.float()
    rows = torch.arange(len(hidden), device=hidden.device)
    last = hidden[rows, (batch.ids == end).long().argmax(1)]
    is_named, has_car = batch.names[:, :PEOPLE] >= 0, batch.names[:, PEOPLE] >= 0
    token = hidden[rows[:, None], batch.names.clamp_min(0)]  # (B, 4, D)
    person = mean_where(((heads.person(token[:, :PEOPLE]) - batch.looks) ** 2).mean(-1), is_named)
    slot = torch.arange(PEOPLE, device=hidden.device).expand(len(hidden), PEOPLE)
    position = mean_where(
        F.cross_entropy(heads.position(token[:, :PEOPLE]).flatten(0, 1), slot.flatten(), reduction="none"),
        is_named.flatten(),
    )
    everyone = mean_where(((heads.people(last).view_as(batch.looks) - batch.looks) ** 2).mean(-1), is_named)
    car = mean_where(((heads.car(token[:, PEOPLE]) - batch.car_looks) ** 2).mean(-1), has_car)
    car_at_end = mean_where(((heads.car_at_end(last) - batch.car_looks) ** 2).mean(-1), has_car)
    scene = class_loss(heads.scene(last), batch.facts, STATEMENTS) / len(STATEMENTS)
    loss = person + 0.2 * position + 0.25 * everyone + 0.5 * car + 0.15 * car_at_end + 0.4 * scene
    figures = {"person": person, "position": position, "end": everyone, "car": car, "scene": scene}
    return loss, {name: value.item() for name, value in figures.items()}


def train(run: TrainingContext, minutes: float, batch: int = BATCH) -> tuple[Any, Any, TextHeads]:
    """Returns tokenizer, frozen text model and heads."""
    tokenizer = load_tokenizer(run.path("tokenizer"))
    tokens = name_tokens(tokenizer)
    torch.manual_seed(run.seed + STAGE)  # pyright: ignore[reportUnknownMemberType]
    model = build(len(tokenizer)).to(run.device)
    example = named_scenes(1, 0).scenes
    sizes = looks_of(example.factors[:, 0]).shape[1], car_looks_of(example.car_factors).shape[1]
    heads: TextHeads = TextHeads(*sizes).to(run.device)
    optimiser = torch.optim.AdamW(
        [
            {"params": model.parameters(), "lr": 1.0e-3, "weight_decay": 0.02},
            {"params": heads.parameters(), "lr": 3e-3},
        ],
        betas=(0.9, 0.98),
    )

    def step(box: TimeBox) -> dict[str, float]:
        generator = step_generator(run, STAGE, box.steps)
        seed = int(torch.randint(2**40, (1,), generator=generator))
        with run.autocast():
            loss, figures = text_loss(
                model, heads, caption_batch(tokenizer, tokens, batch, seed).to(run.device), len(tokenizer) - 1
            )
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return figures

    run_stage(run, ("text", minutes), {"text": model, "heads": heads}, optimiser, step)
    return tokenizer, model.eval().requires_grad_(False), heads
