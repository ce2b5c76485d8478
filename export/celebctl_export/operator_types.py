"""Types of values in an ONNX graph where onnx's own inference stopped: it follows shapes and types together, and one
shape that it cannot compute leaves everything behind it without either.

Types alone ask for less, so each node is asked again for those, by its schema and with the types of its inputs. What
this module does not know: what types are good for, and weights; it works on graphs of any size without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_missing_types(model: Any, known: Mapping[str, str]) -> dict[str, str]:
    """``known`` (names of values to names of onnx's data types) with every type that follows from it, node by node.

    Nodes of other domains, or whose inputs are not all known, give none; neither do bodies of branches and loops, whose
    types onnx itself infers or nobody does.
    """
    import onnx

    numbers: dict[str, int] = dict(onnx.TensorProto.DataType.items())
    names = {number: name for name, number in numbers.items()}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    types = dict(known)
    for node in model.graph.node:
        wanted = [name for name in node.output if name and name not in types]
        given = [name for name in node.input if name]
        if not wanted or not all(name in types for name in given):
            continue
        inputs = {name: onnx.helper.make_tensor_type_proto(numbers[types[name]], None) for name in given}
        found = _infer(node, inputs, opsets)
        for name in wanted:
            kind = names[found[name].tensor_type.elem_type] if name in found else "UNDEFINED"
            if kind != "UNDEFINED":
                types[name] = kind
    return types


def _infer(node: Any, inputs: Mapping[str, Any], opsets: Mapping[str, int]) -> Mapping[str, Any]:
    """The types of a node's outputs, without shapes; nothing where onnx knows no such operator or cannot tell."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 0), node.domain)
        opset_imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        return onnx.shape_inference.infer_node_outputs(schema, node, dict(inputs), opset_imports=opset_imports)
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        return {}
