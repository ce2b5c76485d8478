"""Single-file checkpoints of all families, in the original code's layout, equal their diffusers folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from family_fakes import sd1, sd2, xl, xl_v
from single_file_fake import write_single_file

from celebctl_models.checkpoints.diffusion import load_parts, read_texts
from celebctl_runtime.errors import IntegrityError, SetupError

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")


def sd2_whole(folder: Path) -> None:
    """23 of OpenCLIP's 24 layers: what reads 2.x files knows the one to leave out by its number."""
    sd2(folder, num_hidden_layers=23)


def single_file(write: Callable[[Path], None], folder: Path) -> DiffusionParts:
    """The parts of a family's folder, written as folder/single.safetensors without any configs beside it."""
    write(folder / "model")
    parts = load_parts(folder / "model")
    write_single_file(parts, folder / "single.safetensors", open_clip=write is sd2_whole)
    return parts


def put_configs(model: Path, beside: Path) -> None:
    shutil.copytree(model, beside, ignore=shutil.ignore_patterns("*.safetensors"))


def ids_of(parts: DiffusionParts) -> Any:
    options = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    return parts.tokenizers[0](["a portrait of ann playing chess"], **options).input_ids


@pytest.mark.parametrize(
    ("write", "prediction"), [(sd1, "epsilon"), (sd2_whole, "v_prediction"), (xl, "epsilon"), (xl_v, "v_prediction")]
)
def test_a_single_file_equals_its_folder(write: Callable[[Path], None], prediction: str, tmp_path: Path) -> None:
    """Every weight of every network, what the UNet predicts, and what a prompt is read as."""
    folder = single_file(write, tmp_path)
    put_configs(tmp_path / "model", tmp_path / "single")
    single = load_parts(tmp_path / "single.safetensors")
    assert (single.prediction_type, single.family, single.table_hash) == (prediction, folder.family, folder.table_hash)
    assert single.zero_empty_prompt == folder.zero_empty_prompt and single.scaling_factor == folder.scaling_factor
    assert len(single.text_encoders) == len(folder.text_encoders)
    ours, theirs = ((one.denoiser, one.vae, *one.text_encoders) for one in (single, folder))
    for mine, other in zip(ours, theirs, strict=True):
        expected, found = other.state_dict(), mine.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    (context, pooled), (other_context, other_pooled) = (read_texts(one, ids_of(one)) for one in (single, folder))
    assert torch.allclose(context, other_context, rtol=1e-5, atol=1e-5)
    assert (pooled is None) == (other_pooled is None)
    if pooled is not None and other_pooled is not None:  # the last bits depend on where in memory the same weights lie
        assert torch.allclose(pooled, other_pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("write", "other"), [(xl, sd1), (sd1, xl)])
def test_configs_of_another_family_are_an_error(
    write: Callable[[Path], None], other: Callable[[Path], None], tmp_path: Path
) -> None:
    single_file(write, tmp_path)
    other(tmp_path / "other")
    put_configs(tmp_path / "other", tmp_path / "single")
    with pytest.raises(IntegrityError, match=r"cannot load single\.safetensors") as caught:
        load_parts(tmp_path / "single.safetensors")
    assert "configs of this model" in caught.value.hint


@pytest.mark.parametrize("write", [sd1, sd2_whole, xl])
def test_without_configs_and_network_the_hint_names_the_folder(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    single_file(write, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match=r"no configs for the checkpoint single\.safetensors") as caught:
        load_parts(tmp_path / "single.safetensors")
    assert "single/ beside it" in caught.value.hint
