"""Where a model draws faces: what a view of a photo must look like for the model to be busy with the face alone.

A denoiser that is shown a face at a place or a size which it never draws learns the place instead of the person (mini:
error .27 in place of .13, benchmarks/LOG.md). A model folder may say where its faces stand (`framing` in its
celebctl.json); for any other `celebctl basis build --faces` measures it. What this module does not know: networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Keys of files written before the fields had their present names.
_FORMER_KEYS = {
    "smallest": "face_height_min",
    "largest": "face_height_max",
    "middle": "face_center_y",
    "sway": "face_jitter",
}
FEWEST = 12  # faces that a framing can be measured on


@dataclass(frozen=True)
class Framing:
    """Shares of the height of a square picture, of the detector's box around a face.

    smallest, largest: the box's height. middle: of the box, from the picture's top. sway: how far the box moves at
    most, up, down and to either side.
    """

    face_height_min: float
    face_height_max: float
    face_center_y: float
    face_jitter: float

    def __post_init__(self) -> None:
        """Raises ValueError for shares that no picture has."""
        sound = 0 < self.face_height_min <= self.face_height_max <= 2 and 0 < self.face_center_y < 1 and 0 <= self.face_jitter <= 0.5
        if not sound:
            raise ValueError(f"no framing of faces: {self.as_dict()}")

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Framing:
        """Raises ValueError when a number is missing or makes no sense."""
        try:
            named = {_FORMER_KEYS.get(key, key): value for key, value in said.items()}
            return cls(**{field.name: float(named[field.name]) for field in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no framing of faces: {error}") from error

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        height = f"{self.face_height_min:.2f} to {self.face_height_max:.2f}"
        return f"{height} of the height, middle at {self.face_center_y:.3f} +- {self.face_jitter:.3f}"


#: Head and shoulders, the eyes near the upper third, as photographers frame people. An assumption for checkpoints of
#: photographs that nobody has measured yet: no such checkpoint was at hand.
PHOTOGRAPHS = Framing(face_height_min=0.30, face_height_max=0.55, face_center_y=0.42, face_jitter=0.05)


def measure_framing(places: NDArray[np.float32]) -> Framing | None:
    """The framing of faces found at ``places`` (n, 3): height, middle across and middle down, shares of the picture's.

    The middle half of all heights, the median of the middles, and half of what the middle half of the middles spans,
    across or down, whichever is more. None when there are fewer than FEWEST faces.
    """
    seen = places[(places[:, 0] > 0.02) & (places[:, 0] < 2)] if len(places) else places
    if len(seen) < FEWEST:
        return None
    low, mid, high = np.quantile(seen.astype(np.float64), [0.25, 0.5, 0.75], axis=0)
    sway = float((high - low)[1:].max()) / 2
    try:
        return Framing(*(round(float(share), 4) for share in (low[0], high[0], mid[2], min(sway, 0.5))))
    except ValueError:  # a detector that points beside the picture
        return None
