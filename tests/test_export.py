"""Exported graphs equal torch at sizes that were not traced, and people are only rows of the token table."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
onnx: Any = pytest.importorskip("onnx")
ort: Any = pytest.importorskip("onnxruntime")

from conftest import make_identity  # noqa: E402

from celebctl.bench.worker import SCHEDULERS  # noqa: E402
from celebctl_export import ExportOptions, export_bundle, parity  # noqa: E402
from celebctl_export.graphs import GraphSpec, Size, graph_makers  # noqa: E402
from celebctl_export.to_onnx import save_graph, to_onnx  # noqa: E402
from celebctl_models.checkpoints.diffusion import context_from_ids  # noqa: E402
from celebctl_runtime.backends.ort import OrtBackend  # noqa: E402
from celebctl_runtime.bundle.bundle import Bundle  # noqa: E402
from celebctl_runtime.errors import (  # noqa: E402
    CelebctlError,
    IntegrityError,
    InvalidInputError,
    SetupError,
    UsageError,
)
from celebctl_runtime.files import sha256_file  # noqa: E402
from celebctl_runtime.pipeline import generate  # noqa: E402
from celebctl_runtime.request import Request  # noqa: E402
from celebctl_runtime.sampling.init_image import InitImage, Mask  # noqa: E402
from celebctl_runtime.sampling.noise import initial_noise  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_runtime.identity import Identity

GRAPHS = ("text_encoder", "step", "vae_decoder", "vae_encoder")
UNTRACED = [Size(1, 16, 16), Size(2, 6, 12, guides=1), Size(4, 2, 4)]  # traced: Size(3, 10, 14)


@pytest.fixture(scope="module")
def specs(tiny_parts: DiffusionParts) -> dict[str, GraphSpec]:
    return {spec.name: spec for spec in (make(torch.float32) for make in graph_makers(tiny_parts))}


def session(path: Path) -> Any:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def graph_hashes(bundle: Path) -> dict[str, str]:
    """Everything but the manifest and the token table."""
    files = [path for path in bundle.iterdir() if path.suffix in {".onnx", ".data"} or path.name == "tokenizer.json"]
    assert len(files) == 13
    return {path.name: sha256_file(path) for path in files}


def context_of(bundle: Path, parts: DiffusionParts, prompt: str) -> NDArray[np.float32]:
    """The context of a prompt as any ONNX Runtime program gets it."""
    opened = Bundle.open(bundle)
    ids = opened.tokenizer().encode(prompt, opened.token_ids).ids
    return session(bundle / "text_encoder.onnx").run(None, {"input_ids": ids[None]})[0]


def inserted_context(bundle: Path, parts: DiffusionParts, prompt: str, person: Identity) -> Any:
    """The same by torch: the untouched text encoder, with the person's embeddings put in."""
    opened = Bundle.open(bundle)
    encoded = opened.tokenizer().encode(prompt, opened.token_ids)
    ids = torch.from_numpy(encoded.ids[None].copy())
    first = next(at for name, at in encoded.positions if name == person.name)
    ids[0, first : first + 2] = 0
    rows = torch.from_numpy(person.embeddings[0].copy())[None]
    return context_from_ids(parts.text_encoders[0], ids, rows, torch.tensor([[first, first + 1]]))


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_equal_torch_at_sizes_not_traced(exported_path: Path, specs: dict[str, GraphSpec], graph: str) -> None:
    expected = parity.reference_outputs(specs[graph], UNTRACED)
    for measured in parity.measure_parity(expected, exported_path / f"{graph}.onnx", 1e-4):
        assert measured.passed, measured


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_valid_opset_23_with_named_free_axes(exported_path: Path, graph: str) -> None:
    model = onnx.load(str(exported_path / f"{graph}.onnx"), load_external_data=False)
    onnx.checker.check_model(str(exported_path / f"{graph}.onnx"))
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 23
    facts = Bundle.open(exported_path).manifest.graphs[graph]
    ends = {**facts.inputs, **facts.outputs}
    if graph == "step":  # the manifest has it twice, with and without guidance
        ends["context"] = replace(ends["context"], shape=("guides", *ends["context"].shape[1:]))
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        assert tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim) == ends[value.name].shape
        assert str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) == ends[value.name].dtype
    assert "batch" in {dim for tensor in ends.values() for dim in tensor.shape}


