"""The files of a bundle, except its manifest: graphs, their weights, the token table, the tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from celebctl_export.graphs import GraphIO, GraphSpec, graph_makers
from celebctl_export.ort_variants import OrtVariant, discard_variant, write_variant
from celebctl_export.parity import FLOORS, Parity, ReferenceOutputs, check, measure, reference_outputs, sizes_to_measure
from celebctl_export.to_onnx import move_table, save_graph, to_onnx

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


def write_graphs(
    parts: DiffusionParts, folder: Path, *, spare_rows: int, dtype: str, on_stage: Callable[[str], None]
) -> tuple[Sequence[GraphIO], list[OrtVariant], list[Parity]]:
    """Export, write and measure every graph of a bundle, and ONNX Runtime's form of it; the tokenizer goes along.

    One graph after the other, and of each first the copy that is traced, then the float32 one that it is measured
    against, then the graph itself in ONNX Runtime: never two of them beside the caller's own, for one of XL is large.
    Raises IntegrityError at the first graph that cannot be exported or is off by more than its floor.
    """
    block = parts.size_multiple // parts.vae_factor
    h, w = (side // parts.vae_factor for side in parts.native_size)
    sizes, floor = sizes_to_measure((h, w), block), FLOORS[dtype]
    ends: list[GraphIO] = []
    measured: list[Parity] = []
    variants: list[OrtVariant] = []
    for make in graph_makers(parts):
        ends.append(_write_graph(make(_DTYPES[dtype]), folder, block, spare_rows, on_stage))
        on_stage(f"measuring {ends[-1].name}")
        expected = reference_outputs(make(torch.float32), sizes)
        measured += measure(expected, folder / f"{expected.graph}.onnx", floor)
        check(measured)
        variant, rows = _measured_variant(folder, expected, floor, on_stage)
        variants += variant
        measured += rows
    write_tokenizer(parts.tokenizers[0], folder / TOKENIZER_FILE)
    return ends, variants, measured


def _write_graph(
    spec: GraphSpec, folder: Path, block: int, spare_rows: int, on_stage: Callable[[str], None]
) -> GraphIO:
    """Export one graph into its files."""
    on_stage(f"exporting {spec.name}")
    model = to_onnx(spec, block)
    if spec.name in TABLE_FILES:
        move_table(model, _table_name(spec), folder / TABLE_FILES[spec.name], spare_rows)
    save_graph(model, folder / f"{spec.name}.onnx", folder / DATA_FILES[spec.name])
    return spec.io


def _measured_variant(
    folder: Path, expected: ReferenceOutputs, floor: float, on_stage: Callable[[str], None]
) -> tuple[list[OrtVariant], list[Parity]]:
    """ONNX Runtime's form of a graph and how far it is off; nothing where there is none, or none that may be used.

    The graph itself is right by then, so that a form which is not only costs speed.
    """
    found: list[OrtVariant] = []
    try:
        found += filter(None, [write_variant(folder, expected.graph)])
        rows = [
            row
            for variant in found
            for row in measure(
                expected, folder / variant.file, floor, folder / variant.reader if variant.reader else None
            )
        ]
        check(rows)
    except Exception as error:  # other people's graph tools and engine: any exception can come out of them
        reason = str(error).replace(f"{folder}{os.sep}", "")[:200]  # a long path would leave no room for the reason
        on_stage(f"{expected.graph} stays as it is for ONNX Runtime: {reason}")
        discard_variant(folder, expected.graph)
        return [], []
    return found, rows


def write_average(rows: Sequence[NDArray[np.float32]], folder: Path) -> str:
    """The average celebrity's rows, (2, D) of each text encoder, raw and in order; returns the file's name."""
    (folder / AVERAGE_FILE).write_bytes(b"".join(array.astype("<f4").tobytes() for array in rows))
    return AVERAGE_FILE


def _table_name(spec: GraphSpec) -> str:
    """What the token table is called among the weights of the text encoder graph."""
    table: Any = cast(Any, spec.module).text_encoder.get_input_embeddings().weight
    return next(name for name, weight in spec.module.named_parameters() if weight is table)


def write_tokenizer(tokenizer: Any, path: Path) -> None:
    """The tokenizer in the one-file format of `tokenizers`, without the padding of whoever used it last."""
    from tokenizers import Tokenizer

    plain = cast(Any, Tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    plain.save(str(path), pretty=False)
