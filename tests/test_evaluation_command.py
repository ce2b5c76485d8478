"""`celebctl eval`: prompts from files, words that go together, CLIP, the command on strangers and on a library."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("torch")

from celebctl.cli import main
from celebctl.cli.evaluate import changed
from celebctl.cli.evaluation_session import photo_of
from celebctl.evaluation.prompts import Prompt, check_states, read_prompts
from celebctl.learning.config import PRESETS
from celebctl_runtime.errors import NotFoundError, UsageError


def test_prompts_come_from_files(tmp_path: Path) -> None:
    plain, rich = tmp_path / "mine.txt", tmp_path / "mine.toml"
    plain.write_text("# comment\n{} on a horse\n\n{} and {} on a horse\n")
    assert [(p.category, p.people) for p in read_prompts(plain)] == [("action", 1), ("pair", 2)]
    rich.write_text('[[prompt]]\ncategory = "style"\ntext = "a drawing of {}"\nstates = { place = "beach" }\n')
    assert read_prompts(rich) == (Prompt("style", "a drawing of {}", {"place": "beach"}),)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "no prompt"),
        ("nobody here", "0 places"),
        ("{} {} {}", "3 places"),
        ("{name} here", "0 places"),
        ('[[prompt]]\ntext = "{}"\ncategory = "party"', "unknown category"),
        ("[[prompt]]\nwords = 3", "not a list"),
        ("[[prompt", "not a list"),
    ],
)
def test_prompts_that_will_not_do_are_refused_with_the_reason(content: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / ("prompts.toml" if "[[" in content else "prompts.txt")
    path.write_text(content)
    with pytest.raises(UsageError, match=why):
        read_prompts(path)
    with pytest.raises(NotFoundError):
        read_prompts(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("states", "hint"), [({"worn": "wig"}, "red hat"), ({"mood": "x"}, "worn"), ({"two": "two"}, "worn")]
)
def test_what_no_reader_can_confirm_is_refused(states: dict[str, str], hint: str) -> None:
    vocabulary = {"two": ["one", "two"], "worn": ["nothing", "red hat"]}
    check_states([Prompt("action", "{}", {"worn": "red hat"})], vocabulary, Path("mine.toml"))
    with pytest.raises(UsageError) as caught:
        check_states([Prompt("action", "{}", states)], vocabulary, Path("mine.toml"))
    assert hint in caught.value.hint


def test_one_value_of_learning_is_changed_by_name() -> None:
    clean = PRESETS["clean"]
    assert changed(clean, "steps=7").steps == 7 and changed(clean, "anneal=false").anneal is False
    assert changed(clean, "scale=unit").scale == "unit" and changed(clean, "bound=1.5").bound == 1.5
    for wrong in ("steps", "stepz=3", "steps=many", "scale=huge", "anneal=perhaps", "preset=other"):
        with pytest.raises(UsageError, match="--set"):
            changed(clean, wrong)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["alice"], "--photos"),
        (["--photos", "."], "names"),
        (["alice", "--photos", ".", "--preset", "faithful"], "--preset"),
        (["alice", "alice", "--photos", "."], "twice"),
    ],
)
def test_words_that_do_not_go_together_are_refused(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *words]) == 2
    assert why in capsys.readouterr().err


def test_the_photo_of_somebody_is_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "Alice.JPG").write_bytes(b"x")
    assert photo_of(tmp_path, "alice").name == "Alice.JPG"
    with pytest.raises(NotFoundError, match="bob"):
        photo_of(tmp_path, "bob")


def tiny_clip(folder: Path) -> Path:
    """A random CLIP model."""
    from conftest import WORDS, build_tokenizer
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    tokenizer = build_tokenizer(WORDS)
    tokenizer.save_pretrained(str(folder))
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ids: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text, vision = (
        CLIPTextConfig(vocab_size=len(tokenizer), **small, **ids),
        {"image_size": 32, "patch_size": 8, **small},
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=8)
    cast(Any, CLIPModel(config)).save_pretrained(str(folder))
    return folder


def test_clip_judges_by_weights_on_this_machine(tmp_path: Path) -> None:
    from celebctl.evaluation.clip import ClipScorer

    judge = ClipScorer(tiny_clip(tmp_path))
    pictures = [np.full((40, 64, 3), shade, np.uint8) for shade, _ in itertools.product((20, 200), range(2))]
    found = judge.agree(pictures, ["a portrait", "chess", "a portrait", "chess"])
    assert len(found) == 4 and all(-1.0 <= value <= 1.0 for value in found)
    assert judge.agree(pictures[:1], ["a portrait"])[0] == pytest.approx(found[0], abs=1e-5)
    with pytest.raises(NotFoundError):
        ClipScorer(tmp_path / "nowhere")


def test_the_command_measures_strangers_and_the_second_time_draws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import celebctl.evaluation.runner as session

    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CELEBCTL_MODEL", raising=False)
    prompts = tmp_path / "few.toml"
    prompts.write_text(
        '[[prompt]]\ntext = "{} in the snow"\nstates = { place = "snow" }\n'
        '[[prompt]]\ncategory = "pair"\ntext = "{} and {} playing chess"\nstates = { act = "chess" }\n'
    )
    words = ["eval", "--people", "2", "--seeds", "1", "--set", "steps=4", "--no-celebrities", "--json"]
    words += ["--prompts", str(prompts), "-o", str(tmp_path / "out")]
    assert main(words) == 0
    first = json.loads(capsys.readouterr().out)
    summary = first["casts"][0]["summary"]
    assert summary["detected"]["mean"] == 1.0 and summary["prompt_fidelity"]["mean"] > 0.8
    assert summary["likeness"]["people"] == 2 and summary["bytes"]["mean"] > 4096
    page = Path(first["page"]).read_text()
    assert page.count("data:image/webp") >= 2 * (1 + 2)

    def nothing(*_: Any) -> Any:
        raise AssertionError("drawn again")

    monkeypatch.setattr(session, "evaluate", nothing)
    monkeypatch.setattr("celebctl.learning.trainer.learn_people", nothing)
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["casts"] == first["casts"]
    assert main([*words[:-2], "--seeds", "2", "-o", str(tmp_path / "out")]) == 2


def test_the_command_measures_people_of_the_library_by_their_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two people, learned for one step; judged by a face pack of their own and by CLIP."""
    from face_fakes import write_face_models

    from celebctl.learning.prepared import prepare
    from celebctl.learning.subject import analyse_photo
    from celebctl.learning.trainer import learn_people
    from celebctl.library import Library
    from celebctl_models.checkpoints.diffusion import load_parts
    from celebctl_models.faces.analysis import InsightFaceAnalyser
    from celebctl_models.mini.world import draw_portrait

    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    for name in ("CELEBCTL_MODEL", "CELEBCTL_FACE_MODELS"):
        monkeypatch.delenv(name, raising=False)
    parts = load_parts("mini")
    assert parts.card.faces_dir is not None
    finder, portraits, names = (
        InsightFaceAnalyser(parts.card.faces_dir),
        [draw_portrait(21), draw_portrait(22)],
        ["ann", "tom"],
    )
    config = replace(PRESETS["clean"], steps=1)
    photos = tmp_path / "photos"
    photos.mkdir()
    subjects = [analyse_photo(finder, portrait, name) for portrait, name in zip(portraits, names, strict=True)]
    learned = learn_people(prepare(parts), subjects, config)
    old = replace(learned[1], provenance={"preset": "clean"})  # as people were kept before learning was timed
    for person, portrait in zip((learned[0], old), portraits, strict=True):
        Library().save(person)
        portrait.save(photos / f"{person.name}.png")
    judge, clip = write_face_models(tmp_path / "judge"), tmp_path / "clip"
    clip.mkdir()
    prompts = tmp_path / "few.txt"
    prompts.write_text("{} in the snow\n{} and {} playing chess\n")
    words = ["eval", *names, "--photos", str(photos), "--seeds", "1", "--prompts", str(prompts), "--json"]
    assert main([*words, "--judge", str(judge), "--clip", str(tiny_clip(clip)), "-o", str(tmp_path / "out")]) == 0
    document = json.loads(capsys.readouterr().out)
    (found,) = document["casts"]
    assert found["title"] == "people of the library" and list(found["people"]) == names
    assert "faces by judge, prompts by CLIP" in document["settings"]["judges"]
    summary = found["summary"]
    assert "likeness" not in summary and summary["identity_assignment"]["people"] == 2
    assert summary["detected"]["mean"] == 1.0 and -1.0 <= summary["identity"]["mean"] <= 1.0
    assert -1.0 <= summary["prompt_fidelity"]["mean"] < 1.0, "a cosine of CLIP's, and no share of words"
    assert 0 < found["people"]["ann"]["seconds"] < 600 and "seconds" not in found["people"]["tom"]
    assert main([*words, "-o", str(tmp_path / "own")]) == 0
    own = json.loads(capsys.readouterr().out)["casts"][0]["summary"]
    assert "likeness" not in own and own["identity"]["mean"] > 0.3, "mini's own judge, and photos for the truth"
    (photos / "tom.png").unlink()
    assert main([*words, "-o", str(tmp_path / "third")]) == 4
    assert "there is no photo of tom" in capsys.readouterr().err
