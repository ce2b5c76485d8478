"""The part of the CUDA runtime that drawing needs: one stream, device memory, copies and captured graphs.

It uses NVIDIA's cuda-python and no torch. Addresses are integers, sizes are bytes; a resource is freed with its Python
object.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import SetupError

ALIGNMENT = 256  # of every address TensorRT is given (NvInferRuntime.h, setTensorAddress); cudaMalloc keeps it


@dataclass(frozen=True)
class Gpu:
    """A device by the two facts that an engine is bound to; ``compute_capability`` such as "9.0"."""

    name: str
    compute_capability: str


class Cuda:
    """The CUDA runtime on this process's current device."""

    def __init__(self, cudart: Any) -> None:
        """``cudart``: ``cuda.bindings.runtime``, whose functions return (status, results...)."""
        self.cudart = cudart

    @classmethod
    def load(cls) -> Cuda:
        """Raises SetupError when cuda-python, a driver that is new enough or a device is missing."""
        try:  # by name: a type checker finds nothing where the extra is not installed
            cudart = import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise SetupError("cuda-python is not installed", "pip install 'celebctl[trt]'") from error
        cuda = cls(cudart)
        cuda.call(cuda.cudart.cudaGetDeviceCount)
        return cuda

    def call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """What a function of the runtime returns besides its status. Raises SetupError for a bad status."""
        status, *results = function(*arguments)
        if status != self.cudart.cudaError_t.cudaSuccess:
            raise self._problem(status)
        return results[0] if len(results) == 1 else tuple(results)

    def gpu(self) -> Gpu:
        """The current device."""
        properties = self.call(self.cudart.cudaGetDeviceProperties, self.call(self.cudart.cudaGetDevice))
        raw = properties.name
        name = raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
        return Gpu(name.rstrip("\0"), f"{properties.major}.{properties.minor}")

    def _problem(self, status: Any) -> SetupError:
        kinds = self.cudart.cudaError_t
        if status == kinds.cudaErrorMemoryAllocation:
            return out_of_memory()
        if status == kinds.cudaErrorNoDevice:
            return SetupError("CUDA finds no GPU here", "look with nvidia-smi, or use --device cpu")
        if status in (kinds.cudaErrorInsufficientDriver, kinds.cudaErrorSystemDriverMismatch):
            return SetupError(
                "the NVIDIA driver is missing or too old for this CUDA",
                "look with nvidia-smi and update the driver, or use --device cpu",
            )
        return SetupError(f"CUDA reports {status.name}", "look with nvidia-smi, or use --device cpu")


def out_of_memory() -> SetupError:
    """The error of a full device."""
    return SetupError(
        "the GPU has not enough free memory", "use a smaller --size, fewer pictures at once, or --device cpu"
    )


class DeviceBuffer:
    """``nbytes`` of device memory from ``address`` on, for as long as this object lives."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        """Raises SetupError when the device is full."""
        self.nbytes = nbytes
        self.address = int(cuda.call(cuda.cudart.cudaMalloc, max(nbytes, 1)))
        weakref.finalize(self, cuda.cudart.cudaFree, self.address)


class Stream:
    """A queue of device work. It does not wait for the default stream, and nothing else is queued in it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        cudart = cuda.cudart
        self.handle = int(cuda.call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking))
        weakref.finalize(self, cudart.cudaStreamDestroy, self.handle)

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Copy a contiguous array to the device. The array may change once :meth:`synchronize` has returned."""
        upward = self._cuda.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, array.ctypes.data, array.nbytes, upward)

    def download(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Wait for the queue and return what then lies at ``address``."""
        array = np.empty(shape, dtype)
        downward = self._cuda.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, math.prod(shape) * dtype.itemsize, downward)
        self.synchronize()
        return array

    def synchronize(self) -> None:
        """Wait until the queue is empty. Raises SetupError when something in it failed."""
        self._cuda.call(self._cuda.cudart.cudaStreamSynchronize, self.handle)

    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """Record what ``enqueue`` puts into the queue, without running it, as one graph."""
        cudart = self._cuda.cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call(cudart.cudaStreamBeginCapture, self.handle, mode)
        try:
            enqueue()
        except BaseException:
            cudart.cudaStreamEndCapture(self.handle)  # a stream left in capture mode could never be used again
            raise
        graph = self._cuda.call(cudart.cudaStreamEndCapture, self.handle)
        try:
            return CapturedGraph(self._cuda, self._cuda.call(cudart.cudaGraphInstantiate, graph, 0))
        finally:
            cudart.cudaGraphDestroy(graph)

    def _copy(self, to: int, source: int, nbytes: int, direction: Any) -> None:
        self._cuda.call(self._cuda.cudart.cudaMemcpyAsync, to, source, nbytes, direction, self.handle)


class CapturedGraph:
    """Work recorded once and launched as a whole, with the addresses it was recorded with."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self._cuda, self._executable = cuda, executable
        weakref.finalize(self, cuda.cudart.cudaGraphExecDestroy, executable)

    def launch(self, stream: Stream) -> None:
        """Put the whole graph into the queue."""
        self._cuda.call(self._cuda.cudart.cudaGraphLaunch, self._executable, stream.handle)


def aligned(nbytes: int) -> int:
    """``nbytes`` rounded up, so that what follows begins at an address TensorRT accepts."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
