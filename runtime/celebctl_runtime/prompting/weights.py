"""Weights and breaks in a prompt, as in AUTOMATIC1111's web UI.

    (smile)        weight 1.1            \\( \\) \\[ \\]   plain brackets
    [smile]        weight 1/1.1          \\\\              a plain backslash
    (smile:1.3)    weight 1.3            BREAK           starts another window, see tokenizer.py

Nested weights are multiplied. A bracket without a partner reaches to the end of the prompt; a closing one is plain.
Differences from the web UI: a backslash before anything else is kept, and BREAK works inside brackets too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import UsageError, out_of_range

from .prompt import Mention, PlainText, split_prompt

#: How a prompt is read: brackets are plain characters, or have the meaning described here and in prompt_schedule.py.
PLAIN, WEIGHTED = "plain", "weighted"
SYNTAXES = (PLAIN, WEIGHTED)
MAX_WEIGHT = 100  # of nested weights multiplied, positive or negative
MAX_DEPTH = 100  # open brackets
ROUND, SQUARE = 1.1, 1 / 1.1
_LEAST_MEAN = 1e-5  # of the mean magnitude; a smaller mean is rounding, and so would be the ratio of two of them

_SYNTAX = re.compile(r"[()\[\]]|\\\\|\bBREAK\b")
_BREAK = re.compile(r"\bBREAK\b")
_TOKEN = re.compile(r"\\[()\[\]\\]|[(\[)\]]|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|[\\:]")


@dataclass(frozen=True)
class WeightedPart:
    """A part of a prompt: plain text or a mention, and its weight; 1 changes nothing."""

    part: PlainText | Mention
    weight: float = 1.0


#: The parts between two BREAKs.
Section = tuple[WeightedPart, ...]


def uses_syntax(prompt: str) -> bool:
    """Whether a prompt can have another meaning than its plain text."""
    return _SYNTAX.search(prompt) is not None


def parse_weights(prompt: str, names: Collection[str]) -> tuple[Section, ...]:
    """The sections of a prompt, at least one; neighbouring texts of the same weight are joined.

    Args:
        prompt: The prompt.
        names: Canonical names of the people who may be mentioned.

    Raises:
        UsageError: For an invalid weight (reasons "invalid_weight" and "weight_out_of_range"), or more than 100 open
            brackets ("too_many_brackets").
        NotFoundError: For ``<carol>`` when that is not one of the names.

    Example:
        >>> [(each.part.text, each.weight) for each in parse_weights("an (important) word", ())[0]]
        [('an ', 1.0), ('important', 1.1), (' word', 1.0)]
    """
    parser = _Parser()
    texts = _BREAK.split(prompt)
    for number, text in enumerate(texts):
        if number:  # the space around a BREAK belongs to it
            parser.breaks.append(len(parser.parts))
            text = text.lstrip()
        if number + 1 < len(texts):
            text = text.rstrip()
        for part in split_prompt(text, names):
            if isinstance(part, Mention):
                parser.add(part)
            else:
                parser.read(part.text)
    parser.close_all()
    edges = [0, *parser.breaks, len(parser.parts)]
    return tuple(_joined(parser.parts[start:end]) for start, end in pairwise(edges))


class _Parser:
    """Parts with the weights so far, and where the open brackets are."""

    def __init__(self) -> None:
        self.parts: list[tuple[PlainText | Mention, float]] = []
        self.breaks: list[int] = []
        self._open: dict[str, list[int]] = {"(": [], "[": []}

    def add(self, part: PlainText | Mention) -> None:
        self.parts.append((part, 1.0))

    def read(self, text: str) -> None:
        for match in _TOKEN.finditer(text):
            token, weight = match[0], match["weight"]
            if token in self._open:
                self._begin(token)
            elif weight is not None and self._open["("]:
                self._multiply("(", _number(weight))
            elif token == ")" and self._open["("]:
                self._multiply("(", ROUND)
            elif token == "]" and self._open["["]:
                self._multiply("[", SQUARE)
            else:
                escaped = len(token) == 2 and token[0] == "\\"
                self.add(PlainText(token[1:] if escaped else token))

    def close_all(self) -> None:
        for bracket, factor in (("(", ROUND), ("[", SQUARE)):
            while self._open[bracket]:
                self._multiply(bracket, factor)

    def _begin(self, bracket: str) -> None:
        if sum(map(len, self._open.values())) == MAX_DEPTH:
            raise too_many_brackets()
        self._open[bracket].append(len(self.parts))

    def _multiply(self, bracket: str, factor: float) -> None:
        start = self._open[bracket].pop()
        self.parts[start:] = [(part, weight * factor) for part, weight in self.parts[start:]]


def too_many_brackets() -> UsageError:
    """The error for a prompt with too many open brackets."""
    return UsageError(
        f"the prompt has more than {MAX_DEPTH} open brackets",
        "close some, write \\( for a plain one, or use the plain syntax",
        reason="too_many_brackets",
    )


def emphasize(context: NDArray[np.float32], weights: NDArray[np.float32], widths: Sequence[int]) -> NDArray[np.float32]:
    """Apply the weights of tokens to encoded windows, as the web UI's emphasis mode "Original" does.

    Every token's row is multiplied by its weight, and then the whole window by one number, so that its mean over tokens
    and features is what it was. A mean that is zero up to rounding is not restored.

    Args:
        context: N encoded windows (N, L, D).
        weights: Of their tokens, (N, L).
        widths: Features whose mean is restored together, with sum D: each text encoder of an XL model by itself.

    Returns:
        (N, L, D); windows whose weights are all 1 are unchanged.
    """
    result = context.copy()
    edges = [0, *accumulate(widths)]
    for index in np.flatnonzero((weights != 1.0).any(axis=1)).tolist():
        for start, end in pairwise(edges):
            before = context[index, :, start:end].astype(np.float64)
            after = before * weights[index, :, None].astype(np.float64)
            old, new, least = float(before.mean()), float(after.mean()), _LEAST_MEAN * float(np.abs(before).mean())
            result[index, :, start:end] = after * (old / new if min(abs(old), abs(new)) > least else 1.0)
    return result


def _number(text: str) -> float:
    try:
        weight = float(text)
    except ValueError as error:
        raise UsageError(
            f"the weight {text} in the prompt is not a number",
            "write (smile:1.3), or \\( for a plain bracket",
            reason="invalid_weight",
            weight=text,
        ) from error
    return weight


def _joined(parts: Sequence[tuple[PlainText | Mention, float]]) -> Section:
    """Parts with neighbouring texts of the same weight joined; checks the weights."""
    joined: list[WeightedPart] = []
    for part, weight in parts:
        if not abs(weight) <= MAX_WEIGHT:
            raise out_of_range("weight", round(weight, 6), -MAX_WEIGHT, MAX_WEIGHT)
        last = joined[-1] if joined else None
        if isinstance(part, PlainText) and last and isinstance(last.part, PlainText) and last.weight == weight:
            joined[-1] = WeightedPart(PlainText(last.part.text + part.text), weight)
        else:
            joined.append(WeightedPart(part, weight))
    return tuple(joined)
