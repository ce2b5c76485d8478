"""A bundle in half precision: statistics and the scheduler's state stay float32, every operator is one TensorRT has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch")
onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from celebctl_export import ExportOptions, export_bundle  # noqa: E402
from celebctl_runtime.backends.ort import OrtBackend  # noqa: E402
from celebctl_runtime.bundle.bundle import Bundle  # noqa: E402
from celebctl_runtime.pipeline import generate  # noqa: E402
from celebctl_runtime.request import Request  # noqa: E402

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
