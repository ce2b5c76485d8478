"""Which names the model can draw: the optional second filter of the names behind the celeb basis.

A name is a direction worth having only if the model draws somebody for it, the same somebody each time. Every name is
drawn a few times and the recogniser looks at the pictures. A name stays when

1. at least two thirds of its pictures show exactly one face, and
2. the mean cosine between those faces is larger than in 95 of 100 groups of as many faces of *different* names, and
   nearer to that of a typical name which passes this than to that of strangers: above the middle between the two.

The second rule takes its margin from the model and the recogniser themselves, so it needs no tuning: what counts is how
alike strangers and how alike one person's faces look to this recogniser in this model's pictures, not the cosine as
such. Its first half alone would keep one in twenty names without a face by chance, and words that are no names but
always give the same sort of person.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import InvalidInputError
from celebctl_runtime.files import atomic_write, flush, sha256_file, translate_os_errors

if TYPE_CHECKING:
    from celebctl_models.faces.analysis import FaceAnalyser

Floats = NDArray[np.float32]
Draw = Callable[[Sequence[str], Sequence[int]], NDArray[np.uint8]]

PROMPT = "a photo of {}"
PICTURES = 3  # of each name
SHARE = 2 / 3  # of a name's pictures that must show exactly one face
STRANGERS = 0.95  # of the groups of strangers that a name's own faces must be more alike than
FIRST_SEED = 4711
PIXELS_AT_ONCE = 2**21  # of all pictures drawn together: eight of 512 x 512
_GROUPS = 4000  # of strangers, drawn at random

NO_FACE = "the model draws no single face for it"
NO_LIKENESS = "the model draws somebody else each time"


@dataclass(frozen=True, eq=False)
class Rendered:
    """What the pictures of one name show. faces: how many in each; features: (n, 512) float32 unit rows, one for each
    picture with exactly one face; places: (n, 3) float32, the box's height, middle across and middle down as shares of
    the picture's height and width, (0, 3) where they were not written down."""

    name: str
    faces: tuple[int, ...]
    features: Floats
    places: Floats = field(default_factory=lambda: np.zeros((0, 3), np.float32))

    @property
    def share(self) -> float:
        """Of the pictures, those with exactly one face."""
        return len(self.features) / len(self.faces)


@dataclass(frozen=True, eq=False)
class FilteredNames:
    """kept: names that stay, in their order. dropped: name -> why. likeness: name -> mean cosine between its faces,
    where there are two or more. needed: number of its faces -> the likeness that a name must exceed."""

    kept: tuple[str, ...]
    dropped: dict[str, str]
    likeness: dict[str, float]
    needed: dict[int, float]


