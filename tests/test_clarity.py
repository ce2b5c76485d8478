"""Clarity: logit margins, methods of previous runs, reference images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")


def test_clarity_is_the_logit_margin_of_the_stated_words(bench: Any) -> None:
    from celebctl.evaluation.prompts import Prompt
    from celebctl.evaluation.results import Sample, SubjectRecord
    from celebctl.evaluation.runner import thumbnail
    from celebctl.evaluation.scorers import ImageScores

    class FakeScorer:
        def __init__(self) -> None:
            self.vocabulary = {"two": ["one", "two"], "place": ["beach", "snow", "city"]}

        def attribute_logits(self, images: Any) -> Any:
            assert all(image.shape == (16, 16, 3) for image in images)
            return [{"two": np.array([3.0, 1.0]), "place": np.array([0.5, 4.0, 1.0])} for _ in images]

    clarity, no_faces = bench["clarity"], ImageScores(np.zeros((0, 1), np.float32), np.zeros((0, 3), np.float32))
    image = thumbnail(np.zeros((16, 16, 3), np.uint8))
    prompts = [Prompt("action", "{} in the snow", {"place": "snow"}), Prompt("pair", "{} and {} on the beach")]
    record = SubjectRecord("p", tuple(Sample(i, 0, no_faces, image) for i in (0, 0, 1)), ())
    assert clarity.clarity(FakeScorer(), record, prompts) == pytest.approx(((2 + 3) / 2 * 2 - 2) / 3)


def test_clarity_of_methods_without_images_is_kept(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method without images keeps its results if its people are the same; otherwise it is omitted."""
    from celebctl_models.checkpoints.diffusion import load_parts

    module, out, weights = bench["clarity"], tmp_path / "clarity.json", load_parts("mini").weights_digest
    people = {"ti2": {"p1": 3.0, "p2": 5.0}, "custom": {"p7": 1.0}}
    previous = {name: {"title": name, "people": values} for name, values in people.items()}
    out.write_text(json.dumps({"model": "mini", "weights": weights, "methods": previous}))
    (tmp_path / "work" / "clean").mkdir(parents=True)

    def clarity_by_person(scorer: Any, folder: Path) -> dict[str, float]:
        return {"p1": 4.5, "p2": 6.0}

    def reference_clarity(scorer: Any, folder: Path) -> dict[str, float]:
        return {"p1": 5.0, "p2": 6.5}

    monkeypatch.setattr(module, "clarity_by_person", clarity_by_person)
    monkeypatch.setattr(module, "reference_clarity", reference_clarity)
    monkeypatch.setattr(sys, "argv", ["clarity.py", "--work", str(tmp_path / "work"), "--out", str(out)])
    module.main()
    methods = json.loads(out.read_text())["methods"]
    assert list(methods) == ["clean", "ti2", "references"] and methods["ti2"]["people"] == people["ti2"]
    assert methods["ti2"]["lead of clean"]["mean"] == pytest.approx(1.25)
    assert methods["ti2"]["lead of references"]["mean"] == pytest.approx(1.75)
    assert "custom is omitted" in capsys.readouterr().err
    assert (
        module.previous_results(out, "another", weights) == module.previous_results(out, "mini", "other weights") == {}
    )


def test_reference_images_show_the_people_of_the_comparison(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The people come from the comparison's settings, with two reference images of every prompt."""
    from celebctl.evaluation.prompts import WORLD_PROMPTS
    from celebctl.evaluation.scorers import WorldScorer
    from celebctl_models.checkpoints.diffusion import load_parts
    from celebctl_models.faces.analysis import OnnxFaceAnalyser

    (tmp_path / "settings.json").write_text(json.dumps({"people": [9300, 9301]}))
    card = load_parts("mini").card
    assert card.scoring_dir is not None and card.faces_dir is not None
    scorer = WorldScorer(card.scoring_dir, OnnxFaceAnalyser(card.faces_dir))
    counts: list[int] = []
    logits = scorer.attribute_logits

    def counting(images: Any) -> Any:
        counts.append(len(images))
        return logits(images)

    monkeypatch.setattr(scorer, "attribute_logits", counting)
    values = bench["clarity"].reference_clarity(scorer, tmp_path)
    assert list(values) == ["p9300", "p9301"] and counts == [2 * len(WORLD_PROMPTS)] * 2
    assert min(values.values()) > 8.0, "reference images show the statements clearly"
