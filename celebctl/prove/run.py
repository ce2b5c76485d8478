"""A run in its folder: what the stages share, and the document that they fill in.

``report.json``: ``schema``, ``settings``, ``stages``. Each stage has ``status`` ("done", "skipped" or "failed") and
``seconds``; a finished one its ``result`` (see stages.py), a skipped one its ``reason``, a failed one ``code``,
``problem`` and ``hint``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celebctl.library import Library
from celebctl_runtime.backends.device import DeviceSpec, parse_device
from celebctl_runtime.errors import CelebctlError, InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.files import atomic_write
from celebctl_runtime.progress import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.model import Model, Subject
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.identity import Identity

SCHEMA = 1
MAX_BYTES = 2_000_000  # of the page and of the document, so that both can be sent by mail
MAX_PEOPLE = 4
DEVICES = ("cpu", "cuda", "trt")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DRAWN_PEOPLE = {"ada": 7, "ben": 11}  # name -> seed of a portrait of mini, where there are no photos


class Skipped(Exception):
    """Raised by a stage that this machine or these options leave nothing to do for; its text is the reason."""


@dataclass(frozen=True)
class ProveOptions:
    """What is run. All but ``minutes`` decide the numbers: a folder of other options is not continued.

    Attributes:
        model: A name, folder or file of a model.
        photos: Folder of ``NAME.jpg``, one for each of up to four people, and further photos of them as
            ``NAME-2.jpg``; None: two people drawn by mini, read with mini's face models.
        devices: "cpu", "cuda", "trt", of a further GPU "cuda:1", "trt:1"; empty: all that work on this machine.
        face_models: A pack or folder for learning; None: the model's own, or the default pack.
        scoring_face_models: Another pack or folder, which scores; None: the model's own scoring networks, or the pack
            of learning, whose scores are too high.
        steps: Optimizer steps of learning; None: the preset's.
        rounds: Images of each contender of the speed comparison.
        minutes: No stage begins later than this, counted over all calls.
    """

    model: str = "mini"
    photos: Path | None = None
    devices: tuple[str, ...] = ()
    face_models: str | None = None
    scoring_face_models: str | None = None
    steps: int | None = None
    rounds: int = 10
    minutes: float = 25.0

    def __post_init__(self) -> None:
        """Raise UsageError for a value out of range."""
        for name in self.devices:
            if parse_device(name).kind not in DEVICES:
                hint = f"use {', '.join(DEVICES)}"
                raise UsageError(f"{name!r} cannot be proven", hint, reason="unknown_device", device=name)
        for name, value, least in (("rounds", self.rounds, 1), ("minutes", self.minutes, 0)):
            if not least <= value <= 1000:
                problem = f"{value:g} {name} are out of range"
                raise UsageError(problem, f"use {least} to 1000", reason="count_out_of_range", count=value)

    def settings(self) -> dict[str, Any]:
        """The options that decide the numbers, as JSON data without paths."""
        shown = {**asdict(self), "photos": self.photos is not None, "devices": list(self.devices)}
        shown |= {"model": Path(self.model).name, "face_models": self.face_models and Path(self.face_models).name}
        shown["scoring_face_models"] = self.scoring_face_models and Path(self.scoring_face_models).name
        del shown["minutes"]
        return shown


class ProveRun:
    """What stages share: the folder, the open model, its people, their bundle.

    Raises:
        UsageError: The folder holds a run with other options.
    """

    def __init__(self, folder: Path, options: ProveOptions, library: Library, overwrite: bool = False) -> None:
        self.folder, self.options, self.library = folder, options, library
        self.document: dict[str, Any] = {"schema": SCHEMA, "settings": options.settings(), "stages": {}}
        self.progress: ProgressCallback = ignore_progress
        known = _read(self.file)
        if known is not None and not overwrite:
            if (known.get("schema"), known.get("settings")) != (SCHEMA, self.document["settings"]):
                hint = "choose another folder, or pass overwrite=True"
                problem = f"{folder} holds a run with other options"
                raise UsageError(problem, hint, reason="prove_settings_differ", folder=folder)
            self.document = known

    @property
    def file(self) -> Path:
        """The JSON document."""
        return self.folder / "report.json"

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The entries of the stages by name."""
        return self.document["stages"]

    def result(self, stage: str) -> Mapping[str, Any]:
        """The result of a finished stage; empty if it is not finished."""
        return self.stages.get(stage, {}).get("result", {})

    @property
    def failed(self) -> list[str]:
        """The names of the stages that failed."""
        return [name for name, entry in self.stages.items() if entry["status"] == "failed"]

    @property
    def seconds(self) -> float:
        """Time of the stages so far, in all calls."""
        return sum(entry["seconds"] for entry in self.stages.values())

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """The devices of the options, or all that work here; "cpu" first where it is among them."""
        return self.options.devices or tuple(working_devices())

    @property
    def gpu(self) -> bool:
        """Whether one of the devices is a GPU."""
        return any(name != "cpu" for name in self.devices)

    @cached_property
    def model(self) -> Model:
        """The model, on the GPU if one is among the devices; nothing is loaded before it is used."""
        from celebctl.model import Model
        from celebctl_models.checkpoints.registry import card_for, locate

        face_models = self.options.face_models
        if self.options.photos is None and face_models is None:
            face_models = str(card_for(locate("mini").path).faces_dir)
        device = next((name for name in self.devices if name != "cpu"), "cpu").replace("trt", "cuda")
        return Model.load(self.options.model, device=device, face_models=face_models, library=self.library)

    @cached_property
    def photos(self) -> dict[str, list[Image]]:
        """The photos of each person, the one that is learned from first.

        Raises:
            NotFoundError: The folder holds no photo.
            InvalidInputError: It holds photos of more people than are learned together here.
        """
        from celebctl_models.faces.photos import open_photo
        from celebctl_models.mini.world import draw_portrait

        folder = self.options.photos
        if folder is None:
            return {name: [draw_portrait(seed, 512)] for name, seed in DRAWN_PEOPLE.items()}
        files = [file for file in sorted(folder.glob("*")) if file.suffix.lower() in PHOTO_SUFFIXES]
        people: dict[str, list[Path]] = {}
        for file in files:
            name, dash, number = file.stem.rpartition("-")
            people.setdefault(name if dash and number.isdecimal() else file.stem, []).append(file)
        if not people:
            hint = f"put a photo of each person there: {folder / 'alice.jpg'}"
            raise NotFoundError(f"there are no photos in {folder}", hint, reason="photo_missing", folder=folder)
        if len(people) > MAX_PEOPLE:
            problem, hint = f"{folder} holds photos of {len(people)} people", f"keep those of at most {MAX_PEOPLE}"
            raise InvalidInputError(problem, hint, reason="too_many_people", count=len(people))
        return {name: [open_photo(file) for file in sorted(own, key=_order)] for name, own in people.items()}

    @cached_property
    def subjects(self) -> list[Subject]:
        """The analysed photos; drawn stand-ins are accepted by models of photographs, too."""
        stand_ins = self.options.photos is None
        return [self.model.analyse(own[0], name=name, force=stand_ins) for name, own in self.photos.items()]

    @property
    def identity_files(self) -> dict[str, Path]:
        """Where the learned people are kept."""
        return {name: self.folder / "people" / f"{name}.safetensors" for name in self.photos}

    @cached_property
    def people(self) -> list[Identity]:
        """The learned people. Raises Skipped before they are learned."""
        from celebctl_runtime.identity import Identity

        self.require("learn")
        return [Identity.load(file) for file in self.identity_files.values()]

    @cached_property
    def bundle(self) -> Bundle:
        """The exported bundle. Raises Skipped before it is exported."""
        from celebctl_runtime.bundle.bundle import Bundle

        self.require("export")
        return Bundle.open(self.folder / "bundle", verify="quick")

    def require(self, stage: str) -> None:
        """Raise Skipped when an earlier stage, whose result is needed, is not finished."""
        if not self.result(stage):
            raise Skipped(f"{stage} did not finish")

    def keep_image(self, name: str, image: Image, *, side: int = 768, scale: int = 1) -> str:
        """Write an image for the page, enlarged ``scale`` times, of at most ``side`` pixels; returns its file name."""
        small = image.convert("RGB").resize((image.width * scale, image.height * scale))
        small.thumbnail((side, side))
        target = self.folder / "images" / f"{name}.jpg"
        atomic_write(target, lambda path: small.save(path, "JPEG", quality=82))
        return target.name

    def save(self) -> None:
        """Write the document and the page."""
        from .report import render

        atomic_write(self.file, (json.dumps(self.document, indent=1, ensure_ascii=False) + "\n").encode())
        atomic_write(self.folder / "report.html", render(self.document, self.folder / "images").encode())


def working_devices() -> Iterator[str]:
    """The devices of this machine, "cpu" first."""
    from celebctl_runtime.backends.ort_session import choose_providers, load_onnxruntime
    from celebctl_runtime.backends.tensorrt_runner import Device

    yield "cpu"
    try:
        choose_providers(load_onnxruntime(), DeviceSpec("cuda"))
        yield "cuda"
        Device.load()
        yield "trt"
    except CelebctlError:
        return


def _read(file: Path) -> dict[str, Any] | None:
    """A document, None when there is none or it is damaged."""
    try:
        document: Any = json.loads(file.read_text(encoding="utf-8"))
        stages = document["stages"]
        usable = all(entry["status"] and entry["seconds"] >= 0 for entry in stages.values())
        return document if usable else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _order(file: Path) -> tuple[int, str]:
    """alice.jpg before alice-2.jpg before alice-10.jpg"""
    number = file.stem.rpartition("-")[2]
    return (int(number) if number.isdecimal() else 0, file.name)
