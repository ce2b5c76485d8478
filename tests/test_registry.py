"""The table of known models, unsupported families, and the location of models."""

import json
import re
import sys
from pathlib import Path

import pytest
from model_fakes import COMMIT, model_index, write_cache, write_model

from celebctl.library import Library
from celebctl_models.checkpoints.known_models import (
    KNOWN,
    KnownModel,
    known_by_source,
    refuse_unsupported,
    why_unsupported,
)
from celebctl_models.checkpoints.registry import (
    CARD_FILE,
    card_for,
    installed_folder,
    locate,
    missing_parts,
    read_json,
    wanted_files,
)
from celebctl_runtime.errors import InvalidInputError, NotFoundError
from celebctl_runtime.paths import data_root
from celebctl_runtime.request import SAMPLERS

FETCHED = [name for name, row in KNOWN.items() if not row.bundled]


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Separate the tests from the user's library and hub cache."""
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


# The table.


@pytest.mark.parametrize("name", KNOWN)
def test_rows_are_complete(name: str) -> None:
    row = KNOWN[name]
    assert set(row.defaults) - {"layout"} == {"steps", "guidance", "sampler"} and row.defaults["sampler"] in SAMPLERS
    assert row.licence.url.startswith("https://") and row.licence.means.endswith(".")
    assert row.prediction in ("epsilon", "v_prediction", "flow_prediction")
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in row.sha256.values())
    if not row.bundled:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", row.source) and row.size > 1e9
        assert re.fullmatch(r"[0-9a-f]{40}", row.revision), "a known model is pinned"


@pytest.mark.parametrize("name", FETCHED)
def test_memory_equals_the_computed_estimate(name: str) -> None:
    results = Path(__file__).parents[1] / "benchmarks" / "results" / "true_size.json"
    counted = json.loads(results.read_text())["predict"]["memory_of_learning"][name]
    for stated, mode in zip(KNOWN[name].memory, ("four_views", "low_memory"), strict=True):
        assert 0 <= stated - counted[f"{mode}_bytes"] < 1e8, "rounded up to a tenth of a gigabyte"
    assert name not in ("sd14", "sd15") or KNOWN[name].memory[1] < 6e9


def test_the_row_of_mini_equals_its_card() -> None:
    folder = locate("mini").path
    card, row = card_for(folder, "mini", "mini"), KNOWN["mini"]
    assert (card.family, card.licence, card.native_size) == (row.family, row.licence.name, row.native_size)
    assert card.defaults == row.defaults and card.world == "mini"
    assert read_json(folder / "scheduler" / "scheduler_config.json")["prediction_type"] == row.prediction


def test_distilled_models_default_to_few_steps() -> None:
    assert all(KNOWN[name].defaults["steps"] <= 8 for name in ("sd-turbo", "sdxl-turbo", "lcm"))
    assert all(KNOWN[name].defaults["guidance"] <= 1 for name in ("sd-turbo", "sdxl-turbo"))
    assert KNOWN["lcm"].defaults["sampler"] == "lcm"


def test_a_card_prefers_its_own_file_to_the_table_to_the_configs(tmp_path: Path) -> None:
    folder, row = write_model(tmp_path / "model"), KNOWN["sd-turbo"]
    plain, known = card_for(folder, "x", "someone/x"), card_for(folder, "x", row.source)
    assert (plain.licence, plain.native_size, plain.defaults["steps"]) == ("unknown", 512, 30)
    assert (known.licence, known.native_size) == (row.licence.name, row.native_size)
    assert known.defaults == {**plain.defaults, **row.defaults} and known.defaults["layout"] == "auto"
    (folder / CARD_FILE).write_text(json.dumps({"licence": "its own", "defaults": {"steps": 2}}))
    own = card_for(folder, "x", row.source)
    assert (own.licence, own.defaults) == ("its own", {**known.defaults, "steps": 2})


# Unsupported models.


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"_class_name": "WuerstchenDecoderPipeline"}, "tokenizer is missing"),
        (model_index(_class_name="StableDiffusionInpaintPipeline"), "mask"),
        (model_index(_class_name="StableDiffusionUpscalePipeline"), "mask"),
        (model_index(text_encoder=["transformers", "T5EncoderModel"]), "text_encoder is T5EncoderModel"),
        (model_index(text_encoder_2=["transformers", "T5EncoderModel"]), "text_encoder_2 is T5EncoderModel"),
        (model_index(tokenizer=["transformers", "Qwen2Tokenizer"]), "tokenizer is Qwen2Tokenizer"),
        (model_index(unet=["diffusers", "UNetMotionModel"]), "unet is UNetMotionModel"),
        (model_index(unet=[None, None], transformer=["diffusers", "NewTransformer2DModel"]), "unet is missing"),
        (model_index(vae=["diffusers", "VQModel"]), "vae is VQModel"),
        (
            model_index(text_encoder=[None, None], text_encoder_2=["transformers", "CLIPTextModelWithProjection"]),
            "refiner",
        ),
    ],
)
def test_other_families_are_refused_with_a_reason(index: dict[str, object], reason: str) -> None:
    assert reason in str(why_unsupported(index))


@pytest.mark.parametrize(
    "class_name",
    [
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "LatentConsistencyModelPipeline",
        "StableDiffusionPAGPipeline",
    ],
)
def test_the_family_is_not_refused(class_name: str) -> None:
    assert why_unsupported(model_index(_class_name=class_name)) is None


