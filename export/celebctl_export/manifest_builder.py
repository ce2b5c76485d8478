"""The manifest of a new bundle: facts about the model and its graphs."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from celebctl_export.graphs import encoder_graph
from celebctl_export.ort_variants import variant_infos
from celebctl_export.write import DATA_FILES, TABLE_FILES, TOKENIZER_FILE
from celebctl_runtime import __version__
from celebctl_runtime.bundle.manifest import (
    Defaults,
    GraphInfo,
    Manifest,
    ModelInfo,
    SizeInfo,
    TensorInfo,
    TokenizerInfo,
    TokenTable,
)

if TYPE_CHECKING:
    from celebctl_export.graphs import Axes, GraphIO
    from celebctl_export.ort_variants import OrtVariant
    from celebctl_export.parity import Parity
    from celebctl_models.checkpoints.diffusion import DiffusionParts

_INTEGERS = {"input_ids", "step", "next_step"}
_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")


def build_manifest(
    parts: DiffusionParts,
    graphs: Sequence[GraphIO],
    variants: Sequence[OrtVariant],
    parity: Sequence[Parity],
    *,
    spare_rows: int,
    dtype: str,
) -> Manifest:
    """Everything the runtime needs, except people and file hashes, which the bundle adds."""
    card, tokenizer = parts.card, parts.tokenizers[0]
    infos = _graph_infos(graphs)
    return Manifest(
        model=ModelInfo(card.name, card.family, card.source, parts.table_hash, parts.context_layer, parts.vae_source),
        size=SizeInfo(
            parts.native_size,
            parts.size_multiple,
            parts.vae_factor,
            parts.latent_channels,
            card.display_scale,
            parts.max_side,
        ),
        dtype=dtype,
        scheduler=parts.scheduler_config,
        defaults=Defaults(
            int(card.defaults["steps"]),
            float(card.defaults["guidance"]),
            str(card.defaults["sampler"]),
            str(card.defaults["layout"]),
        ),
        tokenizer=TokenizerInfo(
            TOKENIZER_FILE,
            parts.max_length,
            bos=tokenizer.bos_token_id,
            eos=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
            more_pads=tuple(int(other.pad_token_id) for other in parts.tokenizers[1:]),
        ),
        graphs=infos,
        ort_graphs=variant_infos(infos, variants),
        token_tables=tuple(_token_table(parts, number, spare_rows) for number in range(len(parts.text_encoders))),
        created_by=_created_by(),
        scaling_factor=parts.scaling_factor,
        parity=tuple(row.to_json() for row in parity),
        guidance_is_embedded=parts.guidance_is_embedded,
        guidance_rescale=parts.guidance_rescale,
        zero_empty_prompt=parts.zero_empty_prompt,
        autoencoder=type(parts.vae).__name__,
        loras=parts.loras,
    )


def _token_table(parts: DiffusionParts, number: int, spare_rows: int) -> TokenTable:
    rows, width = parts.token_table(number).shape
    return TokenTable(TABLE_FILES[encoder_graph(number)], rows + spare_rows, width, "float32", rows, spare_rows)


def _graph_infos(graphs: Sequence[GraphIO]) -> dict[str, GraphInfo]:
    """The graphs by their names in the runtime: the step file has two, with and without guidance."""
    infos = {graph.name: _graph_info(graph) for graph in graphs}
    step = infos["step"]
    guided = {name: info for name, info in step.inputs.items() if info.shape[0] == "guides"}
    for name, guides in (("step", 2), ("step_nocfg", 1)):
        fixed = {key: replace(info, shape=(guides, *info.shape[1:])) for key, info in guided.items()}
        infos[name] = replace(step, inputs={**step.inputs, **fixed})
    return infos


def _graph_info(graph: GraphIO) -> GraphInfo:
    data = (DATA_FILES[graph.name],)
    if graph.name in TABLE_FILES:
        data = (*data, TABLE_FILES[graph.name])
    return GraphInfo(f"{graph.name}.onnx", data, _tensor_infos(graph.inputs), _tensor_infos(graph.outputs))


def _tensor_infos(tensors: Mapping[str, Axes]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo("int64" if name in _INTEGERS else "float32", tuple(axes)) for name, axes in tensors.items()
    }


def _created_by() -> dict[str, str]:
    versions = {"celebctl": __version__, "python": platform.python_version()}
    for tool in _TOOLS:
        with suppress(PackageNotFoundError):
            versions[tool] = version(tool)
    return versions
