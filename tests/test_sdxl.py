"""Laws of models with two text encoders, on a small random SDXL: against diffusers, and through the whole thread."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from tensorrt_fakes import fake_device

from celebctl_export import ExportOptions, export_bundle
from celebctl_export.tensorrt_parity import make_feeds
from celebctl_export.tensorrt_plan import EngineSize, describe, plan_engines
from celebctl_export.to_tensorrt import build_plans
from celebctl_models.checkpoints.diffusion import load_parts, read_texts
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.backends.tensorrt import TensorRtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.identity import Identity
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from celebctl.learning.sampling import draw, rows_of  # noqa: E402

AVERAGE = tuple(np.linspace(-1, 1, 2 * width, dtype=np.float32).reshape(2, width) for width in (32, 48))
PROMPTS = ["a portrait of ann and bob playing chess", "beach"]


def pipeline(folder: Path) -> Any:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    return cast(Any, StableDiffusionXLPipeline).from_pretrained(folder, local_files_only=True)


def ids_of(parts: DiffusionParts, prompts: list[str]) -> Any:
    options = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    return parts.tokenizers[0](prompts, **options).input_ids


def test_the_parts_tell_what_an_xl_model_is(xl_parts: DiffusionParts) -> None:
    assert xl_parts.family == "sdxl" and xl_parts.zero_empty_prompt
    assert (xl_parts.context_width, xl_parts.pooled_width, xl_parts.guidance_is_embedded) == (80, 40, False)


def test_texts_equal_diffusers_encoding(xl_parts: DiffusionParts, xl_folder: Path) -> None:
    """Context and pooled text are what diffusers' own pipeline would hand its UNet."""
    context, pooled = read_texts(xl_parts, ids_of(xl_parts, PROMPTS))
    theirs = pipeline(xl_folder).encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    torch.testing.assert_close(context, theirs[0])
    torch.testing.assert_close(pooled, theirs[2])


def test_rows_in_place_equal_rows_in_both_tables(xl_folder: Path) -> None:
    """Inserting a person gives, bit for bit, what tables that hold the person give; pooling is not upset by its ids."""
    parts = load_parts(xl_folder)
    ids = ids_of(parts, PROMPTS)
    rows = [torch.randn(1, 2, 32).expand(2, -1, -1), torch.randn(1, 2, 48).expand(2, -1, -1)]
    inserted = read_texts(parts, ids, rows, torch.tensor([[4, 6], [-1, -1]]))
    for encoder, given in enumerate(rows):
        parts.token_table(encoder)[ids[0, [4, 6]]] = given[0]
    baked = read_texts(parts, ids)
    assert all(torch.equal(a, b) for a, b in zip(inserted, baked, strict=True))
    assert not torch.equal(inserted[0][0], inserted[0][1])


