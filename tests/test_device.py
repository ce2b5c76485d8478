"""Devices and memory: the estimate is the memory that training takes, and a missing device is an error."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from memory_fakes import really_saved

torch: Any = pytest.importorskip("torch")

from diffusers.models.attention_processor import AttnProcessor2_0  # noqa: E402

from celebctl.learning.device import (  # noqa: E402
    SMALL_BATCH,
    DeviceConfig,
    autocast_dtype,
    choose_micro_batch,
    estimate_memory,
    full_precision,
    has_bfloat16_units,
    max_micro_batch,
    select_device,
)
from celebctl.learning.memory_tracker import MemoryTracker  # noqa: E402
from celebctl_models.checkpoints.diffusion import latents_from_pixels  # noqa: E402
from celebctl_models.checkpoints.known_models import KNOWN  # noqa: E402
from celebctl_runtime.errors import SetupError, UsageError  # noqa: E402

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts


@pytest.mark.parametrize("which", ["tiny_parts", "xl_parts"])
def test_the_foretold_activations_are_the_real_ones(which: str, request: pytest.FixtureRequest) -> None:
    parts: DiffusionParts = request.getfixturevalue(which)
    # learning elsewhere in the suite leaves plain attention on the shared model; the estimate is made before that
    parts = replace(parts, denoiser=copy.deepcopy(parts.denoiser))
    parts.denoiser.set_attn_processor(AttnProcessor2_0())
    report = estimate_memory(parts, 3)
    assert report.saved == pytest.approx(really_saved(parts, 3), rel=0.05)
    assert report.total > report.weights + report.saved > 0


def test_what_is_alive_at_once_is_counted_and_what_was_there_before_is_not() -> None:
    weight = torch.zeros(1000, 1000)  # 4 MB
    with MemoryTracker([weight]) as live:
        first = torch.ones(500, 1000) @ weight.t()  # two of 2 MB, of which one goes
        del first
        second = torch.ones(250, 1000) @ weight.t()
        view = second[:10]
    assert live.peak == 4_000_000 and live.now == 1_000_000 and view.shape == (10, 1000)


def test_the_step_that_runs_blocks_again_is_counted_there_and_back(tiny_parts: DiffusionParts) -> None:
    plain, again = (estimate_memory(tiny_parts, 4, checkpointing=checkpointing) for checkpointing in (False, True))
    assert plain.saved <= plain.step < 1.5 * plain.saved
    assert again.saved < again.step < plain.step, "a block that is run again keeps its own for a moment"
    pixels = 4 * 3 * 64 * 64
    assert plain.image == again.image > pixels
    limit = 2 * plain.step
    together, taken = max_micro_batch(tiny_parts, 16, limit)
    assert 4 < together < 10 and taken <= limit


def test_activations_grow_with_the_batch_and_checkpointing_keeps_fewer(tiny_parts: DiffusionParts) -> None:
    one, four = (estimate_memory(tiny_parts, batch) for batch in (1, 4))
    assert 3.5 < four.saved / one.saved < 4.5 and four.weights == one.weights
    assert estimate_memory(tiny_parts, 4, checkpointing=True).saved < 0.6 * four.saved


def test_the_estimate_leaves_the_model_as_it_was(tiny_parts: DiffusionParts) -> None:
    estimate_memory(tiny_parts, 1, checkpointing=True)
    assert not tiny_parts.denoiser.training and not tiny_parts.denoiser.is_gradient_checkpointing
    assert next(tiny_parts.denoiser.parameters()).device.type == "cpu"


def test_large_models_encode_picture_by_picture_with_the_same_result(
    tiny_parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(tiny_parts, denoiser=copy.deepcopy(tiny_parts.denoiser), vae=copy.deepcopy(tiny_parts.vae))
    assert choose_micro_batch(own, 4) == SMALL_BATCH and not own.vae.use_slicing
    pictures = torch.rand(3, 3, 64, 64) * 2 - 1
    whole = latents_from_pixels(own.vae, pictures, torch.Generator().manual_seed(1))
    monkeypatch.setattr("celebctl.learning.device.SMALL_UNET", 0)
    assert choose_micro_batch(own, 4) == 4
    assert own.vae.use_slicing and not own.denoiser.is_gradient_checkpointing
    assert choose_micro_batch(own, 4, low_memory=True) == 1 and own.denoiser.is_gradient_checkpointing
    sliced = latents_from_pixels(own.vae, pictures, torch.Generator().manual_seed(1))
    torch.testing.assert_close(sliced, whole)


def test_what_a_large_model_takes_is_said_before_it_learns(
    tiny_parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The total, of model and learning, and what is free: one line, for SD 1.5's weights."""
    own = replace(tiny_parts, denoiser=copy.deepcopy(tiny_parts.denoiser), vae=copy.deepcopy(tiny_parts.vae))
    monkeypatch.setattr("celebctl.learning.device.SMALL_UNET", 0)
    monkeypatch.setattr("celebctl.learning.device.free_memory", Mock(return_value=10_000_000_000))
    monkeypatch.setattr("celebctl.learning.device.weight_bytes", Mock(return_value=KNOWN["sd15"].size))
    free = "10.0 GB free beside the model"
    caplog.set_level("INFO", "celebctl")
    expected = {
        0.2: ("INFO", f"memory: about 4.5 GB (4.3 GB the model, 0.2 GB training, 2 of 8 views at once); {free}"),
        3: ("INFO", f"memory: about 7.3 GB (4.3 GB the model, 3.0 GB training, 2 of 8 views at once); {free}"),
        9: ("WARNING", "low_memory"),
    }
    for taken, (level, words) in expected.items():
        monkeypatch.setattr("celebctl.learning.device.max_micro_batch", Mock(return_value=(2, int(taken * 1e9))))
        caplog.clear()
        assert choose_micro_batch(own, 8) == 2
        (record,) = caplog.records
        assert record.levelname == level and words in record.getMessage()


