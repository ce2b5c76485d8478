"""What a model's text encoders make of people: where they stand among the celebrities once the model has read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from celebctl.learning.captions import place_people
from celebctl_models.checkpoints.diffusion import read_texts

if TYPE_CHECKING:
    from celebctl_models.checkpoints.text_encoders import TextEncoderParts

Floats = NDArray[np.float32]

_AT_ONCE = 128


@torch.no_grad()
def readings(parts: TextEncoderParts, rows: Sequence[Floats]) -> NDArray[np.float64]:
    """The context at the last token of people's names in "a photo of", (n, W).

    rows: token rows, E arrays (n, 2, D). W is the width of all text encoders together. Attention looks back only, so
    nothing behind the name matters.
    """
    ids, (place,) = place_people(parts.tokenizers[0], parts.max_length, ["a photo of ", ""])
    last = int(place[1])
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(rows[0]), _AT_ONCE):
        given = [torch.as_tensor(np.array(array[start : start + _AT_ONCE])) for array in rows]
        count = len(given[0])
        # an encoder with a pooled text looks for the end of the prompt, so that it must be there
        cut = ids[: max(last + 2, int((ids == parts.end_id).int().argmax()) + 1)]
        context, _ = read_texts(parts, cut.expand(count, -1), given, place.expand(count, -1))
        found.append(context[:, last].double().numpy())
    return np.concatenate(found)