@pytest.mark.parametrize("graph", GRAPHS)
def test_graph_files_contain_nothing_of_the_machine_that_made_them(exported_path: Path, graph: str) -> None:
    content = (exported_path / f"{graph}.onnx").read_bytes()
    assert b".py" not in content and b"forward" not in content


def test_baked_people_equal_inserted_embeddings(exported_path: Path, tiny_parts: DiffusionParts, ann: Identity) -> None:
    prompt = "a portrait of ann playing chess"
    context = context_of(exported_path, tiny_parts, prompt)
    assert np.abs(context - inserted_context(exported_path, tiny_parts, prompt, ann).numpy()).max() < 1e-4
    assert np.abs(context - context_of(exported_path, tiny_parts, prompt.replace("ann", r"\ann"))).max() > 1e-2


def test_the_text_encoder_runs_anywhere_with_ids_alone(exported_path: Path, tiny_parts: DiffusionParts) -> None:
    encoder = session(exported_path / "text_encoder.onnx")
    assert [value.name for value in encoder.get_inputs()] == ["input_ids"]
    options = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    ids = tiny_parts.tokenizers[0](["a portrait of bob", "chess"], **options).input_ids
    expected = tiny_parts.text_encoders[0](ids).last_hidden_state.numpy()
    assert np.abs(encoder.run(None, {"input_ids": ids.numpy()})[0] - expected).max() < 1e-4


def test_people_come_and_go_without_touching_a_graph(exported_copy: Path, tiny_parts: DiffusionParts) -> None:
    before, prompt = graph_hashes(exported_copy), "bob and ann"
    plain = context_of(exported_copy, tiny_parts, prompt)
    bundle, bob = Bundle.open(exported_copy), make_identity(tiny_parts, "bob", seed=2)
    start = time.perf_counter()
    bundle.add(bob)
    assert time.perf_counter() - start < 1
    learned = context_of(exported_copy, tiny_parts, "bob")
    assert np.abs(learned - inserted_context(exported_copy, tiny_parts, "bob", bob).numpy()).max() < 1e-4
    start = time.perf_counter()
    bundle.remove("bob")
    assert time.perf_counter() - start < 1
    assert np.array_equal(context_of(exported_copy, tiny_parts, prompt), plain)
    assert graph_hashes(exported_copy) == before
    Bundle.open(exported_copy, verify="full")


def test_one_file_serves_steps_with_and_without_guidance(exported_path: Path, tiny_parts: DiffusionParts) -> None:
    graphs = Bundle.open(exported_path).manifest.graphs
    step, alone = graphs["step"], graphs["step_nocfg"]
    assert (step.file, step.data) == (alone.file, alone.data) == ("step.onnx", ("unet.data",))
    assert (step.inputs["context"].shape[0], alone.inputs["context"].shape[0]) == (2, 1)
    weights = [weight.numel() * 4 for weight in tiny_parts.denoiser.parameters()]
    assert (exported_path / "unet.data").stat().st_size < sum(weights) + 4096 * len(weights)  # each weight once


def test_one_context_is_guidance_of_one(exported_path: Path, specs: dict[str, GraphSpec]) -> None:
    inputs = {name: tensor.numpy() for name, tensor in specs["step"].make_inputs(Size(2, 8, 8)).items()}
    step = session(exported_path / "step.onnx")
    alone = step.run(None, {**inputs, "context": inputs["context"][1:]})[0]
    inputs["aux"][:, 2] = 1.0
    assert np.abs(step.run(None, inputs)[0] - alone).max() < 1e-4


