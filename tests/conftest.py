"""Shared fixtures: tiny random members of the Stable Diffusion family, written to disk in the real diffusers layout."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from console_fakes import CommandLine

    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_runtime.identity import Identity

WIDTH = 32
WORDS = ("a", "portrait", "of", "person", "and", "playing", "chess", "beach", "smiling", "ann", "anna", "alice", "bob")
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.42.1",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}

XL_SCHEDULER = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"}

ROOT = Path(__file__).parent.parent
# What a user's shell, another environment or `make` may have set, and what would change a result.
FOREIGN = (
    "CELEBCTL_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DIFFUSERS_", "INSIGHTFACE_", "XDG_", "GIT_", "PYTHON", "MAKE",
    "CONDA_",
)  # fmt: skip
FOREIGN_NAMES = (
    "VIRTUAL_ENV", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES", "SOURCE_DATE_EPOCH",
    "GNUMAKEFLAGS", "MFLAGS", "TORCH_HOME", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "_CELEBCTL_COMPLETE",
)  # fmt: skip
HOMES = ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA")
KEPT: dict[str, str] = {}  # the environment as it was, for a tool that needs the user's configuration
_home = tempfile.TemporaryDirectory(prefix="celebctl-tests-")


def pytest_configure() -> None:
    """Before any module is imported: libraries read HF_HOME and the like only once."""
    KEPT.update(os.environ)
    rooms = [ROOT, *(ROOT / room for room in ("models", "export", "runtime"))]
    others = [Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    for name in list(os.environ):
        if name.startswith(FOREIGN) or name in FOREIGN_NAMES:
            del os.environ[name]
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, dict.fromkeys([*rooms, *others])))
    os.environ.update(dict.fromkeys(HOMES, _home.name))


#: Files whose tests take longest, longest first: they start first, so that no process waits for them at the end.
LONGEST = (
    "test_likeness", "test_families", "test_docs", "test_export_half", "test_sdxl", "test_learn", "test_end_to_end",
    "test_tensorrt_backend", "test_evaluation_command", "test_names", "test_ablations", "test_bench", "test_export",
    "test_export_variants", "test_mapper_training", "test_device",
)  # fmt: skip
#: Files that load no model and run no training: `make test-fast`.
FAST = (
    "test_bundle", "test_bundle_verification", "test_cli", "test_consent", "test_doctor", "test_download_command",
    "test_files", "test_gen_command", "test_identity", "test_layout", "test_library",
    "test_noise", "test_overrides", "test_people_commands", "test_picture", "test_project_layout", "test_prompt_syntax",
    "test_request", "test_settings", "test_textual_inversion", "test_tokenizer", "test_untrusted_files",
    "test_untrusted_paths",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort long files to the front, and mark the files that load no model."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        if item.path.stem in FAST:
            item.add_marker(pytest.mark.fast)


def pytest_unconfigure() -> None:
    """Give the process its environment back."""
    os.environ.clear()
    os.environ.update(KEPT)
    _home.cleanup()


@pytest.fixture(scope="session", autouse=True)
def session_place() -> Iterator[None]:
    """Session fixtures, too, work in an empty folder, without a ./celebctl.toml or a file of the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(_home.name)
        yield


@pytest.fixture(autouse=True)
def empty_place() -> Iterator[None]:
    """Every test has a home and a working folder of its own, both empty."""
    with tempfile.TemporaryDirectory(dir=_home.name) as place, pytest.MonkeyPatch.context() as patch:
        folder = Path(place)
        for name in ("home", "here"):
            (folder / name).mkdir()
        for name in HOMES:
            patch.setenv(name, str(folder / "home"))
        patch.chdir(folder / "here")
        yield


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SDXL pipeline folder: two text encoders, pooled text and picture size told to the UNet."""
    folder = tmp_path_factory.mktemp("tiny-xl") / "tiny-xl"
    write_xl_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def xl_parts(xl_folder: Path) -> DiffusionParts:
    from celebctl_models.checkpoints.diffusion import load_parts

    return load_parts(xl_folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random v-prediction pipeline folder: text width 32, UNet (16, 32), autoencoder factor 4, 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-v"
    write_pipeline(folder, "v_prediction")
    return folder


@pytest.fixture(scope="session")
def tiny_parts(tiny_folder: Path) -> DiffusionParts:
    from celebctl_models.checkpoints.diffusion import load_parts

    return load_parts(tiny_folder)


@pytest.fixture(scope="session")
def ann(tiny_parts: DiffusionParts) -> Identity:
    return make_identity(tiny_parts, "ann", seed=1)


@pytest.fixture(scope="session")
def exported_path(tiny_parts: DiffusionParts, ann: Identity, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's bundle with ann baked in. Exported once for all tests: look at it, change a copy."""
    from celebctl_export import ExportOptions, export_bundle

    path = tmp_path_factory.mktemp("bundles") / "tiny"
    return export_bundle(tiny_parts, [ann], path, ExportOptions(spare_rows=8)).path


@pytest.fixture
def exported_copy(exported_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_path, tmp_path / "bundle"))


