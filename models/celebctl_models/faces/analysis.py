"""From a photo to faces: box, five landmarks, the aligned crop and the recogniser's feature.

The FaceAnalyser contract is three lines, so that any recogniser can stand in. The adapter here runs a folder of ONNX
files through insightface: the drawn world's own pair and insightface's published packs go the same way. Note that those
packs, unlike insightface's code, are licensed for non-commercial research only; celebctl ships none of them.

What this module does not know: names of people, prompts, diffusion.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError, SetupError, UsageError

from .photos import open_photo as open_photo

SETTINGS_FILE = "faces.json"
LANDMARKS = 5  # eyes, nose tip, corners of the mouth; the person's right eye first
CROP = 112  # pixels, the recogniser's template
FEATURE_DIM = 512  # numbers the recogniser gives for a face
PADDINGS = (0.0, 0.25, 0.5, 1.0)  # of the longer side, on every side: a face that fills the picture is found after padding
HIGH_CONFIDENCE = 0.6  # score of a face that is not looked at again
LARGER = 1.5  # times as wide is a face that one found inside it gives way to
SEEN_WHOLE = 640  # px; without a det_size of its own a detector sees larger photos reduced
LONGEST = 2048  # pixels of the picture that is searched; detectors reduce it to a third of that themselves
SLIMMEST = 32  # longer side over shorter: no face is found in a slimmer strip
CPU = "CPUExecutionProvider"


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a photo.

    box: (4,) float32, x0 y0 x1 y1 in pixels of the photo (may reach over its edge). score: detector's, 0 to 1.
    landmarks: (5, 2) float32, x y in pixels. crop112: (112, 112, 3) uint8 RGB, warped to the ArcFace template by a
    similarity of the landmarks. feature: (512,) float32 of unit length. age: in years, estimated; None where the face
    models do not estimate it.
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


#: What a detector says: box with score (5,) and landmarks (5, 2).
Found = tuple[NDArray[np.float32], NDArray[np.float32]]


class FaceAnalyser(Protocol):
    """Finds faces. Implementations return them from left to right, and [] when there is none."""

    def analyse(self, photo: Image.Image) -> list[Face]:
        """All faces of an RGB photo."""
        ...


@dataclass(frozen=True)
class FaceSettings:
    """What a folder of face models says about itself in faces.json. Sizes are (width, height) in pixels.

    det_size: the detector's input, () for insightface's own choice of 128 and 640. det_thresh: least score.
    min_face: the smallest face side that is worth learning from.
    """

    det_size: tuple[int, ...] = ()
    det_thresh: float = 0.5
    min_face: int = 64

    @classmethod
    def read(cls, folder: Path) -> "FaceSettings":
        """The settings of `folder`; the defaults without a faces.json. Raises IntegrityError for a broken one."""
        path = folder / SETTINGS_FILE
        if not path.is_file():
            return cls()
        try:
            said = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
            settings = cls(
                det_size=tuple(int(side) for side in said.get("det_size", ())),
                det_thresh=float(said.get("det_thresh", cls.det_thresh)),
                min_face=int(said.get("min_face", cls.min_face)),
            )
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise IntegrityError(f"{path} cannot be used: {error}", _FETCH_AGAIN) from error
        if len(settings.det_size) not in (0, 2) or any(side < 32 or side % 32 for side in settings.det_size):
            sides = list(settings.det_size)
            raise IntegrityError(f"{path}: det_size {sides} is not two multiples of 32", _FETCH_AGAIN)
        return settings


_FETCH_AGAIN = "fetch the face models again, or give another folder: --face-models DIR"


class InsightFaceAnalyser:
    """insightface's FaceAnalysis over the ONNX files of one folder.

    The folder holds a detector with SCRFD outputs (landmarks included) and a 112 x 112 recogniser with one 512-wide
    output, and may hold a 96 x 96 estimator of ages; insightface tells them apart by their shapes. Nothing is ever
    fetched. `providers` are ONNX Runtime's, in order of preference; the first must really run, no quiet way back to the
    CPU. Raises NotFoundError without the folder, SetupError without insightface or the provider, IntegrityError
    when the folder does not hold such a pair.
    """

    def __init__(self, folder: Path, providers: Sequence[str] = (CPU,)) -> None:
        if not folder.is_dir():
            raise NotFoundError(f"there is no folder of face models at {folder}", "give one: --face-models DIR")
        self.folder = folder
        self.settings = FaceSettings.read(folder)
        models, self._norm_crop = _load(folder, self.settings, providers)
        self._detector, self._recogniser = models["detection"], models["recognition"]
        self._ages = models.get("genderage")
        self.providers = tuple(str(name) for name in self._recogniser.session.get_providers())

    def analyse(self, photo: Image.Image) -> list[Face]:
        """All faces from left to right; a photo in which none is found is tried again with a border around it.

        A photo that the detector sees reduced is looked at a second time when the detector is not sure of its faces: an
        eye in round glasses can pass for one. Crops are always cut from the photo's own pixels.
        """
        rgb = photo if photo.mode == "RGB" else photo.convert("RGB")
        if max(rgb.size) > SLIMMEST * min(rgb.size):
            return []  # the detector's input would be only a few pixels high
        seen = _reduced(rgb)
        scale = (np.array(rgb.size) / np.array(seen.size)).astype(np.float32)
        reduced = max(seen.size) > max(self.settings.det_size or (SEEN_WHOLE,))
        for pad in PADDINGS:
            found = self._find(seen, round(pad * max(seen.size)))
            if found:
                if pad == PADDINGS[0] and reduced and max(float(box[4]) for box, _ in found) < HIGH_CONFIDENCE:
                    found = _outgrown(found, self._find(seen, round(PADDINGS[1] * max(seen.size))))
                faces = [self._face(rgb, box, points, scale) for box, points in found]
                return sorted(without_nested(faces), key=lambda face: float(face.box[0]))
        return []

    def recognise(self, crop: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The unit feature (512,) of a crop (112, 112, 3) uint8 RGB that is aligned as `Face.crop112` is."""
        with _hushed():
            feature = np.asarray(self._recogniser.get_feat(crop[:, :, ::-1]), dtype=np.float32).reshape(-1)
        length = float(np.linalg.norm(feature))
        if feature.shape != (FEATURE_DIM,) or not np.isfinite(length) or length == 0.0:
            _reject(self.folder, f"the recogniser gives {feature.size} numbers of length {length:g}, not {FEATURE_DIM}")
        return feature / np.float32(length)

    def _find(self, picture: Image.Image, border: int) -> list[Found]:
        """Boxes with scores (5,) and landmarks (5, 2), in coordinates of the picture without its border."""
        bgr = np.ascontiguousarray(_padded(np.asarray(picture, dtype=np.uint8), border)[:, :, ::-1])
        with _hushed():
            boxes, landmarks = self._detector.detect(bgr)
        if landmarks is None:
            _reject(self.folder, "the detector gives no landmarks")
        shift = np.array([border, border, border, border, 0], np.float32)
        found = [
            (np.asarray(box, np.float32) - shift, np.asarray(points, np.float32) - np.float32(border))
            for box, points in zip(boxes, landmarks, strict=True)
        ]
        return [(box, points) for box, points in found if _middle_inside(box, picture.size)]

    def _face(
        self, photo: Image.Image, found: NDArray[np.float32], points: NDArray[np.float32], scale: NDArray[np.float32]
    ) -> Face:
        """A face of the photo from box with score (5,) and landmarks (5, 2) in a copy of it; `scale` leads back."""
        landmarks = points * scale
        window = _around(landmarks, photo.size)
        pixels = np.asarray(photo.crop(window), dtype=np.uint8)
        with _hushed():
            crop = self._norm_crop(pixels, landmark=landmarks - np.array(window[:2], np.float32), image_size=CROP)
        crop112 = np.ascontiguousarray(crop, dtype=np.uint8)
        box = found[:4] * np.concatenate([scale, scale])
        age = self._age(pixels, box - np.array([*window[:2], *window[:2]], np.float32))
        return Face(box, float(found[4]), landmarks, crop112, self.recognise(crop112), age)

    def _age(self, pixels: NDArray[np.uint8], box: NDArray[np.float32]) -> int | None:
        """Years, as estimated from the face with this box (4,) in pixels (H, W, 3) RGB."""
        if self._ages is None:
            return None
        with _hushed():
            _, age = self._ages.get(np.ascontiguousarray(pixels[:, :, ::-1]), _Box(box))
        return int(age)


