"""Face analysis: box, five landmarks, aligned crop, feature and age of the faces in a photo.

`FaceAnalyser` is the interface, which any recogniser can implement. `OnnxFaceAnalyser` runs a folder of ONNX files:
mini's own pair or insightface's published packs through insightface, OpenCV's YuNet and SFace through yunet_sface.py.
insightface's packs, unlike its code, are licensed for non-commercial research only; celebctl contains none of them.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError, SetupError, UsageError
from celebctl_runtime.files import read_regular
from celebctl_runtime.strict_json import parse_json

from . import yunet_sface
from .photos import open_photo as open_photo

SETTINGS_FILE = "faces.json"
CROP = 112  # pixels, the recogniser's template
FEATURE_DIM = 512  # width of the feature of insightface's recognisers and mini's
PADDINGS = (0.0, 0.25, 0.5, 1.0)  # border as a fraction of the longer side: a face that fills the image needs one
HIGH_CONFIDENCE = 0.6  # detector score from which no second detection is made
NESTED_SCALE = 1.5  # a face is replaced by one around it that is this many times as wide
DEFAULT_DET_SIDE = 640  # pixels; a detector without a det_size of its own reduces larger photos to this
MAX_SIDE = 2048  # pixels of the searched image; detectors reduce it to a third of that themselves
MAX_ASPECT = 32  # longer side over shorter; narrower images are not searched
CPU = "CPUExecutionProvider"


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a photo.

    Attributes:
        box: (4,) float32, x0 y0 x1 y1 in pixels of the photo; may extend beyond its edge.
        score: The detector's score, 0 to 1.
        landmarks: (5, 2) float32, x y in pixels.
        crop112: (112, 112, 3) uint8 RGB, aligned with the ArcFace template by a similarity transform of the landmarks.
        feature: (F,) float32 of unit length; F is the analyser's ``feature_dim``.
        age: Estimate in years; None where the face models do not estimate it.
    """

    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]
    crop112: NDArray[np.uint8]
    feature: NDArray[np.float32]
    age: int | None = None

    @property
    def size(self) -> float:
        """The shorter side of the box in pixels."""
        return float(min(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    def __str__(self) -> str:
        x0, y0, x1, y1 = (round(float(edge)) for edge in self.box)
        return f"{x1 - x0} x {y1 - y0} px at {x0},{y0} (score {self.score:.2f})"


#: Box with score (5,) and landmarks (5, 2).
Detection = tuple[NDArray[np.float32], NDArray[np.float32]]


class FaceAnalyser(Protocol):
    """Detects and recognises faces."""

    def analyse(self, photo: Image.Image) -> list[Face]:
        """All faces of an RGB photo, from left to right; [] for none."""
        ...


@dataclass(frozen=True)
class FaceSettings:
    """The settings in a folder of face models, faces.json.

    Attributes:
        det_size: The detector's input (width, height) in pixels; () for insightface's own choice of 128 and 640.
        det_thresh: Least score of a face.
        min_face: Least side in pixels of a face to learn from.
        similar: Cosine of two people's features above which images of both are likely to mix them up.
    """

    det_size: tuple[int, ...] = ()
    det_thresh: float = 0.5
    min_face: int = 64
    similar: float = 0.6

    @classmethod
    def read(cls, folder: Path) -> "FaceSettings":
        """The settings of `folder`, or the defaults of its kind. Raises IntegrityError for a broken faces.json."""
        path = folder / SETTINGS_FILE
        base = YUNET_SFACE if has_yunet_sface(folder) else cls()
        if not path.is_file():
            return base
        try:
            values = cast(dict[str, Any], parse_json(read_regular(path)))
            settings = cls(
                det_size=tuple(int(side) for side in values.get("det_size", base.det_size)),
                det_thresh=float(values.get("det_thresh", base.det_thresh)),
                min_face=int(values.get("min_face", base.min_face)),
                similar=float(values.get("similar", base.similar)),
            )
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise _unusable(path, str(error)) from error
        if len(settings.det_size) not in (0, 2) or any(side < 32 or side % 32 for side in settings.det_size):
            raise _unusable(path, f"det_size {list(settings.det_size)} is not two multiples of 32")
        return settings


#: The publishers' thresholds.
YUNET_SFACE = FaceSettings(det_thresh=yunet_sface.SCORE, similar=yunet_sface.SAME_PERSON)


def has_yunet_sface(folder: Path) -> bool:
    """Whether a folder contains OpenCV's detector, by its file name."""
    return next(folder.glob(yunet_sface.DETECTOR), None) is not None


def _unusable(path: Path, cause: str) -> IntegrityError:
    """The error for face models that cannot be used."""
    hint = "download the face models again, or use another folder"
    return IntegrityError(f"the face models in {path} cannot be used: {cause}", hint, reason="face_models_unusable")


class OnnxFaceAnalyser:
    """Face analysis with the ONNX files of one folder. Nothing is downloaded.

    The folder contains a detector with SCRFD outputs (landmarks included) and a 112 x 112 recogniser with one 512-wide
    output, and may contain a 96 x 96 age estimator; insightface distinguishes them by their shapes. Or it contains
    OpenCV's YuNet and SFace, under their published file names.

    Args:
        folder: The face models.
        providers: ONNX Runtime execution providers, in order of preference. The first one must run: there is no silent
            fallback to the CPU.

    Raises:
        NotFoundError: There is no such folder.
        SetupError: insightface or the provider is missing.
        IntegrityError: The folder does not contain such networks.

    Attributes:
        feature_dim: Width of the recogniser's feature: 512, or 128 for SFace.
    """

    def __init__(self, folder: Path, providers: Sequence[str] = (CPU,)) -> None:
        if not folder.is_dir():
            problem = f"there is no folder of face models at {folder}"
            raise NotFoundError(problem, "pass an existing folder", reason="face_models_folder")
        self.folder = folder
        self.settings = FaceSettings.read(folder)
        self.feature_dim = yunet_sface.FEATURE_DIM if has_yunet_sface(folder) else FEATURE_DIM
        models, self._norm_crop = _load(folder, self.settings, providers)
        self._detector, self._recogniser = models["detection"], models["recognition"]
        self._ages = models.get("genderage")
        self.providers = tuple(str(name) for name in self._recogniser.session.get_providers())

    def analyse(self, photo: Image.Image) -> list[Face]:
        """All faces of a photo, from left to right; [] for none.

        Without a detection the search is repeated with a border around the photo. A photo that the detector reduces is
        searched twice when its scores are low: an eye in round glasses can look like a face. Crops are taken from the
        photo's full resolution.
        """
        rgb = photo if photo.mode == "RGB" else photo.convert("RGB")
        if max(rgb.size) > MAX_ASPECT * min(rgb.size):
            return []  # the detector's input would be only a few pixels high
        image = _reduced(rgb)
        scale = (np.array(rgb.size) / np.array(image.size)).astype(np.float32)
        reduced = max(image.size) > max(self.settings.det_size or (DEFAULT_DET_SIDE,))
        for pad in PADDINGS:
            detections = self._detect(image, round(pad * max(image.size)))
            if detections:
                if pad == PADDINGS[0] and reduced and max(float(box[4]) for box, _ in detections) < HIGH_CONFIDENCE:
                    second = self._detect(image, round(PADDINGS[1] * max(image.size)))
                    detections = _replace_nested(detections, second)
                faces = [self._face(rgb, box, points, scale) for box, points in detections]
                return sorted(without_nested(faces), key=lambda face: float(face.box[0]))
        return []

    def recognise(self, crop: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The unit feature (F,) of a crop (112, 112, 3) uint8 RGB that is aligned as `Face.crop112` is."""
        with _silenced():
            feature = np.asarray(self._recogniser.get_feat(crop[:, :, ::-1]), dtype=np.float32).reshape(-1)
        length = float(np.linalg.norm(feature))
        if feature.shape != (self.feature_dim,) or not np.isfinite(length) or length == 0.0:
            problem = f"the recogniser returns {feature.size} numbers of norm {length:g}, not {self.feature_dim}"
            raise _unusable(self.folder, problem)
        return feature / np.float32(length)

    def _detect(self, image: Image.Image, border: int) -> list[Detection]:
        """Detections in an image with a border of that many pixels, in coordinates of the image without it."""
        bgr = np.ascontiguousarray(_padded(np.asarray(image, dtype=np.uint8), border)[:, :, ::-1])
        with _silenced():
            boxes, landmarks = self._detector.detect(bgr)
        if landmarks is None:
            raise _unusable(self.folder, "the detector returns no landmarks")
        shift = np.array([border, border, border, border, 0], np.float32)
        detections = [
            (np.asarray(box, np.float32) - shift, np.asarray(points, np.float32) - np.float32(border))
            for box, points in zip(boxes, landmarks, strict=True)
        ]
        return [(box, points) for box, points in detections if _is_centre_inside(box, image.size)]

    def _face(
        self, photo: Image.Image, box: NDArray[np.float32], points: NDArray[np.float32], scale: NDArray[np.float32]
    ) -> Face:
        """A face from a detection in a reduced photo; `scale` (2,) are the factors from there to `photo`."""
        landmarks = points * scale
        window = _crop_window(landmarks, photo.size)
        pixels = np.asarray(photo.crop(window), dtype=np.uint8)
        with _silenced():
            crop = self._norm_crop(pixels, landmark=landmarks - np.array(window[:2], np.float32), image_size=CROP)
        crop112 = np.ascontiguousarray(crop, dtype=np.uint8)
        full = box[:4] * np.concatenate([scale, scale])
        age = self._age(pixels, full - np.array([*window[:2], *window[:2]], np.float32))
        return Face(full, float(box[4]), landmarks, crop112, self.recognise(crop112), age)

    def _age(self, pixels: NDArray[np.uint8], box: NDArray[np.float32]) -> int | None:
        """Estimated years of the face in box (4,) of RGB pixels (H, W, 3)."""
        if self._ages is None:
            return None
        try:
            with _silenced():
                _, age = self._ages.get(np.ascontiguousarray(pixels[:, :, ::-1]), _Box(box))
            return int(age)
        except (ValueError, OverflowError) as error:
            raise _unusable(self.folder, "the age estimate is not a number") from error


class _Box(dict[str, Any]):
    """The part of insightface's Face, a dictionary with a `bbox`, that its attribute networks use."""

    def __init__(self, box: NDArray[np.float32]) -> None:
        super().__init__()
        self.bbox = box


def without_nested(faces: Sequence[Face]) -> list[Face]:
    """Drop faces whose centre is inside a larger one: detectors take a mouth with a beard for a second face."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.size):
        x, y = (face.box[:2] + face.box[2:]) / 2
        if not any(other.box[0] < x < other.box[2] and other.box[1] < y < other.box[3] for other in kept):
            kept.append(face)
    return kept


def largest_face(faces: Sequence[Face]) -> Face:
    """The face with the largest box; the first of several such. Raises ValueError for no faces."""
    return max(faces, key=lambda face: face.size)


def select_face(faces: Sequence[Face], photo: str, number: int | None = None, min_size: int = 0) -> Face:
    """The face of a photo to learn from: the only one, or the chosen one.

    Args:
        faces: From left to right.
        photo: Name of the file, for messages.
        number: The chosen face, counted from 1 at the left.
        min_size: Least side of the face in pixels.

    Raises:
        InvalidInputError: No face, several without a number, or a face that is too small.
        UsageError: There is no face with this number.
    """
    if not faces:
        raise InvalidInputError(f"no face was found in {photo}", "use a sharp photo that shows one face from the front")
    listing = "; ".join(f"{position}: {face}" for position, face in enumerate(faces, 1))
    if number is not None and not 1 <= number <= len(faces):
        raise UsageError(f"{photo} has no face number {number}", f"the faces from left to right are {listing}")
    if number is None and len(faces) > 1:
        hint = "choose one by its number, counted from the left"
        raise InvalidInputError(f"{photo} shows {len(faces)} faces: {listing}", hint, reason="several_faces")
    face = faces[(number or 1) - 1]
    if face.size < min_size:
        raise InvalidInputError(
            f"the face in {photo} has a side of {face.size:.0f} pixels; at least {min_size} are needed",
            "use a larger photo, or one taken from nearer",
        )
    return face


def _replace_nested(first: list[Detection], second: list[Detection]) -> list[Detection]:
    """`first`; those inside a much larger face of `second` with a higher score are replaced by that one."""
    kept: list[Detection] = []
    replacements: set[int] = set()
    for box, points in first:
        x, y = (float(edge) for edge in (box[:2] + box[2:4]) / 2)
        around = [
            index
            for index, (other, _) in enumerate(second)
            if other[0] < x < other[2] and other[1] < y < other[3] and other[4] > box[4]
            and other[2] - other[0] > NESTED_SCALE * (box[2] - box[0])
        ]  # fmt: skip
        if not around:
            kept.append((box, points))
        replacements.update(around[:1])
    return kept + [second[index] for index in sorted(replacements)]


def _reduced(photo: Image.Image) -> Image.Image:
    """The photo, or a copy whose longer side is MAX_SIDE."""
    scale = MAX_SIDE / max(photo.size)
    if scale >= 1:
        return photo
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    return photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _is_centre_inside(box: NDArray[np.float32], size: tuple[int, int]) -> bool:
    """Whether the centre of a box (5,) is in the image, not in the border around it."""
    x, y = (float(edge) for edge in (box[:2] + box[2:4]) / 2)
    return 0 <= x < size[0] and 0 <= y < size[1]


def _crop_window(landmarks: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of a photo, x0 y0 x1 y1 in whole pixels, that contains the aligned crop: a small copy."""
    centre = landmarks.mean(axis=0)
    # The template's corners are 3.7 times as far from the landmarks' mean as the landmarks are on average.
    half = max(16.0, 8.0 * float(np.sqrt(((landmarks - centre) ** 2).sum(axis=1).mean())))
    low = np.clip(np.floor(centre - half), 0, np.subtract(size, 1)).astype(int)
    high = np.clip(np.ceil(centre + half), low + 1, size).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _padded(pixels: NDArray[np.uint8], border: int) -> NDArray[np.uint8]:
    """(H, W, 3) with `border` pixels of the image's mean colour on every side."""
    if border == 0:
        return pixels
    height, width = pixels.shape[:2]
    canvas = np.empty((height + 2 * border, width + 2 * border, 3), np.uint8)
    canvas[:] = pixels.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    canvas[border : border + height, border : border + width] = pixels
    return canvas


def _load(folder: Path, settings: FaceSettings, providers: Sequence[str]) -> tuple[dict[str, Any], Callable[..., Any]]:
    """The models in `folder` by insightface's names of their tasks, and insightface's alignment function."""
    with _silenced():
        analysis, norm_crop = _import_insightface()
        _check_provider(providers[0])
        if has_yunet_sface(folder):
            return _load_yunet_sface(folder, settings, providers), norm_crop
        try:
            app = analysis(
                name=str(folder),
                root=str(folder.parent),
                allowed_modules=["detection", "recognition", "genderage"],
                providers=list(providers),
                # One session for every size: a second one with a frozen size only pays off for video.
                static_shape_sessions=False,
            )
            # A negative ctx_id would move the sessions to the CPU, whatever was asked for.
            app.prepare(ctx_id=0, det_thresh=settings.det_thresh, det_size=settings.det_size or None)
        except Exception as error:  # onnxruntime, protobuf and insightface's asserts have no common base class
            raise _unusable(folder, str(error).splitlines()[0] if str(error) else "there is no detector") from error
    if not {"detection", "recognition"} <= set(app.models):
        raise _unusable(folder, "there is no 112 x 112 recogniser")
    for model in app.models.values():
        _check_running(model.session.get_providers(), providers[0])
    return dict(app.models), norm_crop


def _load_yunet_sface(folder: Path, settings: FaceSettings, providers: Sequence[str]) -> dict[str, Any]:
    """OpenCV's two networks in `folder`, by insightface's names of their tasks."""
    sessions: list[Any] = []
    for pattern in (yunet_sface.DETECTOR, yunet_sface.RECOGNISER):
        path = next(folder.glob(pattern), None)
        if path is None:
            raise _unusable(folder, f"there is no {pattern}")
        try:
            session = import_module("onnxruntime").InferenceSession(str(path), providers=list(providers))
        except Exception as error:  # onnxruntime's errors have no common base class
            raise _unusable(path, str(error).splitlines()[0]) from error
        _check_running(session.get_providers(), providers[0])
        sessions.append(session)
    detector = yunet_sface.YuNet(sessions[0], settings.det_thresh)
    return {"detection": detector, "recognition": yunet_sface.SFace(sessions[1])}


def _check_provider(provider: str) -> None:
    """Raise SetupError unless this ONNX Runtime has the provider."""
    available: list[str] = import_module("onnxruntime").get_available_providers()
    if provider not in available:
        problem = f"this ONNX Runtime has no {provider}, only {', '.join(available)}"
        raise SetupError(problem, "install the ONNX Runtime for this device", reason="provider_missing")


def _check_running(active: Sequence[str], provider: str) -> None:
    """Raise SetupError unless the provider runs: ONNX Runtime falls back to the CPU when it does not start."""
    if not active or active[0] != provider:
        problem = f"{provider} did not start; the face models would run on {', '.join(active)}"
        raise SetupError(problem, "install what the provider needs", reason="provider_missing")


def _import_insightface() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """FaceAnalysis and norm_crop. Raises SetupError."""
    try:
        analysis = import_module("insightface.app").FaceAnalysis
        return analysis, import_module("insightface.utils.face_align").norm_crop
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] in {"insightface", "onnxruntime"}:
            raise SetupError(
                "face detection needs insightface, which is not installed", 'pip install "celebctl[faces]"'
            ) from error
        # opencv-python needs desktop libraries (libGL, X11), which servers and containers do not have.
        raise SetupError(
            f"insightface is installed but does not load: {error}",
            "on a machine without a desktop: pip uninstall -y opencv-python && pip install opencv-python-headless",
        ) from error


@contextlib.contextmanager
def _silenced() -> Generator[None]:
    """Suppress what insightface and its imports print and warn: standard output is for results."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
