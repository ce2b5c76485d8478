"""What the people are asked to do: prompts in the paper's categories, and reading more from a file.

``{}`` stands for the person, a second ``{}`` for the other one. ``states`` lists what a prompt says in the words of the
attribute reader; models without such a reader leave it empty and are judged by CLIP.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from celebctl_runtime.errors import NotFoundError, UsageError

#: The paper's categories, in the order of its tables; "celebrity" and "pair" show two people.
CATEGORIES = ("reconstruction", "action", "expression", "style", "celebrity", "pair")
TWO = frozenset({"celebrity", "pair"})


@dataclass(frozen=True)
class Prompt:
    """One thing to ask for. states: attribute -> what the picture has to show."""

    category: str
    text: str
    states: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    @property
    def people(self) -> int:
        """How many faces the picture should show."""
        return 2 if self.category in TWO else 1

    def say(self, person: str, other: str) -> str:
        """The prompt with names in it; ``other`` is used where the text has a second place."""
        return self.text.format(person, other)


def _world() -> tuple[Prompt, ...]:
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
    return tuple(Prompt(category, text, _stated(said)) for category, text, said in rows)


def _stated(said: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in said.split(", ") if part)


#: For models of the drawn world, whose attribute reader knows these words. The first 14 prompts for one person and the
#: first 4 for two are those of benchmarks/likeness.py, in its order, for the seeds depend on it.
WORLD = _world()

_ACTIVITIES = (
    "{} and {} cooking together in a kitchen", "{} and {} playing the piano together",
    "{} and {} are baking a birthday cake", "{} and {} taking a relaxing hike in the mountains",
    "{} and {} sit on a sofa", "{} and {} enjoy a delicate candlelight dinner",
    "{} and {} enjoying a day at an amusement park", "{} shakes hands with {} in news conference",
)  # fmt: skip
_FAMOUS = ("Barack Obama", "Elon Musk", *("Anne Hathaway",) * 6)

#: For models of photographs: what the release evaluates on (ygtxr1997/CelebBasis, evaluation/), with the bare name in
#: place of "a sks person" and without the prompts that repeat one another.
PHOTOGRAPHS: tuple[Prompt, ...] = tuple(
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
    """Prompts of a file: one a line, or in a .toml as ``[[prompt]]`` with ``text``, ``category`` and ``states``.

    On a line, a second ``{}`` makes it a pair. Raises NotFoundError, or UsageError that names the prompt which is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFoundError(f"cannot read the prompts in {path}: {error}", "give a text file with one prompt a line") from (
            error
        )
    if path.suffix.lower() == ".toml":
        found = _from_toml(path, text)
    else:
        lines = [line.strip() for line in text.splitlines()]
        said = [line for line in lines if line and not line.startswith("#")]
        found = [Prompt("pair" if line.count("{}") == 2 else "action", line) for line in said]
    if not found:
        raise UsageError(f"{path} holds no prompt", "write one a line, for example: {} on the beach")
    return tuple(_checked(prompt, path) for prompt in found)


def _from_toml(path: Path, text: str) -> list[Prompt]:
    try:
        entries: Any = tomllib.loads(text).get("prompt", [])
        return [
            Prompt(str(one.get("category", "action")), str(one["text"]), _words(one.get("states", {})))
            for one in cast("list[dict[str, Any]]", entries)
        ]
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        hint = "write [[prompt]] with text, category and states = { place = 'beach' }"
        raise UsageError(f"{path} is not a list of prompts: {error}", hint) from error


def _words(states: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in states.items()}


def _checked(prompt: Prompt, path: Path) -> Prompt:
    places = prompt.text.count("{}")
    if prompt.category not in CATEGORIES:
        hint = f"the categories are {', '.join(CATEGORIES)}"
        raise UsageError(f"{path}: {prompt.text!r} has the unknown category {prompt.category!r}", hint)
    wanted = {"pair": (2,), "celebrity": (1, 2)}.get(prompt.category, (1,))
    try:
        prompt.say("a", "b")
    except IndexError:
        pass  # more than two, which is said below
    except (KeyError, ValueError):
        places = 0
    if places not in wanted:
        hint = f"write {{}} where the {'people stand' if 2 in wanted else 'person stands'}"
        raise UsageError(f"{path}: {prompt.text!r} has {places} places for people", hint)
    return prompt


def check_states(prompts: Sequence[Prompt], vocabulary: Mapping[str, Sequence[str]], path: Path) -> None:
    """Refuse what the attribute reader could never confirm. Raises UsageError."""
    readable = {name: words for name, words in vocabulary.items() if name != "two"}  # that follows from the category
    for prompt in prompts:
        for name, value in prompt.states.items():
            if value not in readable.get(name, ()):
                known = readable.get(name)
                hint = f"it knows {', '.join(known)}" if known else f"it reads {', '.join(readable)}"
                raise UsageError(f"{path}: the attribute reader knows no {name} {value!r}", hint)
