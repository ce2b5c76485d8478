"""Ablations: one parameter of the method changes, the rest is as in the preset.

    python -m benchmarks.ablations names                     # number of celebrity names behind the basis
    python -m benchmarks.ablations components --people 24    # number of components
    python -m benchmarks.ablations noise --first 9100        # with other people, to choose a value
    python -m benchmarks.ablations --list

Unseen people of mini's world are learned and scored as in `celebctl eval`. Parameters of LearnConfig are set there;
others change the celeb basis, which is plain data, or the mapper's class in this script. A changed basis keeps the
pretrained mapper, projected onto it. Each variant's people are kept in --work, so that an interrupted run continues.
The second table has differences from the first variant, person by person; clarity (clarity.py) is one of its metrics.
Writes results/ablation-NAME.json and the chart beside it as PNG.
"""

# matplotlib leaves the types of its keyword arguments open.
# pyright: reportUnknownMemberType=false

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
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.baselines.comparison import COMPARED, describe_difference, lead
from benchmarks.clarity import clarity
from celebctl.basis.basis import CelebBasis, basis_from_tables, build_basis, principal_components
from celebctl.basis.names import read_names, token_pairs
from celebctl.evaluation.cohorts import FIRST_UNSEEN_SEED, PeopleLearner, generator_for, unseen_people_cohort
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
from celebctl.plotting import chart_style, to_image
from celebctl_models.checkpoints.diffusion import DiffusionParts, load_parts
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_runtime.files import atomic_write
from celebctl_runtime.progress import Progress, ProgressCallback

RESULTS = Path(__file__).parent / "results"
UNBOUNDED = 1e3  # in celebrity standard deviations; larger than any coefficient


class DirectMapper(CoefficientMapper):
    """Coefficients as free parameters, initialized with the mapper's output for the face."""

    def normalized(self, features: Tensor) -> Tensor:
        if not hasattr(self, "coefficients"):
            with torch.no_grad():
                initial = self.linear(features)
                self.coefficients = nn.Parameter(
                    initial if self.pretrained is None else initial + self.pretrained(features)
                )
            self.linear.requires_grad_(False)
        bound = self.config.bound
        return self.coefficients if self.config.scale == "unit" else bound * torch.tanh(self.coefficients / bound)


@dataclass(frozen=True)
class Variant:
    """One value of a parameter.

    Attributes:
        changes: Fields of LearnConfig; ``learning_rate`` is a factor.
        basis: Makes the changed basis from that of the model.
        direct: Learn coefficients without the mapper.
    """

    label: str
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    basis: Callable[[DiffusionParts, CelebBasis], CelebBasis] | None = None
    people_per_call: int = 8
    direct: bool = False


@dataclass(frozen=True)
class Ablation:
    """Variants of one parameter. axis: label of the chart's axis, or "" for values without an order."""

    name: str
    about: str
    axis: str
    variants: tuple[Variant, ...]


# Changed bases


def random_names(count: int) -> Callable[[DiffusionParts, CelebBasis], CelebBasis]:
    """A basis of ``count`` random names; larger choices contain the smaller ones."""

    def make(parts: DiffusionParts, basis: CelebBasis) -> CelebBasis:
        names = read_names(parts)
        order: list[int] = np.random.Generator(np.random.PCG64(3)).permutation(len(names)).tolist()
        pairs = token_pairs(parts.tokenizers[0], [names[i] for i in order[:count]])
        return basis_from_tables([parts.token_rows()], pairs)

    return make


def first_components(count: int) -> Callable[[DiffusionParts, CelebBasis], CelebBasis]:
    """The basis with its first ``count`` components."""
    return lambda parts, basis: replace(
        basis,
        components=tuple(part[:, :count] for part in basis.components),
        spread=tuple(part[:, :count] for part in basis.spread),
    )


def without_mean(parts: DiffusionParts, basis: CelebBasis) -> CelebBasis:
    """embedding = coefficients x components: the coefficients include the average celebrity."""
    return replace(basis, mean=tuple(np.zeros_like(part) for part in basis.mean))


