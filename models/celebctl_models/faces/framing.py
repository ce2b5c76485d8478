"""Framing: size and position of the faces a model draws, which the views of a photo in learning must match.

A denoiser that is trained on a face at a position or size that it never draws learns the position instead of the face
(mini: error .27 in place of .13, benchmarks/LOG.md). A model folder may state its framing in celebctl.json; for other
models it is measured on images of the basis names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Keys in files of earlier versions.
_FORMER_KEYS = {
    "smallest": "face_height_min",
    "largest": "face_height_max",
    "middle": "face_center_y",
    "sway": "face_jitter",
}
MIN_FACES = 12  # for a measurement


@dataclass(frozen=True)
class Framing:
    """Size and position of the detector's box around a face, as fractions of the side of a square image.

    Attributes:
        face_height_min: Least height of the box.
        face_height_max: Greatest height of the box.
        face_center_y: The box's centre, from the top of the image.
        face_jitter: Greatest shift of the centre, up, down, left or right.
    """

    face_height_min: float
    face_height_max: float
    face_center_y: float
    face_jitter: float

    def __post_init__(self) -> None:
        """Raises ValueError for fractions out of range."""
        heights = 0 < self.face_height_min <= self.face_height_max <= 2
        if not (heights and 0 < self.face_center_y < 1 and 0 <= self.face_jitter <= 0.5):
            raise ValueError(f"framing out of range: {self.as_dict()}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Framing:
        """A framing from its JSON form. Raises ValueError when a number is missing or out of range."""
        try:
            named = {_FORMER_KEYS.get(key, key): value for key, value in values.items()}
            return cls(**{field.name: float(named[field.name]) for field in fields(cls)})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"incomplete framing: {error}") from error

    def as_dict(self) -> dict[str, float]:
        """The JSON form: the fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        height = f"{self.face_height_min:.2f} to {self.face_height_max:.2f}"
        return f"{height} of the height, centre at {self.face_center_y:.3f} +- {self.face_jitter:.3f}"


#: Head and shoulders, the eyes near the upper third, as in portrait photography. An assumption for models trained on
#: photographs, not measured on one.
PHOTOGRAPHS = Framing(face_height_min=0.30, face_height_max=0.55, face_center_y=0.42, face_jitter=0.05)


def measure_framing(boxes: NDArray[np.float32]) -> Framing | None:
    """The framing of detected faces; None for fewer than MIN_FACES.

    Heights are the quartiles, the centre is the median, and the jitter is half the interquartile range of the centres,
    the greater of x and y.

    Args:
        boxes: (n, 3): height, centre x and centre y, as fractions of the image's side.
    """
    usable = boxes[(boxes[:, 0] > 0.02) & (boxes[:, 0] < 2)] if len(boxes) else boxes
    if len(usable) < MIN_FACES:
        return None
    low, median, high = np.quantile(usable.astype(np.float64), [0.25, 0.5, 0.75], axis=0)
    jitter = min(float((high - low)[1:].max()) / 2, 0.5)
    try:
        return Framing(*(round(float(fraction), 4) for fraction in (low[0], high[0], median[2], jitter)))
    except ValueError:  # boxes beside the image
        return None
