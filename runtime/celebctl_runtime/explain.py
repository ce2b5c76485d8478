"""What a request's prompts mean, without drawing: weights, windows, people, and changes during the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .encoded_request import RequestPrompts, read_sections
from .prompting.prompt import Mention
from .request import Request, resolve

if TYPE_CHECKING:
    from .bundle.bundle import Bundle
    from .identity import Identity
    from .prompting.tokenizer import PromptWindows
    from .prompting.wildcards import Choice


@dataclass(frozen=True)
class Piece:
    """Neighbouring text of one weight, or a mention of a person (``person``: the canonical name, else "")."""

    text: str
    weight: float
    person: str
    section: int  # BREAKs before it


@dataclass(frozen=True)
class Place:
    """Where a person's first token is: ``window`` from 0, ``token`` from 1 in its window, after the start token."""

    person: str
    window: int
    token: int


@dataclass(frozen=True)
class ExplainedPrompt:
    """One text as it is encoded: ``windows`` has the number of tokens of each window, at most 75."""

    text: str
    pieces: tuple[Piece, ...]
    windows: tuple[int, ...]
    people: tuple[Place, ...]
    dropped_text: str


@dataclass(frozen=True)
class ExplainedPart:
    """The prompts of some steps: ``steps`` are ranges (first, last), from 1; ``toward``: the second prompt, if any."""

    steps: tuple[tuple[int, int], ...]
    prompt: ExplainedPrompt
    negative: ExplainedPrompt
    toward: ExplainedPrompt | None


@dataclass(frozen=True)
class Explanation:
    """What was understood of a request.

    Attributes:
        request: Complete, with every default filled in; its ``syntax`` is what a recipe would say.
        steps: That run.
        people: Of all prompts, in order of appearance.
        parts: Distinct prompts in order of their first step.
        windows: That every prompt is padded to.
        window_tokens: The room in one window, usually 75.
        choices: The wildcards replaced, and what was chosen.
    """

    request: Request
    steps: int
    people: tuple[str, ...]
    parts: tuple[ExplainedPart, ...]
    windows: int
    window_tokens: int
    choices: tuple[Choice, ...]


def explain(
    bundle: Bundle, request: Request, overrides: Sequence[Identity] = (), choices: Sequence[Choice] = ()
) -> Explanation:
    """Read a request's prompts as :func:`celebctl_runtime.pipeline.generate` does, with the same errors.

    ``choices``: of the wildcards already replaced in it, for the result.
    """
    bundle.refresh()
    prompts = RequestPrompts(bundle, [resolve(request, bundle.manifest)], overrides)
    encoded = prompts.encoded(0)
    syntax, names = encoded.request.syntax, encoded.request.identities or ()

    def explained(text: str, windows: PromptWindows) -> ExplainedPrompt:
        pieces = tuple(
            Piece(each.part.name, each.weight, each.part.name, number)
            if isinstance(each.part, Mention)
            else Piece(each.part.text, each.weight, "", number)
            for number, section in enumerate(read_sections(text, syntax, names))
            for each in section
        )
        places = tuple(Place(*position) for position in windows.positions)
        return ExplainedPrompt(text, pieces, windows.counts, places, windows.dropped_text)

    parts = tuple(
        ExplainedPart(
            _ranges(encoded.timeline, number),
            explained(texts[0], part.prompt),
            explained(texts[1], part.negative),
            explained(texts[2], part.toward[0]) if part.toward else None,
        )
        for number, (part, texts) in enumerate(zip(encoded.parts, encoded.texts, strict=True))
    )
    room = bundle.manifest.tokenizer.max_length - 2
    steps = encoded.timeline[-1][0]
    return Explanation(encoded.request, steps, tuple(names), parts, encoded.windows, room, tuple(choices))


def _ranges(timeline: Sequence[tuple[int, int]], number: int) -> tuple[tuple[int, int], ...]:
    starts = [1, *(end + 1 for end, _ in timeline)]
    return tuple((start, end) for start, (end, part) in zip(starts, timeline, strict=False) if part == number)
