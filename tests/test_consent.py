"""Who is learned: likely minors are refused before anything is done, and what was said about consent is kept."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from console_fakes import CommandLine, refused
from face_fakes import photo_of, write_face_models
from PIL import Image

from celebctl.consent import ADULT, consent_record, refuse_minor, statement_date
from celebctl.learning.subject import analyse_photo
from celebctl.model import Model
from celebctl.public_figures import check_public_figure, read_references
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.world import draw_portrait
from celebctl_runtime.certificate import local_key
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


def test_the_terminal_asks_once_for_consent(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("sure\nself\n\nsynthetic\n"))
    monkeypatch.setattr("celebctl.cli.console.CliConsole.interactive", property(lambda console: not console.quiet))
    words = ("learn", console.photo(), console.photo("b.png"), "--name", "ann", "--name", "bob")
    result = console(*words)
    assert result.code == 0 and "ann and bob" in result.err and "'sure'" in result.err
    assert {console.library.load(name).provenance["consent"][:5] for name in ("ann", "bob")} == {"self:"}
    result = console("learn", console.photo("c.png"), "--name", "carol")
    assert "nothing was stated" in result.err
    assert console.library.load("carol").provenance["consent"] == "not stated"
    result = console("learn", console.photo("d.png"), "--name", "dora", "--quiet")
    assert result.code == 0 and console.library.load("dora").provenance["consent"] == "not stated", "it does not ask"
    console("learn", console.photo("e.png"), "--name", "emma", "--consent", "self")
    console("learn", console.photo("f.png"), "--name", "fred")
    assert console.library.load("fred").provenance["consent"].startswith("synthetic"), "emma's was not asked for"


def test_a_date_stands_beside_the_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    learned = Model.load("mini").learn(draw_portrait(7, 256), name="alice", method="instant", consent="synthetic")
    assert learned.provenance["consent_date"] == "1970-01-02"


def test_a_date_out_of_range_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "99999999999999")
    assert statement_date()[:2] == "20"


# Photos that must not be trained on.


def forbidding(content: bytes, use: str, key_file: Path) -> bytes:
    """A PNG with content credentials that say whether it may be trained on."""
    c2pa: Any = pytest.importorskip("c2pa")
    key, signed = local_key(key_file), io.BytesIO()
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(key.algorithm.encode(), key.chain, key.private_key, None))
    entries = {"entries": {"cawg.ai_generative_training": {"use": use}}}
    source = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
    actions = {"actions": [{"action": "c2pa.created", "digitalSourceType": source}]}
    assertions = [{"label": "c2pa.actions.v2", "data": actions}, {"label": "cawg.training-mining", "data": entries}]
    manifest = {"claim_generator_info": [{"name": "camera"}], "assertions": assertions}
    c2pa.Builder(manifest).sign(signer, "image/png", io.BytesIO(content), signed)
    return signed.getvalue()


def test_a_photo_that_forbids_training_needs_force(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Path(console.photo())
    plain = photo.read_bytes()
    photo.write_bytes(forbidding(plain, "notAllowed", console.folder / "key.pem"))
    refused(console("learn", photo), 7, str(photo), "--force")
    refused(console("check", photo, "--model", "mini"), 7, str(photo), "--force")
    assert not console.installation.calls
    assert console("learn", photo, "--force").code == 0
    subject = Model.load("toy", face_models=console.folder.parent / "faces").analyse(photo, force=True)
    assert subject.remark == "training_forbidden", "it is recorded"
    photo.write_bytes(forbidding(plain, "allowed", console.folder / "key.pem"))
    assert console("learn", photo, "--name", "bob").code == 0
    photo.write_bytes(forbidding(plain, "notAllowed", console.folder / "key.pem"))
    monkeypatch.setitem(sys.modules, "c2pa", None)
    result = console("learn", photo, "--name", "carol")
    assert result.code == 0 and result.err.count("cannot be read without c2pa-python") == 1


# Public figures.


def test_a_public_figure_needs_force(console: CommandLine, tmp_path: Path) -> None:
    models = write_face_models(tmp_path / "strict", settings='{"similar": 0.85}')
    Path("figures/more").mkdir(parents=True)
    console.photo("figures/jane-doe.png")
    console.photo("figures/more/john-roe.jpg", (2, 2))
    Image.new("RGB", (128, 128)).save("figures/blank.png")
    Path("figures/damaged.jpg").write_bytes(b"no photo")
    words = ("learn", console.photo(), "--face-models", models, "--public-figures", "figures")
    result = console(*words)
    refused(result, 7, "jane-doe", "--force")
    assert result.err.count("skipped") == 2 and not console.installation.calls
    result = console(*words, "--force")
    assert result.code == 0 and "jane-doe" in result.err
    assert console("learn", console.photo("b.png", (3, 1)), "--name", "bob", *words[2:]).code == 0
    Path("empty").mkdir()
    refused(console(*words[:-1], "empty"), 4, "empty", "--public-figures")


def test_a_forced_public_figure_is_recorded(tmp_path: Path) -> None:
    analyser = OnnxFaceAnalyser(write_face_models(tmp_path / "faces"))
    photo_of((1, 1)).save(tmp_path / "jane-doe.png")
    references = read_references(tmp_path, analyser)
    subject = analyse_photo(analyser, photo_of((1, 1)), "jane")
    with pytest.raises(PolicyError) as raised:
        check_public_figure(subject, references, 0.6, force=False)
    assert raised.value.reason == "public_figure" and raised.value.values["cosine"] == pytest.approx(1, abs=1e-3)
    assert check_public_figure(subject, references, 0.6, force=True).remark.startswith("public_figure: jane-doe")
    assert check_public_figure(subject, references, 1.1, force=False) is subject
