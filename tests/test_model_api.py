"""The Python API of a model: photos are analysed once, learning, sampling and comparing people."""

from pathlib import Path

import numpy as np
import pytest
from PIL.Image import Image

from celebctl import Library, Model, UsageError, mix
from celebctl.learning.subject import Subject
from celebctl_models.faces.analysis import Face, OnnxFaceAnalyser
from celebctl_models.mini.world import draw_portrait
from celebctl_runtime.errors import IntegrityError


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model.load("mini", library=Library(tmp_path / "home"))


def test_a_file_an_image_and_a_subject_give_the_same_identity(model: Model, tmp_path: Path) -> None:
    image = draw_portrait(7, 256)
    image.save(tmp_path / "alice.png")
    subject = model.analyse(image, name="alice")
    people = [
        model.learn(tmp_path / "alice.png", method="instant"),
        model.learn(image, name="alice", method="instant"),
        model.learn(subject, method="instant"),
    ]
    assert {person.name for person in people} == {"alice"} and len({person.digest for person in people}) == 1
    np.testing.assert_array_equal(people[0].embeddings[0], model.basis.embed(people[0].coefficients)[0])
    assert people[0].provenance["consent"] == "not stated"


def test_each_photo_is_analysed_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    analysed: list[int] = []
    analyse = OnnxFaceAnalyser.analyse

    def count(own: OnnxFaceAnalyser, photo: Image) -> list[Face]:
        analysed.append(1)
        return analyse(own, photo)

    monkeypatch.setattr(OnnxFaceAnalyser, "analyse", count)
    people = model.learn([draw_portrait(1, 256), draw_portrait(2, 256)], names=["ann", "bob"], method="instant")
    assert [person.name for person in people] == ["ann", "bob"] and len(analysed) == 2


def test_people_need_names_of_their_own(model: Model) -> None:
    image = draw_portrait(7, 256)
    subject = Subject("ann", image, model.analyse(image).face)
    for photos, names in (([subject, subject], None), ([subject], ["ann", "bob"])):
        with pytest.raises(UsageError):
            model.learn(photos, names=names, method="instant")
    with pytest.raises(UsageError) as error:
        model.learn(image, method="instant")
    assert error.value.reason == "names_not_unique"


def test_samples_are_determined_by_their_seed_and_are_their_own_nearest(model: Model) -> None:
    ann, again, bob = (model.sample(name, seed) for name, seed in (("ann", 1), ("ann", 1), ("bob", 2)))
    assert ann.digest == again.digest != bob.digest
    first = model.nearest(mix([ann, bob], 0.1, name="carol"), 1, known=[ann, bob])[0]
    assert (first.name, first.celebrity) == ("ann", False)
    with pytest.raises(IntegrityError) as error:
        model.nearest(type(ann)(ann.name, ann.coefficients, ann.embeddings, ann.basis_hash, "sdxl", ann.table_hash))
    assert error.value.reason == "identity_of_other_model"
