"""Variants of a bundle's graphs optimized for ONNX Runtime, on the same weight files; see ort_optimizations.py."""

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
    """An optimized graph.

    Attributes:
        graph: Name of the graph it replaces.
        file: Its file.
        reader: File of the graph that projects the context, "" if there is none.
        projections: Outputs of ``reader`` and inputs of ``file``.
    """

    graph: str
    file: str
    reader: str = ""
    projections: Mapping[str, TensorInfo] = field(default_factory=dict[str, TensorInfo])


def write_variant(folder: Path, graph: str) -> OrtVariant | None:
    """Write the variant of the graph file ``graph``.onnx; None where there is nothing to optimize."""
    model: ir.Model = cast(Any, ir).load(folder / f"{graph}.onnx")
    deduped = dedupe_guidance(model) if graph == "step" else 0
    reader = hoist_text_projections(model, READER) if graph == "step" else None
    if not (normalize_groups(model) or deduped or reader):
        return None
    file = _FILE.format(graph)
    cast(Any, ir).save(model, folder / file)
    if reader is None:
        return OrtVariant(graph, file)
    cast(Any, ir).save(reader, folder / _FILE.format(READER))
    projections = {str(value.name): _tensor_info(value) for value in reader.graph.outputs}
    return OrtVariant(graph, file, _FILE.format(READER), projections)


def discard_variant(folder: Path, graph: str) -> None:
    """Remove the files of :func:`write_variant`, complete or not."""
    for name in (graph, READER) if graph == "step" else (graph,):
        (folder / _FILE.format(name)).unlink(missing_ok=True)


def variant_infos(graphs: Mapping[str, GraphInfo], variants: Iterable[OrtVariant]) -> dict[str, GraphInfo]:
    """The manifest's entries for variants, by the names of the graphs that they replace."""
    infos: dict[str, GraphInfo] = {}
    for variant in variants:
        for name, info in graphs.items():
            if info.file == f"{variant.graph}.onnx":
                infos[name] = replace(info, file=variant.file, inputs={**info.inputs, **variant.projections})
        if variant.reader:
            step = graphs[variant.graph]
            context = step.inputs["context"]
            inputs = {"context": replace(context, shape=("guides", *context.shape[1:]))}
            infos[READER] = GraphInfo(variant.reader, step.data, inputs, variant.projections)
    return infos


def _tensor_info(value: ir.Value) -> TensorInfo:
    """Dtype and axes; dynamic ones, first of all the batch, are named rows, rows1 and so on."""
    if value.shape is None or value.dtype is None:
        raise AssertionError(f"shape inference failed for {value.name}")
    axes = tuple(axis if isinstance(axis, int) else f"rows{number or ''}" for number, axis in enumerate(value.shape))
    return TensorInfo(str(value.dtype.numpy()), axes)
