"""Evaluation: figures follow from what judges saw, an interrupted run goes on, the page needs nothing but itself."""

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

from celebctl.evaluation.charts import Series, bars, curve
from celebctl.evaluation.html_report import Group, write_page
from celebctl.evaluation.image_metrics import matching
from celebctl.evaluation.intervals import by_couples, estimate
from celebctl.evaluation.metrics import CohortMetrics, figures, pose_spread
from celebctl.evaluation.prompts import CATEGORIES, PHOTOGRAPHS, WORLD, Prompt
from celebctl.evaluation.references import PhotoReference
from celebctl.evaluation.report import markdown, rows_of
from celebctl.evaluation.results import Sample, SubjectRecord
from celebctl.evaluation.runner import Cohort, EvalConfig, ResultsStore, Subject, SubjectGenerators, neighbours
from celebctl.evaluation.scorers import ImageScores
from celebctl_runtime.errors import UsageError

Floats = NDArray[np.float32]

ALONE = Prompt("reconstruction", "a photo of {}", {})
HAT = Prompt("action", "{} in a <hat> & more", {"worn": "red hat"})
SMILE = Prompt("expression", "{} smiling", {"expression": "smiling"})
PAIR = Prompt("pair", "{} and {} playing chess", {"act": "chess"})
FAMOUS = Prompt("celebrity", "{} and {} in space", {"place": "space"})
PROMPTS = (ALONE, HAT, SMILE, PAIR, FAMOUS)
WIDTH = 16


def unit(seed: int) -> Floats:
    row = np.random.default_rng(seed).normal(size=WIDTH)
    return (row / np.linalg.norm(row)).astype(np.float32)


def saw(prompt: Prompt, *faces: Floats, obeyed: bool = True) -> ImageScores:
    """What judges see of a picture with these faces."""
    said = {"two": "two" if prompt.people == 2 else "one", "expression": "neutral", **(prompt.states if obeyed else {})}
    rows = np.array(faces, np.float32).reshape(len(faces), WIDTH)
    return ImageScores(rows, np.zeros((len(faces), 3), np.float32), said)


def faces_of(person: int, prompt: Prompt, people: int) -> tuple[Floats, ...]:
    if prompt.people == 1:
        return (unit(person),)
    return unit(person), unit((person + 1) % people if prompt.category == "pair" else 900 + person)


def record_of(person: int, people: int = 3, *, made: dict[Prompt, ImageScores] | None = None, seeds: int = 2) -> SubjectRecord:
    """A record of a world in which every true picture shows the same face; drawn as well as true unless ``made``."""
    truth = [Sample(p, r, saw(x, *faces_of(person, x, people))) for p, x in enumerate(PROMPTS) for r in range(2)]
    drawn = [
        Sample(p, s, (made or {}).get(x) or saw(x, *faces_of(person, x, people)), b"webp")
        for p, x in enumerate(PROMPTS)
        for s in range(seeds)
    ]
    return SubjectRecord(f"p{person}", tuple(drawn), tuple(truth), b"photo", 1.5, 2048)


def measured(**made_by_first: Any) -> CohortMetrics:
    """Three people; what the judges saw of the first one's pictures can be given."""
    made = {PROMPTS[int(key[1:])]: seen for key, seen in made_by_first.items()}
    return figures("people", [record_of(0, made=made), record_of(1), record_of(2)], PROMPTS)


def first(found: CohortMetrics, name: str) -> float:
    value = found.people["p0"][name]
    assert value is not None
    return value


def test_a_true_picture_is_worth_one_and_obeys() -> None:
    found = measured()
    for row in found.people.values():
        assert row["likeness"] == pytest.approx(1.0, abs=1e-5)
        assert row["identity"] == pytest.approx(1.0, abs=1e-5)
        assert row["pair_likeness"] == pytest.approx(1.0, abs=0.5)  # each couple has a floor of its own
        assert (row["detected"], row["prompt_fidelity"], row["identity_assignment"], row["left_right_accuracy"]) == (1.0, 1.0, 1.0, 1.0)
        assert row["identity_leakage"] == pytest.approx(0.0, abs=1e-5)
        assert (row["seconds"], row["bytes"]) == (1.5, 2048)
    assert found.summary["likeness"] is not None and found.summary["likeness"].count == 3


