"""Evaluation: metrics from scores, interrupted runs, the report page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from celebctl.evaluation.charts import Series, bar_chart
from celebctl.evaluation.html_report import render_report
from celebctl.evaluation.image_metrics import match_faces
from celebctl.evaluation.intervals import estimate, pair_means
from celebctl.evaluation.metrics import CohortMetrics, CohortResult, compute_metrics, pose_spread
from celebctl.evaluation.prompts import CATEGORIES, PHOTO_PROMPTS, WORLD_PROMPTS, Prompt
from celebctl.evaluation.references import PhotoReference
from celebctl.evaluation.report import markdown, summary_table
from celebctl.evaluation.results import Sample, SubjectRecord
from celebctl.evaluation.runner import Cohort, EvalConfig, ResultsStore, Subject, SubjectGenerators, ring_partners
from celebctl.evaluation.scorers import ImageScores
from celebctl_runtime.errors import UsageError
from celebctl_runtime.progress import Progress

Floats = NDArray[np.float32]

SINGLE = Prompt("reconstruction", "a photo of {}", {})
HAT = Prompt("action", "{} in a <hat> & more", {"worn": "red hat"})
SMILE = Prompt("expression", "{} smiling", {"expression": "smiling"})
PAIR = Prompt("pair", "{} and {} playing chess", {"act": "chess"})
FAMOUS = Prompt("celebrity", "{} and {} in space", {"place": "space"})
PROMPTS = (SINGLE, HAT, SMILE, PAIR, FAMOUS)
WIDTH = 16


def unit(seed: int) -> Floats:
    row = np.random.default_rng(seed).normal(size=WIDTH)
    return (row / np.linalg.norm(row)).astype(np.float32)


def scores_of(prompt: Prompt, *faces: Floats, states_shown: bool = True) -> ImageScores:
    """Scores of an image with these faces."""
    attributes = {
        "two": "two" if prompt.people == 2 else "one",
        "expression": "neutral",
        **(prompt.states if states_shown else {}),
    }
    rows = np.array(faces, np.float32).reshape(len(faces), WIDTH)
    return ImageScores(rows, np.zeros((len(faces), 3), np.float32), attributes)


def faces_of(person: int, prompt: Prompt, people: int) -> tuple[Floats, ...]:
    if prompt.people == 1:
        return (unit(person),)
    return unit(person), unit((person + 1) % people if prompt.category == "pair" else 900 + person)


def record_of(
    person: int, people: int = 3, *, made: dict[Prompt, ImageScores] | None = None, seeds: int = 2
) -> SubjectRecord:
    """A record whose references all show the same face; samples equal the references unless ``made`` says otherwise."""
    truth = [Sample(p, r, scores_of(x, *faces_of(person, x, people))) for p, x in enumerate(PROMPTS) for r in range(2)]
    drawn = [
        Sample(p, s, (made or {}).get(x) or scores_of(x, *faces_of(person, x, people)), b"webp")
        for p, x in enumerate(PROMPTS)
        for s in range(seeds)
    ]
    return SubjectRecord(f"p{person}", tuple(drawn), tuple(truth), b"photo", 1.5, 2048)


def measured(**made_by_first: Any) -> CohortMetrics:
    """Metrics of three people; scores of the first one's images can be given."""
    made = {PROMPTS[int(key[1:])]: seen for key, seen in made_by_first.items()}
    return compute_metrics("people", [record_of(0, made=made), record_of(1), record_of(2)], PROMPTS)


def first(found: CohortMetrics, name: str) -> float:
    value = found.people["p0"][name]
    assert value is not None
    return value


def test_reference_images_score_one() -> None:
    found = measured()
    for row in found.people.values():
        assert row["likeness"] == pytest.approx(1.0, abs=1e-5)
        assert row["identity_similarity"] == pytest.approx(1.0, abs=1e-5)
        assert row["pair_likeness"] == pytest.approx(1.0, abs=0.5)  # each couple has a floor of its own
        assert (
            row["detection_rate"],
            row["prompt_fidelity"],
            row["identity_assignment"],
            row["left_right_accuracy"],
        ) == (1.0, 1.0, 1.0, 1.0)
        assert row["identity_leakage"] == pytest.approx(0.0, abs=1e-5)
        assert (row["learn_seconds"], row["size_bytes"]) == (1.5, 2048)
    assert found.summary["likeness"] is not None and found.summary["likeness"].count == 3


