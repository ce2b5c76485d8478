"""Torch modules to ONNX opset 23 with named dynamic axes, and their weights to external-data files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from celebctl_export.graphs import GraphSpec, Size
from celebctl_runtime.errors import IntegrityError, SetupError

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 23
# Smaller constants stay in the graph file: shapes and scalars, which graph optimizers read.
_INLINE_BYTES = 256
# Large tensors start on a page, so that a runtime can map them into memory.
_PAGE_BYTES, _LINE_BYTES = 4096, 64

# Size of the traced example, height and width in blocks. No axis is 1 or equals another one: torch.export would
# specialize it. Parity is measured at other sizes.
_MAX_TOKENS = 77 * 64
_EXAMPLE = Size(batch=3, h=5, w=7, windows=2)


def to_onnx(spec: GraphSpec, block: int, max_blocks: int = 1024) -> ir.Model:
    """Export one graph whose latent height and width are up to ``max_blocks`` times ``block``.

    Raises IntegrityError when the module cannot be exported with its axes dynamic; none is ever fixed silently.
    """
    dims = _dynamic_dims(block, max_blocks, spec.pixels)
    shapes = {
        name: {axis: dims[dim] for axis, dim in enumerate(axes) if isinstance(dim, str)}
        for name, axes in spec.inputs.items()
    }
    examples = spec.make_inputs(_EXAMPLE._replace(h=block * _EXAMPLE.h, w=block * _EXAMPLE.w))
    with torch.no_grad(), _quiet_exporter():
        try:
            # torch.onnx.export alone silently fixes an axis with a violated constraint (measured); torch.export raises.
            program: Any = torch.export.export(spec.module, (), examples, dynamic_shapes=shapes, strict=False)
            exported = cast(Any, torch.onnx).export(program, dynamo=True, opset_version=OPSET, verbose=False)
        except MemoryError as error:
            raise SetupError(f"not enough memory to export {spec.name}", "close other programs") from error
        except Exception as error:  # tracing runs third-party code, which may raise anything
            message = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise _unsupported(f"cannot export the {spec.name} graph: {message}") from error
    model = exported.model
    _name_axes(spec, model)
    _strip_traces(model)
    model.graph.name = spec.name
    return cast("ir.Model", model)


def _dynamic_dims(block: int, max_blocks: int, pixels: int) -> dict[str, Any]:
    # 31: with guidance the UNet's batch is twice as large, and from 64 on diffusers takes another (equivalent) branch,
    # which torch.export requires to be excluded. The graph itself has no such limit.
    dim = torch.export.Dim
    h, w = (dim(name, min=1, max=max_blocks) for name in ("h_blocks", "w_blocks"))
    return {
        "batch": dim("batch", min=1, max=31),
        "h": block * h,
        "w": block * w,
        "height": pixels * block * h,
        "width": pixels * block * w,
        "steps": dim("steps", min=1, max=1000),
        "guides": dim("guides", min=1, max=2),
        "tokens": dim("tokens", min=2, max=_MAX_TOKENS),
    }


def _unsupported(problem: str) -> IntegrityError:
    hint = "this model or version of torch is not supported: report it with the full traceback"
    return IntegrityError(problem, hint, reason="export_failed")


def _name_axes(spec: GraphSpec, model: Any) -> None:
    """Give inputs, outputs and axes the names of the spec. Raises IntegrityError when an axis became fixed."""
    import onnx_ir as ir

    symbols: dict[str, set[str]] = {}  # torch may use two symbols for one axis, but not one symbol for two axes
    ends = [*zip(spec.inputs.items(), model.graph.inputs, strict=True)]
    ends += zip(spec.outputs.items(), model.graph.outputs, strict=True)
    for (name, axes), value in ends:
        exported = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
        for expected, actual in zip(axes, exported, strict=True):
            if isinstance(expected, str) and isinstance(actual, str):
                symbols.setdefault(expected, set()).add(actual)
            elif expected != actual:
                raise _unsupported(f"{spec.name}: exported axes of {name} are {exported}, expected {list(axes)}")
        value.name, value.shape = name, ir.Shape(axes)
    if len(set[str]().union(*symbols.values())) != sum(map(len, symbols.values())):
        raise _unsupported(f"{spec.name}: independent axes were exported as one: {symbols}")


def _strip_traces(model: Any) -> None:
    """Remove the exporter's metadata (source paths, stack traces): nine tenths of the graph file.

    Inner shapes go too: they use axis names that were just replaced, and runtimes infer them.
    """
    ends = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in ends:
                value.shape, value.type = None, None


def save_graph(model: ir.Model, path: Path, data: Path) -> None:
    """Write a graph file, and its larger constants to the external-data file ``data`` beside it."""
    import onnx_ir as ir

    with data.open("wb") as file:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _INLINE_BYTES or isinstance(tensor, ir.ExternalTensor):
                continue
            raw = tensor.tobytes()
            alignment = _PAGE_BYTES if len(raw) >= _PAGE_BYTES else _LINE_BYTES
            file.write(b"\0" * (-file.tell() % alignment))
            shape = ir.Shape(tensor.numpy().shape)
            value.const_value = ir.ExternalTensor(
                data.name, file.tell(), len(raw), tensor.dtype, shape=shape, name=value.name or ""
            )
            file.write(raw)
    cast(Any, ir).save(model, path)


def move_table(model: ir.Model, name: str, path: Path, spare_rows: int) -> None:
    """Move the initializer ``name`` (V, D) to a file of its own as ``token_table``, followed by spare rows of zeros.

    Adding a person then writes two rows of that file and touches no graph.
    """
    import onnx_ir as ir

    value = model.graph.initializers.pop(name, None)
    tensor = value.const_value if value is not None else None
    if value is None or tensor is None:
        raise _unsupported(f"the exported text encoder has no initializer {name!r}")
    rows, width = tensor.numpy().shape
    row_bytes = tensor.nbytes // rows
    path.write_bytes(tensor.tobytes() + b"\0" * (spare_rows * row_bytes))
    shape = ir.Shape((rows + spare_rows, width))
    value.name, value.shape = "token_table", shape
    value.const_value = ir.ExternalTensor(
        path.name, 0, (rows + spare_rows) * row_bytes, tensor.dtype, shape=shape, name="token_table"
    )
    model.graph.initializers.add(value)


@contextmanager
def _quiet_exporter() -> Generator[None]:
    """Silence the exporter's warnings (missing torchvision, deprecated internals)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
