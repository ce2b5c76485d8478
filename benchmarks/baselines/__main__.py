"""celebctl and published methods compared: same frozen model, one photo, same budget, same scorer.

    python -m benchmarks.baselines --tune                          # each method's hyperparameters, on other people
    python -m benchmarks.baselines --tune --again                  # rates around those, after more training of mini
    python -m benchmarks.baselines --people 40 --seeds 3           # the comparison, all methods
    python -m benchmarks.baselines --people 40 --seeds 3 --methods ti2 dreambooth

No method's hyperparameters, ours included, were chosen on the people who are scored (--first).

The budget is the number of views through the UNet with gradient per person (240: 60 steps of 4); class images of prior
preservation count. People come in pairs: for prompts with two learned people, methods that change weights learn both in
one model, with both budgets; for all other prompts each person is learned alone. Records are kept per method and person
in --work, so that an interrupted run continues. --part 2/8 evaluates every eighth pair from the second on and writes no
result, so that eight processes can share the work before a last run without --part. Writes results/baselines.json,
where methods of previous runs with the same settings stay, and a page beside it with the images of this run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.baselines.comparison import lead_table, pair_partners, parse_part, people_of_part, previous_results
from benchmarks.baselines.methods import METHODS, LearnedPeople, Method
from benchmarks.baselines.training import Hyperparameters, Setup, Subject
from benchmarks.baselines.tuning import FIRST_SCORED, FIRST_TUNING, describe, tune, tune_again, tuned
from celebctl.evaluation.cohorts import celebrity_cohort, generator_for, unseen_name, unseen_people_cohort
from celebctl.evaluation.html_report import render_report
from celebctl.evaluation.metrics import CohortResult, compute_metrics
from celebctl.evaluation.prompts import WORLD_PROMPTS, Prompt
from celebctl.evaluation.report import category_table, markdown, summary_table
from celebctl.evaluation.runner import EvalConfig, ResultsStore, SubjectGenerators
from celebctl.evaluation.scorers import WorldScorer
from celebctl.learning.config import CLEAN, PRESETS
from celebctl.learning.prepared import ModelAssets
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.world import draw_portrait
from celebctl_runtime.files import atomic_write
from celebctl_runtime.progress import Progress

RESULTS = Path(__file__).parents[1] / "results"
TUNING = RESULTS / "baselines_tuning.json"
OURS, CELEBRITIES = "clean", "celebrities"


@dataclass
class PairLearner:
    """Learns people when their images are generated. A learned pair is kept for its second person."""

    setup: Setup
    method: Method
    hyperparameters: Hyperparameters
    seeds: Sequence[int]
    _pairs: dict[int, LearnedPeople] = field(default_factory=dict[int, LearnedPeople])

    def generators(self, person: int) -> SubjectGenerators:
        pair = self._pairs.pop(person // 2, None)
        if pair is None:
            pair = self._learn([person & ~1, person | 1])
            self._pairs = {person // 2: pair}
        single = self._learn([person]) if self.method.joint else pair
        return SubjectGenerators(single.generator, pair.generator, single.seconds, single.payload_bytes)

    def _learn(self, people: Sequence[int]) -> LearnedPeople:
        subjects = [Subject(unseen_name(self.seeds[i]), draw_portrait(self.seeds[i])) for i in people]
        return self.method.learn(self.setup, subjects, self.hyperparameters, self.seeds[people[0]])


@dataclass(frozen=True)
class Protocol:
    """What all methods of a run share.

    Attributes:
        first: Seed of the first person.
        count: Number of people, even.
        images_per_prompt: Images per prompt and person.
        part: Part of the pairs, for parallel processes.
        overwrite: Discard records of other settings.
    """

    setup: Setup
    scorer: WorldScorer
    prompts: Sequence[Prompt]
    first: int
    count: int
    images_per_prompt: int
    part: tuple[int, int] = (1, 1)
    overwrite: bool = False

    @property
    def config(self) -> EvalConfig:
        return EvalConfig(self.prompts, self.images_per_prompt, self.scorer)

    def evaluate(self, method: Method, hyperparameters: Hyperparameters, work: Path) -> CohortResult:
        """One method on all people; records are kept in ``work``."""
        seeds, parts = [self.first + i for i in range(self.count)], self.setup.parts
        cohort = unseen_people_cohort(self.scorer, seeds, pair_partners(self.count), method.title)
        settings = {"model": parts.table_hash, "weights": parts.weights_digest, "budget": self.setup.budget,
                    "hyperparameters": asdict(hyperparameters), "people": seeds,
                    "prompts": [p.text for p in self.prompts], "images_per_prompt": self.images_per_prompt}  # fmt: skip
        if method.name in PRESETS:
            settings |= {"learning": PRESETS[method.name].to_dict(), "mapper": ModelAssets.of(parts).mapper_digest}
        store = ResultsStore(work, settings)
        store.open(self.overwrite)
        learner = PairLearner(self.setup, method, hyperparameters, seeds)
        records = store.run(
            self.config, cohort, learner.generators, group=method.name, only=people_of_part(self.part, self.count),
            progress=_printer(method.title),
        )  # fmt: skip
        metrics = compute_metrics(method.title, records, self.prompts, paired=True)
        for row in (metrics.summary, *metrics.people.values()):  # methods are compared by payload, not by file
            row["payload_bytes"] = row.pop("size_bytes")  # type: ignore[assignment]
        return CohortResult(metrics, records)

    def evaluate_celebrities(self, work: Path) -> CohortResult:
        """The model's own celebrities: an upper reference for learned people."""
        parts = self.setup.parts
        cohort, model = celebrity_cohort(self.scorer, self.count), generator_for(parts, [])
        settings = {"people": self.count, "images_per_prompt": self.images_per_prompt, "weights": parts.weights_digest}
        store = ResultsStore(work, settings)
        store.open(self.overwrite)
        records = store.run(
            self.config, cohort, lambda person: SubjectGenerators(model, model), group=CELEBRITIES,
            only=people_of_part(self.part, self.count), progress=_printer(cohort.title),
        )  # fmt: skip
        return CohortResult(compute_metrics(cohort.title, records, self.prompts, paired=True), records)


