"""People as vectors: what the likeness dial, mixing, inventing and `nearest` are worth, judged on mini.

    python -m benchmarks.vectors --work DIR                 # 16 unseen people, 24 sampled_identity, 3 pictures each
    python -m benchmarks.vectors --work DIR --people 4 --sampled_identity 4

Agreement is the mean cosine of the judge's features between pictures of the same person under different prompts; the
judge is the one of likeness.py. ``celebctl mix`` goes in a straight line, which brings two unlike people nearer to the
average than either is; beside it stands the same mix with the parents' distance from the average kept. ``celebctl
invent`` is compared with the model's own celebrities. For ``celebctl nearest``, the correlation over all pairs of a
learned person and a celebrity between closeness of the vectors and of the true looks, which mini's world knows. For
``gen --likeness``, how like the true person pictures are at each share.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.layout import scorer_of, unseen_people
from benchmarks.likeness import in_batches, reference_scores
from celebctl.basis.basis import CelebBasis
from celebctl.basis.identity_vectors import Celebrities, celebrities_of, deviations, mix, sampled_identity
from celebctl.basis.text_features import text_features
from celebctl.evaluation.scorers import WorldScorer
from celebctl.learning.instant import identity_prior
from celebctl.learning.prepared import prepare
from celebctl.learning.sampling import rows_of
from celebctl_models.checkpoints.diffusion import DiffusionParts, load_parts
from celebctl_models.mini.names import name_book
from celebctl_models.mini.world import PromptFacts, person
from celebctl_runtime.identity import Identity
from celebctl_runtime.prompting.likeness import scale_identity

Doubles = NDArray[np.float64]

#: Prompts that leave the face alone, and what the picture must show.
PROMPTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("a photo of {}", {"two": "one"}),
    ("{} on the beach", {"two": "one", "place": "beach"}),
    ("{} in a suit", {"two": "one", "worn": "suit"}),
)
SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Pictures of n people. means: (n, F) unit rows; agreement: (n,), of a person's own pictures; others: mean cosine
    between different people; found: share of pictures with a face; caption: share of what is stated that is seen."""

    means: Doubles
    agreement: Doubles
    others: float
    found: float
    caption: float

    def to_dict(self) -> dict[str, float]:
        interval = 1.96 * float(self.agreement.std(ddof=1)) / len(self.agreement) ** 0.5
        return {
            "agreement": float(self.agreement.mean()), "interval": interval, "others": self.others,
            "found": self.found, "caption": self.caption,
        }  # fmt: skip


def see(parts: DiffusionParts, scorer: WorldScorer, people: Sequence[Identity | str]) -> ImageScores:
    """Draw everybody under every prompt; a name is drawn as it is, an identity by its rows."""
    rows = {who.name: rows_of(who) for who in people if isinstance(who, Identity)}
    called = [f"<{who.name}>" if isinstance(who, Identity) else who for who in people]
    prompts = [text.format(name) for name in called for text, _ in PROMPTS]
    seeds = [70 + 1009 * i + 31 * p for i in range(len(people)) for p in range(len(PROMPTS))]
    judged = scorer.score(in_batches(parts, prompts, seeds, rows))
    width = max(one.features.shape[1] for one in judged)
    features = np.stack([one.features[0] if len(one.features) else np.zeros(width) for one in judged])
    features = features.astype(np.float64).reshape(len(people), len(PROMPTS), width)
    right = [said.attributes[k] == v for said, i in zip(judged, range(len(judged)), strict=True)
             for k, v in PROMPTS[i % len(PROMPTS)][1].items()]  # fmt: skip
    cosines = np.einsum("npf,nqf->npq", features, features)[:, *np.triu_indices(len(PROMPTS), 1)]
    means = features.mean(1) / np.maximum(np.linalg.norm(features.mean(1), axis=1, keepdims=True), 1e-9)
    others = (means @ means.T)[np.triu_indices(len(people), 1)]
    return ImageScores(
        means, cosines.mean(1), float(others.mean()), float(features.any(-1).mean()), float(np.mean(right))
    )


def kept_distance(mix: Identity, one: Identity, other: Identity, basis: CelebBasis) -> Identity:
    """The mix moved away from the average, each name part as far as its parents are on average."""
    rows: list[NDArray[np.float32]] = []
    for e, mean in enumerate(basis.mean):
        here, a, b = (who.embeddings[e] - mean for who in (mix, one, other))
        wanted = (np.linalg.norm(a, axis=1) + np.linalg.norm(b, axis=1)) / 2
        rows.append((mean + here * (wanted / np.linalg.norm(here, axis=1))[:, None]).astype(np.float32))
    return replace(mix, embeddings=tuple(rows))


