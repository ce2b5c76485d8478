"""A face detector and a recogniser small enough to build in a test, in the two formats insightface's loader knows.

The detector (SCRFD: nine outputs, strides 8, 16, 32, two anchors a cell) fires where a 32 x 32 cell is pure red and
answers with a box of three cells and five landmarks around it, which a test may choose: the pose of the "face". The
recogniser (112 x 112 -> 512) is a random projection, so that equal crops have equal features. Both are exact functions
of the picture: nothing is trained.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from PIL import Image, ImageDraw

CELL = 32  # pixels, the stride of the one level that fires
RED = (255, 0, 0)
Points = Sequence[Sequence[float]]
LANDMARKS: Points = ((0.0, 0.1), (1.0, 0.1), (0.5, 0.6), (0.1, 1.1), (0.9, 1.1))  # in cells from the cell's corner
BOX = (1.0, 1.0, 2.0, 2.0)  # left, top, right, bottom: distances from the cell's corner in cells

onnx: Any = import_module("onnx")  # half of its signatures are untyped
_make = onnx.helper


def photo_of(*cells: tuple[int, int], size: int = 128) -> Image.Image:
    """A grey picture of `size` pixels with a "face" at each (column, row) cell."""
    picture = Image.new("RGB", (size, size), (96, 96, 96))
    for column, row in cells:
        corner = (column * CELL, row * CELL)
        ImageDraw.Draw(picture).rectangle((*corner, corner[0] + CELL - 1, corner[1] + CELL - 1), fill=RED)
    return picture


def turned(degrees: float) -> Points:
    """LANDMARKS turned clockwise in the picture around their middle."""
    points = np.array(LANDMARKS) @ (1, 1j)
    points = (points - points.mean()) * np.exp(1j * np.radians(degrees)) + points.mean()
    return [(float(point.real), float(point.imag)) for point in points]


def write_face_models(
    folder: Path,
    *,
    detector: bool = True,
    recogniser: bool = True,
    settings: str = "",
    landmarks: Points | None = LANDMARKS,
    ages: bool = False,
) -> Path:
    """Fill `folder` with the two models and a faces.json; returns the folder.

    landmarks: where the detector sees them, (5, 2) in cells from the red cell's corner; None for one that sees none.
    ages: also write an estimator of ages, for which the blue around a face is a hundred years at its brightest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faces.json").write_text(settings or '{"det_size": [128, 128], "det_thresh": 0.5, "min_face": 32}')
    if detector:
        _save(_detector(landmarks), folder / "detector.onnx")
    if recogniser:
        _save(_recogniser(), folder / "recogniser.onnx")
    if ages:
        _save(_age_estimator(), folder / "genderage.onnx")
    return folder


def _save(graph: Any, path: Path) -> None:
    model = _make.make_model(graph, opset_imports=[_make.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _detector(landmarks: Points | None) -> Any:
    nodes: list[Any] = []
    weights: list[Any] = []
    outputs: list[Any] = []
    answers: dict[str, Points] = {"score": ((0.0,),), "box": (BOX,), **({"kps": landmarks} if landmarks else {})}
    for kind, answer in answers.items():
        width = np.size(answer)
        for stride in (8, 16, 32):
            name = f"{kind}_{stride}"
            kernel, bias = _cell_filter(kind, answer, stride)
            weights += [_tensor(f"{name}.weight", kernel), _tensor(f"{name}.bias", bias)]
            weights.append(onnx.numpy_helper.from_array(np.array([-1, width], np.int64), f"{name}.rows"))
            nodes += _rows(name, stride, sigmoid=kind == "score")
            outputs.append(_make.make_tensor_value_info(name, TensorProto.FLOAT, [None, width]))
    picture = _make.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, "h", "w"])
    return _make.make_graph(nodes, "red-square-detector", [picture], outputs, weights)


def _rows(name: str, stride: int, *, sigmoid: bool) -> list[Any]:
    """One convolution per cell, then (1, anchors * width, h, w) -> (h * w * anchors, width)."""
    convolve = _make.make_node(
        "Conv", ["input.1", f"{name}.weight", f"{name}.bias"], [f"{name}.map"], strides=[stride, stride]
    )
    move = _make.make_node("Transpose", [f"{name}.map"], [f"{name}.last"], perm=[0, 2, 3, 1])
    flat = f"{name}.flat" if sigmoid else name
    nodes = [convolve, move, _make.make_node("Reshape", [f"{name}.last", f"{name}.rows"], [flat])]
    return [*nodes, _make.make_node("Sigmoid", [flat], [name])] if sigmoid else nodes