def test_a_missing_face_has_likeness_and_identity_zero() -> None:
    found = measured(_0=scores_of(SINGLE), _1=scores_of(HAT), _2=scores_of(SMILE))
    assert first(found, "likeness") == pytest.approx(0.0, abs=1e-6)
    assert first(found, "identity_similarity") == 0.0 and first(found, "detection_rate") == 0.0
    assert found.people["p0"]["identity_detected"] is None
    assert first(measured(_0=scores_of(SINGLE)), "identity_detected") == pytest.approx(1.0, abs=1e-5)
    assert first(measured(_0=scores_of(SINGLE)), "identity_similarity") == pytest.approx(2 / 3, abs=1e-5)


def test_swapped_people_are_assigned_but_not_left_right() -> None:
    a, b = faces_of(0, PAIR, 3)
    found = measured(_3=scores_of(PAIR, b, a))
    assert (first(found, "identity_assignment"), first(found, "left_right_accuracy")) == (1.0, 0.0)
    assert first(found, "pair_likeness") == pytest.approx(first(measured(), "pair_likeness"), abs=1e-5)


def test_one_face_twice_is_not_assigned_and_leaks() -> None:
    a, _ = faces_of(0, PAIR, 3)
    found = measured(_3=scores_of(PAIR, a, a))
    assert first(found, "identity_assignment") == 0.0 and first(found, "identity_leakage") > 0.3
    alone = measured(_3=scores_of(PAIR, a))
    assert first(alone, "identity_assignment") == 0.0 and first(alone, "pair_likeness") == 0.0


def test_beside_a_celebrity_only_the_learned_face_is_counted() -> None:
    own, _ = faces_of(0, FAMOUS, 3)
    right = measured(_4=scores_of(FAMOUS, own, unit(77))).by_category["celebrity"]["identity_similarity"]
    wrong = measured(_4=scores_of(FAMOUS, unit(77), faces_of(0, FAMOUS, 3)[1])).by_category["celebrity"][
        "identity_similarity"
    ]
    assert right is not None and wrong is not None
    assert right.mean == pytest.approx(1.0, abs=1e-5) and wrong.mean < 0.9


def test_missed_statements_lower_prompt_fidelity() -> None:
    found = measured(_1=scores_of(HAT, unit(0), states_shown=False))
    assert found.by_prompt[HAT.format("X", "Y")]["prompt_fidelity"] is not None
    assert first(found, "prompt_fidelity") == pytest.approx((4 + 0.5) / 5)
    assert first(measured(_2=scores_of(SMILE, unit(0), states_shown=False)), "expression_diversity") == 0.0
    assert first(measured(), "expression_diversity") == pytest.approx(2 / 3)


def test_photos_give_identity_but_no_likeness() -> None:
    truth = PhotoReference([unit(0), unit(1), unit(2)], ring_partners(3))
    records: list[SubjectRecord] = []
    for person in range(3):
        full = record_of(person)
        shots = tuple(
            Sample(p, r, seen) for p, row in enumerate(truth.scores(person, PROMPTS)) for r, seen in enumerate(row)
        )
        records.append(replace(full, references=shots))
    found = compute_metrics("library", records, PROMPTS)
    assert first(found, "identity_similarity") == pytest.approx(1.0, abs=1e-5)
    assert found.people["p0"]["likeness"] is None and found.people["p0"]["reference_pose_spread"] is None
    assert first(found, "identity_assignment") == 1.0
    beside = found.by_category["celebrity"]
    assert beside["identity_similarity"] is not None and beside["identity_assignment"] is None


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_faces_are_matched_by_the_highest_sum_of_cosines(values: list[float]) -> None:
    cosine = np.array(values).reshape(2, 2)
    best = max(cosine[0, 0] + cosine[1, 1], cosine[0, 1] + cosine[1, 0])
    order = match_faces(cosine)
    assert sorted(order) == [0, 1] and cosine[[0, 1], order].sum() == pytest.approx(best)


def test_intervals_are_students_t() -> None:
    found = estimate([0.0, 1.0, None])
    assert found is not None and (found.mean, found.count) == (0.5, 2)
    assert found.half_width == pytest.approx(12.706 * 0.5, rel=1e-3)
    many = estimate([0.0, 1.0] * 20)  # 39 degrees of freedom: 2.023
    assert many is not None and many.half_width == pytest.approx(2.0227 * (10 / 39 / 40) ** 0.5, rel=1e-3)
    assert estimate([None, float("nan")]) is None
    alone = estimate([0.3])
    assert alone is not None and (alone.half_width, alone.count) == (0.0, 1)