class _Box(dict[str, Any]):
    """As much of insightface's Face, a dictionary with a `bbox`, as its attribute networks ask for."""

    def __init__(self, box: NDArray[np.float32]) -> None:
        super().__init__()
        self.bbox = box


def without_nested(faces: Sequence[Face]) -> list[Face]:
    """Drop faces whose middle lies inside a larger one: detectors take a mouth with a beard for a second face."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.size):
        x, y = (face.box[:2] + face.box[2:]) / 2
        if not any(one.box[0] < x < one.box[2] and one.box[1] < y < one.box[3] for one in kept):
            kept.append(face)
    return kept


def select_face(faces: Sequence[Face], photo: str, pick: int | None = None, smallest: int = 0) -> Face:
    """The one face to learn from: the only one, or number `pick`, counted from 1 at the left.

    `photo` names the file in messages; `smallest` is the least side in pixels. Raises InvalidInputError for no face, for
    several without a pick and for one that is too small; UsageError for a pick that does not exist.
    """
    listing = "; ".join(f"{number}: {face}" for number, face in enumerate(faces, 1))
    if not faces:
        raise InvalidInputError(f"no face was found in {photo}", "use a sharp photo that shows one face from the front")
    if pick is not None and not 1 <= pick <= len(faces):
        raise UsageError(f"{photo} has no face number {pick}", f"the faces from left to right are {listing}")
    if pick is None and len(faces) > 1:
        raise InvalidInputError(f"{photo} shows {len(faces)} faces: {listing}", "say which one, from the left: --face 1")
    face = faces[(pick or 1) - 1]
    if face.size < smallest:
        raise InvalidInputError(
            f"the face in {photo} is {face.size:.0f} pixels small; at least {smallest} are needed",
            "use a larger photo, or one taken from nearer",
        )
    return face


def _outgrown(found: list[Found], again: list[Found]) -> list[Found]:
    """What was found; in place of those inside a much larger face that a second look is surer of, that one."""
    kept: list[Found] = []
    taken: set[int] = set()
    for box, points in found:
        x, y = (float(edge) for edge in (box[:2] + box[2:4]) / 2)
        around = [
            number
            for number, (other, _) in enumerate(again)
            if other[0] < x < other[2] and other[1] < y < other[3] and other[4] > box[4]
            and other[2] - other[0] > LARGER * (box[2] - box[0])
        ]  # fmt: skip
        if not around:
            kept.append((box, points))
        taken.update(around[:1])
    return kept + [again[number] for number in sorted(taken)]


def _reduced(photo: Image.Image) -> Image.Image:
    """The photo, or a copy of it whose longer side is LONGEST."""
    scale = LONGEST / max(photo.size)
    if scale >= 1:
        return photo
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    return photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _middle_inside(box: NDArray[np.float32], size: tuple[int, int]) -> bool:
    """Whether the middle of a box (5,) lies in the picture, not in the border that was put around it."""
    x, y = (float(edge) for edge in (box[:2] + box[2:4]) / 2)
    return 0 <= x < size[0] and 0 <= y < size[1]


def _around(landmarks: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of a photo, in whole pixels, that an aligned crop can reach into: no need to copy all of a large one."""
    centre = landmarks.mean(axis=0)
    # The template's corners are 3.7 times as far from the landmarks' mean as the landmarks are on average.
    half = max(16.0, 8.0 * float(np.sqrt(((landmarks - centre) ** 2).sum(axis=1).mean())))
    low = np.clip(np.floor(centre - half), 0, np.subtract(size, 1)).astype(int)
    high = np.clip(np.ceil(centre + half), low + 1, size).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _padded(pixels: NDArray[np.uint8], border: int) -> NDArray[np.uint8]:
    """(H, W, 3) with `border` pixels of the picture's mean colour on every side."""
    if border == 0:
        return pixels
    height, width = pixels.shape[:2]
    canvas = np.empty((height + 2 * border, width + 2 * border, 3), np.uint8)
    canvas[:] = pixels.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    canvas[border : border + height, border : border + width] = pixels
    return canvas


