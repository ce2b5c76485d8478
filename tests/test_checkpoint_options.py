"""Clip skip and other autoencoders against diffusers; files, networks and people of other models are refused."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from bundle_fakes import FAMILY, TABLE_HASH, write_bundle
from conftest import write_pipeline, write_xl_pipeline
from numpy.typing import NDArray
from single_file_fake import write_single_file

from celebctl.bundles import refuse_other_models, table_difference
from celebctl.library import Library, format_model_key
from celebctl_models.checkpoints.checkpoint_layout import refuse_layout
from celebctl_models.checkpoints.checkpoint_options import CheckpointOptions
from celebctl_models.checkpoints.diffusion import load_parts, read_texts
from celebctl_models.checkpoints.registry import CARD_FILE, card_for
from celebctl_models.checkpoints.token_tables import load_tables
from celebctl_models.checkpoints.vae_replacement import MAX_LATENT_DISTANCE, latent_distance
from celebctl_runtime.errors import CelebctlError, IntegrityError, InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.identity import Identity
from celebctl_runtime.sampling.noise import initial_noise

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")

PROMPT = "a portrait of ann playing chess"


def diffusers_pipeline(folder: Path) -> Any:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    pipe = cast(Any, DiffusionPipeline).from_pretrained(str(folder), local_files_only=True)
    pipe.scheduler = cast(Any, DDIMScheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if not hasattr(pipe.text_encoder, "text_model"):  # diffusers 0.42 reads it; not in transformers 5.6
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    return pipe


def diffusers_picture(pipe: Any, **options: Any) -> NDArray[np.float64]:
    """From the runtime's noise, in [0, 255]."""
    latents = torch.as_tensor(initial_noise(7, (4, 16, 16)))[None]
    options = {"prompt": PROMPT, "num_inference_steps": 3, "guidance_scale": 5.0, **options}
    return pipe(latents=latents, output_type="np", **options).images[0] * 255.0


def our_picture(parts: DiffusionParts) -> NDArray[np.float64]:
    from celebctl.learning.sampling import draw

    return draw(parts, [PROMPT], [7], {}, steps=3, guidance=5.0, sampler="ddim", fast=False)[0].astype(float)


# Clip skip.


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Stable Diffusion 1's kind with three layers in its text encoder."""
    folder = tmp_path_factory.mktemp("deep") / "deep"
    write_pipeline(folder, "epsilon", text={"num_hidden_layers": 3})
    return folder


def ids_of(parts: DiffusionParts) -> Any:
    options = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    return parts.tokenizers[0]([PROMPT], **options).input_ids


@pytest.mark.parametrize(("clip_skip", "theirs"), [(1, None), (2, 1), (3, 2)])
def test_clip_skip_is_diffusers_less_one(deep_folder: Path, clip_skip: int, theirs: int | None) -> None:
    """A1111 counts the last layer as 1; diffusers counts the layers that are skipped."""
    parts = load_parts(deep_folder, options=CheckpointOptions(clip_skip=clip_skip))
    context, _ = read_texts(parts, ids_of(parts))
    pipe = diffusers_pipeline(deep_folder)
    expected = pipe.encode_prompt(PROMPT, "cpu", 1, False, clip_skip=theirs)[0]
    torch.testing.assert_close(context, expected)


@pytest.mark.parametrize(("clip_skip", "theirs"), [(1, -1), (2, None)])
def test_clip_skip_of_xl_is_diffusers_less_two(xl_folder: Path, clip_skip: int, theirs: int | None) -> None:
    """XL reads the last layer but one unless told otherwise; the pooled text is always the last layer's."""
    parts = load_parts(xl_folder, options=CheckpointOptions(clip_skip=clip_skip))
    context, pooled = read_texts(parts, ids_of(parts))
    pipe = diffusers_pipeline(xl_folder)
    expected = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False, clip_skip=theirs)
    torch.testing.assert_close(context, expected[0])
    torch.testing.assert_close(pooled, expected[2])
    assert parts.context_layer == clip_skip and load_parts(xl_folder).context_layer == 2


@pytest.mark.parametrize("clip_skip", [0, -1, 4])
def test_a_layer_that_does_not_exist_is_refused(deep_folder: Path, clip_skip: int) -> None:
    with pytest.raises(UsageError) as caught:
        load_parts(deep_folder, options=CheckpointOptions(clip_skip=clip_skip))
    assert caught.value.reason == "clip_skip_range"


