"""LoRAs in bundles against diffusers, in both layouts; files that do not fit are refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from bundle_fakes import TABLE_HASH, write_bundle
from console_fakes import MODEL, CommandLine
from family_fakes import sd1, sd3, xl
from lora_fakes import Layout, write_lora
from numpy.typing import NDArray

from celebctl.bundles import find_bundle
from celebctl.file_info import describe
from celebctl.library import Library
from celebctl.model import Model
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.checkpoints.lora import Lora, check_loras, fuse_loras
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import LoraInfo, Manifest
from celebctl_runtime.errors import (
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    SetupError,
    UsageError,
)
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request
from celebctl_runtime.sampling.noise import initial_noise

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")
pytest.importorskip("peft")

PROMPT = "a portrait of ann playing chess"
FAMILIES: dict[str, Callable[[Path], None]] = {"sd1": sd1, "xl": xl, "sd3": sd3}
INFO = LoraInfo("style.safetensors", "0" * 64, 0.5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model of each family."""
    base = tmp_path_factory.mktemp("families")
    for name, write in FAMILIES.items():
        write(base / name)
    return {name: base / name for name in FAMILIES}


def fused_pipeline(folder: Path, loras: list[Lora]) -> Any:
    """diffusers' pipeline with the LoRAs fused by its own functions."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    index = json.loads((folder / "model_index.json").read_text())
    without = {name: None for name in ("text_encoder_3", "tokenizer_3") if name in index}
    pipe = cast(Any, DiffusionPipeline).from_pretrained(str(folder), local_files_only=True, **without)
    pipe.set_progress_bar_config(disable=True)
    networks = [name for name in ("unet", "transformer", "text_encoder", "text_encoder_2") if getattr(pipe, name, None)]
    for lora in loras:
        pipe.load_lora_weights(str(lora.path))
        pipe.fuse_lora(components=networks, lora_scale=lora.weight)
        pipe.unload_lora_weights()
    return pipe


def networks_of(pipe: Any) -> list[Any]:
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    return [denoiser, pipe.text_encoder, *filter(None, [getattr(pipe, "text_encoder_2", None)])]


@pytest.mark.parametrize(
    ("family", "layout"),
    [("sd1", "kohya"), ("sd1", "diffusers"), ("xl", "kohya"), ("xl", "diffusers"), ("sd3", "diffusers")],
)
def test_fused_weights_are_those_of_diffusers(
    family: str, layout: Layout, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Two LoRAs, one of them subtracted; the second one for some layers only. Token tables stay."""
    base, parts = load_parts(folders[family]), load_parts(folders[family])
    loras = [
        Lora(write_lora(tmp_path / "one.safetensors", base, layout), 0.8),
        Lora(write_lora(tmp_path / "two.safetensors", base, layout, seed=1, only="attn"), -1.5),
    ]
    parts = fuse_loras(parts, loras)
    expected = networks_of(fused_pipeline(folders[family], loras))
    for ours, theirs, before in zip(
        (parts.denoiser, *parts.text_encoders), expected, (base.denoiser, *base.text_encoders), strict=True
    ):
        weights, others, first = ours.state_dict(), theirs.state_dict(), before.state_dict()
        assert weights.keys() == others.keys() == first.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, others[name], atol=1e-6, rtol=1e-5)
        changed = {name for name, weight in weights.items() if not torch.equal(weight, first[name])}
        assert changed and all(name.endswith(".weight") for name in changed)
        assert not any(weight.requires_grad for weight in ours.parameters()) and not ours.training
    assert parts.table_hash == base.table_hash and parts.weights_digest != base.weights_digest
    assert [(lora.file, lora.weight) for lora in parts.loras] == [("one.safetensors", 0.8), ("two.safetensors", -1.5)]