def measure_mixes(
    parts: DiffusionParts, scorer: WorldScorer, people: Sequence[Identity], basis: CelebBasis
) -> dict[str, object]:
    half = len(people) // 2
    pairs = list(zip(people[:half], people[half : 2 * half], strict=True))
    parents = see(parts, scorer, people[: 2 * half])
    straight = [mix(pair, (0.5, 0.5), name=f"m{i}") for i, pair in enumerate(pairs)]
    kept = [kept_distance(mix, *pair, basis) for mix, pair in zip(straight, pairs, strict=True)]
    figures: dict[str, object] = {"parents": parents.to_dict()}
    for name, mixes in (("straight line", straight), ("distance kept", kept)):
        seen = see(parts, scorer, mixes)
        near = np.stack([(seen.means * parents.means[k : k + half]).sum(1) for k in (0, half)])
        figures[name] = {**seen.to_dict(), "to both": float(near.mean()), "to the farther": float(near.min(0).mean())}
    return figures


def measure_dial(
    parts: DiffusionParts, scorer: WorldScorer, people: Sequence[Identity], z: Doubles, basis: CelebBasis
) -> dict[str, object]:
    """Share of likeness -> how like the true person pictures are (mean cosine), and what ``Seen`` tells."""
    true = [reference_scores(scorer, z.astype(np.float32), PromptFacts(), 10**6 * r) for r in (1, 2)]
    looks = np.stack([np.mean([look[i].features[0] for look in true], 0) for i in range(len(people))])
    figures: dict[str, object] = {}
    for share in SHARES:
        moved = [replace(one, embeddings=scale_identity(one.embeddings, basis.mean, share)) for one in people]
        seen = see(parts, scorer, moved)
        likeness = (seen.means * looks).sum(1) / np.linalg.norm(looks, axis=1)
        figures[f"{share:g}"] = {"likeness": float(likeness.mean()), **seen.to_dict()}
    return figures


def measure_nearest(
    parts: DiffusionParts, people: Sequence[Identity], z: Doubles, celebrities: Celebrities, basis: CelebBasis
) -> dict[str, object]:
    """Correlation, over celebrities, between how alike they are to somebody by a measure and in truth."""
    book = name_book()
    looks = dict(zip(book.names, book.celebrities(), strict=True))
    true = cosines(z, np.stack([looks[name] for name in celebrities.names]))
    ours = [np.stack([one.embeddings[e] for one in people]) for e in range(len(basis.mean))]
    there = text_features(parts, celebrities.rows)
    read = [points - there.mean(0) for points in (text_features(parts, ours), there)]
    points = [deviations(rows, basis).reshape(len(rows[0]), -1) for rows in (ours, celebrities.rows)]
    units = [in_units(rows, basis) for rows in (ours, celebrities.rows)]
    return {
        name: float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(cosines(*both), true, strict=True)]))
        for name, both in (
            ("as the model reads names", read),
            ("token rows", points),
            ("coefficients, all alike", units),
        )
    }


def in_units(rows: Sequence[NDArray[np.float32]], basis: CelebBasis) -> Doubles:
    """Token rows, E arrays (n, 2, D), as coefficients in celebrity standard deviations, (n, S)."""
    parts = [basis.project(part, e) / np.maximum(basis.spread[e], 1e-12) for e, part in enumerate(rows)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).astype(np.float64)


def cosines(a: Doubles, b: Doubles) -> Doubles:
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--first", type=int, default=1000, help="seed of the first person")
    parser.add_argument("--sampled_identity", type=int, default=24)
    parser.add_argument("--together", type=int, default=8, help="people per learn call")
    parser.add_argument("--work", type=Path, required=True, help="where learned people are kept")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    parts = load_parts(args.model)
    prepared, scorer = prepare(parts), scorer_of(parts)
    basis = prepared.basis
    seeds = [args.first + i for i in range(args.people)]
    people = unseen_people(prepared, seeds, args.work / parts.weights_digest, args.together)
    celebrities = celebrities_of(parts, prepared.assets.names)
    shuffled: list[int] = np.random.Generator(np.random.PCG64(5)).permutation(len(celebrities.names)).tolist()
    chosen = [celebrities.names[i] for i in shuffled[: args.sampled_identity]]
    model, met = (parts.family, parts.table_hash), identity_prior(prepared.assets.mapper, basis)
    nobody = [sampled_identity(f"n{k}", k, celebrities, basis, model, met)[0] for k in range(args.sampled_identity)]
    z = np.stack([person(seed) for seed in seeds]).astype(np.float64)
    figures = {
        "likeness": measure_dial(parts, scorer, people, z, basis),
        "mix": measure_mixes(parts, scorer, people, basis),
        "celebrities": see(parts, scorer, chosen).to_dict(),
        "invent": see(parts, scorer, nobody).to_dict(),
        "nearest": measure_nearest(parts, people, z, celebrities, basis),
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