def test_the_bundle_reads_the_layer_that_people_were_learned_with(
    deep_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Through learn, export and gen; a person learned with another layer is added, and that is told.

    A1111 and ComfyUI skip layers for the negative prompt too; diffusers does not, so that it is encoded by itself here.
    """
    pytest.importorskip("onnxscript")
    from learn_fakes import NAMES, new_trainer

    from celebctl_export import ExportOptions, export_bundle
    from celebctl_runtime.backends.ort import OrtBackend
    from celebctl_runtime.pipeline import generate
    from celebctl_runtime.request import Request

    names = tmp_path / "names.txt"
    names.write_text(NAMES)
    parts = load_parts(deep_folder, options=CheckpointOptions(clip_skip=2))
    trainer = new_trainer(replace(parts, card=replace(parts.card, names_file=names)), steps=1)
    (ann,) = trainer.identities()
    assert (ann.provenance["clip_skip"], ann.provenance["prediction"]) == ("2", "epsilon")
    bundle = export_bundle(parts, [], tmp_path / "bundle", ExportOptions(spare_rows=8))
    assert bundle.manifest.model.clip_skip == 2
    request = Request(PROMPT, seed=7, steps=3, guidance=5.0, sampler="ddim")
    drawn = np.asarray(generate(bundle, OrtBackend(bundle, "cpu", 1), request)[0].image).astype(float)
    pipe = diffusers_pipeline(deep_folder)
    embeds = [pipe.encode_prompt(text, "cpu", 1, False, clip_skip=1)[0] for text in (PROMPT, "")]
    expected = diffusers_picture(pipe, prompt=None, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1])
    assert np.abs(drawn - expected).max() <= 1.0
    with caplog.at_level(logging.WARNING):
        bundle.add(ann)
        assert "clip skip" not in caplog.text
        bundle.add(replace(ann, name="bob", provenance={"clip_skip": "1", "prediction": "v_prediction"}))
    assert "clip skip 1" in caplog.text and "prediction v_prediction" in caplog.text
    assert sorted(bundle.names) == ["ann", "bob"]


def test_the_model_folder_may_state_the_options(deep_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(deep_folder, tmp_path / "model"))
    stated = {"clip_skip": 2, "prediction_type": "v_prediction", "zero_terminal_snr": True, "vae": "other.safetensors"}
    (folder / CARD_FILE).write_text(json.dumps({"checkpoint": stated}))
    assert card_for(folder).checkpoint == CheckpointOptions("v_prediction", True, 2, folder / "other.safetensors")
    wrong_types: list[Any] = [{"clip_skip": "2"}, {"layers": 2}, []]
    for wrong in (*wrong_types, {"clip_skip": 0}, {"vae": "../../x"}, {"prediction_type": "v"}):
        (folder / CARD_FILE).write_text(json.dumps({"checkpoint": wrong}))
        with pytest.raises(IntegrityError):
            card_for(folder)


# Other autoencoders.


def vae_file(path: Path, vae: Any, prefix: str = "") -> Path:
    """An autoencoder as A1111 reads it: the original code's names, with or without the prefix of a checkpoint."""
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
    from single_file_fake import vae_tensors

    save_file({f"{prefix}{name}": tensor.contiguous().clone() for name, tensor in vae_tensors(vae).items()}, str(path))
    return path


def with_other_decoder(vae: Any) -> Any:
    """A fine-tuned decoder, as sd-vae-ft-mse has: the encoder and its latents stay."""
    other = copy.deepcopy(vae)
    with torch.no_grad():
        other.decoder.conv_out.weight.mul_(-0.5)
    return other


def with_other_latents(vae: Any) -> Any:
    """The same pictures by other latents: two channels change places and one its sign."""
    other = copy.deepcopy(vae)
    with torch.no_grad():
        weight, bias = other.quant_conv.weight, other.quant_conv.bias
        order, signs = [1, 0, 2, 3], torch.tensor([1.0, 1.0, -1.0, 1.0])
        weight[:4], bias[:4] = weight[order] * signs[:, None, None, None], bias[order] * signs
    return other


def folder_of(path: Path, vae: Any, **config: Any) -> Path:
    vae.save_pretrained(str(path))
    written = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**written, **config}))
    return path


@pytest.mark.parametrize("kind", ["bare file", "file", "folder", "model folder"])
def test_a_picture_with_another_autoencoder_equals_diffusers(
    kind: str, xl_parts: DiffusionParts, xl_folder: Path, tmp_path: Path
) -> None:
    other = with_other_decoder(xl_parts.vae)
    if "folder" in kind:
        source = folder_of(tmp_path / "other" / ("vae" if kind == "model folder" else ""), other)
        source = tmp_path / "other"
    else:
        source = vae_file(tmp_path / "other.safetensors", other, "" if kind == "bare file" else "first_stage_model.")
    parts = load_parts(xl_folder, options=CheckpointOptions(vae=source))
    pipe = diffusers_pipeline(xl_folder)
    assert np.abs(our_picture(xl_parts) - diffusers_picture(pipe)).max() <= 1.0
    pipe.vae = other
    expected = diffusers_picture(pipe)
    assert np.abs(our_picture(parts) - expected).max() <= 1.0
    assert np.abs(our_picture(xl_parts) - expected).max() > 8.0, "the other autoencoder changes the picture"
    assert parts.vae_source == source.name and parts.weights_digest != xl_parts.weights_digest


