"""Captions of scenes: the small grammar mini understands.

A caption names the people, and those of act, worn things, place, expression and style that differ from the default: a
neutral face in front of a plain wall. The first-named person stands on the left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .figure import EXPRESSIONS, WORN
from .scenes import ACTS, PLACES

#: Opening phrases that say nothing about the picture. Photo-like ones and the ones other training recipes use.
OPENINGS: tuple[str, ...] = (
    "{}", "{}", "{}", "{}", "{}", "a photo of {}", "a photo of {}", "a picture of {}", "a portrait of {}",
    "a close-up photo of {}", "a good photo of {}", "the photo of {}", "an image of {}", "a drawing of {}",
)  # fmt: skip
#: Openings of the textual-inversion template list (Radford et al. 2021, as the paper's release uses it), around a face.
FACE_OPENINGS: tuple[str, ...] = (
    "a photo of a face of {}", "a rendering of a face of {}", "a cropped photo of the face of {}",
    "the photo of a face of {}", "a photo of a clean face of {}", "a photo of a dirty face of {}",
    "a dark photo of the face of {}", "a photo of my face of {}", "a photo of the cool face of {}",
    "a close-up photo of a face of {}",
    "a bright photo of the face of {}", "a cropped photo of a face of {}", "a photo of the face of {}",
    "a good photo of the face of {}", "a photo of one face of {}", "a close-up photo of the face of {}",
    "a rendition of the face of {}", "a photo of the clean face of {}", "a rendition of a face of {}",
    "a photo of a nice face of {}", "a good photo of a face of {}", "a photo of the nice face of {}",
    "a photo of the small face of {}", "a photo of the weird face of {}", "a photo of the large face of {}",
    "a photo of a cool face of {}", "a photo of a small face of {}", "an illustration of a face of {}",
    "a depiction of a face of {}",
)  # fmt: skip
PLACE_WORDS = {
    "beach": ("on the beach", "at the beach", "by the sea"),
    "snow": ("in the snow", "on a snowy mountain", "in the snowy mountains"),
    "space": ("in space", "in outer space", "among the stars"),
    "forest": ("in the forest", "in the woods", "among the trees"),
    "city": ("in the city", "in a city at sunset", "in front of tall buildings"),
}
WORN_WORDS = {
    "red hat": ("wearing a red hat", "in a red hat", "with a red hat"),
    "suit": ("wearing a suit", "in a suit and tie", "in a suit"),
    "sunglasses": ("wearing sunglasses", "with sunglasses", "in dark sunglasses"),
    "crown": ("wearing a crown", "with a golden crown", "wearing a golden crown"),
}
EXPRESSION_WORDS = {
    "smiling": ("smiling", "with a big smile", "smiling with happiness", "laughing"),
    "surprised": ("surprised", "looking surprised", "very surprised"),
    "crying": ("crying", "crying with sadness", "in tears"),
}
ACT_WORDS = {
    "chess": ("playing chess", "playing a game of chess", "at a chess board"),
    "tea": ("drinking tea", "having tea", "having a cup of tea"),
    "guitar": ("playing the guitar", "playing guitar", "with a guitar"),
    "handshake": ("shaking hands", "shake hands", "are shaking hands"),
}
TOGETHER = ("together", "standing together", "side by side", "", "")
GREY_OPENINGS = ("a black and white photo of {}", "a black and white picture of {}")
ANYONE = ("a person", "a man", "a woman", "someone")


def caption(who: Sequence[str], facts: Sequence[int], rng: np.random.Generator) -> str:
    """A random wording of a scene.

    Args:
        who: One or two names or nouns.
        facts: Indices of place, act, expression, what is worn, and style in the vocabularies of the scene.
        rng: Chooses the wording.
    """
    place, act, expression, worn, style = facts

    def say(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    subject = " and ".join(who)
    pieces: list[str] = []
    if ACTS[act] != "nothing":
        pieces.append(say(ACT_WORDS[ACTS[act]]) + (" together" if len(who) == 2 and rng.random() < 0.2 else ""))
    elif len(who) == 2:
        pieces.append(say(TOGETHER))
    if WORN[worn] != "nothing":
        pieces.append(say(WORN_WORDS[WORN[worn]]))
    if PLACES[place] != "plain":
        pieces.append(say(PLACE_WORDS[PLACES[place]]))
    if EXPRESSIONS[expression] != "neutral":
        pieces.append(say(EXPRESSION_WORDS[EXPRESSIONS[expression]]))
    pieces = [piece for piece in pieces if piece]
    rng.shuffle(pieces)
    openings = GREY_OPENINGS if style == 1 else (FACE_OPENINGS if rng.random() < 0.12 else OPENINGS)
    opening = say(openings)
    if len(who) == 2:
        opening = opening.replace("a face", "the faces").replace("the face ", "the faces ")
    noun = " person" if openings is FACE_OPENINGS and len(who) == 1 and rng.random() < 0.5 else ""
    joint = ", " if rng.random() < 0.3 else " "
    return (opening.format(subject + noun) + "".join(joint + piece for piece in pieces)).strip()


def vocabulary() -> list[str]:
    """Every word the grammar can say, sorted; names are not among them."""
    tables = [PLACE_WORDS, WORN_WORDS, EXPRESSION_WORDS, ACT_WORDS]
    phrases = [p for table in tables for options in table.values() for p in options]
    phrases += [*OPENINGS, *FACE_OPENINGS, *TOGETHER, *GREY_OPENINGS, *ANYONE, "and", "the faces of", "person"]
    text = " ".join(phrases).replace("{}", " ").replace("-", " ").replace(",", " ")
    return sorted(set(text.split()))
