"""The training of the illustrated world: every stage runs, goes on bit by bit, and learns from nothing held out."""

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.illustration.scenes import PEOPLE, Rendered, Scenes, car_boxes, draw, is_held_out
from celebctl_models.mini.illustration.training import autoencoder, data, mapper_data
from celebctl_models.mini.illustration.training.data import (
    STATEMENTS,
    UNSTATED,
    Population,
    car_names,
    named_scenes,
    people_book,
    statements,
)
from celebctl_models.mini.illustration.training.pipeline import NEEDS, SHARES, STAGES, Scale, Training
from celebctl_models.mini.illustration.training.subjects import car_points
from celebctl_models.mini.illustration.training.text import caption_batch, load_tokenizer, name_tokens
from celebctl_models.mini.training import trainer
from celebctl_models.mini.training.faces import similarity
from celebctl_models.mini.training.trainer import TrainingContext

TINY = Scale(
    named=12, unnamed=16, pixels=16, people=6, autoencoder_batch=2, text_batch=4, denoiser_batch=4, batch=6,
    detector_batch=4, autoencoder_channels=(8, 8, 16, 16), code_steps=1, denoiser_channels=(32, 64),
)  # fmt: skip
TICK = 61.0  # seconds; two of them are longer than the time between checkpoints


@dataclass
class Clock:
    """A clock that moves by a tick whenever it is read, and interrupts the training after some of them."""

    left: int = 10**9
    now: float = 0.0

    def monotonic(self) -> float:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.now += TICK
        return self.now

    def strftime(self, _: str) -> str:
        return "now"


def training(folder: Path, steps: int) -> Training:
    minutes = dict.fromkeys(SHARES, steps * TICK / 60)
    return Training(TrainingContext(folder, torch.device("cpu")), TINY, minutes, folder / "weights")


def checkpoint(folder: Path, stage: str) -> dict[str, Any]:
    return cast(dict[str, Any], torch.load(folder / f"{stage}.pt", weights_only=True))


