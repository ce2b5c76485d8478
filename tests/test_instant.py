"""`learn --instant`: the answer of the model's mapper, the same with and without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from celebctl.basis.basis import CelebBasis, build_basis, read_tensors
from celebctl.basis.celebrities import CelebrityFaces, save_faces
from celebctl.learning.config import CLEAN
from celebctl.learning.instant import instant_people
from celebctl.learning.prepared import prepare
from celebctl.learning.subject import analyse_photo
from celebctl.learning.trainer import learn_people
from celebctl.mapper_training.mapper_store import read_layers
from celebctl_models.checkpoints.diffusion import DiffusionParts, load_parts
from celebctl_models.checkpoints.token_tables import TokenTableParts, load_tables
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.world import draw_portrait
from celebctl_runtime.errors import IntegrityError
from celebctl_runtime.identity import Identity

CONFIG = replace(CLEAN, steps=0)


@pytest.fixture(scope="module")
def whole() -> DiffusionParts:
    return load_parts("mini")


@pytest.fixture(scope="module")
def tables() -> TokenTableParts:
    return load_tables("mini")


@pytest.fixture(scope="module")
def basis(tables: TokenTableParts) -> CelebBasis:
    return build_basis(tables)


def faces_of_unseen_people(parts: DiffusionParts | TokenTableParts, path: Path) -> Path:
    names = (parts.card.names_file or path).read_text().split("\n")[:60]
    faces = np.random.default_rng(0).standard_normal((60, 512)).astype(np.float32)
    save_faces(CelebrityFaces(tuple(names), faces), parts.table_hash, path)
    return path


@pytest.mark.parametrize("init", ["fitted", "celebrities"])
def test_instant_people_are_those_of_no_steps(
    init: str, whole: DiffusionParts, tables: TokenTableParts, basis: CelebBasis, tmp_path: Path
) -> None:
    assert whole.card.faces_dir is not None
    analyser, names = OnnxFaceAnalyser(whole.card.faces_dir), ["alice", "bob"]
    subjects = [analyse_photo(analyser, draw_portrait(21 + i, 256), name) for i, name in enumerate(names)]
    if init == "celebrities":
        file = faces_of_unseen_people(tables, tmp_path / "faces.safetensors")
        card = replace(tables.card, features_file=file, mapper_file=None)
        whole = replace(whole, card=card)
        tables = replace(tables, card=card)
    slow = learn_people(prepare(whole), subjects, CONFIG)
    quick = instant_people(prepare(tables), subjects, CONFIG)
    for one, other in zip(slow, quick, strict=True):
        np.testing.assert_allclose(one.coefficients[0], other.coefficients[0], atol=2e-6)
        np.testing.assert_allclose(one.embeddings[0], other.embeddings[0], atol=2e-6)
        trained, instant = (dict(p.provenance) for p in (one, other))
        for fact in ("torch", "framing", "seconds", "prediction", "clip_skip"):  # of training with the networks
            assert trained.pop(fact)
        assert trained == instant and instant["init"] == init
        assert (one.name, one.basis_hash, one.table_hash, one.family) == (
            other.name, other.basis_hash, other.table_hash, other.family,
        )  # fmt: skip
    assert np.abs(quick[0].coefficients[0] - quick[1].coefficients[0]).max() > 1e-3, "two faces, two people"


def test_damaged_layers_are_refused(tables: TokenTableParts, basis: CelebBasis, tmp_path: Path) -> None:
    assert tables.card.mapper_file is not None
    layers, _ = read_tensors(tables.card.mapper_file)
    short = tmp_path / "mapper.safetensors"
    cut = {**layers, "up.weight": layers["up.weight"][:-1].copy()}
    short.write_bytes(save(cut, metadata={"basis": basis.hash}))
    with pytest.raises(IntegrityError, match="another shape"):
        read_layers(short, basis)
    short.write_bytes(tables.card.mapper_file.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_layers(short, basis)
    with pytest.raises(IntegrityError) as error:
        read_layers(tables.card.mapper_file, replace(basis, names=3))
    assert error.value.reason == "mapper_of_other_basis"


def test_the_command_learns_without_torch_and_without_a_sheet(basis: CelebBasis, tmp_path: Path) -> None:
    draw_portrait(21, 256).save(tmp_path / "face.png")
    code = (
        "import sys; from celebctl.cli import main; code = main(['learn', 'face.png', '--name', 'alice', '--instant']);"
        "print('torch' in sys.modules); sys.exit(code)"
    )
    home = {**os.environ, "CELEBCTL_HOME": str(tmp_path / "home"), "CELEBCTL_MODEL": "mini"}
    for name in ("CELEBCTL_FACE_MODELS", "CELEBCTL_PRESET"):
        home.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path, env=home
    )
    assert result.returncode == 0, result.stderr
    file, torch_is_there = result.stdout.splitlines()
    person = Identity.load(Path(file))
    assert torch_is_there == "False" and person.basis_hash == basis.hash and person.provenance["steps"] == "0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.png", "home"], "no sheet unless asked for"
