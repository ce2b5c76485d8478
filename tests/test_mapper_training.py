"""A mapper trained on a folder of photos: which photos are used, what is learned, what is stored and where."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from console_fakes import CommandResult
from face_fakes import photo_of, write_face_models
from PIL import Image
from test_basis_command import NAMES, Shell, refused

from celebctl.basis.basis import CelebBasis, build_basis, read_tensors
from celebctl.basis.celebrities import CelebrityFaces, cached_faces_path, save_faces
from celebctl.basis.names import read_names, shared_pairs
from celebctl.learning.config import CLEAN
from celebctl.learning.initialization import available_init, initialize
from celebctl.learning.instant import identity_prior
from celebctl.learning.mapper import CoefficientMapper
from celebctl.learning.prepared import ModelAssets, PreparedModel, prepare
from celebctl.library import Library
from celebctl.mapper_training import photo_dataset
from celebctl.mapper_training.mapper_store import load_mapper, save_trained, trained_mapper, trained_mappers
from celebctl.mapper_training.photo_dataset import Encode, FaceDatasetBuilder, list_photos, view_encoder
from celebctl.mapper_training.trainer import (
    MIN_PEOPLE,
    FaceDataset,
    MapperTrainer,
    MapperTrainingConfig,
    split_people,
)
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.faces.framing import Framing
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError
from celebctl_runtime.progress import Progress

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

PEOPLE = 40
SHORT = MapperTrainingConfig(steps=6, batch_size=8, num_evals=2)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def parts(tiny_folder: Path, names: Path) -> DiffusionParts:
    """The tiny model, a copy of our own: training changes how its attention is computed."""
    parts = load_parts(tiny_folder)
    return replace(parts, card=replace(parts.card, names_file=names))


@pytest.fixture(scope="module")
def model(parts: DiffusionParts) -> PreparedModel[DiffusionParts]:
    return prepare(parts)


@pytest.fixture(scope="module")
def basis(model: PreparedModel[DiffusionParts]) -> CelebBasis:
    return model.basis


@pytest.fixture(scope="module")
def analyser(tmp_path_factory: pytest.TempPathFactory) -> OnnxFaceAnalyser:
    return OnnxFaceAnalyser(write_face_models(tmp_path_factory.mktemp("faces") / "faces", ages=True))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of people who are told apart by what surrounds the red cell."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(PEOPLE):
        (folder / f"{number % 3}").mkdir(exist_ok=True)
        someone(number).save(folder / f"{number % 3}" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def dataset(parts: DiffusionParts) -> FaceDataset:
    return some_dataset(parts)


def someone(number: int) -> Image.Image:
    blocks = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize((128, 128), Image.Resampling.NEAREST)
    picture.paste((255, 0, 0), (32, 32, 64, 64))
    return picture


def some_dataset(parts: DiffusionParts, people: int = PEOPLE) -> FaceDataset:
    """Features and views drawn at random, two views of everybody."""
    generator = torch.Generator().manual_seed(1)
    features = torch.nn.functional.normalize(torch.randn(people, 512, generator=generator), dim=1)
    side = parts.card.native_size // parts.vae_factor
    latents = torch.randn(people, 2, parts.latent_channels, side, side, generator=generator)
    return FaceDataset(features, latents.half(), torch.ones(people, 2, 1, side, side).half())


def same(one: Any, other: Any) -> bool:
    """Two mappers' tensors, and what is told of them."""
    return one[1] == other[1] and all(np.array_equal(array, other[0][name]) for name, array in one[0].items())


# Who counts.


def builder_for(
    analyser: OnnxFaceAnalyser, work: Path, encode: Encode | None = None, key: str = "key"
) -> FaceDatasetBuilder:
    def by_size(photo: Image.Image, face: Any, digest: str) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((2, 4, 4, 4), float(face.size)), torch.ones(2, 1, 4, 4)

    return FaceDatasetBuilder(analyser, encode or by_size, work, key, min_size=analyser.settings.min_face)


