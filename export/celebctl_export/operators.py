"""Whether TensorRT takes an ONNX graph: every node against a table of what its parser supports, without TensorRT.

The table is that of onnx-tensorrt's docs/operators.md in its edition for TensorRT 10.15 (opset 9 to 24). Later releases
add operators to it; the rows of every operator that our own graphs use read the same for 10.16 and 11.1. Checked
are operator, type of the data, mixed types (which strong typing rejects) and the restrictions on operators that
diffusion models use. What only TensorRT itself can tell, such as memory, is not checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from celebctl_export.operator_types import with_missing_types

TABLE_OF = "onnx-tensorrt docs/operators.md, TensorRT 10.15"
OPSETS = range(9, 25)

_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_HALF_OR_FULL = frozenset({"FLOAT", "FLOAT16"})
_NUMBERS = _FLOATS | {"INT32", "INT64"}
_ANY = _NUMBERS | {"BOOL"}
_STORED = _ANY | {"FLOAT8E4M3FN", "FLOAT4E2M1", "INT4"}
_SMALL = frozenset({"INT8", "FLOAT8E4M3FN", "FLOAT4E2M1", "INT4"})

_GROUPS: tuple[tuple[frozenset[str], str], ...] = (
    (
        _FLOATS,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh"
        " CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool"
        " GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM"
        " LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization"
        " PRelu ParametricSoftplus QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform"
        " RandomUniformLike Reciprocal Resize RotaryEmbedding Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax"
        " Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample",
    ),
    (
        _NUMBERS,
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod Mul"
        " Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd"
        " ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK",
    ),
    (
        _ANY,
        "Concat Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot Reshape ReverseSequence"
        " Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where",
    ),
    (
        _HALF_OR_FULL,
        "BlackmanWindow DeformConv GridSample HammingWindow HannWindow Mish NonMaxSuppression NonZero RoiAlign",
    ),
    (_STORED, "Constant ConstantOfShape"),
    (_ANY | {"UINT8"}, "Cast CastLike"),
    (_FLOATS | {"INT8", "FLOAT8E4M3FN"}, "Attention"),
    (_NUMBERS | {"INT8"}, "Gelu"),
    (_NUMBERS | {"FLOAT8E4M3FN"}, "Mean"),
    (_FLOATS | {"INT32"}, "TensorScatter"),
    (frozenset({"BOOL"}), "And Not Or Xor"),
    (frozenset({"FLOAT"}), "STFT"),
    (_SMALL, "DequantizeLinear"),
)
SUPPORTED: Mapping[str, frozenset[str]] = {name: types for types, names in _GROUPS for name in names.split()}

# Nodes whose listed inputs must all be of one type: a strongly typed network casts nothing by itself.
_SAME_TYPE = {
    **dict.fromkeys("Add Sub Mul Div MatMul Equal Greater GreaterOrEqual Less LessOrEqual".split(), slice(0, 2)),
    **dict.fromkeys("Attention Conv Gemm GroupNormalization LayerNormalization".split(), slice(0, 3)),
    **dict.fromkeys("Concat Max Min Sum".split(), slice(None)),
    "Where": slice(1, 3),
}
_DATA_INPUT = {"Where": 1}
_RESIZE = {
    "mode": ("nearest", "linear"),
    "coordinate_transformation_mode": (
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "asymmetric",
        "align_corners",
    ),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "keep_aspect_ratio_policy": ("stretch",),
}


@dataclass(frozen=True)
class OperatorProblem:
    """One node that TensorRT would not take, and why."""

    node: str
    operator: str
    problem: str


@dataclass(frozen=True)
class OperatorReport:
    """What one graph file asks of TensorRT: how often it uses each operator, what is not supported, and the nodes
    (operator and name) whose types could not be inferred, of which only the operator is known to be supported."""

    file: str
    opset: int
    operators: Mapping[str, int]
    untyped_nodes: tuple[str, ...]
    problems: tuple[OperatorProblem, ...]

    @property
    def untyped(self) -> int:
        """How many nodes have a type that is not known."""
        return len(self.untyped_nodes)

    @property
    def passed(self) -> bool:
        """Whether nothing unsupported was found."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "untyped": self.untyped, "passed": self.passed, "table": TABLE_OF}