def _printer(title: str) -> Any:
    start = time.monotonic()

    def show(event: Progress) -> None:
        elapsed = time.monotonic() - start
        left = f", about {elapsed / event.step * (event.total - event.step) / 60:.1f} min left" if event.step else ""
        end = "\n" if event.step == event.total else ""
        sys.stderr.write(f"\r{title}: {event.step}/{event.total} people{left}   {end}")
        sys.stderr.flush()

    return show


def sweep(protocol: Protocol, methods: Sequence[Method], args: argparse.Namespace) -> None:
    """Tune every method."""

    def score(method: Method, values: Hyperparameters) -> tuple[float, float]:
        name = "-".join([method.name, f"{values.rate:g}", f"{values.share:g}", str(values.batch), values.data])
        summary = protocol.evaluate(method, values, args.work / "tuning" / name).metrics.summary
        likeness, fidelity = (summary[key] for key in ("likeness", "prompt_fidelity"))
        return (likeness.mean if likeness else 0.0), (fidelity.mean if fidelity else 0.0)

    for method in methods:
        if args.again:
            best = tune_again(method, args.tuning, score, protocol.setup.parts.weights_digest)
        else:
            best = tune(method, args.tuning, score)
        print(f"{method.name}: {best}", flush=True)


def hyperparameters_of(method: Method, args: argparse.Namespace) -> Hyperparameters:
    """The tuned hyperparameters of a method, or its second rate with --untuned; for ours the defaults."""
    if method.name == OURS:
        return Hyperparameters(CLEAN.learning_rate, 1.0, CLEAN.views)
    return Hyperparameters(method.rates[1]) if args.untuned else tuned(method, args.tuning)


