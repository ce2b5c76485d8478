"""The contact sheet: each learned person's photo and a few generated images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from celebctl.grid import grid

from .sampling import draw, rows_of

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_runtime.identity import Identity

PROMPTS = ("{}", "{} smiling", "{} on the beach", "{} wearing a suit", "{} in space", "{} playing chess")


def contact_sheet(parts: DiffusionParts, identities: Sequence[Identity], photos: Sequence[Image.Image]) -> Image.Image:
    """One row per person, the photo and six images; with several people a last row of pairs."""
    people = {person.name: rows_of(person) for person in identities}
    names = list(people)
    prompts = [p.format(f"<{name}>") for name in names for p in PROMPTS]
    pairs = [
        f"<{a}> and <{b}> {act}" for a, b in itertools.pairwise(names) for act in ("playing chess", "shaking hands")
    ][: len(PROMPTS)]
    drawn = draw(parts, [*prompts, *pairs], [11 + i % len(PROMPTS) for i in range(len(prompts) + len(pairs))], people)
    pictures = [Image.fromarray(pixels) for pixels in drawn]
    rows = [
        (name, [photo, *pictures[i * len(PROMPTS) : (i + 1) * len(PROMPTS)]])
        for i, (name, photo) in enumerate(zip(names, photos, strict=True))
    ]
    labels = [["the photo", *[p.format(name) for p in PROMPTS]] for name in names]
    if pairs:
        rows.append(("together", pictures[len(prompts) :]))
        labels.append([text.replace("<", "").replace(">", "") for text in pairs])
    return grid([pictures for _, pictures in rows], labels)
