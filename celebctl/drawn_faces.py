"""Find people in the images that a bundle draws: which faces to draw again, and which of several images to keep.

A face is matched by the recogniser of the face models. An identity has no face feature, so each person is compared with
images of that person alone, which the bundle draws once. Their mean feature is kept in `cache/face-references` of the
library and deleted with the person. Torch-free; needs insightface.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import CelebctlError, UsageError
from celebctl_runtime.files import atomic_write
from celebctl_runtime.pipeline import generate, redraw_faces, require_image_encoder
from celebctl_runtime.progress import ProgressCallback, ignore_progress
from celebctl_runtime.prompting.layout import AUTO, Region, layout_text, parse_layout
from celebctl_runtime.prompting.prompt import Mention, split_prompt
from celebctl_runtime.prompting.prompt_schedule import schedule_prompt
from celebctl_runtime.prompting.weights import WEIGHTED
from celebctl_runtime.request import Request, resolve

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl_models.faces.analysis import Face, FaceAnalyser
    from celebctl_runtime.backends.base import Backend
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.identity import Identity
    from celebctl_runtime.picture import GeneratedImage

Floats = NDArray[np.float32]

#: What references show, and how many are drawn of each person.
REFERENCE_PROMPT, REFERENCE_IMAGES = "a photo of <{}>", 4
#: Cosine below which a face is of none of them. On mini: own faces from .50, others up to .36.
MIN_COSINE = 0.3
#: Added to the cosine of a face in the region that a layout gives to the person.
LAYOUT_BONUS = 0.1
#: Faces with a shorter side below this fraction of the model's native side are drawn again; larger ones gain nothing.
MAX_FACE_SIDE = 0.375

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FoundPerson:
    """A person of the prompt and their face in an image, with the cosine between its feature and their reference."""

    name: str
    face: Face
    cosine: float


class DrawnFaces:
    """Finds the people of prompts in the images of one bundle.

    Args:
        bundle: The bundle.
        backend: The engine that runs it.
        analyser: Finds and recognises faces.
        face_models: Name of the analyser's models, for records and cached references.
        library: Where references are kept.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, analyser: FaceAnalyser, face_models: str, library: Library
    ) -> None:
        self.bundle, self.backend, self.analyser = bundle, backend, analyser
        self.face_models, self.library = face_models, library
        self._references: dict[str, Floats | None] = {}  # by digest

    def check(self, requests: Sequence[Request], overrides: Sequence[Identity] = ()) -> None:
        """Raise, before anything is drawn, when a request names no person or its faces cannot be drawn again.

        Raises:
            UsageError: The prompt names no person (reason "no_people_to_find"), or a value is out of range.
            SetupError: Faces are to be drawn again, and the bundle or engine cannot encode images.
        """
        known = {*self.bundle.names, *(one.name for one in overrides)}
        for request in requests:
            full = resolve(request, self.bundle.manifest)
            if request.refine_faces:
                require_image_encoder(self.bundle, self.backend)
            if not _people(full, known if request.identities is None else request.identities):
                raise UsageError(
                    f"the prompt names no person whose face could be found: {request.prompt[:60]!r}",
                    "name a learned person in the prompt",
                    reason="no_people_to_find",
                )

    def find(self, image: GeneratedImage, overrides: Sequence[Identity] = ()) -> list[FoundPerson]:
        """The people of the image's prompt whose faces are in it, from left to right; each person once."""
        names = _people(image.request, image.request.identities or ())
        digests: Mapping[str, str] = image.record["identities"]
        references = {name: self._reference(name, digests[name], overrides) for name in names}
        faces = self.analyser.analyse(image.image)
        regions = {region.name: region for region in parse_layout(image.request.layout)}
        candidates = [
            (float(face.feature @ reference), _is_in(face, regions.get(name), image.image.size), name, index)
            for name, reference in references.items()
            if reference is not None
            for index, face in enumerate(faces)
        ]
        found: dict[str, FoundPerson] = {}
        taken: set[int] = set()
        for cosine, _, name, index in sorted(candidates, key=lambda c: (-c[0] - LAYOUT_BONUS * c[1], c[2:])):
            if cosine >= MIN_COSINE and name not in found and index not in taken:
                found[name] = FoundPerson(name, faces[index], cosine)
                taken.add(index)
        return sorted(found.values(), key=lambda one: float(one.face.box[0]))

    def refine(
        self,
        images: Sequence[GeneratedImage],
        progress: ProgressCallback = ignore_progress,
        overrides: Sequence[Identity] = (),
    ) -> list[GeneratedImage]:
        """The images with the small faces of their people drawn again; the request lists where these are.

        An image in which there are none stays as it is. Raises as `celebctl_runtime.generate`.
        """
        return redraw_faces(
            self.bundle, self.backend, [self._with_regions(image, overrides) for image in images], progress, overrides
        )

    def likeness(self, image: GeneratedImage, overrides: Sequence[Identity] = ()) -> float:
        """Mean cosine between the faces of the prompt's people and their references; 0 for a person without a face."""
        people = _people(image.request, image.request.identities or ())
        return sum(one.cosine for one in self.find(image, overrides)) / max(1, len(people))

    def best(self, images: Sequence[GeneratedImage], overrides: Sequence[Identity] = ()) -> GeneratedImage:
        """The image with the greatest `likeness`, the first of equals; the record tells how it was chosen."""
        scores = [self.likeness(image, overrides) for image in images]
        chosen = int(np.argmax(scores))
        facts = {"images": len(images), "face_models": self.face_models, "likeness": round(scores[chosen], 4)}
        return replace(images[chosen], record={**images[chosen].record, "best_of": facts})

    def _with_regions(self, image: GeneratedImage, overrides: Sequence[Identity]) -> GeneratedImage:
        """The image with the regions of its small faces in the request."""
        width, height = image.image.size
        limit = MAX_FACE_SIDE * min(self.bundle.manifest.size.native)
        found = self.find(image, overrides)
        if not found:
            _log.warning("no face was recognised in the image of seed %d; it stays as it is", image.request.seed)
        regions: list[Region] = []
        for one in found:
            edges = one.face.box.round().clip(0, [width, height] * 2)
            if one.face.size < limit and edges[0] < edges[2] and edges[1] < edges[3]:
                left, top, right, bottom = (float(edge) for edge in edges / ([width, height] * 2))
                regions.append(Region(one.name, (left, top, right, bottom)))
        return replace(image, request=replace(image.request, refine_faces=layout_text(regions)))

    def _reference(self, name: str, digest: str, overrides: Sequence[Identity]) -> Floats | None:
        """The unit feature (F,) of a person; None where the bundle draws no face under their name."""
        if digest not in self._references:
            self._references[digest] = self._load(digest)
        if self._references[digest] is None:
            self._references[digest] = self._draw_reference(name, digest, overrides)
        return self._references[digest]

    def _draw_reference(self, name: str, digest: str, overrides: Sequence[Identity]) -> Floats | None:
        _log.info("drawing %d images of %s to recognise the face by", REFERENCE_IMAGES, name)
        requests = [Request(REFERENCE_PROMPT.format(name), seed=seed) for seed in range(REFERENCE_IMAGES)]
        images = generate(self.bundle, self.backend, requests, overrides=overrides)
        faces = [
            max(found, key=lambda face: face.size)
            for found in (self.analyser.analyse(i.image) for i in images)
            if found
        ]
        if not faces:
            _log.warning("no face was found in %d images of %s alone", REFERENCE_IMAGES, name)
            return None
        mean = np.mean([face.feature for face in faces], axis=0)
        reference = (mean / np.linalg.norm(mean)).astype(np.float32)
        buffer = io.BytesIO()
        np.save(buffer, reference, allow_pickle=False)
        atomic_write(self.library.face_reference(digest, self._settings), buffer.getvalue())
        return reference

    def _load(self, digest: str) -> Floats | None:
        """The reference in the library; None for none, or one that is damaged."""
        try:
            feature = np.load(self.library.face_reference(digest, self._settings), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return feature if feature.dtype == np.float32 and feature.ndim == 1 and np.isfinite(feature).all() else None

    @property
    def _settings(self) -> str:
        """Identifies what references depend on besides the person."""
        text = f"{self.bundle.manifest.fingerprint} {self.face_models} {REFERENCE_PROMPT} {REFERENCE_IMAGES}"
        return hashlib.sha256(text.encode()).hexdigest()


def open_drawn_faces(bundle: Bundle, backend: Backend, face_models: str | None, library: Library) -> DrawnFaces:
    """Open the face models for a bundle's images: a pack or folder; None: its model's own, else the default pack.

    Raises:
        NotFoundError: The face models are not on this machine (reason "face_models_missing").
        PolicyError: Their licence has not been accepted.
        SetupError: insightface is not installed.
    """
    from celebctl_models.faces.analysis import OnnxFaceAnalyser
    from celebctl_models.faces.packs import DEFAULT_PACK, choose_face_models, face_models_name

    try:
        folder = choose_face_models(face_models, bundle.manifest.model.source, library.root)
    except CelebctlError as error:
        if face_models is not None or error.reason in ("face_models_missing", "licence_not_accepted"):
            raise
        folder = choose_face_models(DEFAULT_PACK, "", library.root)  # the model itself is no longer on this machine
    return DrawnFaces(bundle, backend, OnnxFaceAnalyser(folder), face_models_name(folder), library)


def wants_faces(request: Request) -> bool:
    """Whether the faces to draw again are still to be found."""
    return request.refine_faces == AUTO


def _people(request: Request, names: Sequence[str] | set[str]) -> list[str]:
    """The people in the prompt of a resolved request, at the steps that run, in order."""
    texts = [request.prompt]
    if request.syntax == WEIGHTED:
        texts = [text for _, text in schedule_prompt(request.prompt, request.steps - request.skipped)]
    parts = (part for text in texts for part in split_prompt(text, names))
    return list(dict.fromkeys(part.name for part in parts if isinstance(part, Mention)))


def _is_in(face: Face, region: Region | None, size: tuple[int, int]) -> bool:
    """Whether the centre of a face is in a region of an image of this size."""
    if region is None:
        return False
    x, y = ((face.box[:2] + face.box[2:]) / 2 / np.array(size)).tolist()
    left, top, right, bottom = region.box
    return left <= x <= right and top <= y <= bottom