def assert_same(one: Any, other: Any, where: str) -> None:
    """Nested containers of tensors that are equal bit by bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        first, second = cast(dict[Any, Any], one), cast(dict[Any, Any], other)
        assert first.keys() == second.keys(), where
        for key, value in first.items():
            assert_same(value, second[key], f"{where}/{key}")
    elif isinstance(one, list):
        for i, (a, b) in enumerate(zip(cast(list[Any], one), cast(list[Any], other), strict=True)):
            assert_same(a, b, f"{where}/{i}")
    else:
        assert one == other, where


def held_out_in(scenes: Scenes) -> int:
    return int(is_held_out(scenes.place, scenes.act, scenes.worn, scenes.style).sum())


@dataclass
class Trained:
    """A training of two steps a stage, and how many scenes it drew, all of them and held-out combinations."""

    training: Training
    drawn: Counter[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    made, drawn = training(tmp_path_factory.mktemp("trained"), 2), Counter[str]()

    def counting(scenes: Scenes, size: int) -> Rendered:
        drawn["all"] += len(scenes)
        drawn["held out"] += held_out_in(scenes)
        return draw(scenes, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "time", Clock())
        patch.setattr(data, "draw", counting)
        patch.setattr(autoencoder, "draw", counting)
        for name in SHARES:
            made.stages[name]()
    return Trained(made, drawn)


def test_every_stage_trains(trained: Trained) -> None:
    for name in SHARES:
        assert checkpoint(trained.training.run.folder, name)["steps"] == 2, name
    assert tuple(trained.training.stages) == STAGES and set(NEEDS) == set(STAGES)
    assert trained.training.autoencoder.encode(torch.zeros(1, 3, 128, 128)).latent_dist.mean.shape == (1, 16, 16, 16)


def test_nothing_held_out_is_drawn(trained: Trained) -> None:
    assert trained.drawn["all"] > 200 and trained.drawn["held out"] == 0
    for seed in range(3):
        assert held_out_in(named_scenes(2000, seed).scenes) == 0
        assert held_out_in(Population.of(seed, 9, 9).scenes(2000, seed).scenes) == 0


def test_a_stage_goes_on_as_if_it_had_not_stopped(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(trained.training.run.folder, folder)
    for name in SHARES:
        (folder / f"{name}.pt").unlink()
    again = training(folder, 2)
    for name in SHARES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "time", Clock(left=3))  # the start, the first step, and no more
            with pytest.raises(KeyboardInterrupt):
                again.stages[name]()
            assert checkpoint(folder, name)["steps"] == 1
            patch.setattr(trainer, "time", Clock())
            again.stages[name]()
        assert_same(checkpoint(folder, name), checkpoint(trained.training.run.folder, name), name)


def test_names_are_read_where_they_stand(trained: Trained) -> None:
    tokenizer = load_tokenizer(trained.training.run.path("tokenizer"))
    batch, named = caption_batch(tokenizer, name_tokens(tokenizer), 60, 5), named_scenes(60, 5)
    assert batch.names.shape == (60, PEOPLE + 1) and int((batch.names >= 0).sum()) > 80
    for row in range(60):
        tokens = tokenizer.convert_ids_to_tokens(batch.ids[row])
        for slot in range(PEOPLE):
            at, last = int(batch.names[row, slot]), int(named.people[row, slot, 1])
            assert (at >= 0) == (slot < int(named.scenes.count[row]) and last >= 0)
            assert at < 0 or tokens[at] == people_book().last_names[last] + "</w>"
        at = int(batch.names[row, PEOPLE])
        assert (at >= 0) == bool(named.scenes.car[row])
        assert at < 0 or tokens[at] == car_names().last_names[int(named.cars[row, 1])] + "</w>"


def test_what_cannot_be_seen_is_not_asked_for() -> None:
    scenes = named_scenes(500, 1).scenes
    columns = dict(zip(STATEMENTS, statements(scenes).unbind(1), strict=True))
    assert all(int(column.max()) < STATEMENTS[name] for name, column in columns.items())
    empty, plain = scenes.count == 0, (scenes.worn == 0) & (scenes.act == 0) & (scenes.item == 0)
    assert (columns["expression"][empty] == UNSTATED).all() and (columns["expression"][~empty] >= 0).all()
    assert (columns["worn_colour"][plain] == UNSTATED).all() and (columns["item_colour"][plain] == UNSTATED).all()
    assert (columns["item_colour"] >= 0).sum() > 50 and torch.equal(columns["count"], scenes.count)


def test_boxes_and_landmarks_of_cars_are_around_cars() -> None:
    population = Population.of(3, 4, 4)
    alone = torch.zeros(12, dtype=torch.long), torch.ones(12, dtype=torch.bool)
    scenes = population.scenes(12, 4, alone).scenes
    without = replace(scenes, car=torch.zeros(12, dtype=torch.bool))
    changed = (draw(scenes, 64).image - draw(without, 64).image).abs().amax(1) > 0.08
    boxes = car_boxes(scenes, 64)
    for one, (x1, y1, x2, y2) in zip(changed[scenes.style < 2], boxes[scenes.style < 2].round().int(), strict=True):
        inside = one[int(y1) : int(y2), int(x1) : int(x2)].sum()
        assert inside > 0.85 * one.sum() and inside > 0.3 * (y2 - y1) * (x2 - x1)
    side = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    torch.testing.assert_close(similarity(car_points(boxes))[:, 0, 0], side / 112)
    assert (car_boxes(without) == 0).all()


def test_captions_for_the_mapper_have_one_place_for_each_person() -> None:
    texts = mapper_data.captions(200, 1)
    assert {text.count("{}") for text in texts} == {1, 2}
    assert len(set(texts)) > 150


@pytest.mark.slow
def test_the_assembled_folder_opens_elsewhere(trained: Trained) -> None:
    import onnxruntime
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    trained.training.assemble()
    folder = trained.training.out
    pipeline = cast(Any, StableDiffusionPipeline).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("someone on the beach", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (128, 128, 3) and np.isfinite(picture).all()
    for network, size in (("attributes", 128), ("features", 112), ("car_features", 112), ("judge", 112)):
        session: Any = onnxruntime.InferenceSession(folder / "scoring" / f"{network}.onnx")
        assert session.run(None, {"pixels": np.zeros((3, 3, size, size), np.float32)})[0].shape[0] == 3
    for faces in ("faces", "concepts/car"):
        assert OnnxFaceAnalyser(folder / faces).recognise(np.zeros((112, 112, 3), np.uint8)).shape == (512,)
    assert len((folder / "names.txt").read_text().splitlines()) == 691
    assert len((folder / "concepts" / "car" / "names.txt").read_text().splitlines()) == 320
