"""Ablations: a changed basis keeps the initial embeddings, and the command writes its metrics."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from benchmark_fakes import K, random_basis
from PIL import Image

from celebctl.basis.basis import CelebBasis
from celebctl.learning.config import LearnConfig

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")


@pytest.mark.parametrize("change", ["flat_spread", "without_mean", "first_components"])
def test_a_changed_basis_keeps_the_initial_embeddings(
    change: str, bench: Any, tiny_parts: DiffusionParts, tmp_path: Path
) -> None:
    from celebctl.learning.mapper import CoefficientMapper, PretrainedMapper
    from celebctl.mapper_training.mapper_store import load_mapper, save_mapper

    ablations, old = bench["ablations"], random_basis()
    generator = torch.Generator().manual_seed(0)
    pretrained = PretrainedMapper(old.size, 8, 12)
    with torch.no_grad():
        pretrained.up.bias.normal_(generator=generator)
    save_mapper(pretrained, old, tmp_path / "old.safetensors")
    parts = replace(tiny_parts, card=replace(tiny_parts.card, mapper_file=tmp_path / "old.safetensors"))
    make = ablations.first_components(3) if change == "first_components" else getattr(ablations, change)
    new = make(parts, old)
    moved = ablations.rebase(parts, old, new, tmp_path / "new.safetensors")
    feature = torch.nn.functional.normalize(torch.randn(1, 512, generator=generator), dim=1)

    def initial_embedding(basis: CelebBasis, file: Path) -> Any:
        mapper = CoefficientMapper(basis, LearnConfig(bound=1e4), generator)
        mapper.init_from_pretrained(load_mapper(file, basis))
        coefficients = tuple(part[0].detach().numpy() for part in mapper.split(mapper(feature)))
        return basis.embed(coefficients)[0]

    before = initial_embedding(old, tmp_path / "old.safetensors")
    after = initial_embedding(new, moved.card.mapper_file)
    if change == "flat_spread":
        assert after == pytest.approx(before, abs=2e-2)  # the file holds float16
    else:  # only the part outside the new basis is lost
        flat = new.components[0]
        projected = new.mean[0] + np.einsum("jd,jkd,jke->je", before - new.mean[0], flat, flat)
        assert after == pytest.approx(projected, abs=2e-2)


def test_direct_coefficients_are_initialized_like_the_mapper(bench: Any) -> None:
    direct = bench["ablations"].DirectMapper(random_basis(), LearnConfig(), torch.Generator().manual_seed(0))
    plain = bench["ablations"].CoefficientMapper(random_basis(), LearnConfig(), torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(torch.randn(3, 512), dim=1)
    assert torch.equal(direct.normalized(features), plain.normalized(features))
    learned = [name for name, p in direct.named_parameters() if p.requires_grad]
    assert learned == ["coefficients"] and direct.coefficients.shape == (3, 2 * 2 * K // 2)
    from celebctl.learning.mapper import PretrainedMapper

    pretrained = PretrainedMapper(random_basis().size, 8, 12)
    mapper_types: list[Any] = [bench["ablations"].DirectMapper, type(plain)]
    mappers = [mapper_type(random_basis(), LearnConfig(), torch.Generator()) for mapper_type in mapper_types]
    for mapper in mappers:
        mapper.init_from_pretrained(pretrained)
    first, second = (mapper.normalized(features) for mapper in mappers)
    assert torch.equal(first, second) and bool(second.any())


@pytest.mark.parametrize(
    ("name", "variants"), [("pooled", ["separate", "pooled"]), ("names", ["25", "50"]), ("mask", ["0", "0.05"])]
)
def test_an_ablation_learns_with_its_changes_and_writes_its_results(
    name: str, variants: list[str], bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The command itself on mini: two people, one step, one prompt."""
    from celebctl.evaluation.cohorts import PeopleLearner
    from celebctl.evaluation.prompts import Prompt

    ablations = bench["ablations"]
    used: list[Any] = []

    def learner(model: Any, finder: Any, config: Any, *rest: Any) -> Any:
        used.append((model.basis.hash, model.basis.names, config.background_weight))
        return PeopleLearner(model, finder, config, *rest)

    monkeypatch.setattr(ablations, "WORLD_PROMPTS", (Prompt("reconstruction", "a photo of {}", {}),))
    monkeypatch.setattr(ablations, "PeopleLearner", learner)
    arguments = ["--people", "2", "--steps", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ablations.py", name, *arguments, "--variants", *variants])
    ablations.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == [
        "cohort", "---", *variants, f"against {variants[0]}", "---", variants[1],
    ]  # fmt: skip
    document = json.loads((tmp_path / f"ablation-{name}.json").read_text())
    assert [one["title"] for one in document["variants"]] == variants and document["settings"]["people"] == 2
    clarity = [one["summary"]["clarity"]["mean"] for one in document["variants"]]
    assert f"{clarity[1] - clarity[0]:+.3f}" in table[-1]
    with Image.open(tmp_path / f"ablation-{name}.png") as chart:
        assert chart.size == (900, 500)
    (one, other), work = used, tmp_path / "work" / name
    people = [work / ablations.file_stem(variant) / "learned" / "p1000.safetensors" for variant in variants]
    if name == "mask":
        assert one[0] == other[0] and (one[2], other[2]) == (0.0, 0.05)
    else:
        assert one[0] != other[0] and (name != "names" or (one[1], other[1]) == (25, 50))
    from celebctl_runtime.identity import Identity

    assert [Identity.load(file).basis_hash for file in people] == [one[0], other[0]]


def test_every_ablation_of_the_paper_has_a_command(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = "names components mean spread pooled start direct mask scale middle captions rho".split()
    assert list(bench["ablations"].ABLATIONS) == [*names, "noise", "joint"]
    fields = set(LearnConfig.__dataclass_fields__)
    for one in bench["ablations"].ABLATIONS.values():
        assert len({variant.label for variant in one.variants}) == len(one.variants) >= 2
        assert all(set(variant.changes) <= fields for variant in one.variants)
    json.dumps([v.changes for one in bench["ablations"].ABLATIONS.values() for v in one.variants])
