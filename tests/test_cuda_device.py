"""The genuine CUDA provider of ONNX Runtime on a device without a GPU (cuda_device_fakes.py): where each node runs,
what is copied, what a captured graph reads, and what is said of each missing part. Values and times need a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cuda_device_fakes import CudaDevice, open_device
from genuine_packages import ROOT

pytest.importorskip("torch")
onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from celebctl_export import ExportOptions, export_bundle  # noqa: E402
from celebctl_export.cuda_kernels import KERNELS, nodes_without_kernel  # noqa: E402
from celebctl_models.checkpoints.diffusion import load_parts  # noqa: E402
from celebctl_models.checkpoints.registry import locate  # noqa: E402

pytestmark = pytest.mark.cuda_device

WORKER = str(ROOT / "tests" / "cuda_device_worker.py")
#: What ONNX Runtime computes on the CPU on purpose: shapes, a few integers.
SHAPE_NODES = set("Shape Gather Slice Concat Squeeze Unsqueeze Reshape Cast Add Sub Mul Div".split())

#: Each operator of our graphs, on data: x (b, 4, 8, 8), kernel (4, 4, 3, 3), square (8, 8), single (1, 8), row (8,) and
#: v (4,).
OPERATORS = """
  Add (x, x); Sub (x, row); Mul (x, row); Div (x, row); Sin (x); Cos (x); Sigmoid (x); Softmax (x); Gelu (x);
  Equal (x, row); Clip (x, low, high); Cast <to = 10> (x); MatMul (x, square); Gemm (square, square); Conv (x, kernel);
  Attention (x, x, x);
  Einsum <equation = "bchw,hw->bc"> (x, square); LayerNormalization (x, row); RMSNormalization (x, row); Shape (x);
  GroupNormalization <num_groups = 2> (x, v, v); Concat <axis = 1> (x, x); Split <axis = 1, num_outputs = 1> (x);
  Slice (x, first, second, first); Gather <axis = 1> (x, first); GatherElements (x, places); Expand (row, large);
  Tile (x, large); Pad (x, pads); Reshape (x, flat); Transpose (square); Unsqueeze (x, first); Squeeze (single, zero);
  Resize (x, , scales)"""
#: Constants of these.
CONSTANTS = """
  low = Constant <value = float {-1.0}> ()
  high = Constant <value = float {1.0}> ()
  zero = Constant <value = int64[1] {0}> ()
  first = Constant <value = int64[1] {1}> ()
  second = Constant <value = int64[1] {2}> ()
  flat = Constant <value = int64[2] {-1, 8}> ()
  large = Constant <value = int64[4] {1, 1, 2, 1}> ()
  pads = Constant <value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}> ()
  scales = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()
"""


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return open_device()


@pytest.fixture(scope="module")
def mini(device: CudaDevice, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """mini's bundle of a dtype, exported on first use."""

    @cache
    def export(dtype: Any) -> Path:
        folder = tmp_path_factory.mktemp(dtype) / "mini"
        return export_bundle(load_parts(locate("mini").path), [], folder, ExportOptions(dtype=dtype)).path

    return export


def draw(device: CudaDevice, bundle: Path, folder: Path, *words: str, **more: Any) -> Any:
    return device.run(folder, WORKER, "draw", str(bundle), *words, **more)


@pytest.mark.parametrize("graphs", ["optimized", "plain"])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_every_node_runs_on_the_gpu_and_steps_are_replayed(
    device: CudaDevice, mini: Callable[[str], Path], tmp_path: Path, dtype: str, graphs: str
) -> None:
    run = draw(device, mini(dtype), tmp_path, "cuda", graphs)
    answer = run.json()
    assert answer["images"] == 7 and answer["notes"] == [] and answer["backend"]["cuda_graph"] == "yes"
    suffix = ".ort.onnx" if graphs == "optimized" else ".onnx"
    opened = {f"{graph}{suffix}" for graph in ("step", "vae_decoder", "vae_encoder")} | {"text_encoder.onnx"}
    assert opened <= answer["graphs"].keys()
    for name, graph in answer["graphs"].items():
        assert graph["copies"] == 0, name
        assert graph["providers"].get("CPU", {}).keys() <= SHAPE_NODES, name
        assert sum(graph["providers"]["CUDA"].values()) > 20, name
        assert graph["options"]["CUDAExecutionProvider"]["use_tf32"] == "0"
    # Four loops of two graphs each: two images, one, a wide one, and one without guidance.
    captured, replayed = run.events("captured"), run.events("replayed")
    assert len(captured) == 8 and all(one["kernels"] > 100 and not one["broken"] for one in captured)
    assert not run.events("refused"), "allocating or waiting in a capture"
    assert len(replayed) > 20 and all(one["changed"] == 0 for one in replayed), "a replay reads other host memory"
    norms = run.events("layernorm")
    assert len(norms) > 100 and all(one["broadcast"] == 0 for one in norms), "the kernel reads past the scale's end"


