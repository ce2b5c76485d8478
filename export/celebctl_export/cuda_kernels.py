"""Operators that ONNX Runtime's CUDA provider has kernels for, so that a graph can be checked without a GPU.

A node without a kernel runs on the CPU between two copies, and forbids CUDA graphs. ONNX Runtime looks for a kernel of
the version in which an operator was changed last, so a newer opset can lose one: InstanceNormalization has a kernel of
version 6, and since opset 22 none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from celebctl_runtime.errors import IntegrityError

#: The newest version with a kernel, of each operator in our graphs. Source: docs/OperatorKernels.md of ONNX Runtime; a
#: test opens a graph of all of them with the CUDA provider. GroupNormalization is expanded into others of this table.
KERNELS: Mapping[str, int] = {
    "Add": 14, "Attention": 23, "Cast": 23, "Clip": 13, "Concat": 13, "Conv": 22, "Cos": 22, "Div": 14, "Einsum": 12,
    "Equal": 19, "Expand": 13, "Gather": 13, "GatherElements": 13, "Gelu": 20, "Gemm": 13, "GroupNormalization": 21,
    "InstanceNormalization": 6, "LayerNormalization": 17, "MatMul": 13, "Mul": 14, "Pad": 23, "RMSNormalization": 23,
    "Reshape": 23, "Resize": 19, "Shape": 23, "Sigmoid": 13, "Sin": 22, "Slice": 13, "Softmax": 13, "Split": 18,
    "Squeeze": 23, "Sub": 14, "Tile": 13, "Transpose": 23, "Unsqueeze": 23,
}  # fmt: skip


def nodes_without_kernel(file: Path) -> list[str]:
    """The nodes of a graph that run on the CPU although CUDA is used, as "name (operator-version)".

    Operators that are not in :data:`KERNELS` are listed too. Raises IntegrityError for a damaged file.
    """
    import onnx

    try:
        model: Any = cast(Any, onnx).load(str(file), load_external_data=False)
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        nodes = [(node, _version(node, opsets)) for node in model.graph.node if node.op_type != "Constant"]
    except Exception as error:  # protobuf's DecodeError, onnx's SchemaError, an opset that is missing
        hint = "export the bundle again"
        raise IntegrityError(f"{file} is not a graph: {error}", hint, reason="broken_graph", file=file) from error
    return [
        f"{node.name or node.output[0]} ({node.op_type}-{version})"
        for node, version in nodes
        if version > KERNELS.get(node.op_type, 0)
    ]


def _version(node: Any, opsets: Mapping[str, int]) -> int:
    """The opset in which the node's operator was changed last."""
    import onnx

    return cast(Any, onnx).defs.get_schema(node.op_type, opsets[node.domain], node.domain).since_version
