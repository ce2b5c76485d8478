"""Loading diffusion models, encoding prompts, latents and pixels."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from single_file_fake import write_single_file
from textual_inversion_fakes import Evil

from celebctl_models.checkpoints.diffusion import (
    context_from_ids,
    latents_from_pixels,
    load_parts,
    network_output,
    pixels_from_latents,
)
from celebctl_models.checkpoints.registry import CARD_FILE, card_for, locate
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError, SetupError

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")


@pytest.fixture
def copied_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def ids_of(parts: DiffusionParts, *prompts: str) -> Any:
    options = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    return parts.tokenizers[0](list(prompts), **options).input_ids


def test_a_fine_tuned_model_has_another_digest(tiny_parts: DiffusionParts) -> None:
    unet = copy.deepcopy(tiny_parts.denoiser)
    same = replace(tiny_parts, denoiser=unet).weights_digest
    with torch.no_grad():
        next(iter(unet.parameters())).view(-1)[0] += 1.0
    changed = replace(tiny_parts, denoiser=unet)
    assert same == tiny_parts.weights_digest != changed.weights_digest and len(same) == 16
    assert changed.table_hash == tiny_parts.table_hash


def test_inserted_rows_equal_baked_rows(tiny_parts: DiffusionParts) -> None:
    """A context with inserts is, bit for bit, that of a text encoder whose table contains the rows."""
    ids = ids_of(tiny_parts, "ann and bob playing chess", "a portrait of bob")
    rows = torch.randn(2, tiny_parts.token_table().shape[1])
    baked = copy.deepcopy(tiny_parts.text_encoders[0])
    baked.get_input_embeddings().weight[ids[0, [1, 3]]] = rows
    inserts, positions = torch.stack([rows, rows]), torch.tensor([[1, 3], [-1, 4]])
    inserted = context_from_ids(tiny_parts.text_encoders[0], ids, inserts, positions)
    assert torch.equal(inserted, context_from_ids(baked, ids))


def test_a_negative_position_leaves_the_insert_out(tiny_parts: DiffusionParts) -> None:
    ids = ids_of(tiny_parts, "a portrait of ann")
    encoder = tiny_parts.text_encoders[0]
    unused = context_from_ids(encoder, ids, torch.randn(1, 2, 32), torch.tensor([[-1, -1]]))
    assert torch.equal(unused, context_from_ids(encoder, ids))


def test_gradients_reach_inserts_and_nothing_else(tiny_parts: DiffusionParts) -> None:
    ids = ids_of(tiny_parts, "a portrait of ann")
    inserts = torch.randn(1, 2, 32, requires_grad=True)
    context = context_from_ids(tiny_parts.text_encoders[0], ids, inserts, torch.tensor([[4, 5]]))
    predicted: Any = network_output(tiny_parts.denoiser, torch.randn(1, 4, 16, 16), torch.tensor([500]), context)
    predicted.square().mean().backward()
    assert (inserts.grad.abs().amax(dim=-1) > 0).all()
    networks = (tiny_parts.text_encoders[0], tiny_parts.denoiser, tiny_parts.vae)
    assert all(weight.grad is None and not weight.requires_grad for net in networks for weight in net.parameters())


def test_the_hook_leaves_no_trace(tiny_parts: DiffusionParts) -> None:
    """Also when the encoder fails, the next plain call sees the plain table."""
    encoder = tiny_parts.text_encoders[0]
    ids = ids_of(tiny_parts, "a portrait of ann")
    before = context_from_ids(encoder, ids)
    with pytest.raises(IndexError):
        context_from_ids(encoder, ids, torch.randn(1, 1, 32), torch.tensor([[99]]))
    assert torch.equal(context_from_ids(encoder, ids), before)


def test_latents_and_pixels_have_the_declared_sizes(tiny_parts: DiffusionParts) -> None:
    latents = latents_from_pixels(tiny_parts.vae, torch.rand(1, 3, 64, 48) * 2 - 1)
    assert latents.shape == (1, tiny_parts.latent_channels, 64 // tiny_parts.vae_factor, 48 // tiny_parts.vae_factor)
    pixels = pixels_from_latents(tiny_parts.vae, latents * 50)
    assert pixels.shape == (1, 3, 64, 48) and pixels.abs().max() <= 1
    assert (tiny_parts.vae_factor, tiny_parts.size_multiple, tiny_parts.native_size) == (4, 8, (64, 64))


def test_sampled_latents_follow_their_generator(tiny_parts: DiffusionParts) -> None:
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    first, again, other = (
        latents_from_pixels(tiny_parts.vae, pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_prediction_type_comes_from_the_scheduler(either_folder: Path) -> None:
    expected = {"tiny-v": "v_prediction", "tiny-e": "epsilon"}[either_folder.name]
    assert load_parts(either_folder).prediction_type == expected


def test_the_table_hash_does_not_depend_on_dtype_or_path(tiny_parts: DiffusionParts, copied_folder: Path) -> None:
    half = load_parts(copied_folder, dtype=torch.float16)
    assert half.denoiser.dtype == half.vae.dtype == torch.float16 and half.token_table().dtype == torch.float32
    assert half.table_hash == tiny_parts.table_hash


def test_another_table_is_another_hash(tiny_parts: DiffusionParts, copied_folder: Path) -> None:
    other = load_parts(copied_folder)
    other.token_table()[7, 7] += 1e-6
    assert other.table_hash != tiny_parts.table_hash


def test_a_plain_folder_derives_its_card(tiny_folder: Path) -> None:
    card = card_for(tiny_folder)
    assert (card.name, card.family, card.native_size, card.display_scale) == ("tiny-v", "sd", 64, 1)
    assert card.names_file is None and str(tiny_folder) not in card.source


def test_a_folder_may_describe_itself(copied_folder: Path) -> None:
    declared: dict[str, Any] = {"name": "doll", "world": "toys", "display_scale": 4, "names": "names.txt"}
    declared |= {"defaults": {"steps": 15}, "unknown": 1}
    (copied_folder / CARD_FILE).write_text(json.dumps(declared))
    card = load_parts(copied_folder).card
    assert (card.name, card.world, card.display_scale, card.native_size) == ("doll", "toys", 4, 64)
    assert card.names_file == (copied_folder / "names.txt").resolve()
    assert card.defaults["steps"] == 15 and card.defaults["sampler"] == "dpmpp_2m"


@pytest.mark.parametrize(
    "declared",
    [
        "[1]", "{", '{"native_size": "64"}', '{"names": "../../elsewhere"}', '{"defaults": 3}', '{"name": ""}',
        '{"framing": 3}', '{"framing": {"smallest": 0.5}}',
    ],
)  # fmt: skip
def test_an_invalid_card_is_refused(copied_folder: Path, declared: str) -> None:
    (copied_folder / CARD_FILE).write_text(declared)
    with pytest.raises(IntegrityError) as caught:
        card_for(copied_folder)
    assert CARD_FILE in caught.value.problem and caught.value.hint


@pytest.mark.parametrize("model", ["minni", "a/b/c", "/nowhere/at/all", ""])
def test_an_unknown_model_is_not_found(model: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        load_parts(model)
    assert "mini" in caught.value.hint


def test_kinds_of_locations_are_recognised_without_loading(tiny_folder: Path, tmp_path: Path) -> None:
    single = tmp_path / "merged.safetensors"
    single.write_bytes(b"")
    assert [locate(model).kind for model in (tiny_folder, single, "someone/some-model")] == ["folder", "file", "hub"]
    with pytest.raises(NotFoundError, match="not a diffusers model folder"):
        locate(tmp_path)
    (tmp_path / "old.bin").write_bytes(b"")
    with pytest.raises(NotFoundError, match="safetensors"):
        locate(tmp_path / "old.bin")


def test_a_hub_id_offline_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match="someone/some-model") as caught:
        load_parts("someone/some-model")
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_a_single_file_gives_the_same_parts(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    """The tensors of a checkpoint under the original code's names, with its configs beside it."""
    write_single_file(tiny_parts, tmp_path / "merged.safetensors")
    without_weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(tiny_parts.path, tmp_path / "merged", ignore=without_weights)
    parts = load_parts(tmp_path / "merged.safetensors")
    assert (parts.name, parts.table_hash, parts.prediction_type) == ("merged", tiny_parts.table_hash, "v_prediction")
    for ours, theirs in ((parts.denoiser, tiny_parts.denoiser), (parts.vae, tiny_parts.vae)):
        expected = theirs.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())