@pytest.mark.parametrize(
    ("without", "variables", "device_name", "reason"),
    [
        ("driver", {"CUDA_TEST_DRIVER": "0"}, "cuda", "driver_missing"),
        ("", {"CUDA_TEST_DRIVER": "12040"}, "cuda", "driver_too_old"),
        ("runtime", {}, "cuda", "cuda_libraries_missing"),
        ("cudnn", {}, "cuda", "cudnn_missing"),
        ("", {"CUDA_TEST_MEMORY": "20000000"}, "cuda", "out_of_gpu_memory"),
        ("", {}, "cuda:1", "no_such_gpu"),
    ],
)
def test_what_is_missing_has_its_reason_and_exit_code(
    device: CudaDevice,
    mini: Callable[[str], Path],
    tmp_path: Path,
    without: str,
    variables: dict[str, str],
    device_name: str,
    reason: str,
) -> None:
    words = (
        "-m",
        "celebctl",
        "--json",
        "gen",
        "a person",
        "--steps",
        "3",
        "--bundle",
        str(mini("fp16")),
        "--device",
        device_name,
    )
    run = device.run(tmp_path, *words, without=without, **variables)
    assert run.code == 6, run.stderr[-3000:]
    error = json.loads(run.stdout)["error"]
    assert error["reason"] == reason and error["hint"] and not list(tmp_path.glob("*.png"))
    assert "without a CUDA graph" not in run.stderr, "no second cause"


def test_the_second_gpu_draws(device: CudaDevice, mini: Callable[[str], Path], tmp_path: Path) -> None:
    answer = draw(device, mini("fp16"), tmp_path, "cuda:1", CUDA_TEST_GPUS="2").json()
    assert answer["images"] == 7 and answer["backend"]["device"] == "cuda:1"
    options = [graph["options"]["CUDAExecutionProvider"] for graph in answer["graphs"].values()]
    assert {each["device_id"] for each in options} == {"1"}


def test_a_capture_that_fails_is_drawn_without_and_noted_once(
    device: CudaDevice, mini: Callable[[str], Path], tmp_path: Path
) -> None:
    run = draw(device, mini("fp16"), tmp_path, "cuda", CUDA_TEST_FAIL_CAPTURE="1")
    answer = run.json()
    assert answer["images"] == 7 and len(answer["notes"]) == 1 and answer["backend"]["cuda_graph"].startswith("no: ")
    assert [one["broken"] for one in run.events("captured")] == [1] and not run.events("replayed")


def test_without_capture_nothing_is_captured(device: CudaDevice, mini: Callable[[str], Path], tmp_path: Path) -> None:
    run = draw(device, mini("fp16"), tmp_path, "cuda", "enable_cuda_graph=0")
    assert run.json()["images"] == 7 and not run.events("captured")


def test_operators_of_the_table_run_on_the_gpu(device: CudaDevice, tmp_path: Path) -> None:
    path = save(tmp_path / "all.onnx", OPERATORS.split(";"), 23)
    written = {node.op_type for node in onnx.load(path).graph.node} - {"Constant"}
    assert written | {"InstanceNormalization"} == KERNELS.keys() and nodes_without_kernel(path) == []
    placed = device.run(tmp_path, WORKER, "place", str(path)).json()["graphs"][path.name]
    assert placed["providers"].get("CPU", {}).keys() <= SHAPE_NODES and placed["copies"] == 0
    assert written - {"GroupNormalization"} <= placed["providers"]["CUDA"].keys()


@pytest.mark.parametrize(("opset", "provider"), [(21, "CUDA"), (22, "CPU"), (23, "CPU")])
def test_an_operator_without_a_kernel_is_found_without_a_gpu(
    device: CudaDevice, tmp_path: Path, opset: int, provider: str
) -> None:
    path = save(tmp_path / "norm.onnx", ["InstanceNormalization (x, v, v)"], opset)
    assert len(nodes_without_kernel(path)) == (opset > 21)
    placed = device.run(tmp_path, WORKER, "place", str(path)).json()["graphs"][path.name]
    assert placed["providers"].keys() == {provider}


def save(path: Path, nodes: Sequence[str], opset: int) -> Path:
    """A graph of nodes that read the values of :data:`OPERATORS`; all they compute is its output."""
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]>
    g (float[b, 4, 8, 8] x, float[4, 4, 3, 3] kernel, float[8, 8] square, float[1, 8] single, float[8] row, float[4] v,
       int64[b, 4, 8, 1] places) => (float[b, 4, 8, 8] y) {{
      {CONSTANTS} y = Abs (x) {" ".join(f"y{number} = {node}" for number, node in enumerate(nodes))} }}"""
    model = onnx.parser.parse_model(text)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(f"y{number}") for number in range(len(nodes)))
    model.graph.node.remove(next(node for node in model.graph.node if node.op_type == "Abs"))
    onnx.save(model, path)
    return path