def test_pairs_are_one_observation() -> None:
    assert pair_means([1.0, 3.0, None, 4.0, float("nan"), None, 5.0]) == [2.0, 4.0, None, 5.0]
    alike = [0.1, 0.1, 0.5, 0.5, 0.9, 0.9]
    people, couples = estimate(alike), estimate(pair_means(alike))
    assert people is not None and couples is not None
    assert couples.mean == pytest.approx(people.mean) and (people.count, couples.count) == (6, 3)
    assert couples.half_width > people.half_width, "similar partners are not independent"
    assert couples.half_width == pytest.approx(4.303 * 0.4 / 3**0.5, rel=1e-3)
    opposite = estimate(pair_means([0.1, 0.9, 0.5, 0.5, 0.9, 0.1]))
    assert opposite is not None and opposite.half_width == pytest.approx(0.0, abs=1e-9)


def test_paired_metrics_have_the_same_means_and_other_intervals() -> None:
    """Four people, of whom the first two are never found: partners are alike."""
    missing = {prompt: scores_of(prompt) for prompt in (SINGLE, HAT, SMILE)}
    records = [record_of(i, 4, made=missing if i < 2 else None) for i in range(4)]
    people, couples = (compute_metrics("four", records, PROMPTS, paired=flag) for flag in (False, True))
    assert people.people == couples.people
    one, other = people.summary["likeness"], couples.summary["likeness"]
    assert one is not None and other is not None and (one.count, other.count) == (4, 2)
    assert one.mean == pytest.approx(0.5, abs=1e-5) and other.mean == pytest.approx(one.mean)
    assert other.half_width == pytest.approx(12.706 * 0.5, rel=1e-3) and other.half_width > one.half_width > 0
    by_category = couples.by_category["action"]["likeness"]
    assert by_category is not None and by_category.count == 2


def test_pose_spread_is_in_degrees() -> None:
    def shot(prompt: int, *poses: tuple[float, float, float]) -> Sample:
        return Sample(
            prompt, 0, ImageScores(np.zeros((len(poses), 4), np.float32), np.array(poses, np.float32).reshape(-1, 3))
        )

    turned = [shot(0, (0.0, -10.0, 0.0)), shot(1, (0.0, 10.0, 80.0))]
    assert pose_spread(turned, PROMPTS) == pytest.approx(10.0), "pitch is not counted"
    assert pose_spread([shot(0, (3.0, -4.0, 0.0)), shot(0, (-3.0, 4.0, 0.0))], PROMPTS) == pytest.approx(5.0)
    assert pose_spread([shot(0, (7.0, 7.0, 0.0))] * 3, PROMPTS) == 0.0
    pair = shot(3, (90.0, 90.0, 0.0), (0.0, 0.0, 0.0))
    assert pose_spread([*turned, pair, shot(2)], PROMPTS) == pytest.approx(10.0), "people alone whose face is found"
    assert pose_spread([turned[0], pair, shot(2)], PROMPTS) is None


def test_a_record_round_trips(tmp_path: Path) -> None:
    record = record_of(0, made={SINGLE: scores_of(SINGLE)})
    record.save(tmp_path / "one.record")
    again = SubjectRecord.load(tmp_path / "one.record")
    assert again is not None
    assert (again.name, again.photo, again.learn_seconds, again.size_bytes) == ("p0", b"photo", 1.5, 2048)
    for old, new in zip([*record.samples, *record.references], [*again.samples, *again.references], strict=True):
        assert (old.prompt, old.index, old.thumbnail) == (new.prompt, new.index, new.thumbnail)
        assert np.array_equal(old.scores.features, new.scores.features) and dict(old.scores.attributes) == dict(
            new.scores.attributes
        )
    (tmp_path / "one.record").write_bytes(b"cut short")
    assert SubjectRecord.load(tmp_path / "one.record") is None


class FakeScorer:
    """Reads from an image the person whose number is its first pixel."""

    description = "fake"

    def score(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str], faces: int) -> list[ImageScores]:
        assert len(texts) == len(images)
        return [
            scores_of(PAIR if faces == 2 else SINGLE, *(unit(int(p[0, k, 0])) for k in range(faces))) for p in images
        ]

    def embed_face(self, photo: NDArray[np.uint8]) -> Floats | None:
        return unit(int(photo[0, 0, 0]))


