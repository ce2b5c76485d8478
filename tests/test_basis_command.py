"""`celebctl basis`: chosen names take effect, and an error leaves the library as it was."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from console_fakes import CommandResult
from face_fakes import write_face_models
from numpy.typing import NDArray
from PIL import Image

from celebctl.basis.basis import load_basis
from celebctl.basis.celebrities import load_faces, measured_faces
from celebctl.basis.name_filtering import IMAGES_PER_NAME
from celebctl.basis.report import chosen_names
from celebctl.cli import basis
from celebctl.cli.console import CliConsole
from celebctl.cli.error_handling import report_error
from celebctl.cli.loading import duration, progress_text
from celebctl.learning.config import CLEAN
from celebctl.learning.initialization import available_init, initialize
from celebctl.learning.mapper import CoefficientMapper
from celebctl.learning.prepared import ModelAssets, prepare
from celebctl.library import Library
from celebctl_models.faces.analysis import Face

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

NAMES = (
    "Ann Beach",
    "Anna Chess",
    "Alice Person",
    "Bob Portrait",
    "Smiling Bob",
    "of Alice",
)  # whole in the tiny model
OTHERS = ("cher", "Ann Unheard", "ann  beach", "a person smiling", "# a remark")


class Shell:
    """`celebctl basis` on the tiny model, with an empty library."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.names = folder / "names.txt"
        self.names.write_text("\n".join((*NAMES, *OTHERS)), encoding="utf-8")

    def __call__(self, *words: str | Path) -> CommandResult:
        self._capsys.readouterr()
        console, rest = CliConsole.from_argv([str(word) for word in words])
        try:
            code = int(basis.app(rest, prog_name="celebctl basis", standalone_mode=False, obj=console) or 0)
        except (Exception, KeyboardInterrupt) as error:
            code = report_error(error, console)
        out, err = self._capsys.readouterr()
        return CommandResult(code, out, err)

    def left(self) -> dict[str, bytes]:
        """Every file of the library but locks."""
        root = Library().root
        files = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "locks"]
        return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_parts: DiffusionParts
) -> Shell:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CELEBCTL_MODEL", str(tiny_parts.path))

    def load_parts(model: str, *, dtype: Any = None, device: str = "cpu", options: Any = None) -> DiffusionParts:
        assert model == str(tiny_parts.path) and device == "cpu"
        return tiny_parts

    monkeypatch.setattr("celebctl_models.checkpoints.diffusion.load_parts", load_parts)
    monkeypatch.setattr("celebctl_models.checkpoints.text_encoders.load_texts", load_parts)
    return Shell(here, capsys)


def refused(result: CommandResult, code: int, problem: str) -> None:
    assert result.code == code and problem in result.err and "hint: " in result.err and not result.out, result


def test_every_word_explains_itself(shell: Shell) -> None:
    for words in (("--help",), ("show", "--help"), ("build", "--help")):
        result = shell(*words)
        assert result.code == 0 and "basis" in result.out


def test_a_built_basis_is_the_one_that_is_shown_and_lies_where_it_says(shell: Shell) -> None:
    built = shell("build", "--names", shell.names)
    assert built.code == 0, built.err
    assert "1 dropped, repeated in the list" in built.err and "cher" in built.err
    shown = shell("show", "--json").document
    assert built.lines == [shown["file"]]
    found = load_basis(Path(shown["file"]))
    assert found is not None and found.hash == shown["hash"] and found.size == shown["coefficients"]
    report = shown["names"][0]
    assert (report["read"], report["used"]) == (len(NAMES) + len(OTHERS) - 1, len(NAMES))
    assert report["read"] == report["used"] + report["first_token_only"] + sum(report["dropped"].values())
    assert shown["names_file"] == str(shell.names)
    for one in shown["positions"]:
        shares = list(one["explained"].values())
        assert shares == sorted(shares) and shares[-1] == 1.0
        assert one["rank"] == one["tokens"] - 1 and one["radius"] > 0
    plain = shell("show")
    assert plain.code == 0 and shown["hash"] in plain.out and "rank" in plain.out


def test_the_faithful_basis_takes_every_name_and_fills_up_with_directions_of_no_rank(shell: Shell) -> None:
    shell("build", "--names", shell.names)
    clean, faithful = (shell("show", "--json", "--preset", preset).document for preset in ("clean", "faithful"))
    assert faithful["kind"] == "release" and faithful["hash"] != clean["hash"]
    assert faithful["names"][0]["used"] + faithful["names"][0]["first_token_only"] > clean["names"][0]["used"]
    assert max(one["rank"] for one in faithful["positions"]) < faithful["components"][0]