def test_photos_that_do_not_count_are_counted_with_a_reason(analyser: OnnxFaceAnalyser, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        someone(number).save(folder / f"{number}.png")
    someone(0).save(folder / "0-again.bmp")
    shutil.copy(folder / "1.png", folder / "1-again.png")
    photo_of().save(folder / "nobody.png")
    two = someone(4)
    two.paste((255, 0, 0), (64, 96, 96, 128))
    two.save(folder / "two.png")
    child = someone(5)
    Image.merge("RGB", (*child.split()[:2], Image.new("L", child.size))).save(folder / "child.png")
    someone(6).resize((40, 40)).resize((128, 128)).save(folder / ".hidden.png")
    (folder / "notes.txt").write_text("no photo")
    (folder / "cut.png").write_bytes((folder / "2.png").read_bytes()[:300])
    found = builder_for(analyser, tmp_path / "work")
    files = list_photos(folder)
    looked = list[tuple[int, int]]()
    people = found.build(files, progress=lambda now: looked.append((now.step, now.total)))
    assert len(people) == 3 and looked[-1] == (10, 10)
    assert {reason: len(names) for reason, names in found.skipped.items()} == {
        photo_dataset.UNREADABLE: 2, photo_dataset.NO_FACE: 1, photo_dataset.SEVERAL: 1, photo_dataset.MINOR: 1,
        photo_dataset.DUPLICATE: 2,
    }  # fmt: skip
    assert f"2 {photo_dataset.DUPLICATE}" in found.skipped_summary()
    small = FaceDatasetBuilder(analyser, found.encode, tmp_path / "small", "key", min_size=1000)
    with pytest.raises(InvalidInputError, match=photo_dataset.SMALL):
        small.build(files)


def test_a_folder_has_to_be_one_and_its_order_does_not_depend_on_where_it_is(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        list_photos(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="is a file"):
        list_photos(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="contains no files"):
        list_photos(tmp_path / "empty")
    shutil.copytree(photos, tmp_path / "copy")
    one, other = ([path.relative_to(place) for path in list_photos(place)] for place in (photos, tmp_path / "copy"))
    assert len(one) == PEOPLE and one == other != sorted(one)


def test_gathering_goes_on_where_it_stopped(
    analyser: OnnxFaceAnalyser,
    model: PreparedModel[DiffusionParts],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(photo_dataset, "SHARD_SIZE", 8)
    files, encode = list_photos(photos), view_encoder(model, 3)
    whole = builder_for(analyser, tmp_path / "whole", encode).build(files)

    def stop(now: Progress) -> None:
        if now.step == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builder_for(analyser, tmp_path / "work", encode).build(files, progress=stop)
    again, encoded = builder_for(analyser, tmp_path / "work", encode), list[str]()
    again.load_shards()
    assert again.count == 16, "two whole pieces"

    def counted(photo: Image.Image, face: Any, digest: str) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.append(digest)
        return encode(photo, face, digest)

    again.encode = counted
    resumed = again.build(files)
    assert len(encoded) == PEOPLE - 16
    for one, other in zip(vars(whole).values(), vars(resumed).values(), strict=True):
        assert torch.equal(one, other)
    assert len(builder_for(analyser, tmp_path / "few", encode).build(files, limit=5)) == 5
    with pytest.raises(IntegrityError, match="another model"):
        builder_for(analyser, tmp_path / "work", encode, key="other").load_shards()
    next((tmp_path / "work").iterdir()).write_bytes(b"cut")
    with pytest.raises(IntegrityError, match="cannot be read"):
        builder_for(analyser, tmp_path / "work", encode).load_shards()


# What is learned.


def test_a_trained_mapper_serves_people_it_has_not_seen(
    model: PreparedModel[DiffusionParts], dataset: FaceDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, news = MapperTrainingConfig(steps=24, batch_size=16, learning_rate=3e-2, num_evals=4), list[Progress]()
    shared = torch.randn(dataset.latents.shape[2:], generator=torch.Generator().manual_seed(9))
    alike = replace(dataset, latents=(0.3 * dataset.latents.float() + shared).half())
    # a random model hardly depends on its text: less than a step of bfloat16
    monkeypatch.setattr("celebctl.learning.denoising.has_bfloat16_units", Mock(return_value=False))
    trainer = MapperTrainer(model, alike, config)
    assert trainer.init == "average"
    assert trainer.first.own == pytest.approx(trainer.first.average, rel=1e-5), "it begins with the average celebrity"
    trainer.train(progress=news.append)
    assert trainer.best.own < trainer.first.own
    assert [now.step for now in news] == list(range(1, 25)) and news[-1].metrics["eta_seconds"] == 0
    trainer.require_improvement()
    trainer.best = trainer.first
    with pytest.raises(InvalidInputError) as error:
        trainer.require_improvement()
    assert error.value.reason == "mapper_not_better"


def test_training_resumes_to_the_very_same_numbers(
    model: PreparedModel[DiffusionParts], dataset: FaceDataset, tmp_path: Path
) -> None:
    whole = MapperTrainer(model, dataset, SHORT).train().state_dict()
    kept = tmp_path / "trainer.checkpoint"

    def stop(now: Progress) -> None:
        if now.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MapperTrainer(model, dataset, SHORT).train(kept, stop)
    resumed = MapperTrainer(model, dataset, SHORT)
    resumed.load(kept)
    assert resumed.step == 4
    again = resumed.train().state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    other = MapperTrainer(model, dataset, replace(SHORT, seed=1))
    assert any(not torch.equal(tensor, whole[name]) for name, tensor in other.train().state_dict().items())
    with pytest.raises(IntegrityError) as error:
        other.load(kept)
    assert error.value.reason == "checkpoint_mismatch"
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(IntegrityError) as error:
        resumed.load(kept)
    assert error.value.reason == "checkpoint_damaged"


def test_a_step_does_not_depend_on_the_micro_batch(model: PreparedModel[DiffusionParts], dataset: FaceDataset) -> None:
    trainers = [MapperTrainer(model, dataset, SHORT, size) for size in (64, 3)]
    losses = [trainer.train_step() for trainer in trainers]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, other = (trainer.pretrained.up.weight.grad for trainer in trainers)
    assert one is not None and other is not None and float(one.abs().max()) > 0
    torch.testing.assert_close(one, other, rtol=2e-2, atol=float(one.abs().max()) * 2e-2)


def test_two_text_encoders_are_trained_as_one(xl_folder: Path, names: Path) -> None:
    parts = load_parts(xl_folder)
    model = prepare(parts, names=names)
    basis = model.basis
    trainer = MapperTrainer(model, some_dataset(parts), replace(SHORT, steps=2))
    assert trainer.train().up.out_features == basis.size == sum(2 * part.shape[1] for part in basis.components)
    moved = trainer.mapper.split(trainer.pretrained(some_dataset(parts).features))
    assert len(moved) == 2 and all(bool(part.any()) for part in moved)


def test_training_and_validation_people_are_disjoint() -> None:
    generator = torch.Generator().manual_seed(0)
    faces = torch.nn.functional.normalize(torch.randn(100, 512, generator=generator), dim=1)
    twice = torch.cat([faces, torch.nn.functional.normalize(faces + 0.01 * torch.randn(100, 512), dim=1)])
    taught, held = split_people(twice, 0)
    assert len(held) == 25 and not np.intersect1d(taught.numpy() % 100, held.numpy() % 100).size
    with pytest.raises(InvalidInputError, match=f"at least {MIN_PEOPLE}"):
        split_people(faces[: MIN_PEOPLE - 1], 0)
    assert sum(map(len, split_people(faces[:MIN_PEOPLE], 0))) == MIN_PEOPLE


# What is kept, and where.


def test_a_trained_mapper_goes_before_one_that_came_along_and_belongs_to_basis_and_face_models(
    model: PreparedModel[DiffusionParts], dataset: FaceDataset, analyser: OnnxFaceAnalyser, tmp_path: Path
) -> None:
    parts, basis = model.parts, model.basis
    assert trained_mapper(basis, tmp_path, analyser.folder) is None
    fitted = MapperTrainer(model, dataset, SHORT).train()
    path = save_trained(fitted, basis, tmp_path, analyser.folder, {"people": "35", "steps": "6"})
    (tmp_path / "own.safetensors").write_bytes(b"own")
    own = replace(parts, card=replace(parts.card, mapper_file=tmp_path / "own.safetensors"))
    ready = prepare(own, tmp_path, face_models=analyser.folder)
    assert ready.assets.mapper == path and available_init(ready.assets, CLEAN) == "fitted"
    digests = {assets.mapper_digest for assets in (ModelAssets.of(parts), ModelAssets.of(own), ready.assets)}
    assert len(digests) == 3 and "" in digests, "results with either are told apart"
    mapper = CoefficientMapper(basis, CLEAN, torch.Generator())
    initialize(mapper, ready)
    result, meant = (ask(dataset.features) for ask in (mapper.normalized, fitted))
    torch.testing.assert_close(result, CLEAN.bound * torch.tanh(meant / CLEAN.bound), rtol=1e-2, atol=1e-3)
    assert [str(one) for one in trained_mappers(tmp_path, basis)] == ["trained on 35 people in 6 steps"]
    others = shutil.copytree(analyser.folder, tmp_path / "others")
    (others / "recogniser.onnx").write_bytes(b"another one")
    assert trained_mapper(basis, tmp_path, others) is None
    changed = replace(basis, names=basis.names + 1)
    assert not trained_mappers(tmp_path, changed)
    with pytest.raises(IntegrityError) as error:
        load_mapper(path, changed)
    assert error.value.reason == "mapper_of_other_basis"


# The command.


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: DiffusionParts,
    analyser: OnnxFaceAnalyser,
) -> Shell:  # fmt: skip
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CELEBCTL_MODEL", str(parts.path))
    monkeypatch.setenv("CELEBCTL_FACE_MODELS", str(analyser.folder))

    def opened(model: str, **_options: Any) -> DiffusionParts:
        return parts

    monkeypatch.setattr("celebctl_models.checkpoints.diffusion.load_parts", opened)
    monkeypatch.setattr("celebctl_models.checkpoints.text_encoders.load_texts", opened)

    def lenient(trainer: MapperTrainer) -> None:
        """So few steps need not help."""

    monkeypatch.setattr(MapperTrainer, "require_improvement", lenient)
    shell = Shell(here, capsys)
    assert shell("build", "--names", shell.names).code == 0
    return shell


def train(shell: Shell, photos: Path, *more: str) -> CommandResult:
    return shell("train", photos, "--steps", "6", *more)


def test_the_command_trains_what_learning_then_begins_with(
    shell: Shell, photos: Path, parts: DiffusionParts, analyser: OnnxFaceAnalyser
) -> None:
    assert shell("show", "--json").document["mapper"] is None
    result = train(shell, photos, "--json")
    assert result.code == 0, result.err
    facts = result.document
    assert (facts["people"] + facts["validation_people"], facts["steps"], facts["skipped"]) == (PEOPLE, 6, {})
    assert "--instant" in result.err
    basis = build_basis(parts)
    assert str(trained_mapper(basis, Library().cache(), analyser.folder)) == facts["mapper"]
    prior = identity_prior(Path(facts["mapper"]), basis)
    assert prior is not None and prior.layers["code_cov_sqrt"].any(), "sampled identities are like those people"
    shown = shell("show")
    assert f"mapper: trained on {facts['people']} people in 6 steps, {facts['mapper']}" in shown.out
    left = [name for name in shell.left() if "checkpoints" in name or name.endswith(".png")]
    assert not left, "nothing of the photos is kept"
    refused(train(shell, photos), 2, "a mapper was trained for this model already")
    before = read_tensors(Path(facts["mapper"]))
    assert train(shell, photos, "--force", "--seed", "1").code == 0
    assert not same(read_tensors(Path(facts["mapper"])), before)
    assert train(shell, photos, "--force").code == 0
    assert same(read_tensors(Path(facts["mapper"])), before), "same seed, same mapper"
    names = shared_pairs(parts.tokenizers, read_names(parts))[0].names[:6]
    seen = CelebrityFaces(names, np.eye(6, 512, dtype=np.float32), Framing(0.4, 0.5, 0.45, 0.02))
    save_faces(seen, parts.table_hash, cached_faces_path(Library().cache(), parts.table_hash, analyser.folder))
    whole = prepare(parts, Library().cache(), face_models=analyser.folder)
    assert str(whole.assets.mapper) == facts["mapper"] and whole.framing == (seen.framing, "measured")


def test_stopping_loses_nothing(
    shell: Shell, photos: Path, monkeypatch: pytest.MonkeyPatch, parts: DiffusionParts
) -> None:
    refused(train(shell, photos, "--resume"), 4, "no unfinished training")
    assert train(shell, photos).code == 0
    path = trained_mappers(Library().cache(), build_basis(parts))[0].path
    whole = read_tensors(path)
    path.unlink()
    advance: Callable[[MapperTrainer], float] = MapperTrainer.train_step

    def until_the_third(trainer: MapperTrainer) -> float:
        if trainer.step == 3:
            raise KeyboardInterrupt
        return advance(trainer)

    monkeypatch.setattr(MapperTrainer, "train_step", until_the_third)
    stopped = train(shell, photos)
    assert stopped.code == 130 and "--resume" in stopped.err and not path.exists()
    refused(train(shell, photos), 2, "unfinished")
    monkeypatch.setattr(MapperTrainer, "train_step", advance)
    assert train(shell, photos, "--resume").code == 0
    assert same(read_tensors(path), whole)
    assert not any("checkpoints" in name for name in shell.left())


def test_a_mapper_of_no_use_is_not_kept_and_the_photos_need_not_be_read_again(
    shell: Shell, photos: Path, monkeypatch: pytest.MonkeyPatch, parts: DiffusionParts
) -> None:
    refuse: Callable[[MapperTrainer], None] = MapperTrainer.require_improvement

    def useless(trainer: MapperTrainer) -> None:
        raise InvalidInputError("no help", "more people", reason="mapper_not_better")

    monkeypatch.setattr(MapperTrainer, "require_improvement", useless)
    refused(train(shell, photos), 3, "no help")
    assert not trained_mappers(Library().cache(), build_basis(parts))
    monkeypatch.setattr(MapperTrainer, "require_improvement", refuse)
    monkeypatch.setattr(OnnxFaceAnalyser, "analyse", None)
    assert shell("train", photos, "--steps", "7", "--resume").code == 0
    assert trained_mappers(Library().cache(), build_basis(parts))[0].metadata["steps"] == "7"


def test_what_cannot_be_trained_is_refused_and_leaves_nothing(shell: Shell, photos: Path, tmp_path: Path) -> None:
    before = shell.left()
    few = tmp_path / "few"
    few.mkdir()
    for number in range(MIN_PEOPLE - 1):
        someone(number).save(few / f"{number}.png")
    refused(train(shell, tmp_path / "nowhere"), 4, "does not exist")
    refused(shell("train", photos, "--people", "5"), 2, "people 5 is too few")
    refused(shell("train", photos, "--steps", "0"), 2, "steps 0 is out of range")
    refused(train(shell, few), 3, f"{MIN_PEOPLE - 1} people are too few")
    refused(train(shell, few), 3, f"{MIN_PEOPLE - 1} people are too few")
    assert shell.left() == before
