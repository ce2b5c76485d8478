"""Values of foreign files that are of the wrong type, out of range or not supported, and names as people write them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_fakes import SCHEDULER, make_identity, write_bundle
from console_fakes import CommandLine, refused, toy_bundle
from model_fakes import write_model

from celebctl.basis.identity_vectors import require_widths
from celebctl.bundles import find_bundle
from celebctl.cli.interchange import name_for
from celebctl.cli.naming import name_from_file, names_folder
from celebctl.library import Library, origin_of
from celebctl.strict_toml import parse_toml
from celebctl.textual_inversion import EmbeddingFile
from celebctl_models.checkpoints.checkpoint_io import tensor_shapes
from celebctl_models.checkpoints.checkpoint_layout import refuse_layout, refuse_normalized_latents
from celebctl_models.checkpoints.registry import CARD_FILE, card_for, locate, whole_number
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_runtime.backends.select import MAX_THREADS, choose_backend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError, SetupError, UsageError
from celebctl_runtime.files import require_writable
from celebctl_runtime.paths import expanded
from celebctl_runtime.sampling.schedule import ScheduleConfig

NO_NUMBERS: list[Any] = [0, -1, "64", "nan", 1.5, True, [], [8, 12], [8, 8, 8], {}, 1 << 40, ["8"]]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_a_size_in_a_config_is_a_whole_number(value: Any) -> None:
    with pytest.raises(IntegrityError) as caught:
        whole_number({"sample_size": value}, "sample_size", 64)
    assert caught.value.reason == "unsupported_config" and caught.value.values["key"] == "sample_size"


@pytest.mark.parametrize(("value", "expected"), [(None, 64), (96, 96), ([96, 96], 96), ([96], 96)])
def test_a_square_may_be_written_with_both_sides(value: Any, expected: int) -> None:
    assert whole_number({"sample_size": value}, "sample_size", 64) == expected


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("unet/config.json", {"sample_size": [8, 12]}),
        ("vae/config.json", {}),
        ("vae/config.json", {"block_out_channels": 4}),
        ("vae/config.json", {"block_out_channels": [1] * 99}),
        (CARD_FILE, {"defaults": {"steps": "9"}}),
        (CARD_FILE, {"defaults": {"guidance": -1}}),
        (CARD_FILE, {"defaults": {"sampler": "../x"}}),
        (CARD_FILE, {"defaults": {"layout": 1}}),
        (CARD_FILE, {"native_size": True}),
        (CARD_FILE, {"native_size": 1 << 40}),
    ],
)
def test_a_model_folder_with_other_values_is_damaged(tmp_path: Path, file: str, content: Any) -> None:
    folder = write_model(tmp_path / "model")
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(IntegrityError) as caught:
        card_for(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    "entry",
    [
        {"num_train_timesteps": "1000"}, {"num_train_timesteps": 10**12}, {"num_train_timesteps": -1},
        {"num_train_timesteps": 1000.5}, {"beta_start": [0.1]}, {"beta_start": 0}, {"beta_end": 2.0},
        {"beta_schedule": 1}, {"prediction_type": ["epsilon"]}, {"trained_betas": "0.1"}, {"trained_betas": [0.1, "x"]},
        {"trained_betas": [0.1] * 3}, {"steps_offset": -1}, {"set_alpha_to_one": "yes"}, {"shift": 0}, {"shift": {}},
        {"use_dynamic_shifting": True, "base_image_seq_len": 4096}, {"_class_name": "EDMEulerScheduler"},
        {"_class_name": {"a": 1}}, {"thresholding": True}, {"timestep_spacing": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_scheduler_that_is_not_understood_is_refused_by_name(tmp_path: Path, entry: dict[str, Any]) -> None:
    config = {**SCHEDULER, **entry}
    with pytest.raises(IntegrityError) as caught:
        ScheduleConfig.from_dict(config)
    assert caught.value.reason == "unsupported_scheduler"
    bundle = write_bundle(tmp_path / "bundle")
    damaged = replace(bundle.manifest, scheduler=config)
    (bundle.path / "manifest.json").write_bytes(damaged.to_bytes())
    with pytest.raises(IntegrityError):
        _ = Bundle.open(bundle.path).schedule


def test_schedulers_of_diffusers_are_read() -> None:
    entries = {
        "_class_name": "PNDMScheduler",
        "skip_prk_steps": True,
        "timestep_spacing": None,
        "_use_default_values": list[str](),
    }
    assert ScheduleConfig.from_dict({**SCHEDULER, **entries}).beta_start == SCHEDULER["beta_start"]
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3}
    assert ScheduleConfig.from_dict(flow).shift == 3.0


@pytest.mark.parametrize("key", ["latents_mean", "latents_std"])
def test_normalised_latents_are_refused_by_name(key: str) -> None:
    refuse_normalized_latents("x", {key: None})
    with pytest.raises(InvalidInputError) as caught:
        refuse_normalized_latents("x", {key: [0.1] * 4})
    assert (caught.value.reason, caught.value.values["key"]) == ("unsupported_latents", key)


@pytest.mark.parametrize("marker", ["edm_vpred.sigma_max", "edm_mean"])
def test_single_files_of_another_parametrisation_are_refused_by_name(marker: str) -> None:
    shapes = {"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3), "cond_stage_model.x": (1,), marker: ()}
    with pytest.raises(InvalidInputError) as caught:
        refuse_layout("x", shapes)
    assert (caught.value.reason, caught.value.values["marker"]) == ("unsupported_prediction", marker)


def test_a_ckpt_of_one_tensor_is_no_checkpoint(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    torch.save(torch.zeros(3), tmp_path / "x.ckpt")
    with pytest.raises(InvalidInputError) as caught:
        tensor_shapes(tmp_path / "x.ckpt")
    assert caught.value.reason == "not_a_checkpoint"


def test_a_folder_of_fp16_files_is_read_and_one_of_bin_files_says_why_not(tiny_folder: Path, tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    from celebctl_models.checkpoints.diffusion import load_parts

    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    for file in list(folder.rglob("*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    found, expected = (load_parts(one).denoiser.state_dict() for one in (folder, tiny_folder))
    assert all(torch.equal(found[name], expected[name]) for name in expected) and len(found) == len(expected)
    for file in list((folder / "unet").glob("*.safetensors")):
        file.rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(IntegrityError) as caught:
        load_parts(folder)
    assert ".bin" in caught.value.hint


# Bundles.


@pytest.mark.parametrize("location", ["../secret", "/dev/zero", "{absolute}", "link.bin", "../bundle/../secret"])
def test_weights_outside_a_bundle_are_not_read(tmp_path: Path, location: str) -> None:
    """The manifest's hash of the graph is right: an attacker made this bundle."""
    bundle = write_bundle(tmp_path / "bundle")
    bundle.add(make_identity("alice"))
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    (bundle.path / "link.bin").symlink_to(tmp_path / "secret")
    graph = onnx.ModelProto.FromString((bundle.path / "text_encoder.onnx").read_bytes())
    for tensor in graph.graph.initializer:
        for item in tensor.external_data:
            if item.key == "location":
                item.value = location.format(absolute=tmp_path / "secret")
    (bundle.path / "text_encoder.onnx").write_bytes(graph.SerializeToString())
    (bundle.path / "link.bin").rename(tmp_path / "link.bin")
    sealed = Bundle.seal(bundle.path, replace(bundle.manifest, files={}))
    (tmp_path / "link.bin").rename(bundle.path / "link.bin")
    from celebctl_runtime.pipeline import generate
    from celebctl_runtime.request import Request

    with pytest.raises(IntegrityError) as caught:
        generate(sealed, choose_backend(sealed, "cpu"), [Request("alice", steps=1)])
    assert caught.value.reason == "broken_graph"


