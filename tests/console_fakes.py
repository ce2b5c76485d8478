"""Stand-ins for the slow rooms behind the desk: a model without weights, a method that learns in no time, an exporter.

They keep the real names and signatures (a test compares them), so that the command line is tested as it runs.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from bundle_fakes import AVERAGE, FAMILY, TABLE_HASH, make_identity, write_bundle
from face_fakes import photo_of, write_face_models
from PIL import Image

from celebctl.basis.names import ChosenNames
from celebctl.cli import main
from celebctl.learning import config
from celebctl.learning.config import PRESETS, LearnConfig
from celebctl.library import Library, format_model_key
from celebctl_export import ExportOptions
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.identity import Identity
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress
from celebctl_runtime.request import Request

MODEL = "toy"
MODEL_KEY = format_model_key(FAMILY, TABLE_HASH)


@dataclass(frozen=True)
class LearnStep:
    """As the method reports."""

    step: int
    steps: int
    loss: float
    likeness: float | None
    seconds: float
    eta: float | None


@dataclass
class Stage:
    """What the stand-ins were asked for, and how they are to behave."""

    calls: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    interrupt_at: int | None = None
    keep_checkpoint: bool = True

    def learn_people(
        self,
        parts: Any,
        analyser: Any,
        photos: Sequence[Image.Image],
        names: Sequence[str],
        config: LearnConfig,
        *,
        basis: Any,
        micro_batch_size: int = 64,
        tell: Callable[[str], None] = lambda line: None,
        on_step: Callable[[LearnStep], None] = lambda step: None,
        resume_from: Path | None = None,
        checkpoint: Path | None = None,
    ) -> list[Identity]:
        """Learn by making numbers up; the same name and seed give the same numbers."""
        faces = [analyser.analyse(photo) for photo in photos]
        asked = {"config": config, "resume_from": resume_from}
        self.calls.append({"names": list(names), "faces": faces, **asked})
        for step in range(1, 4):
            if step == self.interrupt_at:
                if checkpoint is not None and self.keep_checkpoint:
                    checkpoint.write_text("half")
                raise KeyboardInterrupt
            on_step(LearnStep(step, 3, 1.0 / step, None if step == 1 else 0.5, float(step), float(3 - step)))
        return [make_identity(name, seed=sum(name.encode()) + config.seed) for name in names]

    def export_bundle(
        self,
        parts: Any,
        identities: Sequence[Identity],
        path: Path,
        options: ExportOptions | None = None,
        progress: ProgressCallback = ignore_progress,
    ) -> Bundle:
        """Write the toy bundle."""
        options = options or ExportOptions()
        self.calls.append({"out": path, "dtype": options.dtype, "people": [person.name for person in identities]})
        progress(Progress("exporting step"))
        bundle = write_bundle(path, spare_rows=options.spare_rows or 256, average=options.average)
        for person in identities:
            bundle.add(person)
        return bundle


def contact_sheet(parts: Any, identities: Sequence[Identity], photos: Sequence[Image.Image]) -> Image.Image:
    """A small page."""
    return Image.new("RGB", (32 * len(photos), 32), "white")


def build_basis(parts: Any, cache: Path | None = None, *, release: bool = False) -> Any:
    """Only its middle is looked at here."""
    return SimpleNamespace(mean=AVERAGE)


def load_parts(model: str | Path, *, dtype: Any = None, device: str = "cpu") -> Any:
    """A model that is only its name."""
    return SimpleNamespace(name=MODEL, family=FAMILY, table_hash=TABLE_HASH, unet=SimpleNamespace(parameters=list))


def select_device(wanted: str = "auto") -> Any:
    """A machine without a GPU."""
    return SimpleNamespace(device="cpu", dtype=None)


def with_names(parts: Any, chosen: Path | None = None) -> Any:
    """A model that knows nobody."""
    return parts


def with_faces(parts: Any, cache: Path, face_models: Path) -> Any:
    """A model whose celebrities nobody has looked at."""
    return parts


def with_mapper(parts: Any, cache: Path, face_models: Path) -> Any:
    """A model that nobody trained a mapper for."""
    return parts


def with_latest(parts: Any, cache: Path, basis: Any) -> Any:
    """The same, for whoever asks about no face."""
    return parts


def draw_portrait(seed: int, size: int) -> Image.Image:
    """Somebody in one colour."""
    return Image.new("RGB", (size, size), (seed % 256, 128, 128))


def set_stage(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Stage:
    """Put the stand-ins where the desk will import them from, with an empty library and face models in `folder`."""
    stage = Stage()
    monkeypatch.setenv("CELEBCTL_HOME", str(folder / "home"))
    monkeypatch.setenv("CELEBCTL_MODEL", MODEL)
    monkeypatch.setenv("CELEBCTL_FACE_MODELS", str(write_face_models(folder / "faces")))
    monkeypatch.setattr(config, "PRESETS", {name: replace(preset, steps=3) for name, preset in PRESETS.items()})
    rooms: dict[str, dict[str, Any]] = {
        "celebctl.learning.trainer": {"LearnStep": LearnStep, "learn_people": stage.learn_people},
        "celebctl.learning.contact_sheet": {"contact_sheet": contact_sheet},
        "celebctl.basis.basis": {"build_basis": build_basis},
        "celebctl.learning.device": {
            "select_device": select_device,
            "max_micro_batch": None,
            "free_memory": None,
            "weight_bytes": None,
        },
        "celebctl.basis.celebrities": {"with_faces": with_faces},
        "celebctl.mapper_training.store": {"with_mapper": with_mapper, "with_latest": with_latest},
        "celebctl.basis.names": {"ChosenNames": ChosenNames, "with_names": with_names},
        "celebctl_models.checkpoints.diffusion": {"load_parts": load_parts},
        "celebctl_export": {"ExportOptions": ExportOptions, "export_bundle": stage.export_bundle},
        "celebctl_models.mini.world": {"draw_portrait": draw_portrait},
    }
    for name, contents in rooms.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return stage


def toy_bundle(library: Library, *people: Identity) -> Bundle:
    """The model's bundle in the library, with these people."""
    bundle = write_bundle(library.bundle_path(MODEL, TABLE_HASH))
    for person in people:
        bundle.add(person)
    return bundle


def recipe(path: Path) -> Request:
    """The request in a picture."""
    from celebctl_runtime.picture import read_request

    return read_request(path)[0]


# The desk itself.


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Desk:
    """A shell in an empty folder, with an empty library and stand-ins behind the desk."""

    def __init__(self, stage: Stage, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.stage, self.folder, self._capsys = stage, folder, capsys
        self.library = Library()

    def __call__(self, *words: str | Path) -> Said:
        self._capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = self._capsys.readouterr()
        return Said(code, out, err)

    def photo(self, name: str = "alice.png", *cells: tuple[int, int]) -> str:
        photo_of(*(cells or ((1, 1),))).save(self.folder / name)
        return name

    def know(self, *names: str) -> None:
        for number, name in enumerate(names, 1):
            self.library.save(make_identity(name, seed=number))

    def bundle(self) -> Bundle:
        return Bundle.open(self.library.bundles()[0])


def refused(said: Said, code: int, problem: str, hint: str = "") -> None:
    """An error is one line that says what, and one that says what to type; nothing is a result."""
    assert said.code == code, said.err
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    hints = [line for line in said.err.splitlines() if line.startswith("hint: ")]
    assert len(errors) == 1 and problem in errors[0], said.err
    assert hints and hint in hints[0], said.err
    assert "Traceback" not in said.err and not said.out
