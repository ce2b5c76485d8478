"""Tokenize prompts to 77 ids, or to windows of 77, without transformers.

Plain text is encoded by the model's own ``tokenizer.json``, with the same ids as transformers' CLIPTokenizer; a person
is two reserved ids. Unlike there, a literal ``<|endoftext|>`` in a prompt is plain text.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityError, NotFoundError, UsageError

from .prompt import Mention, PlainText, split_prompt
from .weights import Section, WeightedPart

MAX_WINDOWS = 64  # of one prompt
_BACKTRACK = 20  # tokens after the last comma that move to the next window: the web UI's default


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


@dataclass(frozen=True, eq=False)
class PromptWindows:
    """A tokenized prompt of any length, in W windows that are encoded one by one.

    Attributes:
        ids: (W, max_length) int64: each start, up to max_length - 2 tokens, end, padding.
        weights: (W, max_length) float32; 1 for start, end and padding.
        counts: Tokens of each window, without start, end and padding.
        people: Names of the people mentioned, in order of appearance.
        dropped_text: Text that did not fit, or "".
        positions: (name, window, index of the first of its ids) for every mention.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    counts: tuple[int, ...]
    people: tuple[str, ...]
    dropped_text: str
    positions: tuple[tuple[str, int, int], ...]


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
    weight: float = 1.0


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
        self._comma: list[int] = self._tokenizer.encode(",", add_special_tokens=False).ids

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

    def encode_windows(
        self, sections: Sequence[Section], names: Mapping[str, tuple[int, ...]], max_windows: int = MAX_WINDOWS
    ) -> PromptWindows:
        """Encode a prompt with weights in windows of max_length - 2 tokens, as AUTOMATIC1111's web UI does.

        A section starts a new window, as does a token that does not fit; if one of the last 20 tokens is a comma, all
        after it move along. The ids of a person stay together.

        Args:
            sections: The prompt, see weights.py.
            names: Token ids of the people who may be mentioned.
            max_windows: 1 puts all sections into one window, with plain text dropped as :meth:`encode` does.

        Raises:
            UsageError: For more windows (reason "prompt_too_long").
        """
        if max_windows == 1:
            kept, dropped = self._fit(self._weighted_pieces([part for section in sections for part in section], names))
            return self._window_arrays([kept], dropped)
        used = sections[:-1] if len(sections) > 1 and not sections[-1] else sections  # a BREAK at the end adds nothing
        windows = [window for section in used for window in self._windows(self._weighted_pieces(section, names))]
        if len(windows) > max_windows:
            tokens = max_windows * (self.max_length - 2)
            raise UsageError(
                f"the prompt has more than {tokens} tokens",
                "shorten it",
                reason="prompt_too_long",
                maximum=tokens,
            )
        return self._window_arrays(windows, "")

    def _windows(self, pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
        """The windows of one section, at least one."""
        room = self.max_length - 2
        window: list[_Piece] = []
        comma, count = -1, 0  # number of pieces up to the last comma, and tokens in the window
        for piece in pieces:
            is_comma = list(piece.ids) == self._comma
            if not is_comma and count == room and comma > 0 and _tokens(window[comma - 1 :]) <= _BACKTRACK:
                yield window[:comma]
                window, comma = window[comma:], -1
                count = _tokens(window)
            if is_full := count + len(piece.ids) > room:
                yield window
                window, comma, count = [], -1, 0
            window.append(piece)
            count += len(piece.ids)
            if is_comma and not is_full:  # in the web UI a comma that starts a window does not count
                comma = len(window)
        yield window

    def _window_arrays(self, windows: Sequence[Sequence[_Piece]], dropped: str) -> PromptWindows:
        ids = np.full((len(windows), self.max_length), self.pad, dtype=np.int64)
        weights = np.ones(ids.shape, dtype=np.float32)
        positions: list[tuple[str, int, int]] = []
        for number, window in enumerate(windows):
            index = 1
            for piece in window:
                end = index + len(piece.ids)
                ids[number, index:end], weights[number, index:end] = piece.ids, piece.weight
                if piece.name:
                    positions.append((piece.name, number, index))
                index = end
            ids[number, 0], ids[number, index] = self.bos, self.eos
        people = tuple(dict.fromkeys(name for name, _, _ in positions))
        return PromptWindows(ids, weights, tuple(map(_tokens, windows)), people, dropped, tuple(positions))

    def _weighted_pieces(self, parts: Sequence[WeightedPart], names: Mapping[str, tuple[int, ...]]) -> list[_Piece]:
        return [
            replace(piece, weight=each.weight)
            for number, each in enumerate(parts)
            for piece in self._pieces(each.part, number, names)
        ]

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


def _tokens(pieces: Sequence[_Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)
