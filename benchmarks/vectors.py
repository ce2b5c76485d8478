"""Operations on identity vectors, scored on mini: likeness scale, mixing, sampling, nearest celebrity.

    python -m benchmarks.vectors --work DIR                 # 16 unseen people, 24 sampled identities, 3 images each
    python -m benchmarks.vectors --work DIR --people 4 --sampled-identities 4

Agreement is the mean cosine of face features between images of the same person under different prompts; the scoring
networks are those of likeness.py.

- ``gen --likeness``: cosine between generated faces and references of the person at each scale.
- ``celebctl mix``: a linear mix of two dissimilar people is closer to the average celebrity than either of them. The
  mix that keeps the parents' distance from the average is measured for comparison.
- ``celebctl sample``: agreement of sampled identities beside that of the model's own celebrities.
- ``celebctl nearest``: correlation, over all pairs of a learned person and a celebrity, of the cosine of their vectors
  with that of their factors in mini's world.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.layout import unseen_people
from benchmarks.likeness import generate_images, load_scorer, prompt_statements_met, reference_scores
from celebctl.basis.basis import CelebBasis
from celebctl.basis.identity_vectors import Celebrities, celebrities_of, deviations, mix, sampled_identity
from celebctl.basis.text_features import text_features
from celebctl.evaluation.prompts import Prompt
from celebctl.evaluation.scorers import WorldScorer
from celebctl.learning.instant import identity_prior
from celebctl.learning.prepared import prepare
from celebctl.learning.sampling import rows_of
from celebctl_models.checkpoints.diffusion import DiffusionParts, load_parts
from celebctl_models.mini.names import name_book
from celebctl_models.mini.world import person
from celebctl_runtime.identity import Identity
from celebctl_runtime.prompting.likeness import scale_identity

Doubles = NDArray[np.float64]

#: Prompts that leave the face visible and unchanged.
PROMPTS = (
    Prompt("reconstruction", "a photo of {}"),
    Prompt("action", "{} on the beach", {"place": "beach"}),
    Prompt("action", "{} in a suit", {"worn": "suit"}),
)
SCALES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class CohortScores:
    """Scores of the images of n people.

    Attributes:
        means: Mean face feature of each person, (n, D), of length 1.
        agreement: Mean cosine between a person's own images, (n,).
        others: Mean cosine between different people.
        found: Share of images with a face.
        caption: Share of the prompts' statements that the images meet.
    """

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


def score_people(parts: DiffusionParts, scorer: WorldScorer, people: Sequence[Identity | str]) -> CohortScores:
    """Generate and score an image of each person and prompt. A string is a name that the model knows."""
    rows = {one.name: rows_of(one) for one in people if isinstance(one, Identity)}
    names = [f"<{one.name}>" if isinstance(one, Identity) else one for one in people]
    texts = [prompt.text.format(name) for name in names for prompt in PROMPTS]
    seeds = [70 + 1009 * i + 31 * p for i in range(len(people)) for p in range(len(PROMPTS))]
    scored = scorer.score(generate_images(parts, texts, seeds, rows))
    width = max(scores.features.shape[1] for scores in scored)
    features = np.stack([scores.features[0] if len(scores.features) else np.zeros(width) for scores in scored])
    features = features.astype(np.float64).reshape(len(people), len(PROMPTS), width)
    met = [ok for i, scores in enumerate(scored) for ok in prompt_statements_met(PROMPTS[i % len(PROMPTS)], scores)]
    own = np.einsum("npf,nqf->npq", features, features)[:, *np.triu_indices(len(PROMPTS), 1)]
    means = features.mean(1) / np.maximum(np.linalg.norm(features.mean(1), axis=1, keepdims=True), 1e-9)
    others = (means @ means.T)[np.triu_indices(len(people), 1)]
    return CohortScores(
        means, own.mean(1), float(others.mean()), float(features.any(-1).mean()), float(np.mean(met))
    )  # fmt: skip


def restore_distance(mixed: Identity, one: Identity, other: Identity, basis: CelebBasis) -> Identity:
    """The mix with each name part as far from the average celebrity as its parents are on average."""
    rows: list[NDArray[np.float32]] = []
    for e, mean in enumerate(basis.mean):
        offset, a, b = (identity.embeddings[e] - mean for identity in (mixed, one, other))
        distance = (np.linalg.norm(a, axis=1) + np.linalg.norm(b, axis=1)) / 2
        rows.append((mean + offset * (distance / np.linalg.norm(offset, axis=1))[:, None]).astype(np.float32))
    return replace(mixed, embeddings=tuple(rows))


def measure_mixes(
    parts: DiffusionParts, scorer: WorldScorer, people: Sequence[Identity], basis: CelebBasis
) -> dict[str, object]:
    """Cosines of half-way mixes to both parents."""
    half = len(people) // 2
    pairs = list(zip(people[:half], people[half : 2 * half], strict=True))
    parents = score_people(parts, scorer, people[: 2 * half])
    linear = [mix(pair, (0.5, 0.5), name=f"m{i}") for i, pair in enumerate(pairs)]
    restored = [restore_distance(mixed, *pair, basis) for mixed, pair in zip(linear, pairs, strict=True)]
    results: dict[str, object] = {"parents": parents.to_dict()}
    for name, mixes in (("linear", linear), ("distance kept", restored)):
        scores = score_people(parts, scorer, mixes)
        cosines = np.stack([(scores.means * parents.means[k : k + half]).sum(1) for k in (0, half)])
        results[name] = {
            **scores.to_dict(), "to both": float(cosines.mean()), "to the farther": float(cosines.min(0).mean())
        }  # fmt: skip
    return results


def measure_likeness_scale(
    parts: DiffusionParts, scorer: WorldScorer, people: Sequence[Identity], z: Doubles, basis: CelebBasis
) -> dict[str, object]:
    """Scale -> mean cosine of the images to references of the person, and `CohortScores.to_dict`."""
    renders = [reference_scores(scorer, z.astype(np.float32), PROMPTS[0], 10**6 * r) for r in (1, 2)]
    references = np.stack([np.mean([scores[i].features[0] for scores in renders], 0) for i in range(len(people))])
    results: dict[str, object] = {}
    for scale in SCALES:
        scaled = [replace(one, embeddings=scale_identity(one.embeddings, basis.mean, scale)) for one in people]
        scores = score_people(parts, scorer, scaled)
        likeness = (scores.means * references).sum(1) / np.linalg.norm(references, axis=1)
        results[f"{scale:g}"] = {"likeness": float(likeness.mean()), **scores.to_dict()}
    return results


def measure_nearest(
    parts: DiffusionParts, people: Sequence[Identity], z: Doubles, celebrities: Celebrities, basis: CelebBasis
) -> dict[str, object]:
    """Correlation over celebrities between each measure of similarity to a person and that of the factors."""
    book = name_book()
    factors = dict(zip(book.names, book.celebrities(), strict=True))
    true = cosines(z, np.stack([factors[name] for name in celebrities.names]))
    ours = [np.stack([one.embeddings[e] for one in people]) for e in range(len(basis.mean))]
    theirs = text_features(parts, celebrities.rows)
    features = [points - theirs.mean(0) for points in (text_features(parts, ours), theirs)]
    embeddings = [deviations(rows, basis).reshape(len(rows[0]), -1) for rows in (ours, celebrities.rows)]
    coefficients = [normalized_coefficients(rows, basis) for rows in (ours, celebrities.rows)]
    return {
        name: float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(cosines(*both), true, strict=True)]))
        for name, both in (
            ("text encoder features", features),
            ("token embeddings", embeddings),
            ("normalized coefficients", coefficients),
        )
    }


def normalized_coefficients(rows: Sequence[NDArray[np.float32]], basis: CelebBasis) -> Doubles:
    """Embeddings, E arrays (n, 2, D), as coefficients in celebrity standard deviations, (n, S)."""
    parts = [basis.project(part, e) / np.maximum(basis.spread[e], 1e-12) for e, part in enumerate(rows)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).astype(np.float64)


def cosines(a: Doubles, b: Doubles) -> Doubles:
    """Cosines (n, m) between rows (n, D) and (m, D)."""
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--first", type=int, default=1000, help="seed of the first person")
    parser.add_argument("--sampled-identities", type=int, default=24)
    parser.add_argument("--people-per-call", type=int, default=8, help="people learned in one call")
    parser.add_argument("--work", type=Path, required=True, help="folder of learned people")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    parts = load_parts(args.model)
    prepared, scorer = prepare(parts), load_scorer(parts)
    basis = prepared.basis
    seeds = [args.first + i for i in range(args.people)]
    people = unseen_people(prepared, seeds, args.work / parts.weights_digest, args.people_per_call)
    celebrities = celebrities_of(parts, prepared.assets.names)
    shuffled: list[int] = np.random.Generator(np.random.PCG64(5)).permutation(len(celebrities.names)).tolist()
    names = [celebrities.names[i] for i in shuffled[: args.sampled_identities]]
    model, prior = (parts.family, parts.table_hash), identity_prior(prepared.assets.mapper, basis)
    sampled = [
        sampled_identity(f"n{k}", k, celebrities, basis, model, prior)[0] for k in range(args.sampled_identities)
    ]
    z = np.stack([person(seed) for seed in seeds]).astype(np.float64)
    results = {
        "likeness": measure_likeness_scale(parts, scorer, people, z, basis),
        "mix": measure_mixes(parts, scorer, people, basis),
        "celebrities": score_people(parts, scorer, names).to_dict(),
        "sampled": score_people(parts, scorer, sampled).to_dict(),
        "nearest": measure_nearest(parts, people, z, celebrities, basis),
    }
    text = json.dumps(results, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