def report(results: Sequence[CohortResult], args: argparse.Namespace, weights: str) -> None:
    """Tables on stdout, JSON and page beside it. Results of a previous run with the same settings are kept."""
    settings: dict[str, Any] = {
        "model": args.model, "weights": weights, "people": args.people, "images_per_prompt": args.seeds,
        "budget_in_views": args.views, "first": args.first,
    }  # fmt: skip
    measured = dict(zip([*args.methods, CELEBRITIES], (result.metrics for result in results), strict=True))
    available = {**previous_results(args.out, settings, measured), **measured}
    by_name = {name: available[name] for name in [*METHODS, CELEBRITIES] if name in available}
    shown = list(by_name.values())
    tables = [summary_table(shown), category_table(shown)]
    if OURS in by_name:
        others = [one for name, one in by_name.items() if name not in (OURS, CELEBRITIES)]
        tables.append(lead_table(by_name[OURS], others))
    for headings, rows in tables:
        print("\n".join([*markdown(headings, rows), ""]), flush=True)
    chosen = {name: describe(hyperparameters_of(METHODS[name], args)) for name in by_name if name != CELEBRITIES}
    document = {
        "settings": settings,
        "hyperparameters": chosen,
        "methods": {name: one.to_json() for name, one in by_name.items()},
    }
    atomic_write(args.out, (json.dumps(document, indent=1) + "\n").encode())
    title = f"{len(args.methods)} methods, {args.people} people, one photo each"
    labelled = {**{name.replace("_", " "): str(value) for name, value in settings.items()}, **chosen}
    about = f"{args.views} views through the UNet per person; {len(WORLD_PROMPTS)} prompts, {args.seeds} images each"
    atomic_write(args.out.with_suffix(".html"), render_report(title, about, results, labelled).encode())
    print(f"{args.out}, {args.out.with_suffix('.html')}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--people", type=int, default=40, help="an even number")
    parser.add_argument("--first", type=int, default=FIRST_SCORED, help="seed of the first person who is scored")
    parser.add_argument("--seeds", type=int, default=3, help="images per prompt")
    parser.add_argument("--views", type=int, default=240, help="budget per person")
    parser.add_argument("--tune", action="store_true", help="only choose each method's hyperparameters")
    parser.add_argument("--again", action="store_true", help="with --tune: only the rates around the chosen ones")
    parser.add_argument("--tuning-people", type=int, default=6, help="people for tuning; an even number")
    parser.add_argument("--untuned", action="store_true", help="use each method's second rate; to try the command")
    parser.add_argument("--tuning", type=Path, default=TUNING, help="result file of the sweep")
    parser.add_argument("--work", type=Path, default=Path("out/baselines"), help="records per method and person")
    parser.add_argument("--out", type=Path, default=RESULTS / "baselines.json")
    parser.add_argument("--part", type=parse_part, default=(1, 1), help="K/N: a part of the people")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--force", action="store_true", help="discard records of other settings in --work")
    args = parser.parse_args()
    if args.people % 2 or args.tuning_people % 2 or min(args.people, args.tuning_people) < 2:
        parser.error("people come in pairs: give even numbers")
    if args.tune and args.part != (1, 1):
        parser.error("--part divides the people of the comparison; tuning needs all of its people")
    return args


def main() -> None:
    args = parse_arguments()
    parts = load_parts(args.model, device=args.device)
    if parts.card.scoring_dir is None or parts.card.faces_dir is None:
        raise SystemExit(f"{args.model} has no scoring networks; the comparison runs on mini")
    finder = OnnxFaceAnalyser(parts.card.faces_dir)
    scorer, setup = WorldScorer(parts.card.scoring_dir, finder), Setup(parts, finder, args.views)
    methods = [METHODS[name] for name in args.methods]
    if args.tune:
        prompts = [prompt for prompt in WORLD_PROMPTS if prompt.category != "celebrity"]
        tuning = Protocol(setup, scorer, prompts, FIRST_TUNING, args.tuning_people, 1, overwrite=args.force)
        sweep(tuning, methods, args)
        return
    protocol = Protocol(setup, scorer, WORLD_PROMPTS, args.first, args.people, args.seeds, args.part, args.force)
    results = [protocol.evaluate(one, hyperparameters_of(one, args), args.work / one.name) for one in methods]
    results.append(protocol.evaluate_celebrities(args.work / CELEBRITIES))
    if args.part == (1, 1):
        report(results, args, parts.weights_digest)


if __name__ == "__main__":
    main()