def test_layers_may_be_counted_as_in_the_original_code_of_xl(folders: dict[str, Path], tmp_path: Path) -> None:
    """kohya's trainers do so for XL; the same numbers under the names of diffusers' blocks give the same weights."""
    from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

    parts = load_parts(folders["xl"])
    file = write_lora(tmp_path / "style.safetensors", parts, "kohya", only="attentions")
    per_block = int(parts.denoiser.config.layers_per_block) + 1

    def original(name: str) -> str:
        place = re.match(r"lora_unet_(down|mid|up)_blocks?_(?:(\d)_)?attentions_(\d)_", name)
        assert place is not None
        part, block, layer = place[1], int(place[2] or 0), int(place[3])
        number = {"down": 1 + per_block * block + layer, "mid": 1, "up": per_block * block + layer}[part]
        stem = {"down": f"input_blocks_{number}_1", "mid": "middle_block_1", "up": f"output_blocks_{number}_1"}[part]
        return f"lora_unet_{stem}_{name[place.end() :]}"

    tensors = cast("dict[str, Any]", load_file(file))
    save_file({original(name): tensor for name, tensor in tensors.items()}, str(tmp_path / "original.safetensors"))
    one, other = (
        fuse_loras(load_parts(folders["xl"]), [Lora(tmp_path / name)]).denoiser.state_dict()
        for name in ("style.safetensors", "original.safetensors")
    )
    before = parts.denoiser.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sum(not torch.equal(one[name], before[name]) for name in one) == len(tensors) // 3


def test_weights_in_float16_are_those_of_float32_rounded(folders: dict[str, Path], tmp_path: Path) -> None:
    file = write_lora(tmp_path / "style.safetensors", load_parts(folders["sd1"]), "kohya")
    half, whole = (
        fuse_loras(load_parts(folders["sd1"], dtype=dtype), [Lora(file)]).denoiser
        for dtype in (torch.float16, torch.float32)
    )
    assert half.dtype == torch.float16
    for name, weight in half.state_dict().items():
        torch.testing.assert_close(weight.float(), whole.state_dict()[name], atol=2e-3, rtol=2e-3)


class Recording(OrtBackend):
    """Keeps the latents that are decoded."""

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        self.latent = latent
        return super().decode(latent)


