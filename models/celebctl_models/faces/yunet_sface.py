"""OpenCV's face models on ONNX Runtime: the detector YuNet and the recogniser SFace.

They have the methods of insightface's detectors and recognisers that celebctl calls, so that everything after them is
the same. Pre- and post-processing are those of OpenCV (modules/objdetect/src/face_detect.cpp and face_recognize.cpp);
SFace is aligned with the same five points as ArcFace.
"""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DETECTOR, RECOGNISER = "face_detection_yunet*.onnx", "face_recognition_sface*.onnx"  # file names
FEATURE_DIM = 128
STRIDES = (8, 16, 32)
DEFAULT_SIDE = 640  # pixels of the detector's input; the published file allows no other
SCORE, OVERLAP, MOST = 0.9, 0.3, 5000  # FaceDetectorYN's score threshold, overlap threshold and number of candidates
SAME_PERSON = 0.363  # cosine from which the publishers take two faces for one person

Floats = NDArray[np.float32]


class YuNet:
    """The detector: BGR image -> boxes and five landmarks.

    Args:
        session: ONNX Runtime session of a file with the input (1, 3, H, W), BGR 0 to 255, and the outputs ``cls_s``,
            ``obj_s`` (1, n, 1), ``bbox_s`` (1, n, 4) and ``kps_s`` (1, n, 10) for the strides s of `STRIDES`, where
            n = H / s * W / s.
        threshold: Least score of a face.
    """

    def __init__(self, session: Any, threshold: float = SCORE) -> None:
        self.session, self.threshold = session, threshold
        height, width = session.get_inputs()[0].shape[2:]
        fixed = isinstance(height, int) and isinstance(width, int)
        self.size = (width, height) if fixed else (DEFAULT_SIDE, DEFAULT_SIDE)

    def detect(self, image: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Faces of a BGR image (H, W, 3): boxes (n, 5), x0 y0 x1 y1 score, and landmarks (n, 5, 2), in its pixels.

        An image that is larger than the input is reduced; the rest of the input is black.
        """
        height, width = image.shape[:2]
        scale = min(self.size[0] / width, self.size[1] / height, 1.0)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if size != (width, height):
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), np.uint8)
        canvas = np.zeros((self.size[1], self.size[0], 3), np.float32)
        canvas[: size[1], : size[0]] = image
        names = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in STRIDES]
        outputs = self.session.run(names, {self.session.get_inputs()[0].name: canvas.transpose(2, 0, 1)[None]})
        boxes, points = self._decode(dict(zip(names, outputs, strict=True)))
        kept = _without_overlaps(boxes, self.threshold)
        factors = np.array([width / size[0], height / size[1]], np.float32)
        boxes[:, :4] *= np.tile(factors, 2)
        return boxes[kept], points[kept] * factors

    def _decode(self, outputs: dict[str, Floats]) -> tuple[Floats, Floats]:
        """Boxes (n, 5) and landmarks (n, 5, 2), in pixels of the input, of all cells above the threshold."""
        boxes: list[NDArray[Any]] = [np.zeros((0, 5), np.float32)]
        points: list[NDArray[Any]] = [np.zeros((0, 5, 2), np.float32)]
        for stride in STRIDES:
            columns = self.size[0] // stride
            cls, obj = (outputs[f"{kind}_{stride}"].reshape(-1).clip(0.0, 1.0) for kind in ("cls", "obj"))
            score = np.sqrt(cls * obj)
            chosen = np.flatnonzero(score >= self.threshold)
            cell = np.stack([chosen % columns, chosen // columns], axis=1).astype(np.float32)
            box = outputs[f"bbox_{stride}"].reshape(-1, 4)[chosen]
            centre, half = (cell + box[:, :2]) * stride, np.exp(box[:, 2:]) * stride / 2
            boxes.append(np.concatenate([centre - half, centre + half, score[chosen, None]], axis=1))
            offsets = outputs[f"kps_{stride}"].reshape(-1, 5, 2)[chosen]
            points.append((offsets + cell[:, None]) * stride)
        return np.concatenate(boxes), np.concatenate(points)


class SFace:
    """The recogniser: aligned BGR crop -> feature. The graph itself subtracts the mean and scales."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def get_feat(self, crop: NDArray[np.uint8]) -> Floats:
        """The feature (1, 128), not normalized, of a crop (112, 112, 3)."""
        rgb = crop[:, :, ::-1].astype(np.float32).transpose(2, 0, 1)[None]
        return self.session.run(None, {self.session.get_inputs()[0].name: rgb})[0]


def _without_overlaps(boxes: Floats, threshold: float) -> NDArray[np.int64]:
    """Indices of the boxes (n, 5) that no better one overlaps, best first; OpenCV compares whole pixels."""
    corner, size = boxes[:, :2].astype(int), (boxes[:, 2:4] - boxes[:, :2]).astype(int)
    rectangles, scores = np.concatenate([corner, size], axis=1).tolist(), boxes[:, 4].tolist()
    kept = import_module("cv2").dnn.NMSBoxes(rectangles, scores, threshold, OVERLAP, 1.0, MOST)
    return np.asarray(kept, np.int64).reshape(-1)
