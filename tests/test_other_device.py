"""Learning, drawing and encoding on a device that is not the CPU: a tensor left behind is an error, as on a GPU."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")

from device_fakes import DEVICE, OtherDeviceTensor, other_device  # noqa: E402
from learn_fakes import load_named, new_trainer  # noqa: E402

from celebctl.learning import denoising, sampling  # noqa: E402
from celebctl.learning.sampling import draw  # noqa: E402

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

SEED = {"seed": 5, "steps": 2, "views": 2}


@pytest.fixture(scope="module")
def parts(tiny_folder: Path) -> DiffusionParts:
    return load_named(tiny_folder)


def moved(parts: DiffusionParts) -> DiffusionParts:
    """A copy of the model on the other device."""
    encoders, unet, vae = copy.deepcopy((parts.text_encoders, parts.denoiser, parts.vae))
    for network in (*encoders, unet, vae):
        network.to(DEVICE)
    return replace(parts, text_encoders=encoders, denoiser=unet, vae=vae)


def test_the_device_refuses_what_cuda_refuses() -> None:
    with other_device():
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        assert there.device == DEVICE and isinstance(there, OtherDeviceTensor)
        assert torch.equal((there + there).cpu(), here + here) and float((there * torch.tensor(2.0)).sum()) == 6
        assert torch.equal(there[torch.tensor([0, 2])].cpu(), torch.ones(2))
        with pytest.raises(RuntimeError, match="same device"):
            torch.add(there, here)
        with pytest.raises(RuntimeError, match="same device"):
            torch.cat([here, there])
        with pytest.raises(RuntimeError, match="same device"):
            here[there > 1]
        with pytest.raises(RuntimeError):
            there.numpy()


def test_a_person_is_learned_there_as_on_the_cpu(parts: DiffusionParts) -> None:
    here = new_trainer(copy.copy(parts), **SEED)
    with other_device():
        there = new_trainer(moved(parts), **SEED)
        assert there.latents.device == there.weights.device == there.features.device == DEVICE
        np.testing.assert_allclose(there.latents.cpu().numpy(), here.latents.numpy(), atol=1e-5)
        for _ in range(2):
            assert there.train_step() == pytest.approx(here.train_step(), rel=1e-4)
        (identity,) = there.identities()
    (expected,) = here.identities()
    np.testing.assert_allclose(identity.coefficients[0], expected.coefficients[0], atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_pictures_are_drawn_there_as_on_the_cpu(parts: DiffusionParts, sampler: str) -> None:
    options: dict[str, Any] = {"steps": 2, "sampler": sampler, "fast": False}
    width = parts.token_table(0).shape[1]
    ann = {"ann": tuple(torch.ones(2, width) for _ in parts.text_encoders)}
    here = draw(parts, ["a photo of <ann>", "a photo"], [1, 2], ann, **options)
    with other_device():
        there = draw(moved(parts), ["a photo of <ann>", "a photo"], [1, 2], ann, **options)
    assert np.abs(here.astype(int) - there.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("module", "line", "without"),
    [
        (denoising, "generator=generator).to(x0.device)", "generator=generator)"),
        (denoising, "ids.to(self.device), positions.to(self.device)", "ids, positions.to(self.device)"),
        (denoising, "views.pixels.to(device)", "views.pixels"),
        (denoising, "torch.as_tensor(mean).to(device)", "torch.as_tensor(mean)"),
        (sampling, "torch.as_tensor(table.table[i]).to(device)", "torch.as_tensor(table.table[i])"),
        (sampling, "torch.stack(rows).to(device)", "torch.stack(rows)"),
    ],
)
def test_a_tensor_left_on_the_cpu_is_found(
    parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch, module: Any, line: str, without: str
) -> None:
    """The tests above would fail for each of these mistakes."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(line) == 1
    changed: dict[str, Any] = {**module.__dict__}
    exec(compile(source.replace(line, without), module.__file__, "exec"), changed)
    for name in ("DenoisingLoss", "IdentityEmbeddings", "encode_views"):
        if module is denoising:
            monkeypatch.setattr(f"celebctl.learning.trainer.{name}", changed[name])
    with other_device(), pytest.raises(RuntimeError, match="same device"):
        if module is denoising:
            new_trainer(moved(parts), **SEED).train_step()
        else:
            changed["draw"](moved(parts), ["a photo"], [1], {}, steps=1, fast=False)
