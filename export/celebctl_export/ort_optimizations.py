"""Graph optimizations for ONNX Runtime: the same function with fewer operations, on the same weight files.

Each is exact up to rounding, and its result is compared with torch like the original graph:

- What depends on the context alone (keys and values of the cross attention) moves into a graph of its own, which runs
  once per image instead of once per step.
- With guidance the UNet sees every latent twice. What precedes the first cross attention is computed once and repeated
  afterwards; the timestep embedding is computed for one row.
- GroupNormalization, for which ONNX Runtime has no kernel (it expands it into some fifty nodes), becomes a layer
  normalization of each group with float32 statistics, one multiplication and one addition.
- Unused nodes are removed.

TensorRT uses the original graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

PROJECTION = "memory_"  # prefix of the values between the reader graph and the step graph, which are numbered
# Operations on every row of a batch separately: they may run before a batch is repeated instead of after.
_PER_ROW = frozenset({"Conv", "GroupNormalization", "Sigmoid", "Mul", "Add", "Sub", "Cast"})
# Operations on the context that keep its first axis, the guides and images.
_PER_TOKEN = frozenset({"Reshape", "Transpose", "MatMul", "Gemm", "Add", "Cast", "Pad"})
_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})


def normalize_groups(model: ir.Model) -> int:
    """Replace every GroupNormalization by nodes that ONNX Runtime has kernels for; returns how many there were."""
    nodes = [node for node in model.graph if node.op_type == "GroupNormalization"]
    for node in nodes:
        _replace_group_norm(model, node)
    _remove_unused_nodes(model)
    return len(nodes)


def _replace_group_norm(model: ir.Model, node: ir.Node) -> None:
    """y = scale * (x - mean) / sqrt(variance + epsilon) + bias, with mean and variance over each group."""
    import onnx_ir as ir

    x, scale, bias = cast("Sequence[ir.Value]", node.inputs)
    groups = int(cast(Any, node.attributes["num_groups"]).value)
    epsilon = float(cast(Any, node.attributes["epsilon"]).value) if "epsilon" in node.attributes else 1e-5
    weight = cast("ir.TensorProtocol", scale.const_value)
    dtype, channels, single = weight.dtype, int(weight.shape.numpy()[0]), ir.DataType.FLOAT
    one = _constant(model, "unit_scale", np.ones(1, np.float32))
    by_group = _constant(model, f"into_{groups}_groups", np.array([0, groups, -1]))
    by_channel = _constant(model, f"into_{channels}_channels", np.array([0, channels, -1]))
    new: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        new.append(ir.node(op, list(inputs), attributes))
        return new[-1].outputs[0]

    full = add("Cast", x, to=int(single)) if dtype != single else x
    grouped = add("Reshape", full, by_group)
    # Not InstanceNormalization, which CUDA has no kernel for at this opset. The scale needs all elements of a group: a
    # single one is accepted, but CUDA's kernel does not broadcast it and reads past its end (onnxruntime #28971).
    scale_of_group = add("Expand", one, add("Shape", grouped, start=2))
    normalized = add("LayerNormalization", grouped, scale_of_group, axis=-1, epsilon=epsilon, stash_type=1)
    flat = add("Reshape", normalized, by_channel)  # x may have any number of axes after its channels
    typed = add("Cast", flat, to=int(dtype)) if dtype != single else flat
    scaled = add("Add", add("Mul", typed, _per_channel(model, scale)), _per_channel(model, bias))
    _replace(model, node, new, add("Reshape", scaled, add("Shape", x)))


def dedupe_guidance(model: ir.Model, tables: Sequence[str] = ("aux", "step")) -> int:
    """Compute what precedes the first use of the context once for both guides; returns the number of such nodes.

    ``tables``: inputs that are the same for all images. 0 when the graph repeats nothing.
    """
    import onnx_ir as ir

    _lift_constants(model)
    tiles = [node for node in model.graph if node.op_type == "Tile"]
    shared = _squeeze_shared_values(model, tables)
    if len(tiles) != 1 or shared is None:
        return 0
    (tile,) = tiles
    source, repeats = cast("Sequence[ir.Value]", tile.inputs)
    moved = _nodes_before_context(model, tile, shared)
    for value in (node.outputs[0] for node in moved):
        uses = [(user, index) for user, index in value.uses() if user not in moved and not _reads_spatial_size(user)]
        if uses:
            repeated = ir.node("Tile", [value, repeats])
            first = _first(model, [user for user, _ in uses])
            model.graph.insert_before(first, repeated)
            for user, index in uses:
                user.replace_input_with(index, repeated.outputs[0])
    for user, index in list(tile.outputs[0].uses()):
        if user in moved:
            user.replace_input_with(index, source)
    _remove_unused_nodes(model)
    return len(moved)


def _nodes_before_context(model: ir.Model, tile: ir.Node, shared: set[ir.Value]) -> list[ir.Node]:
    """Nodes, in order, that can run before ``tile`` repeats the latent."""
    values = {tile.outputs[0]}
    nodes: list[ir.Node] = []
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        others = [value for value in inputs if value not in values]
        known = all(value in shared or value.const_value is not None for value in others)
        if node.op_type in _PER_ROW and len(others) < len(inputs) and known:
            values.add(node.outputs[0])
            nodes.append(node)
    return nodes


def hoist_text_projections(model: ir.Model, name: str, context: str = "context") -> ir.Model | None:
    """Move what depends on the input ``context`` alone into a new graph ``name``, which is returned.

    Its outputs, memory_0 and so on, become inputs of ``model``, which keeps its input ``context`` for the number of
    guides. None, with ``model`` unchanged, if there is no such part.
    """
    import onnx_ir as ir

    _lift_constants(model)
    graph = model.graph
    _infer_rows(model, context)
    outputs = _context_outputs(graph, context)
    if not outputs:
        return None
    for number, value in enumerate(outputs):
        value.name = f"{PROJECTION}{number}"
    reader = model.clone()
    reader.graph.name = name
    _extract(reader, inputs=[context], outputs=[str(value.name) for value in outputs])
    for value in outputs:
        entry = ir.Value(name=value.name, type=value.type, shape=value.shape)
        value.replace_all_uses_with(entry)
        value.name = f"{value.name}_before"
        graph.inputs.append(entry)
    _remove_unused_nodes(model)
    _infer_shapes(reader)
    inferred = {value.name: value for value in reader.graph.outputs}
    for entry in graph.inputs:
        if entry.name in inferred:
            entry.type, entry.shape = inferred[entry.name].type, inferred[entry.name].shape
    return reader


def _infer_rows(model: ir.Model, context: str) -> None:
    """Let every Reshape of the context infer its first axis, guides times images, which the exporter computes.

    The exporter takes the number of images from another input; without it the values depend on the context alone. The
    first Reshape merges guides and images (-1); those of its results keep their first axis (0).
    """
    merged = next((node for node in model.graph if _reads(node, "Reshape", context)), None)
    target = None if merged is None else _target_parts(merged)
    if merged is None or target is None:
        return
    rows, inside = target[0], set(merged.outputs)
    _set_target(model, merged, -1, target[1:])
    for node in list(model.graph):
        if node.op_type in _PER_TOKEN and any(value in inside for value in node.inputs if value is not None):
            parts = _target_parts(node)
            if parts and parts[0] is rows:
                _set_target(model, node, 0, parts[1:])
            inside.update(node.outputs)
    _remove_unused_nodes(model)


def _target_parts(node: ir.Node) -> list[ir.Value] | None:
    """The values that the target shape of a Reshape is joined from; None for other nodes and targets."""
    target = node.inputs[1].producer() if node.op_type == "Reshape" and node.inputs[1] is not None else None
    return cast("list[ir.Value]", list(target.inputs)) if target is not None and target.op_type == "Concat" else None


def _set_target(model: ir.Model, node: ir.Node, first: int, others: Sequence[ir.Value]) -> None:
    """Let a Reshape's target be ``first`` and ``others``: a constant if they are."""
    import onnx_ir as ir

    node.attributes.pop("allowzero", None)  # 0 keeps an axis
    constants = [value.const_value.numpy() for value in others if value.const_value is not None]
    if len(constants) == len(others):
        shape = np.concatenate([np.array([first]), *constants])
        name = f"into_{'_'.join(map(str, shape.tolist()))}".replace("-1", "rest")
        node.replace_input_with(1, _constant(model, name, shape))
        return
    start = _constant(model, "merged_rows", np.array([first]))
    joined = ir.node("Concat", [start, *others], {"axis": 0})
    model.graph.insert_before(node, [joined])
    node.replace_input_with(1, joined.outputs[0])