def test_the_spectrum_is_drawn_where_there_is_room_for_it(shell: Shell) -> None:
    shell("build", "--names", shell.names)
    assert shell("show", "-o", "s.png").code == 0
    with Image.open("s.png") as picture:
        assert picture.size == (1200, 520)
    refused(shell("show", "-o", "s.png"), 2, "s.png exists already")
    refused(shell("show", "-o", "s.tiff"), 2, "s.tiff")
    assert shell("show", "-o", "s.png", "--force").code == 0


def test_other_names_replace_chosen_ones_only_by_force(shell: Shell) -> None:
    shell("build", "--names", shell.names)
    before = shell.left()
    assert shell("build", "--names", shell.names).code == 0, "the same names again are no replacement"
    other = shell.folder / "other.txt"
    other.write_text("\n".join(NAMES[:4]))
    refused(shell("build", "--names", other), 2, "other names were chosen")
    refused(shell("build"), 2, "other names were chosen")
    assert shell.left() == before
    assert shell("build", "--names", other, "--force").code == 0
    assert shell("show", "--json").document["names"][0]["read"] == 4


def test_names_that_make_no_basis_are_not_chosen(shell: Shell) -> None:
    refused(shell("show"), 3, "names can be used")  # of well-known people the tiny model has never heard
    few = shell.folder / "few.txt"
    few.write_text("ann bob\nalice chess\n")
    refused(shell("build", "--names", few), 3, "only 2 of 2 names")
    refused(shell("build", "--names", "gone.txt"), 4, "there is no list of names at gone.txt")
    assert not [name for name in shell.left() if name.startswith("names")]


# Checking by rendering, with a model that draws a face of its own for all but one of the names.

FACELESS = "of alice"


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> list[str]:
    """What was drawn so far."""
    drawn: list[str] = []

    def draw(parts: Any, prompts: Sequence[str], seeds: Sequence[int], people: Any) -> NDArray[np.uint8]:
        drawn.extend(prompts)
        return np.stack([np.full((8, 8, 3), sum(prompt.encode()) % 251, np.uint8) for prompt in prompts])

    class Analyser:
        def __init__(self, folder: Path) -> None:
            assert (folder / "recogniser.onnx").is_file()

        def analyse(self, photo: Image.Image) -> list[Face]:
            number = int(np.asarray(photo)[0, 0, 0])
            feature = np.random.default_rng(number).standard_normal(512).astype(np.float32)
            nothing = np.zeros(4, np.float32), 1.0, np.zeros((5, 2), np.float32), np.zeros((112, 112, 3), np.uint8)
            one = Face(*nothing, feature / np.float32(np.linalg.norm(feature)))
            return [] if number == sum(f"a photo of {FACELESS}".encode()) % 251 else [one]

    monkeypatch.setenv("CELEBCTL_FACE_MODELS", str(write_face_models(shell.folder / "faces")))
    monkeypatch.setattr("celebctl.learning.sampling.draw", draw)
    monkeypatch.setattr("celebctl_models.faces.analysis.OnnxFaceAnalyser", Analyser)
    return drawn


def test_a_check_by_rendering_leaves_out_whom_the_model_cannot_draw_and_says_so(
    shell: Shell, pictures: list[str]
) -> None:
    built = shell("build", "--names", shell.names, "--check-by-rendering", "--json")
    assert built.code == 0, built.err
    assert len(pictures) == IMAGES_PER_NAME * len(NAMES)
    report = built.document["names"][0]
    assert report["used"] == len(NAMES) - 1 and report["examples"]["the model draws no single face for it"] == [
        FACELESS
    ]
    assert report["read"] == report["used"] + sum(report["dropped"].values())
    assert shell("show", "--json").document == built.document
    again = shell("build", "--names", shell.names, "--check-by-rendering", "--force", "--json")
    assert again.document == built.document
    assert len(pictures) == IMAGES_PER_NAME * len(NAMES), "what was drawn is not drawn again"


