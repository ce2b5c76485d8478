"""The comparison is fair by construction: nobody touches the frozen model, budgets are kept, changed bases start alike.

Figures come from the commands themselves; here everything runs on random miniatures.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from benchmark_fakes import random_basis
from PIL import Image

from celebctl.basis.basis import CelebBasis
from celebctl.evaluation.intervals import estimate
from celebctl.evaluation.metrics import CohortMetrics, Row

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")

NETWORKS = ("ti1", "ti2", "crossinit", "dreambooth", "lora", "custom")


def fingerprint(parts: DiffusionParts) -> str:
    import hashlib

    digest = hashlib.sha256()
    for network in (parts.unet, parts.text_encoders[0], parts.vae):
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode() + value.detach().float().numpy().tobytes())
        digest.update(str(sorted({p.requires_grad for p in network.parameters()})).encode())
    return digest.hexdigest()


def _random_basis_of(parts: DiffusionParts) -> CelebBasis:
    return random_basis()


@pytest.fixture
def setup(bench: Any, tiny_parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny model, whose words are few: alice and bob stand for rare words."""
    methods = bench["baselines.methods"]
    monkeypatch.setattr(methods, "RARE", ("alice", "bob"))
    monkeypatch.setattr(methods, "build_basis", _random_basis_of)
    small = replace(tiny_parts, card=replace(tiny_parts.card, defaults={**tiny_parts.card.defaults, "steps": 2}))
    return bench["baselines.training"].Setup(small, None, budget=8)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_method_learns_within_its_budget_and_leaves_the_frozen_model_alone(
    name: str, bench: Any, setup: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "lora":
        pytest.importorskip("peft")
    training, method = bench["baselines.training"], bench["baselines.methods"].METHODS[name]
    seen: list[int] = []
    loss = training.denoising_loss

    def counted(setup: Any, unet: Any, x0: Any, *rest: Any) -> Any:
        seen.append(len(x0))
        return loss(setup, unet, x0, *rest)

    monkeypatch.setattr(training, "denoising_loss", counted)
    subjects = [training.Subject(n, Image.new("RGB", (96, 96), c)) for n, c in (("ann", "red"), ("tom", "blue"))]
    before = fingerprint(setup.parts)
    for people in (subjects[:1], subjects):
        seen.clear()
        result = method.learn(setup, people, training.Hyperparameters(1e-2, batch=4, data="script"), 1)
        assert sum(seen) == setup.budget * len(people)
        prompts = ["a portrait of <ann>", "<ann> and <tom> playing chess"][: len(people)]
        drawn = result.generator.generate(prompts, [1] * len(prompts))
        assert len(drawn) == len(prompts) and drawn[0].dtype == np.uint8
        assert result.payload_bytes > 0 and result.seconds > 0
    assert fingerprint(setup.parts) == before


def test_what_was_learned_is_drawn(bench: Any, setup: Any) -> None:
    training, methods = bench["baselines.training"], bench["baselines.methods"].METHODS
    subject = training.Subject("ann", Image.new("RGB", (96, 96), "red"))
    for name in ("ti1", "dreambooth", "custom"):
        slow, fast = (
            methods[name].learn(setup, [subject], training.Hyperparameters(rate, data="script"), 1)
            for rate in (1e-9, 0.3)
        )
        pictures = [result.generator.generate(["a portrait of <ann>"], [1])[0] for result in (slow, fast)]
        assert not np.array_equal(*pictures), name


def some_figures(title: str, likeness: float) -> CohortMetrics:
    """Three people, each a little different."""
    people: dict[str, Row] = {
        f"p{i}": {"likeness": likeness + 0.01 * i, "prompt_fidelity": 1.0, "pair_likeness": None} for i in range(3)
    }
    summary = {key: estimate(row[key] for row in people.values()) for key in ("likeness", "prompt_fidelity")}
    return CohortMetrics(title, dict(summary), {"action": dict(summary)}, {}, people)


def test_earlier_methods_stay_beside_those_of_this_run(bench: Any, tmp_path: Path) -> None:
    comparing, file = bench["baselines.comparing"], tmp_path / "baselines.json"
    settings, (one, two) = {"people": 3}, (some_figures("one", 0.7), some_figures("two", 0.6))
    assert comparing.earlier(file, settings, []) == {}
    file.write_text(json.dumps({"settings": settings, "methods": {"a": one.to_json(), "b": two.to_json()}}))
    found = comparing.earlier(file, settings, ["b"])
    assert list(found) == ["a"] and found["a"].to_json() == one.to_json()
    assert comparing.earlier(file, {"people": 4}, []) == {}, "figures of other settings are not comparable"


def test_a_lead_is_taken_person_by_person(bench: Any) -> None:
    comparing, (one, two) = bench["baselines.comparing"], (some_figures("one", 0.7), some_figures("two", 0.6))
    ahead = comparing.lead(one, two, "likeness")
    assert ahead.mean == pytest.approx(0.1) and ahead.half_width < 1e-9, "the same people: no spread in the difference"
    assert "ahead" in comparing.verdict(ahead) and "behind" in comparing.verdict(comparing.lead(two, one, "likeness"))
    assert "no difference" in comparing.verdict(comparing.lead(one, two, "prompt_fidelity"))
    assert comparing.lead(one, two, "pair_likeness") is None
    two.people["p2"]["prompt_fidelity"] = 0.9
    head, cells = comparing.lead_table(one, [two])
    assert comparing.headroom(two).mean == pytest.approx(0.05), "couples: (p0, p1) without a mistake, and p2"
    assert len(head) == len(cells[0]) and cells[0][-1].startswith("+0.0500 ±")


def test_parts_share_pairs_and_cover_all_people(bench: Any) -> None:
    comparing = bench["baselines.comparing"]
    assert comparing.parse_part("2/3") == (2, 3) and comparing.people_of_part((2, 3), 10) == [2, 3, 8, 9]
    assert comparing.people_of_part((1, 1), 4) == [0, 1, 2, 3]
    assert sorted(i for k in (1, 2, 3) for i in comparing.people_of_part((k, 3), 10)) == list(range(10))
    for wrong in ("0/8", "9/8", "2", "two/8"):
        with pytest.raises(ValueError):
            comparing.parse_part(wrong)


def test_a_sweep_keeps_what_it_knows_and_finds_the_best(bench: Any, tmp_path: Path) -> None:
    tuning, method = bench["baselines.tuning"], bench["baselines.methods"].METHODS["ti2"]
    asked: list[Any] = []

    def score(of: Any, dial: Any) -> tuple[float, float]:
        asked.append(dial)
        return 1.0 - abs(np.log(dial.rate / 5e-3)) / 10 - 0.1 * (dial.share < 1), 0.5 + 0.2 * (dial.data == "clean")

    best = tuning.tune(method, tmp_path / "dials.json", score)
    assert (best.rate, best.share, best.batch, best.data) == (5e-3, 1.0, 4, "clean")
    assert tuning.tuned(method, tmp_path / "dials.json") == best
    assert max(dial.rate for dial in asked) == max(method.rates)  # the best was inside the list
    before = len(asked)
    assert tuning.tune(method, tmp_path / "dials.json", score) == best and len(asked) == before

    def endless(of: Any, dial: Any) -> tuple[float, float]:
        return dial.rate, 0.0

    high = tuning.tune(method, tmp_path / "high.json", endless)
    assert high.rate == pytest.approx(max(method.rates) * 3**5)  # five times further, and no more

    asked.clear()
    assert tuning.tune_again(method, tmp_path / "dials.json", score, "new") == best, "no rate beside it is better"
    assert sorted(dial.rate for dial in asked) == pytest.approx([5e-3 / 3, 5e-3, 1.5e-2])
    assert tuning.tune_again(method, tmp_path / "dials.json", score, "new") == best and len(asked) == 3
    assert tuning.tune_again(method, tmp_path / "dials.json", score, "newer") == best and len(asked) == 6
    with pytest.raises(SystemExit, match="--tune"):
        tuning.tuned(bench["baselines.methods"].METHODS["custom"], tmp_path / "dials.json")


def test_a_sweep_goes_on_where_a_dial_helps_and_looks_at_the_rates_again(bench: Any, tmp_path: Path) -> None:
    """A smaller batch takes more steps, so that another rate may suit it."""
    tuning, method = bench["baselines.tuning"], bench["baselines.methods"].METHODS["ti2"]
    asked: list[Any] = []

    def score(of: Any, dial: Any) -> tuple[float, float]:
        asked.append(dial)
        best = 5e-3 / 9 if dial.batch == 1 else 5e-3
        return 1.0 - 0.3 * dial.batch - abs(np.log(dial.rate / best)) / 10, 0.5

    best = tuning.tune(method, tmp_path / "dials.json", score)
    assert best.batch == 1 and best.rate == pytest.approx(5e-3 / 9)
    assert {dial.rate for dial in asked if dial.batch == 4} == set(method.rates)
    assert len(asked) == len({str(dial) for dial in asked}), "nothing is asked twice"


def test_methods_are_shown_side_by_side(bench: Any) -> None:
    """Of every couple the first person alone and both together, each method in its column."""
    from celebctl.evaluation.prompts import WORLD_PROMPTS
    from celebctl.evaluation.results import Sample, SubjectRecord
    from celebctl.evaluation.runner import thumbnail
    from celebctl.evaluation.scorers import ImageScores

    shown, seen = bench["baselines.picture"], ImageScores(np.zeros((0, 1), np.float32), np.zeros((0, 3), np.float32))
    numbers = [next(i for i, prompt in enumerate(WORLD_PROMPTS) if prompt.text == text) for text in shown.PROMPTS]

    def records(level: int) -> list[SubjectRecord]:
        def shot(number: int, draw: int, value: int) -> Sample:
            return Sample(number, draw, seen, thumbnail(np.full((16, 16, 3), value, np.uint8)))

        made = (*(shot(n, 1, 0) for n in numbers), *(shot(n, 0, level + 20 * k) for k, n in enumerate(numbers)))
        return [SubjectRecord(f"p{i}", made, (), thumbnail(np.full((16, 16, 3), 250, np.uint8))) for i in range(2)]

    sheet = np.asarray(shown.side_by_side({"one": records(60), "two": records(140)}, 1))
    cells = [[sheet[100 + 222 * row, 100 + 200 * column].tolist() for column in range(3)] for row in range(2)]
    for row, wanted in zip(cells, ((250, 60, 140), (250, 80, 160)), strict=True):
        assert np.abs(np.array(row) - np.array(wanted)[:, None]).max() <= 3


def test_the_harness_means_by_likeness_what_the_likeness_benchmark_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random judgements, some faces missing, through both."""

    from celebctl.evaluation.metrics import compute_metrics
    from celebctl.evaluation.prompts import WORLD_PROMPTS
    from celebctl.evaluation.references import render_seed
    from celebctl.evaluation.results import Sample, SubjectRecord
    from celebctl.evaluation.runner import noise_seed
    from celebctl.evaluation.scorers import ImageScores

    likeness: Any = import_module("benchmarks.likeness")
    people, seeds = 5, 2
    said = {"two": "one", "place": "plain", "act": "nothing", "expression": "neutral", "worn": "nothing"}
    prompts = [p for p in WORLD_PROMPTS if p.category in ("reconstruction", "action", "expression", "pair")]

    def face(person: int, key: int) -> Any:
        row = np.random.default_rng(person).normal(size=12) + 0.5 * np.random.default_rng([person, key]).normal(size=12)
        return (row / np.linalg.norm(row)).astype(np.float32)

    def seen(person: int, two: bool, key: int) -> ImageScores:
        shown = [person, (person + 1) % people] if two else [person]
        missing = not two and key % 7 == 0
        rows = [] if missing else [face(one, key) for one in shown]
        return image_scores(np.array(rows, np.float32).reshape(len(rows), 12), {**said, "two": "two" if two else "one"})

    def reference_scores(scorer: Any, z: Any, wanted: Any, first_seed: int, partner: Any = None) -> list[ImageScores]:
        return [seen(i, partner is not None, first_seed + i) for i in range(people)]

    drawn: dict[int, tuple[int, bool]] = {}
    records: list[SubjectRecord] = []
    for person in range(people):
        made: list[Sample] = []
        truth: list[Sample] = []
        for number, prompt in enumerate(prompts):
            two = prompt.people == 2
            k = [p for p in prompts if p.people == prompt.people].index(prompt)
            for s in range(seeds):
                key = noise_seed(prompt.people, k, s, person)
                drawn[key] = (person, two)
                made.append(Sample(number, s, seen(person, two, key)))
            for r in range(2):
                key = render_seed(prompt.people, k, r) + person
                truth.append(Sample(number, r, seen(person, two, key)))
        records.append(SubjectRecord(f"p{person}", tuple(made), tuple(truth)))

    class FakeScorer:
        def score(self, images: list[int], texts: Any = (), faces: int = 1) -> list[ImageScores]:
            return [seen(*drawn[key], key) for key in images]

    monkeypatch.setattr(likeness, "reference_scores", reference_scores)
    monkeypatch.setattr(likeness, "in_batches", lambda parts, texts, noise, rows: noise)  # pyright: ignore
    cast = likeness.Cohort([f"p{i}" for i in range(people)], np.zeros((people, 1), np.float32), {})
    theirs = likeness.measure(None, FakeScorer(), cast, seeds)
    ours = compute_metrics("people", records, prompts)
    values = {name: value.mean for name, value in ours.summary.items() if value is not None}
    assert values["likeness"] == pytest.approx(theirs.likeness, abs=1e-5)
    assert values["pair_likeness"] == pytest.approx(theirs.pair_likeness, abs=1e-5)
    assert (values["detection_rate"], values["left_right_accuracy"]) == pytest.approx((theirs.detected, theirs.sides))


def image_scores(features: Any, attributes: dict[str, str]) -> Any:
    from celebctl.evaluation.scorers import ImageScores

    return ImageScores(features, np.zeros((len(features), 3), np.float32), attributes)


def test_people_on_the_wrong_sides_are_there_and_failed_prompts_have_a_row_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    layout: Any = import_module("benchmarks.layout")
    truth = np.broadcast_to(np.eye(2, 8, dtype=np.float32), (2, 2, 8))
    said = {"two": "two", "place": "plain", "act": "nothing", "expression": "neutral", "worn": "nothing"}

    def shot(*faces: int) -> Any:
        seen = image_scores(np.eye(2, 8, dtype=np.float32)[list(faces)].reshape(len(faces), 8), said)
        return layout.judge(seen, truth, layout.PAIRS[0][1], 0.1)

    report = [(shot(*faces).assigned, shot(*faces).right) for faces in ((0, 1), (1, 0), (0, 0), (1,))]
    assert report == [(True, True), (True, False), (False, False), (False, False)]
    plain = {(0, 0, 1): shot(0, 0), (0, 1, 2): shot(1, 0), (1, 0, 3): shot(0, 1), (2, 0, 4): shot(1)}
    mended = dict.fromkeys([*plain, (3, 0, 5)], shot(0, 1))
    assert [len(pair) for pair in layout.couples(mended)] == [2, 1, 1, 1]
    assert [len(pair) for pair in layout.couples(mended, plain)] == [1, 1]
    row = layout.row_of(layout.couples(plain))
    assert (row.assigned, row.right, row.pictures) == (pytest.approx(0.5), pytest.approx(1 / 3), 4)
    assert layout.line_of(row).count("|") == layout.HEAD.splitlines()[0].count("|") - 3
