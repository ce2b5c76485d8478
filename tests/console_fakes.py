"""Fakes for the command line: a model without weights that learns at once, and an exporter.

`Model` is patched, not the modules behind it; a test compares the fakes' signatures with the real ones.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from bundle_fakes import AVERAGE, FAMILY, TABLE_HASH, make_identity, write_bundle
from face_fakes import photo_of, write_face_models
from PIL import Image

from celebctl.cli import main
from celebctl.consent import consent_record
from celebctl.learning.config import CLEAN, LearnConfig
from celebctl.learning.subject import Subject, warn_about_similar
from celebctl.library import Library, format_model_key
from celebctl.model import Model
from celebctl_export import ExportOptions
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import NotFoundError
from celebctl_runtime.identity import Identity
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress
from celebctl_runtime.request import Request

MODEL = "toy"
MODEL_KEY = format_model_key(FAMILY, TABLE_HASH)


@dataclass
class FakeInstallation:
    """Calls of the fakes, and how they behave."""

    calls: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    interrupt_at: int | None = None
    keep_checkpoint: bool = True

    def learn(
        self,
        photo: Sequence[Subject],
        *,
        name: str | None = None,
        names: Sequence[str] | None = None,
        preset: str = "clean",
        steps: int | None = None,
        seed: int | None = None,
        method: str = "train",
        config: LearnConfig = CLEAN,
        consent: str | None = None,
        progress: ProgressCallback = ignore_progress,
        checkpoint: Path | None = None,
        resume: bool = False,
        low_memory: bool = False,
        force: bool = False,
    ) -> list[Identity]:
        """Random identities; the same name and seed give the same identity."""
        warn_about_similar(photo, 0.6)
        names = [subject.name for subject in photo]
        faces = [subject.face for subject in photo]
        self.calls.append({"names": names, "faces": faces, "config": config, "resume": resume})
        if resume and not (checkpoint and checkpoint.exists()):
            raise NotFoundError("nothing to resume", "", reason="no_checkpoint")
        for step in range(1, 4):
            if step == self.interrupt_at:
                if checkpoint is not None and self.keep_checkpoint:
                    checkpoint.parent.mkdir(parents=True, exist_ok=True)
                    checkpoint.write_text("half")
                raise KeyboardInterrupt
            progress(Progress("learning", step, 3, {"loss": 1.0 / step, "eta_seconds": 3.0 - step}))
        made = [make_identity(called, seed=sum(called.encode()) + config.seed) for called in names]
        record = {"consent": consent_record(consent)}
        return [replace(one, provenance={**one.provenance, **record}) for one in made]

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


def contact_sheet(self: Model, people: Sequence[Identity], photos: Sequence[Image.Image]) -> Image.Image:
    """A blank image."""
    return Image.new("RGB", (32 * len(photos), 32), "white")


def build_basis(
    parts: Any, cache: Path | None = None, *, names: Path | None = None, release: bool = False
) -> SimpleNamespace:
    """A basis of which only the mean is used."""
    return SimpleNamespace(mean=AVERAGE)


def load_parts(model: str | Path, *, dtype: Any = None, device: str = "cpu", options: Any = None) -> SimpleNamespace:
    """A model without networks."""
    return TABLES


TABLES = SimpleNamespace(name=MODEL, family=FAMILY, table_hash=TABLE_HASH, path=None, all_rows=list)


def draw_portrait(seed: int, size: int) -> Image.Image:
    """An image of one colour."""
    return Image.new("RGB", (size, size), (seed % 256, 128, 128))


def fake_installation(monkeypatch: pytest.MonkeyPatch, folder: Path) -> FakeInstallation:
    """Install the fakes, with an empty library and face models in `folder`."""
    installation = FakeInstallation()
    monkeypatch.setenv("CELEBCTL_HOME", str(folder / "home"))
    monkeypatch.setenv("CELEBCTL_MODEL", MODEL)
    monkeypatch.setenv("CELEBCTL_FACE_MODELS", str(write_face_models(folder / "faces")))

    def learn(_model: Model, photo: Sequence[Subject], **options: Any) -> list[Identity]:
        return installation.learn(photo, **options)

    monkeypatch.setattr(Model, "tables", TABLES)
    monkeypatch.setattr(Model, "parts", TABLES)
    monkeypatch.setattr(Model, "card", None)
    monkeypatch.setattr(Model, "learn", learn)
    monkeypatch.setattr(Model, "contact_sheet", contact_sheet)
    monkeypatch.setattr("celebctl.basis.basis.build_basis", build_basis)
    for name, contents in {
        "celebctl_models.checkpoints.diffusion": {"load_parts": load_parts},
        "celebctl_export": {"ExportOptions": ExportOptions, "export_bundle": installation.export_bundle},
        "celebctl_models.mini.world": {"draw_portrait": draw_portrait},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return installation


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


# The command line.


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class CommandLine:
    """The command line in an empty folder, with an empty library and the fakes."""

    def __init__(self, installation: FakeInstallation, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.installation, self.folder, self._capsys = installation, folder, capsys
        self.library = Library()

    def __call__(self, *words: str | Path) -> CommandResult:
        self._capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = self._capsys.readouterr()
        return CommandResult(code, out, err)

    def photo(self, name: str = "alice.png", *cells: tuple[int, int]) -> str:
        photo_of(*(cells or ((1, 1),))).save(self.folder / name)
        return name

    def add_people(self, *names: str) -> None:
        for number, name in enumerate(names, 1):
            self.library.save(make_identity(name, seed=number))

    def bundle(self) -> Bundle:
        return Bundle.open(self.library.bundles()[0])


def refused(result: CommandResult, code: int, problem: str, hint: str = "") -> None:
    """An error is one line for the problem and one for the hint, and prints no result."""
    assert result.code == code, result.err
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    hints = [line for line in result.err.splitlines() if line.startswith("hint: ")]
    assert len(errors) == 1 and problem in errors[0], result.err
    assert hints and hint in hints[0], result.err
    assert "Traceback" not in result.err and not result.out