def test_export_changes_a_copy_of_the_model(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[DiffusionParts] = []

    def export_bundle(parts: DiffusionParts, *_: object) -> None:
        exported.append(parts)

    monkeypatch.setattr("celebctl_export.export_bundle", export_bundle)
    model = Model.load(folders["sd1"], device="cpu", library=Library(tmp_path / "home"))
    lora = Lora(write_lora(tmp_path / "style.safetensors", model.parts, "kohya"), 0.7)
    digest = model.parts.weights_digest
    model.export(tmp_path / "bundle", loras=[lora])
    assert exported[0].loras == (lora.info,) and exported[0].weights_digest != digest
    assert model.parts.weights_digest == digest and model.tables.table_hash == exported[0].table_hash


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout"), [("sd1", "kohya"), ("xl", "diffusers")])
def test_a_bundle_draws_the_latents_of_diffusers(
    family: str, layout: Layout, folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    from celebctl_export import ExportOptions, export_bundle

    parts = load_parts(folders[family])
    lora = Lora(write_lora(tmp_path / "style.safetensors", parts, layout), 0.7)
    bundle = export_bundle(fuse_loras(parts, [lora]), [], tmp_path / "bundle", ExportOptions(spare_rows=8))

    pipe = fused_pipeline(folders[family], [lora])
    pipe.scheduler = cast(Any, DDIMScheduler).from_config(pipe.scheduler.config)
    backend, request = Recording(bundle, "cpu", 1), Request(PROMPT, seed=7, steps=3, guidance=5.0, sampler="ddim")
    (image,) = generate(bundle, backend, request)
    size = bundle.manifest.size
    noise = torch.as_tensor(initial_noise(7, (4, *(side // size.vae_factor for side in size.native))))[None]
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "latents": noise, "output_type": "latent"}
    expected = pipe(PROMPT, **options).images.numpy()
    assert np.abs(backend.latent - expected).max() < 1e-3 and expected.std() > 0.1

    recorded = {"file": "style.safetensors", "sha256": sha256(lora.path.read_bytes()).hexdigest(), "weight": 0.7}
    assert image.record["loras"] == [recorded] == [asdict(each) for each in bundle.manifest.loras]
    assert describe(bundle.path)["loras"] == [recorded]
    assert Bundle.open(bundle.path, verify="full").manifest.loras == bundle.manifest.loras


# Refusals.


def copy_of(source: Path, path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """The file with its tensors changed."""
    from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

    save_file(change(cast("dict[str, Any]", load_file(source))), str(path))
    return path


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def added(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {**tensors, name: torch.zeros(2, 2)}


def autoencoder_only(tensors: dict[str, Any]) -> dict[str, Any]:
    return {"decoder.conv_in.weight": torch.zeros(2, 2)}


def without_up(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if "up.weight" not in name}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (added("lora_unet_conv_in.dora_scale"), "unsupported_lora"),
        (renamed(".lora_down.weight", ".hada_w1_a"), "unsupported_lora"),
        (renamed(".lora_down.weight", ".lokr_w1"), "unsupported_lora"),
        (added("bundle_emb.style.string_to_param.*"), "lora_trains_tokens"),
        (added("lora_te_text_model_embeddings_token_embedding.lora_down.weight"), "lora_trains_tokens"),
        (autoencoder_only, "not_a_lora"),
        (renamed("lora_unet_", "lora_prior_"), "lora_of_other_family"),
        (renamed("down_blocks_1", "down_blocks_7"), "lora_of_other_family"),
        (without_up, "lora_of_other_family"),
    ],
)
def test_a_file_that_cannot_be_fused_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], reason: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    parts = load_parts(folders["sd1"])
    whole = write_lora(tmp_path / "whole.safetensors", parts, "kohya")
    file = copy_of(whole, tmp_path / "other.safetensors", change)
    with pytest.raises(InvalidInputError) as caught:
        fuse_loras(parts, [Lora(file)])
    assert (caught.value.reason, caught.value.exit_code) == (reason, 3)
    assert str(file) in caught.value.problem and "\n" not in caught.value.problem


@pytest.mark.parametrize(("own", "other"), [("sd1", "xl"), ("xl", "sd1"), ("sd3", "sd1"), ("sd1", "sd3")])
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_the_lora_of_another_family_is_refused(
    own: str, other: str, layout: Layout, folders: dict[str, Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    file = write_lora(tmp_path / "other.safetensors", load_parts(folders[other]), layout)
    with pytest.raises(InvalidInputError) as caught:
        fuse_loras(load_parts(folders[own]), [Lora(file)])
    assert caught.value.reason == "lora_of_other_family" and not recwarn.list


def test_more_than_a_lora_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """diffusers would leave the other tensors out of its own layout."""
    whole = write_lora(tmp_path / "whole.safetensors", load_parts(folders["sd1"]), "diffusers")
    with pytest.raises(InvalidInputError) as caught:
        check_loras([Lora(copy_of(whole, tmp_path / "other.safetensors", added("unet.conv_in.weight")))])
    assert caught.value.reason == "unsupported_lora"


def test_numbers_that_are_not_finite_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    parts = load_parts(folders["sd1"])
    whole = write_lora(tmp_path / "whole.safetensors", parts, "kohya")
    file = copy_of(
        whole, tmp_path / "other.safetensors", lambda tensors: {name: each / 0 for name, each in tensors.items()}
    )
    with pytest.raises(IntegrityError, match="NaN"):
        fuse_loras(parts, [Lora(file)])


def test_other_sizes_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Stable Diffusion 2 has the layers of 1, and a wider text encoder."""
    from conftest import write_pipeline

    write_pipeline(tmp_path / "wide", "epsilon", width=64)
    file = write_lora(tmp_path / "wide.safetensors", load_parts(tmp_path / "wide"), "diffusers", only="attn")
    with pytest.raises(InvalidInputError, match="sizes") as caught:
        fuse_loras(load_parts(folders["sd1"]), [Lora(file)])
    assert caught.value.reason == "lora_of_other_family"


def test_files_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    for name, error, reason in (
        ("missing.safetensors", NotFoundError, "missing_file"),
        ("style.pt", InvalidInputError, "lora_not_safetensors"),
        ("style.safetensors", IntegrityError, ""),
    ):
        if reason != "missing_file":
            (tmp_path / name).write_bytes(b"\x80\x04junk")
        with pytest.raises(error) as caught:
            check_loras([Lora(tmp_path / name)])
        assert not reason or caught.value.reason == reason


@pytest.mark.parametrize("weight", [4.1, -4.1, float("nan"), float("inf")])
def test_a_weight_out_of_range_is_refused(weight: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Lora(tmp_path / "style.safetensors", weight)
    assert caught.value.reason == "lora_weight_range"


def test_without_peft_the_extra_is_named(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_lora(tmp_path / "style.safetensors", load_parts(folders["sd1"]), "kohya")

    def nothing(name: str) -> None:
        return None

    monkeypatch.setattr("celebctl_models.checkpoints.lora.find_spec", nothing)
    with pytest.raises(SetupError) as caught:
        check_loras([Lora(file)])
    assert caught.value.reason == "missing_extra"


# In manifests, libraries and commands.


def test_manifests_are_checked_and_older_ones_open(tmp_path: Path) -> None:
    manifest = replace(write_bundle(tmp_path / "bundle").manifest, loras=(INFO,))
    data = json.loads(manifest.to_bytes())
    assert Manifest.from_json(data) == manifest
    for wrong in (
        {"file": ""}, {"file": "a\x1b[2Jb"}, {"file": "a" * 201}, {"sha256": "0" * 63}, {"sha256": "Z" * 64},
        {"weight": 4.5}, {"weight": float("nan")}, {"weight": "1"}, {"file": 3},
    ):  # fmt: skip
        with pytest.raises(IntegrityError):
            Manifest.from_json({**data, "loras": [{**asdict(INFO), **wrong}]})
    del data["loras"]
    assert Manifest.from_json(data).loras == ()


def test_a_bundle_with_loras_is_not_the_models_own(tmp_path: Path) -> None:
    """It has a folder for each set of files and weights, and is never found by the model's name."""
    library = Library(tmp_path / "home")
    others = [(), (INFO,), (replace(INFO, weight=0.6),), (replace(INFO, sha256="1" * 64),), (INFO, INFO)]
    paths = [library.bundle_path("toy", TABLE_HASH, loras) for loras in others]
    assert len(set(paths)) == len(paths) and "style" in paths[1].name and paths[1].parent == paths[0].parent
    paths[1].parent.mkdir(parents=True)
    bundle = write_bundle(paths[1])
    (bundle.path / "manifest.json").write_bytes(replace(bundle.manifest, loras=(INFO,)).to_bytes())
    assert find_bundle(library, "toy") is None
    library.remember_origin(paths[1], "toy")
    assert find_bundle(library, "toy") is None
    write_bundle(paths[0])
    library.remember_origin(paths[0], "toy")
    assert find_bundle(library, "toy") == paths[0] and len(library.bundles()) == 2
    assert (
        library.bundle_path("m" * 300, TABLE_HASH, [replace(INFO, file="/../" + "s" * 195)]).parent == paths[0].parent
    )


@pytest.mark.slow
def test_the_command_exports_with_a_lora(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of its own in the library, named by `gen --bundle`; images record the LoRA."""
    pytest.importorskip("onnxscript")
    from celebctl.cli import main

    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    folder = str(shutil.copytree(folders["sd1"], tmp_path / "toy"))
    write_lora(tmp_path / "style.safetensors", load_parts(folder), "kohya")
    words = ["--model", folder, "--spare-rows", "8", "--lora", "style.safetensors:0.5"]
    assert main(["--json", "export", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [lora["weight"] for lora in facts["loras"]] == [0.5]
    assert find_bundle(Library(), folder) is None and Library().bundles() == [Path(facts["path"])]
    assert main(["gen", "a person", "--seed", "1", "--steps", "2", "--bundle", facts["path"], "-o", "a.png"]) == 0
    assert describe(tmp_path / "a.png")["made_with"]["loras"] == facts["loras"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--lora", "style.safetensors"), 4),
        (("--lora", "style.safetensors:0.5"), 4),
        (("--lora", "style.safetensors:0.5x"), 2),
        (("--lora", "style.safetensors:5"), 2),
        (("--lora", "style:nan"), 2),
        (("--lora", "style:much"), 2),
        (("--lora", "style.pt:1"), 4),
        (("--lora", "style.safetensors", "--add", "alice"), 2),
    ],
)
def test_wrong_options_of_export(words: tuple[str, ...], code: int, console: CommandLine) -> None:
    assert console("export", "--model", MODEL, *words).code == code
