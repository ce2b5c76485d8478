"""A bundle in half precision: statistics and the scheduler's state stay float32, every operator is one TensorRT has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from family_fakes import lcm, sd1, sd2, sd_turbo, xl, xl_turbo, xl_v
from numpy.typing import NDArray

pytest.importorskip("torch")
onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from celebctl_export import ExportOptions, export_bundle  # noqa: E402
from celebctl_export.cuda_kernels import nodes_without_kernel  # noqa: E402
from celebctl_export.parity import TOLERANCES  # noqa: E402
from celebctl_models.checkpoints.diffusion import load_parts  # noqa: E402
from celebctl_runtime.backends.base import Conditioning  # noqa: E402
from celebctl_runtime.backends.ort import OrtBackend  # noqa: E402
from celebctl_runtime.bundle.bundle import Bundle  # noqa: E402
from celebctl_runtime.pipeline import generate  # noqa: E402
from celebctl_runtime.request import Request  # noqa: E402
from celebctl_runtime.sampling.samplers import step_table  # noqa: E402

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

HALF, FULL = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


@pytest.fixture(scope="module", params=["tiny", "xl"])
def half(
    request: pytest.FixtureRequest,
    tiny_parts: DiffusionParts,
    xl_parts: DiffusionParts,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """Its parity with torch is measured by the export itself, which fails where it is not close."""
    parts = tiny_parts if request.param == "tiny" else xl_parts
    return export_bundle(parts, [], tmp_path_factory.mktemp("half") / "bundle", ExportOptions(dtype="fp16"))


def graph(bundle: Bundle, name: str) -> Any:
    return onnx.load(str(bundle.file(f"{name}.onnx")), load_external_data=False)


def types_of(values: Any) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_the_scheduler_keeps_its_state_in_single_precision(half: Bundle) -> None:
    assert "16" in half.manifest.dtype
    step = graph(half, "step").graph
    state = {**types_of(step.input), **types_of(step.output)}
    assert {state[name] for name in ("state", "noise", "table", "next_state")} == {FULL}
    weights = [init.data_type for init in step.initializer if len(init.dims) > 1]
    assert weights.count(HALF) > 0.9 * len(weights), "the network itself is in half precision"


def test_sums_over_many_pixels_are_single_precision(half: Bundle) -> None:
    """A sum of squares over 600 pixels leaves the range of float16."""
    inferred = onnx.shape_inference.infer_shapes(graph(half, "step"), data_prop=True).graph
    known = types_of([*inferred.value_info, *inferred.input, *inferred.output])
    reductions = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2")
    found = [known.get(node.input[0]) for node in inferred.node if node.op_type in reductions]
    norms = [
        next((int(a.i) for a in node.attribute if a.name == "stash_type"), 1)
        for node in inferred.node if node.op_type in ("GroupNormalization", "LayerNormalization")
    ]  # fmt: skip
    assert found or norms
    assert all(kind != HALF for kind in found) and all(kind == FULL for kind in norms)


def test_pictures_are_those_of_single_precision(half: Bundle, exported_path: Path) -> None:
    single, wanted = Bundle.open(exported_path), Request("a photo of a person", seed=3, steps=4)
    if half.manifest.model.table_hash != single.manifest.model.table_hash:
        single = half  # of the XL model only that it draws
    one, other = (
        np.asarray(generate(bundle, OrtBackend(bundle, "cpu", 1), wanted)[0].image, np.float64)
        for bundle in (half, single)
    )
    assert one.std() > 1 and np.abs(one - other).mean() < 3.0, "of 255"


def test_every_graph_computes_what_it_does_in_single_precision(half: Bundle, exported_path: Path) -> None:
    single = Bundle.open(exported_path)
    if half.manifest.model.table_hash == single.manifest.model.table_hash:
        compare_graphs(half, single)


@pytest.mark.slow
@pytest.mark.parametrize("write", [sd1, sd2, sd_turbo, lcm, xl, xl_v, xl_turbo], ids=lambda write: write.__name__)
def test_every_family_computes_what_it_does_in_single_precision(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "model")
    parts = load_parts(tmp_path / "model")
    half, single = (
        export_bundle(parts, [], tmp_path / dtype, ExportOptions(dtype=dtype)) for dtype in ("fp16", "fp32")
    )
    compare_graphs(half, single)


def compare_graphs(half: Bundle, single: Bundle) -> None:
    """The graphs of two bundles of one model, optimized and plain: the same weights and the same inputs."""
    context, pooled = OrtBackend(single, "cpu", 1).encode(prompts(single))
    compared: set[str] = set()
    for plain in (False, True):
        actual, expected = (
            dict(outputs(OrtBackend(bundle, "cpu", 1, plain_graphs=plain), bundle, context, pooled))
            for bundle in (half, single)
        )
        for name, wanted in expected.items():
            error = float(np.abs(actual[name].astype(np.float64) - wanted).max())
            assert error < TOLERANCES["fp16"] * max(1.0, float(np.abs(wanted).max())), name
            assert error > 0 or "step" not in name, "text encoders, and some autoencoders, stay in single precision"
        compared |= actual.keys()
    assert compared >= {"context", "step without guidance", "image", "latent"}
    graphs = (*half.manifest.graphs.values(), *half.manifest.ort_graphs.values())
    without = [node for file in {info.file for info in graphs} for node in nodes_without_kernel(half.file(file))]
    # The end of a prompt, found among 77 integers; text encoders are not captured.
    assert [node for node in without if "ArgMax" not in node] == [] and len(without) <= 2


def prompts(bundle: Bundle) -> NDArray[np.int64]:
    return np.stack([bundle.tokenizer().encode(text, {}).ids for text in ("", "a person playing chess")])


def outputs(backend: OrtBackend, bundle: Bundle, context: Any, pooled: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Each graph's output for inputs that do not depend on the bundle's dtype."""
    own = backend.encode(prompts(bundle))
    yield "context", own[0]
    if own[1] is not None:
        yield "pooled", own[1]
    size, random = bundle.manifest.size, np.random.default_rng(0)
    height, width = size.native[0] // size.vae_factor, size.native[1] // size.vae_factor
    state = random.standard_normal((2, 1, size.latent_channels, height, width), dtype=np.float32)
    size_ids = None if pooled is None else np.array([*size.native, 0, 0, *size.native], np.float32)
    for guides in (1,) if bundle.manifest.guidance_is_embedded else (1, 2):
        texts = Conditioning(context[-guides:, None], None if pooled is None else pooled[-guides:, None], size_ids)
        table = step_table("euler", bundle.schedule, 4, 5.0)
        name = "step without guidance" if guides == 1 else "step with guidance"
        yield name, backend.step(state, 1, state[1], texts, table)
    yield "image", backend.decode(state[0])
    yield "latent", backend.encode_image(random.uniform(-1, 1, (1, 3, *size.native)).astype(np.float32))
