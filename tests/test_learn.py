"""Learning on the bundled model: determinism, resume, several people, errors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save

from celebctl.basis.basis import CelebBasis
from celebctl.basis.celebrities import CelebrityFaces, save_faces
from celebctl.learning.captions import encode_templates
from celebctl.learning.config import CLEAN, PRESETS, LearnConfig
from celebctl.learning.contact_sheet import contact_sheet
from celebctl.learning.initialization import available_init, with_model_framing
from celebctl.learning.instant import require_mapper
from celebctl.learning.mapper import CoefficientMapper
from celebctl.learning.prepared import ModelAssets, PreparedModel, prepare
from celebctl.learning.sampling import draw, rows_of
from celebctl.learning.subject import Subject, analyse_photo
from celebctl.learning.trainer import learn_people
from celebctl.learning.training import TrainerOptions
from celebctl.learning.views import FFHQ, align_ffhq, make_views, similarity
from celebctl.mapper_training.mapper_store import load_mapper, save_mapper
from celebctl.mapper_training.pretraining import VALIDATION_SIZE, AttributeDataset, PretrainTrainer
from celebctl_models.checkpoints.diffusion import DiffusionParts, load_parts
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.world import draw_portrait
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.identity import Identity
from celebctl_runtime.progress import Progress

Trainable = PreparedModel[DiffusionParts]
SHORT = replace(PRESETS["clean"], steps=6, views=2, seed=4)


@pytest.fixture(scope="module")
def parts() -> DiffusionParts:
    return load_parts("mini")


@pytest.fixture(scope="module")
def analyser(parts: DiffusionParts) -> OnnxFaceAnalyser:
    assert parts.card.faces_dir is not None
    return OnnxFaceAnalyser(parts.card.faces_dir)


@pytest.fixture(scope="module")
def model(parts: DiffusionParts) -> PreparedModel[DiffusionParts]:
    return prepare(parts)


@pytest.fixture(scope="module")
def basis(model: PreparedModel[DiffusionParts]) -> CelebBasis:
    return model.basis


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [draw_portrait(seed, 256) for seed in (21, 22)]


@pytest.fixture(scope="module")
def subjects(analyser: OnnxFaceAnalyser, photos: list[Image.Image]) -> list[Subject]:
    return [analyse_photo(analyser, photo, name) for photo, name in zip(photos, ("alice", "bob"), strict=True)]


def test_the_bundled_basis_has_literally_1024_coefficients(basis: CelebBasis) -> None:
    assert basis.size == 1024
    assert basis.names == 691
    assert (basis.spread[0] > 0).all(), "no null-space directions"


def test_faithful_differs_from_clean_in_the_config_alone() -> None:
    clean, faithful = PRESETS["clean"], PRESETS["faithful"]
    assert type(clean) is type(faithful) is LearnConfig
    assert (faithful.scale, faithful.init, faithful.background_weight, faithful.steps * faithful.views) == (
        "unit",
        "random",
        1.0,
        800,
    )


def test_same_seed_same_numbers(model: Trainable, subjects: list[Subject]) -> None:
    one, again = (learn_people(model, subjects[:1], SHORT)[0] for _ in range(2))
    assert one.digest == again.digest
    other = learn_people(model, subjects[:1], replace(SHORT, seed=5))[0]
    assert other.digest != one.digest


def test_an_interrupted_run_resumes_to_the_very_same_numbers(
    model: Trainable, subjects: list[Subject], analyser: OnnxFaceAnalyser, tmp_path: Path
) -> None:
    whole = learn_people(model, subjects, SHORT, analyser)
    kept = tmp_path / "checkpoint.pt"
    resume = TrainerOptions(checkpoint=kept, resume=True)

    def stop(now: Progress) -> None:
        if now.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_people(model, subjects, SHORT, analyser, TrainerOptions(checkpoint=kept), stop)
    resumed = learn_people(model, subjects, SHORT, analyser, resume)
    assert [p.digest for p in resumed] == [p.digest for p in whole]
    with pytest.raises(IntegrityError) as error:
        learn_people(model, subjects, replace(SHORT, steps=7), analyser, resume)
    assert error.value.reason == "checkpoint_mismatch"
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(IntegrityError) as error:
        learn_people(model, subjects, SHORT, analyser, resume)
    assert error.value.reason == "checkpoint_damaged"
    with pytest.raises(NotFoundError):
        learn_people(model, subjects, SHORT, analyser, TrainerOptions(checkpoint=tmp_path / "none", resume=True))


def test_people_learned_together_are_different_people_and_carry_their_provenance(
    model: Trainable, subjects: list[Subject], analyser: OnnxFaceAnalyser, tmp_path: Path
) -> None:
    steps: list[Progress] = []
    alice, bob = learn_people(model, subjects, SHORT, analyser, progress=steps.append)
    assert alice.coefficients[0].shape == (2, 512)
    np.testing.assert_allclose(alice.embeddings[0], model.basis.embed(alice.coefficients)[0], atol=1e-6)
    assert np.abs(alice.coefficients[0] - bob.coefficients[0]).max() > 1e-3
    assert [s.step for s in steps] == list(range(1, 7))
    assert -1.0 <= steps[-1].metrics["likeness"] <= 1.0 and steps[-1].metrics["eta_seconds"] == 0
    assert alice.provenance["preset"] == "clean" and alice.provenance["learned_together"] == "2"
    alice.save(tmp_path / "alice.safetensors")
    assert (tmp_path / "alice.safetensors").stat().st_size < 16_000
    assert Identity.load(tmp_path / "alice.safetensors") == alice


def test_the_faithful_preset_lands_one_unit_from_the_mean(parts: DiffusionParts, subjects: list[Subject]) -> None:
    faithful = prepare(parts, release=True)
    release, config = faithful.basis, replace(PRESETS["faithful"], steps=3)
    person = learn_people(faithful, subjects[:1], config)[0]
    distance = np.linalg.norm(person.embeddings[0] - release.mean[0], axis=1)
    assert (distance > 0.9).all() and (distance < 1.0 + 1e-4).all(), "an average of unit vectors"
    assert (release.radius[0] < 0.6).all(), "far outside the celebrities, as METHOD section 8 item 2 says"


def test_a_photo_without_a_face_is_refused(analyser: OnnxFaceAnalyser) -> None:
    with pytest.raises(InvalidInputError, match="the photo of alice"):
        analyse_photo(analyser, Image.new("RGB", (200, 200), "grey"), "alice")


def test_views_keep_the_face_in_sight_and_weigh_it(
    model: Trainable, subjects: list[Subject], photos: list[Image.Image]
) -> None:
    face = subjects[0].face
    here, faithful = (with_model_framing(PRESETS[name], model) for name in ("clean", "faithful"))
    for config in (here, faithful):
        views = make_views(photos[0], face, 64, 12, config, torch.Generator().manual_seed(0))
        assert views.pixels.shape == (12, 3, 64, 64) and views.weight.shape == (12, 1, 64, 64)
        assert float(views.pixels.abs().max()) <= 1.0
    clean = make_views(photos[0], face, 64, 12, here, torch.Generator().manual_seed(0))
    share = (clean.weight > 0.9).float().mean((1, 2, 3))
    assert (share > 0.05).all() and (share < 0.75).all()


def test_alignment_brings_landmarks_to_the_template(photos: list[Image.Image], analyser: OnnxFaceAnalyser) -> None:
    points = analyser.analyse(photos[0])[0].landmarks
    a, b, tx, ty = similarity(points.astype(np.float64), FFHQ)
    moved = points @ np.array([[a, b], [-b, a]]) + [tx, ty]
    assert np.linalg.norm(moved - FFHQ, axis=1).mean() < 60  # of 512; the drawn faces are no photographs
    assert align_ffhq(photos[0], points, 128).size == (128, 128)


def test_templates_hold_two_places_side_by_side_and_one_end(parts: DiffusionParts) -> None:
    for kind in ("photo", "imagenet"):
        captions = encode_templates(parts.tokenizers[0], 77, kind)
        assert captions.ids.shape[1] == 77
        assert (captions.positions[:, 1] == captions.positions[:, 0] + 1).all()
        end = parts.tokenizers[0].eos_token_id
        first_end = (captions.ids == end).long().argmax(1)
        assert (first_end > captions.positions[:, 1]).all()


def test_the_fitted_start_belongs_to_one_basis_and_survives_the_disk(
    parts: DiffusionParts, basis: CelebBasis, tmp_path: Path
) -> None:
    assert parts.card.mapper_file is not None
    fitted = load_mapper(parts.card.mapper_file, basis)
    feature = torch.nn.functional.normalize(torch.randn(2, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    mapper = CoefficientMapper(basis, CLEAN, torch.Generator())
    mapper.init_from_pretrained(fitted)
    bounded = CLEAN.bound * torch.tanh(fitted(feature) / CLEAN.bound)
    assert torch.allclose(mapper.normalized(feature), bounded, atol=1e-6)
    trained = [name for name, parameter in mapper.named_parameters() if parameter.requires_grad]
    assert trained == ["linear.weight", "linear.bias"], "learning a person leaves the model's mapper alone"
    save_mapper(fitted, basis, tmp_path / "mapper.safetensors")
    assert torch.equal(load_mapper(tmp_path / "mapper.safetensors", basis)(feature), fitted(feature))
    with pytest.raises(IntegrityError):
        load_mapper(parts.card.mapper_file, replace(basis, names=basis.names + 1))


def test_no_steps_give_the_pretrained_mapper_s_output(
    parts: DiffusionParts, model: Trainable, basis: CelebBasis, subjects: list[Subject]
) -> None:
    instant = learn_people(model, subjects[:1], replace(SHORT, steps=0))[0]
    mapper = CoefficientMapper(basis, CLEAN, torch.Generator())
    assert parts.card.mapper_file is not None
    mapper.init_from_pretrained(load_mapper(parts.card.mapper_file, basis))
    with torch.no_grad():
        answer = mapper(torch.as_tensor(subjects[0].face.feature)[None])
    np.testing.assert_allclose(np.concatenate([c.ravel() for c in instant.coefficients]), answer[0].numpy(), atol=1e-6)
    assert instant.provenance["init"] == "fitted" and instant.provenance["steps"] == "0"
    require_mapper(model, replace(CLEAN, steps=0))
    with pytest.raises(UsageError) as error:
        require_mapper(replace(model, assets=replace(model.assets, mapper=None)), replace(CLEAN, steps=0))
    assert error.value.reason == "no_mapper"


def test_pretraining_generalises_to_held_out_people(parts: DiffusionParts, basis: CelebBasis, tmp_path: Path) -> None:
    """For an attribute that one number of the text encoder's output and the feature both determine."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((VALIDATION_SIZE + 400, 512)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    looks = (features[:, :1] * 512**0.5).astype(np.float32)
    weight = rng.standard_normal((1, parts.token_table().shape[1])).astype(np.float32) / 8
    arrays = {"features": features, "looks": looks, "weight": weight, "bias": np.zeros(1, np.float32)}
    metadata = {"captions": "a photo of {}\n{} and {} playing chess\nnobody"}
    (tmp_path / "lessons.safetensors").write_bytes(save(arrays, metadata))
    trainer = PretrainTrainer(parts, basis, AttributeDataset.load(tmp_path / "lessons.safetensors"), batch_size=16)
    assert len(trainer.ids) == 2 and bool((trainer.positions[0, 2:] == -1).all())
    before, events = trainer.validate(), list[Progress]()
    trainer.train(60, events.append, classifier_steps=300)
    assert len(events) == 60 and trainer.validate() < 0.9 * before
    with pytest.raises(IntegrityError):
        AttributeDataset.load(parts.card.mapper_file or tmp_path)


