"""All steps of a run in ONNX Runtime with nothing moved between them: inputs, outputs and states stay where they lie.

On CUDA that is the device, and a step that ran once is replayed as one CUDA graph, for which addresses must not change.
So two states (and step counters) take turns: even steps read the first and write the second, odd steps the other way
round, each with a binding, and a captured graph, of its own. The same code runs on the CPU, where it saves allocations.
What this module does not know: samplers, texts, bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]
_TURNS = (("state", "next_state"), ("step", "next_step"))


class BoundSteps:
    """The step graph at fixed shapes."""

    def __init__(
        self, ort: Any, session: Any, device: str, feeds: Feeds, graph_ids: tuple[int, int] | None = None
    ) -> None:
        """``feeds``: every input, in its shape and dtype. ``graph_ids``: what to capture even and odd steps as."""
        self._session = session
        self._values = {name: _value(ort, array, device) for name, array in feeds.items()}
        there = {source: self._values[source] for source, _ in _TURNS}
        back = {source: _value(ort, feeds[source], device) for source, _ in _TURNS}
        self._states = (there["state"], back["state"])
        self._bindings = (self._bind(there, back), self._bind(back, there))
        self._options = tuple(_run_options(ort, number) for number in graph_ids or (None, None))

    def run(
        self,
        feeds: Feeds,
        steps: int,
        noise: Callable[[int], NDArray[np.float32]] | None,
        report: Callable[[int, int], None],
    ) -> NDArray[np.float32]:
        """From the first state in ``feeds`` to the last, (2, B, 4, h, w). ``noise(k)``: of step k, if steps draw any.

        ``report(done, steps)`` is called after every step.
        """
        for name, array in feeds.items():
            self._values[name].update_inplace(array)
        for k in range(steps):
            if noise is not None and k:
                self._values["noise"].update_inplace(np.ascontiguousarray(noise(k), feeds["noise"].dtype))
            self._session.run_with_iobinding(self._bindings[k % 2], self._options[k % 2])
            report(k + 1, steps)
        return np.array(self._states[steps % 2].numpy(), np.float32)  # a copy: the buffer is used again

    def _bind(self, sources: Mapping[str, Any], targets: Mapping[str, Any]) -> Any:
        binding = self._session.io_binding()
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, sources.get(name, value))
        for source, target in _TURNS:
            binding.bind_ortvalue_output(target, targets[source])
        return binding


def _value(ort: Any, array: NDArray[Any], device: str) -> Any:
    """A tensor of ours on the device. On the CPU ONNX Runtime would keep the array it is given, so it gets a copy."""
    return ort.OrtValue.ortvalue_from_numpy(array.copy(), device, 0)


def _run_options(ort: Any, graph_id: int | None) -> Any:
    if graph_id is None:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
