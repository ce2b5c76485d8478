"""Captions of illustrated scenes, and the words they are made of.

A caption names the people from left to right and the car, and says of everything else what differs from the default:
a neutral face that looks ahead, in plain clothes before a plain wall. Distances are said often, not always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from celebctl_models.mini.captions import FACE_OPENINGS
from celebctl_models.mini.names import NameBook
from celebctl_models.mini.tokenizer import COMMON

from .figure import EXPRESSIONS, WORN
from .places import PLACES
from .scenes import ACTS, COLOURS, DISTANCES, ITEMS, VIEWS, Scenes, is_held_out
from .styles import STYLES

OPENINGS: tuple[str, ...] = (
    "{}", "{}", "{}", "{}", "{}", "a photo of {}", "a photo of {}", "a picture of {}", "a portrait of {}",
    "a good photo of {}", "the photo of {}", "an image of {}", "an illustration of {}",
)  # fmt: skip
STYLE_OPENINGS: dict[str, tuple[str, ...]] = {
    "pencil": ("a pencil drawing of {}", "a pencil sketch of {}", "a sketch of {}", "{}, drawn in pencil"),
    "watercolour": (
        "a watercolour of {}", "a watercolor painting of {}", "a watercolour painting of {}", "{}, watercolour"
    ),
    "oil": ("an oil painting of {}", "a painting of {} in oil", "{}, oil painting", "an oil on canvas of {}"),
    "pixels": ("pixel art of {}", "a pixel art picture of {}", "{}, pixel art", "an 8 bit picture of {}"),
    "night": ("{} at night", "a night photo of {}", "{} in the dark night", "a photo of {} at night"),
    "black and white": (
        "a black and white photo of {}", "a black and white picture of {}", "{}, black and white",
        "a monochrome photo of {}",
    ),
}  # fmt: skip
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "at the beach", "by the sea"),
    "snow": ("in the snow", "in the snowy mountains", "taking a relaxing hike in the mountains", "on a snowy mountain"),
    "space": ("in space", "in outer space", "on the moon", "among the stars"),
    "forest": ("in the forest", "in the woods", "among the trees"),
    "city": ("in the city", "in a city at sunset", "in front of tall buildings"),
    "tower": ("in front of the eiffel tower", "in paris", "at the eiffel tower"),
    "desert": ("in the desert", "among cactuses", "on the sand dunes"),
    "fair": ("at an amusement park", "enjoying a day at an amusement park", "at the fair", "by the ferris wheel"),
    "kitchen": ("in the kitchen", "in a kitchen"),
    "market": ("at the market", "in a vegetable market", "in chinese vegetable market, sunny day", "at a market stall"),
    "library": ("in the library", "in front of bookshelves", "among books"),
    "stage": ("on stage", "on a stage", "in the theatre", "in front of a red curtain"),
    "living room": ("in the living room", "at home", "in front of a sofa", "by the sofa"),
}
ACT_WORDS: dict[str, tuple[str, ...]] = {
    "chess": ("playing chess", "playing a game of chess", "at a chess board"),
    "tea": (
        "drinking tea from a {item_colour} cup",
        "having tea with a {item_colour} teapot",
        "having a {item_colour} cup of tea",
    ),
    "guitar": ("playing the guitar", "playing guitar", "with a guitar"),
    "handshake": ("shaking hands", "shakes hands", "are shaking hands"),
    "reading": ("reading a {item_colour} book", "with an open {item_colour} book", "reading from a {item_colour} book"),
    "cooking": ("cooking", "cooking soup", "is cooking", "cooking a meal"),
    "basketball": ("playing basketball", "playing the basketball", "with a basketball"),
    "piano": ("playing the piano", "playing piano", "at the piano"),
    "cake": (
        "baking a {item_colour} birthday cake",
        "with a {item_colour} birthday cake",
        "at a {item_colour} birthday cake",
    ),
    "bricks": ("playing with toy bricks", "building with toy bricks", "plays with colourful toy bricks"),
    "dinner": (
        "enjoying a candlelight dinner",
        "enjoy a delicate candlelight dinner",
        "eating spaghetti by candlelight",
    ),
    "bags": ("carrying bags of vegetables", "carrying plastic bags of vegetables", "with bags full of vegetables"),
    "waving": ("waving", "waving hello", "waving a hand"),
    "painting": ("painting a picture", "painting with a brush", "with a paint palette"),
    "camera": ("taking a photo", "with a camera", "holding a camera"),
    "motorbike": (
        "driving a {item_colour} motorbike",
        "riding a {item_colour} motorbike",
        "on a {item_colour} motorbike",
    ),
    "eating": ("eating bread", "eats bread", "eating a loaf of bread"),
    "jet": (
        "piloting a {item_colour} fighter jet",
        "flying a {item_colour} fighter jet",
        "in a {item_colour} fighter jet",
    ),
}
ITEM_WORDS: dict[str, tuple[str, ...]] = {
    name: (f"holding a {{item_colour}} {word}", f"with a {{item_colour}} {word}", f"holding {{item_colour}} {word}")
    for name, word in (("cup", "cup"), ("balloon", "balloon"), ("flower", "flower"), ("umbrella", "umbrella"),
                       ("apple", "apple"), ("gift", "gift box"))
}  # fmt: skip
WORN_WORDS: dict[str, tuple[str, ...]] = {
    "hat": ("wearing a {worn_colour} hat", "in a {worn_colour} hat", "with a {worn_colour} hat"),
    "suit": ("wearing a suit", "in a suit and tie", "in a suit"),
    "sunglasses": ("wearing sunglasses", "with sunglasses", "in dark sunglasses"),
    "crown": ("wearing a crown", "with a golden crown", "wearing a golden crown"),
    "scarf": ("wearing a {worn_colour} scarf", "with a {worn_colour} scarf", "in a {worn_colour} scarf"),
    "sweater": ("wearing a {worn_colour} sweater", "in a {worn_colour} sweater", "wearing the {worn_colour} sweater"),
    "jacket": ("wearing a {worn_colour} jacket", "in a {worn_colour} jacket", "wearing {worn_colour} jacket"),
    "santa hat": ("in a santa hat", "wearing a santa hat", "with a santa hat"),
    "wizard hat": ("as a wizard", "in a wizard hat", "wearing a wizard hat"),
    "spacesuit": ("wearing a spacesuit", "in a spacesuit", "wearing a scifi spacesuit", "as an astronaut"),
    "headphones": ("wearing {worn_colour} headphones", "with {worn_colour} headphones", "in {worn_colour} headphones"),
    "apron": ("wearing an apron with a {worn_colour} pocket", "in an apron with a {worn_colour} pocket"),
}
EXPRESSION_WORDS: dict[str, tuple[str, ...]] = {
    "smiling": ("smiling", "with a big smile", "smiling with happiness"),
    "laughing": ("laughing", "laughing out loud", "laughing with joy"),
    "surprised": ("surprised", "looking surprised", "very surprised"),
    "crying": ("crying", "crying with sadness", "in tears"),
    "angry": ("angry", "looking angry", "with an anger expression", "very angry"),
    "tired": ("tired", "looking tired", "very tired", "sleepy"),
}
DISTANCE_WORDS: dict[str, tuple[str, ...]] = {
    "close-up": ("close-up", "seen close-up", "from close by"),
    "half": ("half length", "from the waist up"),
    "full length": ("full length", "full body", "from head to toe"),
}
VIEW_WORDS: dict[str, tuple[str, ...]] = {
    "ahead": ("looking ahead", "looking at the camera"),
    "left": ("looking left", "looking to the left", "facing left"),
    "right": ("looking right", "looking to the right", "facing right"),
}
TOGETHER = ("together", "standing together", "side by side", "", "")
CAR_WORDS = ("beside", "next to", "in front of", "with", "standing by")
CAR_ALONE = ("{}", "a {}", "a {} car", "the car {}", "a parked {}")
ANYONE = ("a person", "a man", "a woman", "someone")
#: How often a distance and the view ahead are said.
SAID = {"close-up": 0.6, "half": 0.3, "full length": 0.6, "ahead": 0.15}


@dataclass(frozen=True)
class Facts:
    """A scene in words of the world's vocabularies; the defaults are those of a plain picture."""

    place: str = "plain"
    act: str = "nothing"
    expression: str = "neutral"
    worn: str = "nothing"
    worn_colour: str = "red"
    item: str = "nothing"
    item_colour: str = "red"
    style: str = "colour"
    distance: str = "half"
    view: str = "ahead"