def _reads(node: ir.Node, operation: str, name: str) -> bool:
    """Whether a node is this operation on the value ``name``."""
    return node.op_type == operation and node.inputs[0] is not None and node.inputs[0].name == name


def _context_outputs(graph: ir.Graph, context: str) -> list[ir.Value]:
    """Values that depend on the input ``context`` alone and that other nodes read.

    Its number of guides is not one of them, its number of tokens may be.
    """
    inside = {value for value in graph.inputs if value.name == context}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        known = all(value in inside or value.const_value is not None for value in inputs)
        counts = node.op_type == "Shape" and not _reads_spatial_size(node)
        if not counts and known and any(value in inside for value in inputs):
            inside.update(node.outputs)
    return [
        value
        for node in graph
        for value in node.outputs
        if value in inside and any(user.outputs[0] not in inside for user in value.consumers())
    ]


def _squeeze_shared_values(model: ir.Model, tables: Sequence[str]) -> set[ir.Value] | None:
    """Values that are the same for every image, after removing their expansion to the batch.

    None when an expansion is read by something other than arithmetic, which would not broadcast.
    """
    shared = {value for value in model.graph.inputs if value.name in tables}
    expansions: list[ir.Node] = []
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        if not any(value in shared for value in inputs):
            continue
        if node.op_type == "Expand" and inputs[0] in shared:
            expansions.append(node)
            shared.add(node.outputs[0])
        elif all(value in shared or value.const_value is not None for value in inputs):
            shared.update(node.outputs)
    reached = set(expansions)
    for node in model.graph:
        if any(value is not None and value.producer() in reached for value in node.inputs):
            if node.outputs[0] in shared:
                reached.add(node)
            elif node.op_type not in _BROADCASTING:
                return None
    for node in expansions:
        node.outputs[0].replace_all_uses_with(cast("ir.Value", node.inputs[0]))
    return shared


