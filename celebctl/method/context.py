"""The words beside a person: how much does a name change what the text encoder makes of the rest of the prompt?

A person who overwrites the words around them cannot be prompted (CoRe, 2408.15914). What is compared is the encoder's
output at those words with the person's rows and with the average celebrity's in the same places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from celebctl_models.diffusion import read_texts

from .captions import place_people
from .denoising import Denoiser, Rows

#: The person comes first: a causal encoder's outputs before them do not depend on them.
PROMPTS: tuple[str, ...] = (
    "{} on the beach", "{} reading a book", "{} in a red shirt", "{} smiling in the city",
    "{} playing the guitar", "{} and a friend in the snow", "{} with a hat in the garden", "{} as a painting",
)  # fmt: skip
AT_ONCE = 2  # prompts in each step


class ContextPull:
    """How far people change the words beside them; 1 is what celebrities do.

    denoiser: whose text encoders read; embed: coefficients (B, S) to token rows; spread: (S,) their standard deviations
    over the celebrities.
    """

    def __init__(self, denoiser: Denoiser, embed: Rows, spread: Tensor) -> None:
        self.denoiser = denoiser
        parts = denoiser.parts
        placed = [place_people(parts.tokenizers[0], parts.max_length, text.split("{}")) for text in PROMPTS]
        self.ids = torch.stack([ids for ids, _ in placed]).to(denoiser.device)
        self.positions = torch.stack([at[0] for _, at in placed]).to(denoiser.device)
        place = torch.arange(self.ids.shape[1], device=denoiser.device)
        ends = (self.ids == parts.end_id).int().argmax(1, keepdim=True)
        self.words = (place > self.positions[:, 1:]) & (place < ends)  # (prompts, L)
        nobody = torch.zeros(len(PROMPTS), len(spread), device=denoiser.device)
        drawn = torch.randn(nobody.shape, generator=torch.Generator().manual_seed(0)).to(denoiser.device) * spread
        every = torch.arange(len(PROMPTS), device=denoiser.device)
        with torch.no_grad():
            self.average = self._read(every, embed(nobody))
            self.usual = self._moved(every, embed(drawn)).clamp_min(1e-12)

    def __call__(self, rows: list[Tensor], step: int) -> Tensor:
        """Mean over people and some of the prompts, for token rows (P, 2, D) per text encoder."""
        people = len(rows[0])
        at = (torch.arange(AT_ONCE, device=self.ids.device) + step * AT_ONCE) % len(PROMPTS)
        return self._moved(at.repeat(people), [part.repeat_interleave(AT_ONCE, 0) for part in rows]) / self.usual

    def _moved(self, at: Tensor, rows: list[Tensor]) -> Tensor:
        """Mean squared distance from the average celebrity's outputs at the words, in prompts ``at`` (B,)."""
        words = self.words[at][..., None]
        apart = (self._read(at, rows) - self.average[at]) ** 2 * words
        return apart.sum() / (words.sum() * apart.shape[-1])

    def _read(self, at: Tensor, rows: list[Tensor]) -> Tensor:
        """Outputs (B, L, W) of prompts ``at`` (B,) with a row (2, D) per text encoder each."""
        with torch.autocast(self.denoiser.device.type, torch.bfloat16, enabled=self.denoiser.fast):
            return read_texts(self.denoiser.parts, self.ids[at], rows, self.positions[at])[0].float()
