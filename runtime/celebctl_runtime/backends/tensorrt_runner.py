"""TensorRT: import, engines at fixed shapes, and all sampler steps as one CUDA graph.

Only the API that TensorRT 10.16 and 11.4 share is used. In this module and in celebctl_export.to_tensorrt the module is
called ``trt`` and objects have the names of their kind (engine, context, builder, ...): test_tensorrt_bindings.py looks
up every name in the real bindings of both versions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityError, SetupError

from .base import STATE_LOOP, Array, Feeds, NoiseFunction
from .cuda_memory import GPU_0, Cuda, DeviceBuffer, Stream, aligned, out_of_memory
from .device import DeviceSpec
from .engines import Machine, Shape

OLDEST, TOO_NEW = (10, 16), (12, 0)  # Attention needs 10.14; 10.16 is the oldest whose bindings the tests check
OLDEST_GPU = (7, 5)  # compute capability, of TensorRT 10 and 11 (support matrix)
MAX_CAPTURED_STEPS = 100  # even; a CUDA graph of 50 steps of Stable Diffusion 1.5 has some 15,000 nodes already
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "insufficient memory")


class TensorRt:
    """The TensorRT module and its errors, which it logs instead of raising."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.version = str(trt.__version__)
        self.errors: list[str] = []
        self.log = _make_log(trt, self.errors)

    @classmethod
    def load(cls) -> TensorRt:
        """Raises SetupError when TensorRT is missing, broken or of an unsupported version."""
        try:
            trt: Any = import_module("tensorrt")
        except ImportError as failure:
            if failure.name == "tensorrt":
                raise _unavailable("TensorRT is not installed") from failure
            raise _unavailable(f"cannot load TensorRT: {failure}") from failure
        numbers = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
        if not OLDEST <= numbers < TOO_NEW:
            raise _unavailable(f"TensorRT {trt.__version__} is not supported; install 10.16 to 11.x")
        return cls(trt)

    def deserialize(self, plan: bytes, name: str) -> Any:
        """A serialized engine as an ICudaEngine. Loading can run code in the plan: its source must be trusted."""
        trt = self.trt
        self.errors.clear()
        try:
            runtime = trt.Runtime(self.log)
        except TypeError as error:  # what the bindings raise when the library does not start
            raise self.error("TensorRT cannot start") from error
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.error(f"TensorRT cannot load {name}")
        return engine

    def error(self, problem: str) -> SetupError:
        """An error with TensorRT's last message as the reason."""
        message = self.errors[-1] if self.errors else ""
        if any(text in message.lower() for text in _OUT_OF_MEMORY):
            return out_of_memory(message[:300])
        hint = "check nvidia-smi, build the engines again, or use device='cpu'"
        return SetupError(f"{problem}: {message[:300]}" if message else problem, hint, reason="tensorrt_failed")


def _unavailable(problem: str) -> SetupError:
    return SetupError(problem, "pip install 'celebctl[trt]', or use device='cpu'", reason="tensorrt_unavailable")


def _make_log(trt: Any, errors: list[str]) -> Any:
    """An ILogger that collects errors and drops the rest."""
    kept = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                errors.append(msg)

    return Log()


@dataclass(frozen=True)
class Device:
    """TensorRT and CUDA on one GPU."""

    library: TensorRt
    cuda: Cuda

    @classmethod
    def load(cls, device: DeviceSpec = GPU_0) -> Device:
        """The GPU of a device. Raises SetupError when TensorRT, cuda-python, the driver or a usable GPU is missing."""
        loaded = cls(TensorRt.load(), Cuda.load(device))
        gpu = loaded.cuda.gpu()
        if tuple(int(part) for part in gpu.compute_capability.split(".")) < OLDEST_GPU:
            problem = f"{gpu.name} is too old: its compute capability is {gpu.compute_capability}, TensorRT needs 7.5"
            raise SetupError(problem, "use device='cpu'", reason="gpu_too_old", gpu=gpu.name)
        return loaded

    @property
    def machine(self) -> Machine:
        """Where engines built here can run."""
        gpu = self.cuda.gpu()
        return Machine(self.library.version, gpu.name, gpu.compute_capability)


