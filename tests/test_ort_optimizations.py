"""A graph optimized for ONNX Runtime computes the same, with fewer operations, on the same weight files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from bundle_fakes import write_bundle
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from celebctl.cli import main
from celebctl_export.cuda_kernels import nodes_without_kernel
from celebctl_export.ort_optimizations import dedupe_guidance, hoist_text_projections, normalize_groups

onnx_files: Any = onnx  # whose functions are typed in part only
ir_files: Any = ir

# A small step graph: timestep from a table, one latent repeated for every guide, a cross attention.
_STEP = """
<ir_version: 10, opset_import: ["" : 21]>
step (float[batch, 4, h, w] x, int64[1] step, float[guides, batch, 5, 8] context, float[steps, 3] aux)
  => (float[rows, 8, h, w] out) {
  zero = Constant <value = int64[1] {0}> ()
  one = Constant <value = int64[1] {1}> ()
  minus = Constant <value = int64[1] {-1}> ()
  guides = Shape <start = 0, end = 1> (context)
  batch = Shape <start = 0, end = 1> (x)
  rows = Mul(guides, batch)
  row = Gather(aux, step)
  sliced = Slice(row, zero, one, one)
  time = Squeeze(sliced, one)
  times = Expand(time, rows)
  column = Unsqueeze(times, one)
  waves = Mul(column, rates)
  sines = Sin(waves)
  moment = Gemm <transB = 1> (sines, time_weight, time_bias)
  axes = Constant <value = int64[2] {2, 3}> ()
  placed = Unsqueeze(moment, axes)
  repeats = Concat <axis = 0> (guides, one, one, one)
  both = Tile(x, repeats)
  first = Conv <pads = [1, 1, 1, 1]> (both, conv_weight, conv_bias)
  height = Shape <start = 2, end = 3> (first)
  normal = GroupNormalization <num_groups = 2, epsilon = 0.001> (first, scale, bias)
  gate = Sigmoid(normal)
  silu = Mul(normal, gate)
  later = Add(silu, placed)
  shape = Constant <value = int64[3] {-1, 5, 8}> ()
  flat = Reshape(context, shape)
  keys = MatMul(flat, key_weight)
  sum = ReduceSum <keepdims = 0> (keys, one)
  high = Unsqueeze(sum, axes)
  seen = Mul(later, high)
  tall = Cast <to = 1> (height)
  out = Div(seen, tall)
}
"""
SHAPES = {"rates": (1, 6), "time_weight": (8, 6), "time_bias": (8,), "conv_weight": (8, 4, 3, 3), "conv_bias": (8,)}
SHAPES |= {"scale": (8,), "bias": (8,), "key_weight": (8, 8)}  # pyright: ignore[reportConstantRedefinition]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write(tmp_path / "step.onnx", _STEP)


def write(path: Path, text: str) -> Path:
    model, random = parser.parse_model(text), np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx_files.save_model(
        model, str(path), save_as_external_data=True, location="data.bin", size_threshold=64, convert_attribute=False
    )
    return path


def feeds(guides: int = 2, batch: int = 3, h: int = 6, w: int = 4) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(1)
    made = {"x": (batch, 4, h, w), "context": (guides, batch, 5, 8), "aux": (7, 3)}
    arrays: dict[str, NDArray[Any]] = {
        name: random.standard_normal(shape, dtype=np.float32) + 3 for name, shape in made.items()
    }
    return {**arrays, "step": np.array([4])}


def run(path: Path, values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    import onnxruntime

    session = cast(Any, onnxruntime).InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {entry.name: values[entry.name] for entry in session.get_inputs()}
    return dict(zip([entry.name for entry in session.get_outputs()], session.run(None, wanted), strict=True))


def changed(network: Path, change: Callable[[ir.Model], Any]) -> tuple[Path, Any]:
    model = ir_files.load(network)
    result = change(model)
    path = network.with_name("changed.onnx")
    ir_files.save(model, path)
    return path, result


def operators(path: Path) -> list[str]:
    return [node.op_type for node in ir_files.load(path).graph]


SIZES = [(2, 3, 6, 4), (1, 2, 4, 8), (2, 1, 2, 2)]


@pytest.mark.parametrize("size", SIZES)
def test_group_normalization_is_replaced_exactly(network: Path, size: tuple[int, int, int, int]) -> None:
    path, count = changed(network, normalize_groups)
    assert count == 1 and "GroupNormalization" not in operators(path)
    assert np.abs(run(path, feeds(*size))["out"] - run(network, feeds(*size))["out"]).max() < 1e-4


def test_group_normalization_equals_its_definition() -> None:
    """Against numpy in float64, float16 data included: statistics are float32 there, for 600**2 is no float16."""
    cases = [
        (np.float32, "float", 1e-4, (5, 7)),
        (np.float16, "float16", 4e-2, (5, 7)),
        (np.float32, "float", 1e-4, (9,)),
    ]
    for kind, name, tolerance, places in cases:
        axes = "".join(f", p{number}" for number in range(len(places)))
        text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g ({name}[b, 6{axes}] x) => ({name}[b, 6{axes}] y) {{
          y = GroupNormalization <num_groups = 3, epsilon = 0.00001> (x, scale, bias) }}"""
        model, random = parser.parse_model(text), np.random.default_rng(2)
        scale, bias = (random.standard_normal(6).astype(kind) for _ in range(2))
        model.graph.initializer.extend([numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(bias, "bias")])
        changing = ir.serde.deserialize_model(model)
        assert normalize_groups(changing) == 1
        x = (random.standard_normal((2, 6, *places)) * 2 + 600).astype(kind)
        got = run_bytes(ir.serde.serialize_model(changing).SerializeToString(), {"x": x})["y"]
        grouped = x.astype(np.float64).reshape(2, 3, -1)
        mean, variance = grouped.mean(-1, keepdims=True), grouped.var(-1, keepdims=True)
        normal = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
        weight, shift = (part.astype(np.float64).reshape(6, *(1 for _ in places)) for part in (scale, bias))
        assert got.dtype == kind and np.abs(got - (normal * weight + shift)).max() < tolerance