def test_a_face_not_found_is_a_stranger_and_counts_as_nothing() -> None:
    found = measured(_0=saw(ALONE), _1=saw(HAT), _2=saw(SMILE))
    assert first(found, "likeness") == pytest.approx(0.0, abs=1e-6)
    assert first(found, "identity") == 0.0 and first(found, "detected") == 0.0
    assert found.people["p0"]["identity_found"] is None
    assert first(measured(_0=saw(ALONE)), "identity_found") == pytest.approx(1.0, abs=1e-5)
    assert first(measured(_0=saw(ALONE)), "identity") == pytest.approx(2 / 3, abs=1e-5)


def test_people_who_change_places_are_assigned_but_on_the_wrong_sides() -> None:
    a, b = faces_of(0, PAIR, 3)
    found = measured(_3=saw(PAIR, b, a))
    assert (first(found, "identity_assignment"), first(found, "left_right_accuracy")) == (1.0, 0.0)
    assert first(found, "pair_likeness") == pytest.approx(first(measured(), "pair_likeness"), abs=1e-5)


def test_one_face_twice_cannot_be_assigned_and_bleeds() -> None:
    a, _ = faces_of(0, PAIR, 3)
    found = measured(_3=saw(PAIR, a, a))
    assert first(found, "identity_assignment") == 0.0 and first(found, "identity_leakage") > 0.3
    alone = measured(_3=saw(PAIR, a))
    assert first(alone, "identity_assignment") == 0.0 and first(alone, "pair_likeness") == 0.0


def test_beside_a_celebrity_only_the_learned_face_is_counted() -> None:
    own, _ = faces_of(0, FAMOUS, 3)
    right = measured(_4=saw(FAMOUS, own, unit(77))).by_category["celebrity"]["identity"]
    wrong = measured(_4=saw(FAMOUS, unit(77), faces_of(0, FAMOUS, 3)[1])).by_category["celebrity"]["identity"]
    assert right is not None and wrong is not None
    assert right.mean == pytest.approx(1.0, abs=1e-5) and wrong.mean < 0.9


def test_what_is_stated_and_not_seen_costs_its_share() -> None:
    found = measured(_1=saw(HAT, unit(0), obeyed=False))
    assert found.by_prompt[HAT.say("X", "Y")]["prompt_fidelity"] is not None
    assert first(found, "prompt_fidelity") == pytest.approx((4 + 0.5) / 5)
    assert first(measured(_2=saw(SMILE, unit(0), obeyed=False)), "expression") == 0.0
    assert first(measured(), "expression") == pytest.approx(2 / 3)


def test_photos_give_cosines_and_no_ratio() -> None:
    truth = PhotoReference([unit(0), unit(1), unit(2)], neighbours(3))
    records: list[SubjectRecord] = []
    for person in range(3):
        full = record_of(person)
        shots = tuple(
            Sample(p, r, seen) for p, row in enumerate(truth.see(person, PROMPTS)) for r, seen in enumerate(row)
        )
        records.append(replace(full, truth=shots))
    found = figures("library", records, PROMPTS)
    assert first(found, "identity") == pytest.approx(1.0, abs=1e-5)
    assert found.people["p0"]["likeness"] is None and found.people["p0"]["true_pose"] is None
    assert first(found, "identity_assignment") == 1.0
    beside = found.by_category["celebrity"]
    assert beside["identity"] is not None and beside["identity_assignment"] is None


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_faces_are_matched_as_the_hungarian_method_matches_them(values: list[float]) -> None:
    cosine = np.array(values).reshape(2, 2)
    best = max(cosine[0, 0] + cosine[1, 1], cosine[0, 1] + cosine[1, 0])
    order = matching(cosine)
    assert sorted(order) == [0, 1] and cosine[[0, 1], order].sum() == pytest.approx(best)


def test_intervals_are_students() -> None:
    found = estimate([0.0, 1.0, None])
    assert found is not None and (found.mean, found.count) == (0.5, 2)
    assert found.half == pytest.approx(12.706 * 0.5, rel=1e-3)
    many = estimate([0.0, 1.0] * 20)  # 39 degrees of freedom: 2.023
    assert many is not None and many.half == pytest.approx(2.0227 * (10 / 39 / 40) ** 0.5, rel=1e-3)
    assert estimate([None, float("nan")]) is None
    alone = estimate([0.3])
    assert alone is not None and (alone.half, alone.count) == (0.0, 1)