@pytest.mark.parametrize(
    "name",
    ["flux", "black-forest-labs/FLUX.1-dev", "PixArt-alpha/PixArt-XL-2-1024-MS",
     "kandinsky-community/kandinsky-2-2-decoder", "warp-ai/wuerstchen"],
)  # fmt: skip
def test_names_of_other_families_are_refused_before_any_download(name: str) -> None:
    with pytest.raises(InvalidInputError, match="not supported"):
        locate(name)


@pytest.mark.parametrize(
    "name",
    ["flux-fan/sd15-mix", "stabilityai/stable-diffusion-3-medium-diffusers", *(KNOWN[name].source for name in FETCHED)],
)
def test_similar_names_are_accepted(name: str) -> None:
    assert locate(name).kind == "hub"


@pytest.mark.parametrize("name", KNOWN)
def test_no_known_model_is_refused(name: str) -> None:
    refuse_unsupported(name)
    refuse_unsupported(KNOWN[name].source)


# Locations.


@pytest.mark.parametrize("name", FETCHED)
def test_a_known_name_is_a_pinned_hub_id_until_it_is_downloaded(name: str, tmp_path: Path) -> None:
    place, row = locate(name), KNOWN[name]
    assert (place.kind, place.name, place.source, place.revision) == ("hub", name, row.source, row.revision)
    folder = write_cache(tmp_path / "hub", row.source, write_model(tmp_path / "m"), row.revision)
    assert (locate(name).kind, locate(name).path, locate(name).name) == ("folder", folder, name)
    assert card_for(folder, name, locate(name).source).licence == row.licence.name


def test_a_hub_id_is_found_in_the_cache_by_its_branch(tmp_path: Path) -> None:
    assert locate("someone/model").kind == "hub"
    folder = write_cache(tmp_path / "hub", "someone/model", write_model(tmp_path / "m"), COMMIT)
    assert (locate("someone/model").path, locate("someone/model").name) == (folder, "model")


@pytest.mark.parametrize(
    "lost", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "tokenizer/merges.txt"]
)
def test_an_incomplete_model_is_not_found_in_the_cache(tmp_path: Path, lost: str) -> None:
    row = KNOWN["sd15"]
    folder = write_cache(tmp_path / "hub", row.source, write_model(tmp_path / "m"), row.revision)
    (folder / lost).unlink()
    assert missing_parts(folder) == [lost]
    assert locate("sd15").kind == "hub"


def test_a_broken_link_counts_as_missing(tmp_path: Path) -> None:
    """Cleaning a hub cache by hand can leave links without their blobs."""
    row = KNOWN["sd15"]
    folder = write_cache(tmp_path / "hub", row.source, write_model(tmp_path / "m"), row.revision)
    (folder / "unet" / "config.json").resolve().unlink()
    assert missing_parts(folder) == ["unet/config.json"]


def test_an_installed_folder_is_preferred_to_the_cache(tmp_path: Path) -> None:
    row = KNOWN["sd15"]
    write_cache(tmp_path / "hub", row.source, write_model(tmp_path / "m"), row.revision)
    write_model(installed_folder("sd15"))
    assert locate("sd15").path == installed_folder("sd15")
    assert installed_folder("a/b").parent == installed_folder("sd15").parent


def test_single_files_of_both_kinds(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".ckpt"):
        (tmp_path / f"x{suffix}").write_bytes(b"")
        assert locate(tmp_path / f"x{suffix}").kind == "file"
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(NotFoundError, match="ckpt"):
        locate(tmp_path / "x.bin")


def test_an_unknown_name_suggests_a_similar_one() -> None:
    with pytest.raises(NotFoundError) as caught:
        locate("sd51")
    assert "did you mean sd" in caught.value.hint


def test_models_and_library_have_one_root() -> None:
    assert data_root() == Library().root


def test_without_the_hub_client_no_model_is_in_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = KNOWN["sd15"]
    write_cache(tmp_path / "hub", row.source, write_model(tmp_path / "m"), row.revision)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert locate("sd15").kind == "hub"


# Files of a model folder.


def test_only_full_precision_safetensors_are_wanted() -> None:
    names = [
        "README.md",
        "v1-5-pruned.ckpt",
        "safety_checker/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "tokenizer/vocab.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/../../outside.safetensors",
        "vae/config.json",
    ]
    assert wanted_files(names) == [names[4], names[6], names[7], names[9], names[11]]


def test_shards_are_listed_by_their_index(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shard = "diffusion_pytorch_model-00001-of-00002.safetensors"
    whole.rename(folder / "unet" / shard)
    index = folder / "unet" / f"{whole.name}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard, "b": shard.replace("00001-", "00002-")}}))
    assert missing_parts(folder) == ["unet/diffusion_pytorch_model-00002-of-00002.safetensors"]


def test_mini_is_complete() -> None:
    assert not missing_parts(locate("mini").path)


def test_a_row_is_found_by_its_hub_id() -> None:
    row = known_by_source("stabilityai/sd-turbo")
    assert isinstance(row, KnownModel) and row is KNOWN["sd-turbo"]
    assert known_by_source("mini/weights") is None and known_by_source("someone/else") is None
