"""A graph rewritten for ONNX Runtime: the same function, fewer operations, the same weight files.

Four changes, each exact up to rounding and measured against torch like the graph it comes from:

- What depends on the texts alone (keys and values of the cross attention) moves into a graph of its own, which runs
  once for a picture instead of once for a step.
- The guided network sees one latent twice. What comes before the first look at the texts is computed once and repeated
  afterwards, and the timestep's embedding is computed for one row.
- GroupNormalization, which ONNX Runtime has no kernel for (it expands it into some fifty small operations), becomes an
  instance normalization over the groups, with float32 statistics, and one multiplication and addition.
- Shapes that follow from a constant are folded, and unused nodes are removed.

TensorRT takes the graphs as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

MEMORY = "memory_"  # what the values are called that go from the texts' graph to the step's, numbered
# Operations that treat every row of a batch alike: they may run before a batch is repeated instead of after.
_PER_ROW = frozenset({"Conv", "GroupNormalization", "Sigmoid", "Mul", "Add", "Sub", "Cast"})
_BROADCASTS = frozenset({"Add", "Sub", "Mul", "Div"})


def normalize_groups(model: ir.Model) -> int:
    """Write every GroupNormalization with operations that ONNX Runtime has kernels for; returns how many there were."""
    import onnx_ir as ir

    graph = model.graph
    found = [node for node in graph if node.op_type == "GroupNormalization"]
    for node in found:
        x, scale, bias = cast("Sequence[ir.Value]", node.inputs)
        groups = int(cast(Any, node.attributes["num_groups"]).value)
        epsilon = float(cast(Any, node.attributes["epsilon"]).value) if "epsilon" in node.attributes else 1e-5
        dtype = cast("ir.TensorProtocol", scale.const_value).dtype
        single = ir.DataType.FLOAT
        ones = _constant(model, f"ones_{groups}", np.ones(groups, np.float32))
        zeros = _constant(model, f"zeros_{groups}", np.zeros(groups, np.float32))
        split = _constant(model, f"into_{groups}_groups", np.array([0, groups, -1]))
        channels = int(cast("ir.TensorProtocol", scale.const_value).shape.numpy()[0])
        apart = _constant(model, f"into_{channels}_channels", np.array([0, channels, -1]))
        new: list[ir.Node] = []

        def add(op: str, *inputs: ir.Value, new: list[ir.Node] = new, **attributes: Any) -> ir.Value:
            new.append(ir.node(op, list(inputs), attributes))
            return new[-1].outputs[0]

        full = add("Cast", x, to=int(single)) if dtype != single else x
        normal = add("InstanceNormalization", add("Reshape", full, split), ones, zeros, epsilon=epsilon)
        flat = add("Reshape", normal, apart)  # x may have any number of axes behind its channels
        same = add("Cast", flat, to=int(dtype)) if dtype != single else flat
        scaled = add("Add", add("Mul", same, _per_channel(model, scale)), _per_channel(model, bias))
        result = add("Reshape", scaled, add("Shape", x))
        _replace(model, node, new, result)
    _tidy(model)
    return len(found)


def dedupe_guidance(model: ir.Model, tables: Sequence[str] = ("aux", "step")) -> int:
    """Compute what comes before the first look at the texts once for both guides; returns how many nodes that are.

    ``tables``: inputs that hold the same for every picture. 0 when the graph repeats nothing.
    """
    import onnx_ir as ir

    _lift_constants(model)
    tiles = [node for node in model.graph if node.op_type == "Tile"]
    alike = _one_row(model, tables)
    if len(tiles) != 1 or alike is None:
        return 0
    (tile,) = tiles
    source, repeats = cast("Sequence[ir.Value]", tile.inputs)
    inner, before = {tile.outputs[0]}, list[ir.Node]()
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        rest = [value for value in inputs if value not in inner]
        known = all(value in alike or value.const_value is not None for value in rest)
        if node.op_type in _PER_ROW and len(rest) < len(inputs) and known:
            inner.add(node.outputs[0])
            before.append(node)
    for value in inner:
        uses = [(user, place) for user, place in value.uses() if user not in before and not _reads_sides(user)]
        start = source if value is tile.outputs[0] else value
        if uses and value is not tile.outputs[0]:
            again = ir.node("Tile", [start, repeats])
            uses[0][0].graph.insert_before(_first(model, [user for user, _ in uses]), again)  # type: ignore[union-attr]
            for user, place in uses:
                user.replace_input_with(place, again.outputs[0])
    for user, place in list(tile.outputs[0].uses()):
        if user in before:
            user.replace_input_with(place, source)
    _tidy(model)
    return len(before)


def hoist_text_projections(model: ir.Model, name: str, texts: str = "context") -> ir.Model | None:
    """Cut what depends on the input ``texts`` alone out of a graph, into a graph ``name`` of its own; returns that.

    Its outputs, memory_0 and so on, become inputs of ``model``, which keeps its input ``texts`` for the number of
    guides. None, and nothing changed, where there is no such part.
    """
    import onnx_ir as ir

    _lift_constants(model)
    graph = model.graph
    context = next((value for value in graph.inputs if value.name == texts), None)
    if context is None:
        return None
    inside: set[ir.Value] = {context}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        known = all(value in inside or value.const_value is not None for value in inputs)
        if node.op_type != "Shape" and known and any(value in inside for value in inputs):
            inside.update(node.outputs)
    ends = [
        value
        for node in graph
        for value in node.outputs
        if value in inside and any(user.outputs[0] not in inside for user in value.consumers())
    ]
    if not ends:
        return None
    for number, value in enumerate(ends):
        value.name = f"{MEMORY}{number}"
    reader = model.clone()
    reader.graph.name = name
    _keep(reader, inputs=[texts], outputs=[str(value.name) for value in ends])
    for value in ends:
        entry = ir.Value(name=value.name, type=value.type, shape=value.shape)
        value.replace_all_uses_with(entry)
        value.name = f"{value.name}_before"
        graph.inputs.append(entry)
    _tidy(model)
    _describe_ends(reader)
    types = {value.name: value for value in reader.graph.outputs}
    for entry in graph.inputs:
        if entry.name in types:
            entry.type, entry.shape = types[entry.name].type, types[entry.name].shape
    return reader


def _one_row(model: ir.Model, tables: Sequence[str]) -> set[ir.Value] | None:
    """Values that are the same for every picture, with their expansions to a batch taken out.

    None when something other than plain arithmetic, which broadcasts by itself, reads such an expansion.
    """
    alike = {value for value in model.graph.inputs if value.name in tables}
    spread: list[ir.Node] = []
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        if not any(value in alike for value in inputs):
            continue
        if node.op_type == "Expand" and inputs[0] in alike:
            spread.append(node)
            alike.add(node.outputs[0])
        elif all(value in alike or value.const_value is not None for value in inputs):
            alike.update(node.outputs)
    if not spread:
        return alike
    reached = set(spread)
    for node in model.graph:
        if any(value is not None and value.producer() in reached for value in node.inputs):
            if node.outputs[0] in alike:
                reached.add(node)
            elif node.op_type not in _BROADCASTS:
                return None
    for node in spread:
        node.outputs[0].replace_all_uses_with(cast("ir.Value", node.inputs[0]))
    return alike


def _reads_sides(node: ir.Node) -> bool:
    """Whether a node only asks for height or width, which repeating a batch leaves alone."""
    return node.op_type == "Shape" and "start" in node.attributes and cast(Any, node.attributes["start"]).value >= 1


def _first(model: ir.Model, nodes: Iterable[ir.Node]) -> ir.Node:
    wanted = set(nodes)
    return next(node for node in model.graph if node in wanted)


def _constant(model: ir.Model, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    import onnx_ir as ir

    known = model.graph.initializers.get(name)
    if known is not None:
        return known
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    model.graph.register_initializer(value)
    return value


def _per_channel(model: ir.Model, value: ir.Value) -> ir.Value:
    """A constant (C,) as (C, 1), which broadcasts over all places of a picture; the bytes stay where they are."""
    import onnx_ir as ir

    name = f"{value.name}_per_channel"
    known = model.graph.initializers.get(name)
    if known is not None:
        return known
    tensor = cast("ir.TensorProtocol", value.const_value)
    shape = ir.Shape((*tensor.shape.numpy(), 1))
    if isinstance(tensor, ir.ExternalTensor):
        place: Any = tensor
        moved: Any = ir.ExternalTensor(
            place.location, place.offset, place.length, place.dtype, shape=shape, name=name, base_dir=place.base_dir
        )
    else:
        moved = ir.tensor(tensor.numpy().reshape(shape.numpy()), name=name)
    made = ir.Value(name=name, const_value=moved)
    model.graph.register_initializer(made)
    return made


def _replace(model: ir.Model, node: ir.Node, new: Sequence[ir.Node], result: ir.Value) -> None:
    model.graph.insert_before(node, new)
    old = node.outputs[0]
    name, old.name = old.name, None
    result.name, result.type, result.shape = name, old.type, old.shape
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def _keep(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Leave of a graph only what leads from some values to others."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs[:] = [values[name] for name in outputs]
    _tidy(model)
    for value in list(model.graph.inputs):
        if value.name not in inputs:
            model.graph.inputs.remove(value)


def _lift_constants(model: ir.Model) -> None:
    """Constant nodes as initializers, which is what everything here takes constants for."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _tidy(model: ir.Model) -> None:
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def _describe_ends(model: ir.Model) -> None:
    """Types and shapes of the outputs; onnx follows the few operations of a texts' graph all the way."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)


Change = Callable[["ir.Model"], object]
