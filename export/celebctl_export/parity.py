"""Exported graphs against torch: the largest error of each, at sizes that were not traced."""

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

# Largest error allowed, in units of the largest value of the reference (at least 1). Float32 graphs measure about
# 3e-6; float16 ones 1e-3, which is half of what torch's own float16 is off. The reference has the weights as the
# caller loaded them: `celebctl export --dtype fp16` reads them in float16, so that rounding is not part of the measure.
FLOORS = {"fp32": 1e-4, "fp16": 2e-2}
# Latents larger than this (per side) tell nothing more about a graph, and cost torch minutes for real models.
_LARGEST_LATENT = 32


@dataclass(frozen=True)
class Parity:
    """Largest absolute error of one output of one graph against a reference. `shape` is that of the output."""

    graph: str
    output: str
    shape: tuple[int, ...]
    max_abs_error: float
    largest_value: float
    floor: float

    @property
    def passed(self) -> bool:
        """Whether the error is at most `floor` times the largest value (at least 1). NaN does not pass."""
        return self.max_abs_error <= self.floor * max(1.0, self.largest_value)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}


def sizes_to_measure(native: tuple[int, int], block: int) -> list[Size]:
    """One picture of the native size (in latent pixels), two oblong ones, one without guidance; none was traced."""
    from celebctl_export.graphs import Size

    h, w = (max(block, min(side, _LARGEST_LATENT) // block * block) for side in native)
    return [Size(1, h, w), Size(2, 3 * block, 4 * block), Size(1, 4 * block, 2 * block, guides=1)]


@dataclass(frozen=True)
class ReferenceOutputs:
    """What torch makes of seeded inputs: a pair of inputs and outputs, both by name, for each size."""

    graph: str
    cases: Sequence[tuple[Arrays, Arrays]]


def reference_outputs(reference: GraphSpec, sizes: Iterable[Size]) -> ReferenceOutputs:
    """Run a graph's torch module. What it gives is all that measuring needs, so the module may go."""
    import torch

    cases: list[tuple[Arrays, Arrays]] = []
    for size in sizes:
        inputs = reference.make_inputs(size)
        with torch.no_grad():
            made = reference.module(**inputs)
        outputs = (made,) if isinstance(made, torch.Tensor) else made
        named = {name: tensor.numpy() for name, tensor in zip(reference.outputs, outputs, strict=True)}
        cases.append(({name: tensor.numpy() for name, tensor in inputs.items()}, named))
    return ReferenceOutputs(reference.name, cases)


def measure(expected: ReferenceOutputs, file: Path, floor: float, reader: Path | None = None) -> list[Parity]:
    """Run one exported graph in plain ONNX Runtime (CPU) on the inputs that torch had.

    ``reader``: a graph of the texts whose outputs are further inputs of this one.
    """
    session, before = _session(file), _session(reader) if reader is not None else None
    found: list[Parity] = []
    graph = expected.graph if file.stem == expected.graph else f"{expected.graph} in ONNX Runtime's form"
    for inputs, wanted in expected.cases:
        feeds = dict(inputs)
        if before is not None:
            names = [output.name for output in before.get_outputs()]
            feeds |= zip(names, before.run(None, {"context": feeds["context"]}), strict=True)
        outputs = session.run([*wanted], feeds)
        found += [compare(graph, name, ours, wanted[name], floor) for name, ours in zip(wanted, outputs, strict=True)]
    return found


def check(measured: Iterable[Parity]) -> None:
    """Raise IntegrityError for the first measurement above its floor."""
    for parity in measured:
        if not parity.passed:
            raise IntegrityError(
                f"the exported {parity.graph} graph is off by {parity.max_abs_error:.2g} at {list(parity.shape)}"
                f" (allowed: {parity.floor:g} of {parity.largest_value:.2g})",
                "try --dtype fp32; if that fails too, this model or version of torch is not supported",
            )


def compare(graph: str, output: str, ours: NDArray[Any], theirs: NDArray[Any], floor: float) -> Parity:
    """The difference of two arrays, computed in float64. Raises IntegrityError for different shapes."""
    if ours.shape != theirs.shape:
        raise IntegrityError(f"the {graph} graph returns {ours.shape} where the reference returns {theirs.shape}")
    wanted = theirs.astype(np.float64)
    error = float(np.abs(ours.astype(np.float64) - wanted).max())
    return Parity(graph, output, theirs.shape, error, float(np.abs(wanted).max()), floor)


def _session(file: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise SetupError("measuring an export needs ONNX Runtime", 'pip install "celebctl[cpu]"') from error
    engine = cast(Any, onnxruntime)
    options = engine.SessionOptions()
    options.log_severity_level = 4  # a graph that does not load raises
    return engine.InferenceSession(str(file), options, providers=["CPUExecutionProvider"], enable_fallback=0)
