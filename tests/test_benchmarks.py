"""The comparison is fair by construction: nobody touches the frozen model, budgets are kept, changed bases start alike.

Figures come from the commands themselves; here everything runs on random miniatures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from celebctl.evaluation.estimates import estimate
from celebctl.evaluation.metrics import Figures, Person
from celebctl.method.basis import CelebBasis
from celebctl.method.config import LearnConfig

if TYPE_CHECKING:
    from celebctl_models.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NETWORKS = ("ti1", "ti2", "crossinit", "dreambooth", "lora", "custom")
D, K = 32, 6


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The modules of benchmarks/, found as the commands find them."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {
            name: import_module(name)
            for name in (
                "baselines.comparing",
                "baselines.methods",
                "baselines.training",
                "baselines.tuning",
                "ablations",
                "clarity",
                "baselines_picture",
            )
        }
    finally:
        sys.path.remove(str(BENCHMARKS))


def fingerprint(parts: DiffusionParts) -> str:
    import hashlib

    digest = hashlib.sha256()
    for network in (parts.unet, parts.text_encoders[0], parts.vae):
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode() + value.detach().float().numpy().tobytes())
        digest.update(str(sorted({p.requires_grad for p in network.parameters()})).encode())
    return digest.hexdigest()


def random_basis(seed: int = 0) -> CelebBasis:
    rng = np.random.default_rng(seed)
    turns = [np.linalg.qr(rng.normal(size=(D, D)))[0][:K] for _ in range(2)]
    spread = np.sort(rng.uniform(0.1, 1.0, (2, K)), axis=1)[:, ::-1]
    mean = rng.normal(size=(2, D))
    arrays = (mean, np.stack(turns), spread)
    mean, components, spread = ((np.ascontiguousarray(a, np.float32),) for a in arrays)
    return CelebBasis(mean, components, spread, 40, "distinct")


def _random_basis_of(parts: DiffusionParts) -> CelebBasis:
    return random_basis()


@pytest.fixture
def house(bench: Any, tiny_parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny model, whose words are few: alice and bob stand for rare words."""
    methods = bench["baselines.methods"]
    monkeypatch.setattr(methods, "RARE", ("alice", "bob"))
    monkeypatch.setattr(methods, "build_basis", _random_basis_of)
    small = replace(tiny_parts, card=replace(tiny_parts.card, defaults={**tiny_parts.card.defaults, "steps": 2}))
    return bench["baselines.training"].House(small, None, budget=8)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_method_learns_within_its_budget_and_leaves_the_frozen_model_alone(
    name: str, bench: Any, house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "lora":
        pytest.importorskip("peft")
    training, method = bench["baselines.training"], bench["baselines.methods"].METHODS[name]
    seen: list[int] = []
    loss = training.denoising_loss

    def counted(house: Any, unet: Any, x0: Any, *rest: Any) -> Any:
        seen.append(len(x0))
        return loss(house, unet, x0, *rest)

    monkeypatch.setattr(training, "denoising_loss", counted)
    subjects = [training.Subject(n, Image.new("RGB", (96, 96), c)) for n, c in (("ann", "red"), ("tom", "blue"))]
    before = fingerprint(house.parts)
    for people in (subjects[:1], subjects):
        seen.clear()
        result = method.learn(house, people, training.Dial(1e-2, batch=4, data="script"), 1)
        assert sum(seen) == house.budget * len(people)
        prompts = ["a portrait of <ann>", "<ann> and <tom> playing chess"][: len(people)]
        drawn = result.artist.draw(prompts, [1] * len(prompts))
        assert len(drawn) == len(prompts) and drawn[0].dtype == np.uint8
        assert result.bytes > 0 and result.seconds > 0
    assert fingerprint(house.parts) == before


def test_what_was_learned_is_drawn(bench: Any, house: Any) -> None:
    training, methods = bench["baselines.training"], bench["baselines.methods"].METHODS
    subject = training.Subject("ann", Image.new("RGB", (96, 96), "red"))
    for name in ("ti1", "dreambooth", "custom"):
        slow, fast = (
            methods[name].learn(house, [subject], training.Dial(rate, data="script"), 1) for rate in (1e-9, 0.3)
        )
        pictures = [result.artist.draw(["a portrait of <ann>"], [1])[0] for result in (slow, fast)]
        assert not np.array_equal(*pictures), name


def some_figures(title: str, likeness: float) -> Figures:
    """Three people, each a little different."""
    people: dict[str, Person] = {
        f"p{i}": {"likeness": likeness + 0.01 * i, "fidelity": 1.0, "pair_likeness": None} for i in range(3)
    }
    summary = {key: estimate(row[key] for row in people.values()) for key in ("likeness", "fidelity")}
    return Figures(title, dict(summary), {"action": dict(summary)}, {}, people)


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
    assert ahead.mean == pytest.approx(0.1) and ahead.half < 1e-9, "the same people: no spread in the difference"
    assert "ahead" in comparing.verdict(ahead) and "behind" in comparing.verdict(comparing.lead(two, one, "likeness"))
    assert "no difference" in comparing.verdict(comparing.lead(one, two, "fidelity"))
    assert comparing.lead(one, two, "pair_likeness") is None
    two.people["p2"]["fidelity"] = 0.9
    head, cells = comparing.lead_rows(one, [two])
    assert comparing.room(two).mean == pytest.approx(0.05), "couples: (p0, p1) without a mistake, and p2"
    assert len(head) == len(cells[0]) and cells[0][-1].startswith("+0.0500 ±")


def test_parts_share_couples_and_leave_nobody_out(bench: Any) -> None:
    comparing = bench["baselines.comparing"]
    assert comparing.part("2/3") == (2, 3) and comparing.couples_in((2, 3), 10) == [2, 3, 8, 9]
    assert comparing.couples_in((1, 1), 4) == [0, 1, 2, 3]
    assert sorted(i for k in (1, 2, 3) for i in comparing.couples_in((k, 3), 10)) == list(range(10))
    for wrong in ("0/8", "9/8", "2", "two/8"):
        with pytest.raises(ValueError):
            comparing.part(wrong)


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


def test_clarity_is_the_margin_of_what_was_asked_for(bench: Any) -> None:
    from celebctl.evaluation.panel import Seen
    from celebctl.evaluation.prompts import Prompt
    from celebctl.evaluation.record import Record, Shot
    from celebctl.evaluation.session import thumbnail

    class Jury:
        def __init__(self) -> None:
            self.vocabulary = {"two": ["one", "two"], "place": ["beach", "snow", "city"]}

        def scores(self, pictures: Any) -> Any:
            assert all(picture.shape == (16, 16, 3) for picture in pictures)
            return [{"two": np.array([3.0, 1.0]), "place": np.array([0.5, 4.0, 1.0])} for _ in pictures]

    clarity, seen = bench["clarity"], Seen(np.zeros((0, 1), np.float32), np.zeros((0, 3), np.float32))
    picture = thumbnail(np.zeros((16, 16, 3), np.uint8))
    prompts = [Prompt("action", "{} in the snow", {"place": "snow"}), Prompt("pair", "{} and {} on the beach")]
    record = Record("p", tuple(Shot(i, 0, seen, picture) for i in (0, 0, 1)), ())
    assert clarity.clarity(Jury(), record, prompts) == pytest.approx(((2 + 3) / 2 * 2 - 2) / 3)


def test_clarity_of_methods_measured_before_is_kept(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method whose pictures are gone keeps its figures if the same people were drawn; other people are left out."""
    from celebctl_models.diffusion import load_parts

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
    from celebctl.evaluation.panel import WorldPanel
    from celebctl.evaluation.prompts import WORLD
    from celebctl_models.diffusion import load_parts
    from celebctl_models.faces import InsightFaceAnalyser

    (tmp_path / "settings.json").write_text(json.dumps({"people": [9300, 9301]}))
    card = load_parts("mini").card
    assert card.scoring_dir is not None and card.faces_dir is not None
    panel = WorldPanel(card.scoring_dir, InsightFaceAnalyser(card.faces_dir))
    seen: list[int] = []
    scores = panel.scores

    def counting(pictures: Any) -> Any:
        seen.append(len(pictures))
        return scores(pictures)

    monkeypatch.setattr(panel, "scores", counting)
    found = bench["clarity"].true_people(panel, tmp_path)
    assert list(found) == ["p9300", "p9301"] and seen == [2 * len(WORLD)] * 2
    assert min(found.values()) > 8.0, "true pictures show clearly what was asked for"


def test_methods_are_shown_side_by_side(bench: Any) -> None:
    """Of every couple the first person alone and both together, each method in its column."""
    from celebctl.evaluation.panel import Seen
    from celebctl.evaluation.prompts import WORLD
    from celebctl.evaluation.record import Record, Shot
    from celebctl.evaluation.session import thumbnail

    shown, seen = bench["baselines_picture"], Seen(np.zeros((0, 1), np.float32), np.zeros((0, 3), np.float32))
    numbers = [next(i for i, prompt in enumerate(WORLD) if prompt.text == text) for text in shown.PROMPTS]

    def records(level: int) -> list[Record]:
        def shot(number: int, draw: int, value: int) -> Shot:
            return Shot(number, draw, seen, thumbnail(np.full((16, 16, 3), value, np.uint8)))

        made = (*(shot(n, 1, 0) for n in numbers), *(shot(n, 0, level + 20 * k) for k, n in enumerate(numbers)))
        return [Record(f"p{i}", made, (), thumbnail(np.full((16, 16, 3), 250, np.uint8))) for i in range(2)]

    sheet = np.asarray(shown.side_by_side({"one": records(60), "two": records(140)}, 1))
    cells = [[sheet[100 + 222 * row, 100 + 200 * column].tolist() for column in range(3)] for row in range(2)]
    for row, wanted in zip(cells, ((250, 60, 140), (250, 80, 160)), strict=True):
        assert np.abs(np.array(row) - np.array(wanted)[:, None]).max() <= 3


@pytest.mark.parametrize("change", ["flat_spread", "without_mean", "of_components"])
def test_a_changed_basis_starts_from_the_same_people(
    change: str, bench: Any, tiny_parts: DiffusionParts, tmp_path: Path
) -> None:
    from celebctl.method.mapper import CoefficientMapper, FittedMapper
    from celebctl.method.pretrain import load_mapper, save_mapper

    ablations, old = bench["ablations"], random_basis()
    generator = torch.Generator().manual_seed(0)
    fitted = FittedMapper(old.size, 8, 12)
    with torch.no_grad():
        fitted.up.bias.normal_(generator=generator)
    save_mapper(fitted, old, tmp_path / "old.safetensors")
    parts = replace(tiny_parts, card=replace(tiny_parts.card, mapper_file=tmp_path / "old.safetensors"))
    make = ablations.of_components(3) if change == "of_components" else getattr(ablations, change)
    new = make(parts, old)
    moved = ablations.rebase(parts, old, new, tmp_path / "new.safetensors")
    feature = torch.nn.functional.normalize(torch.randn(1, 512, generator=generator), dim=1)

    def start(basis: CelebBasis, file: Path) -> Any:
        mapper = CoefficientMapper(basis, LearnConfig(bound=1e4), generator)
        mapper.start_from_fitted(load_mapper(file, basis))
        coefficients = tuple(part[0].detach().numpy() for part in mapper.split(mapper(feature)))
        return basis.embed(coefficients)[0]

    before, after = start(old, tmp_path / "old.safetensors"), start(new, moved.card.mapper_file)
    if change == "flat_spread":
        assert after == pytest.approx(before, abs=2e-2)  # the file holds float16
    else:  # what the new basis cannot say is lost, and nothing else
        flat = new.components[0]
        kept = new.mean[0] + np.einsum("jd,jkd,jke->je", before - new.mean[0], flat, flat)
        assert after == pytest.approx(kept, abs=2e-2)


def test_the_harness_means_by_likeness_what_the_likeness_benchmark_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random judgements, some faces missing, through both."""
    from celebctl.evaluation.metrics import figures
    from celebctl.evaluation.panel import Seen
    from celebctl.evaluation.prompts import WORLD
    from celebctl.evaluation.record import Record, Shot
    from celebctl.evaluation.session import noise_seed
    from celebctl.evaluation.truth import render_seed
    from celebctl.method.scoring import Judged

    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    likeness: Any = import_module("likeness")
    people, seeds = 5, 2
    said = {"two": "one", "place": "plain", "act": "nothing", "expression": "neutral", "worn": "nothing"}
    prompts = [p for p in WORLD if p.category in ("reconstruction", "action", "expression", "pair")]

    def face(person: int, key: int) -> Any:
        row = np.random.default_rng(person).normal(size=12) + 0.5 * np.random.default_rng([person, key]).normal(size=12)
        return (row / np.linalg.norm(row)).astype(np.float32)

    def seen(person: int, two: bool, key: int) -> Judged:
        shown = [person, (person + 1) % people] if two else [person]
        missing = not two and key % 7 == 0
        rows = [] if missing else [face(one, key) for one in shown]
        return Judged(np.array(rows, np.float32).reshape(len(rows), 12), {**said, "two": "two" if two else "one"})

    def true_looks(jury: Any, z: Any, wanted: Any, first_seed: int, partner: Any = None) -> list[Judged]:
        return [seen(i, partner is not None, first_seed + i) for i in range(people)]

    drawn: dict[int, tuple[int, bool]] = {}
    records: list[Record] = []
    for person in range(people):
        made: list[Shot] = []
        truth: list[Shot] = []
        for number, prompt in enumerate(prompts):
            two = prompt.people == 2
            k = [p for p in prompts if p.people == prompt.people].index(prompt)
            for s in range(seeds):
                key = noise_seed(prompt.people, k, s, person)
                drawn[key] = (person, two)
                made.append(Shot(number, s, as_seen(Seen, seen(person, two, key))))
            for r in range(2):
                key = render_seed(prompt.people, k, r) + person
                truth.append(Shot(number, r, as_seen(Seen, seen(person, two, key))))
        records.append(Record(f"p{person}", tuple(made), tuple(truth)))

    class Jury:
        def look(self, pictures: list[int], faces: int = 1) -> list[Judged]:
            return [seen(*drawn[key], key) for key in pictures]

    monkeypatch.setattr(likeness, "true_looks", true_looks)
    monkeypatch.setattr(likeness, "in_batches", lambda parts, texts, noise, rows: noise)  # pyright: ignore
    cast = likeness.Cast([f"p{i}" for i in range(people)], np.zeros((people, 1), np.float32), {})
    theirs = likeness.measure(None, Jury(), cast, seeds)
    ours = figures("people", records, prompts)
    values = {name: value.mean for name, value in ours.summary.items() if value is not None}
    assert values["likeness"] == pytest.approx(theirs.likeness, abs=1e-5)
    assert values["pair_likeness"] == pytest.approx(theirs.pair_likeness, abs=1e-5)
    assert (values["detected"], values["sides"]) == pytest.approx((theirs.detected, theirs.sides))


def as_seen(kind: Any, judged: Any) -> Any:
    return kind(judged.features, np.zeros((len(judged.features), 3), np.float32), judged.said)


def test_coefficients_of_their_own_begin_where_the_mapper_does(bench: Any) -> None:
    direct = bench["ablations"].DirectMapper(random_basis(), LearnConfig(), torch.Generator().manual_seed(0))
    plain = bench["ablations"].CoefficientMapper(random_basis(), LearnConfig(), torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(torch.randn(3, 512), dim=1)
    assert torch.equal(direct.units(features), plain.units(features))
    learned = [name for name, p in direct.named_parameters() if p.requires_grad]
    assert learned == ["written"] and direct.written.shape == (3, 2 * 2 * K // 2)
    from celebctl.method.mapper import FittedMapper

    fitted = FittedMapper(random_basis().size, 8, 12)
    kinds: list[Any] = [bench["ablations"].DirectMapper, type(plain)]
    begun = [kind(random_basis(), LearnConfig(), torch.Generator()) for kind in kinds]
    for mapper in begun:
        mapper.start_from_fitted(fitted)
    assert torch.equal(begun[0].units(features), begun[1].units(features)) and bool(begun[1].units(features).any())


@pytest.mark.parametrize(
    ("name", "variants"), [("pooled", ["apart", "pooled"]), ("names", ["25", "50"]), ("context", ["0", "0.1"])]
)
def test_an_ablation_learns_with_what_it_changes_and_tells(
    name: str, variants: list[str], bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The command itself on mini: two people, one step, one prompt."""
    from celebctl.evaluation.prompts import Prompt

    ablations = bench["ablations"]
    learn, asked = ablations.learn_strangers, list[Any]()

    def learned(parts: Any, finder: Any, config: Any, basis: Any, *rest: Any) -> Any:
        asked.append((basis.hash, basis.names, config.context))
        return learn(parts, finder, config, basis, *rest)

    monkeypatch.setattr(ablations, "WORLD", (Prompt("reconstruction", "a photo of {}", {}),))
    monkeypatch.setattr(ablations, "learn_strangers", learned)
    words = ["--people", "2", "--steps", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ablations.py", name, *words, "--variants", *variants])
    ablations.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == [
        "who", "---", *variants, f"beside {variants[0]}", "---", variants[1],
    ]  # fmt: skip
    document = json.loads((tmp_path / f"ablation-{name}.json").read_text())
    assert [one["title"] for one in document["variants"]] == variants and document["settings"]["people"] == 2
    clear = [one["summary"]["clarity"]["mean"] for one in document["variants"]]
    assert f"{clear[1] - clear[0]:+.3f}" in table[-1]
    likeness = [one["summary"]["likeness"]["mean"] for one in document["variants"]]
    page = (tmp_path / f"ablation-{name}.html").read_text()
    assert "<svg" in page and all(f"{value:.3f}" in page for value in likeness)
    (one, other), work = asked, tmp_path / "work" / name
    people = [work / ablations.slug(variant) / "learned" / "p1000.safetensors" for variant in variants]
    if name == "context":
        assert one[0] == other[0] and (one[2], other[2]) == (0.0, 0.1)
    else:
        assert one[0] != other[0] and (name != "names" or (one[1], other[1]) == (25, 50))
    from celebctl_runtime.identity import Identity

    assert [Identity.load(file).basis_hash for file in people] == [one[0], other[0]]


def test_people_on_the_wrong_sides_are_there_and_failed_prompts_have_a_row_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from celebctl.method.scoring import Judged

    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    layout: Any = import_module("layout")
    truth = np.broadcast_to(np.eye(2, 8, dtype=np.float32), (2, 2, 8))
    said = {"two": "two", "place": "plain", "act": "nothing", "expression": "neutral", "worn": "nothing"}

    def shot(*faces: int) -> Any:
        seen = Judged(np.eye(2, 8, dtype=np.float32)[list(faces)].reshape(len(faces), 8), said)
        return layout.judge(seen, truth, layout.PAIRS[0][1], 0.1)

    told = [(shot(*faces).assigned, shot(*faces).right) for faces in ((0, 1), (1, 0), (0, 0), (1,))]
    assert told == [(True, True), (True, False), (False, False), (False, False)]
    plain = {(0, 0, 1): shot(0, 0), (0, 1, 2): shot(1, 0), (1, 0, 3): shot(0, 1), (2, 0, 4): shot(1)}
    mended = dict.fromkeys([*plain, (3, 0, 5)], shot(0, 1))
    assert [len(pair) for pair in layout.couples(mended)] == [2, 1, 1, 1]
    assert [len(pair) for pair in layout.couples(mended, plain)] == [1, 1]
    row = layout.row_of(layout.couples(plain))
    assert (row.assigned, row.right, row.pictures) == (pytest.approx(0.5), pytest.approx(1 / 3), 4)
    assert layout.line_of(row).count("|") == layout.HEAD.splitlines()[0].count("|") - 4


def test_every_ablation_of_the_paper_has_a_command(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = "names components mean spread pooled start direct mask scale middle captions rho".split()
    assert list(bench["ablations"].ABLATIONS) == [*names, "loss", "noise", "times", "context", "stopping", "joint"]
    fields = set(LearnConfig.__dataclass_fields__)
    for one in bench["ablations"].ABLATIONS.values():
        assert len({variant.label for variant in one.variants}) == len(one.variants) >= 2
        assert all(set(variant.changes) <= fields for variant in one.variants)
    json.dumps([v.changes for one in bench["ablations"].ABLATIONS.values() for v in one.variants])