VOCABULARIES: dict[str, tuple[str, ...]] = {
    "place": PLACES, "act": ACTS, "expression": EXPRESSIONS, "worn": WORN, "worn_colour": COLOURS, "item": ITEMS,
    "item_colour": COLOURS, "style": STYLES, "distance": DISTANCES, "view": VIEWS,
}  # fmt: skip


def facts_of(scenes: Scenes) -> list[Facts]:
    """What is to be said of each scene of a batch."""
    columns: dict[str, list[int]] = {name: getattr(scenes, name).tolist() for name in VOCABULARIES}
    said = {name: [VOCABULARIES[name][i] for i in column] for name, column in columns.items()}
    return [Facts(**{name: words[i] for name, words in said.items()}) for i in range(len(scenes))]


def caption(who: Sequence[str], facts: Facts, rng: np.random.Generator, car: str | None = None) -> str:
    """A random wording of a scene.

    Args:
        who: Names or nouns of the people, from left to right; may be empty if there is a car.
        facts: What the scene shows.
        rng: Chooses the wording.
        car: Make and model of the car, if one is there.
    """

    def say(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    if not who:
        subject = say(CAR_ALONE).format(car)
        facts = replace(facts, view="", distance="")  # are those of people
        said: list[str] = []
    else:
        subject = " and ".join(who)
        said = [f"{say(CAR_WORDS)} {'a ' if rng.random() < 0.5 else ''}{car}"] if car else []
        if len(who) > 1 and not said and (facts.act == "nothing" or rng.random() < 0.2):
            said.append(say(TOGETHER))
    pieces = [piece for piece in statements(facts, rng) if piece]
    rng.shuffle(pieces)
    pieces = [piece for piece in said if piece] + pieces
    style = facts.style != "colour"
    face = bool(who) and facts.distance != "full length" and not style and car is None and rng.random() < 0.10
    opening = say(STYLE_OPENINGS[facts.style] if style else FACE_OPENINGS if face else OPENINGS)
    if len(who) > 1:
        opening = opening.replace("a face", "the faces").replace("the face ", "the faces ")
    if face and len(who) == 1 and rng.random() < 0.5:
        subject += " person"
    joint = ", " if rng.random() < 0.3 else " "
    body = subject + "".join(joint + piece for piece in pieces)
    if style and rng.random() < 0.5:  # the style around everything, or around the people only
        return opening.format(body)
    return opening.format(subject) + "".join(joint + piece for piece in pieces)


def statements(facts: Facts, rng: np.random.Generator) -> list[str]:
    """One wording of each statement but people, car and style."""
    tables = (
        (ACT_WORDS, facts.act), (ITEM_WORDS, facts.item if facts.act == "nothing" else "nothing"),
        (WORN_WORDS, facts.worn), (PLACE_WORDS, facts.place), (EXPRESSION_WORDS, facts.expression),
        (DISTANCE_WORDS, facts.distance), (VIEW_WORDS, facts.view),
    )  # fmt: skip
    said: list[str] = []
    for words, value in tables:
        if value in words and rng.random() < SAID.get(value, 1.0):
            wording = words[value][int(rng.integers(len(words[value])))]
            wording = wording.format(worn_colour=facts.worn_colour, item_colour=facts.item_colour)
            said.append(wording.replace("a orange", "an orange"))
    return said


def held_out_facts(count: int, rng: np.random.Generator, several: int = 4) -> list[Facts]:
    """Scenes never shown in training, for tests: ``several`` (3 or 4) of place, act, worn and style are stated."""
    found: list[Facts] = []
    while len(found) < count:
        picked = {name: int(rng.integers(1, len(VOCABULARIES[name]))) for name in ("place", "act", "worn", "style")}
        if several == 3:
            picked[("place", "act", "worn", "style")[int(rng.integers(4))]] = 0
        if picked["act"] != ACTS.index("handshake") and bool(is_held_out(**picked)):
            colours = {name: COLOURS[int(rng.integers(len(COLOURS)))] for name in ("worn_colour", "item_colour")}
            found.append(Facts(**{name: VOCABULARIES[name][at] for name, at in picked.items()}, **colours))
    return found


def vocabulary() -> list[str]:
    """Every word a caption can have, sorted; names are not among them."""
    tables = (
        STYLE_OPENINGS, PLACE_WORDS, ACT_WORDS, ITEM_WORDS, WORN_WORDS, EXPRESSION_WORDS, DISTANCE_WORDS, VIEW_WORDS
    )  # fmt: skip
    phrases = [phrase for table in tables for options in table.values() for phrase in options]
    phrases += [*OPENINGS, *FACE_OPENINGS, *TOGETHER, *CAR_WORDS, *CAR_ALONE, *ANYONE, *COLOURS]
    text = " ".join([*phrases, "and an the faces of person"])
    for mark in ("{worn_colour}", "{item_colour}", "{}", "-", ","):
        text = text.replace(mark, " ")
    return sorted(set(text.split()))


def all_words(*books: NameBook) -> list[str]:
    """Every word that is to be one token: those of captions, of common prompts, and the names of the books."""
    names = {word for book in books for word in (*book.first_names, *book.last_names)}
    return sorted({*vocabulary(), *COMMON, *names})
