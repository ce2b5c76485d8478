"""What is common to all forms of an opened model, whether its networks are loaded or only its token tables."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_models.checkpoints.registry import ModelCard


@dataclass(frozen=True)
class TokenTables:
    """What the celeb basis needs of a model: its token tables, tokenizers and card.

    Attributes:
        path: The folder or file that the weights were read from.
        tokenizers: One per text encoder; an XL model has two.
        card: Facts about the model that its weights do not contain.
    """

    path: Path
    tokenizers: tuple[Any, ...]
    card: ModelCard

    @property
    def name(self) -> str:
        """The model's name, as its card gives it."""
        return self.card.name

    @property
    def family(self) -> str:
        """The model family, such as "sd1" or "sdxl"."""
        return self.card.family

    def token_rows(self, encoder: int = 0) -> NDArray[np.float32]:
        """The token table of one text encoder, (V, D) float32, on the CPU."""
        raise NotImplementedError

    def all_rows(self) -> list[NDArray[np.float32]]:
        """The token tables (V, D) of all text encoders."""
        return [self.token_rows(encoder) for encoder in range(len(self.tokenizers))]

    @cached_property
    def table_hash(self) -> str:
        """SHA-256 over all token tables and vocabularies; identities fit the models with the same hash.

        Tables are hashed as float32, whatever the dtype of the other networks: one checkpoint has one hash, however it
        was opened.
        """
        digest = hashlib.sha256()
        for encoder, tokenizer in enumerate(self.tokenizers):
            table = np.ascontiguousarray(self.token_rows(encoder))
            vocabulary = sorted(cast("dict[str, int]", tokenizer.get_vocab()).items())
            digest.update(json.dumps([list(table.shape), vocabulary], ensure_ascii=True).encode())
            digest.update(table.astype("<f4", copy=False).data)
        return digest.hexdigest()