class FakeGenerator:
    """Writes numbers of people into pixels, and remembers the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[NDArray[np.uint8]]:
        self.asked += zip(prompts, seeds, strict=True)
        drawn: list[NDArray[np.uint8]] = []
        for prompt in prompts:
            picture = np.zeros((8, 8, 3), np.uint8)
            for k, number in enumerate(re.findall(r"<p(\d)>", prompt)):
                picture[0, k, 0] = int(number)
            drawn.append(picture)
        return drawn


def small_cohort() -> Cohort:
    subjects = [Subject(f"p{i}", f"<p{i}>", "a celebrity", b"photo") for i in range(3)]
    return Cohort("people", subjects, ring_partners(3), PhotoReference([unit(i) for i in range(3)], ring_partners(3)))


def test_finished_subjects_are_not_repeated(tmp_path: Path) -> None:
    config, cohort, generator = EvalConfig([SINGLE, PAIR], 2, FakeScorer()), small_cohort(), FakeGenerator()

    def generators(subject: int) -> SubjectGenerators:
        return SubjectGenerators(generator, generator, 1.0, 10)

    store = ResultsStore(tmp_path, {"seeds": 2})
    store.open()
    events: list[Progress] = []
    records = store.run(config, cohort, generators, progress=events.append)
    assert [(event.step, event.total) for event in events] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert len(generator.asked) == 3 * (2 + 2) and len(set(generator.asked)) == len(generator.asked)
    (tmp_path / "people" / "p1.record").unlink()
    before = len(generator.asked)
    ResultsStore(tmp_path, {"seeds": 2}).open()
    again = store.run(config, cohort, generators)
    prompts = [text for text, _ in generator.asked[before:]]
    assert prompts == ["a photo of <p1>"] * 2 + ["<p1> and <p2> playing chess"] * 2
    first, second = (compute_metrics("a", some, config.prompts).to_json() for some in (again, records))
    assert first == second
    (tmp_path / "people" / "p2.record").unlink()
    some = store.run(config, cohort, generators, only=[0, 1])
    assert [one.name for one in some] == ["p0", "p1"] and not (tmp_path / "people" / "p2.record").exists()
    with pytest.raises(UsageError) as caught:
        ResultsStore(tmp_path, {"seeds": 3}).open()
    assert caught.value.reason == "evaluation_settings_differ"
    (tmp_path / "learned").mkdir()
    (tmp_path / "learned" / "p0.safetensors").write_bytes(b"learned otherwise")
    ResultsStore(tmp_path, {"seeds": 3}).open(overwrite=True)
    assert not list(tmp_path.glob("*/*.record")) and not list(tmp_path.glob("learned/*"))


def test_the_page_is_self_contained_and_escapes_names() -> None:
    records = [replace(record_of(i), name=f"<b>p{i}</b>") for i in range(3)]
    metrics = compute_metrics("unseen & learned", records, PROMPTS)
    page = render_report("a <title>", "about", [CohortResult(metrics, records)], {"model": "<mini>"})
    assert not re.search(r"(src|href)=[\"'](?!data:)", page) and "url(" not in page and "<script" not in page
    assert "<b>p0</b></b>" not in page and "&lt;b&gt;p0" in page and "&lt;title&gt;" in page
    assert page.count('src="data:image/svg+xml') >= 2 and "prefers-color-scheme: dark" in page
    json.dumps(metrics.to_json())
    head, cells = summary_table([metrics])
    assert all(line.count("|") == len(head) + 1 for line in markdown(head, cells))


def svg(uri: str) -> ElementTree.Element:
    return ElementTree.fromstring(base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")))


def test_charts_accept_missing_values() -> None:
    values = [estimate([0.2, 0.4]), None, estimate([0.0])]
    for drawn in (
        bar_chart(["a", "b", "c"], [Series("x & y", values)], title="t"),
        bar_chart(["a", "b", "c"], [Series("x & y", values), Series("z", [None, None, None])], title="t"),
    ):
        assert len(list(svg(drawn.light).iter())) > 30 and drawn.light != drawn.dark
        assert "nan" not in base64.b64decode(drawn.light.partition(",")[2]).decode()


def test_the_same_chart_is_the_same_bytes() -> None:
    first, second = (bar_chart(["a"], [Series("x", [estimate([0.2, 0.4])])], title="t") for _ in range(2))
    assert first == second


def test_shipped_prompts_cover_the_papers_categories() -> None:
    for prompts in (WORLD_PROMPTS, PHOTO_PROMPTS):
        assert {prompt.category for prompt in prompts} == set(CATEGORIES)
        for prompt in prompts:
            text = prompt.format("ann", "bob")
            assert "ann" in text and "{" not in text
