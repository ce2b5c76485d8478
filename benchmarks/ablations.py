"""What each part of the method is worth: one dial at a time, everything else as in the preset.

    python -m benchmarks.ablations names                     # how many celebrity names the basis is made of
    python -m benchmarks.ablations components --people 24    # how many components are kept
    python -m benchmarks.ablations noise --first 9100        # on other people, for choosing
    python -m benchmarks.ablations --list

Strangers of mini's world, judged as in `celebctl eval`. Dials that LearnConfig has are set there; the others change the
celeb basis, which is plain data, or the mapper's class, here and not in the product. A changed basis keeps the fitted
start: the shipped fit is projected onto it. Every variant's people are kept in --work, so an interrupted run goes on.
A second table has differences from the first variant, person by person, clarity (clarity.py) among them.
Writes results/ablation-NAME.json and a page with the plot beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.baselines.comparing import COMPARED, lead, verdict
from benchmarks.clarity import clarity
from celebctl.basis.basis import CelebBasis, basis_from_tables, build_basis, principal_components
from celebctl.basis.names import read_names, token_pairs
from celebctl.evaluation.charts import Chart, Series, bar_chart, line_chart
from celebctl.evaluation.cohorts import FIRST_UNSEEN_SEED, PeopleLearner, generator_for, unseen_people_cohort
from celebctl.evaluation.html_report import render_chart_page
from celebctl.evaluation.intervals import estimate
from celebctl.evaluation.metrics import CohortMetrics, compute_metrics
from celebctl.evaluation.prompts import WORLD_PROMPTS
from celebctl.evaluation.report import markdown, summary_table
from celebctl.evaluation.runner import EvalConfig, ResultsStore, SubjectGenerators, file_stem, ring_partners
from celebctl.evaluation.scorers import WorldScorer
from celebctl.learning.config import PRESETS, LearnConfig
from celebctl.learning.mapper import CoefficientMapper, PretrainedMapper
from celebctl.learning.prepared import ModelAssets, PreparedModel
from celebctl.mapper_training.mapper_store import load_mapper, save_mapper
from celebctl_models.checkpoints.diffusion import DiffusionParts, load_parts
from celebctl_models.faces.analysis import InsightFaceAnalyser
from celebctl_runtime.files import atomic_write
from celebctl_runtime.progress import Progress, ProgressCallback

RESULTS = Path(__file__).parent / "results"
NO_BOUND = 1e3  # in celebrity standard deviations: the bound never acts


class DirectMapper(CoefficientMapper):
    """Coefficients as parameters of their own, from where the mapper would start; the face only sets the start."""

    def normalized(self, features: Tensor) -> Tensor:
        if not hasattr(self, "written"):
            with torch.no_grad():
                answer = self.linear(features)
                self.written = nn.Parameter(answer if self.pretrained is None else answer + self.pretrained(features))
            self.linear.requires_grad_(False)
        bound = self.config.bound
        return self.written if self.config.scale == "unit" else bound * torch.tanh(self.written / bound)


@dataclass(frozen=True)
class Variant:
    """One setting of a dial. basis: makes the changed basis of the model's own. direct: without the mapper."""

    label: str
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    basis: Callable[[DiffusionParts, CelebBasis], CelebBasis] | None = None
    people_per_call: int = 8
    direct: bool = False


@dataclass(frozen=True)
class Ablation:
    """A dial. axis: its name under a line_chart, or "" where its settings have no order."""

    name: str
    about: str
    axis: str
    variants: tuple[Variant, ...]


# Changed bases


def of_names(count: int) -> Callable[[DiffusionParts, CelebBasis], CelebBasis]:
    """The basis of a random choice of so many names, a larger choice holding the smaller ones."""

    def make(parts: DiffusionParts, basis: CelebBasis) -> CelebBasis:
        names = read_names(parts)
        order: list[int] = np.random.Generator(np.random.PCG64(3)).permutation(len(names)).tolist()
        pairs = token_pairs(parts.tokenizers[0], [names[i] for i in order[:count]])
        return basis_from_tables([parts.token_rows()], pairs)

    return make


def of_components(count: int) -> Callable[[DiffusionParts, CelebBasis], CelebBasis]:
    """The first components alone."""
    return lambda parts, basis: replace(
        basis,
        components=tuple(part[:, :count] for part in basis.components),
        spread=tuple(part[:, :count] for part in basis.spread),
    )


