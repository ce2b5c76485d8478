"""OpenCV's YuNet and SFace on ONNX Runtime, compared with OpenCV's own classes on the same small networks."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from face_fakes import photo_of, write_face_models, write_yunet_sface
from numpy.typing import NDArray
from PIL import Image

from celebctl_models.faces.analysis import FaceSettings, OnnxFaceAnalyser
from celebctl_models.faces.packs import PACKS, Pack, choose_face_models
from celebctl_models.faces.yunet_sface import YuNet
from celebctl_runtime.errors import IntegrityError

cv2: Any = import_module("cv2")
DETECTOR, RECOGNISER = (file.name for file in PACKS["yunet_sface"].files)
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yunet_sface(tmp_path_factory.mktemp("faces") / "yunet_sface")


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)


def opencv(path: Path, image: Pixels, threshold: float) -> NDArray[np.float32]:
    """OpenCV's rows (n, 15): x, y, width, height, five landmarks, score."""
    size = image.shape[1], image.shape[0]
    detector = cv2.FaceDetectorYN.create(str(path), "", size, threshold, 0.3, 5000)
    return detector.detect(image)[1]


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_faces_are_those_of_opencv(tmp_path: Path, threshold: float) -> None:
    path = write_yunet_sface(tmp_path, random=True) / DETECTOR
    session = import_module("onnxruntime").InferenceSession(str(path))
    image = noise(640, 640)
    boxes, points = YuNet(session, threshold).detect(image)
    expected = opencv(path, image, threshold)
    assert len(boxes) == len(expected) > 20
    assert np.allclose(boxes[:, :2], expected[:, :2], atol=0.01)
    assert np.allclose(boxes[:, 2:4] - boxes[:, :2], expected[:, 2:4], atol=0.01)
    assert np.allclose(points.reshape(-1, 10), expected[:, 4:14], atol=0.01)
    assert np.allclose(boxes[:, 4], expected[:, 14], atol=1e-4)


@pytest.mark.parametrize("size", [(960, 1280), (320, 200)])
def test_photos_of_any_size_are_searched(folder: Path, size: tuple[int, int]) -> None:
    """A larger photo is reduced to the fixed input; boxes are in its own pixels."""
    photo = Image.new("RGB", (size[1], size[0]), (96, 96, 96))
    scale = max(1, max(size) // 640)
    cell = 32 * scale
    photo.paste((255, 0, 0), (2 * cell, cell, 3 * cell, 2 * cell))
    (face,) = OnnxFaceAnalyser(folder).analyse(photo)
    assert np.allclose(face.box, np.array([1, 0, 4, 3]) * cell, atol=1)
    assert np.allclose(face.landmarks[0], (2 * cell, 1.1 * cell), atol=1) and face.score > 0.9
    assert face.feature.shape == (128,) and float(np.linalg.norm(face.feature)) == pytest.approx(1.0)
    assert face.age is None


def test_a_detector_of_any_input_size_is_searched_at_640(tmp_path: Path) -> None:
    folder = write_yunet_sface(tmp_path, side="any")
    (face,) = OnnxFaceAnalyser(folder).analyse(photo_of((3, 2), size=256))
    assert np.allclose(face.box, [64, 32, 160, 128], atol=1)


def test_features_are_those_of_opencv(folder: Path) -> None:
    photo = Image.fromarray(noise(256, 256))
    photo.paste((255, 0, 0), (96, 96, 128, 128))
    (face,) = OnnxFaceAnalyser(folder).analyse(photo)
    bgr = np.ascontiguousarray(np.asarray(photo)[:, :, ::-1])
    recogniser = cv2.FaceRecognizerSF.create(str(folder / RECOGNISER), "")
    box = [*face.box[:2], *(face.box[2:] - face.box[:2])]
    crop = recogniser.alignCrop(bgr, np.array([*box, *face.landmarks.ravel(), face.score], np.float32))
    assert np.abs(crop[:, :, ::-1].astype(int) - face.crop112).mean() < 1.0  # the same template and interpolation
    feature = recogniser.feature(np.ascontiguousarray(face.crop112[:, :, ::-1])).reshape(-1)
    assert np.allclose(face.feature, feature / np.linalg.norm(feature), atol=1e-5)


def test_thresholds_are_the_publishers(folder: Path, tmp_path: Path) -> None:
    own = FaceSettings.read(folder)
    assert (own.det_thresh, own.similar, own.min_face) == (0.9, 0.363, 64)
    other = write_face_models(tmp_path / "other", settings="{}")
    assert (FaceSettings.read(other).det_thresh, FaceSettings.read(other).similar) == (0.5, 0.6)
    (folder / "faces.json").write_text('{"det_thresh": 0.7}')
    assert FaceSettings.read(folder) == FaceSettings(det_thresh=0.7, similar=0.363)
    (folder / "faces.json").unlink()


@pytest.mark.parametrize("missing", [True, False])
def test_a_folder_without_a_usable_recogniser_is_refused(tmp_path: Path, missing: bool) -> None:
    folder = write_yunet_sface(tmp_path)
    (folder / RECOGNISER).unlink()
    if not missing:
        (folder / RECOGNISER).write_bytes(b"no network")
    with pytest.raises(IntegrityError) as error:
        OnnxFaceAnalyser(folder)
    assert error.value.reason == "face_models_unusable"


def test_the_pack_is_free_and_published_with_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = PACKS["yunet_sface"]
    assert not pack.restricts and pack.downloads == pack.files and pack.size == 232_589 + 38_696_353
    for file in pack.files:
        assert len(bytes.fromhex(file.sha256)) == 32
        assert all(url.endswith(f"/{file.name}") for url in file.urls)

    def only_this(_: Path, other: Pack) -> bool:
        return other is pack

    monkeypatch.setattr("celebctl_models.faces.packs._has_files", only_this)
    assert choose_face_models("yunet_sface", "mini", tmp_path).name == "yunet_sface"  # no licence to accept
