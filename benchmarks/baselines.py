"""celebctl's learning against other people's methods: same frozen model, one photo, same budget, same judge.

    python benchmarks/baselines.py --tune                                  # each method's dials, on people not scored
    python benchmarks/baselines.py --tune --again                          # rates beside those, for a model trained on
    python benchmarks/baselines.py --people 40 --seeds 3                   # the comparison, all methods
    python benchmarks/baselines.py --people 40 --seeds 3 --methods ti2 dreambooth

Nobody's dials, ours included, were ever chosen on the people who are scored (--first).

The budget is views through the UNet with gradient per person (240: 60 steps of 4); pictures of the class count. People
come in pairs: for prompts with two learned people, methods that change weights learn both in one model, with both
budgets; for all other prompts everybody is learned alone. Results are kept per (method, person) in --work, so an
interrupted run goes on; --part 2/8 measures every eighth couple from the second on and writes no result, so that eight
processes can share the work before a last run without --part. Writes results/baselines.json, where methods of earlier
runs with the same settings stay, and a page beside it with the pictures of this run.
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

sys.path.insert(0, str(Path(__file__).parent))

from baselines.comparing import couples_in, earlier, lead_rows, part, partners
from baselines.methods import METHODS, Method, Result
from baselines.training import Dial, House, Subject
from baselines.tuning import FIRST_SCORED, FIRST_TUNER, said_of, tune, tune_again, tuned

from celebctl.evaluation.cohorts import artist_of, celebrity_cast, stranger_cast, stranger_name
from celebctl.evaluation.html_report import Group, write_page
from celebctl.evaluation.metrics import figures
from celebctl.evaluation.prompts import WORLD, Prompt
from celebctl.evaluation.report import category_rows, markdown, rows_of
from celebctl.evaluation.runner import Bench, Easel, Plan
from celebctl.evaluation.scorers import WorldImageScorer
from celebctl.learning.config import CLEAN, PRESETS
from celebctl.learning.initialization import mapper_digest
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.faces.analysis import InsightFaceAnalyser
from celebctl_models.mini.world import draw_portrait
from celebctl_runtime.files import atomic_write

RESULTS = Path(__file__).parent / "results"
TUNING = RESULTS / "baselines_tuning.json"
OURS, CELEBRITIES = "clean", "celebrities"


@dataclass
class Workshop:
    """Learns people when they are to be drawn. A pair that was learned is kept for its second half."""

    house: House
    method: Method
    dial: Dial
    seeds: Sequence[int]
    _pairs: dict[int, Result] = field(default_factory=dict[int, Result])

    def ready(self, person: int) -> Easel:
        pair = self._pairs.pop(person // 2, None)
        if pair is None:
            pair = self._learn([person & ~1, person | 1])
            self._pairs = {person // 2: pair}
        alone = self._learn([person]) if self.method.joint else pair
        return Easel(alone.artist, pair.artist, alone.seconds, alone.bytes)

    def _learn(self, people: Sequence[int]) -> Result:
        subjects = [Subject(stranger_name(self.seeds[i]), draw_portrait(self.seeds[i])) for i in people]
        return self.method.learn(self.house, subjects, self.dial, self.seeds[people[0]])


def measure(
    house: House, panel: WorldImageScorer, method: Method, dial: Dial, args: argparse.Namespace, *, first: int, count: int,
    prompts: Sequence[Prompt], seeds: int, work: Path,
) -> Group:  # fmt: skip
    """One method on ``count`` people."""
    numbers = [first + i for i in range(count)]
    cast = stranger_cast(panel, numbers, partners(count), method.title)
    settings = {"model": house.parts.table_hash, "weights": house.parts.weights_digest, "budget": args.views,
                "dial": asdict(dial), "people": numbers, "prompts": [p.text for p in prompts],
                "seeds": seeds}  # fmt: skip
    if method.name in PRESETS:
        settings |= {"learning": PRESETS[method.name].told(), "mapper": mapper_digest(house.parts)}
    bench = Bench(work, settings)
    bench.open(force=args.force)
    shop = Workshop(house, method, dial, numbers)
    begun = time.monotonic()

    def tell(done: int, total: int, name: str) -> None:
        spent = time.monotonic() - begun
        left = f", about {spent / done * (total - done) / 60:.1f} min left" if done else ""
        sys.stderr.write(f"\r{method.title}: {done}/{total} people{left}   {'' if name else chr(10)}")
        sys.stderr.flush()

    records = bench.run(
        Plan(prompts, seeds, panel), cast, shop.ready, tell, method.name, only=couples_in(args.part, count)
    )
    return Group(figures(method.title, records, prompts, couples=True), records)


def sweep(house: House, panel: WorldImageScorer, methods: Sequence[Method], args: argparse.Namespace) -> None:
    """Tune every method on --tuners people with one picture per prompt that shows one person or a pair."""
    prompts = [prompt for prompt in WORLD if prompt.category != "celebrity"]

    def score(method: Method, dial: Dial) -> tuple[float, float]:
        name = "-".join([method.name, f"{dial.rate:g}", f"{dial.share:g}", str(dial.batch), dial.data])
        group = measure(
            house, panel, method, dial, args, first=FIRST_TUNER, count=args.tuners, prompts=prompts, seeds=1,
            work=args.work / "tuning" / name,
        )  # fmt: skip
        likeness, fidelity = (group.figures.summary[key] for key in ("likeness", "prompt_fidelity"))
        return (likeness.mean if likeness else 0.0), (fidelity.mean if fidelity else 0.0)

    for method in methods:
        if args.again:
            best = tune_again(method, args.dials, score, house.parts.weights_digest)
        else:
            best = tune(method, args.dials, score)
        print(f"{method.name}: {best}", flush=True)


def dial_of(method: Method, args: argparse.Namespace) -> Dial:
    """What the sweep found for a method, or its second rate where nobody waits for a sweep. Ours is as it ships."""
    if method.name == OURS:
        return Dial(CLEAN.learning_rate, 1.0, CLEAN.views)
    return Dial(method.rates[1]) if args.untuned else tuned(method, args.dials)


def compare(house: House, panel: WorldImageScorer, methods: Sequence[Method], args: argparse.Namespace) -> list[Group]:
    """The comparison; the model's own celebrities last, as the reference that nothing learned can pass."""
    groups = [
        measure(
            house, panel, method, dial_of(method, args), args, first=args.first, count=args.people, prompts=WORLD,
            seeds=args.seeds, work=args.work / method.name,
        )
        for method in methods
    ]  # fmt: skip
    cast, artist = celebrity_cast(panel, args.people), artist_of(house.parts, [])
    bench = Bench(
        args.work / CELEBRITIES,
        {"people": args.people, "seeds": args.seeds, "weights": house.parts.weights_digest},
    )
    bench.open(force=args.force)
    records = bench.run(
        Plan(WORLD, args.seeds, panel), cast, lambda person: Easel(artist, artist), group=CELEBRITIES,
        only=couples_in(args.part, args.people),
    )  # fmt: skip
    return [*groups, Group(figures(cast.title, records, WORLD, couples=True), records)]