def check_operators(path: Path) -> OperatorReport:
    """Check a graph file; its weights are not read."""
    import onnx

    model = cast(Any, onnx).load(str(path), load_external_data=False)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    nodes = list(_nodes(model.graph))
    inferred = onnx.shape_inference.infer_shapes(_inferable(model), data_prop=True).graph
    types, ranks = with_missing_types(model, _types(inferred)), _ranks(inferred)
    problems = [problem for node in nodes for problem in _node_problems(node, types, ranks)]
    if opset not in OPSETS:
        found = OperatorProblem("", "", f"opset {opset} is outside {OPSETS.start} to {OPSETS.stop - 1}")
        problems.insert(0, found)
    untyped = tuple(
        f"{node.op_type} {node.name or node.output[0]}" for node in nodes if _data_type(node, types) is None
    )
    counts = Counter(str(node.op_type) for node in nodes)
    return OperatorReport(path.name, int(opset), dict(sorted(counts.items())), untyped, tuple(problems))


def _inferable(model: Any) -> Any:
    """A copy that onnx can follow to its end: it infers nothing behind a group normalization, which changes neither
    type nor shape, just like the instance normalization that takes its place here."""
    copy = type(model)()
    copy.CopyFrom(model)
    for node in _nodes(copy.graph):
        if node.op_type == "GroupNormalization":
            node.op_type = "InstanceNormalization"
            del node.attribute[:]
    return copy


def _node_problems(node: Any, types: Mapping[str, str], ranks: Mapping[str, int]) -> Iterator[OperatorProblem]:
    for problem in (
        *_not_in_table(node, types),
        *_mixed_types(node, types),
        *(_RESTRICTIONS[node.op_type](node, ranks) if node.op_type in _RESTRICTIONS else ()),
    ):
        yield OperatorProblem(str(node.name), str(node.op_type), problem)


def _not_in_table(node: Any, types: Mapping[str, str]) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx") or node.op_type not in SUPPORTED:
        yield f"operator {node.domain or 'ai.onnx'}:{node.op_type} is not supported"
        return
    kind = _data_type(node, types)
    if kind is not None and kind not in SUPPORTED[node.op_type]:
        yield f"type {kind} is not supported, only {', '.join(sorted(SUPPORTED[node.op_type]))}"


def _mixed_types(node: Any, types: Mapping[str, str]) -> Iterator[str]:
    inputs = node.input[_SAME_TYPE[node.op_type]] if node.op_type in _SAME_TYPE else ()
    found = {types[name] for name in inputs if name in types}
    if len(found) > 1:
        yield f"mixes {' and '.join(sorted(found))}, which a strongly typed network does not"


def _attention(node: Any, ranks: Mapping[str, int]) -> Iterator[str]:
    if any(ranks.get(name, 4) != 4 for name in node.input[:4] if name):
        yield "queries, keys, values and mask must have four axes"
    if any(node.input[4:]) or any(node.output[1:]):
        yield "past and present keys and values are not supported"
    if _attributes(node).get("softcap"):
        yield "softcap is not supported"


def _resize(node: Any, ranks: Mapping[str, int]) -> Iterator[str]:
    del ranks
    attributes = _attributes(node)
    for name, allowed in _RESIZE.items():
        value = attributes.get(name)
        if value is not None and value.decode() not in allowed:
            yield f"{name} {value.decode()!r} is not supported"
    if attributes.get("antialias"):
        yield "antialiasing is not supported"


def _layer_normalization(node: Any, ranks: Mapping[str, int]) -> Iterator[str]:
    del ranks
    if any(node.output[1:]):
        yield "only the first output is supported"


_RESTRICTIONS = {"Attention": _attention, "Resize": _resize, "LayerNormalization": _layer_normalization}


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those of branches and loop bodies included."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _nodes(body)


def _data_type(node: Any, types: Mapping[str, str]) -> str | None:
    """The type the table speaks of: that of the first data input, or of the output where there is no input."""
    data = node.input[_DATA_INPUT.get(node.op_type, 0) :]
    name = data[0] if data and node.op_type not in ("Constant", "ConstantOfShape") else node.output[0]
    return types.get(name)


def _bodies(node: Any) -> Iterator[Any]:
    """The branches and loop bodies of a node."""
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def _values(graph: Any) -> Iterator[Any]:
    """What is told of values, those of branches and loop bodies included."""
    yield from (*graph.input, *graph.value_info, *graph.output)
    for node in graph.node:
        for body in _bodies(node):
            yield from _values(body)


def _types(graph: Any) -> dict[str, str]:
    import onnx

    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    types = {value.name: names[value.type.tensor_type.elem_type] for value in _values(graph)}
    types |= {tensor.name: names[tensor.data_type] for tensor in graph.initializer}
    return {name: kind for name, kind in types.items() if kind != "UNDEFINED"}


def _ranks(graph: Any) -> dict[str, int]:
    found = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in _values(graph)
        if value.type.tensor_type.HasField("shape")
    }
    return {**found, **{tensor.name: len(tensor.dims) for tensor in graph.initializer}}
