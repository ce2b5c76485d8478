"""Learning as a GPU does it: frozen networks in half precision or run again block by block, coefficients in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import write_pipeline
from learn_fakes import load_named, new_trainer

torch: Any = pytest.importorskip("torch")
pytest.importorskip("insightface")

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision") / "tiny"
    write_pipeline(folder, "epsilon")
    return folder


def cosine(a: Any, b: Any) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def gradient(trainer: Any) -> Any:
    """Of the loss of the coming batch by the coefficients, (P, S); the next step sees the same batch."""
    before = trainer.generator.get_state()
    batch = trainer.sample_batch()
    trainer.generator.set_state(before)
    coefficients = trainer.mapper(trainer.features).detach().requires_grad_()
    rows = [part[batch.person_index] for part in trainer.embed(trainer.mapper.split(coefficients))]
    loss = (trainer.denoising_loss.squared_error(batch, rows) * batch.weight).sum() * trainer.denoising_loss.loss_scale
    return torch.autograd.grad(loss, coefficients)[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_networks_teach_float32_coefficients_what_whole_ones_do(folder: Path, dtype: str) -> None:
    whole = new_trainer(load_named(folder))
    half = new_trainer(load_named(folder, dtype=getattr(torch, dtype)))
    assert half.model.parts.denoiser.dtype == half.model.parts.vae.dtype == getattr(torch, dtype)
    assert half.model.parts.text_encoders[0].dtype == torch.float32
    plain, found = gradient(whole), gradient(half)
    assert found.dtype == torch.float32 and cosine(plain, found) > 0.97
    for _ in range(4):
        assert half.train_step() == pytest.approx(whole.train_step(), rel=0.05)
    assert all(p.dtype == torch.float32 for p in half.mapper.parameters())
    (one,), (other,) = whole.identities(), half.identities()
    moved, apart = np.asarray(one.coefficients[0]), np.asarray(other.coefficients[0]) - np.asarray(one.coefficients[0])
    assert other.coefficients[0].dtype == np.float32 and np.abs(moved).max() > 0
    assert np.linalg.norm(apart) < 0.3 * np.linalg.norm(moved), "the scale of the float16 loss is taken back"


def test_blocks_that_are_run_again_give_the_same_gradient(folder: Path) -> None:
    plain, again = new_trainer(load_named(folder)), new_trainer(load_named(folder))
    again.model.parts.denoiser.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(again), gradient(plain))
    assert again.train_step() == pytest.approx(plain.train_step(), rel=1e-5)
