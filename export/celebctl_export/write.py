"""The files of a bundle except its manifest: graphs, weights, token tables, the tokenizer."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from celebctl_export.graphs import GraphIO, GraphSpec, graph_makers
from celebctl_export.ort_variants import OrtVariant, discard_variant, write_variant
from celebctl_export.parity import (
    TOLERANCES,
    Parity,
    ReferenceOutputs,
    check_parity,
    measure_parity,
    parity_sizes,
    reference_outputs,
)
from celebctl_export.to_onnx import move_table, save_graph, to_onnx
from celebctl_runtime.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from celebctl_models.checkpoints.diffusion import DiffusionParts

TABLE_FILES = {"text_encoder": "token_table.bin", "text_encoder_2": "token_table_2.bin"}
TOKENIZER_FILE = "tokenizer.json"
AVERAGE_FILE = "average.bin"
DATA_FILES = {
    "text_encoder": "text_encoder.data",
    "text_encoder_2": "text_encoder_2.data",
    "step": "unet.data",
    "vae_decoder": "vae_decoder.data",
    "vae_encoder": "vae_encoder.data",
}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_log = logging.getLogger(__name__)


def write_graphs(
    parts: DiffusionParts, folder: Path, spare_rows: int, dtype: str, progress: ProgressCallback
) -> tuple[list[GraphIO], list[OrtVariant], list[Parity]]:
    """Export, write and measure every graph and its variant for ONNX Runtime; write the tokenizer.

    One graph after the other, and one copy of it at a time beside the caller's: traced, then in float32 as the
    reference, then in ONNX Runtime. XL leaves no room for two.
    Raises IntegrityError for a graph that cannot be exported or exceeds its tolerance.
    """
    block = parts.size_multiple // parts.vae_factor
    h, w = (side // parts.vae_factor for side in parts.native_size)
    sizes, tolerance = parity_sizes((h, w), block), TOLERANCES[dtype]
    graphs: list[GraphIO] = []
    parity: list[Parity] = []
    variants: list[OrtVariant] = []
    makers = graph_makers(parts)
    for number, make in enumerate(makers):
        spec = make(_DTYPES[dtype])
        graph = spec.io
        progress(Progress(f"exporting {graph.name}", number, len(makers)))
        _write_graph(spec, folder, parts, spare_rows)
        del spec
        progress(Progress(f"measuring {graph.name}", number, len(makers)))
        expected = reference_outputs(make(torch.float32), sizes)
        parity += measure_parity(expected, folder / f"{graph.name}.onnx", tolerance)
        check_parity(parity)
        variant, rows = _write_variant(folder, expected, tolerance)
        graphs.append(graph)
        variants += [variant] if variant else []
        parity += rows
    write_tokenizer(parts.tokenizers[0], folder / TOKENIZER_FILE)
    return graphs, variants, parity


def _write_graph(spec: GraphSpec, folder: Path, parts: DiffusionParts, spare_rows: int) -> None:
    model = to_onnx(spec, parts.size_multiple // parts.vae_factor, parts.max_side // parts.size_multiple)
    if spec.name in TABLE_FILES:
        move_table(model, _table_name(spec), folder / TABLE_FILES[spec.name], spare_rows)
    save_graph(model, folder / f"{spec.name}.onnx", folder / DATA_FILES[spec.name])


def _write_variant(
    folder: Path, expected: ReferenceOutputs, tolerance: float
) -> tuple[OrtVariant | None, list[Parity]]:
    """Write and measure a graph's variant for ONNX Runtime; nothing where there is none, or none that is correct.

    A missing variant costs only speed: the graph itself was measured already.
    """
    try:
        variant = write_variant(folder, expected.graph)
        if variant is None:
            return None, []
        reader = folder / variant.reader if variant.reader else None
        rows = measure_parity(expected, folder / variant.file, tolerance, reader)
        check_parity(rows)
    except Exception as error:  # third-party graph tools and engine may raise anything
        message = str(error).replace(f"{folder}{os.sep}", "")[:200]  # a long path would hide the reason
        _log.warning("no ONNX Runtime variant of %s: %s", expected.graph, message)
        discard_variant(folder, expected.graph)
        return None, []
    return variant, rows


def write_average(embeddings: Sequence[NDArray[np.float32]], folder: Path) -> str:
    """Write the average celebrity's embeddings, (2, D) of each text encoder, raw; returns the file's name."""
    (folder / AVERAGE_FILE).write_bytes(b"".join(array.astype("<f4").tobytes() for array in embeddings))
    return AVERAGE_FILE


def _table_name(spec: GraphSpec) -> str:
    """The parameter name of the token table in a text encoder graph."""
    table: Any = cast(Any, spec.module).text_encoder.get_input_embeddings().weight
    return next(name for name, weight in spec.module.named_parameters() if weight is table)


def write_tokenizer(tokenizer: Any, path: Path) -> None:
    """Write the tokenizer in the format of `tokenizers`, without padding and truncation set by earlier use."""
    from tokenizers import Tokenizer

    copy = cast(Any, Tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    copy.save(str(path), pretty=False)
