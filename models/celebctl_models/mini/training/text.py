"""Stage 2: the CLIPTextModel, taught what names and words look like before any picture is drawn.

The regression form of CLIP's image-text training: at a person's last-name token a linear head must read off how that
person looks, at the end-of-text token everything about the scene. It is frozen afterwards, as in Stable Diffusion.
Doing this first is what makes the denoiser cheap: names arrive with their meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from celebctl_models.mini.captions import ANYONE, caption, vocabulary
from celebctl_models.mini.drawing import classes, pick, ramp
from celebctl_models.mini.figure import EXPRESSIONS, HAIR, SKIN, STYLE_SHARES, WORN
from celebctl_models.mini.names import NameBook, name_book
from celebctl_models.mini.people import FACTORS, uniform_from_normal
from celebctl_models.mini.scenes import ACTS, PLACES, STYLES, random_scenes
from celebctl_models.mini.tokenizer import COMMON, build_tokenizer

from .data import FACTS, draw_people
from .trainer import TimeBox, TrainingContext, run_stage

WIDTH, LAYERS, HEADS, INNER, LENGTH = 576, 2, 9, 864, 77
SIZES = (2, len(PLACES), len(ACTS), len(EXPRESSIONS), len(WORN), len(STYLES))


def build(vocabulary_size: int) -> Any:
    """576 wide, so that 512 components per name are a real choice of directions; the table starts small (sd .01)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    end = vocabulary_size - 1
    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        hidden_act="quick_gelu",
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
        attention_dropout=0.0,
    )
    model = CLIPTextModel(config)
    nn.init.normal_(cast(nn.Embedding, model.get_input_embeddings()).weight, std=0.01)
    return model


def appearance(z: NDArray[np.float32]) -> Tensor:
    """What a face looks like, as numbers a linear head can be asked for.

    (N, F) -> (N, F + colours + styles), float32.
    """
    u = torch.as_tensor(uniform_from_normal(z))
    column = {name: u[:, i] for i, name in enumerate(FACTORS)}
    skin = ramp(SKIN, column["skin_tone"])
    hair = pick(HAIR, classes(column["hair_colour"], (14, 13, 12, 12, 8, 12, 9, 7, 7, 6)))
    kinds = [
        F.one_hot(classes(column["hair_style"], STYLE_SHARES), 8),
        F.one_hot(classes(column["glasses"], (0.62, 0.20, 0.18)), 3),
        F.one_hot(classes(column["beard"], (0.58, 0.13, 0.13, 0.16)), 4),
        F.one_hot(classes(column["marks"], (0.58, 0.18, 0.12, 0.12)), 4),
    ]
    return torch.cat([torch.as_tensor(z), 3.0 * (skin - 0.5), 3.0 * (hair - 0.5), *[k.float() * 2.0 for k in kinds]], 1)


def make_tokenizer(folder: Path, book: NameBook) -> Any:
    """Write and load the tokenizer of all words and names."""
    from transformers import CLIPTokenizer

    if not (folder / "tokenizer.json").exists():
        build_tokenizer([*book.first_names, *book.last_names, *vocabulary(), *COMMON], folder)
    return cast(Any, CLIPTokenizer).from_pretrained(folder)