def test_a_damaged_single_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "merged.safetensors").write_bytes(b"not tensors")
    with pytest.raises(IntegrityError, match="damaged"):
        load_parts(tmp_path / "merged.safetensors")


def test_a_ckpt_is_read_for_its_tensors_and_nothing_in_it_is_run(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    """As the original code saved it: a pickle of one dictionary, tensors under "state_dict"."""
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    write_single_file(tiny_parts, tmp_path / "merged.safetensors")
    tensors = load_file(tmp_path / "merged.safetensors")
    path, mark = tmp_path / "merged.ckpt", tmp_path / "harm"
    torch.save({"state_dict": tensors, "global_step": 7}, path)
    shutil.copytree(tiny_parts.path, tmp_path / "merged", ignore=shutil.ignore_patterns("*.safetensors"))
    parts = load_parts(path)
    assert parts.table_hash == tiny_parts.table_hash
    expected = tiny_parts.denoiser.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in parts.denoiser.state_dict().items())
    torch.save({"state_dict": tensors, "callbacks": Evil(mark)}, path)
    with pytest.raises(IntegrityError, match="cannot be read safely") as caught:
        load_parts(path)
    assert "safetensors" in caught.value.hint and not mark.exists()
    torch.save({"state_dict": tensors}, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(IntegrityError, match="cannot be read safely"):
        load_parts(path)


def test_damaged_weights_name_their_part(copied_folder: Path) -> None:
    weights = copied_folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(IntegrityError, match="unet of model"):
        load_parts(copied_folder)


def test_pickled_weights_are_never_read(copied_folder: Path) -> None:
    weights = copied_folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(IntegrityError, match="vae of model"):
        load_parts(copied_folder)


def test_another_family_is_refused_by_its_index(copied_folder: Path) -> None:
    index = json.loads((copied_folder / "model_index.json").read_text())
    index["unet"] = ["diffusers", "FluxTransformer2DModel"]
    (copied_folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInputError, match="FluxTransformer2DModel"):
        load_parts(copied_folder)


def test_loading_is_silent(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_parts(tiny_folder)
    assert capfd.readouterr() == ("", "")


def test_diffusers_itself_loads_the_bundled_model_and_draws_a_celebrity() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    folder = locate("mini").path
    names = card_for(folder).names_file
    assert names is not None
    pipe: Any = cast(Any, StableDiffusionPipeline).from_pretrained(str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    first = names.read_text(encoding="utf-8").splitlines()[0]
    picture = pipe(first, num_inference_steps=2, height=64, width=64, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)
    assert float(picture.std()) > 0.02