def flat_spread(parts: DiffusionParts, basis: CelebBasis) -> CelebBasis:
    """The same standard deviation for every component: their quadratic mean."""
    flat = [np.broadcast_to(np.sqrt((s**2).mean(1, keepdims=True)), s.shape).astype(np.float32) for s in basis.spread]
    return replace(basis, spread=tuple(flat))


def pooled_basis(parts: DiffusionParts, basis: CelebBasis) -> CelebBasis:
    """One basis over first and last names together, used at both positions."""
    pairs = token_pairs(parts.tokenizers[0], read_names(parts))
    rows = parts.token_rows()[np.unique([*pairs.column(0), *pairs.column(1)])]
    mean, components, spread = principal_components(rows, basis.components[0].shape[1], fill=False)
    return replace(basis, mean=(np.stack([mean] * 2),), components=(np.stack([components] * 2),),
                   spread=(np.stack([spread] * 2),))  # fmt: skip


def rebase(parts: DiffusionParts, old: CelebBasis, new: CelebBasis, file: Path) -> DiffusionParts:
    """The model with the output of its pretrained mapper projected onto another basis, if it has a mapper."""
    if parts.card.mapper_file is None:
        return parts
    pretrained = load_mapper(parts.card.mapper_file, old)
    weight, bias = pretrained.up.weight.detach().numpy(), pretrained.up.bias.detach().numpy()
    width = old.components[0].shape[1]
    weights: list[np.ndarray] = []
    biases: list[np.ndarray] = []
    for j in range(2):
        projection = new.components[0][j] / np.maximum(new.spread[0][j], 1e-12)[:, None]  # (k, D)
        rotation = projection @ (old.components[0][j].T * old.spread[0][j])  # (k, K)
        part = slice(j * width, (j + 1) * width)
        weights.append(rotation @ weight[part])
        biases.append(rotation @ bias[part] + projection @ (old.mean[0][j] - new.mean[0][j]))
    mapper = PretrainedMapper(new.size, pretrained.down.out_features, pretrained.middle.out_features)
    projected = {"up.weight": np.concatenate(weights), "up.bias": np.concatenate(biases)}
    mapper.load_state_dict(
        pretrained.state_dict() | {name: torch.as_tensor(array) for name, array in projected.items()}
    )
    save_mapper(mapper, new, file)
    return replace(parts, card=replace(parts.card, mapper_file=file))


# The parameters


ABLATIONS: dict[str, Ablation] = {
    one.name: one
    for one in (
        Ablation(
            "names", "number of celebrity names behind the basis", "names",
            tuple(Variant(str(n), basis=random_names(n)) for n in (25, 50, 100, 200, 400, 691)),
        ),
        Ablation(
            "components", "number of components for each name", "components",
            tuple(Variant(str(n), basis=first_components(n)) for n in (8, 16, 32, 64, 128, 256, 512)),
        ),
        Ablation(
            "mean", "basis with and without the mean", "",
            (
                Variant("with mean"),
                Variant("with mean, no bound", {"bound": UNBOUNDED}),
                Variant("without, no bound", {"bound": UNBOUNDED}, without_mean),
            ),
        ),
        Ablation(
            "spread", "standard deviations of the components: their own or all equal", "",
            (Variant("own"), Variant("all equal", basis=flat_spread), Variant("unit length", {"scale": "unit"})),
        ),
        Ablation(
            "pooled", "separate bases for first and last names, or one", "",
            (Variant("separate"), Variant("pooled", basis=pooled_basis)),
        ),
        Ablation(
            "start", "initialization of the mapper: pretrained on many people, the average celebrity, or random", "",
            tuple(Variant(start, {"init": start}) for start in ("fitted", "average", "random")),
        ),
        Ablation(
            "direct", "mapper, or coefficients as parameters (Adam changes the mapper's output 18 times as far)", "",
            (
                Variant("mapper"),
                Variant("direct", direct=True),
                Variant("direct, rate x 6", {"learning_rate": 6}, direct=True),
                Variant("direct, rate x 18", {"learning_rate": 18}, direct=True),
            ),
        ),
        Ablation(
            "mask", "weight of the loss outside the face", "background weight",
            tuple(Variant(f"{w:g}", {"background_weight": w}) for w in (0.0, 0.05, 0.2, 0.5, 1.0)),
        ),
        Ablation(
            "scale", "height of the face in a training view", "smallest and largest fraction of the view",
            tuple(
                Variant(f"{a:g} to {b:g}", {"face_height_min": a, "face_height_max": b})
                for a, b in ((0.2, 0.35), (0.36, 0.6), (0.52, 0.6), (0.6, 0.8), (0.2, 1.0))
            ),
        ),
        Ablation(
            "middle", "vertical position of the face in a training view", "fraction of the view's height, from its top",
            tuple(Variant(f"{m:g}", {"face_center_y": m}) for m in (0.42, 0.45, 0.485, 0.52, 0.55)),
        ),
        Ablation(
            "captions", "caption templates", "",
            (Variant("photo"), Variant("imagenet, face of ... person", {"captions": "imagenet"})),
        ),
        Ablation(
            "rho", "bound on the coefficients", "bound in celebrity standard deviations",
            tuple(Variant(f"{b:g}", {"bound": b}) for b in (0.5, 1.0, 1.5, 2.5, 4.0)),
        ),
        Ablation(
            "noise", "highest noise level of the timesteps", "standard deviation of the noise over that of the latents",
            tuple(
                Variant(f"{n:g}" if n else "all", {"max_noise_sigma": n}) for n in (0.8, 1.2, 1.6, 2.3, 3.3, 0.0)
            ),
        ),
        Ablation(
            "joint", "people learned in one call", "people per call",
            tuple(Variant(str(n), people_per_call=n) for n in (1, 2, 4, 8)),
        ),
    )
}  # fmt: skip


