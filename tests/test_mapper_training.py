"""Laws of a mapper trained on a folder of photos: what counts as a photo, what is learned, what is kept, and where."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from console_fakes import Said
from face_fakes import photo_of, write_face_models
from PIL import Image
from test_basis_command import NAMES, Shell, refused

from celebctl.basis.basis import CelebBasis, build_basis, read_tensors
from celebctl.basis.celebrities import CelebrityFaces, faces_file, save_faces
from celebctl.basis.name_filtering import hash_of_faces
from celebctl.basis.names import read_names, shared_pairs, with_names
from celebctl.cli.loading import prepared
from celebctl.learning.config import CLEAN
from celebctl.learning.denoising import DenoisingLoss
from celebctl.learning.initialization import available_init, framing_of, initialize, mapper_digest
from celebctl.learning.instant import identity_prior
from celebctl.learning.mapper import CoefficientMapper
from celebctl.library import Library, format_model_key
from celebctl.mapper_training import photo_dataset as crowds
from celebctl.mapper_training.photo_dataset import Encode, FaceDatasetBuilder, encoder_of, list_photos
from celebctl.mapper_training.pretraining import load_mapper
from celebctl.mapper_training.store import save_trained, trained_for, with_latest, with_mapper
from celebctl.mapper_training.trainer import (
    MIN_PEOPLE,
    FaceDataset,
    MapperTrainer,
    MapperTrainingConfig,
    TrainStep,
    split,
)
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.faces.analysis import InsightFaceAnalyser
from celebctl_models.faces.framing import Framing
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError

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
    return with_names(load_parts(tiny_folder), names)


@pytest.fixture(scope="module")
def basis(parts: DiffusionParts) -> CelebBasis:
    return build_basis(parts)


@pytest.fixture(scope="module")
def analyser(tmp_path_factory: pytest.TempPathFactory) -> InsightFaceAnalyser:
    return InsightFaceAnalyser(write_face_models(tmp_path_factory.mktemp("faces") / "faces", ages=True))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of people who are told apart by what surrounds the red cell."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(PEOPLE):
        (folder / f"{number % 3}").mkdir(exist_ok=True)
        somebody(number).save(folder / f"{number % 3}" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def crowd(parts: DiffusionParts) -> FaceDataset:
    return some_crowd(parts)


def somebody(number: int) -> Image.Image:
    blocks = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize((128, 128), Image.Resampling.NEAREST)
    picture.paste((255, 0, 0), (32, 32, 64, 64))
    return picture


def some_crowd(parts: DiffusionParts, people: int = PEOPLE) -> FaceDataset:
    """Features and views drawn at random, two views of everybody."""
    generator = torch.Generator().manual_seed(1)
    features = torch.nn.functional.normalize(torch.randn(people, 512, generator=generator), dim=1)
    side = parts.card.native_size // parts.vae_factor
    latents = torch.randn(people, 2, parts.latent_channels, side, side, generator=generator)
    return FaceDataset(features, latents.half(), torch.ones(people, 2, 1, side, side).half())


def school_of(parts: DiffusionParts, basis: CelebBasis, crowd: FaceDataset, config: MapperTrainingConfig, **more: Any) -> MapperTrainer:
    return MapperTrainer(DenoisingLoss(parts, CLEAN.captions), basis, crowd, config, **more)


def same(one: Any, other: Any) -> bool:
    """Two mappers' tensors, and what is told of them."""
    return one[1] == other[1] and all(np.array_equal(array, other[0][name]) for name, array in one[0].items())


# Who counts.


def gathering(analyser: InsightFaceAnalyser, work: Path, encode: Encode | None = None, key: str = "key") -> FaceDatasetBuilder:
    def by_size(photo: Image.Image, face: Any, digest: str) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((2, 4, 4, 4), float(face.size)), torch.ones(2, 1, 4, 4)

    return FaceDatasetBuilder(analyser, encode or by_size, work, key, smallest=analyser.settings.min_face)


