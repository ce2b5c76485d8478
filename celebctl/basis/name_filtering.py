"""Which names the model can draw: an optional second filter of the names behind the celeb basis.

A name helps the basis only if the model draws one and the same person for it, and for no other name. Every name is
drawn four times and the recogniser measures the images. A name is kept when

1. at least two thirds of its images show exactly one face, and
2. its separation, the mean cosine between those faces less the mean cosine with the faces of the three most similar
   names, exceeds half the upper quartile of all positive separations.

The threshold comes from the model's own images and the recogniser, so it needs no tuning. Faces of a name that the
model does not know agree with each other no better than with those of other names: it draws another person each time,
or the same kind of person for many names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import InvalidInputError
from celebctl_runtime.files import atomic_write, flush, sha256_file, translate_os_errors
from celebctl_runtime.private_files import make_folder
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress
from celebctl_runtime.strict_json import parse_json

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.faces.analysis import FaceAnalyser

Floats = NDArray[np.float32]
#: Names (B) and seeds (B) to images (B, H, W, 3) uint8.
Draw = Callable[[Sequence[str], Sequence[int]], NDArray[np.uint8]]

PROMPT = "a photo of {}"  # of the names, by default
IMAGES_PER_NAME = 4
MIN_FACE_RATE = 2 / 3  # of a name's images that must show exactly one face
FIRST_SEED = 4711
MAX_BATCH_PIXELS = 2**21  # of the images drawn together: eight of 512 x 512
_MIN_NAMES = 3  # that can be compared
_UPPER = 0.75  # quantile of positive separations: of names that the model knows, unless they are a small part
_NUM_SIMILAR = 3  # names that a name must differ from; several, for a person may be listed under two names

NO_FACE = "the model draws no single face for it"
NO_SEPARATION = "the model draws no person of its own for it"


@dataclass(frozen=True, eq=False)
class RenderedName:
    """What the recogniser sees in the images of one name.

    Attributes:
        faces: Number of faces in each image.
        features: (n, 512) float32 unit rows, one for each image with exactly one face.
        places: (n, 3) float32, height, center x and center y of the face box as fractions of the image.
    """

    name: str
    faces: tuple[int, ...]
    features: Floats
    places: Floats = field(default_factory=lambda: np.zeros((0, 3), np.float32))

    @property
    def face_rate(self) -> float:
        """Fraction of the images with exactly one face."""
        return len(self.features) / len(self.faces)


@dataclass(frozen=True, eq=False)
class FilteredNames:
    """Result of `filter_names`.

    Attributes:
        kept: Names in their order.
        dropped: Name to reason.
        likeness: Name to the mean cosine between its faces, where there are enough.
        separation: Name to likeness less the mean cosine with the faces of the most similar names.
        min_separation: What the separation must exceed.
    """

    kept: tuple[str, ...]
    dropped: dict[str, str]
    likeness: dict[str, float]
    separation: dict[str, float]
    min_separation: float


def render_names(
    names: Sequence[str], draw: Draw, analyser: FaceAnalyser, log: Path, *, batch_size: int = 8,
    progress: ProgressCallback = ignore_progress,
) -> list[RenderedName]:  # fmt: skip
    """Draw every name and measure the images; continues an earlier run with the same ``log``.

    Args:
        names: What to draw, with the same seeds for every name.
        draw: Generates the images.
        analyser: Finds the faces.
        log: JSON lines, one for each finished name, so that stopping loses one batch at most.
        batch_size: Images drawn together.
        progress: Receives the number of finished names and the metrics ``seconds`` and ``eta_seconds``.
    """
    known = _read_log(log, IMAGES_PER_NAME)
    missing = [name for name in names if name not in known]
    cached, started = len(names) - len(missing), time.monotonic()
    progress(Progress("drawing names", cached, len(names)))
    at_once = max(1, batch_size // IMAGES_PER_NAME)
    with translate_os_errors(log):
        make_folder(log.parent)
        with log.open("ab") as file:
            for start in range(0, len(missing), at_once):
                for one in _render(missing[start : start + at_once], draw, analyser, IMAGES_PER_NAME):
                    line = _to_line(one)
                    file.write(line)
                    known[one.name] = _from_line(line)  # rounded as in the file, so that a resumed run agrees
                flush(file)
                done, seconds = min(start + at_once, len(missing)), time.monotonic() - started
                metrics = {"seconds": seconds, "eta_seconds": seconds / done * (len(missing) - done)}
                progress(Progress("drawing names", cached + done, len(names), metrics))
    return [known[name] for name in names]


def filter_names(rendered: Sequence[RenderedName]) -> FilteredNames:
    """Apply the two rules of this module. Raises InvalidInputError when too few names have faces to compare."""
    with_faces = [one for one in rendered if one.face_rate >= MIN_FACE_RATE and len(one.features) > 1]
    if len(with_faces) < _MIN_NAMES:
        raise InvalidInputError(
            f"only {len(with_faces)} of {len(rendered)} names give images with one face, too few to compare",
            "check that the model draws faces and that the face models fit it, or skip this check",
        )
    likeness = {one.name: _mean_cosine(one.features) for one in with_faces}
    separation = _separations(with_faces, likeness)
    positive = [value for value in separation.values() if value > 0]
    least = float(np.quantile(positive, _UPPER)) / 2 if positive else 0.0
    dropped = {one.name: NO_FACE for one in rendered if one.name not in separation}
    dropped |= {name: NO_SEPARATION for name, value in separation.items() if value <= least}
    kept = tuple(one.name for one in rendered if one.name not in dropped)
    return FilteredNames(kept, dropped, likeness, separation, least)


def _separations(rendered: Sequence[RenderedName], likeness: Mapping[str, float]) -> dict[str, float]:
    """Each name's likeness less the mean cosine with the faces of the most similar names."""
    centres = np.stack([one.features.mean(0) for one in rendered])
    cosines = centres @ centres.T  # of means: the mean over all pairs of faces
    np.fill_diagonal(cosines, -np.inf)
    similar = np.sort(cosines, axis=1)[:, ::-1][:, : min(_NUM_SIMILAR, len(rendered) - 1)].mean(1)
    return {one.name: likeness[one.name] - float(other) for one, other in zip(rendered, similar, strict=True)}


