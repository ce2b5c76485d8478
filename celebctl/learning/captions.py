"""Captions of training views; ``{}`` marks the person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Photo captions around the bare name, as in prompts.
PHOTO: tuple[str, ...] = (
    "a photo of {}", "a portrait of {}", "a close-up photo of {}", "a good photo of {}", "a picture of {}", "{}",
)  # fmt: skip

_ADJECTIVES = (
    "a clean", "a dirty", "my", "the cool", "a nice", "the nice", "the small", "the weird", "the large",
    "a cool", "a small", "one", "the clean",
)  # fmt: skip
#: The release's list: the ImageNet templates of textual inversion with "face of {} person".
IMAGENET: tuple[str, ...] = (
    "a photo of a face of {} person", "a rendering of a face of {} person", "a cropped photo of the face of {} person",
    "the photo of a face of {} person", "a dark photo of the face of {} person",
    "a close-up photo of a face of {} person", "a bright photo of the face of {} person",
    "a cropped photo of a face of {} person", "a photo of the face of {} person",
    "a good photo of the face of {} person", "a close-up photo of the face of {} person",
    "a rendition of the face of {} person", "a rendition of a face of {} person", "a good photo of a face of {} person",
    "an illustration of a face of {} person", "a depiction of a face of {} person",
    *(f"a photo of {word} face of {{}} person" for word in _ADJECTIVES),
)  # fmt: skip

TEMPLATES: dict[str, tuple[str, ...]] = {"photo": PHOTO, "imagenet": IMAGENET}


@dataclass(frozen=True)
class Captions:
    """T tokenized templates. ids: (T, L) int64; positions: (T, 2) of the person's two tokens."""

    ids: Tensor
    positions: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` random templates: ids (count, L) and positions (count, 2)."""
        at = torch.randint(len(self.ids), (count,), generator=generator)
        return self.ids[at], self.positions[at]


def encode_templates(tokenizer: Any, length: int, kind: str) -> Captions:
    """Tokenize the templates of one kind with two placeholders, whose embeddings will be replaced."""
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    for template in TEMPLATES[kind]:
        row, at = place_people(tokenizer, length, template.split("{}"))
        ids.append(row)
        positions.append(at[0])
    return Captions(torch.stack(ids), torch.stack(positions))


def place_people(tokenizer: Any, length: int, texts: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """Tokenize texts with a person between each two: ids (length,) and each person's (2,) token positions."""
    start, end = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
    # any id but the end token, which pooling looks for: its embedding is replaced
    placeholder = start
    body: list[int] = [start]
    found: list[Tensor] = []
    for number, text in enumerate(texts):
        if number:
            found.append(torch.tensor([len(body), len(body) + 1]))
            body += [placeholder, placeholder]
        if text.strip():
            body += tokenizer(text, add_special_tokens=False).input_ids
    body = [*body[: length - 1], end]
    pad = tokenizer.pad_token_id
    return torch.tensor(body + [end if pad is None else int(pad)] * (length - len(body))), found
