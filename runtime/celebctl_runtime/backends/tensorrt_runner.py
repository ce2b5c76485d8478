"""TensorRT: loading it, running engines at fixed shapes, and N steps as one CUDA graph.

Only what TensorRT 10.16 and 11.4 both have is used. In this module and in celebctl_export.to_tensorrt the library is
called ``trt`` and its objects are named by their kind (engine, context, builder, ...): the test that looks up every
name in the genuine bindings of both versions finds them so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityError, SetupError

from .cuda_memory import Cuda, DeviceBuffer, Stream, aligned, out_of_memory
from .engines import Machine, Shape

OLDEST, TOO_NEW = (10, 12), (12, 0)  # strongly typed networks are the rule from 10.12 on
# Two buffers that take turns: what one step writes, the next reads.
_TURNS = (("state", "next_state"), ("step", "next_step"))
_NO_MEMORY = ("out of memory", "outofmemory", "insufficient memory")


class TensorRt:
    """The library and its complaints, which it writes to a log instead of raising them."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.version = str(trt.__version__)
        self.complaints: list[str] = []
        self.log = _make_log(trt, self.complaints)

    @classmethod
    def load(cls) -> TensorRt:
        """Raises SetupError when TensorRT is missing, broken, too old or too new."""
        hint = "pip install 'celebctl[trt]', or use --device cpu"
        try:
            trt: Any = import_module("tensorrt")
        except ImportError as failure:
            if failure.name == "tensorrt":
                raise SetupError("TensorRT is not installed", hint) from failure
            raise SetupError(f"TensorRT cannot be loaded: {failure}", hint) from failure
        numbers = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
        if not OLDEST <= numbers < TOO_NEW:
            raise SetupError(
                f"TensorRT {trt.__version__} is installed; 10.12 to 11.x are supported", "pip install 'celebctl[trt]'"
            )
        return cls(trt)

    def deserialize(self, plan: bytes, name: str) -> Any:
        """A plan as an ICudaEngine. Loading can run code in the plan: the caller answers for where it comes from."""
        trt = self.trt
        self.complaints.clear()
        try:
            runtime = trt.Runtime(self.log)
        except TypeError as error:  # what the bindings make of a library that refuses to start
            raise self.problem("TensorRT cannot start") from error
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.problem(f"TensorRT cannot load {name}")
        return engine

    def problem(self, what: str) -> SetupError:
        """An error with TensorRT's last complaint as the reason."""
        reason = self.complaints[-1] if self.complaints else ""
        if any(word in reason.lower() for word in _NO_MEMORY):
            return out_of_memory()
        return SetupError(
            f"{what}: {reason[:300]}" if reason else what,
            "look with nvidia-smi, build again with celebctl export --trt, or use --device cpu",
        )


def _make_log(trt: Any, complaints: list[str]) -> Any:
    """A logger that keeps errors and drops the rest: stderr is for our own messages."""
    severe = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in severe:
                complaints.append(msg)

    return Log()


@dataclass(frozen=True)
class Device:
    """TensorRT and CUDA on this process's current device."""

    library: TensorRt
    cuda: Cuda

    @classmethod
    def load(cls) -> Device:
        """Raises SetupError when TensorRT, cuda-python, the driver or a GPU is missing."""
        return cls(TensorRt.load(), Cuda.load())

    @property
    def machine(self) -> Machine:
        """What engines built here are bound to."""
        gpu = self.cuda.gpu()
        return Machine(self.library.version, gpu.name, gpu.compute_capability)


