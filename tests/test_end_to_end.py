"""The whole thread as a person types it: portrait, learn, export, gen, regen, in an empty directory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from celebctl.cli import main
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.picture import read_request


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("thread")


@pytest.fixture(autouse=True)
def _empty_directory(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("CELEBCTL_HOME", str(workplace / "home"))
    monkeypatch.chdir(workplace)


def run(*words: str) -> None:
    assert main(list(words)) == 0, words


def pixels(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.asarray(Image.open(path))


def test_1_the_three_lines_make_a_picture(workplace: Path) -> None:
    run("portrait", "face.jpg", "--seed", "7")
    run("learn", "face.jpg", "--name", "alice", "--steps", "8")
    assert (workplace / "alice-sheet.png").is_file()
    run("export")
    run("gen", "alice and bob playing chess", "--seed", "3", "--out", "chess.png")
    picture = Image.open(workplace / "chess.png")
    assert picture.size == (256, 256), "64 px, enlarged four times for people to look at"
    request, _ = read_request(workplace / "chess.png")
    assert request.prompt == "alice and bob playing chess"
    assert request.seed == 3


def test_2_a_picture_remakes_itself(workplace: Path) -> None:
    run("regen", "chess.png", "--out", "again.png")
    np.testing.assert_array_equal(pixels(workplace / "chess.png"), pixels(workplace / "again.png"))


def test_3_a_new_person_enters_the_bundle_without_any_graph_being_touched(workplace: Path) -> None:
    folder = next((workplace / "home" / "bundles").glob("*/manifest.json")).parent
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.glob("*.onnx*")}
    assert before
    run("portrait", "other.png", "--seed", "11")
    run("learn", "other.png", "--name", "bob", "--steps", "8", "--no-sheet")
    run("gen", "alice and bob shaking hands", "--seed", "4", "--out", "both.png")
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.glob("*.onnx*")} == before
    assert set(Bundle.open(folder).names) == {"alice", "bob"}


def test_4_picture_k_of_a_batch_is_the_single_picture_with_that_seed(workplace: Path) -> None:
    run("gen", "alice smiling", "-n", "2", "--seed", "40", "--out", "batch/")
    run("gen", "alice smiling", "--seed", "41", "--out", "single.png")
    batch = sorted((workplace / "batch").glob("*.png"))
    assert len(batch) == 2
    np.testing.assert_array_equal(pixels(batch[1]), pixels(workplace / "single.png"))


def test_5_no_torch_is_loaded_to_draw(workplace: Path) -> None:
    script = (
        "import sys, json; from celebctl.cli import main;"
        "code = main(['gen', 'alice', '--seed', '1', '--out', 'lean.png']);"
        "print(json.dumps([code, sorted(m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=workplace, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
