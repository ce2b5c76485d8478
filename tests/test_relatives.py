"""Single files of SDXL's relatives, against diffusers: what they state about their training reaches every picture."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from conftest import SCHEDULER, XL_SCHEDULER, write_xl_pipeline
from single_file_fake import write_single_file

from celebctl_models.checkpoints.checkpoint_options import CheckpointOptions
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.checkpoints.registry import CARD_FILE
from celebctl_models.checkpoints.token_tables import load_tables
from celebctl_runtime.errors import InvalidInputError, UsageError
from celebctl_runtime.sampling.noise import initial_noise

torch: Any = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("insightface")

#: A list of characters as the taggers of anime models write it.
NAMES = ["ann_bob_(fate)", r"anna_alice_\(series\)", "alice person", "bob_chess", "person_beach (x) (y)", "chess anna",
         "beach ann"]  # fmt: skip
PROMPT = "a portrait of ann playing chess"
#: What the files of NoobAI's v-prediction model state by two empty tensors, in diffusers' terms.
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def xl_single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small SDXL as xl/, and the configs of SDXL base for noob.safetensors."""
    folder = tmp_path_factory.mktemp("relatives")
    write_xl_pipeline(folder / "xl", scheduler={**SCHEDULER, **XL_SCHEDULER})
    shutil.copytree(folder / "xl", folder / "noob", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "noob" / "names.txt").write_text("\n".join(NAMES))
    (folder / "noob" / CARD_FILE).write_text(json.dumps({"names": "names.txt"}))
    return folder


@pytest.fixture(scope="module")
def noob(xl_single: Path) -> Path:
    """A half-precision single file with the marks of v-prediction and zero terminal SNR."""
    path = xl_single / "noob.safetensors"
    write_single_file(load_parts(xl_single / "xl"), path, half=True, marks=("v_pred", "ztsnr"))
    return path


def single_pipeline(path: Path, scheduler: str, **facts: Any) -> Any:
    """diffusers' own pipeline of a single file, with a scheduler told what the file states."""
    import diffusers

    pipe = cast(Any, diffusers).StableDiffusionXLPipeline.from_single_file(
        str(path), config=str(path.with_suffix("")), local_files_only=True, torch_dtype=torch.float32
    )
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **facts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffusers_picture(pipe: Any, seed: int, **options: Any) -> Any:
    """Drawn from the runtime's noise, in [0, 255]; the initial noise is scaled by the pipeline."""
    latents = torch.as_tensor(initial_noise(seed, (4, 16, 16)))[None]
    drawn = pipe(PROMPT, latents=latents, output_type="np", **options).images[0]
    return drawn * 255


@pytest.mark.parametrize(
    ("marks", "options", "expected"),
    [
        ((), {}, ("epsilon", False)),
        (("v_pred",), {}, ("v_prediction", False)),
        (("v_pred", "ztsnr"), {}, ("v_prediction", True)),
        ((), {"prediction_type": "v_prediction", "zero_terminal_snr": True}, ("v_prediction", True)),
        (("v_pred", "ztsnr"), {"zero_terminal_snr": False}, ("v_prediction", False)),
        (("v_pred",), {"prediction_type": "epsilon"}, ("epsilon", False)),
    ],
)
def test_a_schedule_is_what_was_stated_else_what_is_marked(
    marks: tuple[str, ...], options: dict[str, Any], expected: tuple[str, bool]
) -> None:
    """The base model's config, which comes with any file, says epsilon and leading timesteps."""
    config = {**SCHEDULER, **XL_SCHEDULER, "_use_default_values": ["rescale_betas_zero_snr", "timestep_spacing"]}
    found = CheckpointOptions(**options).schedule(config, marks)
    assert (found["prediction_type"], found.get("rescale_betas_zero_snr", False)) == expected
    assert (found.get("timestep_spacing") == "trailing") == expected[1]
    assert not {key for key in found["_use_default_values"] if key in found and found[key] != config.get(key)}