class Session:
    """One profile of an engine at fixed input shapes: an execution context and a buffer for every input and output."""

    def __init__(
        self,
        device: Device,
        stream: Stream,
        engine: Any,
        profile: int,
        shapes: Mapping[str, Shape],
        shared: Mapping[str, DeviceBuffer] | None = None,
    ) -> None:
        """``shared``: inputs that lie in buffers of the caller's. Raises SetupError when the device is full."""
        self.device, self.stream = device, stream
        library = device.library
        self._engine = engine  # a context must not outlive its engine
        library.complaints.clear()
        context = engine.create_execution_context()
        if context is None:
            raise library.problem("TensorRT cannot make room for an engine")
        self.context = context
        self._done(context.set_optimization_profile_async(profile, stream.handle), "choose a profile")
        stream.synchronize()
        self.dtypes = {name: np.dtype(library.trt.nptype(engine.get_tensor_dtype(name))) for name in _names(engine)}
        self.buffers: dict[str, DeviceBuffer] = dict(shared or {})
        self.shapes = self._set_shapes(shapes)
        self.outputs = [name for name in self.shapes if name not in shapes]
        for name, shape in self.shapes.items():
            if name not in self.buffers:
                self.buffers[name] = DeviceBuffer(device.cuda, math.prod(shape) * self.dtypes[name].itemsize)
            self.bind(name, self.buffers[name].address)

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Give the inputs their shapes; returns those of inputs and outputs."""
        engine, context, trt = self._engine, self.context, self.device.library.trt
        names = _names(engine)
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if set(inputs) != set(shapes):
            raise IntegrityError(
                f"an engine takes {sorted(inputs)}, not {sorted(shapes)}", "celebctl export --trt builds it anew"
            )
        for name in inputs:
            self._done(context.set_input_shape(name, shapes[name]), f"take {name} of shape {shapes[name]}")
        return {name: tuple(context.get_tensor_shape(name)) for name in names}

    def bind(self, name: str, address: int) -> None:
        """Let an input or output lie somewhere else on the device from the next run on."""
        self._done(self.context.set_tensor_address(name, address), f"bind {name}")

    def upload(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Copy inputs into their buffers. What is returned must live until the stream has been waited for."""
        arrays: list[NDArray[Any]] = []
        for name, array in feeds.items():
            arrays.append(np.ascontiguousarray(array, self.dtypes[name]))
            self.stream.upload(arrays[-1], self.buffers[name].address)
        return arrays

    def enqueue(self) -> None:
        """Put one run into the stream."""
        self._done(self.context.execute_async_v3(self.stream.handle), "run an engine")

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Inputs to outputs, once."""
        kept = self.upload(feeds)
        self.enqueue()
        results = {name: self.read(self.buffers[name].address, name) for name in self.outputs}
        del kept
        return results

    def read(self, address: int, name: str) -> NDArray[np.float32]:
        """Wait, and return what lies at ``address`` in shape and dtype of the tensor ``name``."""
        return self.stream.download(address, self.shapes[name], self.dtypes[name]).astype(np.float32, copy=False)

    def _done(self, well: bool, what: str) -> None:
        if not well:
            raise self.device.library.problem(f"TensorRT failed to {what}")


class DenoisingLoop:
    """All N steps of a run as one CUDA graph over a session of the step graph: one launch, no host work in between.

    Step k reads the buffer that step k - 1 wrote, so states and step counters take turns in two buffers each, and
    nothing is copied between steps. The graph fixes shapes, addresses and N; all numbers are uploaded before a launch.
    """

    def __init__(self, session: Session, steps: int, draws_noise: bool) -> None:
        """``draws_noise``: each step has noise of its own, (B, 4, h, w); otherwise all share one block."""
        self._session, self._steps = session, steps
        self._stride = aligned(session.buffers["noise"].nbytes) if draws_noise else 0
        self._noise = DeviceBuffer(session.device.cuda, max(self._stride * steps, session.buffers["noise"].nbytes))
        self._turns = {ends: tuple(session.buffers[name].address for name in ends) for ends in _TURNS}
        # The first run of a context after its shapes changed settles what it postponed, which must not be captured.
        session.upload({"step": np.zeros(1, np.int64)})
        session.enqueue()
        session.stream.synchronize()
        self._graph = session.stream.capture(self._enqueue)

    def run(
        self, feeds: Mapping[str, NDArray[Any]], noise: Callable[[int], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """From the first state to the last, (2, B, 4, h, w). ``feeds``: every input but noise and step.

        ``noise(k)``: the noise of step k; asked once for k = 0 when steps share it.
        """
        session = self._session
        kept = session.upload({**feeds, "step": np.zeros(1, np.int64)})
        for k in range(self._steps if self._stride else 1):
            kept.append(np.ascontiguousarray(noise(k), session.dtypes["noise"]))
            session.stream.upload(kept[-1], self._noise.address + k * self._stride)
        self._graph.launch(session.stream)
        last = session.read(self._turns[_TURNS[0]][self._steps % 2], "next_state")
        del kept
        return last

    def _enqueue(self) -> None:
        session = self._session
        for k in range(self._steps):
            for (source, target), addresses in self._turns.items():
                session.bind(source, addresses[k % 2])
                session.bind(target, addresses[(k + 1) % 2])
            session.bind("noise", self._noise.address + k * self._stride)
            session.enqueue()


def _names(engine: Any) -> list[str]:
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