def test_the_manifest_describes_the_model(exported_path: Path, tiny_parts: DiffusionParts) -> None:
    manifest = Bundle.open(exported_path, verify="full").manifest
    assert manifest.model.table_hash == tiny_parts.table_hash and manifest.scheduler == tiny_parts.scheduler_config
    assert (manifest.size.native, manifest.size.multiple, manifest.size.vae_factor) == ((64, 64), 8, 4)
    table, vocabulary = manifest.token_tables[0], len(tiny_parts.tokenizers[0])
    assert (table.first_spare_row, table.spare_rows, table.rows) == (vocabulary, 8, vocabulary + 8)
    assert manifest.identities["ann"].rows == ((vocabulary, vocabulary + 1),)
    assert {entry["graph"].removesuffix(".ort") for entry in manifest.parity} == set(GRAPHS)
    assert len({tuple(entry["shape"]) for entry in manifest.parity if entry["output"] == "next_state"}) == 3
    assert {"celebctl", "torch", "onnx", "onnxruntime"} <= manifest.created_by.keys()
    assert str(tiny_parts.path) not in (exported_path / "manifest.json").read_text()


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_a_picture_equals_that_of_an_untouched_diffusers(
    exported_copy: Path, tiny_folder: Path, tiny_parts: DiffusionParts, ann: Identity, prediction: str
) -> None:
    """Same noise, same prompt with a baked person: the runtime's pixels are StableDiffusionPipeline's."""
    diffusers: Any = pytest.importorskip("diffusers")
    manifest = json.loads((exported_copy / "manifest.json").read_text())
    manifest["scheduler"]["prediction_type"] = prediction
    (exported_copy / "manifest.json").write_text(json.dumps(manifest))
    bundle, prompt, negative = Bundle.open(exported_copy), "a portrait of ann on the beach", "smiling"
    decoded: list[NDArray[np.float32]] = []

    class Recording(OrtBackend):
        def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
            decoded.append(super().decode(latent))
            return decoded[-1]

    request = Request(prompt, negative, seed=3, steps=6, guidance=2.5, sampler="ddim", width=64, height=48)
    (picture,) = generate(bundle, Recording(bundle, "cpu"), request)

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(tiny_folder), local_files_only=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(manifest["scheduler"])
    pipe.set_progress_bar_config(disable=True)
    ids = torch.from_numpy(bundle.tokenizer().encode(negative, {}).ids[None].copy())
    expected = pipe(
        prompt_embeds=inserted_context(exported_copy, tiny_parts, prompt, ann),
        negative_prompt_embeds=context_from_ids(tiny_parts.text_encoders[0], ids),
        latents=torch.from_numpy(initial_noise(3, (4, 12, 16))[None]),
        num_inference_steps=6,
        guidance_scale=2.5,
        width=64,
        height=48,
        output_type="pt",
    ).images
    assert np.abs(decoded[0] / 2 + 0.5 - expected.numpy()).max() < 1e-3
    assert picture.request.identities == ("ann",)


def test_a_long_weighted_prompt_equals_diffusers(
    exported_copy: Path, tiny_folder: Path, tiny_parts: DiffusionParts, ann: Identity
) -> None:
    """Windows are encoded one by one, weighted and joined; the negative prompt is padded.

    The mean of an untrained text encoder is zero up to rounding, so it is not restored (see test_prompt_windows.py).
    """
    diffusers: Any = pytest.importorskip("diffusers")
    bundle = Bundle.open(exported_copy)
    decoded: list[NDArray[np.float32]] = []

    class Recording(OrtBackend):
        def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
            decoded.append(super().decode(latent))
            return decoded[-1]

    request = Request(
        "a portrait of ann BREAK (on the beach:1.4)", "smiling", 3, 4, 2.5, "ddim", 64, 48, syntax="weighted"
    )
    (picture,) = generate(bundle, Recording(bundle, "cpu"), request)
    texts = ("on the beach", "smiling", "")
    ids = [torch.from_numpy(bundle.tokenizer().encode(text, {}).ids[None].copy()) for text in texts]
    second, *negatives = (context_from_ids(tiny_parts.text_encoders[0], one) for one in ids)
    weights = torch.ones(77)
    weights[1 : ids[0][0].tolist().index(tiny_parts.end_id)] = 1.4
    changed = second * weights[:, None]
    first = inserted_context(exported_copy, tiny_parts, "a portrait of ann", ann)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(tiny_folder), local_files_only=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt_embeds=torch.cat([first, changed], dim=1),
        negative_prompt_embeds=torch.cat(negatives, dim=1),
        latents=torch.from_numpy(initial_noise(3, (4, 12, 16))[None]),
        num_inference_steps=4,
        guidance_scale=2.5,
        width=64,
        height=48,
        output_type="pt",
    ).images
    assert np.abs(decoded[0] / 2 + 0.5 - expected.numpy()).max() < 1e-3
    assert picture.request.syntax == "weighted" and picture.record["dropped_text"] == ""