@pytest.mark.parametrize(("marks", "options"), [(("ztsnr",), {}), ((), {"zero_terminal_snr": True})])
def test_zero_terminal_snr_without_v_prediction_is_refused(marks: tuple[str, ...], options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        CheckpointOptions(**options).schedule({**SCHEDULER, "prediction_type": "epsilon"}, marks)
    assert caught.value.reason == "zero_snr_needs_v_prediction"


def test_the_token_tables_of_a_file_need_no_schedule(xl_single: Path) -> None:
    """A file whose marks are incomplete, until its networks are read with what the user states."""
    path = xl_single / "half-marked.safetensors"
    write_single_file(load_parts(xl_single / "xl"), path, marks=("ztsnr",))
    shutil.copytree(xl_single / "noob", path.with_suffix(""))
    assert load_tables(path).family == "sdxl"
    with pytest.raises(InvalidInputError):
        load_parts(path)
    assert load_parts(path, options=CheckpointOptions("v_prediction")).prediction_type == "v_prediction"


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        CheckpointOptions(prediction_type="v")
    assert caught.value.reason == "unknown_prediction"


def test_options_go_over_those_of_the_model_folder() -> None:
    model = CheckpointOptions("v_prediction", True)
    assert CheckpointOptions(zero_terminal_snr=False).over(model) == CheckpointOptions("v_prediction", False)
    assert CheckpointOptions().over(model) == model


def test_marks_and_defaults_reach_the_parts(noob: Path) -> None:
    parts = load_parts(noob)
    assert {key: parts.scheduler_config[key] for key in ZERO_SNR} == ZERO_SNR
    assert (parts.family, parts.prediction_type) == ("sdxl", "v_prediction")
    assert (parts.card.defaults["sampler"], parts.card.defaults["guidance"]) == ("euler", 5.0)
    assert parts.guidance_rescale == 0.2


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ("ddim", "DDIMScheduler"),
        ("euler", "EulerDiscreteScheduler"),
        ("dpmpp_2m", "DPMSolverMultistepScheduler"),
    ],
)
def test_a_marked_file_draws_what_diffusers_draws(noob: Path, sampler: str, scheduler: str) -> None:
    """Against an untouched StableDiffusionXLPipeline that was told by hand what the file states."""
    from celebctl.learning.sampling import draw

    pipe = single_pipeline(noob, scheduler, **ZERO_SNR)
    expected = diffusers_picture(pipe, 7, num_inference_steps=4, guidance_scale=5.0, guidance_rescale=0.2)
    options: dict[str, Any] = {"steps": 4, "guidance": 5.0, "sampler": sampler, "fast": False}
    ours = draw(load_parts(noob), [PROMPT], [7], {}, **options)[0]
    assert np.abs(ours.astype(float) - expected).max() <= 1.0


def test_learn_export_and_gen_from_a_marked_file(noob: Path, tmp_path: Path) -> None:
    """The bundle states the schedule, and draws what diffusers draws from the file."""
    from celebctl.learning.config import CLEAN
    from celebctl.learning.prepared import prepare
    from celebctl.learning.sampling import draw, rows_of
    from celebctl.learning.subject import analyse_photo
    from celebctl.learning.trainer import learn_people
    from celebctl_export import ExportOptions, export_bundle
    from celebctl_models.checkpoints.registry import card_for, locate
    from celebctl_models.faces.analysis import OnnxFaceAnalyser
    from celebctl_models.mini.world import draw_portrait
    from celebctl_runtime.backends.ort import OrtBackend
    from celebctl_runtime.pipeline import generate
    from celebctl_runtime.request import Request

    parts, faces = load_parts(noob), card_for(locate("mini").path).faces_dir
    assert faces is not None
    subject = analyse_photo(OnnxFaceAnalyser(faces), draw_portrait(3, 128), "alice")
    (alice,) = learn_people(prepare(parts), [subject], replace(CLEAN, steps=2, views=2, learning_rate=0.2))
    bundle = export_bundle(parts, [alice], tmp_path / "bundle", ExportOptions(spare_rows=4))
    assert {key: bundle.manifest.scheduler[key] for key in ZERO_SNR} == ZERO_SNR
    assert prepare(parts).basis.names == len(NAMES)
    assert (bundle.manifest.defaults.sampler, bundle.manifest.defaults.guidance) == ("euler", 5.0)
    assert bundle.manifest.guidance_rescale == 0.2
    backend = OrtBackend(bundle, "cpu", 1)
    plain, person = (Request(text, seed=7, steps=4) for text in (PROMPT, "alice playing chess"))
    drawn = [np.asarray(made.image).astype(float) for made in generate(bundle, backend, [plain, person])]
    pipe = single_pipeline(noob, "EulerDiscreteScheduler", **ZERO_SNR)
    expected = diffusers_picture(pipe, 7, num_inference_steps=4, guidance_scale=5.0, guidance_rescale=0.2)
    assert np.abs(drawn[0] - expected).max() <= 1.0
    assert np.abs(drawn[0] - diffusers_picture(pipe, 7, num_inference_steps=4, guidance_scale=5.0)).max() > 2.0
    torchs = draw(parts, ["<alice> playing chess"], [7], {"alice": rows_of(alice)}, steps=4, fast=False)[0]
    assert np.abs(drawn[1] - torchs.astype(float)).max() <= 1.0


def test_a_basis_of_characters_by_the_command_line(
    xl_single: Path, noob: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Danbooru tags for both text encoders of a single file."""
    from celebctl.cli import main

    characters = tmp_path / "characters.txt"
    characters.write_text("\n".join([*NAMES, "ann_bob_(other)", "unheard_of_(series)"]), encoding="utf-8")
    assert main(["basis", "build", "--names", str(characters), "--model", str(noob), "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert [report["used"] for report in built["names"]] == [len(NAMES)] * 2
    dropped = [name for names in built["names"][0]["examples"].values() for name in names]
    assert len(built["components"]) == 2 and dropped == ["unheard of"]