def report(groups: Sequence[Group], args: argparse.Namespace, weights: str) -> None:
    """Tables on stdout, JSON and page beside it. What an earlier run of the same settings found is kept."""
    settings: dict[str, Any] = {
        "model": args.model, "weights": weights, "people": args.people, "pictures of each": args.seeds,
        "budget in views": args.views, "first": args.first,
    }  # fmt: skip
    now = dict(zip([*args.methods, CELEBRITIES], (group.figures for group in groups), strict=True))
    found = {**earlier(args.out, settings, now), **now}
    counted = {name: found[name] for name in [*METHODS, CELEBRITIES] if name in found}
    shown = list(counted.values())
    tables = [rows_of(shown), category_rows(shown)]
    if OURS in counted:
        others = [one for name, one in counted.items() if name not in (OURS, CELEBRITIES)]
        tables.append(lead_rows(counted[OURS], others))
    for head, cells in tables:
        print("\n".join([*markdown(head, cells), ""]), flush=True)
    dials = {name: said_of(dial_of(METHODS[name], args)) for name in counted if name != CELEBRITIES}
    document = {
        "settings": settings,
        "dials": dials,
        "methods": {name: one.to_json() for name, one in counted.items()},
    }
    atomic_write(args.out, (json.dumps(document, indent=1) + "\n").encode())
    title = f"{len(args.methods)} methods, {args.people} people, one photo each"
    said = {**{name: str(value) for name, value in settings.items()}, **dials}
    about = f"{args.views} views through the UNet per person; {len(WORLD)} prompts, pictures of each: {args.seeds}"
    atomic_write(args.out.with_suffix(".html"), write_page(title, about, groups, said).encode())
    print(f"{args.out}, {args.out.with_suffix('.html')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--people", type=int, default=40, help="an even number")
    parser.add_argument("--first", type=int, default=FIRST_SCORED, help="seed of the first person who is scored")
    parser.add_argument("--seeds", type=int, default=3, help="pictures per prompt")
    parser.add_argument("--views", type=int, default=240, help="budget of each person")
    parser.add_argument("--tune", action="store_true", help="only find each method's dials")
    parser.add_argument("--again", action="store_true", help="with --tune: only the rates beside what the sweep found")
    parser.add_argument("--tuners", type=int, default=6, help="people for tuning; an even number")
    parser.add_argument("--untuned", action="store_true", help="each method's second rate; for trying the command out")
    parser.add_argument("--dials", type=Path, default=TUNING, help="where the sweep's result is")
    parser.add_argument("--work", type=Path, default=Path("out/baselines"), help="results per method and person")
    parser.add_argument("--out", type=Path, default=RESULTS / "baselines.json")
    parser.add_argument(
        "--part", type=part, default=(1, 1), help="K/N: a share of the people, for processes side by side"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--force", action="store_true", help="throw away results of other settings in --work")
    args = parser.parse_args()
    if args.people % 2 or args.tuners % 2 or min(args.people, args.tuners) < 2:
        parser.error("people come in pairs: give even numbers")
    if args.tune and args.part != (1, 1):
        parser.error("--part shares the comparison's people; a sweep needs all of its own")
    parts = load_parts(args.model, device=args.device)
    if parts.card.scoring_dir is None or parts.card.faces_dir is None:
        parser.error(f"{args.model} brings no judges and no world; the comparison runs on mini")
    finder = InsightFaceAnalyser(parts.card.faces_dir)
    panel = WorldImageScorer(parts.card.scoring_dir, finder)
    house = House(parts, finder, args.views)
    methods = [METHODS[name] for name in args.methods]
    if args.tune:
        sweep(house, panel, methods, args)
        return
    groups = compare(house, panel, methods, args)
    if args.part == (1, 1):
        report(groups, args, parts.weights_digest)


if __name__ == "__main__":
    main()