def without_mean(parts: DiffusionParts, basis: CelebBasis) -> CelebBasis:
    """embedding = coefficients x components: the coefficients have to carry the average celebrity as well."""
    return replace(basis, mean=tuple(np.zeros_like(part) for part in basis.mean))


def flat_spread(parts: DiffusionParts, basis: CelebBasis) -> CelebBasis:
    """Every component as wide as the average one, instead of each as the celebrities are spread along it."""
    flat = [np.broadcast_to(np.sqrt((s**2).mean(1, keepdims=True)), s.shape).astype(np.float32) for s in basis.spread]
    return replace(basis, spread=tuple(flat))


def pooled(parts: DiffusionParts, basis: CelebBasis) -> CelebBasis:
    """One basis over first and last names together, used at both positions."""
    pairs = token_pairs(parts.tokenizers[0], read_names(parts))
    rows = parts.token_rows()[np.unique([*pairs.column(0), *pairs.column(1)])]
    mean, components, spread = principal_components(rows, basis.components[0].shape[1], fill=False)
    return replace(basis, mean=(np.stack([mean] * 2),), components=(np.stack([components] * 2),),
                   spread=(np.stack([spread] * 2),))  # fmt: skip


def rebase(parts: DiffusionParts, old: CelebBasis, new: CelebBasis, file: Path) -> DiffusionParts:
    """The model with its fitted mapper's answers projected onto another basis; as it is where it brings none."""
    if parts.card.mapper_file is None:
        return parts
    fitted = load_mapper(parts.card.mapper_file, old)
    weight, bias = fitted.up.weight.detach().numpy(), fitted.up.bias.detach().numpy()
    width = old.components[0].shape[1]
    weights: list[np.ndarray] = []
    biases: list[np.ndarray] = []
    for j in range(2):
        into = new.components[0][j] / np.maximum(new.spread[0][j], 1e-12)[:, None]  # (k, D)
        turn = into @ (old.components[0][j].T * old.spread[0][j])  # (k, K)
        part = slice(j * width, (j + 1) * width)
        weights.append(turn @ weight[part])
        biases.append(turn @ bias[part] + into @ (old.mean[0][j] - new.mean[0][j]))
    moved = PretrainedMapper(new.size, fitted.down.out_features, fitted.middle.out_features)
    turned = {"up.weight": np.concatenate(weights), "up.bias": np.concatenate(biases)}
    moved.load_state_dict(fitted.state_dict() | {name: torch.as_tensor(array) for name, array in turned.items()})
    save_mapper(moved, new, file)
    return replace(parts, card=replace(parts.card, mapper_file=file))


# The dials


