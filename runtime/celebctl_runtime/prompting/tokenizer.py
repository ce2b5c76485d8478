"""Tokenize prompts to 77 ids, without transformers.

Plain text is encoded by the model's own ``tokenizer.json``, with the same ids as transformers' CLIPTokenizer; a person
is two reserved ids. Unlike there, a literal ``<|endoftext|>`` in a prompt is plain text.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityError, NotFoundError

from .prompt import Mention, PlainText, split_prompt


@contextmanager
def translate_tokenizer_errors(path: Path) -> Generator[None]:
    """Turn what the tokenizers library raises into an IntegrityError about the file ``path``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a bare Exception, or the panic of a regular expression, which is none
        problem = f"{path} cannot be used: {str(error)[:300]}"
        raise IntegrityError(problem, "export the bundle again", reason="bundle_damaged") from error


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A tokenized prompt.

    Attributes:
        ids: (max_length,) int64: start, up to max_length - 2 tokens, end, padding.
        people: Names of the people mentioned, in order of appearance.
        dropped_text: Text that did not fit, or "".
        positions: (name, index of the first of its ids) for every mention.
    """

    ids: NDArray[np.int64]
    people: tuple[str, ...]
    dropped_text: str
    positions: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class _Piece:
    """A unit that is kept or dropped: a token of plain text at ``start`` of ``text``, or all ids of a person.

    ``part`` is the number of the prompt's part that ``text`` is.
    """

    ids: tuple[int, ...]
    part: int
    text: str
    start: int = 0
    name: str = ""


class PromptTokenizer:
    """A tokenizer read from a ``tokenizer.json`` as transformers' ``CLIPTokenizer.save_pretrained`` writes it.

    Args:
        tokenizer_json: The file.
        max_length: Ids per prompt.
        bos: Id of the start token.
        eos: Id of the end token.
        pad: Id that fills the rest.
        vocabulary: How many ids stand for plain text; None does not check. Higher ones are those of people.

    Raises:
        NotFoundError: When the file is missing.
        IntegrityError: When it is damaged.
    """

    def __init__(
        self, tokenizer_json: Path, max_length: int = 77, *, bos: int, eos: int, pad: int, vocabulary: int | None = None
    ) -> None:
        from tokenizers import Tokenizer

        if not tokenizer_json.is_file():
            raise NotFoundError(
                f"there is no tokenizer file {tokenizer_json}", "export the bundle again", reason="bundle_damaged"
            )
        with translate_tokenizer_errors(tokenizer_json):
            self._tokenizer = Tokenizer.from_file(str(tokenizer_json))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.max_length, self.bos, self.eos, self.pad = max_length, bos, eos, pad
        self._file, self._vocabulary = tokenizer_json, vocabulary

    def encode(self, prompt: str, names: Mapping[str, tuple[int, ...]]) -> EncodedPrompt:
        """Encode a prompt that may mention the people ``names`` (canonical name -> token ids).

        When the prompt is too long, plain text is dropped from the end; people are kept as long as they alone fit.
        Raises NotFoundError for an unknown ``<name>``, IntegrityError when the tokenizer fails.
        """
        return self.encode_parts(split_prompt(prompt, names), names)

    def encode_parts(self, parts: Sequence[PlainText | Mention], names: Mapping[str, tuple[int, ...]]) -> EncodedPrompt:
        """:meth:`encode` for a prompt that :func:`split_prompt` has split."""
        pieces = [piece for number, part in enumerate(parts) for piece in self._pieces(part, number, names)]
        kept, dropped = self._fit(pieces)
        body = [i for piece in kept for i in piece.ids]
        ids = np.full(self.max_length, self.pad, dtype=np.int64)
        ids[: len(body) + 2] = [self.bos, *body, self.eos]
        positions: list[tuple[str, int]] = []
        index = 1
        for piece in kept:
            if piece.name:
                positions.append((piece.name, index))
            index += len(piece.ids)
        return EncodedPrompt(ids, tuple(dict.fromkeys(name for name, _ in positions)), dropped, tuple(positions))

    def _pieces(self, part: PlainText | Mention, number: int, names: Mapping[str, tuple[int, ...]]) -> Iterator[_Piece]:
        if isinstance(part, Mention):
            yield _Piece(names[part.name], number, part.name, name=part.name)
            return
        with translate_tokenizer_errors(self._file):
            encoding = self._tokenizer.encode(part.text, add_special_tokens=False)
            if self._vocabulary is not None and max(encoding.ids, default=0) >= self._vocabulary:
                raise ValueError(f"it has the id {max(encoding.ids)}, the model only {self._vocabulary} words")
        for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
            yield _Piece((token,), number, part.text, start)

    def _fit(self, pieces: list[_Piece]) -> tuple[list[_Piece], str]:
        """The pieces that fit, and the dropped text."""
        room = self.max_length - 2
        text_room = room - sum(len(piece.ids) for piece in pieces if piece.name)
        kept: list[_Piece] = []
        cuts: dict[int, str] = {}  # part number -> its text from the first dropped token on
        for piece in pieces:
            if room >= len(piece.ids) and (piece.name or text_room > 0):
                kept.append(piece)
                room -= len(piece.ids)
                text_room -= not piece.name
            elif piece.part not in cuts:
                cuts[piece.part] = piece.text[piece.start :].strip()
        return kept, " ".join(cuts.values())
