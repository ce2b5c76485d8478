"""Who is learned: likely minors are refused before anything is done, and what was said about consent is kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from console_fakes import CommandLine, refused
from face_fakes import photo_of, write_face_models
from PIL import Image

from celebctl.consent import ADULT, consent_record, refuse_minor
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_runtime.errors import NotFoundError, PolicyError, UsageError


def photo_at(age: int, *cells: tuple[int, int]) -> Image.Image:
    """A photo whose "faces" stand in the blue that the double takes for this age."""
    picture = photo_of(*cells)
    blue = picture.getchannel("B").point(lambda value: round(2.55 * age) if value else 0)
    return Image.merge("RGB", (picture.getchannel("R"), picture.getchannel("G"), blue))


def ages_in(folder: Path, picture: Image.Image) -> list[int | None]:
    return [face.age for face in OnnxFaceAnalyser(folder).analyse(picture)]


def test_ages_are_estimated_around_each_face_where_the_models_can(tmp_path: Path) -> None:
    wide = '{"det_size": [512, 128]}'
    folder = write_face_models(tmp_path / "ages", ages=True, settings=wide)
    both = Image.new("RGB", (512, 128))
    both.paste(photo_at(20, (1, 1)), (0, 0))
    both.paste(photo_at(90, (2, 1)), (384, 0))
    young, old = ages_in(folder, both)
    assert young is not None and old is not None and young < 25 and old > 50
    (large,) = ages_in(folder, photo_at(90, (1, 1)).resize((4096, 4096), Image.Resampling.NEAREST))
    (small,) = ages_in(folder, photo_at(90, (1, 1)))
    assert small is not None and large is not None and abs(small - large) <= 3, "whatever the size of the photo"
    assert ages_in(write_face_models(tmp_path / "plain", settings=wide), both) == [None, None]


def test_likely_minors_are_refused_and_nothing_is_learned(console: CommandLine, tmp_path: Path) -> None:
    models = write_face_models(tmp_path / "ages", ages=True)
    photo_at(10, (1, 1)).save("child.png")
    photo_at(90, (1, 1)).save("adult.png")
    for command in (("learn", "child.png", "--name", "carol"), ("check", "child.png", "--model", "mini")):
        refused(console(*command, "--face-models", models), 7, "does not learn minors", "another photo")
    assert not console.installation.calls and not console.library.names()
    together = console("learn", "adult.png", "child.png", "--name", "ann", "--name", "carol", "--face-models", models)
    assert together.code == 7 and not console.library.names(), "one child in the company is enough"
    assert console("learn", "adult.png", "--name", "ann", "--face-models", models).code == 0


def test_the_line_is_drawn_at_the_age_it_says(tmp_path: Path) -> None:
    (face,) = OnnxFaceAnalyser(write_face_models(tmp_path)).analyse(photo_of((1, 1)))
    refuse_minor(face, "unknown.png")
    for age in (ADULT - 1, ADULT):
        object.__setattr__(face, "age", age)
        if age >= ADULT:
            refuse_minor(face, "adult.png")
            continue
        with pytest.raises(PolicyError, match=f"about {age} years"):
            refuse_minor(face, "child.png")


def test_consent_is_kept_with_the_person(console: CommandLine) -> None:
    result = console("learn", console.photo(), "--name", "alice", "--json")
    assert result.document["people"][0]["provenance"]["consent"] == "not stated"
    paper = Path("agreed.pdf")
    paper.write_bytes(b"I, Bob, agree.")
    console("learn", console.photo("b.png"), "--name", "bob", "--consent", f"signed:{paper}")
    digest = hashlib.sha256(b"I, Bob, agree.").hexdigest()
    assert console.library.load("bob").provenance["consent"] == f"signed: sha256 {digest}"
    assert digest in console("show", "bob").out
    refused(console("learn", console.photo("c.png"), "--name", "carol", "--consent", "sure"), 2, "sure", "synthetic")
    refused(console("learn", console.photo("c.png"), "--name", "carol", "--consent", "signed:gone.pdf"), 4, "gone.pdf")
    assert "carol" not in console.library.names()


def test_words_of_consent() -> None:
    assert consent_record("self").startswith("self") and consent_record("synthetic").startswith("synthetic")
    for nonsense in ("", "signed", "signed:", "yes"):
        with pytest.raises(UsageError):
            consent_record(nonsense)
    with pytest.raises(NotFoundError):
        consent_record("signed:.")
