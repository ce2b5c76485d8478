"""Minimum likeness, prompt and placement scores on a small sample, from networks that learning never uses.

The full measurement is `make bench-likeness`; here six people and one seed must stay above thresholds that allow for
the small sample. An error anywhere between photo and image falls below them.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from celebctl.evaluation.scorers import WorldScorer
from celebctl.learning.config import PRESETS
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.faces.analysis import OnnxFaceAnalyser

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "likeness.py"
PEOPLE, SEEDS = 6, 1


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_likeness", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_celebrities_and_learned_people_reach_the_minimum_scores(bench: ModuleType) -> None:
    parts = load_parts("mini")
    assert parts.card.scoring_dir is not None and parts.card.faces_dir is not None
    scorer = WorldScorer(parts.card.scoring_dir, OnnxFaceAnalyser(parts.card.faces_dir))
    celebrities = bench.measure(parts, scorer, bench.celebrities(PEOPLE), SEEDS)
    people, seconds = bench.learn_unseen_people(parts, PRESETS["clean"], PEOPLE, PEOPLE)
    learned = bench.measure(parts, scorer, people, SEEDS)
    print(f"celebrities {celebrities}\nlearned {learned}\nlearned in {seconds:.1f} s")
    assert celebrities.detected > 0.95 and learned.detected > 0.95
    assert celebrities.likeness > 0.75
    assert learned.likeness > 0.85 * celebrities.likeness
    assert celebrities.caption > 0.95 and learned.caption > celebrities.caption - 0.05
    assert celebrities.sides > 0.90 and learned.sides > 0.90