def _load(folder: Path, settings: FaceSettings, providers: Sequence[str]) -> tuple[dict[str, Any], Callable[..., Any]]:
    """insightface's models over `folder` by task, and its alignment function."""
    with _hushed():
        analysis, norm_crop = _import_insightface()
        _check_provider(providers[0])
        try:
            app = analysis(
                name=str(folder),
                root=str(folder.parent),
                allowed_modules=["detection", "recognition", "genderage"],
                providers=list(providers),
                # One session for every size: a second one with a frozen size only pays off for streams of pictures.
                static_shape_sessions=False,
            )
            # A negative ctx_id would move the sessions to the CPU, whatever was asked for.
            app.prepare(ctx_id=0, det_thresh=settings.det_thresh, det_size=settings.det_size or None)
        except Exception as error:  # onnxruntime, protobuf and insightface's asserts each have their own
            _reject(folder, str(error).splitlines()[0] if str(error) else "it holds no detector", error)
    if not {"detection", "recognition"} <= set(app.models):
        _reject(folder, "it holds no 112 x 112 recogniser")
    for model in app.models.values():
        _check_running(model.session.get_providers(), providers[0])
    return dict(app.models), norm_crop


def _check_provider(wanted: str) -> None:
    """Whether this ONNX Runtime knows the provider at all. Raises SetupError."""
    known: list[str] = import_module("onnxruntime").get_available_providers()
    if wanted not in known:
        raise SetupError(
            f"this ONNX Runtime has no {wanted}, only {', '.join(known)}", "celebctl doctor says what is installed"
        )


def _check_running(active: Sequence[str], wanted: str) -> None:
    """Whether the provider is the one that really runs: ONNX Runtime goes on with the CPU when it does not start."""
    if not active or active[0] != wanted:
        raise SetupError(
            f"{wanted} did not start; the face models would run on {', '.join(active)}",
            "celebctl doctor says what is missing",
        )


def _import_insightface() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        analysis = import_module("insightface.app").FaceAnalysis
        return analysis, import_module("insightface.utils.face_align").norm_crop
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] in {"insightface", "onnxruntime"}:
            raise SetupError(
                "finding a face needs insightface, which is not installed", 'pip install "celebctl[learn]"'
            ) from error
        # opencv-python links against a desktop's libraries (libGL, X11), which servers and containers do not have.
        raise SetupError(
            f"insightface is installed but does not load: {error}",
            "on a machine without a desktop: pip uninstall -y opencv-python && pip install opencv-python-headless",
        ) from error


@contextlib.contextmanager
def _hushed() -> Generator[None]:
    """insightface and what it imports print and warn; standard output belongs to results."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reject(folder: Path, reason: str, cause: Exception | None = None) -> NoReturn:
    raise IntegrityError(f"the face models in {folder} cannot be used: {reason}", _FETCH_AGAIN) from cause
