"""A single file of any family, in the original code's layout, holds the very model of its diffusers folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import SCHEDULER, write_pipeline, write_xl_pipeline
from single_file_double import write_single_file
from test_families import SD1, SD2, SD2_TEXT, VAE

from celebctl_models.diffusion import load_parts, read_texts

if TYPE_CHECKING:
    from celebctl_models.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")


def sd1(folder: Path) -> None:
    write_pipeline(folder, "epsilon", vae_channels=VAE, unet=SD1)


def sd2(folder: Path) -> None:
    """23 of OpenCLIP's 24 layers: what reads 2.x files knows the one to leave out by its number."""
    write_pipeline(folder, "v_prediction", vae_channels=VAE, unet=SD2, text={**SD2_TEXT, "num_hidden_layers": 23})


def xl(folder: Path) -> None:
    write_xl_pipeline(folder, vae_channels=VAE)


def xl_v(folder: Path) -> None:
    write_xl_pipeline(folder, vae_channels=VAE, scheduler={**SCHEDULER, "prediction_type": "v_prediction"})


def ids_of(parts: DiffusionParts) -> Any:
    options = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    return parts.tokenizers[0](["a portrait of ann playing chess"], **options).input_ids


@pytest.mark.parametrize(
    ("write", "prediction"), [(sd1, "epsilon"), (sd2, "v_prediction"), (xl, "epsilon"), (xl_v, "v_prediction")]
)
def test_a_single_file_equals_its_folder(write: Callable[[Path], None], prediction: str, tmp_path: Path) -> None:
    """Every weight of every network, what the UNet predicts, and what a prompt is read as."""
    write(tmp_path / "model")
    folder = load_parts(tmp_path / "model")
    write_single_file(folder, tmp_path / "single.safetensors", open_clip=write is sd2)
    shutil.copytree(tmp_path / "model", tmp_path / "single", ignore=shutil.ignore_patterns("*.safetensors"))
    single = load_parts(tmp_path / "single.safetensors")
    assert (single.prediction_type, single.family, single.table_hash) == (prediction, folder.family, folder.table_hash)
    assert single.zero_empty_prompt == folder.zero_empty_prompt and single.scaling_factor == folder.scaling_factor
    assert len(single.text_encoders) == len(folder.text_encoders)
    ours, theirs = ((one.unet, one.vae, *one.text_encoders) for one in (single, folder))
    for mine, other in zip(ours, theirs, strict=True):
        expected, found = other.state_dict(), mine.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    (context, pooled), (other_context, other_pooled) = (read_texts(one, ids_of(one)) for one in (single, folder))
    assert torch.equal(context, other_context)
    assert (pooled is None and other_pooled is None) or torch.equal(pooled, other_pooled)
