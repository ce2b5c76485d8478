"""The ONNX graphs as TensorRT's parser gets them, and the largest tensor of an engine.

TensorRT imports an Attention node as one that must run as a single fused kernel, unless the node says otherwise
(onnx-tensorrt, onnxOpImporters.cpp). Fused kernels exist for half precision and heads of 16 to 256 channels (developer
guide, "Multi-Head Attention Fusion"); the float32 text encoders and the autoencoder's head of 512 have none. So every
Attention node is allowed to be decomposed. The attribute is TensorRT's own: ONNX Runtime refuses it, and it is set in
memory only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from celebctl_export.tensorrt_plan import EnginePlan
from celebctl_runtime.backends.engines import Profile
from celebctl_runtime.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

MAX_ELEMENTS = 2**31 - 1  # of a tensor (TensorRT's operator reference, Convolution, "Volume Limits")
MAX_FUSED_HEAD = 256


def graph_bytes(bundle: Path, plan: EnginePlan) -> bytes:
    """The graph file, with decomposable attention, and the plan's ``inputs_from_data`` (the token table) as inputs.

    The runtime then owns the table's buffer, and a new person costs a copy of two rows. Raises IntegrityError when the
    graph has no such initializer.
    """
    import onnx

    path = bundle / plan.onnx
    model = cast(Any, onnx).load(str(path), load_external_data=False)
    graph = model.graph
    for node in graph.node:
        if node.op_type == "Attention":
            node.attribute.append(onnx.helper.make_attribute("TRT_decomposable", 1))
    for name, file in plan.inputs_from_data.items():
        tensors = [tensor for tensor in graph.initializer if tensor.name == name and file in _locations(tensor)]
        if not tensors:
            problem = f"{path} has no initializer {name!r} in {file}"
            raise IntegrityError(problem, "export the bundle again", reason="broken_graph", file=path)
        (tensor,) = tensors
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        graph.initializer.remove(tensor)
    return model.SerializeToString()


def _locations(tensor: Any) -> list[str]:
    return [entry.value for entry in tensor.external_data if entry.key == "location"]


class TensorSize(NamedTuple):
    """A tensor of a graph: its name, shape and number of elements."""

    name: str
    shape: tuple[int, ...]
    elements: int


def check_volume(bundle: Path, plan: EnginePlan) -> None:
    """Raise UsageError when a tensor of an engine has more elements than TensorRT can count at the largest shapes."""
    for profile in plan.profiles:
        largest = largest_tensor(bundle, plan, profile)
        if largest.elements > MAX_ELEMENTS:
            shape = "x".join(map(str, largest.shape))
            raise UsageError(
                f"{plan.file} is too large for TensorRT: {largest.name} has {largest.elements:,} elements ({shape}),"
                f" and the limit is {MAX_ELEMENTS:,}",
                "use a smaller batch or image size",
                reason="engine_too_large",
                engine=plan.file,
                elements=largest.elements,
                shape=largest.shape,
            )


def largest_tensor(bundle: Path, plan: EnginePlan, profile: Profile) -> TensorSize:
    """The tensor with the most elements at the largest shapes of a profile."""
    return max(tensors(bundle, plan, profile), key=lambda tensor: tensor.elements)


def tensors(bundle: Path, plan: EnginePlan, profile: Profile) -> list[TensorSize]:
    """Every tensor at the largest shapes of a profile, from the shapes alone; one whose shape is not known has none.

    Attention without a fused kernel also stores the weights of all pairs of positions, (B, heads, queries, keys).
    """
    import onnx_ir as ir
    from onnxscript import optimizer

    model: ir.Model = cast(Any, ir).load(bundle / plan.onnx)
    for value in model.graph.inputs:
        name = str(value.name)
        if name in profile.shapes:
            value.shape = ir.Shape(profile.shapes[name][2])
    for value in model.graph.outputs:
        value.shape = None
    for node in model.graph:
        if node.op_type == "GroupNormalization":  # onnx does not infer its shape, which is that of its input
            node.op_type = "Identity"
            node.resize_inputs(1)
            node.attributes.clear()
    optimizer.optimize_ir(model, num_iterations=1)  # infers shapes, and computes those that depend on others
    found = [_of_value(value) for node in model.graph for value in node.outputs]
    found += [_attention_weights(node) for node in model.graph if node.op_type == "Attention" and not _is_fused(node)]
    return found


def _of_value(value: ir.Value) -> TensorSize:
    """A value of a graph; without elements where its shape is not known."""
    shape = _static(value)
    return TensorSize(str(value.name), shape, math.prod(shape) if shape else 0)


def _is_fused(node: ir.Node) -> bool:
    query = cast("ir.Value", node.inputs[0])
    shape = _static(query)
    return query.dtype is not None and query.dtype.itemsize == 2 and bool(shape) and shape[3] <= MAX_FUSED_HEAD


def _attention_weights(node: ir.Node) -> TensorSize:
    query, key = (_static(cast("ir.Value", value)) for value in node.inputs[:2])
    shape = (*query[:3], key[2]) if query and key else ()
    return TensorSize(f"attention weights of {node.name}", shape, math.prod(shape) if shape else 0)


def _static(value: ir.Value) -> tuple[int, ...]:
    """The shape; () when some of it is not known."""
    shape = value.shape
    return tuple(shape.numpy()) if shape is not None and shape.is_static() else ()
