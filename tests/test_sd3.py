"""Stable Diffusion 3.5 without T5, on a small random model of its structure, against diffusers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from family_fakes import sd3
from memory_fakes import really_saved

from celebctl_models.checkpoints.checkpoint_options import CheckpointOptions
from celebctl_models.checkpoints.diffusion import (
    StableDiffusion3Parts,
    latents_from_pixels,
    load_parts,
    pixels_from_latents,
    read_texts,
)
from celebctl_models.checkpoints.hub_download import check_folder
from celebctl_models.checkpoints.joint_attention import joint_context
from celebctl_models.checkpoints.registry import files_in, missing_parts
from celebctl_models.checkpoints.text_encoders import load_texts
from celebctl_models.checkpoints.token_tables import load_tables
from celebctl_runtime.errors import IntegrityError, InvalidInputError, UsageError
from celebctl_runtime.request import Request
from celebctl_runtime.sampling.noise import initial_noise

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")

from celebctl.learning.device import estimate_memory  # noqa: E402
from celebctl.learning.sampling import draw  # noqa: E402

PROMPTS = ["a portrait of ann and bob playing chess", "beach"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-sd3") / "tiny-sd3"
    sd3(folder)
    return folder


@pytest.fixture(scope="module")
def parts(folder: Path) -> DiffusionParts:
    return load_parts(folder)


def pipeline(folder: Path) -> Any:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

    without = {"text_encoder_3": None, "tokenizer_3": None}
    pipe = cast(Any, StableDiffusion3Pipeline).from_pretrained(folder, local_files_only=True, **without)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ids_of(parts: DiffusionParts, prompts: list[str]) -> Any:
    options = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    return parts.tokenizers[0](prompts, **options).input_ids


# Loading.


def test_the_parts_of_an_sd3_folder(parts: DiffusionParts) -> None:
    assert isinstance(parts, StableDiffusion3Parts) and parts.family == "sd3"
    assert (parts.context_width, parts.pooled_width, parts.latent_channels) == (80, 72, 16)
    assert (parts.size_multiple, parts.native_size, parts.max_side) == (16, (128, 128), 768)
    assert parts.prediction_type == "flow_prediction" and not parts.guidance_is_embedded
    assert parts.size_ids(128, 128) is None and not parts.zero_empty_prompt
    assert parts.card.defaults["sampler"] == "euler"


def test_text_encoders_and_tables_alone_are_those_of_the_model(parts: DiffusionParts, folder: Path) -> None:
    texts = load_texts(folder)
    assert texts.table_hash == load_tables(folder).table_hash == parts.table_hash
    assert {type(encoder).__name__ for encoder in texts.text_encoders} == {"CLIPTextModelWithProjection"}


def test_the_third_text_encoder_is_neither_needed_nor_copied(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "text_encoder_3").mkdir()
    (copy / "text_encoder_3" / "model.safetensors").write_bytes(b"19 GB")
    assert not missing_parts(copy) and not any(name.startswith("text_encoder_3") for name in files_in(copy))
    check_folder(copy)
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert missing_parts(copy) == ["transformer/diffusion_pytorch_model.safetensors"]


def test_a_folder_without_a_clip_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "text_encoder_2": [None, None]}))
    with pytest.raises(InvalidInputError, match="text_encoder_2 is missing"):
        load_parts(copy)


def test_text_encoders_of_another_model_are_refused(tmp_path: Path) -> None:
    sd3(tmp_path / "narrow", joint_attention_dim=64)
    with pytest.raises(IntegrityError, match="states of 80"):
        load_parts(tmp_path / "narrow")


def test_a_scheduler_of_diffusion_is_refused(tmp_path: Path) -> None:
    sd3(tmp_path / "other", scheduler={"_class_name": "EulerDiscreteScheduler"})
    with pytest.raises(IntegrityError) as caught:
        load_parts(tmp_path / "other")
    assert caught.value.reason == "unsupported_scheduler"


def test_a_transformer_of_other_channels_is_found_before_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = copy / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 4}))
    with pytest.raises(IntegrityError, match="in_channels 4"):
        check_folder(copy)


def test_a_single_file_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    name = "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    save_file({name: torch.zeros(1)}, str(tmp_path / "sd3.5_medium.safetensors"))
    with pytest.raises(InvalidInputError, match="Stable Diffusion 3") as caught:
        load_parts(tmp_path / "sd3.5_medium.safetensors")
    assert caught.value.reason == "not_a_checkpoint"


@pytest.mark.parametrize(
    "stated", [CheckpointOptions(prediction_type="epsilon"), CheckpointOptions(zero_terminal_snr=True)]
)
def test_another_prediction_is_refused(stated: CheckpointOptions, folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_parts(folder, options=stated)
    assert caught.value.reason == "flow_has_one_schedule"


def test_a_layer_that_the_text_encoders_lack_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_parts(folder, options=CheckpointOptions(clip_skip=99))
    assert caught.value.reason == "clip_skip_range"


# Prompts and images.


def test_texts_equal_diffusers_encoding(parts: DiffusionParts, folder: Path) -> None:
    """CLIP's states padded with zeros, zeros for T5's tokens, and both pooled texts."""
    context, pooled = read_texts(parts, ids_of(parts, PROMPTS))
    theirs = pipeline(folder).encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    torch.testing.assert_close(joint_context(context, 96), theirs[0])
    torch.testing.assert_close(pooled, theirs[2])


def test_clip_skip_is_that_of_diffusers(folder: Path) -> None:
    """diffusers counts from the last but one, which it reads by default."""
    parts = load_parts(folder, options=CheckpointOptions(clip_skip=1))
    context, pooled = read_texts(parts, ids_of(parts, PROMPTS))
    theirs = pipeline(folder).encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False, clip_skip=-1)
    torch.testing.assert_close(joint_context(context, 96), theirs[0])
    torch.testing.assert_close(pooled, theirs[2])
    assert not torch.equal(context, read_texts(load_parts(folder), ids_of(parts, PROMPTS))[0])


def test_another_autoencoder_of_the_family_replaces_its_own(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder / "vae", tmp_path / "tuned"))
    parts = load_parts(folder, options=CheckpointOptions(vae=copy))
    assert isinstance(parts, StableDiffusion3Parts) and parts.vae_source == "tuned"
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.13025}))
    with pytest.raises(InvalidInputError) as caught:
        load_parts(folder, options=CheckpointOptions(vae=copy))
    assert caught.value.reason == "vae_of_other_family"


def test_inserted_rows_equal_rows_of_both_tables(folder: Path) -> None:
    parts = load_parts(folder)
    ids = ids_of(parts, PROMPTS)
    rows = [torch.randn(1, 2, 32).expand(2, -1, -1), torch.randn(1, 2, 48).expand(2, -1, -1)]
    inserted = read_texts(parts, ids, rows, torch.tensor([[4, 6], [-1, -1]]))
    before = read_texts(parts, ids)
    for encoder, given in enumerate(rows):
        parts.token_table(encoder)[ids[0, [4, 6]]] = given[0]
    baked = read_texts(parts, ids)
    for a, b, c in zip(inserted, baked, before, strict=True):
        assert a is not None and c is not None and torch.equal(a, b) and not torch.equal(a[0], c[0])


def test_latents_are_shifted_and_scaled(parts: DiffusionParts) -> None:
    """(latents - shift) x scale, as SD3 is trained; and back again before decoding, as diffusers does."""
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    latents = latents_from_pixels(parts.vae, pixels)
    torch.testing.assert_close(latents, (parts.vae.encode(pixels).latent_dist.mode() - 0.0609) * 1.5305)
    decoded = parts.vae.decode(latents / 1.5305 + 0.0609, return_dict=False)[0].clamp(-1, 1)
    torch.testing.assert_close(pixels_from_latents(parts.vae, latents), decoded)


@pytest.mark.parametrize("scheduler", [{}, {"use_dynamic_shifting": True}])
def test_an_image_equals_diffusers(scheduler: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """The same noise and steps give the image of an untouched StableDiffusion3Pipeline without T5."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **scheduler}))
    ours = draw(load_parts(copy), PROMPTS[:1], [7], {}, steps=4, guidance=5.0, fast=False)[0]
    latents = torch.as_tensor(initial_noise(7, (16, 16, 16)))[None]
    options = {"num_inference_steps": 4, "guidance_scale": 5.0, "latents": latents, "output_type": "np"}
    theirs = pipeline(copy)(PROMPTS[0], **options).images[0]
    assert np.abs(ours.astype(float) - theirs * 255).max() <= 1.0 and ours.std() > 10