def test_celebrities_measured_faces_can_be_the_start(parts: DiffusionParts, basis: CelebBasis, tmp_path: Path) -> None:
    assert parts.card.names_file is not None
    names = parts.card.names_file.read_text().split("\n")[:40]
    faces = np.random.default_rng(0).standard_normal((40, 512)).astype(np.float32)
    save_faces(CelebrityFaces(tuple(names), faces), parts.table_hash, tmp_path / "faces.safetensors")
    measured = replace(parts, card=replace(parts.card, features_file=tmp_path / "faces.safetensors"))
    own = prepare(measured)
    features, units = own.celebrity_pairs()
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-3)
    assert features.shape == (40, 512) and units.shape == (40, basis.size)
    assert abs(float((units**2).mean()) - 1.0) < 0.3, "units are celebrity standard deviations"
    assert available_init(own.assets, replace(CLEAN, init="celebrities")) == "celebrities"
    assert available_init(ModelAssets.of(parts), replace(CLEAN, init="celebrities")) == "average"


def test_images_do_not_depend_on_the_batch(parts: DiffusionParts, model: Trainable, subjects: list[Subject]) -> None:
    alice = learn_people(model, subjects[:1], SHORT)[0]
    rows = {"alice": rows_of(alice)}
    prompts = ["a photo of <alice>", "<alice> on the beach"]
    together = draw(parts, prompts, [1, 2], rows, steps=3, fast=False)
    alone = draw(parts, prompts[1:], [2], rows, steps=3, fast=False)
    assert int(np.abs(together[1].astype(int) - alone[0].astype(int)).max()) <= 1


def test_a_step_is_the_same_however_few_views_the_network_sees_at_once(
    model: Trainable, subjects: list[Subject]
) -> None:
    whole, cut = (
        learn_people(model, subjects, replace(SHORT, steps=2), options=TrainerOptions(micro_batch_size=size))
        for size in (64, 1)
    )
    for one, other in zip(whole, cut, strict=True):
        moved = np.abs(one.coefficients[0] - other.coefficients[0]).max()
        assert moved < 0.05 * np.abs(one.coefficients[0]).max()


def test_the_contact_sheet_has_a_row_per_person_and_one_of_pairs(
    parts: DiffusionParts, model: Trainable, subjects: list[Subject], photos: list[Image.Image]
) -> None:
    people = learn_people(model, subjects, replace(SHORT, steps=2))
    sheet = contact_sheet(parts, people, photos)
    assert sheet.width > 7 * 192 and sheet.height > 3 * 192