@pytest.mark.parametrize("pattern", [r"(a+)+$", "("])
def test_a_pattern_that_a_tokenizer_fails_on_is_damage(console: CommandLine, pattern: str) -> None:
    bundle = toy_bundle(console.library, make_identity("alice"))
    edit_tokenizer(bundle, lambda data: data["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": pattern}))
    refused(console("gen", f"{'a' * 60}c"), 5, "tokenizer.json")


def test_a_word_is_no_person(console: CommandLine) -> None:
    """A tokenizer whose words have the ids of people's rows, or of none."""
    bundle = toy_bundle(console.library, make_identity("alice"))
    for number in (bundle.token_ids["alice"][0], 10**6):
        edit_tokenizer(bundle, lambda data, number=number: data["model"]["vocab"].update({"an</w>": number}))
        refused(console("gen", "an"), 5, "tokenizer.json")


def edit_tokenizer(bundle: Bundle, edit: Callable[[Any], object]) -> None:
    """Change the tokenizer of a bundle whose manifest states the new file."""
    path = bundle.path / "tokenizer" / "tokenizer.json"
    data = json.loads(path.read_bytes())
    edit(data)
    path.write_text(json.dumps(data))
    Bundle.seal(bundle.path, replace(bundle.manifest, files={}))


@pytest.mark.parametrize("age", [float("nan"), float("inf")])
def test_an_age_that_is_no_number_is_no_adult(age: float, tmp_path: Path) -> None:
    analyser: Any = object.__new__(OnnxFaceAnalyser)

    def estimate(*_: object) -> tuple[int, float]:
        return 0, age

    analyser.folder, analyser._ages = tmp_path, SimpleNamespace(get=estimate)
    with pytest.raises(IntegrityError) as caught:
        analyser._age(np.zeros((8, 8, 3), np.uint8), np.zeros(4, np.float32))
    assert caught.value.reason == "face_models_unusable"


