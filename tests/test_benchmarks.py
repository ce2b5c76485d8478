"""Baselines leave the frozen model unchanged and keep their budgets; scores agree between the benchmarks.

Everything runs on tiny random models.
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
    for network in (parts.denoiser, parts.text_encoders[0], parts.vae):
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode() + value.detach().float().numpy().tobytes())
        digest.update(str(sorted({p.requires_grad for p in network.parameters()})).encode())
    return digest.hexdigest()


def _random_basis_of(parts: DiffusionParts) -> CelebBasis:
    return random_basis()


@pytest.fixture
def setup(bench: Any, tiny_parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny model with alice and bob as its rare words."""
    methods = bench["baselines.methods"]
    monkeypatch.setattr(methods, "RARE", ("alice", "bob"))
    monkeypatch.setattr(methods, "build_basis", _random_basis_of)
    small = replace(tiny_parts, card=replace(tiny_parts.card, defaults={**tiny_parts.card.defaults, "steps": 2}))
    return bench["baselines.training"].Setup(small, None, budget=8)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_method_keeps_its_budget_and_does_not_change_the_frozen_model(
    name: str, bench: Any, setup: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "lora":
        pytest.importorskip("peft")
    training, method = bench["baselines.training"], bench["baselines.methods"].METHODS[name]
    batch_sizes: list[int] = []
    loss = training.denoising_loss

    def counted(setup: Any, unet: Any, x0: Any, *rest: Any) -> Any:
        batch_sizes.append(len(x0))
        return loss(setup, unet, x0, *rest)

    monkeypatch.setattr(training, "denoising_loss", counted)
    subjects = [training.Subject(n, Image.new("RGB", (96, 96), c)) for n, c in (("ann", "red"), ("tom", "blue"))]
    before = fingerprint(setup.parts)
    for people in (subjects[:1], subjects):
        batch_sizes.clear()
        result = method.learn(setup, people, training.Hyperparameters(1e-2, batch=4, data="script"), 1)
        assert sum(batch_sizes) == setup.budget * len(people)
        prompts = ["a portrait of <ann>", "<ann> and <tom> playing chess"][: len(people)]
        images = result.generator.generate(prompts, [1] * len(prompts))
        assert len(images) == len(prompts) and images[0].dtype == np.uint8
        assert result.payload_bytes > 0 and result.seconds > 0
    assert fingerprint(setup.parts) == before


def test_learned_parameters_change_the_image(bench: Any, setup: Any) -> None:
    training, methods = bench["baselines.training"], bench["baselines.methods"].METHODS
    subject = training.Subject("ann", Image.new("RGB", (96, 96), "red"))
    for name in ("ti1", "dreambooth", "custom"):
        slow, fast = (
            methods[name].learn(setup, [subject], training.Hyperparameters(rate, data="script"), 1)
            for rate in (1e-9, 0.3)
        )
        images = [result.generator.generate(["a portrait of <ann>"], [1])[0] for result in (slow, fast)]
        assert not np.array_equal(*images), name


def cohort_metrics(title: str, likeness: float) -> CohortMetrics:
    """Metrics of three people who differ in likeness by 0.01."""
    people: dict[str, Row] = {
        f"p{i}": {"likeness": likeness + 0.01 * i, "prompt_fidelity": 1.0, "pair_likeness": None} for i in range(3)
    }
    summary = {key: estimate(row[key] for row in people.values()) for key in ("likeness", "prompt_fidelity")}
    return CohortMetrics(title, dict(summary), {"action": dict(summary)}, {}, people)


def test_results_of_previous_runs_are_kept(bench: Any, tmp_path: Path) -> None:
    comparison, file = bench["baselines.comparison"], tmp_path / "baselines.json"
    settings, (one, two) = {"people": 3}, (cohort_metrics("one", 0.7), cohort_metrics("two", 0.6))
    assert comparison.previous_results(file, settings, []) == {}
    file.write_text(json.dumps({"settings": settings, "methods": {"a": one.to_json(), "b": two.to_json()}}))
    results = comparison.previous_results(file, settings, ["b"])
    assert list(results) == ["a"] and results["a"].to_json() == one.to_json()
    assert comparison.previous_results(file, {"people": 4}, []) == {}, "results of other settings are not comparable"


def test_a_lead_is_the_mean_difference_of_each_person(bench: Any) -> None:
    comparison, (one, two) = bench["baselines.comparison"], (cohort_metrics("one", 0.7), cohort_metrics("two", 0.6))
    difference = comparison.lead(one, two, "likeness")
    assert difference.mean == pytest.approx(0.1) and difference.half_width < 1e-9, "equal differences: no interval"
    assert "ahead" in comparison.describe_difference(difference) and "behind" in comparison.describe_difference(
        comparison.lead(two, one, "likeness")
    )
    assert "no difference" in comparison.describe_difference(comparison.lead(one, two, "prompt_fidelity"))
    assert comparison.lead(one, two, "pair_likeness") is None
    two.people["p2"]["prompt_fidelity"] = 0.9
    head, cells = comparison.lead_table(one, [two])
    assert comparison.headroom(two).mean == pytest.approx(0.05), "pairs: (p0, p1) without a mistake, and p2"
    assert len(head) == len(cells[0]) and cells[0][-1].startswith("+0.0500 ±")


def test_parts_share_pairs_and_cover_all_people(bench: Any) -> None:
    comparison = bench["baselines.comparison"]
    assert comparison.parse_part("2/3") == (2, 3) and comparison.people_of_part((2, 3), 10) == [2, 3, 8, 9]
    assert comparison.people_of_part((1, 1), 4) == [0, 1, 2, 3]
    assert sorted(i for k in (1, 2, 3) for i in comparison.people_of_part((k, 3), 10)) == list(range(10))
    for wrong in ("0/8", "9/8", "2", "two/8"):
        with pytest.raises(ValueError):
            comparison.parse_part(wrong)


def test_a_sweep_finds_the_best_and_does_not_repeat_runs(bench: Any, tmp_path: Path) -> None:
    tuning, method = bench["baselines.tuning"], bench["baselines.methods"].METHODS["ti2"]
    runs: list[Any] = []

    def score(of: Any, values: Any) -> tuple[float, float]:
        runs.append(values)
        return 1.0 - abs(np.log(values.rate / 5e-3)) / 10 - 0.1 * (values.share < 1), 0.5 + 0.2 * (
            values.data == "clean"
        )

    best = tuning.tune(method, tmp_path / "tuning.json", score)
    assert (best.rate, best.share, best.batch, best.data) == (5e-3, 1.0, 4, "clean")
    assert tuning.tuned(method, tmp_path / "tuning.json") == best
    assert max(values.rate for values in runs) == max(method.rates)  # the best is inside the list
    before = len(runs)
    assert tuning.tune(method, tmp_path / "tuning.json", score) == best and len(runs) == before

    def increasing(of: Any, values: Any) -> tuple[float, float]:
        return values.rate, 0.0

    high = tuning.tune(method, tmp_path / "high.json", increasing)
    assert high.rate == pytest.approx(max(method.rates) * 3**5)  # at most five more rates

    runs.clear()
    assert tuning.tune_again(method, tmp_path / "tuning.json", score, "new") == best, "no neighbouring rate is better"
    assert sorted(values.rate for values in runs) == pytest.approx([5e-3 / 3, 5e-3, 1.5e-2])
    assert tuning.tune_again(method, tmp_path / "tuning.json", score, "new") == best and len(runs) == 3
    assert tuning.tune_again(method, tmp_path / "tuning.json", score, "newer") == best and len(runs) == 6
    with pytest.raises(SystemExit, match="--tune"):
        tuning.tuned(bench["baselines.methods"].METHODS["custom"], tmp_path / "tuning.json")


def test_a_sweep_searches_the_rates_again_after_another_hyperparameter_changed(bench: Any, tmp_path: Path) -> None:
    """A smaller batch takes more steps, so its best rate may differ."""
    tuning, method = bench["baselines.tuning"], bench["baselines.methods"].METHODS["ti2"]
    runs: list[Any] = []

    def score(of: Any, values: Any) -> tuple[float, float]:
        runs.append(values)
        best = 5e-3 / 9 if values.batch == 1 else 5e-3
        return 1.0 - 0.3 * values.batch - abs(np.log(values.rate / best)) / 10, 0.5

    best = tuning.tune(method, tmp_path / "tuning.json", score)
    assert best.batch == 1 and best.rate == pytest.approx(5e-3 / 9)
    assert {values.rate for values in runs if values.batch == 4} == set(method.rates)
    assert len(runs) == len({str(values) for values in runs}), "no run is repeated"


def test_the_picture_has_a_column_per_method_and_two_rows_per_pair(bench: Any) -> None:
    from celebctl.evaluation.prompts import WORLD_PROMPTS
    from celebctl.evaluation.results import Sample, SubjectRecord
    from celebctl.evaluation.runner import thumbnail
    from celebctl.evaluation.scorers import ImageScores

    picture, no_faces = (
        bench["baselines.picture"],
        ImageScores(np.zeros((0, 1), np.float32), np.zeros((0, 3), np.float32)),
    )
    numbers = [next(i for i, prompt in enumerate(WORLD_PROMPTS) if prompt.text == text) for text in picture.PROMPTS]

    def records(level: int) -> list[SubjectRecord]:
        def sample(number: int, index: int, value: int) -> Sample:
            return Sample(number, index, no_faces, thumbnail(np.full((16, 16, 3), value, np.uint8)))

        samples = (*(sample(n, 1, 0) for n in numbers), *(sample(n, 0, level + 20 * k) for k, n in enumerate(numbers)))
        return [SubjectRecord(f"p{i}", samples, (), thumbnail(np.full((16, 16, 3), 250, np.uint8))) for i in range(2)]

    sheet = np.asarray(picture.side_by_side({"one": records(60), "two": records(140)}, 1))
    cells = [[sheet[100 + 222 * row, 100 + 200 * column].tolist() for column in range(3)] for row in range(2)]
    for row, levels in zip(cells, ((250, 60, 140), (250, 80, 160)), strict=True):
        assert np.abs(np.array(row) - np.array(levels)[:, None]).max() <= 3


def test_eval_and_the_likeness_benchmark_compute_the_same_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random scores, some faces missing, through both."""
    from celebctl.evaluation.metrics import compute_metrics
    from celebctl.evaluation.prompts import WORLD_PROMPTS
    from celebctl.evaluation.references import render_seed
    from celebctl.evaluation.results import Sample, SubjectRecord
    from celebctl.evaluation.runner import noise_seed
    from celebctl.evaluation.scorers import ImageScores

    likeness: Any = import_module("benchmarks.likeness")
    people, seeds = 5, 2
    attributes = {"two": "one", "place": "plain", "act": "nothing", "expression": "neutral", "worn": "nothing"}
    prompts = [p for p in WORLD_PROMPTS if p.category in ("reconstruction", "action", "expression", "pair")]

    def face(person: int, key: int) -> Any:
        row = np.random.default_rng(person).normal(size=12) + 0.5 * np.random.default_rng([person, key]).normal(size=12)
        return (row / np.linalg.norm(row)).astype(np.float32)

    def scores_of(person: int, two: bool, key: int) -> ImageScores:
        identities = [person, (person + 1) % people] if two else [person]
        missing = not two and key % 7 == 0
        rows = [] if missing else [face(one, key) for one in identities]
        return image_scores(
            np.array(rows, np.float32).reshape(len(rows), 12), {**attributes, "two": "two" if two else "one"}
        )

    def reference_scores(scorer: Any, z: Any, prompt: Any, first_seed: int, partner: Any = None) -> list[ImageScores]:
        return [scores_of(i, partner is not None, first_seed + i) for i in range(people)]

    generated: dict[int, tuple[int, bool]] = {}
    records: list[SubjectRecord] = []
    for person in range(people):
        samples: list[Sample] = []
        references: list[Sample] = []
        for number, prompt in enumerate(prompts):
            two = prompt.people == 2
            k = [p for p in prompts if p.people == prompt.people].index(prompt)
            for s in range(seeds):
                key = noise_seed(prompt.people, k, s, person)
                generated[key] = (person, two)
                samples.append(Sample(number, s, scores_of(person, two, key)))
            for r in range(2):
                key = render_seed(prompt.people, k, r) + person
                references.append(Sample(number, r, scores_of(person, two, key)))
        records.append(SubjectRecord(f"p{person}", tuple(samples), tuple(references)))

    class FakeScorer:
        def score(self, images: list[int], texts: Any = (), faces: int = 1) -> list[ImageScores]:
            return [scores_of(*generated[key], key) for key in images]

    monkeypatch.setattr(likeness, "reference_scores", reference_scores)
    monkeypatch.setattr(likeness, "generate_images", lambda parts, texts, noise, rows: noise)  # pyright: ignore
    cohort = likeness.Cohort([f"p{i}" for i in range(people)], np.zeros((people, 1), np.float32), {})
    score = likeness.measure(None, FakeScorer(), cohort, seeds)
    metrics = compute_metrics("people", records, prompts)
    values = {name: value.mean for name, value in metrics.summary.items() if value is not None}
    assert values["likeness"] == pytest.approx(score.likeness, abs=1e-5)
    assert values["pair_likeness"] == pytest.approx(score.pair_likeness, abs=1e-5)
    assert (values["detection_rate"], values["left_right_accuracy"]) == pytest.approx((score.detected, score.sides))


def image_scores(features: Any, attributes: dict[str, str]) -> Any:
    from celebctl.evaluation.scorers import ImageScores

    return ImageScores(features, np.zeros((len(features), 3), np.float32), attributes)


def test_layout_metrics_distinguish_swapped_sides_and_select_failed_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout: Any = import_module("benchmarks.layout")
    references = np.broadcast_to(np.eye(2, 8, dtype=np.float32), (2, 2, 8))
    attributes = {"two": "two", "place": "plain", "act": "nothing", "expression": "neutral", "worn": "nothing"}

    def sample(*faces: int) -> Any:
        scores = image_scores(np.eye(2, 8, dtype=np.float32)[list(faces)].reshape(len(faces), 8), attributes)
        return layout.score_sample(scores, references, layout.PAIR_PROMPTS[0], 0.1)

    samples = [sample(*faces) for faces in ((0, 1), (1, 0), (0, 0), (1,))]
    assert [(one.identity_assignment, one.left_right_accuracy) for one in samples] == [
        (True, True),
        (True, False),
        (False, False),
        (False, False),
    ]
    prompt_alone = {(0, 0, 1): sample(0, 0), (0, 1, 2): sample(1, 0), (1, 0, 3): sample(0, 1), (2, 0, 4): sample(1)}
    with_layout = dict.fromkeys([*prompt_alone, (3, 0, 5)], sample(0, 1))
    assert [len(pair) for pair in layout.by_pair(with_layout)] == [2, 1, 1, 1]
    assert [len(pair) for pair in layout.by_pair(with_layout, prompt_alone)] == [1, 1]
    row = layout.condition_metrics(layout.by_pair(prompt_alone))
    assert (row.identity_assignment, row.left_right_accuracy, row.images) == (
        pytest.approx(0.5),
        pytest.approx(1 / 3),
        4,
    )
    assert layout.table_cells(row).count("|") == layout.TABLE_HEAD.splitlines()[0].count("|") - 3


def test_refinement_is_compared_face_by_face_and_person_by_person() -> None:
    refine: Any = import_module("benchmarks.refine_faces")
    values = [(0, 0.5, 0.6), (0, 0.7, 0.8), (1, 0.2, 0.5)]
    before, after, difference = refine.difference(values, 3)
    assert (before.mean, after.mean, difference.mean) == pytest.approx((0.4, 0.6, 0.2)) and difference.count == 2
    first, second = (image_scores(rows[None], {}) for rows in np.eye(4, dtype=np.float32)[:2])
    half = image_scores((second.features + first.features) / np.sqrt(2), {})
    drawing = refine.Drawing(refine.SINGLE_PROMPTS[0], 0, 0, [[first, second], [first, half]])
    floor, ceiling = drawing.scale()
    assert (floor, ceiling) == pytest.approx((np.sqrt(0.5) / 2, (1 + np.sqrt(0.5)) / 2))