# Learning.


def test_the_loss_is_that_of_flow_matching(parts: DiffusionParts) -> None:
    """The transformer's prediction at (1 - sigma) x0 + sigma noise against noise - x0."""
    from celebctl.learning.denoising import DenoisingLoss

    loss = DenoisingLoss(parts, "photo")
    x0, weight = torch.randn(2, 16, 16, 16), torch.ones(2, 1, 16, 16)
    batch = loss.sample_batch(x0, weight, torch.arange(2), torch.Generator().manual_seed(1))
    rows = [torch.randn(2, 2, 32), torch.randn(2, 2, 48)]
    with torch.no_grad():
        error = loss.squared_error(batch, rows)
        context, pooled = read_texts(parts, batch.ids, rows, batch.positions)
        sigma = (batch.t / 1000).view(-1, 1, 1, 1)
        (expected,) = parts.denoiser(
            hidden_states=(1 - sigma) * x0 + sigma * batch.noise,
            encoder_hidden_states=joint_context(context, 96),
            pooled_projections=pooled,
            timestep=batch.t,
            return_dict=False,
        )
    tolerance = {"rtol": 0.1, "atol": 0.1} if loss.autocast else {}
    torch.testing.assert_close(error, (expected - (batch.noise - x0)) ** 2, **tolerance)
    assert float(batch.t.min()) > 0 and float(batch.t.max()) < 1000 and batch.t.dtype == torch.float32


