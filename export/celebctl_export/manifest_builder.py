"""The manifest of a freshly written bundle: facts of the model and of its graphs, in the runtime's own words."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from celebctl_export.graphs import encoder_graph
from celebctl_export.ort_variants import variant_facts
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
    measured: Sequence[Parity],
    *,
    spare_rows: int,
    dtype: str,
) -> Manifest:
    """Everything the runtime needs to know. People and hashes of files are filled in by the bundle itself."""
    card, tokenizer = parts.card, parts.tokenizers[0]
    facts = _graphs(graphs)
    return Manifest(
        model=ModelInfo(card.name, card.family, card.source, parts.table_hash),
        size=SizeInfo(
            parts.native_size, parts.size_multiple, parts.vae_factor, parts.latent_channels, card.display_scale
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
        graphs=facts,
        ort_graphs=variant_facts(facts, variants),
        token_tables=tuple(_table_facts(parts, number, spare_rows) for number in range(len(parts.text_encoders))),
        created_by=_created_by(),
        scaling_factor=parts.scaling_factor,
        parity=tuple(parity.to_json() for parity in measured),
        guidance_is_embedded=parts.guidance_is_embedded,
        zero_empty_prompt=parts.zero_empty_prompt,
    )


def _table_facts(parts: DiffusionParts, number: int, spare_rows: int) -> TokenTable:
    rows, width = parts.token_table(number).shape
    return TokenTable(TABLE_FILES[encoder_graph(number)], rows + spare_rows, width, "float32", rows, spare_rows)


def _graphs(specs: Sequence[GraphIO]) -> dict[str, GraphInfo]:
    """The graphs by the names the runtime calls them: the step has two, for one file runs with and without guidance."""
    graphs = {spec.name: _graph_facts(spec) for spec in specs}
    step = graphs["step"]
    guided = {name: facts for name, facts in step.inputs.items() if facts.shape[0] == "guides"}
    for name, guides in (("step", 2), ("step_nocfg", 1)):
        fixed = {key: replace(facts, shape=(guides, *facts.shape[1:])) for key, facts in guided.items()}
        graphs[name] = replace(step, inputs={**step.inputs, **fixed})
    return graphs


def _graph_facts(spec: GraphIO) -> GraphInfo:
    data = (DATA_FILES[spec.name],)
    if spec.name in TABLE_FILES:
        data = (*data, TABLE_FILES[spec.name])
    return GraphInfo(f"{spec.name}.onnx", data, _tensor_facts(spec.inputs), _tensor_facts(spec.outputs))


def _tensor_facts(tensors: Mapping[str, Axes]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo("int64" if name in _INTEGERS else "float32", tuple(axes)) for name, axes in tensors.items()
    }


def _created_by() -> dict[str, str]:
    found = {"celebctl": __version__, "python": platform.python_version()}
    for tool in _TOOLS:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return found
