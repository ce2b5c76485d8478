"""Text encoder features of embeddings, to compare identities as the model reads them."""

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

_BATCH_SIZE = 128


@torch.no_grad()
def text_features(parts: TextEncoderParts, rows: Sequence[Floats]) -> NDArray[np.float64]:
    """The context (n, W) at the last token of a name in "a photo of {}", for embeddings of E arrays (n, 2, D).

    W is the sum of the encoders' widths. Attention is causal, so what follows the name does not matter.
    """
    ids, (place,) = place_people(parts.tokenizers[0], parts.max_length, ["a photo of ", ""])
    last = int(place[1])
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(rows[0]), _BATCH_SIZE):
        given = [torch.as_tensor(np.array(array[start : start + _BATCH_SIZE])) for array in rows]
        count = len(given[0])
        # an encoder with pooled output needs the end token
        cut = ids[: max(last + 2, int((ids == parts.end_id).int().argmax()) + 1)]
        context, _ = read_texts(parts, cut.expand(count, -1), given, place.expand(count, -1))
        found.append(context[:, last].double().numpy())
    return np.concatenate(found)
