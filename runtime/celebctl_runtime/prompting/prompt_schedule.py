"""Prompts that change while an image is drawn, as in AUTOMATIC1111's web UI.

    [day:night:0.5]    day for half of the steps, then night
    [night:8]          nothing for 8 steps, then night
    [day::8]           day for 8 steps, then nothing
    [day|night]        day in steps 1, 3, 5, ..., night in steps 2, 4, 6, ...

A number with a decimal point is a fraction of the steps, one without is a step. Each part may hold weights and further
changes. Brackets that fit none of these forms keep the meaning they have in weights.py. Difference from the web UI:
a | elsewhere is a plain character, and does not disable all changes of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from .prompt import mentioned
from .weights import MAX_DEPTH, too_many_brackets

_TOKEN = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\", re.DOTALL)
_WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")
_CLOSING = {"(": ")", "[": "]"}


@dataclass(frozen=True)
class _Change:
    before: list[_Node]
    after: list[_Node]
    when: str


@dataclass(frozen=True)
class _Alternation:
    options: list[list[_Node]]


_Node = str | _Change | _Alternation


@dataclass
class _Open:
    """An open bracket with its parts so far and the separators between them."""

    bracket: str
    parts: list[list[_Node]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list[str])

    def plain(self) -> list[_Node]:
        nodes: list[_Node] = [self.bracket, *self.parts[0]]
        for separator, part in zip(self.separators, self.parts[1:], strict=True):
            nodes += [separator, *part]
        return nodes

    def closed(self) -> list[_Node] | None:
        """The nodes of the closed bracket; None when it has none of the known forms."""
        colons = self.separators.count(":")
        if self.bracket == "[" and self.separators and not colons:
            return [_Alternation(self.parts)]
        if colons > (1 if self.bracket == "(" else 2):
            return None
        if self.bracket == "(" or not colons:
            return [*self.plain(), _CLOSING[self.bracket]]
        *prompts, last = self._between_colons()
        match = _WHEN.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
        return None if match is None else [_Change(prompts[0] if colons == 2 else [], prompts[-1], match[1])]

    def _between_colons(self) -> list[list[_Node]]:
        """The parts between colons; a | beside a colon is a plain character."""
        joined = [self.parts[0]]
        for separator, part in zip(self.separators, self.parts[1:], strict=True):
            if separator == ":":
                joined.append(part)
            else:
                joined[-1] = [*joined[-1], separator, *part]
        return joined


def schedule_prompt(prompt: str, steps: int) -> tuple[tuple[int, str], ...]:
    """The prompts of a run of ``steps`` steps: (last step, prompt), in order; neighbours differ.

    Raises UsageError for more than 100 open brackets (reason "too_many_brackets").

    Example:
        >>> schedule_prompt("a [b:3] c", 10)
        ((3, 'a  c'), (10, 'a b c'))
    """
    if "[" not in prompt or (":" not in prompt and "|" not in prompt):
        return ((steps, prompt),)
    nodes = _parse(prompt)
    ends = sorted({steps, *_ends(nodes, steps)})
    parts: list[tuple[int, str]] = []
    for end in ends:
        text = _at(nodes, end, steps)
        if parts and parts[-1][1] == text:
            parts.pop()
        parts.append((end, text))
    return tuple(parts)


def last_mention(prompt: str, steps: int, names: Collection[str], name: str) -> str:
    """The last prompt of a run that mentions a person; the last one if none does."""
    texts = [text for _, text in schedule_prompt(prompt, steps)]
    return next((text for text in reversed(texts) if name in mentioned(text, names)), texts[-1])


def _parse(prompt: str) -> list[_Node]:
    root: list[_Node] = []
    stack: list[_Open] = []

    def give_up() -> None:
        """The open brackets have no partner: they are plain characters."""
        for one in stack:
            root.extend(one.plain())
        stack.clear()

    for token in _TOKEN.findall(prompt):
        current = stack[-1].parts[-1] if stack else root
        if token in _CLOSING:
            if len(stack) == MAX_DEPTH:
                raise too_many_brackets()
            stack.append(_Open(token))
        elif token in (":", "|") and stack:
            stack[-1].separators.append(token)
            stack[-1].parts.append([])
        elif token in _CLOSING.values():
            nodes = stack[-1].closed() if stack and _CLOSING[stack[-1].bracket] == token else None
            if nodes is None:
                give_up()
                root.append(token)
            else:
                stack.pop()
                (stack[-1].parts[-1] if stack else root).extend(nodes)
        else:
            current.append(token)
    give_up()
    return root


def _last_step(when: str, steps: int) -> int:
    """The last step before a change, 0 to ``steps``."""
    value = float(when) * (steps if "." in when else 1)
    return int(max(0.0, min(float(steps), value)))


def _ends(nodes: list[_Node], steps: int) -> set[int]:
    ends: set[int] = set()
    for node in nodes:
        if isinstance(node, _Change):
            ends |= {_last_step(node.when, steps)} | _ends(node.before, steps) | _ends(node.after, steps)
        elif isinstance(node, _Alternation):
            ends.update(range(1, steps + 1))
    return ends - {0}


def _at(nodes: list[_Node], step: int, steps: int) -> str:
    """The prompt in ``step``, from 1."""
    text = ""
    for node in nodes:
        if isinstance(node, _Change):
            text += _at(node.before if step <= _last_step(node.when, steps) else node.after, step, steps)
        elif isinstance(node, _Alternation):
            text += _at(node.options[(step - 1) % len(node.options)], step, steps)
        else:
            text += node
    return text
