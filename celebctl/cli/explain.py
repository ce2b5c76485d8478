"""What `gen --explain` prints."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from .console import CliConsole
from .naming import counted

if TYPE_CHECKING:
    from celebctl_runtime.explain import ExplainedPrompt, Explanation

_MAX_RANGES = 4  # of steps in one line


def print_explanation(console: CliConsole, explanation: "Explanation") -> None:
    """Print an explanation; with --json as a document."""
    request = explanation.request
    document = {**asdict(explanation), "request": request.to_json()}
    console.output(list(_lines(explanation)), document)


def _lines(explanation: "Explanation") -> Iterator[str]:
    request = explanation.request
    yield _row("syntax", request.syntax)
    yield _row("seed", str(request.seed))
    for choice in explanation.choices:
        yield _row("wildcard", f"{choice.wildcard} -> {choice.text}")
    if explanation.choices:
        yield _row("prompt", request.prompt)
    yield _row("people", ", ".join(explanation.people) or "none")
    if request.layout:
        yield _row("layout", request.layout)
    for part in explanation.parts:
        yield ""
        yield f"{_steps(part.steps)} of {explanation.steps}"
        yield from _prompt_lines("prompt", part.prompt, explanation)
        if request.negative:
            yield from _prompt_lines("negative prompt", part.negative, explanation)
        if part.toward is not None:
            yield from _prompt_lines("second prompt", part.toward, explanation)


def _prompt_lines(title: str, prompt: "ExplainedPrompt", explanation: "Explanation") -> Iterator[str]:
    yield f"  {title}"
    section = 0
    for piece in prompt.pieces:
        for _ in range(piece.section - section):
            yield "            BREAK"
        section = piece.section
        text = f"{piece.person}  (person)" if piece.person else f'"{piece.text}"'
        yield f"    {piece.weight:6.4g}  {text}"
    counts = " + ".join(map(str, prompt.windows))
    windows = counted(len(prompt.windows), "window")
    padded = f", padded to {explanation.windows}" if explanation.windows > len(prompt.windows) else ""
    yield f"    tokens  {counts} of {explanation.window_tokens} in {windows}{padded}"
    for place in prompt.people:
        yield f"    person  {place.person} at token {place.token} of window {place.window + 1}"
    if prompt.dropped_text:
        yield f"    cut     {prompt.dropped_text}"


def _row(name: str, value: str) -> str:
    return f"{name:9} {value}"


def _steps(ranges: Sequence[tuple[int, int]]) -> str:
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:_MAX_RANGES]]
    return f"steps {', '.join(texts)}{', ...' if len(ranges) > _MAX_RANGES else ''}"