def test_onnx_runtime_keeps_and_sends_nothing(tmp_path: Path) -> None:
    code = (
        "import celebctl_runtime.backends.ort_session as sessions, celebctl.doctor as doctor, os\n"
        "ort = sessions.load_onnxruntime()\n"
        "ort.InferenceSession(doctor.TINY_ONNX, providers=['CPUExecutionProvider'])\n"
        "files = [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
        " if os.path.islink(f'/proc/self/fd/{n}')] if os.path.isdir('/proc/self/fd') else []\n"
        "print([file for file in files if 'onnxruntime' in file or 'socket' in file])\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"), str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **places}, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]" and not run.stderr
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1, 100_000])
def test_a_number_of_threads_that_no_machine_has_is_refused(console: CommandLine, tmp_path: Path, threads: int) -> None:
    with pytest.raises(UsageError) as caught:
        choose_backend(write_bundle(tmp_path / "bundle"), "cpu", threads=threads)
    assert caught.value.reason == "threads_out_of_range"
    toy_bundle(console.library)
    if threads > MAX_THREADS:
        refused(console("gen", "beach", "--threads", str(threads)), 2, "out of range", "--threads")


def test_an_identity_of_another_width_is_named() -> None:
    basis: Any = SimpleNamespace(mean=(np.zeros((2, 8)),))
    require_widths(make_identity("alice"), basis)
    with pytest.raises(IntegrityError) as caught:
        require_widths(make_identity("alice", width=12), basis)
    assert caught.value.reason == "identity_width" and "12" in caught.value.problem and "8" in caught.value.problem


# Text and paths.


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000, 'a = "\\u0000"', "a =", "[a]\n[a]"])
def test_hostile_toml_is_a_value_error(text: str, console: CommandLine) -> None:
    with pytest.raises(ValueError):
        parse_toml(text)
    (console.folder / "celebctl.toml").write_text(text)
    refused(console("use"), 2, "not valid TOML")