def test_people_drawn_together_are_one_observation() -> None:
    assert by_couples([1.0, 3.0, None, 4.0, float("nan"), None, 5.0]) == [2.0, 4.0, None, 5.0]
    alike = [0.1, 0.1, 0.5, 0.5, 0.9, 0.9]
    people, couples = estimate(alike), estimate(by_couples(alike))
    assert people is not None and couples is not None
    assert couples.mean == pytest.approx(people.mean) and (people.count, couples.count) == (6, 3)
    assert couples.half > people.half, "partners who are alike tell nothing twice"
    assert couples.half == pytest.approx(4.303 * 0.4 / 3**0.5, rel=1e-3)
    opposite = estimate(by_couples([0.1, 0.9, 0.5, 0.5, 0.9, 0.1]))
    assert opposite is not None and opposite.half == pytest.approx(0.0, abs=1e-9)


def test_figures_over_couples_have_the_same_means_and_their_own_intervals() -> None:
    """Four people, of whom the first two are never found: partners are alike."""
    missing = {prompt: saw(prompt) for prompt in (ALONE, HAT, SMILE)}
    records = [record_of(i, 4, made=missing if i < 2 else None) for i in range(4)]
    people, couples = (figures("four", records, PROMPTS, couples=flag) for flag in (False, True))
    assert people.people == couples.people
    one, other = people.summary["likeness"], couples.summary["likeness"]
    assert one is not None and other is not None and (one.count, other.count) == (4, 2)
    assert one.mean == pytest.approx(0.5, abs=1e-5) and other.mean == pytest.approx(one.mean)
    assert other.half == pytest.approx(12.706 * 0.5, rel=1e-3) and other.half > one.half > 0
    by_category = couples.by_category["action"]["likeness"]
    assert by_category is not None and by_category.count == 2


def test_heads_that_turn_are_spread_by_how_far_they_turn() -> None:
    def shot(prompt: int, *poses: tuple[float, float, float]) -> Sample:
        return Sample(prompt, 0, ImageScores(np.zeros((len(poses), 4), np.float32), np.array(poses, np.float32).reshape(-1, 3)))

    turned = [shot(0, (0.0, -10.0, 0.0)), shot(1, (0.0, 10.0, 80.0))]
    assert pose_spread(turned, PROMPTS) == pytest.approx(10.0), "pitch is not counted"
    assert pose_spread([shot(0, (3.0, -4.0, 0.0)), shot(0, (-3.0, 4.0, 0.0))], PROMPTS) == pytest.approx(5.0)
    assert pose_spread([shot(0, (7.0, 7.0, 0.0))] * 3, PROMPTS) == 0.0
    pair = shot(3, (90.0, 90.0, 0.0), (0.0, 0.0, 0.0))
    assert pose_spread([*turned, pair, shot(2)], PROMPTS) == pytest.approx(10.0), "people alone whose face is found"
    assert pose_spread([turned[0], pair, shot(2)], PROMPTS) is None


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = record_of(0, made={ALONE: saw(ALONE)})
    record.save(tmp_path / "one.record")
    again = SubjectRecord.load(tmp_path / "one.record")
    assert again is not None
    assert (again.name, again.photo, again.seconds, again.bytes) == ("p0", b"photo", 1.5, 2048)
    for old, new in zip([*record.made, *record.truth], [*again.made, *again.truth], strict=True):
        assert (old.prompt, old.draw, old.picture) == (new.prompt, new.draw, new.picture)
        assert np.array_equal(old.seen.features, new.seen.features) and dict(old.seen.said) == dict(new.seen.said)
    (tmp_path / "one.record").write_bytes(b"cut short")
    assert SubjectRecord.load(tmp_path / "one.record") is None


class FakePanel:
    """Sees in a picture the person whose number is its first pixel."""

    names = "nobody"

    def score(self, pictures: Sequence[NDArray[np.uint8]], texts: Sequence[str], faces: int) -> list[ImageScores]:
        assert len(texts) == len(pictures)
        return [saw(PAIR if faces == 2 else ALONE, *(unit(int(p[0, k, 0])) for k in range(faces))) for p in pictures]

    def embed_face(self, photo: NDArray[np.uint8]) -> Floats | None:
        return unit(int(photo[0, 0, 0]))