def test_a_gpu_of_several_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's answers for two cards before Ampere, which only emulate bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert select_device("cuda:1") == DeviceConfig("cuda:1", torch.float16)
    assert select_device("trt:1").device == "cuda:1" and select_device("cuda:0").device == "cuda"
    assert torch.device(select_device("cuda:1").device).index == 1
    with pytest.raises(SetupError) as error:
        select_device("cuda:2")
    assert (error.value.reason, error.value.values["gpus"]) == ("no_such_gpu", 2)


def test_cuda_is_not_pretended() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert select_device().device == "cpu"
    with pytest.raises(SetupError) as error:
        select_device("cuda")
    assert error.value.reason == "torch_without_cuda"
    with pytest.raises(UsageError) as unknown:
        select_device("gpu")
    assert unknown.value.reason == "unknown_device"
    assert isinstance(has_bfloat16_units(torch.device("cpu")), bool)


@pytest.mark.parametrize(
    ("driver", "reason", "words"),
    [
        (None, "driver_missing", "no NVIDIA driver"),
        (12080, "driver_too_old", "CUDA 12.8, and CUDA 13.0 needs driver 580 or newer"),
        (13000, "cuda_failed", "finds no GPU"),
    ],
)
def test_why_torch_finds_no_gpu_is_reported(
    monkeypatch: pytest.MonkeyPatch, driver: int | None, reason: str, words: str
) -> None:
    """A CUDA build of torch says the same with a driver that is too old as without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for module in ("celebctl.learning.device", "celebctl_runtime.backends.nvidia_driver"):
        monkeypatch.setattr(f"{module}.driver_cuda_version", Mock(return_value=driver))
    with pytest.raises(SetupError) as error:
        select_device("cuda")
    assert error.value.reason == reason and words in error.value.problem


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "get_device_capability": capability,
        "get_device_name": "NVIDIA Pretend",
        "get_arch_list": ["sm_75", "sm_80", "sm_90a", "compute_120"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, Mock(return_value=value))
    monkeypatch.setattr("celebctl.learning.device._has_bfloat16", Mock(return_value=capability >= (8, 0)))


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((9, 0), torch.bfloat16)])
def test_half_precision_is_what_the_gpu_computes_in(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: Any
) -> None:
    pretend_gpu(monkeypatch, capability)
    assert select_device("cuda").dtype == dtype
    weight = SimpleNamespace(device=torch.device("cuda"))
    network = SimpleNamespace(dtype=torch.float32, parameters=lambda: iter([weight]))
    assert autocast_dtype(network) == dtype
    network.dtype = torch.float16
    assert autocast_dtype(network) == torch.float16


def test_a_gpu_that_torch_was_not_built_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (6, 1))
    with pytest.raises(SetupError, match=r"NVIDIA Pretend is too old.* 6\.1.* 7\.5") as error:
        select_device("cuda")
    assert error.value.reason == "gpu_too_old"


def test_views_are_encoded_in_float32_and_the_weights_stay_as_they_are(tiny_parts: DiffusionParts) -> None:
    """An autoencoder in bfloat16 adds its rounding to the latents; the same weights in float32 do not."""
    vae = copy.deepcopy(tiny_parts.vae).to(torch.bfloat16)
    rounded, before = copy.deepcopy(vae).float(), {name: one.clone() for name, one in vae.state_dict().items()}
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    exact = latents_from_pixels(rounded, pictures)
    coarse = latents_from_pixels(vae, pictures.to(torch.bfloat16)).float()
    with full_precision(vae):
        assert torch.equal(latents_from_pixels(vae, pictures), exact)
    assert vae.dtype == torch.bfloat16 and (coarse - exact).abs().max() > 1e-3 * exact.abs().max()
    assert all(torch.equal(one, before[name]) for name, one in vae.state_dict().items())