@pytest.fixture(scope="session", params=["v_prediction", "epsilon"])
def either_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pipeline once for each prediction type."""
    kind = cast(str, request.param)
    folder = tmp_path_factory.mktemp("either") / f"tiny-{kind[0]}"
    write_pipeline(folder, kind)
    return folder


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line over stand-ins, in an empty folder."""
    from console_fakes import CommandLine, fake_installation

    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return CommandLine(fake_installation(monkeypatch, tmp_path), folder, capsys)


def make_identity(parts: DiffusionParts, name: str, seed: int) -> Identity:
    """A person of random coefficients who fits the model; rows as long as those of its vocabulary."""
    import numpy as np

    from celebctl_runtime.identity import Identity

    table = parts.token_table().numpy()
    rows = np.random.default_rng(seed).normal(size=(2, table.shape[1])) * table.std()
    return Identity(name, (rows[:, :4],), (rows,), "no-basis", parts.family, parts.table_hash)


def write_pipeline(
    folder: Path,
    prediction_type: str,
    *,
    width: int = WIDTH,
    unet_channels: tuple[int, int] = (16, 32),
    vae_channels: tuple[int, ...] = (8, 16, 16),
    scheduler: dict[str, Any] | None = None,
    unet: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Write a seeded random StableDiffusionPipeline folder; sizes are parameters so that mini's can be measured.

    ``unet`` and ``text`` go over the configurations of the UNet and the text encoder.
    """
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    tokenizer = build_tokenizer(WORDS)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    more: dict[str, Any] = {"num_hidden_layers": 2, **(text or {})}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=max(2, width // 64),
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )
    # Random text encoders hardly tell words apart; larger initial weights make wrong rows visible in a picture.
    config.initializer_factor = 4.0
    cast(Any, CLIPTextModel(config)).save_pretrained(str(folder / "text_encoder"))
    _unet(width, unet_channels, **(unet or {})).save_pretrained(str(folder / "unet"))
    _vae(vae_channels).save_pretrained(str(folder / "vae"))
    wanted = {**SCHEDULER, "prediction_type": prediction_type, **(scheduler or {})}
    write_json(folder / "scheduler" / "scheduler_config.json", wanted)
    write_json(folder / "model_index.json", _index())


def write_xl_pipeline(
    folder: Path,
    *,
    vae_channels: tuple[int, ...] = (8, 16, 16),
    scheduler: dict[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Write a seeded random StableDiffusionXLPipeline folder: text widths 32 and 48, pooled 40, three UNet levels."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    tokenizer = build_tokenizer(WORDS)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    tokenizer.pad_token = "!"  # as SDXL's second tokenizer pads
    tokenizer.save_pretrained(str(folder / "tokenizer_2"))
    common: dict[str, Any] = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 77}
    # SDXL's own configs still say 2, which makes transformers look for the largest id
    common |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "initializer_factor": 4.0}
    first = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_attention_heads=2, projection_dim=32, **common)
    common["hidden_act"] = "gelu"  # the first is OpenAI's CLIP, the second OpenCLIP
    second = CLIPTextConfig(hidden_size=48, intermediate_size=96, num_attention_heads=3, projection_dim=40, **common)
    cast(Any, CLIPTextModel(first)).save_pretrained(str(folder / "text_encoder"))
    cast(Any, CLIPTextModelWithProjection(second)).save_pretrained(str(folder / "text_encoder_2"))
    _xl_unet().save_pretrained(str(folder / "unet"))
    _vae(vae_channels).save_pretrained(str(folder / "vae"))
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler or {**SCHEDULER, **XL_SCHEDULER})
    two = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": _index()["tokenizer"]}
    one = {key: value for key, value in _index().items() if "safety" not in key}
    kind = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    write_json(folder / "model_index.json", {**one, **two, **kind})


def _xl_unet() -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return cast(Any, UNet2DConditionModel)(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(2, 4, 4),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=32 + 48,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
    )


def build_tokenizer(words: Sequence[str]) -> Any:
    """A CLIPTokenizer as CLIP's own is built (256 bytes, their word-final forms, merges), each of `words` one token."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import CLIPTokenizer

    trained = Tokenizer(BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=5000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(words, trainer)
    merges = [(str(left), str(right)) for left, right in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return cast(Any, CLIPTokenizer)(vocab=vocabulary, merges=merges, model_max_length=77)


def _unet(width: int, channels: tuple[int, int], **more: Any) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    usual: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": channels,
        "layers_per_block": 1,
        "attention_head_dim": 4,  # diffusers means the number of heads by this
    }
    return cast(Any, UNet2DConditionModel)(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        norm_num_groups=8,
        cross_attention_dim=width,
        **{**usual, **more},
    )


def _vae(channels: tuple[int, ...]) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return cast(Any, AutoencoderKL)(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=0.8,
    )


def _index() -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    """Modules of benchmarks/ by name."""
    names = ("comparison", "methods", "training", "tuning", "picture")
    modules = {f"baselines.{name}": import_module(f"benchmarks.baselines.{name}") for name in names}
    return modules | {name: import_module(f"benchmarks.{name}") for name in ("ablations", "clarity")}