ABLATIONS: dict[str, Ablation] = {
    one.name: one
    for one in (
        Ablation(
            "names", "number of celebrity names that the basis is made of", "names",
            tuple(Variant(str(n), basis=of_names(n)) for n in (25, 50, 100, 200, 400, 691)),
        ),
        Ablation(
            "components", "number of components kept for each name", "components",
            tuple(Variant(str(n), basis=of_components(n)) for n in (8, 16, 32, 64, 128, 256, 512)),
        ),
        Ablation(
            "mean", "with and without the average celebrity", "",
            (
                Variant("with mean"),
                Variant("with mean, no bound", {"bound": NO_BOUND}),
                Variant("without, no bound", {"bound": NO_BOUND}, without_mean),
            ),
        ),
        Ablation(
            "spread", "singular values kept, or all components alike", "",
            (Variant("kept"), Variant("all alike", basis=flat_spread), Variant("unit length", {"scale": "unit"})),
        ),
        Ablation(
            "pooled", "first and last names apart or pooled", "", (Variant("apart"), Variant("pooled", basis=pooled))
        ),
        Ablation(
            "start", "where the mapper begins: taught with many people, at the average celebrity, or drawn", "",
            tuple(Variant(start, {"init": start}) for start in ("fitted", "average", "random")),
        ),
        Ablation(
            "direct", "mapper, or coefficients as parameters (Adam moves the mapper's answer some 18 times as far)", "",
            (
                Variant("mapper"),
                Variant("direct", direct=True),
                Variant("direct, rate x 6", {"learning_rate": 6}, direct=True),
                Variant("direct, rate x 18", {"learning_rate": 18}, direct=True),
            ),
        ),
        Ablation(
            "mask", "weight of the loss outside the face", "weight of the background",
            tuple(Variant(f"{w:g}", {"background_weight": w}) for w in (0.0, 0.05, 0.2, 0.5, 1.0)),
        ),
        Ablation(
            "scale", "height of the face in a training view", "smallest and largest share of the view",
            tuple(
                Variant(f"{a:g} to {b:g}", {"face_height_min": a, "face_height_max": b})
                for a, b in ((0.2, 0.35), (0.36, 0.6), (0.52, 0.6), (0.6, 0.8), (0.2, 1.0))
            ),
        ),
        Ablation(
            "middle", "where the face's middle stands in a training view", "share of the view's height, from its top",
            tuple(Variant(f"{m:g}", {"face_center_y": m}) for m in (0.42, 0.45, 0.485, 0.52, 0.55)),
        ),
        Ablation(
            "captions", "templates around the person in training", "",
            (Variant("photo"), Variant("imagenet, face of ... person", {"captions": "imagenet"})),
        ),
        Ablation(
            "rho", "how far from the average a person may be", "bound in celebrity standard deviations",
            tuple(Variant(f"{b:g}", {"bound": b}) for b in (0.5, 1.0, 1.5, 2.5, 4.0)),
        ),
        Ablation(
            "noise", "most noise that the model is asked about", "its deviation over the picture's",
            tuple(
                Variant(f"{n:g}" if n else "all", {"max_noise_sigma": n}) for n in (0.8, 1.2, 1.6, 2.3, 3.3, 0.0)
            ),
        ),
        Ablation(
            "joint", "people learned together in one call", "people in a call",
            tuple(Variant(str(n), people_per_call=n) for n in (1, 2, 4, 8)),
        ),
    )
}  # fmt: skip


# Running them


@dataclass
class AblationRunner:
    """The open model and what all variants share. first: seed of the first person."""

    parts: DiffusionParts
    scorer: WorldScorer
    finder: InsightFaceAnalyser
    config: LearnConfig
    people: int
    first: int
    seeds: int
    work: Path
    results: Path
    force: bool

    def run(self, ablation: Ablation, variant: Variant) -> CohortMetrics:
        """Learn and measure one variant."""
        learning = self._configured(variant)
        numbers = [self.first + i for i in range(self.people)]
        store = ResultsStore(
            self.work / ablation.name / file_stem(variant.label),
            {"model": self.parts.table_hash, "weights": self.parts.weights_digest, "learning": learning.to_dict(),
             "people": numbers, "seeds": self.seeds, "people_per_call": variant.people_per_call,
             "direct": variant.direct,
             "prompts": [p.text for p in WORLD_PROMPTS], "mapper": ModelAssets.of(self.parts).mapper_digest},
        )  # fmt: skip
        store.open(self.force)
        own = build_basis(self.parts, release=learning.names == "release")
        basis, parts = own, self.parts
        if variant.basis is not None:
            basis = variant.basis(self.parts, own)
            parts = rebase(self.parts, own, basis, store.folder / "mapper.safetensors")
        with patch(
            "celebctl.learning.trainer.CoefficientMapper", DirectMapper if variant.direct else CoefficientMapper
        ):
            model = PreparedModel(parts, basis, ModelAssets.of(parts))
            learner = PeopleLearner(model, self.finder, learning, variant.people_per_call)
            learned = learner.learn(numbers, store.folder, _printer(variant.label))
        images = generator_for(self.parts, [one.identity for one in learned])
        generators = [SubjectGenerators(images, images, one.learn_seconds, one.size_bytes) for one in learned]
        cohort = unseen_people_cohort(self.scorer, numbers, ring_partners(self.people), variant.label)
        config = EvalConfig(WORLD_PROMPTS, self.seeds, self.scorer)
        progress = _printer(variant.label)
        records = store.run(config, cohort, generators.__getitem__, group="people", progress=progress)
        metrics = compute_metrics(variant.label, records, WORLD_PROMPTS)
        for record in records:
            metrics.people[record.name]["clarity"] = clarity(self.scorer, record, WORLD_PROMPTS)
        metrics.summary["clarity"] = estimate(row["clarity"] for row in metrics.people.values())
        return metrics

    def _configured(self, variant: Variant) -> LearnConfig:
        changes = dict(variant.changes)
        if "learning_rate" in changes:  # given as a factor
            changes["learning_rate"] = self.config.learning_rate * changes["learning_rate"]
        return replace(self.config, **changes)


