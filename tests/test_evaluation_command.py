"""`celebctl eval`: prompt files, options that go together, CLIP, unseen people and people of a library."""

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
from celebctl.evaluation.prompts import Prompt, check_states, read_prompts
from celebctl.evaluation.session import find_photo
from celebctl.learning.config import PRESETS
from celebctl_runtime.errors import NotFoundError, UsageError


def test_prompts_come_from_files(tmp_path: Path) -> None:
    plain, rich = tmp_path / "mine.txt", tmp_path / "mine.toml"
    plain.write_text("# comment\n{} on a horse\n\n{} and {} on a horse\n")
    assert [(p.category, p.people) for p in read_prompts(plain)] == [("action", 1), ("pair", 2)]
    rich.write_text('[[prompt]]\ncategory = "style"\ntext = "a drawing of {}"\nstates = { place = "beach" }\n')
    assert read_prompts(rich) == (Prompt("style", "a drawing of {}", {"place": "beach"}),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "prompts_empty"),
        ("no placeholder", "placeholder_count"),
        ("{} {} {}", "placeholder_count"),
        ("{name} here", "placeholder_count"),
        ('[[prompt]]\ntext = "{}"\ncategory = "party"', "unknown_category"),
        ("[[prompt]]\nwords = 3", "prompts_invalid"),
        ("[[prompt", "prompts_invalid"),
    ],
)
def test_invalid_prompts_are_refused_with_a_reason(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / ("prompts.toml" if "[[" in content else "prompts.txt")
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_prompts(path)
    assert caught.value.reason == reason
    with pytest.raises(NotFoundError):
        read_prompts(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("states", "hint"), [({"worn": "wig"}, "red hat"), ({"mood": "x"}, "worn"), ({"two": "two"}, "worn")]
)
def test_unknown_attributes_are_refused(states: dict[str, str], hint: str) -> None:
    vocabulary = {"two": ["one", "two"], "worn": ["nothing", "red hat"]}
    check_states([Prompt("action", "{}", {"worn": "red hat"})], vocabulary, Path("mine.toml"))
    with pytest.raises(UsageError) as caught:
        check_states([Prompt("action", "{}", states)], vocabulary, Path("mine.toml"))
    assert caught.value.reason == "unknown_attribute" and hint in caught.value.hint


def test_set_changes_one_field() -> None:
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
def test_options_that_do_not_go_together_are_refused(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *words]) == 2
    assert why in capsys.readouterr().err


def test_a_photo_is_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "Alice.JPG").write_bytes(b"x")
    assert find_photo(tmp_path, "alice").name == "Alice.JPG"
    with pytest.raises(NotFoundError) as caught:
        find_photo(tmp_path, "bob")
    assert (caught.value.reason, caught.value.values["name"]) == ("photo_missing", "bob")


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


def test_clip_scores_from_local_weights(tmp_path: Path) -> None:
    from celebctl.evaluation.clip import ClipScorer

    scorer = ClipScorer(tiny_clip(tmp_path))
    pictures = [np.full((40, 64, 3), shade, np.uint8) for shade, _ in itertools.product((20, 200), range(2))]
    found = scorer.score(pictures, ["a portrait", "chess", "a portrait", "chess"])
    assert len(found) == 4 and all(-1.0 <= value <= 1.0 for value in found)
    assert scorer.score(pictures[:1], ["a portrait"])[0] == pytest.approx(found[0], abs=1e-5)
    with pytest.raises(NotFoundError):
        ClipScorer(tmp_path / "nowhere")


def test_unseen_people_are_evaluated_and_the_second_run_generates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import celebctl.evaluation.runner as runner

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
    summary = first["cohorts"][0]["summary"]
    assert summary["detection_rate"]["mean"] == 1.0 and summary["prompt_fidelity"]["mean"] > 0.8
    assert summary["likeness"]["count"] == 2 and summary["size_bytes"]["mean"] > 4096
    page = Path(first["page"]).read_text()
    assert page.count("data:image/webp") >= 2 * (1 + 2)

    def nothing(*_: Any) -> Any:
        raise AssertionError("generated again")

    monkeypatch.setattr(runner, "evaluate_subject", nothing)
    monkeypatch.setattr("celebctl.learning.trainer.learn_people", nothing)
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["cohorts"] == first["cohorts"]
    assert main([*words[:-2], "--seeds", "2", "-o", str(tmp_path / "out")]) == 2


def test_library_people_are_evaluated_by_their_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two people, learned for one step; scored by another face pack and by CLIP."""
    from face_fakes import write_face_models

    from celebctl.learning.prepared import prepare
    from celebctl.learning.subject import analyse_photo
    from celebctl.learning.trainer import learn_people
    from celebctl.library import Library
    from celebctl_models.checkpoints.diffusion import load_parts
    from celebctl_models.faces.analysis import OnnxFaceAnalyser
    from celebctl_models.mini.world import draw_portrait

    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    for name in ("CELEBCTL_MODEL", "CELEBCTL_FACE_MODELS"):
        monkeypatch.delenv(name, raising=False)
    parts = load_parts("mini")
    assert parts.card.faces_dir is not None
    finder, portraits = OnnxFaceAnalyser(parts.card.faces_dir), [draw_portrait(21), draw_portrait(22)]
    subjects = [analyse_photo(finder, one, name) for one, name in zip(portraits, ("ann", "tom"), strict=True)]
    config = replace(PRESETS["clean"], steps=1)
    photos = tmp_path / "photos"
    photos.mkdir()
    learned = learn_people(prepare(parts), subjects, config)
    untimed = replace(learned[1], provenance={"preset": "clean"})
    for person, portrait in zip((learned[0], untimed), portraits, strict=True):
        Library().save(person)
        portrait.save(photos / f"{person.name}.png")
    judge, clip = write_face_models(tmp_path / "judge"), tmp_path / "clip"
    clip.mkdir()
    prompts = tmp_path / "few.txt"
    prompts.write_text("{} in the snow\n{} and {} playing chess\n")
    names = [subject.name for subject in subjects]
    words = ["eval", *names, "--photos", str(photos), "--seeds", "1", "--prompts", str(prompts), "--json"]
    assert main([*words, "--judge", str(judge), "--clip", str(tiny_clip(clip)), "-o", str(tmp_path / "out")]) == 0
    document = json.loads(capsys.readouterr().out)
    (found,) = document["cohorts"]
    assert found["title"] == "people of the library" and list(found["people"]) == names
    assert "faces by judge, prompts by CLIP" in document["settings"]["scorer"]
    summary = found["summary"]
    assert "likeness" not in summary and summary["identity_assignment"]["count"] == 2
    assert summary["detection_rate"]["mean"] == 1.0 and -1.0 <= summary["identity_similarity"]["mean"] <= 1.0
    assert -1.0 <= summary["prompt_fidelity"]["mean"] < 1.0, "a CLIP score"
    assert 0 < found["people"]["ann"]["learn_seconds"] < 600 and "learn_seconds" not in found["people"]["tom"]
    assert main([*words, "-o", str(tmp_path / "own")]) == 0
    own = json.loads(capsys.readouterr().out)["cohorts"][0]["summary"]
    assert "likeness" not in own and own["identity_similarity"]["mean"] > 0.3, (
        "mini's own scorer, and photos as references"
    )
    (photos / "tom.png").unlink()
    assert main([*words, "-o", str(tmp_path / "third")]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "photo_missing"