class Session:
    """An execution context of an engine: one profile, fixed input shapes, a buffer for every input and output."""

    def __init__(
        self,
        device: Device,
        stream: Stream,
        engine: Any,
        profile: int,
        shapes: Mapping[str, Shape],
        shared: Mapping[str, DeviceBuffer] | None = None,
    ) -> None:
        """``shared``: buffers of the caller for some inputs. Raises SetupError when the GPU is full."""
        self.device, self.stream = device, stream
        library = device.library
        self._engine = engine  # a context must not outlive its engine
        library.errors.clear()
        # By default a context allocates for the largest shapes of all profiles.
        context = engine.create_execution_context(library.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise library.error("TensorRT cannot create an execution context")
        self.context = context
        self._check(context.set_optimization_profile_async(profile, stream.handle), "choose a profile")
        stream.synchronize()
        self.dtypes = {name: np.dtype(library.trt.nptype(engine.get_tensor_dtype(name))) for name in _names(engine)}
        self.buffers: dict[str, DeviceBuffer] = dict(shared or {})
        self.shapes = self._set_shapes(shapes)
        self._activations = DeviceBuffer(device.cuda, context.update_device_memory_size_for_shapes())
        context.set_device_memory(self._activations.address, self._activations.nbytes)
        self.outputs = [name for name in self.shapes if name not in shapes]
        for name, shape in self.shapes.items():
            if name not in self.buffers:
                self.buffers[name] = DeviceBuffer(device.cuda, math.prod(shape) * self.dtypes[name].itemsize)
            self.bind(name, self.buffers[name].address)

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Set the inputs' shapes; returns those of inputs and outputs."""
        engine, context, trt = self._engine, self.context, self.device.library.trt
        names = _names(engine)
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if set(inputs) != set(shapes):
            problem = f"an engine has inputs {sorted(inputs)}, not {sorted(shapes)}"
            raise IntegrityError(problem, "build the engines again", reason="broken_engine")
        for name in inputs:
            self._check(context.set_input_shape(name, shapes[name]), f"set {name} to shape {shapes[name]}")
        return {name: tuple(context.get_tensor_shape(name)) for name in names}

    def bind(self, name: str, address: int) -> None:
        """Set the device address of an input or output for the following runs."""
        self._check(self.context.set_tensor_address(name, address), f"bind {name}")

    def upload(self, feeds: Feeds) -> list[NDArray[Any]]:
        """Copy inputs into their buffers. Keep the returned arrays until the stream is synchronized."""
        arrays: list[NDArray[Any]] = []
        for name, array in feeds.items():
            arrays.append(np.ascontiguousarray(array, self.dtypes[name]))
            self.stream.upload(arrays[-1], self.buffers[name].address)
        return arrays

    def enqueue(self) -> None:
        """Queue one run."""
        self._check(self.context.execute_async_v3(self.stream.handle), "run an engine")

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once: inputs to outputs, by name."""
        arrays = self.upload(feeds)
        self.enqueue()
        outputs = {name: self.read(self.buffers[name].address, name) for name in self.outputs}
        del arrays
        return outputs

    def read(self, address: int, name: str) -> Array:
        """Synchronize, and copy an array in the shape and dtype of tensor ``name`` from the device."""
        return self.stream.download(address, self.shapes[name], self.dtypes[name]).astype(np.float32, copy=False)

    def _check(self, success: bool, action: str) -> None:
        if not success:
            raise self.device.library.error(f"TensorRT failed to {action}")


class DenoisingLoop:
    """All N steps of a run as one CUDA graph of the step engine: one launch, no work on the host in between.

    Step k reads the buffer that step k - 1 wrote: state and step counter alternate between two buffers each, and
    nothing is copied. The graph fixes shapes, addresses and N; all values are uploaded before a launch. A run of more
    than :data:`MAX_CAPTURED_STEPS` steps launches graphs of so many steps, one after the other.
    """

    def __init__(self, session: Session, steps: int, uses_noise: bool) -> None:
        """``uses_noise``: every step has its own noise (B, 4, h, w); otherwise all share one block."""
        self._session, self._steps = session, steps
        self._stride = aligned(session.buffers["noise"].nbytes) if uses_noise else 0
        nbytes = max(self._stride * min(steps, MAX_CAPTURED_STEPS), session.buffers["noise"].nbytes)
        self._noise = DeviceBuffer(session.device.cuda, nbytes)
        self._addresses = {ends: tuple(session.buffers[name].address for name in ends) for ends in STATE_LOOP}
        # A context's first run after its shapes changed does deferred setup, which must not be captured.
        session.upload({"step": np.zeros(1, np.int64)})
        session.enqueue()
        session.stream.synchronize()
        lengths = {min(MAX_CAPTURED_STEPS, steps - first) for first in self._starts}
        self._graphs = {length: session.stream.capture(partial(self._enqueue, length)) for length in lengths}

    @property
    def _starts(self) -> range:
        return range(0, self._steps, MAX_CAPTURED_STEPS)

    def run(self, feeds: Feeds, noise: NoiseFunction) -> Array:
        """First state in ``feeds`` (every input but noise) to the last, (2, B, 4, h, w)."""
        session = self._session
        arrays = session.upload(feeds)
        for first in self._starts:
            length = min(MAX_CAPTURED_STEPS, self._steps - first)
            for k in range(length if self._stride else int(first == 0)):
                arrays.append(np.ascontiguousarray(noise(first + k), session.dtypes["noise"]))
                session.stream.upload(arrays[-1], self._noise.address + k * self._stride)
            self._graphs[length].launch(session.stream)
        last = session.read(self._addresses[STATE_LOOP[0]][self._steps % 2], "next_state")
        del arrays
        return last

    def _enqueue(self, steps: int) -> None:
        """Queue steps that begin at the first of the two buffers: all graphs but a last one have an even number."""
        session = self._session
        for k in range(steps):
            for (source, target), addresses in self._addresses.items():
                session.bind(source, addresses[k % 2])
                session.bind(target, addresses[(k + 1) % 2])
            session.bind("noise", self._noise.address + k * self._stride)
            session.enqueue()


def _names(engine: Any) -> list[str]:
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
