"""Clarity: margins of what was asked for, methods of earlier runs, true pictures beside everybody's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")


def test_clarity_is_the_margin_of_what_was_asked_for(bench: Any) -> None:
    from celebctl.evaluation.prompts import Prompt
    from celebctl.evaluation.results import Sample, SubjectRecord
    from celebctl.evaluation.runner import thumbnail
    from celebctl.evaluation.scorers import ImageScores

    class Jury:
        def __init__(self) -> None:
            self.vocabulary = {"two": ["one", "two"], "place": ["beach", "snow", "city"]}

        def scores(self, pictures: Any) -> Any:
            assert all(picture.shape == (16, 16, 3) for picture in pictures)
            return [{"two": np.array([3.0, 1.0]), "place": np.array([0.5, 4.0, 1.0])} for _ in pictures]

    clarity, seen = bench["clarity"], ImageScores(np.zeros((0, 1), np.float32), np.zeros((0, 3), np.float32))
    picture = thumbnail(np.zeros((16, 16, 3), np.uint8))
    prompts = [Prompt("action", "{} in the snow", {"place": "snow"}), Prompt("pair", "{} and {} on the beach")]
    record = SubjectRecord("p", tuple(Sample(i, 0, seen, picture) for i in (0, 0, 1)), ())
    assert clarity.clarity(Jury(), record, prompts) == pytest.approx(((2 + 3) / 2 * 2 - 2) / 3)


def test_clarity_of_methods_measured_before_is_kept(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method whose pictures are gone keeps its figures if the same people were drawn; other people are left out."""
    from celebctl_models.checkpoints.diffusion import load_parts

    module, out, weights = bench["clarity"], tmp_path / "clarity.json", load_parts("mini").weights_digest
    rows = {"ti2": {"p1": 3.0, "p2": 5.0}, "custom": {"p7": 1.0}}
    before = {name: {"title": name, "people": people} for name, people in rows.items()}
    out.write_text(json.dumps({"model": "mini", "weights": weights, "methods": before}))
    (tmp_path / "work" / "clean").mkdir(parents=True)

    def people_of(jury: Any, folder: Path) -> dict[str, float]:
        return {"p1": 4.5, "p2": 6.0}

    def true_people(panel: Any, folder: Path) -> dict[str, float]:
        return {"p1": 5.0, "p2": 6.5}

    monkeypatch.setattr(module, "people_of", people_of)
    monkeypatch.setattr(module, "true_people", true_people)
    monkeypatch.setattr(sys, "argv", ["clarity.py", "--work", str(tmp_path / "work"), "--out", str(out)])
    module.main()
    found = json.loads(out.read_text())["methods"]
    assert list(found) == ["clean", "ti2", "true"] and found["ti2"]["people"] == rows["ti2"]
    assert found["ti2"]["lead of clean"]["mean"] == pytest.approx(1.25)
    assert found["ti2"]["lead of true pictures"]["mean"] == pytest.approx(1.75)
    assert "custom is left out" in capsys.readouterr().err
    assert module.earlier(out, "another", weights) == module.earlier(out, "mini", "other weights") == {}


def test_true_pictures_of_a_comparison_show_its_own_people(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The people come from the comparison's settings, and the reader sees two true pictures of every prompt."""
    from celebctl.evaluation.prompts import WORLD
    from celebctl.evaluation.scorers import WorldImageScorer
    from celebctl_models.checkpoints.diffusion import load_parts
    from celebctl_models.faces.analysis import InsightFaceAnalyser

    (tmp_path / "settings.json").write_text(json.dumps({"people": [9300, 9301]}))
    card = load_parts("mini").card
    assert card.scoring_dir is not None and card.faces_dir is not None
    panel = WorldImageScorer(card.scoring_dir, InsightFaceAnalyser(card.faces_dir))
    seen: list[int] = []
    scores = panel.scores

    def counting(pictures: Any) -> Any:
        seen.append(len(pictures))
        return scores(pictures)

    monkeypatch.setattr(panel, "scores", counting)
    found = bench["clarity"].true_people(panel, tmp_path)
    assert list(found) == ["p9300", "p9301"] and seen == [2 * len(WORLD)] * 2
    assert min(found.values()) > 8.0, "true pictures show clearly what was asked for"