def render_names(
    names: Sequence[str], draw: Draw, analyser: FaceAnalyser, log: Path, *, pictures: int = PICTURES, batch: int = 8,
    on_name: Callable[[int, int, str], None] = lambda done, of, name: None,
) -> list[Rendered]:  # fmt: skip
    """Draw every name and look at the pictures; goes on where an earlier run with the same ``log`` stopped.

    Args:
        draw: pictures (B, H, W, 3) uint8 of B prompts and B seeds.
        log: JSON lines, one for each finished name, written as the work goes on: stopping loses one batch at most.
        pictures: of each name. Every name is drawn with the same seeds, so that what differs is the name.
        batch: most pictures drawn together.
        on_name: called with the number done, the number of all and the name last done.
    """
    known = _read_log(log, pictures)
    missing = [name for name in names if name not in known]
    on_name(len(names) - len(missing), len(names), "")
    together = max(1, batch // pictures)
    with translate_os_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            for start in range(0, len(missing), together):
                for one in _render(missing[start : start + together], draw, analyser, pictures):
                    line = _to_line(one)
                    file.write(line)
                    known[one.name] = _from_line(line)  # rounded as they will be read, so that a resumed run agrees
                flush(file)
                done = min(start + together, len(missing))
                on_name(len(names) - len(missing) + done, len(names), missing[done - 1])
    return [known[name] for name in names]


def judge_names(rendered: Sequence[Rendered], seed: int = 0) -> FilteredNames:
    """Apply the two rules at the top of this file. Raises InvalidInputError when too few names have faces to compare."""
    with_faces = [one for one in rendered if one.share >= SHARE and len(one.features) > 1]
    sizes = sorted({len(one.features) for one in with_faces})
    pool = [one.features for one in rendered if len(one.features)]
    if not sizes or len(pool) < max(3, sizes[-1]):
        raise InvalidInputError(
            f"only {len(pool)} of {len(rendered)} names give a picture with one face, too few to compare",
            "check that the model draws faces and that the face models fit it, or leave out --check-by-rendering",
        )
    likeness = {one.name: _mean_cosine(one.features) for one in rendered if len(one.features) > 1}
    needed = _needed([(len(one.features), likeness[one.name]) for one in with_faces], pool, seed)
    seen = {one.name for one in with_faces}
    dropped = {one.name: NO_FACE for one in rendered if one.name not in seen}
    dropped |= {one.name: NO_LIKENESS for one in with_faces if likeness[one.name] <= needed[len(one.features)]}
    kept = tuple(one.name for one in rendered if one.name not in dropped)
    return FilteredNames(kept, dropped, likeness, needed)


def log_of(cache: Path, parts: Any, faces: str, pictures: int = PICTURES) -> Path:
    """Where the pictures' features of a loaded model are kept; ``faces`` is ``hash_of_faces`` of the models used.

    The name holds everything that decides them: text encoders, UNet, defaults of drawing, face models, seeds. Of the
    UNet's tensors only the beginnings are hashed, which tells any two trainings apart and takes no time.
    """
    said = (parts.table_hash, faces, PROMPT, FIRST_SEED, pictures, parts.card.defaults, parts.scheduler_config)
    digest = hashlib.sha256(repr(said).encode())
    for weights in parts.unet.state_dict().values():
        digest.update(weights.flatten()[:64].float().cpu().numpy().tobytes())
    return cache / f"rendered-{digest.hexdigest()[:16]}.jsonl"


def hash_of_faces(folder: Path) -> str:
    """What tells a folder of face models from another: SHA-256 of its networks, one after the other."""
    return "".join(sha256_file(path) for path in sorted(folder.glob("*.onnx")))


def pictures_at_once(size: tuple[int, int]) -> int:
    """How many pictures of (height, width) pixels to draw together."""
    return max(PICTURES, min(64, PIXELS_AT_ONCE // (size[0] * size[1])))


def _render(names: Sequence[str], draw: Draw, analyser: FaceAnalyser, pictures: int) -> list[Rendered]:
    from PIL import Image

    prompts = [PROMPT.format(name) for name in names for _ in range(pictures)]
    drawn = draw(prompts, [FIRST_SEED + k for _ in names for k in range(pictures)])
    found = [analyser.analyse(Image.fromarray(pixels)) for pixels in drawn]
    rendered: list[Rendered] = []
    for number, name in enumerate(names):
        mine = found[number * pictures : (number + 1) * pictures]
        alone = [faces[0] for faces in mine if len(faces) == 1]
        places = np.array([_place(face.box, *drawn.shape[1:3]) for face in alone], np.float32).reshape(-1, 3)
        features = _rows([face.feature for face in alone])
        rendered.append(Rendered(name, tuple(len(faces) for faces in mine), features, places))
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


def _needed(own: Sequence[tuple[int, float]], pool: Sequence[Floats], seed: int) -> dict[int, float]:
    """The second rule: number of faces -> the likeness to exceed, from the names' ``own`` (number, likeness)."""
    random = np.random.default_rng(seed)
    strangers = {size: _stranger_groups(pool, size, random) for size in sorted({size for size, _ in own})}
    chance = {size: float(np.quantile(groups, STRANGERS)) for size, groups in strangers.items()}
    passed = [cosine for size, cosine in own if cosine > chance[size]]
    if not passed:
        return chance
    typical = float(np.median(passed))
    return {size: max(least, (typical + float(strangers[size].mean())) / 2) for size, least in chance.items()}


def _stranger_groups(pool: Sequence[Floats], size: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Mean cosines (_GROUPS,) within groups of ``size`` faces, each of another name."""
    groups: list[float] = []
    for _ in range(_GROUPS):
        chosen: list[Floats] = [pool[int(i)] for i in random.choice(len(pool), size, replace=False)]
        groups.append(_mean_cosine(_rows([faces[int(random.integers(len(faces)))] for faces in chosen])))
    return np.array(groups)


def _to_line(one: Rendered) -> bytes:
    packed = base64.b64encode(one.features.astype("<f2").tobytes()).decode()
    places = [[round(float(share), 4) for share in place] for place in one.places]
    said = {"name": one.name, "faces": one.faces, "features": packed, "places": places}
    return (json.dumps(said, ensure_ascii=False) + "\n").encode()


def _from_line(line: bytes) -> Rendered:
    said = cast("dict[str, Any]", json.loads(line))
    faces = tuple(int(count) for count in said["faces"])
    packed = np.frombuffer(base64.b64decode(said["features"]), "<f2").astype(np.float32)
    features = packed.reshape(faces.count(1), -1) if faces.count(1) else _rows([])
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    places = np.array(said["places"], np.float32).reshape(-1, 3)
    return Rendered(str(said["name"]), faces, features / np.maximum(lengths, 1e-6), places)


def _read_log(log: Path, pictures: int) -> dict[str, Rendered]:
    """The finished names of a log; a line that a crash cut off is removed, for the next is written behind it."""
    if not log.is_file():
        return {}
    known: dict[str, Rendered] = {}
    whole: list[bytes] = []
    lines = log.read_bytes().splitlines(keepends=True)
    for line in lines:
        try:
            one = _from_line(line)
        except (ValueError, KeyError, TypeError):
            continue
        if line.endswith(b"\n") and len(one.faces) == pictures:
            known[one.name] = one
            whole.append(line)
    if len(whole) < len(lines):
        atomic_write(log, b"".join(whole))
    return known
