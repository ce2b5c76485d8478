"""Whether a picture shows a drawn person of mini's world, measured on the crop that mini's detector aligns.

mini learns only such people, and models of photographs learn none of them. The score adds up three measurements:

- a small network that was trained to tell drawn crops from photographs (`training/drawn.py`),
- the agreement of two recognisers that were trained apart on drawn people: the cosine between the feature of the second
  and what a linear map makes of the first one's,
- the logarithm of the length of the first one's feature, which is shorter for what it has not seen.

The limit in drawn.json was measured on people that nothing was trained on (benchmarks/photographs.py).
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
from safetensors.numpy import load_file

from celebctl_models.faces.analysis import CPU, Face, InsightFaceAnalyser
from celebctl_runtime.errors import IntegrityError

WEIGHTS = Path(__file__).resolve().parent / "weights"
FACES = WEIGHTS / "faces"
NOTHING = -99.0  # the score where mini's detector finds no face
AGREEMENT, LENGTH = 25.0, 10.0  # weights beside the network's output


@dataclass(frozen=True)
class Drawnness:
    """How much a face looks like a drawn person; drawn from `limit` on."""

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
        >>> analyser = InsightFaceAnalyser(FACES)
        >>> drawnness(portrait, analyser.analyse(portrait)[0], analyser.folder).drawn
        True
    """
    measure = _measure()
    if face_models == FACES:
        return Drawnness(measure.score(face.crop112), measure.limit)
    x, y = (face.box[:2] + face.box[2:]) / 2
    found = [one for one in _analyser().analyse(image) if one.box[0] < x < one.box[2] and one.box[1] < y < one.box[3]]
    return Drawnness(max((measure.score(one.crop112) for one in found), default=NOTHING), measure.limit)


@dataclass(frozen=True)
class _Measure:
    """The networks by their files' names, the linear map, and the limit."""

    sessions: dict[str, Any]
    agreement: dict[str, NDArray[np.float32]]
    limit: float

    def score(self, crop: NDArray[np.uint8]) -> float:
        """The score of a crop (112, 112, 3) RGB."""
        pixels = crop.transpose(2, 0, 1)[None].astype(np.float32)
        inputs = {"drawn": pixels, "recogniser": pixels / 127.5 - 1.0, "judge": pixels}
        logit, feature, judged = (
            self.sessions[name].run(None, {self.sessions[name].get_inputs()[0].name: value})[0][0]
            for name, value in inputs.items()
        )
        length = float(np.linalg.norm(feature))
        agreed = agreement(feature / length, judged, self.agreement)
        return float(logit[0]) + AGREEMENT * agreed + LENGTH * float(np.log(length))


def agreement(feature: NDArray[np.float32], judged: NDArray[np.float32], maps: dict[str, NDArray[np.float32]]) -> float:
    """Cosine between the second recogniser's feature (256,) and the one expected from the first's unit feature (512,).

    maps: "mean" (512,), "down" (512, r), "up" (r, 256) and "bias" (256,).
    """
    expected = (feature - maps["mean"]) @ maps["down"] @ maps["up"] + maps["bias"]
    return float(expected @ judged / (np.linalg.norm(expected) * np.linalg.norm(judged)))


@cache
def _analyser() -> InsightFaceAnalyser:
    return InsightFaceAnalyser(FACES)


@cache
def _measure() -> _Measure:
    """Read once."""
    folder = WEIGHTS / "pictures"
    files = (folder / "drawn.onnx", FACES / "recogniser.onnx", WEIGHTS / "scoring" / "judge.onnx")
    try:
        session = import_module("onnxruntime").InferenceSession
        sessions = {file.stem: session(str(file), providers=[CPU]) for file in files}
        maps = {
            name: array.astype(np.float32) for name, array in load_file(folder / "agreement.safetensors").items()
        }
        values = cast(dict[str, Any], json.loads((folder / "drawn.json").read_text(encoding="utf-8")))
        return _Measure(sessions, maps, float(values["limit"]))
    except Exception as error:  # onnxruntime's errors have no common base class
        raise IntegrityError(f"{folder} cannot be used: {error}", "reinstall celebctl") from error