@contextmanager
def noise_of_celebctl(module: ModuleType) -> Generator[None]:
    """In a pipeline of diffusers: our noise of seed 3, and the mean of encoded images instead of a sample."""
    noise = torch.from_numpy(initial_noise(3, (4, 12, 16))[None])

    def draw_noise(*_: object, **__: object) -> Any:
        return noise

    def mean_of(encoded: Any, **_: object) -> Any:
        return encoded.latent_dist.mode()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", draw_noise)
        patch.setattr(module, "retrieve_latents", mean_of)
        yield


@pytest.mark.parametrize(("strength", "sampler"), [(0.6, "ddim"), (0.3, "dpmpp_2m"), (1.0, "euler")])
def test_a_picture_from_a_picture_equals_that_of_diffusers(
    exported_path: Path, tiny_folder: Path, tmp_path: Path, strength: float, sampler: str
) -> None:
    """The same source, noise and number of steps as StableDiffusionImg2ImgPipeline, encoder included."""
    diffusers: Any = pytest.importorskip("diffusers")
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as module
    from PIL import Image

    pixels = np.random.default_rng(3).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "from.png")
    source, bundle = InitImage.read(tmp_path / "from.png"), Bundle.open(exported_path)
    request = Request("a portrait of a person", "smiling", 3, 10, 2.5, sampler, 64, 48, (), source.digest, strength)
    (picture,) = generate(bundle, OrtBackend(bundle, "cpu", 1), request, init_images=[source])

    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(str(tiny_folder), local_files_only=True)
    name, options = SCHEDULERS[sampler]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    pipe.set_progress_bar_config(disable=True)
    with noise_of_celebctl(module):
        expected = pipe(
            request.prompt,
            negative_prompt=request.negative,
            image=Image.open(tmp_path / "from.png"),
            strength=strength,
            num_inference_steps=10,
            guidance_scale=2.5,
            output_type="np",
        ).images[0]
    assert np.abs(np.asarray(picture.image) / 255 - expected).max() < 0.01
    assert picture.request.to_json()["strength"] == strength