@pytest.fixture(scope="module")
def bundle(xl_parts: DiffusionParts, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model exported with eve, whose rows are random, for both text encoders."""
    place = tmp_path_factory.mktemp("xl-bundle") / "xl"
    return export_bundle(xl_parts, [eve(xl_parts)], place, ExportOptions(spare_rows=8, average=AVERAGE))


def eve(parts: DiffusionParts) -> Identity:
    rng = np.random.default_rng(3)
    rows = tuple((rng.standard_normal((2, width)) * 0.1).astype(np.float32) for width in (32, 48))
    return Identity("eve", tuple(r[:, :4] for r in rows), rows, "no-basis", parts.family, parts.table_hash)


def test_the_bundle_draws_what_torch_draws(xl_parts: DiffusionParts, bundle: Bundle) -> None:
    """A person baked into both tables, a zeroed empty negative prompt and the picture's size: the same picture."""
    made = generate(bundle, OrtBackend(bundle, "cpu", 1), Request("eve playing chess", seed=5, steps=3, guidance=4.0))
    rows = {"eve": rows_of(eve(xl_parts))}
    torchs = draw(xl_parts, ["<eve> playing chess"], [5], rows, steps=3, guidance=4.0, fast=False)[0]
    assert np.abs(np.asarray(made[0].image).astype(int) - torchs.astype(int)).max() <= 1


def test_a_negative_prompt_is_read_and_an_empty_one_is_not(bundle: Bundle) -> None:
    backend = OrtBackend(bundle, "cpu", 1)
    requests = [Request("eve", negative=text, seed=5, steps=2, guidance=9.0) for text in ("", "chess")]
    plain, other = (np.asarray(picture.image).astype(int) for picture in generate(bundle, backend, requests))
    assert np.abs(plain - other).max() > 1


def test_people_move_in_and_out_of_both_tables(xl_parts: DiffusionParts, bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle.open(Path(shutil.copytree(bundle.path, tmp_path / "copy")))
    copy.add(eve(xl_parts).renamed("dan"))
    assert [len(pairs) for pairs in (copy.manifest.identities["dan"].rows, copy.manifest.token_tables)] == [2, 2]
    copy.verify("full")
    copy.remove("dan")
    copy.verify("full")
    tables = [copy.file(table.file).read_bytes() for table in bundle.manifest.token_tables]
    assert tables == [bundle.file(table.file).read_bytes() for table in bundle.manifest.token_tables]


def test_likeness_and_overrides_reach_both_tables(xl_parts: DiffusionParts, bundle: Bundle) -> None:
    """The average celebrity is drawn for everybody without likeness, and by the runtime as by torch."""
    assert all(np.array_equal(a, b) for a, b in zip(bundle.average_embeddings(), AVERAGE, strict=True))
    ada = replace(eve(xl_parts), name="ada", embeddings=AVERAGE)
    backend, one = OrtBackend(bundle, "cpu", 1), Request("eve playing chess", seed=5, steps=2, guidance=4.0)
    wanted = [replace(one, likeness=0.0), replace(one, prompt="ada playing chess")]
    unnamed, average = (np.asarray(p.image) for p in generate(bundle, backend, wanted, overrides=[ada]))
    torchs = draw(xl_parts, ["<ada> playing chess"], [5], {"ada": rows_of(ada)}, steps=2, guidance=4.0, fast=False)[0]
    assert np.array_equal(unnamed, average) and np.abs(average.astype(int) - torchs.astype(int)).max() <= 1


def test_a_region_of_everything_is_a_prompt_of_one_person(xl_parts: DiffusionParts, bundle: Bundle) -> None:
    """On the exported graph as it is: context, pooled text and guidance of each region are its own prompt's. Up to
    rounding, for more prompts are read at once."""
    dan = replace(eve(xl_parts), name="dan", embeddings=AVERAGE)
    layout = "dan@0,0,1,1,eve@0,0,0.001,0.001"
    wanted = [Request("dan and eve", seed=3, steps=3, layout=layout), Request("dan and dan", seed=3, steps=3)]
    images = generate(bundle, OrtBackend(bundle, "cpu", 1), wanted, overrides=[dan])
    region, whole = (np.asarray(generated.image) for generated in images)
    assert np.abs(region.astype(int) - whole.astype(int)).max() <= 1


def test_a_picture_equals_diffusers(xl_parts: DiffusionParts, xl_folder: Path) -> None:
    """The same noise and steps give the picture of an untouched StableDiffusionXLPipeline."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    from celebctl_runtime.sampling.noise import initial_noise

    pipe = pipeline(xl_folder)
    pipe.scheduler = cast(Any, DDIMScheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    ours = draw(xl_parts, PROMPTS[:1], [7], {}, steps=4, guidance=5.0, sampler="ddim", fast=False)[0]
    latents = torch.as_tensor(initial_noise(7, (4, 16, 16)))[None]
    theirs = pipe(PROMPTS[0], num_inference_steps=4, guidance_scale=5.0, latents=latents, output_type="np").images[0]
    assert np.abs(ours.astype(float) - theirs * 255).max() <= 1.0


def test_tensorrt_plans_and_draws_with_both_text_encoders(bundle: Bundle, tmp_path: Path) -> None:
    """From the plan to the image on a fake device: both tables are inputs, pooled text and size too."""
    copy = Bundle.open(Path(shutil.copytree(bundle.path, tmp_path / "copy")))
    height, width = copy.manifest.size.native
    plans = plan_engines(copy.manifest, [EngineSize(1, height, width)], dynamic=False)
    by_file = {plan.onnx: plan for plan in plans}
    assert set(by_file) == {
        "text_encoder.onnx",
        "text_encoder_2.onnx",
        "step.onnx",
        "vae_decoder.onnx",
        "vae_encoder.onnx",
    }
    tables = [dict(by_file[f"text_encoder{suffix}.onnx"].inputs_from_data) for suffix in ("", "_2")]
    assert tables == [{"token_table": "token_table.bin"}, {"token_table": "token_table_2.bin"}]
    guided, alone = by_file["step.onnx"].profiles
    assert guided.shapes["pooled"][1] == (2, 1, 40) and alone.shapes["pooled"][1] == (1, 1, 40)
    assert guided.shapes["size_ids"] == ((6,),) * 3 and guided.shapes["context"][1] == (2, 1, 77, 80)
    document = describe(copy.manifest, plans, tmp_path, None)
    assert len(document["engines"]) == len(plans) == 5 and json.dumps(document)
    for plan in plans:  # what engines would be measured with has the shapes that they are built for
        for profile in plan.profiles:
            feeds = make_feeds(copy, profile, plan)
            assert {name: array.shape for name, array in feeds.items()} == {n: s[1] for n, s in profile.shapes.items()}

    device, engines = fake_device()[-1], tmp_path / "engines"
    build_plans(copy, plans, engines, device=device)
    backend, request = TensorRtBackend(copy, engines, device=device), Request("eve on the beach", steps=3)
    for guidance in (1.0, 4.0):
        asked = replace(request, guidance=guidance)
        ours, theirs = (generate(copy, engine, asked)[0].image for engine in (backend, OrtBackend(copy, "cpu", 1)))
        assert np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max() <= 1