def test_photos_that_do_not_count_are_counted_with_a_reason(analyser: InsightFaceAnalyser, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        somebody(number).save(folder / f"{number}.png")
    somebody(0).save(folder / "0-again.bmp")
    shutil.copy(folder / "1.png", folder / "1-again.png")
    photo_of().save(folder / "nobody.png")
    two = somebody(4)
    two.paste((255, 0, 0), (64, 96, 96, 128))
    two.save(folder / "two.png")
    child = somebody(5)
    Image.merge("RGB", (*child.split()[:2], Image.new("L", child.size))).save(folder / "child.png")
    somebody(6).resize((40, 40)).resize((128, 128)).save(folder / ".hidden.png")
    (folder / "notes.txt").write_text("no photo")
    (folder / "cut.png").write_bytes((folder / "2.png").read_bytes()[:300])
    found = gathering(analyser, tmp_path / "work")
    files = list_photos(folder)
    looked = list[tuple[int, int]]()
    people = found.build(files, on_photo=lambda n, of: looked.append((n, of)))
    assert len(people) == 3 and looked[-1] == (10, 10)
    assert {reason: len(names) for reason, names in found.left_out.items()} == {
        crowds.UNREADABLE: 2, crowds.NO_FACE: 1, crowds.SEVERAL: 1, crowds.MINOR: 1, crowds.AGAIN: 2,
    }  # fmt: skip
    assert "2 the same picture as another" in found.said()
    small = FaceDatasetBuilder(analyser, found.encode, tmp_path / "small", "key", smallest=1000)
    with pytest.raises(InvalidInputError, match=crowds.SMALL):
        small.build(files)


def test_a_folder_has_to_be_one_and_its_order_does_not_depend_on_where_it_is(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is not there"):
        list_photos(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="is a file"):
        list_photos(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="holds no files"):
        list_photos(tmp_path / "empty")
    shutil.copytree(photos, tmp_path / "copy")
    one, other = ([path.relative_to(place) for path in list_photos(place)] for place in (photos, tmp_path / "copy"))
    assert len(one) == PEOPLE and one == other != sorted(one)


def test_gathering_goes_on_where_it_stopped(
    analyser: InsightFaceAnalyser, parts: DiffusionParts, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowds, "PIECE", 8)
    files, encode = list_photos(photos), encoder_of(parts, 3)
    whole = gathering(analyser, tmp_path / "whole", encode).build(files)

    def stop(number: int, of: int) -> None:
        if number == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gathering(analyser, tmp_path / "work", encode).build(files, on_photo=stop)
    again, encoded = gathering(analyser, tmp_path / "work", encode), list[str]()
    again.recall()
    assert again.kept == 16, "two whole pieces"

    def counted(photo: Image.Image, face: Any, digest: str) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.append(digest)
        return encode(photo, face, digest)

    again.encode = counted
    resumed = again.build(files)
    assert len(encoded) == PEOPLE - 16
    for one, other in zip(vars(whole).values(), vars(resumed).values(), strict=True):
        assert torch.equal(one, other)
    assert len(gathering(analyser, tmp_path / "few", encode).build(files, most=5)) == 5
    with pytest.raises(IntegrityError, match="another model or other settings"):
        gathering(analyser, tmp_path / "work", encode, key="other").recall()
    next((tmp_path / "work").iterdir()).write_bytes(b"cut")
    with pytest.raises(IntegrityError, match="cannot be read"):
        gathering(analyser, tmp_path / "work", encode).recall()


# What is learned.


def test_a_trained_mapper_serves_people_it_has_not_seen(parts: DiffusionParts, basis: CelebBasis, crowd: FaceDataset) -> None:
    config, news = MapperTrainingConfig(steps=24, batch_size=16, learning_rate=3e-2, num_evals=4), list[TrainStep]()
    shared = torch.randn(crowd.latents.shape[2:], generator=torch.Generator().manual_seed(9))
    alike = replace(crowd, latents=(0.3 * crowd.latents.float() + shared).half())  # so that there is something to learn
    denoiser = DenoisingLoss(parts, CLEAN.captions)
    denoiser.fast = False  # a random model hardly listens to its text: less than a step of bfloat16
    school = MapperTrainer(denoiser, basis, alike, config)
    assert school.start == "average"
    assert school.first.own == pytest.approx(school.first.average, rel=1e-5), "it begins with the average celebrity"
    school.train(news.append)
    assert school.reached.own < school.first.own
    assert [now.step for now in news] == list(range(1, 25)) and news[-1].eta == 0
    school.refuse_useless()
    school.reached = school.first
    with pytest.raises(InvalidInputError, match="does not help people it has not seen"):
        school.refuse_useless()


def test_training_resumes_to_the_very_same_numbers(
    parts: DiffusionParts, basis: CelebBasis, crowd: FaceDataset, tmp_path: Path
) -> None:
    whole = school_of(parts, basis, crowd, SHORT).train().state_dict()
    kept = tmp_path / "school.checkpoint"

    def stop(now: TrainStep) -> None:
        if now.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        school_of(parts, basis, crowd, SHORT).train(stop, kept)
    resumed = school_of(parts, basis, crowd, SHORT)
    resumed.load(kept)
    assert resumed.step == 4
    again = resumed.train().state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    other = school_of(parts, basis, crowd, replace(SHORT, seed=1))
    assert any(not torch.equal(tensor, whole[name]) for name, tensor in other.train().state_dict().items())
    with pytest.raises(IntegrityError, match="other photos, another model or other settings"):
        other.load(kept)
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(IntegrityError, match="cannot be resumed"):
        resumed.load(kept)


def test_a_step_is_the_same_however_the_batch_is_cut(parts: DiffusionParts, basis: CelebBasis, crowd: FaceDataset) -> None:
    schools = [school_of(parts, basis, crowd, SHORT, together=together) for together in (64, 3)]
    losses = [school.train_step() for school in schools]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, other = (school.fitted.up.weight.grad for school in schools)
    assert one is not None and other is not None and float(one.abs().max()) > 0
    torch.testing.assert_close(one, other, rtol=2e-2, atol=float(one.abs().max()) * 2e-2)


def test_two_text_encoders_are_trained_as_one(xl_folder: Path, names: Path) -> None:
    parts = with_names(load_parts(xl_folder), names)
    basis = build_basis(parts)
    school = school_of(parts, basis, some_crowd(parts), replace(SHORT, steps=2))
    assert school.train().up.out_features == basis.size == sum(2 * part.shape[1] for part in basis.components)
    moved = school.mapper.split(school.fitted(some_crowd(parts).features))
    assert len(moved) == 2 and all(bool(part.any()) for part in moved)


def test_nobody_is_taught_who_may_be_among_those_held_back() -> None:
    generator = torch.Generator().manual_seed(0)
    faces = torch.nn.functional.normalize(torch.randn(100, 512, generator=generator), dim=1)
    twice = torch.cat([faces, torch.nn.functional.normalize(faces + 0.01 * torch.randn(100, 512), dim=1)])
    taught, held = split(twice, 0)
    assert len(held) == 25 and not np.intersect1d(taught.numpy() % 100, held.numpy() % 100).size
    with pytest.raises(InvalidInputError, match=f"at least {MIN_PEOPLE}"):
        split(faces[: MIN_PEOPLE - 1], 0)
    assert sum(map(len, split(faces[:MIN_PEOPLE], 0))) == MIN_PEOPLE


# What is kept, and where.


def test_a_trained_mapper_goes_before_one_that_came_along_and_belongs_to_basis_and_face_models(
    parts: DiffusionParts, basis: CelebBasis, crowd: FaceDataset, analyser: InsightFaceAnalyser, tmp_path: Path
) -> None:
    own = replace(parts, card=replace(parts.card, mapper_file=tmp_path / "own.safetensors"))
    assert with_mapper(own, tmp_path, analyser.folder) is own
    fitted = school_of(parts, basis, crowd, SHORT).train()
    path = save_trained(fitted, basis, tmp_path, analyser.folder, {"people": "35", "steps": "6"})
    ready = with_mapper(own, tmp_path, analyser.folder)
    assert ready.card.mapper_file == path and available_init(ready, CLEAN) == "fitted"
    assert mapper_digest(own) == "" and len(mapper_digest(ready)) == 16, "results of either are told apart"
    mapper = CoefficientMapper(basis, CLEAN, torch.Generator())
    initialize(mapper, ready, basis)
    said, meant = (ask(crowd.features) for ask in (mapper.normalized, fitted))
    torch.testing.assert_close(said, CLEAN.bound * torch.tanh(meant / CLEAN.bound), rtol=1e-2, atol=1e-3)
    assert [str(one) for one in trained_for(tmp_path, basis)] == ["trained on 35 people in 6 steps"]
    others = shutil.copytree(analyser.folder, tmp_path / "others")
    (others / "recogniser.onnx").write_bytes(b"another one")
    assert with_mapper(own, tmp_path, others) is own
    changed = replace(basis, names=basis.names + 1)
    assert not trained_for(tmp_path, changed)
    with pytest.raises(IntegrityError, match="another celeb basis"):
        load_mapper(path, changed)


# The command.


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: DiffusionParts,
    analyser: InsightFaceAnalyser,
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

    def lenient(school: MapperTrainer) -> None:
        """So few steps need not help."""

    monkeypatch.setattr(MapperTrainer, "refuse_useless", lenient)
    shell = Shell(here, capsys)
    assert shell("build", "--names", shell.names).code == 0
    return shell


def train(shell: Shell, photos: Path, *more: str) -> Said:
    return shell("train", photos, "--steps", "6", *more)


def test_the_command_trains_what_learning_then_begins_with(
    shell: Shell, photos: Path, parts: DiffusionParts, analyser: InsightFaceAnalyser
) -> None:
    assert shell("show", "--json").document["mapper"] is None
    said = train(shell, photos, "--json")
    assert said.code == 0, said.err
    facts = said.document
    assert (facts["people"] + facts["held_back"], facts["steps"], facts["left_out"]) == (PEOPLE, 6, {})
    assert "people in the folder are not learned" in said.err and "--instant" in said.err
    ready = with_mapper(parts, Library().cache(), analyser.folder)
    assert str(ready.card.mapper_file) == facts["mapper"]
    basis = build_basis(parts)
    met = identity_prior(with_latest(parts, Library().cache(), basis), basis)
    assert met is not None and met.layers["code_root"].any(), "invent draws people like those in the folder"
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
    save_faces(seen, parts.table_hash, faces_file(Library().cache(), parts.table_hash, hash_of_faces(analyser.folder)))
    model_key = format_model_key(parts.family, parts.table_hash)
    whole = prepared(parts, Library(), model_key, analyser.folder)
    assert str(whole.card.mapper_file) == facts["mapper"] and framing_of(whole) == (seen.framing, "measured")


def test_stopping_loses_nothing(
    shell: Shell, photos: Path, monkeypatch: pytest.MonkeyPatch, parts: DiffusionParts
) -> None:
    refused(train(shell, photos, "--resume"), 4, "no training to resume")
    assert train(shell, photos).code == 0
    path = trained_for(Library().cache(), build_basis(parts))[0].path
    whole = read_tensors(path)
    path.unlink()
    advance: Callable[[MapperTrainer], float] = MapperTrainer.train_step

    def until_the_third(school: MapperTrainer) -> float:
        if school.step == 3:
            raise KeyboardInterrupt
        return advance(school)

    monkeypatch.setattr(MapperTrainer, "advance", until_the_third)
    stopped = train(shell, photos)
    assert stopped.code == 130 and "--resume" in stopped.err and not path.exists()
    refused(train(shell, photos), 2, "unfinished")
    monkeypatch.setattr(MapperTrainer, "advance", advance)
    assert train(shell, photos, "--resume").code == 0
    assert same(read_tensors(path), whole)
    assert not any("checkpoints" in name for name in shell.left())


def test_a_mapper_of_no_use_is_not_kept_and_the_photos_need_not_be_read_again(
    shell: Shell, photos: Path, monkeypatch: pytest.MonkeyPatch, parts: DiffusionParts
) -> None:
    refuse: Callable[[MapperTrainer], None] = MapperTrainer.refuse_useless

    def useless(school: MapperTrainer) -> None:
        raise InvalidInputError("no help", "more people")

    monkeypatch.setattr(MapperTrainer, "refuse_useless", useless)
    refused(train(shell, photos), 3, "no help")
    assert not trained_for(Library().cache(), build_basis(parts))
    monkeypatch.setattr(MapperTrainer, "refuse_useless", refuse)
    monkeypatch.setattr(InsightFaceAnalyser, "analyse", None)
    assert shell("train", photos, "--steps", "7", "--resume").code == 0
    assert trained_for(Library().cache(), build_basis(parts))[0].about["steps"] == "7"


def test_what_cannot_be_trained_is_refused_and_leaves_nothing(shell: Shell, photos: Path, tmp_path: Path) -> None:
    before = shell.left()
    few = tmp_path / "few"
    few.mkdir()
    for number in range(MIN_PEOPLE - 1):
        somebody(number).save(few / f"{number}.png")
    refused(train(shell, tmp_path / "nowhere"), 4, "is not there")
    refused(shell("train", photos, "--people", "5"), 2, "--people 5 is too few")
    refused(shell("train", photos, "--steps", "0"), 2, "--steps 0 is out of range")
    refused(train(shell, few), 3, f"{MIN_PEOPLE - 1} people are too few")
    refused(train(shell, few), 3, f"{MIN_PEOPLE - 1} people are too few")
    assert shell.left() == before