def test_an_autoencoder_of_another_family_is_refused_by_a_number(
    xl_parts: DiffusionParts, xl_folder: Path, tmp_path: Path
) -> None:
    """Of the same structure with other latents, in a file, which states no family; and by its scaling factor."""
    assert latent_distance(xl_parts.vae, with_other_decoder(xl_parts.vae)) == 0.0
    unrelated = with_other_latents(xl_parts.vae)
    expected = latent_distance(xl_parts.vae, unrelated)
    assert expected > MAX_LATENT_DISTANCE
    source = vae_file(tmp_path / "stranger.safetensors", unrelated)
    with pytest.raises(InvalidInputError) as caught:
        load_parts(xl_folder, options=CheckpointOptions(vae=source))
    assert caught.value.reason == "vae_of_other_family" and caught.value.values["distance"] == f"{expected:.2f}"
    folder = folder_of(tmp_path / "sd1", xl_parts.vae, scaling_factor=0.18215)
    with pytest.raises(InvalidInputError) as caught:
        load_parts(xl_folder, options=CheckpointOptions(vae=folder))
    assert caught.value.reason == "vae_of_other_family" and caught.value.values["scaling_factor"] == 0.18215
    folder = folder_of(tmp_path / "flux", xl_parts.vae, latent_channels=16)
    with pytest.raises(InvalidInputError) as caught:
        load_parts(xl_folder, options=CheckpointOptions(vae=folder))
    assert caught.value.reason == "vae_of_other_family" and caught.value.values["channels"] == 16


def test_a_file_without_an_autoencoder_needs_one(xl_parts: DiffusionParts, xl_folder: Path, tmp_path: Path) -> None:
    """The token tables need none."""
    file = tmp_path / "bare.safetensors"
    write_single_file(xl_parts, file, vae=False)
    shutil.copytree(xl_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert load_tables(file).table_hash == xl_parts.table_hash
    with pytest.raises(InvalidInputError) as caught:
        load_parts(file)
    assert caught.value.reason == "no_vae"
    other = vae_file(tmp_path / "vae.safetensors", xl_parts.vae)
    parts = load_parts(file, options=CheckpointOptions(vae=other))
    assert np.abs(our_picture(parts) - our_picture(xl_parts)).max() <= 1.0
    with pytest.raises(NotFoundError):
        load_parts(file, options=CheckpointOptions(vae=tmp_path / "nothing"))


def test_a_damaged_autoencoder_is_an_error_of_the_file(xl_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    path.write_bytes(b"\x08" + b"\0" * 30)
    with pytest.raises(IntegrityError):
        load_parts(xl_folder, options=CheckpointOptions(vae=path))


# What is no checkpoint of this kind.

UNET = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}
TEXT = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768)}
VAE = {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}
REFINER = {"conditioner.embedders.0.model.token_embedding.weight": (49408, 1280)}
INPAINTING = {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}


@pytest.mark.parametrize(
    ("shapes", "reason", "part"),
    [
        ({**INPAINTING, **TEXT, **VAE}, "unet_of_other_task", "9 input channels"),
        ({"lora_unet_mid_block.lora_down.weight": (8, 320)}, "not_a_checkpoint", "LoRA"),
        (VAE, "not_a_checkpoint", "autoencoder"),
        ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "not_a_checkpoint", "autoencoder"),
        ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "not_a_checkpoint", "Flux"),
        ({**UNET, **VAE}, "not_a_checkpoint", "text encoder"),
        ({**UNET, **VAE, **REFINER}, "not_a_checkpoint", "refiner"),
        ({}, "not_a_checkpoint", "no UNet"),
    ],
)
def test_files_that_are_no_text_to_image_checkpoint(shapes: dict[str, tuple[int, ...]], reason: str, part: str) -> None:
    with pytest.raises(InvalidInputError, match=part) as caught:
        refuse_layout("file.safetensors", shapes)
    assert caught.value.reason == reason
    refuse_layout("file.safetensors", {**UNET, **TEXT, **VAE})


