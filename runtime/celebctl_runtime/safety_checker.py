"""Grades images with an ONNX classifier of the user's: a score near 1 stands for an image that must not be shown.

The contract: one input, float32 (N, 3, H, W), RGB from 0 to 1; sides that the graph leaves open are 224 pixels. One
output, float (N,) or (N, 1): a score from 0 to 1 per image. A classifier that expects other values, such as ImageNet's
mean and deviation, is exported with that step inside. No image is changed: the caller decides what a score means.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import IntegrityError, InvalidInputError, NotFoundError, PolicyError, SetupError

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 224  # pixels, where the graph does not say
THRESHOLD = 0.5


class SafetyChecker:
    """A classifier of images.

    Args:
        path: The ONNX file.
        threshold: From 0 to 1; a higher score means that an image must not be shown.

    Raises:
        NotFoundError: There is no such file.
        SetupError: onnxruntime is not installed.
        InvalidInputError: It is no ONNX graph of the form above (reason "not_a_safety_checker").
    """

    def __init__(self, path: Path, threshold: float = THRESHOLD) -> None:
        self.path, self.threshold = path, threshold
        if not path.is_file():
            raise NotFoundError(f"there is no safety checker {path}", "check the path", reason="no_safety_checker")
        self._session: Any = _open(path)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape: list[Any] = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or shape[1] != 3 or inputs[0].type != "tensor(float)" or len(outputs) != 1:
            raise _unusable(path, "it has not one input, float32 (N, 3, H, W), and one output")
        self._name = inputs[0].name
        self._height, self._width = (side if isinstance(side, int) else SIDE for side in shape[2:])

    def score(self, image: Image) -> float:
        """The score of an image, from 0 to 1.

        Raises IntegrityError when the classifier fails or gives anything else (reason "safety_checker_failed"): an
        image that was not graded is not safe.
        """
        from PIL import Image

        pixels = image.convert("RGB").resize((self._width, self._height), Image.Resampling.BICUBIC)
        values = np.asarray(pixels, np.float32).transpose(2, 0, 1)[None] / 255
        try:
            scores = np.asarray(self._session.run(None, {self._name: values})[0], np.float64)
        except Exception as error:  # the errors of ONNX Runtime have no common base class
            raise _failed(self.path, str(error).splitlines()[0][:200]) from error
        if scores.size != 1 or not 0 <= scores.item() <= 1:  # NaN is refused, too
            raise _failed(self.path, f"its output of shape {scores.shape} is not a score from 0 to 1")
        return float(scores.item())

    def refuses(self, score: float) -> bool:
        """Whether an image of this score must not be shown."""
        return score > self.threshold

    def check(self, image: Image) -> None:
        """Raise PolicyError (reason "unsafe_image") for an image that must not be shown; else as `score`."""
        score = self.score(image)
        if self.refuses(score):
            raise PolicyError(
                f"the safety checker's score is {score:.2f}, the limit {self.threshold:g}",
                "change the prompt, or use another seed",
                reason="unsafe_image",
            )


def _open(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        problem = "a safety checker needs onnxruntime"
        raise SetupError(problem, "install the extra cpu", reason="provider_missing") from error
    runtime: Any = onnxruntime
    try:
        return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise _unusable(path, str(error).splitlines()[0][:200]) from error


def _unusable(path: Path, why: str) -> InvalidInputError:
    hint = "use an ONNX classifier as the documentation describes it"
    return InvalidInputError(f"{path} is no safety checker: {why}", hint, reason="not_a_safety_checker", path=path)


def _failed(path: Path, why: str) -> IntegrityError:
    hint = "use another classifier; images that were not graded are not written"
    return IntegrityError(f"the safety checker {path} failed: {why}", hint, reason="safety_checker_failed", path=path)