def _cell_filter(kind: str, answer: Points, stride: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Kernel (2 * width, 3, stride, stride) and bias (2 * width,); only the first anchor of stride 32 ever fires."""
    width = np.size(answer)
    kernel = np.zeros((2 * width, 3, stride, stride), np.float32)
    bias = np.zeros(2 * width, np.float32)
    if kind == "score":
        bias[:] = -20.0
        if stride == CELL:
            # Mean of red minus the mean of green and blue is 2 for pure red; input pixels lie in [-1, 1].
            kernel[0, 0], kernel[0, 1], kernel[0, 2] = (np.float32(w / stride**2) for w in (10.0, -5.0, -5.0))
            bias[0] = -17.0
    else:
        bias[:] = np.tile(np.ravel(answer), 2)
    return kernel, bias


def _recogniser() -> Any:
    random = np.random.default_rng(7)
    kernel = random.normal(scale=1 / 16, size=(8, 3, 16, 16)).astype(np.float32)
    project = random.normal(scale=1 / 20, size=(8 * 7 * 7, 512)).astype(np.float32)
    nodes = [
        _make.make_node("Conv", ["data", "kernel"], ["map"], strides=[16, 16]),
        _make.make_node("Flatten", ["map"], ["flat"]),
        _make.make_node("MatMul", ["flat", "project"], ["feature"]),
    ]
    crop = _make.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 112, 112])
    feature = _make.make_tensor_value_info("feature", TensorProto.FLOAT, ["n", 512])
    weights = [_tensor("kernel", kernel), _tensor("project", project)]
    return _make.make_graph(nodes, "random-recogniser", [crop], [feature], weights)


def _age_estimator() -> Any:
    """(1, 3, 96, 96) RGB in [-1, 1] -> woman, man, years / 100, as insightface's does; mean blue -1 to 1 is 0 to 1."""
    weight, bias = np.zeros((3, 3), np.float32), np.array([0.4, 0.6, 0.5], np.float32)
    weight[2, 2] = 0.5
    nodes = [
        _make.make_node("ReduceMean", ["data"], ["mean"], axes=[2, 3], keepdims=0),
        _make.make_node("MatMul", ["mean", "weight"], ["weighed"]),
        _make.make_node("Add", ["weighed", "bias"], ["fc1"]),
    ]
    crop = _make.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 96, 96])
    answer = _make.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, 3])
    return _make.make_graph(nodes, "blue-ages", [crop], [answer], [_tensor("weight", weight), _tensor("bias", bias)])


def _tensor(name: str, values: NDArray[np.float32]) -> Any:
    return onnx.numpy_helper.from_array(values, name)


def write_yunet_sface(folder: Path, *, side: int | str = 640, random: bool = False) -> Path:
    """Fill `folder` with doubles of OpenCV's two networks, inputs and outputs as in the published files.

    The detector sees a face where a 32 x 32 cell is pure red, as `write_face_models`' does.

    side: of the detector's input, as published; text for one of any size.
    random: a detector of random numbers instead: hundreds of overlapping candidates that depend on every pixel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save(_yunet(side, random=random), folder / "face_detection_yunet_2023mar.onnx")
    _save(_sface(), folder / "face_recognition_sface_2021dec.onnx")
    return folder


def _yunet(side: int | str, *, random: bool) -> Any:
    nodes: list[Any] = []
    weights: list[Any] = []
    outputs: list[Any] = []
    answers: dict[str, Points] = {
        "cls": ((0.0,),), "obj": ((0.0,),), "bbox": ((0.5, 0.5, np.log(3.0), np.log(3.0)),), "kps": LANDMARKS
    }  # fmt: skip
    for kind, answer in answers.items():
        for stride in (8, 16, 32):
            name, width = f"{kind}_{stride}", np.size(answer)
            kernel, bias = np.zeros((width, 3, stride, stride), np.float32), np.ravel(answer).astype(np.float32)
            if random:
                seed = np.random.default_rng([stride, width, len(name)])
                kernel = seed.normal(scale=0.0005 / stride, size=kernel.shape).astype(np.float32)
                bias = bias + np.float32(0.6 if width == 1 else 0.0)
            elif width == 1 and stride == CELL:  # mean red minus half of green and blue: 255 for pure red in BGR
                kernel[0] = np.array([-0.5, -0.5, 1.0], np.float32)[:, None, None] / (255 * stride**2)
            weights += [_tensor(f"{name}.weight", kernel), _tensor(f"{name}.bias", bias)]
            weights.append(onnx.numpy_helper.from_array(np.array([1, -1, width], np.int64), f"{name}.rows"))
            nodes += _rows(name, stride, sigmoid=False)
            nodes[-3].input[0] = "input"
            count = (side // stride) ** 2 if isinstance(side, int) else None
            outputs.append(_make.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, width]))
    shape = [1, 3, side, side] if isinstance(side, int) else [1, 3, "h", "w"]
    picture = _make.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    return _make.make_graph(nodes, "red-square-yunet", [picture], outputs, weights)


def _sface() -> Any:
    """A random projection of RGB 0 to 255; mean and scale are inside, as in the published file."""
    random = np.random.default_rng(11)
    kernel = random.normal(scale=1 / 16, size=(8, 3, 16, 16)).astype(np.float32)
    project = random.normal(scale=1 / 20, size=(8 * 7 * 7, 128)).astype(np.float32)
    nodes = [
        _make.make_node("Sub", ["data", "mean"], ["centred"]),
        _make.make_node("Mul", ["centred", "scale"], ["scaled"]),
        _make.make_node("Conv", ["scaled", "kernel"], ["map"], strides=[16, 16]),
        _make.make_node("Flatten", ["map"], ["flat"]),
        _make.make_node("MatMul", ["flat", "project"], ["fc1"]),
    ]
    crop = _make.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 112, 112])
    feature = _make.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, 128])
    constants = {"mean": np.float32(127.5), "scale": np.float32(1 / 128)}
    weights = [_tensor(name, np.array([value], np.float32)) for name, value in constants.items()]
    return _make.make_graph(
        nodes, "random-sface", [crop], [feature], [*weights, _tensor("kernel", kernel), _tensor("project", project)]
    )