class Reader(nn.Module):
    """The linear heads; thrown away after the stage."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.person = nn.Linear(WIDTH, looks)
        self.role = nn.Linear(WIDTH, 2)
        self.people = nn.Linear(WIDTH, 2 * looks)
        self.scene = nn.Linear(WIDTH, sum(SIZES))


def text_batch(
    book: NameBook, tokenizer: Any, count: int, rng: np.random.Generator, generator: torch.Generator
) -> dict[str, Tensor]:
    """Captions with all that is known.

    ids (B, L), positions of last names (B, 2, -1 if none), looks (B, 2, A), facts (B, 6).
    """
    people = draw_people(book, count, rng)
    scenes = random_scenes(torch.zeros(count, 2, len(FACTORS)), torch.rand(count, generator=generator) < 0.5, generator)
    facts = torch.stack([getattr(scenes, name).long() for name in FACTS], 1)
    texts: list[str] = []
    for i in range(count):
        who: list[str] = []
        for slot in range(2 if facts[i, 0] else 1):
            first, last = people.pair[i, slot]
            who.append(
                ANYONE[int(rng.integers(4))] if first < 0 else f"{book.first_names[first]} {book.last_names[last]}"
            )
        place, act, expression, worn, style = (int(v) for v in facts[i, 1:])
        texts.append(caption(who, (place, act, expression, worn, style), rng))
    ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    last_ids = torch.tensor(tokenizer.convert_tokens_to_ids([name + "</w>" for name in book.last_names]))
    last_name = torch.as_tensor(people.pair[..., 1])
    wanted = torch.where(last_name < 0, -2, last_ids[last_name.clamp_min(0)])
    wanted[facts[:, 0] == 0, 1] = -2
    at = torch.full((count, 2), -1)
    for slot in range(2):
        hit = ids == wanted[:, slot, None]
        # the second of two namesakes stands last in the text, the first stands first
        where = hit.long().argmax(1) if slot == 0 else ids.shape[1] - 1 - hit.flip(1).long().argmax(1)
        at[:, slot] = torch.where(hit.any(1), where, -1)
    looks = appearance(people.z.reshape(2 * count, -1)).view(count, 2, -1)
    return {"ids": ids, "at": at, "looks": looks, "facts": facts}


def text_loss(model: Any, reader: Reader, batch: dict[str, Tensor], end: int) -> tuple[Tensor, dict[str, float]]:
    """Squared error of the attributes read plus cross-entropy of the scene facts."""
    hidden = model(input_ids=batch["ids"]).last_hidden_state.float()
    rows = torch.arange(len(hidden), device=hidden.device)
    eos = hidden[rows, (batch["ids"] == end).long().argmax(1)]
    named = batch["at"] >= 0
    token = hidden[rows[:, None], batch["at"].clamp_min(0)]  # (B, 2, D)
    person = ((reader.person(token) - batch["looks"]) ** 2).mean(-1)[named].mean()
    role = F.cross_entropy(
        reader.role(token)[named], torch.arange(2, device=hidden.device).expand(len(hidden), 2)[named]
    )
    read = reader.people(eos).view(len(hidden), 2, -1)
    everyone = ((read - batch["looks"]) ** 2).mean(-1)[named].mean()
    scene = sum(
        F.cross_entropy(part, batch["facts"][:, i]) for i, part in enumerate(reader.scene(eos).split(SIZES, 1))
    ) / len(SIZES)
    loss = person + 0.2 * role + 0.25 * everyone + 0.3 * scene
    return loss, {"person": person.item(), "role": role.item(), "eos": everyone.item(), "scene": float(scene)}


def train(run: TrainingContext, minutes: float) -> tuple[Any, Any]:
    """Returns (tokenizer, frozen text model)."""
    book = name_book()
    tokenizer = make_tokenizer(run.path("tokenizer"), book)
    torch.manual_seed(run.seed + 2)  # pyright: ignore[reportUnknownMemberType]
    model, reader = (
        build(len(tokenizer)).to(run.device),
        Reader(appearance(np.zeros((1, len(FACTORS)), np.float32)).shape[1]).to(run.device),
    )
    optimiser = torch.optim.AdamW(
        [
            {"params": model.parameters(), "lr": 1.0e-3, "weight_decay": 0.02},
            {"params": reader.parameters(), "lr": 3e-3},
        ],
        betas=(0.9, 0.98),
    )
    rng, generator = np.random.Generator(np.random.PCG64(run.seed + 3)), torch.Generator().manual_seed(run.seed + 4)

    def step(box: TimeBox) -> dict[str, float]:
        batch = {k: v.to(run.device) for k, v in text_batch(book, tokenizer, 192, rng, generator).items()}
        with run.autocast():
            loss, figures = text_loss(model, reader, batch, len(tokenizer) - 1)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return figures

    run_stage(run, ("text", minutes), {"text": model, "reader": reader}, optimiser, step)
    return tokenizer, model.eval().requires_grad_(False)
