"""The contact sheet: what `learn` shows when it is done. Photo first, then the person in a handful of scenes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from .sampling import draw, rows_of

if TYPE_CHECKING:
    from celebctl_models.diffusion import DiffusionParts
    from celebctl_runtime.identity import Identity

PROMPTS = ("{}", "{} smiling", "{} on the beach", "{} wearing a suit", "{} in space", "{} playing chess")
CELL, GAP, LINE = 192, 8, 22
PAPER, INK = (250, 249, 246), (60, 58, 54)


def contact_sheet(parts: DiffusionParts, identities: Sequence[Identity], photos: Sequence[Image.Image]) -> Image.Image:
    """One row per person: the photo and six pictures, and a last row of neighbours together when there are several."""
    people = {person.name: rows_of(person) for person in identities}
    names = list(people)
    prompts = [p.format(f"<{name}>") for name in names for p in PROMPTS]
    together = [
        f"<{a}> and <{b}> {act}" for a, b in itertools.pairwise(names) for act in ("playing chess", "shaking hands")
    ][: len(PROMPTS)]
    drawn = draw(
        parts, [*prompts, *together], [11 + i % len(PROMPTS) for i in range(len(prompts) + len(together))], people
    )
    pictures = [Image.fromarray(pixels) for pixels in drawn]
    rows = [
        (name, [photo, *pictures[i * len(PROMPTS) : (i + 1) * len(PROMPTS)]])
        for i, (name, photo) in enumerate(zip(names, photos, strict=True))
    ]
    said = [["the photo", *[p.format(name) for p in PROMPTS]] for name in names]
    if together:
        rows.append(("together", pictures[len(prompts) :]))
        said.append([text.replace("<", "").replace(">", "") for text in together])
    return lay_out([pictures for _, pictures in rows], said)


def lay_out(rows: Sequence[Sequence[Image.Image]], said: Sequence[Sequence[str]]) -> Image.Image:
    """Rows of pictures of any size as cells of one size, each with its words below, cut where they are too long."""
    columns = max(len(row) for row in rows)
    width, height = columns * (CELL + GAP) + GAP, len(rows) * (CELL + LINE + GAP) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for r, (row, texts) in enumerate(zip(rows, said, strict=True)):
        for c, (picture, text) in enumerate(zip(row, texts, strict=True)):
            left, top = GAP + c * (CELL + GAP), GAP + r * (CELL + LINE + GAP)
            sheet.paste(_fit(picture), (left, top))
            while pen.textlength(text, font=font) > CELL and len(text) > 4:
                text = text[:-2].rstrip(".") + "..."
            pen.text((left, top + CELL + 3), text, fill=INK, font=font)
    return sheet


def _fit(picture: Image.Image) -> Image.Image:
    """The largest centred square, at cell size."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.convert("RGB").resize(
        (CELL, CELL), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
    )