@pytest.mark.parametrize("form", ["file", "folder"])
def test_an_inpainting_checkpoint_is_refused_before_it_is_read(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line: exit code 3, one error."""
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    from celebctl.cli import main

    path = tmp_path / ("inpaint.safetensors" if form == "file" else "inpaint")
    if form == "file":
        save_file({name: torch.zeros(shape) for name, shape in INPAINTING.items()}, str(path))
    else:
        write_pipeline(path, "epsilon")
        config = json.loads((path / "unet" / "config.json").read_text())
        (path / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
    assert main(["--json", "export", "--model", str(path), "-o", str(tmp_path / "out")]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "unet_of_other_task"


@pytest.mark.parametrize(("write", "part"), [(write_pipeline, "text_encoder"), (write_xl_pipeline, "text_encoder_2")])
def test_a_swapped_text_encoder_is_refused(write: Callable[..., None], part: str, tmp_path: Path) -> None:
    """Of another width: Stable Diffusion 2's in 1, say."""
    arguments = ("epsilon",) if write is write_pipeline else ()
    write(tmp_path / "model", *arguments)
    write_pipeline(tmp_path / "other", "epsilon", width=64, text={"projection_dim": 40})
    shutil.rmtree(tmp_path / "model" / part)
    shutil.copytree(tmp_path / "other" / "text_encoder", tmp_path / "model" / part)
    with pytest.raises(CelebctlError) as caught:
        load_parts(tmp_path / "model")
    assert caught.value.reason == "text_encoder_of_other_model" and caught.value.exit_code == 3


# Other token tables.


def test_a_basis_is_computed_from_the_checkpoints_own_table(deep_folder: Path, tmp_path: Path) -> None:
    """A fine-tuned text encoder in a single file: its names' rows, not the base model's."""
    from celebctl.basis.basis import basis_from_tables
    from celebctl.basis.names import token_pairs

    tuned = load_parts(deep_folder)
    with torch.no_grad():
        tuned.token_table().mul_(1.25)
    write_single_file(tuned, tmp_path / "tuned.safetensors")
    shutil.copytree(deep_folder, tmp_path / "tuned", ignore=shutil.ignore_patterns("*.safetensors"))
    base, own = load_tables(deep_folder), load_tables(tmp_path / "tuned.safetensors")
    assert own.table_hash != base.table_hash and own.family == base.family
    pairs = token_pairs(own.tokenizers[0], ["ann bob", "anna alice", "bob chess", "person beach"])
    bases = [basis_from_tables(tables.all_rows(), pairs) for tables in (base, own)]
    np.testing.assert_allclose(bases[1].mean[0], 1.25 * bases[0].mean[0], rtol=1e-5)
    assert bases[0].hash != bases[1].hash


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """A library with ann and a bundle of her model."""
    library = Library(tmp_path / "home")
    path = library.bundle_path("toy", TABLE_HASH)
    path.parent.mkdir(parents=True)
    write_bundle(path)
    rows = (np.ones((2, 8), np.float32),)
    library.save(Identity("ann", rows, rows, "no-basis", FAMILY, TABLE_HASH))
    return library


def changed(tables: Sequence[NDArray[np.float32]], rows: int, by: float) -> list[NDArray[np.float32]]:
    """The tables with the first rows longer by this share."""
    return [np.concatenate([table[:rows] * np.float32(1 + by), table[rows:]]) for table in tables]


def test_a_person_of_another_token_table_is_refused_with_the_distance(library: Library) -> None:
    from celebctl.bundles import bundles_of

    key, other_key = format_model_key(FAMILY, TABLE_HASH), "toy-ffffffff"
    tables = bundles_of(library, key)[0].vocabularies()
    total = len(tables[0])
    with pytest.raises(IntegrityError) as caught:
        refuse_other_models(library, ["ann"], other_key, lambda: changed(tables, 5, 0.25))
    assert caught.value.reason == "other_token_table" and caught.value.values["model_key"] == key
    assert f"5 of {total} rows" in caught.value.problem and "25.0%" in caught.value.problem
    refuse_other_models(library, ["ann"], key, list)
    assert "rounding" in table_difference(library, key, changed(tables, total, 2**-12))
    assert "x" in table_difference(library, key, [tables[0][:, :4]])
    assert table_difference(library, other_key, tables) == ""


def test_gen_tells_of_a_person_of_another_token_table(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    from celebctl.pipeline import Pipeline

    other = write_bundle(library.root / "bundles" / "other")
    data = json.loads((other.path / "manifest.json").read_text())
    data["model"]["table_hash"] = "f" * 16
    (other.path / "manifest.json").write_text(json.dumps(data))
    pipe = Pipeline(other.path, device="cpu", library=library, add_people=True)
    with caplog.at_level(logging.WARNING):
        pipe("ann on the beach", seed=1, steps=2)
    assert "rounding" in caplog.text and "ordinary word" in caplog.text
