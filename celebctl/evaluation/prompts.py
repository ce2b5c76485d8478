"""Evaluation prompts in the paper's categories, and prompts from files.

``{}`` stands for the person, a second ``{}`` for the other one. ``states`` lists the attributes that a prompt states in
the attribute reader's vocabulary; it stays empty for models without such a reader, whose images CLIP scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from celebctl.strict_toml import parse_toml
from celebctl_runtime.errors import NotFoundError, UsageError
from celebctl_runtime.files import read_regular

#: The paper's categories, in the order of its tables; "celebrity" and "pair" show two people.
CATEGORIES = ("reconstruction", "action", "expression", "style", "celebrity", "pair")
PAIR_CATEGORIES = frozenset({"celebrity", "pair"})


@dataclass(frozen=True)
class Prompt:
    """One evaluation prompt.

    Attributes:
        category: One of ``CATEGORIES``.
        text: The prompt with ``{}`` in place of names.
        states: Attribute -> value that an image has to show.
    """

    category: str
    text: str
    states: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    @property
    def people(self) -> int:
        """Number of people the image should show."""
        return 2 if self.category in PAIR_CATEGORIES else 1

    def format(self, person: str, other: str) -> str:
        """The prompt with names filled in; ``other`` for the second ``{}``, if there is one."""
        return self.text.format(person, other)


def _world_prompts() -> tuple[Prompt, ...]:
    rows = (
        ("reconstruction", "a photo of {}", ""),
        ("action", "a portrait of {} on the beach", "place=beach"),
        ("action", "{} in the snow", "place=snow"),
        ("action", "{} in space", "place=space"),
        ("expression", "a photo of {} smiling", "expression=smiling"),
        ("expression", "{} looking surprised", "expression=surprised"),
        ("expression", "a picture of {} crying", "expression=crying"),
        ("action", "{} wearing a red hat", "worn=red hat"),
        ("action", "a photo of {} in a suit", "worn=suit"),
        ("action", "{} wearing sunglasses", "worn=sunglasses"),
        (
            "action",
            "{} with a golden crown in the forest, smiling",
            "worn=crown, place=forest, expression=smiling",
        ),
        ("action", "{} playing chess in the city", "act=chess, place=city"),
        ("action", "{} playing the guitar on the beach, laughing", "act=guitar, place=beach, expression=smiling"),
        ("action", "a good photo of {} drinking tea", "act=tea"),
        ("style", "a black and white photo of {}", "style=black and white"),
        ("style", "a black and white picture of {} in the city", "style=black and white, place=city"),
        ("pair", "{} and {} playing chess", "act=chess"),
        ("pair", "{} and {} shaking hands on the beach", "act=handshake, place=beach"),
        ("pair", "a photo of {} and {} together, smiling", "expression=smiling"),
        ("pair", "{} and {} drinking tea in the snow", "act=tea, place=snow"),
        ("celebrity", "{} and {} playing chess in the forest", "act=chess, place=forest"),
        ("celebrity", "a photo of {} and {} shaking hands", "act=handshake"),
        ("celebrity", "{} and {} together on the beach", "place=beach"),
        ("celebrity", "{} and {} drinking tea, laughing", "act=tea, expression=smiling"),
    )
    return tuple(Prompt(category, text, _parse_states(states)) for category, text, states in rows)


def _parse_states(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(", ") if part)


#: For the mini model, whose attribute reader knows these words. The first 14 prompts for one person and the first 4 for
#: two are those of benchmarks/likeness.py, in its order, because seeds depend on it.
WORLD_PROMPTS = _world_prompts()

_ACTIVITIES = (
    "{} and {} cooking together in a kitchen", "{} and {} playing the piano together",
    "{} and {} are baking a birthday cake", "{} and {} taking a relaxing hike in the mountains",
    "{} and {} sit on a sofa", "{} and {} enjoy a delicate candlelight dinner",
    "{} and {} enjoying a day at an amusement park", "{} shakes hands with {} in news conference",
)  # fmt: skip
_FAMOUS = ("Barack Obama", "Elon Musk", *("Anne Hathaway",) * 6)

#: For models of photographs: the evaluation prompts of the paper's release (ygtxr1997/CelebBasis, evaluation/), with
#: the name in place of "a sks person" and without duplicates.
PHOTO_PROMPTS: tuple[Prompt, ...] = tuple(
    Prompt(category, text)
    for category, texts in {
        "reconstruction": ("a photo of {}",),
        "action": (
            "{} is playing the basketball", "{} is playing the guitar", "{} plays the LEGO toys",
            "{} eats bread in front of the Eiffel Tower", "{} on the beach", "{} piloting a fighter jet",
            "{} wearing the sweater, a backpack and camping stove, outdoors, RAW, ultra high res",
            "{} wearing a scifi spacesuit in space", "{} wearing yellow jacket, and driving a motorbike",
            "{} carrying plastic bags of vegetables in chinese vegetable market, sunny day",
        ),
        "expression": (
            "{} smiling with happiness", "{} crying with sadness", "{} with anger expression",
            "{} very surprised with gift box", "{} scared by candle light", "{} is tired",
        ),
        "style": (
            "Manga drawing of {}", "{} Funko Pop", "Pointillism painting of {}", "Ukiyo-e painting of {}",
            "cubism painting of {}", "Fauvism painting of {}", "Watercolor painting of {}",
            "{} stained glass window", "{} latte art", "{} sand sculpture", "Greek sculpture of {}", "Banksy art of {}",
            "cave mural depicting {}", "a painting of {} by Andy Warhol", "colorful graffiti of {}", "{} as a witcher",
            "{} as a knight in plate armor", "{} as a wizard", "{} in a comic book", "{} in a Santa hat",
        ),
        "pair": _ACTIVITIES,
        "celebrity": tuple(text.format("{}", who) for text, who in zip(_ACTIVITIES, _FAMOUS, strict=True)),
    }.items()
    for text in texts
)  # fmt: skip


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read prompts from a file: one per line, or in a .toml as ``[[prompt]]`` with ``text``, ``category``, ``states``.

    In a text file, empty lines and lines that begin with ``#`` are skipped, and a second ``{}`` makes a prompt a pair.

    Raises:
        NotFoundError: The file cannot be read.
        UsageError: The file holds no prompt, or an invalid one.
    """
    try:
        text = read_regular(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = "pass a text file with one prompt per line"
        raise NotFoundError(f"cannot read prompts from {path}: {error}", hint, reason="prompts_unreadable") from error
    if path.suffix.lower() == ".toml":
        prompts = _parse_toml(path, text)
    else:
        lines = [line.strip() for line in text.splitlines()]
        kept = [line for line in lines if line and not line.startswith("#")]
        prompts = [Prompt("pair" if line.count("{}") == 2 else "action", line) for line in kept]
    if not prompts:
        hint = "write one per line, for example: {} on the beach"
        raise UsageError(f"{path} holds no prompt", hint, reason="prompts_empty", path=path)
    return tuple(_validated(prompt, path) for prompt in prompts)


def _parse_toml(path: Path, text: str) -> list[Prompt]:
    try:
        entries: Any = parse_toml(text).get("prompt", [])
        return [
            Prompt(
                str(entry.get("category", "action")),
                str(entry["text"]),
                {str(name): str(value) for name, value in entry.get("states", {}).items()},
            )
            for entry in cast("list[dict[str, Any]]", entries)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "write [[prompt]] with text, category and states = { place = 'beach' }"
        raise UsageError(f"{path} is not a list of prompts: {error}", hint, reason="prompts_invalid") from error


def _validated(prompt: Prompt, path: Path) -> Prompt:
    if prompt.category not in CATEGORIES:
        raise UsageError(
            f"{path}: {prompt.text!r} has the unknown category {prompt.category!r}",
            f"the categories are {', '.join(CATEGORIES)}", reason="unknown_category", category=prompt.category,
        )  # fmt: skip
    allowed = {"pair": (2,), "celebrity": (1, 2)}.get(prompt.category, (1,))
    count = prompt.text.count("{}")
    try:
        prompt.format("a", "b")
    except IndexError:
        pass  # more than two placeholders, reported below
    except (KeyError, ValueError):
        count = 0
    if count not in allowed:
        raise UsageError(
            f"{path}: {prompt.text!r} has {count} placeholders for people",
            f"write {{}} for {'each of the two people' if 2 in allowed else 'the person'}",
            reason="placeholder_count", count=count,
        )  # fmt: skip
    return prompt


def check_states(prompts: Sequence[Prompt], vocabulary: Mapping[str, Sequence[str]], path: Path) -> None:
    """Raise UsageError for a stated attribute or value that is not in the attribute reader's vocabulary."""
    readable = {name: words for name, words in vocabulary.items() if name != "two"}  # follows from the category
    for prompt in prompts:
        for name, value in prompt.states.items():
            if value not in readable.get(name, ()):
                words = readable.get(name)
                hint = f"known values: {', '.join(words)}" if words else f"known attributes: {', '.join(readable)}"
                raise UsageError(
                    f"{path}: the attribute reader does not know {name} {value!r}", hint,
                    reason="unknown_attribute", attribute=name, value=value,
                )  # fmt: skip
