"""From a prompt to 77 token ids, without transformers.

Ordinary text is encoded by the model's own ``tokenizer.json`` and equals transformers' CLIPTokenizer; a person is two
reserved ids. Unlike there, a literal ``<|endoftext|>`` in a prompt is text and can end nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityError, NotFoundError

from .prompt import Mention, Words, split_prompt


@dataclass(frozen=True, eq=False)
class Encoded:
    """A prompt as the text encoder reads it.

    ``ids`` (max_length,) int64: start, up to max_length - 2 tokens, end, padding. ``used``: people in order of
    appearance. ``dropped_text``: what did not fit, "" if all did. ``positions``: (name, index of the first of its ids)
    for every mention.
    """

    ids: NDArray[np.int64]
    used: tuple[str, ...]
    dropped_text: str
    positions: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class _Piece:
    """What is kept or dropped as one: a token of ordinary text, or all ids of a person.

    It begins at ``start`` of ``text``, which is part number ``part`` of the prompt.
    """

    ids: tuple[int, ...]
    part: int
    text: str
    start: int = 0
    name: str = ""


class PromptTokenizer:
    """Encodes prompts with a ``tokenizer.json`` as transformers' ``CLIPTokenizer.save_pretrained`` writes it.

    Raises NotFoundError or IntegrityError when the file is missing or damaged.
    """

    def __init__(self, tokenizer_json: Path, max_length: int = 77, *, bos: int, eos: int, pad: int) -> None:
        from tokenizers import Tokenizer

        if not tokenizer_json.is_file():
            raise NotFoundError(f"there is no tokenizer file {tokenizer_json}", "export the bundle again: celebctl export")
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:  # the Rust side raises bare Exception
            raise IntegrityError(f"{tokenizer_json} cannot be read: {error}", "export the bundle again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.max_length, self.bos, self.eos, self.pad = max_length, bos, eos, pad

    def encode(self, prompt: str, names: Mapping[str, tuple[int, ...]]) -> Encoded:
        """Encode a prompt in which the people ``names`` (canonical name -> its ids) may be mentioned.

        When it is too long, text is cut from the end, but every person stays whole and in the picture as long as
        people alone fit. Raises NotFoundError for an unknown ``<name>``.
        """
        kept, dropped = self._fit(list(self._pieces(prompt, names)))
        body = [i for piece in kept for i in piece.ids]
        ids = np.full(self.max_length, self.pad, dtype=np.int64)
        ids[: len(body) + 2] = [self.bos, *body, self.eos]
        positions: list[tuple[str, int]] = []
        at = 1
        for piece in kept:
            if piece.name:
                positions.append((piece.name, at))
            at += len(piece.ids)
        return Encoded(ids, tuple(dict.fromkeys(name for name, _ in positions)), dropped, tuple(positions))

    def _pieces(self, prompt: str, names: Mapping[str, tuple[int, ...]]) -> Iterator[_Piece]:
        for number, part in enumerate(split_prompt(prompt, names)):
            if isinstance(part, Mention):
                yield _Piece(names[part.name], number, part.name, name=part.name)
            else:
                yield from self._text_pieces(part, number)

    def _text_pieces(self, words: Words, part: int) -> Iterator[_Piece]:
        encoding = self._tokenizer.encode(words.text, add_special_tokens=False)
        for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
            yield _Piece((token,), part, words.text, start)

    def _fit(self, pieces: list[_Piece]) -> tuple[list[_Piece], str]:
        room = self.max_length - 2
        text_room = room - sum(len(piece.ids) for piece in pieces if piece.name)
        kept: list[_Piece] = []
        cuts: dict[int, str] = {}  # per part of the prompt: what is left of it after its first cut
        for piece in pieces:
            fits = room >= len(piece.ids) and (bool(piece.name) or text_room > 0)
            if fits:
                kept.append(piece)
                room -= len(piece.ids)
                text_room -= not piece.name
            elif piece.part not in cuts:
                cuts[piece.part] = piece.text[piece.start :].strip()
        return kept, " ".join(cuts.values())
