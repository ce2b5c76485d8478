"""Numerical parity of exported graphs with torch, at sizes that were not traced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityError, SetupError

if TYPE_CHECKING:
    from celebctl_export.graphs import GraphSpec, Size

Arrays = dict[str, NDArray[Any]]

# Largest allowed error, relative to the largest value of the reference (at least 1). Measured: about 3e-6 in float32,
# 1e-3 in float16, half of the error of torch's own float16. The reference has the caller's weights: when they were
# loaded in float16, their rounding is not part of the error.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}
_MAX_LATENT = 32  # per side; larger ones reveal nothing more and take torch minutes


@dataclass(frozen=True)
class Parity:
    """The error of one output of one graph.

    Attributes:
        graph: Name of the graph; ".ort" is appended for the variant for ONNX Runtime.
        output: Name of the output.
        shape: Of the output.
        max_abs_error: Largest absolute difference from the reference.
        largest_value: Largest absolute value of the reference.
        floor: The tolerance: largest allowed error, relative to ``largest_value`` (at least 1).
    """

    graph: str
    output: str
    shape: tuple[int, ...]
    max_abs_error: float
    largest_value: float
    floor: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.max_abs_error <= self.floor * max(1.0, self.largest_value)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON data, for the manifest."""
        return {**asdict(self), "shape": list(self.shape)}


def parity_sizes(native: tuple[int, int], block: int) -> list[Size]:
    """One image of the native size (latent pixels), two oblong ones, one without guidance; none was traced.

    The two oblong ones have a prompt of three windows.
    """
    from celebctl_export.graphs import Size

    h, w = (max(block, min(side, _MAX_LATENT) // block * block) for side in native)
    return [Size(1, h, w), Size(2, 3 * block, 4 * block, windows=3), Size(1, 4 * block, 2 * block, guides=1)]


@dataclass(frozen=True)
class ReferenceOutputs:
    """Torch's outputs for seeded inputs: (inputs, outputs) by name, for each size."""

    graph: str
    cases: Sequence[tuple[Arrays, Arrays]]


def reference_outputs(spec: GraphSpec, sizes: Iterable[Size]) -> ReferenceOutputs:
    """Run a graph's torch module. Measuring needs only the results, so the module can be freed."""
    import torch

    cases: list[tuple[Arrays, Arrays]] = []
    for size in sizes:
        inputs = spec.make_inputs(size)
        with torch.no_grad():
            result = spec.module(**inputs)
        tensors = (result,) if isinstance(result, torch.Tensor) else result
        outputs = {name: tensor.numpy() for name, tensor in zip(spec.outputs, tensors, strict=True)}
        cases.append(({name: tensor.numpy() for name, tensor in inputs.items()}, outputs))
    return ReferenceOutputs(spec.name, cases)


def measure_parity(
    expected: ReferenceOutputs, file: Path, tolerance: float, reader: Path | None = None
) -> list[Parity]:
    """Run an exported graph in ONNX Runtime (CPU) on the inputs of the reference.

    ``reader``: a graph of the context whose outputs are further inputs of this one.
    """
    session, reader_session = _session(file), _session(reader) if reader is not None else None
    rows: list[Parity] = []
    graph = file.name.removesuffix(".onnx")
    for inputs, reference in expected.cases:
        feeds = dict(inputs)
        if reader_session is not None:
            names = [output.name for output in reader_session.get_outputs()]
            feeds |= zip(names, reader_session.run(None, {"context": feeds["context"]}), strict=True)
        outputs = zip(reference, session.run([*reference], feeds), strict=True)
        rows += [compare(graph, name, actual, reference[name], tolerance) for name, actual in outputs]
    return rows


def check_parity(rows: Iterable[Parity]) -> None:
    """Raise IntegrityError for the first row above its tolerance."""
    for row in rows:
        if not row.passed:
            raise IntegrityError(
                f"the exported {row.graph} graph differs from torch by {row.max_abs_error:.2g} at {list(row.shape)}"
                f" (allowed: {row.floor:g} of {row.largest_value:.2g})",
                "try dtype='fp32'; if that fails too, this model or version of torch is not supported",
                reason="parity",
                graph=row.graph,
            )


def compare(graph: str, output: str, actual: NDArray[Any], expected: NDArray[Any], tolerance: float) -> Parity:
    """The difference of two arrays, in float64. Raises IntegrityError for different shapes."""
    if actual.shape != expected.shape:
        raise IntegrityError(f"the {graph} graph returns shape {actual.shape}, its reference {expected.shape}")
    reference = expected.astype(np.float64)
    error = float(np.abs(actual.astype(np.float64) - reference).max())
    return Parity(graph, output, expected.shape, error, float(np.abs(reference).max()), tolerance)


def _session(file: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise SetupError("measuring an export needs ONNX Runtime", 'pip install "celebctl[cpu]"') from error
    ort = cast(Any, onnxruntime)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # failures raise
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"], enable_fallback=0)
