"""Framing: declared by the model, measured, or assumed; and the views that follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from learn_fakes import NAMES as TINY_NAMES
from numpy.typing import NDArray
from PIL import Image

torch: Any = pytest.importorskip("torch")

from celebctl.basis.celebrities import CelebrityFaces, faces_from_renders, save_faces  # noqa: E402
from celebctl.basis.name_filtering import render_names  # noqa: E402
from celebctl.learning.config import CLEAN, FAITHFUL, framing_from_config  # noqa: E402
from celebctl.learning.initialization import describe_framing, with_model_framing  # noqa: E402
from celebctl.learning.prepared import PreparedModel, prepare  # noqa: E402
from celebctl.learning.views import make_views  # noqa: E402
from celebctl_models.checkpoints.registry import card_for, locate  # noqa: E402
from celebctl_models.faces.analysis import Face  # noqa: E402
from celebctl_models.faces.framing import MIN_FACES, PHOTOGRAPHS, Framing, measure_framing  # noqa: E402

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

NAMES = [f"name {number}" for number in range(24)]
DRAWN = Framing(face_height_min=0.25, face_height_max=0.35, face_center_y=0.38, face_jitter=0.04)  # of the fake model


def ready(parts: DiffusionParts, folder: Path) -> PreparedModel[DiffusionParts]:
    """The model with names that its tiny tokenizer knows."""
    names = folder / "names.txt"
    names.write_text(TINY_NAMES)
    return prepare(parts, names=names)


def photo_of(box: tuple[int, int, int, int], side: int = 400) -> Image.Image:
    """A white box, the face, on black."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return Image.fromarray(pixels)


def box_in(pixels: Any) -> tuple[float, float, float]:
    """Height, middle across and middle down of the white box in a view (3, S, S), as shares."""
    y, x = np.nonzero(np.asarray(pixels)[0] > 0)
    size = pixels.shape[-1]
    return (y.max() + 1 - y.min()) / size, (x.min() + x.max() + 1) / 2 / size, (y.min() + y.max() + 1) / 2 / size


@pytest.mark.parametrize("framing", [DRAWN, PHOTOGRAPHS, Framing(0.5, 0.5, 0.6, 0.0)], ids=str)
def test_the_face_of_a_view_stands_where_the_framing_says(framing: Framing) -> None:
    box = (180, 190, 215, 240)
    face = SimpleNamespace(box=np.array(box, np.float32))
    config = replace(CLEAN, **framing.as_dict())
    views = make_views(photo_of(box), face, 128, 40, config, torch.Generator().manual_seed(1))
    seen, pixel = np.array([box_in(one) for one in views.pixels.numpy()]), 1.6 / 128
    assert framing.face_height_min - pixel < seen[:, 0].min() and seen[:, 0].max() < framing.face_height_max + pixel
    assert np.abs(seen[:, 1:] - [0.5, framing.face_center_y]).max() < framing.face_jitter + pixel
    if framing.face_jitter:
        assert np.ptp(seen[:, 0]) > 0.6 * (framing.face_height_max - framing.face_height_min), "all sizes in between"
        assert np.ptp(seen[:, 2]) > framing.face_jitter


