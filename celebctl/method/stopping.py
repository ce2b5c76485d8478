"""Early stopping: the state that did best on what learning does not see is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

HELD_VIEWS = 8  # of each person's views, never learned from
LOOK_EVERY = 5  # steps between looks at them


@dataclass
class Patience:
    """looks: how many in a row may be no better than the best before it is enough; 0: looks are never counted.

    best: lowest loss so far, of ``kept``, the coefficients (P, S) of then. missed: looks since.
    """

    looks: int
    best: float = math.inf
    kept: Tensor | None = None
    missed: int = 0

    @property
    def spent(self) -> bool:
        """Whether it is enough."""
        return 0 < self.looks <= self.missed

    def hear(self, loss: float, coefficients: Tensor) -> None:
        """The loss of a look, and what it was measured with."""
        if loss < self.best:
            self.best, self.kept, self.missed = loss, coefficients.clone(), 0
        else:
            self.missed += 1

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self.best, "kept": self.kept, "missed": self.missed}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.best, self.kept, self.missed = state["best"], state["kept"], state["missed"]