def render_log_path(cache: Path, parts: DiffusionParts, face_models: Path, prompt: str) -> Path:
    """The log of a model's rendered names, by all that decides its images, face models, prompt and seeds."""
    model = parts.table_hash, parts.weights_digest, parts.card.defaults, parts.scheduler_config, parts.context_layer
    key = (*model, face_models_hash(face_models), prompt, FIRST_SEED, IMAGES_PER_NAME)
    digest = hashlib.sha256(repr(key).encode())
    return cache / f"rendered-{digest.hexdigest()[:16]}.jsonl"


def face_models_hash(folder: Path) -> str:
    """The SHA-256 digests of a folder's networks, concatenated."""
    return "".join(sha256_file(path) for path in sorted(folder.glob("*.onnx")))


def render_batch_size(size: tuple[int, int]) -> int:
    """How many images of (height, width) pixels to draw together."""
    return max(IMAGES_PER_NAME, min(64, MAX_BATCH_PIXELS // (size[0] * size[1])))


def _render(names: Sequence[str], draw: Draw, analyser: FaceAnalyser, per_name: int) -> list[RenderedName]:
    from PIL import Image

    each = [(name, FIRST_SEED + k) for name in names for k in range(per_name)]
    drawn = draw([name for name, _ in each], [seed for _, seed in each])
    found = [analyser.analyse(Image.fromarray(pixels)) for pixels in drawn]
    rendered: list[RenderedName] = []
    for number, name in enumerate(names):
        mine = found[number * per_name : (number + 1) * per_name]
        alone = [faces[0] for faces in mine if len(faces) == 1]
        places = np.array([_place(face.box, *drawn.shape[1:3]) for face in alone], np.float32).reshape(-1, 3)
        features = _rows([face.feature for face in alone])
        rendered.append(RenderedName(name, tuple(len(faces) for faces in mine), features, places))
    return rendered


def _place(box: Floats, height: int, width: int) -> tuple[float, float, float]:
    x0, y0, x1, y1 = (float(edge) for edge in box)
    return (y1 - y0) / height, (x0 + x1) / 2 / width, (y0 + y1) / 2 / height


def _rows(features: Sequence[Floats]) -> Floats:
    return np.stack(features).astype(np.float32) if features else np.zeros((0, 0), np.float32)


def _mean_cosine(features: Floats) -> float:
    """Over all pairs of unit rows (n, D), n > 1: the sum of all products less the n of each row with itself."""
    n = len(features)
    total = features.astype(np.float64).sum(0)
    return float((total @ total - n) / (n * (n - 1)))


def _to_line(one: RenderedName) -> bytes:
    packed = base64.b64encode(one.features.astype("<f2").tobytes()).decode()
    places = [[round(float(share), 4) for share in place] for place in one.places]
    values = {"name": one.name, "faces": one.faces, "features": packed, "places": places}
    return (json.dumps(values, ensure_ascii=False) + "\n").encode()


def _from_line(line: bytes) -> RenderedName:
    values = cast("dict[str, Any]", parse_json(line))
    faces = tuple(int(count) for count in values["faces"])
    packed = np.frombuffer(base64.b64decode(values["features"]), "<f2").astype(np.float32)
    features = packed.reshape(faces.count(1), -1) if faces.count(1) else _rows([])
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    places = np.array(values["places"], np.float32).reshape(-1, 3)
    return RenderedName(str(values["name"]), faces, features / np.maximum(lengths, 1e-6), places)


def _read_log(log: Path, per_name: int) -> dict[str, RenderedName]:
    """The finished names of a log; an incomplete last line is removed, since the next is appended."""
    if not log.is_file():
        return {}
    known: dict[str, RenderedName] = {}
    whole: list[bytes] = []
    lines = log.read_bytes().splitlines(keepends=True)
    for line in lines:
        try:
            one = _from_line(line)
        except (ValueError, KeyError, TypeError):
            continue
        if line.endswith(b"\n") and len(one.faces) == per_name:
            known[one.name] = one
            whole.append(line)
    if len(whole) < len(lines):
        atomic_write(log, b"".join(whole))
    return known