def test_the_config_wins_then_the_card_then_the_measurement(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    assert ready(tiny_parts, tmp_path).framing == (PHOTOGRAPHS, "assumed")
    faces = CelebrityFaces(tuple(NAMES), np.eye(24, 512, dtype=np.float32), DRAWN)
    save_faces(faces, tiny_parts.table_hash, tmp_path / "faces.safetensors")
    measured = replace(tiny_parts, card=replace(tiny_parts.card, features_file=tmp_path / "faces.safetensors"))
    model = ready(measured, tmp_path)
    assert model.framing == (DRAWN, "measured")
    own = Framing(0.7, 0.8, 0.5, 0.01)
    declared = ready(replace(measured, card=replace(measured.card, framing=own)), tmp_path)
    assert declared.framing == (own, "declared")
    assert framing_from_config(with_model_framing(CLEAN, declared)) == own
    asked = with_model_framing(replace(CLEAN, face_center_y=0.6), model)
    assert framing_from_config(asked) == replace(DRAWN, face_center_y=0.6)
    assert describe_framing(asked, model).endswith("(configured)")
    assert describe_framing(with_model_framing(CLEAN, model), model) == f"{DRAWN} (measured)"
    faithful = framing_from_config(with_model_framing(FAITHFUL, model))
    assert (faithful.face_height_min, faithful.face_height_max) == (0.1, 1.0), "the release's own scales"
    with pytest.raises(ValueError, match="framing"):
        make_views(photo_of((1, 1, 2, 2)), None, 8, 1, CLEAN, torch.Generator())


def test_faces_measured_without_a_framing_leave_it_assumed(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    faces = CelebrityFaces(tuple(NAMES), np.eye(24, 512, dtype=np.float32))
    save_faces(faces, tiny_parts.table_hash, tmp_path / "faces.safetensors")
    old = replace(tiny_parts, card=replace(tiny_parts.card, features_file=tmp_path / "faces.safetensors"))
    assert ready(old, tmp_path).framing == (PHOTOGRAPHS, "assumed")


def test_the_card_of_mini_has_a_framing() -> None:
    assert card_for(locate("mini").path).framing == Framing(0.52, 0.60, 0.485, 0.025)


def test_a_framing_is_measured_from_quartiles() -> None:
    places = np.random.default_rng(0).uniform([0.2, 0.45, 0.36], [0.6, 0.55, 0.44], (4000, 3)).astype(np.float32)
    found = measure_framing(np.concatenate([places, np.zeros((50, 3), np.float32)]))  # and boxes of no height
    assert found is not None
    np.testing.assert_allclose(list(found.as_dict().values()), [0.3, 0.5, 0.4, 0.025], atol=0.01)
    assert measure_framing(places[: MIN_FACES - 1]) is None
    assert measure_framing(places + np.array([0, 0, 1], np.float32)) is None, "faces outside the image"


@pytest.mark.parametrize(
    "wrong", [{"face_height_min": 0.61}, {"face_center_y": 1.2}, {"face_jitter": -0.1}, {"face_height_max": 9.0}]
)
def test_fractions_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="framing"):
        Framing.from_dict({**DRAWN.as_dict(), **wrong})
    with pytest.raises(ValueError, match="framing"):
        Framing.from_dict({"smallest": 0.2})


# Measured with the celebrities' faces: a model that draws a box where DRAWN says, and a finder of boxes.


def draw(prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
    made: list[NDArray[np.uint8]] = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        random = np.random.default_rng([*prompt.encode(), seed])
        low, high = 2 * DRAWN.face_height_min - 0.3, 2 * DRAWN.face_height_max - 0.3  # quartiles .25 and .35
        height = 200 * random.uniform(low, high)
        middle = 200 * (DRAWN.face_center_y + random.uniform(-2, 2) * DRAWN.face_jitter)
        top, left = round(middle - height / 2), 90
        made.append(np.asarray(photo_of((left, top, left + 20, round(middle + height / 2)), 200)))
    return np.stack(made)


class Finder:
    def analyse(self, photo: Image.Image) -> list[Face]:
        y, x = np.nonzero(np.asarray(photo)[..., 0])
        box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.float32)
        feature = np.random.default_rng(int(y.min())).standard_normal(512).astype(np.float32)
        nothing = np.zeros((5, 2), np.float32), np.zeros((112, 112, 3), np.uint8)
        return [Face(box, 1.0, *nothing, feature / np.float32(np.linalg.norm(feature)))]


def test_measuring_basis_names_measures_the_framing(tmp_path: Path, tiny_parts: DiffusionParts) -> None:
    log, file = tmp_path / "log.jsonl", tmp_path / "faces.safetensors"
    found = faces_from_renders(render_names(NAMES, draw, Finder(), log))
    assert found.framing is not None
    np.testing.assert_allclose(list(found.framing.as_dict().values()), list(DRAWN.as_dict().values()), atol=0.03)
    assert faces_from_renders(render_names(NAMES, draw, Finder(), log)).framing == found.framing
    save_faces(found, tiny_parts.table_hash, file)
    measured = replace(tiny_parts, card=replace(tiny_parts.card, features_file=file))
    assert ready(measured, tmp_path).framing == (found.framing, "measured")
