"""Whether a picture shows a drawn person of mini's world: a small network on the crop that mini's detector aligns.

mini learns only such people, and models of photographs learn none of them. `training/drawn.py` trains the network; the
limit in drawn.json was measured on people that neither it nor mini was trained on (benchmarks/photographs.py).
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from celebctl_models.faces.analysis import CPU, Face, OnnxFaceAnalyser
from celebctl_runtime.errors import IntegrityError

WEIGHTS = Path(__file__).resolve().parent / "weights"
FACES = WEIGHTS / "faces"
NOTHING = -99.0  # the score where mini's detector finds no face


@dataclass(frozen=True)
class Drawnness:
    """How much a face looks like a drawn person. `score`: of the network; drawn from `limit` on."""

    score: float
    limit: float

    @property
    def drawn(self) -> bool:
        """Whether it is a drawn person of mini's world."""
        return self.score >= self.limit


def drawnness(image: Image.Image, face: Face, face_models: Path) -> Drawnness:
    """Measure a face of an RGB image. Nothing is downloaded.

    Args:
        image: The image.
        face: One of its faces.
        face_models: The folder of the face models that found it. For any but mini's, mini's detector searches again:
            the network knows the crops of that one.

    Raises IntegrityError when mini's files are damaged, SetupError without insightface or ONNX Runtime.

    Example:
        >>> from celebctl_models.mini.world import draw_portrait
        >>> portrait = draw_portrait(7, 256)
        >>> analyser = OnnxFaceAnalyser(FACES)
        >>> drawnness(portrait, analyser.analyse(portrait)[0], analyser.folder).drawn
        True
    """
    session, limit = _network()
    if face_models == FACES:
        return Drawnness(_score(session, face.crop112), limit)
    x, y = (face.box[:2] + face.box[2:]) / 2
    found = [one for one in _analyser().analyse(image) if one.box[0] < x < one.box[2] and one.box[1] < y < one.box[3]]
    return Drawnness(max((_score(session, one.crop112) for one in found), default=NOTHING), limit)


def _score(session: Any, crop: NDArray[np.uint8]) -> float:
    """The network's output for a crop (112, 112, 3) RGB."""
    return float(session.run(None, {"pixels": crop.transpose(2, 0, 1)[None].astype(np.float32)})[0][0, 0])


@cache
def _analyser() -> OnnxFaceAnalyser:
    return OnnxFaceAnalyser(FACES)


@cache
def _network() -> tuple[Any, float]:
    """The network and the limit."""
    folder = WEIGHTS / "pictures"
    try:
        session = import_module("onnxruntime").InferenceSession(str(folder / "drawn.onnx"), providers=[CPU])
        values = cast(dict[str, Any], json.loads((folder / "drawn.json").read_text(encoding="utf-8")))
        return session, float(values["limit"])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise IntegrityError(f"{folder} cannot be used: {error}", "reinstall celebctl") from error