class FakeArtist:
    """Draws numbers of people into pixels, and remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[NDArray[np.uint8]]:
        self.asked += zip(prompts, seeds, strict=True)
        drawn: list[NDArray[np.uint8]] = []
        for prompt in prompts:
            picture = np.zeros((8, 8, 3), np.uint8)
            for k, number in enumerate(re.findall(r"<p(\d)>", prompt)):
                picture[0, k, 0] = int(number)
            drawn.append(picture)
        return drawn


def small_cast() -> Cohort:
    inputs = [Subject(f"p{i}", f"<p{i}>", "somebody", b"photo") for i in range(3)]
    return Cohort("people", inputs, neighbours(3), PhotoReference([unit(i) for i in range(3)], neighbours(3)))


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    plan, cast, artist = EvalConfig([ALONE, PAIR], 2, FakePanel()), small_cast(), FakeArtist()
    bench = ResultsStore(tmp_path, {"seeds": 2})
    bench.open()
    seen: list[str] = []
    records = bench.run(
        plan, cast, lambda person: SubjectGenerators(artist, artist, 1.0, 10), lambda done, total, name: seen.append(name)
    )
    assert seen == ["p0", "p1", "p2", ""]
    assert len(artist.asked) == 3 * (2 + 2) and len(set(artist.asked)) == len(artist.asked)
    (tmp_path / "people" / "p1.record").unlink()
    before = len(artist.asked)
    ResultsStore(tmp_path, {"seeds": 2}).open()
    again = bench.run(plan, cast, lambda person: SubjectGenerators(artist, artist, 1.0, 10))
    assert [text for text, _ in artist.asked[before:]] == ["a photo of <p1>"] * 2 + ["<p1> and <p2> playing chess"] * 2
    assert figures("a", again, plan.prompts).to_json() == figures("a", records, plan.prompts).to_json()
    (tmp_path / "people" / "p2.record").unlink()
    some = bench.run(plan, cast, lambda person: SubjectGenerators(artist, artist, 1.0, 10), only=[0, 1])
    assert [one.name for one in some] == ["p0", "p1"] and not (tmp_path / "people" / "p2.record").exists()
    with pytest.raises(UsageError, match="other settings"):
        ResultsStore(tmp_path, {"seeds": 3}).open()
    (tmp_path / "learned").mkdir()
    (tmp_path / "learned" / "p0.safetensors").write_bytes(b"learned otherwise")
    ResultsStore(tmp_path, {"seeds": 3}).open(force=True)
    assert not list(tmp_path.glob("*/*.record")) and not list(tmp_path.glob("learned/*"))


def test_a_page_needs_nothing_but_itself_and_believes_no_name() -> None:
    records = [replace(record_of(i), name=f"<b>p{i}</b>") for i in range(3)]
    figured = figures("unseen & learned", records, PROMPTS)
    page = write_page("a <title>", "about", [Group(figured, records)], {"model": "<mini>"})
    assert not re.search(r"(src|href)=[\"'](?!data:)", page) and "url(" not in page and "<script" not in page
    assert "<b>p0</b></b>" not in page and "&lt;b&gt;p0" in page and "&lt;title&gt;" in page
    assert page.count('src="data:image/svg+xml') >= 2 and "prefers-color-scheme: dark" in page
    json.dumps(figured.to_json())
    head, cells = rows_of([figured])
    assert all(line.count("|") == len(head) + 1 for line in markdown(head, cells))


def svg(uri: str) -> ElementTree.Element:
    return ElementTree.fromstring(base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")))


def test_charts_stand_any_values() -> None:
    values = [estimate([0.2, 0.4]), None, estimate([0.0])]
    for drawn in (
        bars(["a", "b", "c"], [Series("x & y", values)], title="t"),
        bars(["a", "b", "c"], [Series("x & y", values), Series("z", [None, None, None])], title="t"),
        curve(["1", "2", "3"], [Series("x", values)], title="t", axis="steps"),
        curve(["1"], [Series("x", [estimate([0.5])])], title="t", axis="steps"),
    ):
        assert len(list(svg(drawn.light).iter())) > 30 and drawn.light != drawn.dark
        assert "nan" not in base64.b64decode(drawn.light.partition(",")[2]).decode()


def test_the_same_chart_is_the_same_bytes() -> None:
    first, second = (bars(["a"], [Series("x", [estimate([0.2, 0.4])])], title="t") for _ in range(2))
    assert first == second


def test_shipped_prompts_cover_the_papers_categories() -> None:
    for prompts in (WORLD, PHOTOGRAPHS):
        assert {prompt.category for prompt in prompts} == set(CATEGORIES)
        for prompt in prompts:
            said = prompt.say("ann", "bob")
            assert "ann" in said and "{" not in said
