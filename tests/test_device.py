"""Laws of where learning computes: the memory it foretells is the memory it takes, and devices are not made up."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

torch: Any = pytest.importorskip("torch")

from diffusers.models.attention_processor import AttnProcessor2_0  # noqa: E402

from celebctl.cli.console import CliConsole  # noqa: E402
from celebctl.cli.loading import TOGETHER, make_room  # noqa: E402
from celebctl.learning.device import estimate_memory, has_bfloat16_units, max_micro_batch, select_device  # noqa: E402
from celebctl.learning.memory_tracker import MemoryTracker  # noqa: E402
from celebctl_models.checkpoints.diffusion import UNetConditioning, latents_from_pixels, network_output  # noqa: E402
from celebctl_models.checkpoints.known_models import KNOWN  # noqa: E402
from celebctl_runtime.errors import SetupError  # noqa: E402

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts


def really_saved(parts: DiffusionParts, batch: int) -> int:
    """Bytes of distinct tensors that autograd keeps in a real forward pass, weights not counted."""
    size = parts.native_size[0] // parts.vae_factor
    context = torch.randn(batch, 77, parts.context_width, requires_grad=True)
    pooled = torch.randn(batch, parts.pooled_width) if parts.pooled_width else None
    weights = {p.untyped_storage().data_ptr() for p in parts.unet.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    def keep_not(tensor: Any) -> Any:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, keep_not):
        extras = UNetConditioning(pooled, parts.size_ids(*parts.native_size))
        network_output(parts.unet, torch.randn(batch, 4, size, size), torch.tensor(5), context, extras)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("which", ["tiny_parts", "xl_parts"])
def test_the_foretold_activations_are_the_real_ones(which: str, request: pytest.FixtureRequest) -> None:
    parts: DiffusionParts = request.getfixturevalue(which)
    # learning elsewhere in the suite leaves plain attention on the shared model; the estimate is made before that
    parts = replace(parts, unet=copy.deepcopy(parts.unet))
    parts.unet.set_attn_processor(AttnProcessor2_0())
    told = estimate_memory(parts, 3)
    assert told.saved == pytest.approx(really_saved(parts, 3), rel=0.05)
    assert told.total > told.weights + told.saved > 0


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
    assert plain.picture == again.picture > pixels
    limit = 2 * plain.step
    together, taken = max_micro_batch(tiny_parts, 16, limit)
    assert 4 < together < 10 and taken <= limit


def test_activations_grow_with_the_batch_and_checkpointing_keeps_fewer(tiny_parts: DiffusionParts) -> None:
    one, four = (estimate_memory(tiny_parts, batch) for batch in (1, 4))
    assert 3.5 < four.saved / one.saved < 4.5 and four.weights == one.weights
    assert estimate_memory(tiny_parts, 4, checkpointing=True).saved < 0.6 * four.saved


def test_the_estimate_leaves_the_model_as_it_was(tiny_parts: DiffusionParts) -> None:
    estimate_memory(tiny_parts, 1, checkpointing=True)
    assert not tiny_parts.unet.training and not tiny_parts.unet.is_gradient_checkpointing
    assert next(tiny_parts.unet.parameters()).device.type == "cpu"


def test_large_models_encode_picture_by_picture_with_the_same_result(
    tiny_parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(tiny_parts, unet=copy.deepcopy(tiny_parts.unet), vae=copy.deepcopy(tiny_parts.vae))
    assert make_room(CliConsole(quiet=True), own, 4, low_memory=False) == TOGETHER and not own.vae.use_slicing
    pictures = torch.rand(3, 3, 64, 64) * 2 - 1
    whole = latents_from_pixels(own.vae, pictures, torch.Generator().manual_seed(1))
    monkeypatch.setattr("celebctl.cli.loading.SMALL", 0)
    assert make_room(CliConsole(quiet=True), own, 4, low_memory=False) == 4
    assert own.vae.use_slicing and not own.unet.is_gradient_checkpointing
    assert make_room(CliConsole(quiet=True), own, 4, low_memory=True) == 1 and own.unet.is_gradient_checkpointing
    sliced = latents_from_pixels(own.vae, pictures, torch.Generator().manual_seed(1))
    torch.testing.assert_close(sliced, whole)


def test_what_a_large_model_takes_is_said_before_it_learns(
    tiny_parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The total, of model and learning, and what is free: one line, for SD 1.5's weights."""
    own = replace(tiny_parts, unet=copy.deepcopy(tiny_parts.unet), vae=copy.deepcopy(tiny_parts.vae))
    monkeypatch.setattr("celebctl.cli.loading.SMALL", 0)
    monkeypatch.setattr("celebctl.learning.device.free_memory", Mock(return_value=10_000_000_000))
    monkeypatch.setattr("celebctl.learning.device.weight_bytes", Mock(return_value=KNOWN["sd15"].size))
    free = "10.0 GB free beside the model"
    said = {
        0.2: f"memory: about 4.5 GB (4.3 GB the model, 0.2 GB learning, 2 of 8 views at once); {free}\n",
        3: f"memory: about 7.3 GB (4.3 GB the model, 3.0 GB learning, 2 of 8 views at once); {free}\n",
        9: f"2 of 8 views at once); {free}: this may not fit, try --low-memory\n",
    }
    for taken, words in said.items():
        monkeypatch.setattr("celebctl.learning.device.max_micro_batch", Mock(return_value=(2, int(taken * 1e9))))
        assert make_room(CliConsole(), own, 8, low_memory=False) == 2
        err = capsys.readouterr().err
        assert err.endswith(words) and err.count("\n") == 1


def test_cuda_is_not_pretended() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert select_device().device == "cpu"
    with pytest.raises(SetupError, match="no CUDA device"):
        select_device("cuda")
    assert isinstance(has_bfloat16_units(torch.device("cpu")), bool)
