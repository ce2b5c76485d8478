"""Variants of a bundle's graphs for ONNX Runtime, beside the graphs and on the same weight files; see for_ort.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

from celebctl_export.ort_optimizations import dedupe_guidance, hoist_text_projections, normalize_groups
from celebctl_runtime.bundle.manifest import GraphInfo, TensorInfo

READER = "reader"
_FILE = "{}.ort.onnx"


@dataclass(frozen=True)
class OrtVariant:
    """One graph in ONNX Runtime's form: its file, and for a step the file of its texts' graph and what that gives."""

    graph: str
    file: str
    reader: str = ""
    memory: Mapping[str, TensorInfo] = field(default_factory=dict[str, TensorInfo])


def write_variant(folder: Path, graph: str) -> OrtVariant | None:
    """Write the variant of the graph file ``graph``.onnx; None where there is nothing to gain."""
    model: ir.Model = cast(Any, ir).load(folder / f"{graph}.onnx")
    shared = dedupe_guidance(model) if graph == "step" else 0
    reader = hoist_text_projections(model, READER) if graph == "step" else None
    if not (normalize_groups(model) or shared or reader):
        return None
    file = _FILE.format(graph)
    cast(Any, ir).save(model, folder / file)
    if reader is None:
        return OrtVariant(graph, file)
    cast(Any, ir).save(reader, folder / _FILE.format(READER))
    return OrtVariant(graph, file, _FILE.format(READER), {str(v.name): _tensor_facts(v) for v in reader.graph.outputs})


def discard_variant(folder: Path, graph: str) -> None:
    """Remove what :func:`write_variant` wrote, or began to write."""
    for name in (graph, READER) if graph == "step" else (graph,):
        (folder / _FILE.format(name)).unlink(missing_ok=True)


def variant_facts(graphs: Mapping[str, GraphInfo], variants: Iterable[OrtVariant]) -> dict[str, GraphInfo]:
    """What a manifest says about variants, by the names of the graphs that they stand for."""
    found: dict[str, GraphInfo] = {}
    for variant in variants:
        for name, facts in graphs.items():
            if facts.file == f"{variant.graph}.onnx":
                found[name] = replace(facts, file=variant.file, inputs={**facts.inputs, **variant.memory})
        if variant.reader:
            step = graphs[variant.graph]
            context = step.inputs["context"]
            free = {"context": replace(context, shape=("guides", *context.shape[1:]))}
            found[READER] = GraphInfo(variant.reader, step.data, free, variant.memory)
    return found


def _tensor_facts(value: ir.Value) -> TensorInfo:
    """Rows of a batch in front; the rest is fixed."""
    if value.shape is None or value.dtype is None:
        raise AssertionError(f"nothing is known about {value.name}")
    sides = tuple(
        side if isinstance(side, int) else f"rows{'' if axis == 0 else axis}" for axis, side in enumerate(value.shape)
    )
    return TensorInfo(str(value.dtype.numpy()), sides)