def _reads_spatial_size(node: ir.Node) -> bool:
    """Whether a node reads only height or width, which repeating a batch does not change."""
    return node.op_type == "Shape" and "start" in node.attributes and cast(Any, node.attributes["start"]).value >= 1


def _first(model: ir.Model, nodes: Iterable[ir.Node]) -> ir.Node:
    chosen = set(nodes)
    return next(node for node in model.graph if node in chosen)


def _constant(model: ir.Model, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    import onnx_ir as ir

    return _initializer(model, name, ir.tensor(array, name=name))


def _initializer(model: ir.Model, name: str, tensor: Any) -> ir.Value:
    """The initializer ``name``, added if missing."""
    import onnx_ir as ir

    if name not in model.graph.initializers:
        model.graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return model.graph.initializers[name]


def _per_channel(model: ir.Model, value: ir.Value) -> ir.Value:
    """A constant (C,) as (C, 1), to broadcast over all pixels; the bytes stay where they are."""
    import onnx_ir as ir

    name = f"{value.name}_per_channel"
    tensor = cast("ir.TensorProtocol", value.const_value)
    shape = ir.Shape((*tensor.shape.numpy(), 1))
    if not isinstance(tensor, ir.ExternalTensor):
        return _initializer(model, name, ir.tensor(tensor.numpy().reshape(shape.numpy()), name=name))
    old: Any = tensor
    new: Any = ir.ExternalTensor(
        old.location, old.offset, old.length, old.dtype, shape=shape, name=name, base_dir=old.base_dir
    )
    return _initializer(model, name, new)


def _replace(model: ir.Model, node: ir.Node, new: Sequence[ir.Node], result: ir.Value) -> None:
    model.graph.insert_before(node, new)
    old = node.outputs[0]
    name, old.name = old.name, None
    result.name, result.type, result.shape = name, old.type, old.shape
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def _extract(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Reduce a graph to what computes the values ``outputs`` from ``inputs``."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs[:] = [values[name] for name in outputs]
    _remove_unused_nodes(model)
    for value in list(model.graph.inputs):
        if value.name not in inputs:
            model.graph.inputs.remove(value)


def _lift_constants(model: ir.Model) -> None:
    """Turn Constant nodes into initializers."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _remove_unused_nodes(model: ir.Model) -> None:
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def _infer_shapes(model: ir.Model) -> None:
    """Infer types and shapes, which onnx can for the few operations of a reader graph."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)
