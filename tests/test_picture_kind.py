"""Photographs given to mini, and drawn people given to models of photographs: refused unless forced, and recorded.

The photographs are the public-domain portraits that scikit-image and Matplotlib ship: Eileen Collins and Grace Hopper.
"""

import io
import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from face_fakes import write_yunet_sface
from PIL import Image, ImageFilter, ImageOps

from celebctl import Library, Model
from celebctl.cli import main
from celebctl.cli.hints import hint_for
from celebctl.picture_kind import other_kind
from celebctl_models.checkpoints.known_models import KNOWN
from celebctl_models.checkpoints.registry import ModelCard, card_for, find_card
from celebctl_models.faces.analysis import OnnxFaceAnalyser, largest_face
from celebctl_models.faces.packs import face_models_name
from celebctl_models.mini.drawn import FACES, WEIGHTS, drawnness
from celebctl_models.mini.world import draw_portrait
from celebctl_runtime.errors import IntegrityError, InvalidInputError

ROOT = Path(__file__).parent.parent


def astronaut() -> Image.Image:
    """Head and shoulders."""
    photo: Any = import_module("skimage.data").astronaut()
    return Image.fromarray(photo).crop((120, 0, 340, 220))


def hopper() -> Image.Image:
    import matplotlib

    return Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")


def compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


FORMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "JPEG 70": lambda image: compressed(image, 70),
    "reduced": lambda image: image.resize((96, 96), Image.Resampling.BICUBIC),
    "with a border": lambda image: ImageOps.expand(image, image.width // 7, "white"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 200)),
}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model.load("mini", library=Library(tmp_path / "home"))


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "eileen.png"
    astronaut().save(path)
    return path


@pytest.fixture
def photographs_card() -> ModelCard:
    return ModelCard("sd15", "sd1", "sd15", "", 512, pictures="photographs")


@pytest.mark.parametrize("form", FORMS)
def test_drawn_portraits_pass_and_photographs_do_not(form: str) -> None:
    analyser = OnnxFaceAnalyser(FACES)
    portraits = [(draw_portrait(seed, 256), True) for seed in (7, 11, 12)]
    for image, drawn in [*portraits, (astronaut(), False), (hopper(), False)]:
        changed = FORMS[form](image)
        for face in analyser.analyse(changed):
            assert drawnness(changed, face, FACES).drawn == drawn
            assert drawnness(changed, face, FACES / ".." / "faces").drawn == drawn  # searched again


@pytest.mark.parametrize("name", ["examples/alice.png", "docs/images/beach.png", "docs/images/hat.png"])
def test_what_mini_draws_is_drawn(name: str) -> None:
    image = Image.open(ROOT / name).convert("RGB")
    face = largest_face(OnnxFaceAnalyser(FACES).analyse(image))
    assert drawnness(image, face, FACES).drawn


def test_a_photograph_is_refused_and_can_be_forced(model: Model, photograph: Path) -> None:
    with pytest.raises(InvalidInputError) as error:
        model.learn(photograph, method="instant")
    values = error.value.values
    assert error.value.reason == "photograph_for_drawings" and error.value.exit_code == 3
    assert values["model"] == "mini" and values["photo"] == str(photograph)
    assert float(str(values["score"])) < float(str(values["limit"]))
    eileen = model.learn(photograph, method="instant", force=True)
    assert eileen.provenance["forced"].startswith("photograph_for_drawings: score ")
    assert model.learn(draw_portrait(7, 256), name="alice", method="instant", force=True).provenance.keys() >= {
        "face_models"
    }
    assert "forced" not in model.learn(draw_portrait(7, 256), name="alice", method="instant").provenance


def test_a_drawing_is_refused_by_models_of_photographs(photographs_card: ModelCard) -> None:
    analyser = OnnxFaceAnalyser(FACES)
    for image, reason in ((draw_portrait(7, 256), "drawing_for_photographs"), (hopper(), None)):
        face = largest_face(analyser.analyse(image))
        error = other_kind(photographs_card, image, face, Path("buffalo_l"), "face.png")
        assert (error.reason if error else None) == reason
        assert other_kind(None, image, face, FACES, "face.png") is None  # the model does not say


def test_a_model_folder_says_what_it_knows(tmp_path: Path) -> None:
    card = find_card("mini")
    assert card is not None and card.pictures == "drawings"
    folder = tmp_path / "mine"
    shutil.copytree(WEIGHTS, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.onnx"))
    declared = json.loads((folder / "celebctl.json").read_text())
    for value in ("photographs", None, "paintings"):
        declared.pop("pictures", None)
        (folder / "celebctl.json").write_text(json.dumps({**declared, **({"pictures": value} if value else {})}))
        if value == "paintings":
            with pytest.raises(IntegrityError):
                card_for(folder)
        else:
            assert card_for(folder).pictures == (value or "")
    assert card_for(folder_of(tmp_path, declared), source=KNOWN["sd15"].source).pictures == "photographs"


def folder_of(tmp_path: Path, declared: dict[str, Any]) -> Path:
    """A model folder that declares nothing."""
    folder = tmp_path / "known"
    shutil.copytree(WEIGHTS, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.onnx", "celebctl.json"))
    assert declared["name"] == "mini"
    return folder


def test_the_hint_has_both_ways_on(photograph: Path) -> None:
    error = InvalidInputError("", "", reason="photograph_for_drawings", photo=photograph)
    hint = hint_for(error)
    assert "--force" in hint and f"celebctl learn {photograph} --name alice --model sd15" in hint
    for fact in ("4.3 GB", "CreativeML OpenRAIL-M", "39 MB", "free for any use", "learning takes"):
        assert fact in hint


def test_one_refused_photo_does_not_lose_the_others(
    tmp_path: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    drawn = tmp_path / "alice.png"
    draw_portrait(7, 256).save(drawn)
    words = ["--instant", "--model", "mini"]
    assert main(["learn", str(photograph), *words]) == 3
    assert main(["check", str(photograph), "--model", "mini"]) == 3
    assert main(["check", str(photograph), "--model", "mini", "--force"]) == 0
    assert Library().names() == []
    capsys.readouterr()
    assert main(["learn", str(photograph), str(drawn), *words, "--json"]) == 8
    said = capsys.readouterr()
    assert [person["name"] for person in json.loads(said.out)["people"]] == ["alice"]
    assert f"not learned: {photograph} looks like a photograph" in said.err
    assert "celebctl download yunet_sface" in said.err
    assert Library().names() == ["alice"]
    assert main(["learn", str(photograph), *words, "--force"]) == 0 and Library().names() == ["alice", "eileen"]


def test_a_mapper_of_other_face_models_is_refused(tmp_path: Path) -> None:
    """mini's mapper reads features of mini's recogniser; without the mapper any recogniser will do."""
    folder = write_yunet_sface(tmp_path / "yunet_sface")
    photo = Image.new("RGB", (640, 640), (96, 96, 96))
    photo.paste((255, 0, 0), (256, 256, 288, 288))
    other = Model.load("mini", face_models=folder, library=Library(tmp_path / "home"))
    with pytest.raises(IntegrityError) as error:
        other.learn(photo, name="alice", method="instant", force=True)
    assert error.value.reason == "mapper_of_other_faces"
    assert error.value.values["made_with"] == "mini" == face_models_name(FACES)
    assert error.value.values["face_models"] == face_models_name(folder)
