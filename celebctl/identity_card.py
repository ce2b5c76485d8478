"""Identity cards: one image that says who an identity is, what it was learned for, and what was stated on consent."""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from .grid import GAP, grid

if TYPE_CHECKING:
    from celebctl_runtime.identity import Identity

PROMPTS = ("<{}>", "<{}> smiling", "<{}> on the beach", "<{}> wearing a suit")
_CELL = 160  # pixels of a portrait
_WIDTH = len(PROMPTS) * (_CELL + GAP) + GAP
_MARGIN, _TITLE, _FONT, _LINE = 16, 30, 14, 22  # pixels
_LABELS = 100  # pixels of the column of labels
_CHARACTERS = 72  # of a line of text
_BACKGROUND, _TEXT, _LABEL = (250, 249, 246), (40, 38, 35), (120, 116, 110)


def card_facts(identity: Identity, model_key: str, saved: datetime.date) -> list[tuple[str, str]]:
    """The rows of a card, label and text.

    Args:
        identity: The person.
        model_key: Of the model it was learned for.
        saved: When its file was written.
    """
    facts = identity.provenance
    stated = facts.get("consent", "not stated")
    return [
        ("model", f"{facts['model']} ({model_key})" if "model" in facts else model_key),
        ("saved", saved.isoformat()),
        ("consent", f"{stated} ({facts['consent_date']})" if "consent_date" in facts else stated),
        *([("forced", facts["forced"])] if "forced" in facts else []),
        ("digest", identity.digest),
    ]


def identity_card(
    identity: Identity, facts: Sequence[tuple[str, str]], portraits: Sequence[Image.Image]
) -> Image.Image:
    """Draw a card.

    Args:
        identity: The person.
        facts: Rows of label and text, see `card_facts`.
        portraits: An image for each of PROMPTS, or none.

    Example:
        >>> facts = card_facts(identity, "toy-01234567", datetime.date(2026, 1, 2))
        >>> identity_card(identity, facts, []).width
        680
    """
    rows = [(label if not i else "", line) for label, text in facts for i, line in enumerate(_wrapped(text))]
    if portraits:
        rows.append(("", "The portraits are generated images."))
    top = _MARGIN + _TITLE + GAP
    height = top + len(rows) * _LINE + _MARGIN
    captions = [prompt.format(identity.name).translate({60: None, 62: None}) for prompt in PROMPTS]
    strip = grid([portraits], [captions], cell=(_CELL, _CELL)) if portraits else None
    card = Image.new("RGB", (_WIDTH, height + (strip.height if strip else 0)), _BACKGROUND)
    draw, font = ImageDraw.Draw(card), ImageFont.load_default(_FONT)
    draw.text((_MARGIN, _MARGIN), identity.name, fill=_TEXT, font=ImageFont.load_default(_TITLE))
    for number, (label, text) in enumerate(rows):
        y = top + number * _LINE + GAP
        draw.text((_MARGIN, y), label, fill=_LABEL, font=font)
        draw.text((_MARGIN + _LABELS, y), text, fill=_TEXT, font=font)
    if strip:
        card.paste(strip, (0, height))
    return card


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _CHARACTERS) or [""]