@pytest.mark.parametrize(("strength", "sampler"), [(0.6, "ddim"), (0.8, "dpmpp_2m")])
def test_inpainting_equals_that_of_diffusers(
    exported_path: Path, tiny_folder: Path, strength: float, sampler: str
) -> None:
    """The decoded latents of StableDiffusionInpaintPipeline with a UNet of four channels, before pixels are pasted."""
    diffusers: Any = pytest.importorskip("diffusers")
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as module
    from PIL import Image

    pixels = np.random.default_rng(3).integers(0, 255, (48, 64, 3), np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    mask[8:32, 16:56] = 255  # whole pixels of the latents: diffusers takes the nearest, celebctl the mean
    source = InitImage.of(Image.fromarray(pixels)).with_mask(Mask.of(Image.fromarray(mask)))
    assert source.mask is not None
    bundle = Bundle.open(exported_path)
    decoded: list[NDArray[np.float32]] = []

    class Recording(OrtBackend):
        def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
            decoded.append(super().decode(latent))
            return decoded[-1]

    request = Request(
        "a portrait of a person", "smiling", 3, 10, 2.5, sampler, 64, 48, (), source.digest, strength,
        mask=source.mask.digest,
    )  # fmt: skip
    (picture,) = generate(bundle, Recording(bundle, "cpu", 1), request, init_images=[source])

    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(str(tiny_folder), local_files_only=True)
    name, options = SCHEDULERS[sampler]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    pipe.set_progress_bar_config(disable=True)
    with noise_of_celebctl(module):
        expected = pipe(
            request.prompt,
            negative_prompt=request.negative,
            image=Image.fromarray(pixels),
            mask_image=Image.fromarray(mask),
            height=48,
            width=64,
            strength=strength,
            num_inference_steps=10,
            guidance_scale=2.5,
            output_type="pt",
        ).images
    assert np.abs((decoded[0] / 2 + 0.5).clip(0, 1) - expected.numpy()).max() < 0.01
    assert np.array_equal(np.asarray(picture.image)[mask == 0], pixels[mask == 0])


def test_the_optimized_graphs_and_the_plain_ones_draw_the_same(exported_copy: Path) -> None:
    bundle = Bundle.open(exported_copy)
    assert set(bundle.manifest.ort_graphs) == {"reader", "step", "step_nocfg", "vae_decoder", "vae_encoder"}
    used = [node.op_type for file in exported_copy.glob("*.ort.onnx") for node in onnx.load(str(file)).graph.node]
    assert used and "GroupNormalization" not in used
    measured = {row["graph"] for row in bundle.manifest.parity}
    assert {"step.ort", "vae_encoder", "vae_decoder.ort"} <= measured
    plain = Bundle(exported_copy, replace(bundle.manifest, ort_graphs={}), (0,))
    plain.refresh = lambda: False  # type: ignore[method-assign]
    plain.is_current = lambda: True  # type: ignore[method-assign]
    for guidance in (1.0, 2.5):
        request = Request("a portrait of ann", seed=2, steps=4, guidance=guidance)
        ours, old = (
            np.asarray(generate(opened, OrtBackend(opened, "cpu", 1), request)[0].image, np.int16)
            for opened in (bundle, plain)
        )
        assert np.abs(ours - old).max() <= 1


def test_regions_project_their_context_once(
    exported_copy: Path, tiny_parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimized step graph with several conditionings and an override: as without it, and no work twice."""
    bundle, runs = Bundle.open(exported_copy), list[str]()
    plain = Bundle(exported_copy, replace(bundle.manifest, ort_graphs={}), (0,))
    plain.refresh = lambda: False  # type: ignore[method-assign]
    plain.is_current = lambda: True  # type: ignore[method-assign]
    run = OrtBackend._run_raw  # pyright: ignore[reportPrivateUsage]

    def counted(self: OrtBackend, graph: str, feeds: Any) -> Any:
        runs.append(graph)
        return run(self, graph, feeds)

    monkeypatch.setattr(OrtBackend, "_run_raw", counted)
    request = Request("ann and ben", seed=2, steps=4, guidance=2.5, layout="left:ann,right:ben")
    overrides = [make_identity(tiny_parts, "ben", 7)]
    ours, old = (
        np.asarray(generate(opened, OrtBackend(opened, "cpu", 1), request, overrides=overrides)[0].image, np.int16)
        for opened in (bundle, plain)
    )
    assert np.abs(ours - old).max() <= 1
    assert runs.count("reader") == 2 and runs.count("step") == 2 * 2 * request.steps


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list what is mapped")
def test_weights_are_mapped_and_not_read(exported_copy: Path) -> None:
    bundle = Bundle.open(exported_copy)
    backend = OrtBackend(bundle, "cpu", 1)
    generate(bundle, backend, Request("a portrait of ann", steps=1))
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert str(exported_copy.resolve() / "unet.data") in mapped
    del backend


def test_a_failing_export_leaves_the_old_bundle(
    exported_copy: Path, tiny_parts: DiffusionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, beside = graph_hashes(exported_copy), sorted(exported_copy.parent.iterdir())
    monkeypatch.setitem(parity.TOLERANCES, "fp32", 0.0)
    with pytest.raises(IntegrityError) as caught:
        export_bundle(tiny_parts, [], exported_copy, ExportOptions(spare_rows=8))
    assert caught.value.reason == "parity" and caught.value.values["graph"] == "text_encoder"
    assert sorted(exported_copy.parent.iterdir()) == beside and graph_hashes(exported_copy) == before
    assert Bundle.open(exported_copy, verify="full").names == ("ann",)


def test_nan_does_not_pass_for_parity() -> None:
    good = parity.Parity("step", "next_state", (2, 1, 4, 8, 8), 1e-6, 3.0, 1e-4)
    assert good.passed and not replace(good, max_abs_error=float("nan")).passed
    with pytest.raises(IntegrityError):
        parity.check_parity([good, replace(good, max_abs_error=1.0)])


def test_a_frozen_axis_is_an_error_and_never_a_graph(specs: dict[str, GraphSpec]) -> None:
    class Frozen(torch.nn.Module):
        def forward(self, latent: Any) -> Any:
            return latent.reshape(3, 4, -1).sum(dim=-1)

    spec = replace(specs["vae_decoder"], module=Frozen(), outputs={"image": ("batch", 4)})
    with pytest.raises(IntegrityError, match="vae_decoder"):
        to_onnx(spec, block=2)


def test_half_precision_is_measured_against_float32(
    tiny_parts: DiffusionParts, specs: dict[str, GraphSpec], tmp_path: Path
) -> None:
    halves = (make(torch.float16) for make in graph_makers(tiny_parts))
    half = next(spec for spec in halves if spec.name == "vae_decoder")
    assert tiny_parts.vae.dtype == torch.float32
    save_graph(to_onnx(half, block=2), tmp_path / "vae_decoder.onnx", tmp_path / "vae_decoder.data")
    expected = parity.reference_outputs(specs["vae_decoder"], UNTRACED)
    measured = parity.measure_parity(expected, tmp_path / "vae_decoder.onnx", parity.TOLERANCES["fp16"])
    assert all(entry.passed and entry.max_abs_error > 1e-5 for entry in measured)


def test_the_same_model_gives_the_same_bytes_in_silence(
    specs: dict[str, GraphSpec], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path / "first", tmp_path / "again"):
        folder.mkdir()
        save_graph(to_onnx(specs["text_encoder"], block=2), folder / "graph.onnx", folder / "graph.data")
    for name in ("graph.onnx", "graph.data"):
        assert sha256_file(tmp_path / "first" / name) == sha256_file(tmp_path / "again" / name)
    assert capfd.readouterr() == ("", "")


def test_people_are_checked_before_exporting(tiny_parts: DiffusionParts, ann: Identity, tmp_path: Path) -> None:
    other_model = replace(ann, table_hash="0" * 64)
    cases: list[tuple[type[CelebctlError], list[Identity], int]] = [
        (IntegrityError, [other_model], 8),
        (UsageError, [ann, ann], 8),
        (UsageError, [ann, ann.renamed("anna")], 2),
        (UsageError, [], 3),
    ]
    for problem, people, spare_rows in cases:
        with pytest.raises(problem) as caught:
            export_bundle(tiny_parts, people, tmp_path / "bundle", ExportOptions(spare_rows))
        assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_models_that_do_not_fit_are_refused(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    twins = replace(tiny_parts, text_encoders=tiny_parts.text_encoders * 2)
    inpainting = replace(tiny_parts, denoiser=SimpleNamespace(config=SimpleNamespace(in_channels=9)))
    for parts in (twins, inpainting):
        with pytest.raises(InvalidInputError):
            export_bundle(parts, [], tmp_path / "bundle")
    with pytest.raises(UsageError):
        export_bundle(tiny_parts, [], tmp_path / "bundle", ExportOptions(dtype=cast(Any, "int3")))


def test_a_directory_of_other_things_is_never_replaced(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError) as caught:
        export_bundle(tiny_parts, [], tmp_path)
    assert caught.value.values["path"] == tmp_path
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_missing_packages_are_named(
    tiny_parts: DiffusionParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str) -> str | None:
        return None if name == "onnxscript" else name

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with pytest.raises(SetupError, match="onnxscript") as caught:
        export_bundle(tiny_parts, [], tmp_path / "bundle")
    assert "celebctl[export" in caught.value.hint
