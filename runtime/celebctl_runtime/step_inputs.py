"""What graphs are fed: token ids as each text encoder wants them, and the inputs of a step that no step changes.

What this module does not know: engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .backends import Texts
    from .manifest import Manifest
    from .samplers import Plan


def ids_for(manifest: Manifest, encoder: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Token ids (B, 77) as one of the text encoders wants them: what follows the first end is its own padding."""
    facts = manifest.tokenizer
    ends = ids == facts.eos
    return np.where(np.cumsum(ends, axis=1) - ends > 0, (facts.pad, *facts.more_pads)[encoder], ids)


def step_graph(texts: Texts) -> str:
    """The graph that runs a step for these texts."""
    return "step" if len(texts.context) == 2 else "step_nocfg"


def step_feeds(state: NDArray[np.float32], texts: Texts, plan: Plan, rows: int) -> dict[str, NDArray[Any]]:
    """What stays the same from step to step. Tables are filled up to ``rows``, so that shapes do not tell N."""
    table, aux = (np.zeros((rows, *part.shape[1:]), np.float32) for part in (plan.table, plan.aux))
    table[: plan.steps], aux[: plan.steps] = plan.table, plan.aux
    feeds: dict[str, NDArray[Any]] = {"state": state, "context": texts.context, "table": table, "aux": aux}
    if texts.pooled is not None and texts.size_ids is not None:
        feeds |= {"pooled": texts.pooled, "size_ids": texts.size_ids}
    return feeds