# Running them


@dataclass
class AblationRunner:
    """The loaded model and the settings that all variants share. first: seed of the first person."""

    parts: DiffusionParts
    scorer: WorldScorer
    finder: OnnxFaceAnalyser
    config: LearnConfig
    people: int
    first: int
    seeds: int
    work: Path
    results: Path
    force: bool

    def run(self, ablation: Ablation, variant: Variant) -> CohortMetrics:
        """Learn and measure one variant."""
        learning = self._config(variant)
        seeds = [self.first + i for i in range(self.people)]
        store = ResultsStore(
            self.work / ablation.name / file_stem(variant.label),
            {"model": self.parts.table_hash, "weights": self.parts.weights_digest, "learning": learning.to_dict(),
             "people": seeds, "seeds": self.seeds, "people_per_call": variant.people_per_call,
             "direct": variant.direct,
             "prompts": [p.text for p in WORLD_PROMPTS], "mapper": ModelAssets.of(self.parts).mapper_digest},
        )  # fmt: skip
        store.open(self.force)
        model_basis = build_basis(self.parts, release=learning.names == "release")
        basis, parts = model_basis, self.parts
        if variant.basis is not None:
            basis = variant.basis(self.parts, model_basis)
            parts = rebase(self.parts, model_basis, basis, store.folder / "mapper.safetensors")
        with patch(
            "celebctl.learning.trainer.CoefficientMapper", DirectMapper if variant.direct else CoefficientMapper
        ):
            model = PreparedModel(parts, basis, ModelAssets.of(parts))
            learner = PeopleLearner(model, self.finder, learning, variant.people_per_call)
            learned = learner.learn(seeds, store.folder, _printer(variant.label))
        images = generator_for(self.parts, [one.identity for one in learned])
        generators = [SubjectGenerators(images, images, one.learn_seconds, one.size_bytes) for one in learned]
        cohort = unseen_people_cohort(self.scorer, seeds, ring_partners(self.people), variant.label)
        config = EvalConfig(WORLD_PROMPTS, self.seeds, self.scorer)
        progress = _printer(variant.label)
        records = store.run(config, cohort, generators.__getitem__, group="people", progress=progress)
        metrics = compute_metrics(variant.label, records, WORLD_PROMPTS)
        for record in records:
            metrics.people[record.name]["clarity"] = clarity(self.scorer, record, WORLD_PROMPTS)
        metrics.summary["clarity"] = estimate(row["clarity"] for row in metrics.people.values())
        return metrics

    def _config(self, variant: Variant) -> LearnConfig:
        changes = dict(variant.changes)
        if "learning_rate" in changes:
            changes["learning_rate"] = self.config.learning_rate * changes["learning_rate"]
        return replace(self.config, **changes)