def test_the_predicted_memory_covers_position_embeddings(parts: DiffusionParts) -> None:
    """What autograd saves is predicted from the configuration; weights include the table of positions."""
    report = estimate_memory(parts, 2)
    networks = (*parts.text_encoders, parts.denoiser, parts.vae)
    assert report.weights >= sum(4 * p.numel() for n in networks for p in n.parameters()) + 4 * 48 * 48 * 32
    assert report.saved == pytest.approx(really_saved(parts, 2), rel=0.05)
    assert estimate_memory(parts, 2, checkpointing=True).saved < 0.6 * report.saved


def test_the_baseline_of_bench_is_diffusers_without_t5(parts: DiffusionParts, folder: Path) -> None:
    from celebctl.bench.worker import DiffusersWorker

    request = Request(PROMPTS[0], seed=3, steps=3, sampler="euler", guidance=5.0, width=128, height=128)
    spec: dict[str, Any] = {
        "model": str(folder), "device": "cpu", "threads": torch.get_num_threads(), "dtype": "fp32", "compile": False,
        "request": request.to_json(),
    }  # fmt: skip
    baseline = DiffusersWorker(spec)
    image = np.asarray(baseline.generate(3).image, np.int16)
    (ours,) = draw(parts, PROMPTS[:1], [3], {}, steps=3, guidance=5.0, fast=False)
    assert np.abs(image - ours.astype(np.int16)).max() <= 1
    counted = baseline.count()
    assert counted is not None and counted["step"] > 5e7
