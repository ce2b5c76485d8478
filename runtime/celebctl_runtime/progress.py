"""Progress of long operations: one event type and one callback type, the same in every package.

Messages are not progress: they go to the ``logging`` loggers ``celebctl``, ``celebctl_models``, ``celebctl_export``
and ``celebctl_runtime``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Progress:
    """One progress event.

    Attributes:
        stage: What is running, such as "learning" or "exporting unet".
        step: Units finished, from 0 to ``total``.
        total: Units in all; 0 when their number is unknown.
        metrics: Figures by name, such as ``{"loss": 0.12}``. Unit "s" where the name ends in ``seconds``.
        preview: While drawing, computes small images (B, h, w, 3) uint8 of what is being drawn; only inside the
            callback. None where there are none. See preview.py.
    """

    stage: str
    step: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    preview: Callable[[], NDArray[np.uint8]] | None = field(default=None, compare=False, repr=False)


ProgressCallback = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """The default callback: drops the event."""