def _printer(label: str) -> ProgressCallback:
    def show(event: Progress) -> None:
        sys.stderr.write(f"\r{label}: {event.stage} {event.step}/{event.total}    ")
        sys.stderr.flush()

    return show


def draw_chart(ablation: Ablation, metrics: Sequence[CohortMetrics], path: Path) -> None:
    """Likeness, likeness in pairs and prompt fidelity of each variant with their intervals, as PNG."""
    series = {"likeness": "likeness", "pair_likeness": "likeness in pairs", "prompt_fidelity": "prompt"}
    with chart_style():
        figure = Figure((9, 5), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(ablation.about)
        axes.set_xticks(range(len(metrics)), [one.title for one in metrics])
        axes.set_xlabel(ablation.axis)
        line = "-" if ablation.axis else ""
        for key, label in series.items():
            points = [(x, value) for x, one in enumerate(metrics) if (value := one.summary.get(key)) is not None]
            axes.errorbar(
                [x for x, _ in points], [value.mean for _, value in points], [value.half_width for _, value in points],
                label=label, marker="o", linestyle=line, capsize=3,
            )  # fmt: skip
        axes.legend()
        to_image(figure).save(path)


def report(ablation: Ablation, metrics: Sequence[CohortMetrics], runner: AblationRunner) -> None:
    """Tables on stdout; JSON and chart as files."""
    head, cells = summary_table(metrics)
    print("\n" + "\n".join(markdown(head, cells)))
    keys = {**COMPARED, "clarity": "clarity"}
    leads = [[one.title, *(describe_difference(lead(one, metrics[0], key)) for key in keys)] for one in metrics[1:]]
    print("\n" + "\n".join(markdown([f"against {metrics[0].title}", *keys.values()], leads)))
    file = runner.results / f"ablation-{ablation.name}.json"
    settings = {
        "people": runner.people,
        "first": runner.first,
        "seeds": runner.seeds,
        "learning": runner.config.to_dict(),
    }
    document = {"about": ablation.about, "settings": settings, "variants": [one.to_json() for one in metrics]}
    atomic_write(file, (json.dumps(document, indent=1) + "\n").encode())
    chart = file.with_suffix(".png")
    draw_chart(ablation, metrics, chart)
    print(f"{file}, {chart}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=[*ABLATIONS], metavar="NAME")
    parser.add_argument("--list", action="store_true", help="list the ablations")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--preset", default="clean", choices=[*PRESETS])
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--first", type=int, default=FIRST_UNSEEN_SEED, help="seed of the first person")
    parser.add_argument("--seeds", type=int, default=1, help="images per prompt and person")
    parser.add_argument("--variants", nargs="+", help="labels of the variants (default: all)")
    parser.add_argument(
        "--work", type=Path, default=Path("out/ablations"), help="folder of records per variant and person"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--force", action="store_true", help="discard results of other settings in --work")
    args = parser.parse_args()
    if args.list or args.name is None:
        for one in ABLATIONS.values():
            print(f"{one.name:12s} {one.about}: {', '.join(v.label for v in one.variants)}")
        return
    parts = load_parts(args.model)
    if parts.card.scoring_dir is None or parts.card.faces_dir is None or len(parts.text_encoders) != 1:
        parser.error(f"{args.model} has no scoring networks; ablations run on mini")
    finder = OnnxFaceAnalyser(parts.card.faces_dir)
    config = PRESETS[args.preset] if args.steps is None else replace(PRESETS[args.preset], steps=args.steps)
    scorer = WorldScorer(parts.card.scoring_dir, finder)
    runner = AblationRunner(
        parts, scorer, finder, config, args.people, args.first, args.seeds, args.work, args.out, args.force
    )
    ablation = ABLATIONS[args.name]
    variants = [v for v in ablation.variants if not args.variants or v.label in args.variants]
    if not variants:
        parser.error(f"{args.name} has the variants {', '.join(v.label for v in ablation.variants)}")
    report(ablation, [runner.run(ablation, variant) for variant in variants], runner)


if __name__ == "__main__":
    main()