@pytest.mark.parametrize("model", ["x" * 5000, "~nobody-at-all", "a\0b", "\ud800"], ids=ascii)
def test_a_model_that_cannot_be_a_path_is_not_found(model: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        locate(model)
    library = Library(tmp_path)
    assert origin_of(model) == model and find_bundle(library, model) is None
    library.remember_origin(tmp_path / "bundle", model)
    assert library.origin(tmp_path / "bundle") == model
    assert expanded("~nobody-at-all") == Path("~nobody-at-all")


def test_an_unreadable_file_is_code_4(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    (console.folder / "x.png").write_bytes(b"x")

    def refuse(*_: object) -> bool:
        return False

    monkeypatch.setattr("os.access", refuse)
    for words in (["inspect"], ["import"], ["regen"], ["gen", "beach", "--from"]):
        refused(console(*words, "x.png"), 4, "not readable")


def test_an_error_of_the_system_is_no_bug(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error", "/disk/x")

    monkeypatch.setattr("celebctl.library.Library.entries", fail)
    refused(console("list"), 6, "/disk/x: Input/output error")


def test_text_that_stdout_cannot_encode_ends_no_command(
    console: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_bundle(console.library)
    with (tmp_path / "out").open("wb") as raw:
        monkeypatch.setattr(sys, "stdout", TextIOWrapper(raw, encoding="ascii"))
        from celebctl.cli import main

        assert main(["gen", "é", "--seed", "7"]) == 0
        assert main(["gen", "é", "--seed", "8", "--json"]) == 0
        sys.stdout.flush()
    line, document = (tmp_path / "out").read_text("ascii").split("\n", 1)
    assert line.endswith("-7.png") and json.loads(document)["images"][0]["path"] == "é-8.png"


def test_escape_sequences_of_a_file_do_not_reach_the_terminal(console: CommandLine) -> None:
    (console.folder / "celebctl.toml").write_text('"\\u001b[2J\\u202e" = 1')
    answer = console("use")
    assert answer.code == 2 and "\x1b" not in answer.err and "\u202e" not in answer.err and "[2J" in answer.err


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("José.jpg", "jose"), ("Zoë Müller.jpg", "zoe_muller"), ("Łukasz.png", "lukasz"), ("Søren.webp", "soren"),
        ("Groß.jpg", "gross"), ("emb_1.5.safetensors", "emb_1_5"), ("Ænne.png", "aenne"),
    ],
)  # fmt: skip
def test_names_in_file_names_keep_their_letters(file: str, name: str) -> None:
    assert name_from_file(file) == name


def test_an_embedding_is_called_as_other_programs_call_it() -> None:
    def called(file: str, inner: str, layout: str = "") -> str:
        return name_for(None, EmbeddingFile("embedding", layout, name=inner), Path(file))

    assert called("emb_1.6.safetensors", "emb_params") == "emb_1_6"
    assert called("carla.pt", "old name", "string_to_param") == "carla"
    assert called("learned_embeds.bin", "<dora>") == "dora"
    assert called("erna.safetensors", "clip_l") == "erna"
    with pytest.raises(UsageError):
        called("learned_embeds.bin", "emb_params")


def test_a_number_is_no_suffix(console: CommandLine) -> None:
    assert names_folder(Path("v1.5")) and names_folder(Path("v")) and not names_folder(Path("v.png"))
    toy_bundle(console.library)
    assert console("gen", "beach", "--seed", "7", "-o", "v1.5").code == 0
    assert (console.folder / "v1.5" / "beach-7.png").is_file()


def test_the_place_is_tried_before_anything_is_drawn(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_bundle(console.library)
    (console.folder / "file").write_bytes(b"")

    def draw(*_: object) -> None:
        pytest.fail("drawn")

    monkeypatch.setattr("celebctl.cli.gen.draw", draw)
    refused(console("gen", "beach", "-o", "file/x.png"), 6, "cannot write")
    require_writable(console.folder / "new" / "folder")
    assert not (console.folder / "new").exists()
    with pytest.raises(SetupError):
        require_writable(console.folder / "file" / "folder")