def test_a_check_that_is_stopped_keeps_what_it_has_and_chooses_nothing(
    shell: Shell, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celebctl.basis.name_filtering.MAX_BATCH_PIXELS", 1)  # one name after the other
    stopped = _until(shell, pictures, 3 * IMAGES_PER_NAME)
    assert stopped.code == 130 and "the same command continues" in stopped.err
    assert [Path(name).suffix for name in shell.left()] == [".jsonl"]
    assert shell("build", "--names", shell.names, "--check-by-rendering").code == 0
    assert len(pictures) == IMAGES_PER_NAME * len(NAMES)


def _until(shell: Shell, pictures: list[str], count: int, what: str = "--check-by-rendering") -> CommandResult:
    """Run the check, or the measuring of faces, and stop it after so many pictures."""
    from celebctl.learning import sampling

    drawing = sampling.draw

    def draw(*given: Any, **named: Any) -> Any:
        if len(pictures) >= count:
            raise KeyboardInterrupt
        return drawing(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "draw", draw)
        return shell("build", "--names", shell.names, what)


# The celebrities' faces, where learning starts.


def faces_in(cache: Path) -> list[Path]:
    return sorted(cache.glob("faces-*.safetensors"))


def test_measured_faces_are_where_learning_starts(
    shell: Shell, pictures: list[str], tiny_parts: DiffusionParts
) -> None:
    built = shell("build", "--names", shell.names, "--faces", "--json")
    assert built.code == 0, built.err
    assert len(pictures) == IMAGES_PER_NAME * len(NAMES)
    cache, models = Library().cache(), shell.folder / "faces"
    assert faces_in(cache) == [Path(built.document["faces"])]
    names = chosen_names(Library(), tiny_parts).file
    named, measured = prepare(tiny_parts, names=names), prepare(tiny_parts, cache, names=names, face_models=models)
    assert available_init(named.assets, CLEAN) == "average"
    assert available_init(measured.assets, CLEAN) == "celebrities"
    found, made = load_faces(faces_in(cache)[0], tiny_parts.table_hash), measured.basis
    assert FACELESS not in found.names and len(found.names) == len(NAMES) - 1
    mapper, generator = CoefficientMapper(made, CLEAN, torch.Generator()), torch.Generator()
    initialize(mapper, measured)
    average = CoefficientMapper(made, CLEAN, generator)
    initialize(average, named)
    seen = torch.as_tensor(found.features)
    assert float((mapper.normalized(seen) - average.normalized(seen)).detach().abs().max()) > 0.1


def test_measured_faces_belong_to_a_text_encoder_and_to_face_models(
    shell: Shell, pictures: list[str], tiny_parts: DiffusionParts
) -> None:
    shell("build", "--names", shell.names, "--faces")
    cache, own = Library().cache(), shell.folder / "faces"
    assert measured_faces(tiny_parts, shell.names, cache, own) == faces_in(cache)[0]
    other = shell.folder / "others"
    shutil.copytree(shell.folder / "faces", other)
    (other / "recogniser.onnx").write_bytes(b"another one")
    assert measured_faces(tiny_parts, shell.names, cache, other) is None
    retrained = replace(tiny_parts)
    retrained.__dict__["table_hash"] = "0" * 64
    assert measured_faces(retrained, shell.names, cache, own) is None
    unknown = shell.folder / "unknown.txt"
    unknown.write_text("portrait chess\nchess beach\nbeach person\nann beach")
    assert measured_faces(tiny_parts, unknown, cache, own) is None, "too few of its names have faces"


def test_measuring_goes_on_where_it_stopped_and_shares_the_pictures_of_a_check(
    shell: Shell, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celebctl.basis.name_filtering.MAX_BATCH_PIXELS", 1)  # one name after the other
    stopped = _until(shell, pictures, 3 * IMAGES_PER_NAME, "--faces")
    assert stopped.code == 130 and "the same command continues" in stopped.err
    assert not faces_in(Library().cache())
    assert shell("build", "--names", shell.names, "--faces", "--check-by-rendering", "--force").code == 0
    assert len(pictures) == IMAGES_PER_NAME * len(NAMES) and len(faces_in(Library().cache())) == 1
    before = shell("show", "--json").document
    again = shell("build", "--faces")
    assert again.code == 0 and shell("show", "--json").document == before, "the names that were chosen stay"
    assert len(pictures) == IMAGES_PER_NAME * len(NAMES)


def test_a_model_that_brings_a_start_is_measured_by_force_only(
    shell: Shell, pictures: list[str], tiny_parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapper = shell.folder / "mapper.safetensors"
    mapper.touch()
    brings = replace(tiny_parts, card=replace(tiny_parts.card, mapper_file=mapper, names_file=shell.names))

    def load_parts(model: str, **_options: Any) -> DiffusionParts:
        return brings

    monkeypatch.setattr("celebctl_models.checkpoints.diffusion.load_parts", load_parts)
    refused(shell("build", "--faces"), 2, "does not use measured faces")
    assert not pictures and shell("build", "--faces", "--force").code == 0
    assert ModelAssets.of(brings).mapper == mapper
    assert prepare(brings, names=shell.names).assets.mapper is None, "it was fitted on the basis of other names"


def test_remaining_time_is_shown_in_the_largest_fitting_unit() -> None:
    assert [duration(seconds) for seconds in (45, 720, 11_100)] == ["45 s", "12 min", "3 h 5 min"]
    assert progress_text({"loss": 0.2134, "likeness": 0.71, "seconds": 3.0, "eta_seconds": 12.0}) == (
        "loss 0.213  likeness 0.71  12 s left"
    )