def run_bytes(model: bytes, values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    import onnxruntime

    session = cast(Any, onnxruntime).InferenceSession(model, providers=["CPUExecutionProvider"])
    return dict(zip([entry.name for entry in session.get_outputs()], session.run(None, values), strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_what_precedes_the_context_is_computed_once(network: Path, size: tuple[int, int, int, int]) -> None:
    path, shared = changed(network, dedupe_guidance)
    assert np.array_equal(run(path, feeds(*size))["out"], run(network, feeds(*size))["out"])
    order = operators(path)
    assert shared == 5 and "Expand" not in order  # convolution, norm, sigmoid and two of arithmetic
    assert order.count("Tile") == 1 and order.index("Tile") > order.index("Conv")


def test_a_timestep_read_by_other_nodes_stays_expanded(network: Path) -> None:
    """A concatenation with the latent does not broadcast: it must read every row."""
    text = _STEP.replace(
        "later = Add(silu, placed)", "thick = Concat <axis = 1> (silu, placed)\n  later = Add(silu, silu)"
    )
    path, shared = changed(write(network, text), dedupe_guidance)
    assert shared == 0 and "Expand" in operators(path)


def test_the_context_is_projected_once_in_a_graph_of_its_own(network: Path) -> None:
    path, reader = changed(network, lambda model: hoist_text_projections(model, "reader"))
    ir_files.save(reader, network.with_name("reader.onnx"))
    values = feeds()
    memory = run(network.with_name("reader.onnx"), values)
    assert list(memory) == ["memory_0"] and memory["memory_0"].shape == (6, 8, 1, 1)
    assert np.array_equal(run(path, {**values, **memory})["out"], run(network, values)["out"])
    assert "MatMul" not in operators(path) and "Conv" not in operators(network.with_name("reader.onnx"))
    kept = {tensor.name for tensor in onnx_files.load(str(path), load_external_data=False).graph.initializer}
    assert "key_weight" not in kept and "conv_weight" in kept


def test_a_graph_without_a_context_is_not_changed(network: Path) -> None:
    model = ir_files.load(network)
    before = [node.op_type for node in model.graph]
    assert hoist_text_projections(model, "reader", context="nothing") is None
    assert [node.op_type for node in model.graph] == [kind for kind in before if kind != "Constant"]


def test_a_discarded_variant_leaves_no_files(tmp_path: Path) -> None:
    from celebctl_export.ort_variants import discard_variant, write_variant

    write(tmp_path / "step.onnx", _STEP)
    before = sorted(path.name for path in tmp_path.iterdir())
    variant = write_variant(tmp_path, "step")
    assert variant is not None and variant.reader and list(variant.projections) == ["memory_0"]
    projection = variant.projections["memory_0"]
    assert projection.shape == ("rows", 8, 1, 1) and projection.dtype == "float32"
    discard_variant(tmp_path, "step")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_weights_stay_in_the_file_that_all_variants_share(network: Path) -> None:
    def all_changes(model: ir.Model) -> None:
        dedupe_guidance(model)
        hoist_text_projections(model, "reader")
        normalize_groups(model)

    path, _ = changed(network, all_changes)
    graph = onnx_files.load(str(path), load_external_data=False).graph
    places = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    assert places == {"data.bin"} and path.stat().st_size < 8000


def test_operators_without_a_cuda_kernel_are_named(network: Path) -> None:
    """The version in which an operator was changed last decides: InstanceNormalization has a kernel up to opset 21."""
    path, _ = changed(network, normalize_groups)
    assert [node for node in nodes_without_kernel(path) if "ReduceSum" not in node] == []
    text = """<ir_version: 10, opset_import: ["" : OPSET]> g (float[2, 3, n] x, float[3] v) => (float[2, 3, n] y) {
      y = InstanceNormalization (x, v, v) }"""
    for opset, expected in ((21, []), (22, ["y (InstanceNormalization-22)"])):
        onnx_files.save(parser.parse_model(text.replace("OPSET", str(opset))), str(path))
        assert nodes_without_kernel(path) == expected


def test_the_command_names_them_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    bundle = write_bundle(tmp_path / "bundle")
    path = bundle.file("step.onnx")
    whole = path.read_bytes()
    for operator, code, text in ((b"Cosh", 6, "(Cosh-"), (b"Wash", 5, "step.onnx is not a graph")):
        path.write_bytes(whole.replace(b"Tanh", operator))
        assert main(["export", "--check", "--bundle", str(bundle.path)]) == code
        assert text in capsys.readouterr().err
