"""The prompts of requests, tokenized: people, layouts, weights, windows, and changes during the steps."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .bundle.bundle import Bundle
from .bundle.overrides import PromptPeople
from .errors import UsageError
from .prompting.layout import parse_layout, resolve_layout
from .prompting.prompt import Mention, mentioned, split_prompt
from .prompting.prompt_schedule import schedule_prompt
from .prompting.tokenizer import MAX_WINDOWS, PromptWindows
from .prompting.weights import PLAIN, WEIGHTED, Section, WeightedPart, parse_weights, uses_syntax
from .request import Request

if TYPE_CHECKING:
    from .bundle.overrides import EmbeddingOverride
    from .identity import Identity

TokenIds = Mapping[str, tuple[int, ...]]  # of people
Sections = tuple[Section, ...]


@dataclass(frozen=True, eq=False)
class StepPrompts:
    """The prompts of some of the steps.

    ``regions``: the prompt of each region of the layout; ``toward``: the second prompt and that of each region, or ();
    ``was``: for an edit, the prompt of the init image.
    """

    prompt: PromptWindows
    negative: PromptWindows
    regions: tuple[PromptWindows, ...]
    toward: tuple[PromptWindows, ...]
    was: tuple[PromptWindows, ...] = ()


@dataclass(frozen=True, eq=False)
class EncodedRequest:
    """A request with its tokenized prompts.

    Attributes:
        request: With people and layout resolved.
        parts: The distinct prompts, in order of their first step.
        timeline: (last step, number of the part) for all steps that run, from 1; neighbours differ.
        texts: (prompt, negative prompt, second prompt or "") of each part, as written.
        windows: That all its encoded prompts are padded to.
    """

    request: Request
    parts: tuple[StepPrompts, ...]
    timeline: tuple[tuple[int, int], ...]
    texts: tuple[tuple[str, str, str], ...]
    windows: int

    @property
    def dropped_text(self) -> str:
        """What did not fit, of the prompts of all parts."""
        prompts = dict.fromkeys(part.prompt.dropped_text for part in self.parts)
        negatives = dict.fromkeys(part.negative.dropped_text for part in self.parts)
        seconds = dict.fromkeys(second.dropped_text for part in self.parts for second in part.toward[:1])
        return " ".join(filter(None, (*prompts, *negatives, *seconds)))


class RequestPrompts:
    """The prompts of a call: people are resolved, and each prompt is split, once per state of the bundle."""

    def __init__(self, bundle: Bundle, requests: Sequence[Request], overrides: Sequence[Identity]) -> None:
        self.requests = list(requests)  # the layout of each is resolved when its prompt is split
        self._bundle, self._overrides = bundle, overrides
        self._tokenizer = bundle.tokenizer()
        self.empty_window = self._tokenizer.encode("", {}).ids[None]  # (1, 77)
        self._resolve_people()

    def __len__(self) -> int:
        return len(self.requests)

    def _resolve_people(self) -> None:
        self._manifest = self._bundle.manifest
        self.people = PromptPeople.resolve(self._bundle, self._overrides)
        self._encoded: dict[int, EncodedRequest] = {}
        # Bundles of earlier versions have a step graph for contexts of one window only.
        context = self._manifest.graphs["step"].inputs.get("context")
        is_free = context is not None and any(isinstance(axis, str) for axis in context.shape[2:3])
        self._max_windows = MAX_WINDOWS if is_free else 1

    def encoded(self, index: int) -> EncodedRequest:
        """Request number ``index``, tokenized for the manifest as last read. Raises NotFoundError and UsageError."""
        if self._manifest is not self._bundle.manifest:
            self._resolve_people()
        if index not in self._encoded:
            self._encoded[index] = self._encode(index)
        return self._encoded[index]

    def overrides(self, batch: Sequence[EncodedRequest]) -> list[EmbeddingOverride]:
        """The overrides of a batch, whose requests have the same likeness."""
        names = {name for encoded in batch for name in encoded.request.identities or ()}
        return self.people.overrides_for(self._bundle, names, batch[0].request.likeness)

    def _encode(self, index: int) -> EncodedRequest:
        request, ids = self.requests[index], self.people.ids
        if request.identities is not None:
            for name in request.identities:
                if name not in ids:
                    raise self._bundle.unknown_person(name)
            ids = {name: ids[name] for name in request.identities}
        request = self._simplified(request, ids)
        timeline, texts = _timeline(request)
        sections = [[read_sections(text, request.syntax, ids) for text in each] for each in texts]
        mentions = {tuple(dict.fromkeys(_mentions(prompt))) for prompt, *_ in sections}
        # A layout is derived from people who are in the image from the first step to the last.
        names = next(iter(mentions)) if len(mentions) == 1 else ()
        layout = resolve_layout(request.layout, self._manifest.defaults.layout, names)
        self.requests[index] = request = replace(request, layout=layout)
        regions = [region.name for region in parse_layout(layout)]
        parts = tuple(self._part(request, each, regions, ids) for each in sections)
        _check_edit(request, parts)
        found = [*(part.prompt for part in parts), *(part.negative for part in parts)]
        found += [other for part in parts for other in (*part.toward[:1], *part.was)]
        people = tuple(dict.fromkeys(name for each in found for name in each.people))
        allowed = people
        if (
            request.identities is not None
        ):  # of a first pass, which had other steps: not all may be in those of this one
            raw = " ".join((request.prompt, request.negative, request.toward))
            allowed = (*people, *mentioned(raw, ids))
        _check_mentioned("layout", regions, allowed)
        drawn = [name for part in parts for name in part.prompt.people]
        _check_mentioned("refine_faces", [region.name for region in parse_layout(request.refine_faces)], drawn)
        if isinstance(request.likeness, tuple):
            _check_mentioned("likeness", [name for name, _ in request.likeness], allowed)
        is_guided = (request.guidance or 0.0) > 1.0 and not self._manifest.guidance_is_embedded
        used = [one for part in parts for one in (part.prompt, *part.regions, *part.toward, *part.was)]
        windows = max(len(one.ids) for one in used + [part.negative for part in parts] * is_guided)
        return EncodedRequest(replace(request, identities=people), parts, timeline, texts, windows)

    def _simplified(self, request: Request, ids: TokenIds) -> Request:
        """The request, in the plain syntax if all its prompts have the same ids in it."""
        prompts = request.prompt, request.negative, request.toward, request.was or ""
        if request.syntax == PLAIN or any(map(uses_syntax, prompts)):
            return request
        fits = self._max_windows == 1 or not any(self._tokenizer.encode(text, ids).dropped_text for text in prompts)
        return replace(request, syntax=PLAIN) if fits else request

    def _part(self, request: Request, texts: Sequence[Sections], regions: Sequence[str], ids: TokenIds) -> StepPrompts:
        prompt, negative, second = texts
        encode, limit = self._tokenizer.encode_windows, 1 if request.syntax == PLAIN else self._max_windows
        # In a region, all people of the layout have the ids of the region's person: no other face can appear there.
        by_region = [{**ids, **dict.fromkeys(regions, ids[name])} for name in regions if name in ids]
        encoded, *others = (encode(prompt, each, limit) for each in (ids, *by_region))
        toward = [encode(second, each, limit) for each in (ids, *by_region)] if request.toward else []
        was = [encode(read_sections(request.was, request.syntax, ids), ids, limit)] if request.was is not None else []
        return StepPrompts(encoded, encode(negative, ids, limit), tuple(others), tuple(toward), tuple(was))


def read_sections(prompt: str, syntax: str, names: Collection[str]) -> Sections:
    """The sections of a prompt in a syntax; the plain one has one section, of weight 1."""
    if syntax == WEIGHTED:
        return parse_weights(prompt, names)
    return (tuple(WeightedPart(part) for part in split_prompt(prompt, names)),)


def _mentions(sections: Sections) -> Iterator[str]:
    return (each.part.name for section in sections for each in section if isinstance(each.part, Mention))


def _timeline(request: Request) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[str, str, str], ...]]:
    """The timeline and the texts of an :class:`EncodedRequest`. Steps that an init image skips are not counted."""
    steps = request.steps - request.skipped
    if request.syntax == PLAIN:
        return ((steps, 0),), ((request.prompt, request.negative, request.toward),)
    prompts, negatives = schedule_prompt(request.prompt, steps), schedule_prompt(request.negative, steps)
    seconds = schedule_prompt(request.toward, steps)
    numbers: dict[tuple[str, str, str], int] = {}
    timeline: list[tuple[int, int]] = []
    for end in sorted({end for end, _ in (*prompts, *negatives, *seconds)}):
        texts = _text_at(prompts, end), _text_at(negatives, end), _text_at(seconds, end)
        timeline.append((end, numbers.setdefault(texts, len(numbers))))
    return tuple(timeline), tuple(numbers)


def _text_at(schedule: Sequence[tuple[int, str]], step: int) -> str:
    return next(text for end, text in schedule if step <= end)


def _check_edit(request: Request, parts: Sequence[StepPrompts]) -> None:
    """Raise UsageError for an edit whose prompts say the same, or that goes with what changes during the steps."""
    if request.was is None:
        return
    if len(parts) > 1 or request.toward:
        raise UsageError(
            "an edit needs one prompt for all steps", "leave out [a:b:0.5] and [a|b]", reason="edit_with_changes"
        )
    prompt, (was,) = parts[0].prompt, parts[0].was
    if np.array_equal(was.ids, prompt.ids) and np.array_equal(was.weights, prompt.weights):
        raise UsageError(
            "the new prompt says the same as the old one", "say what is to change", reason="edit_changes_nothing"
        )


def _check_mentioned(field: str, names: Sequence[str], people: Sequence[str]) -> None:
    """Raise UsageError when a layout or likeness names a person missing from the prompt."""
    for name in names:
        if name not in people:
            raise UsageError(
                f"the {field} names {name}, but the prompt names {', '.join(people) or 'no known person'}",
                f"name {name} in the prompt, or remove {name} from the {field}",
                reason=f"not_in_prompt_{field}",
                name=name,
            )