def _printer(label: str) -> ProgressCallback:
    def show(event: Progress) -> None:
        sys.stderr.write(f"\r{label}: {event.stage} {event.step}/{event.total}    ")
        sys.stderr.flush()

    return show


def plot(ablation: Ablation, found: Sequence[CohortMetrics]) -> Chart:
    """Likeness alone and in pairs and prompt fidelity over the settings."""
    names = {"likeness": "likeness", "pair_likeness": "likeness in pairs", "prompt_fidelity": "prompt"}
    series = [Series(label, [one.summary[key] for one in found]) for key, label in names.items()]
    labels = [one.title for one in found]
    if ablation.axis:
        return line_chart(labels, series, title=ablation.about, x_label=ablation.axis)
    return bar_chart(labels, series, title=ablation.about)


def report(ablation: Ablation, found: Sequence[CohortMetrics], runner: AblationRunner) -> None:
    """Table on stdout; JSON and a page with the plot."""
    head, cells = summary_table(found)
    print("\n" + "\n".join(markdown(head, cells)))
    keys = {**COMPARED, "clarity": "clarity"}
    leads = [[one.title, *(verdict(lead(one, found[0], key)) for key in keys)] for one in found[1:]]
    print("\n" + "\n".join(markdown([f"beside {found[0].title}", *keys.values()], leads)))
    file = runner.results / f"ablation-{ablation.name}.json"
    settings = {
        "people": runner.people,
        "first": runner.first,
        "seeds": runner.seeds,
        "learning": runner.config.to_dict(),
    }
    document = {"about": ablation.about, "settings": settings, "variants": [one.to_json() for one in found]}
    atomic_write(file, (json.dumps(document, indent=1) + "\n").encode())
    about = (
        f"{runner.people} people, {runner.seeds} of each of {len(WORLD_PROMPTS)} prompts, preset {runner.config.preset}"
    )
    page = render_chart_page(f"{ablation.name}: {ablation.about}", about, plot(ablation, found), found)
    atomic_write(file.with_suffix(".html"), page.encode())
    print(f"{file}, {file.with_suffix('.html')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=[*ABLATIONS], metavar="NAME")
    parser.add_argument("--list", action="store_true", help="list the ablations")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--preset", default="clean", choices=[*PRESETS])
    parser.add_argument("--steps", type=int, help="other than the preset's")
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--first", type=int, default=FIRST_UNSEEN_SEED, help="seed of the first person")
    parser.add_argument("--seeds", type=int, default=1, help="pictures per prompt")
    parser.add_argument("--variants", nargs="+", help="only those with these labels")
    parser.add_argument("--work", type=Path, default=Path("out/ablations"), help="results per variant and person")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of table and page")
    parser.add_argument("--force", action="store_true", help="throw away results of other settings in --work")
    args = parser.parse_args()
    if args.list or args.name is None:
        for one in ABLATIONS.values():
            print(f"{one.name:12s} {one.about}: {', '.join(v.label for v in one.variants)}")
        return
    parts = load_parts(args.model)
    if parts.card.scoring_dir is None or parts.card.faces_dir is None or len(parts.text_encoders) != 1:
        parser.error(f"{args.model} has no scoring networks and no world; ablations run on mini")
    finder = InsightFaceAnalyser(parts.card.faces_dir)
    config = PRESETS[args.preset] if args.steps is None else replace(PRESETS[args.preset], steps=args.steps)
    scorer = WorldScorer(parts.card.scoring_dir, finder)
    runner = AblationRunner(
        parts, scorer, finder, config, args.people, args.first, args.seeds, args.work, args.out, args.force
    )
    ablation = ABLATIONS[args.name]
    wanted = [v for v in ablation.variants if not args.variants or v.label in args.variants]
    if not wanted:
        parser.error(f"{args.name} has the variants {', '.join(v.label for v in ablation.variants)}")
    report(ablation, [runner.run(ablation, variant) for variant in wanted], runner)


if __name__ == "__main__":
    main()
