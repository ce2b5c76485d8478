"""The part of the CUDA runtime that inference needs: one stream, device memory, copies and captured graphs.

Uses NVIDIA's cuda-python, without torch. Addresses are integers, sizes are bytes; a resource is freed with its Python
object.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import SetupError

from .device import DeviceSpec
from .nvidia_driver import driver_error

ALIGNMENT = 256  # bytes, of addresses given to TensorRT (NvInferRuntime.h, setTensorAddress); cudaMalloc guarantees it
GPU_0 = DeviceSpec("trt")


@dataclass(frozen=True)
class Gpu:
    """A GPU model: engines run only on the one they were built on. ``compute_capability``: such as "9.0"."""

    name: str
    compute_capability: str


class Cuda:
    """The CUDA runtime on one GPU."""

    def __init__(self, cudart: Any, index: int = 0) -> None:
        """``cudart``: the module ``cuda.bindings.runtime``, whose functions return (status, results...)."""
        self.cudart, self.index = cudart, index

    @classmethod
    def load(cls, device: DeviceSpec = GPU_0) -> Cuda:
        """The GPU of a device. Raises SetupError when cuda-python, a recent driver or the GPU is missing."""
        try:  # by name: type checkers do not have the extra installed
            cudart = import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise SetupError("cuda-python is not installed", "pip install 'celebctl[trt]'") from error
        cuda = cls(cudart, device.index)
        device.check_index(int(cuda.call(cudart.cudaGetDeviceCount)))
        cuda.select()
        return cuda

    def select(self) -> None:
        """Make the GPU the calling thread's current device, which CUDA and TensorRT work on."""
        self.call(self.cudart.cudaSetDevice, self.index)

    def call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; returns its results without the status. Raises SetupError."""
        status, *results = function(*arguments)
        self.check(status)
        return results[0] if len(results) == 1 else tuple(results)

    def check(self, status: Any) -> None:
        """Raise SetupError for the status of a call that failed."""
        if status != self.cudart.cudaError_t.cudaSuccess:
            raise self._error(status)

    def gpu(self) -> Gpu:
        """The GPU's model."""
        properties = self.call(self.cudart.cudaGetDeviceProperties, self.index)
        raw = properties.name
        name = raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
        return Gpu(name.rstrip("\0"), f"{properties.major}.{properties.minor}")

    def memory(self) -> str:
        """The GPU's free and total memory, as text."""
        free, total = self.call(self.cudart.cudaMemGetInfo)
        return f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free"

    def _error(self, status: Any) -> SetupError:
        kinds = self.cudart.cudaError_t
        if status == kinds.cudaErrorMemoryAllocation:
            return out_of_memory()
        if status in (kinds.cudaErrorInsufficientDriver, kinds.cudaErrorSystemDriverMismatch):
            return driver_error(self._version(self.cudart.cudaRuntimeGetVersion))
        problem = "CUDA finds no GPU" if status == kinds.cudaErrorNoDevice else f"CUDA error {status.name}"
        return SetupError(problem, "check nvidia-smi, or use device='cpu'", reason="cuda_failed")

    def _version(self, function: Callable[[], tuple[Any, ...]]) -> int:
        status, version = function()
        return int(version) if status == self.cudart.cudaError_t.cudaSuccess else 0


def out_of_memory(detail: str = "") -> SetupError:
    """The error of a full GPU."""
    hint = "use a smaller image size, fewer images at once, or device='cpu'"
    problem = f"not enough free GPU memory{f': {detail}' if detail else ''}"
    return SetupError(problem, hint, reason="out_of_gpu_memory")


class DeviceBuffer:
    """``nbytes`` of device memory at ``address``, freed with this object."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        """Raises SetupError when the GPU is full."""
        self.nbytes = nbytes
        status, address = cuda.cudart.cudaMalloc(max(nbytes, 1))
        if status == cuda.cudart.cudaError_t.cudaErrorMemoryAllocation:
            raise out_of_memory(f"{nbytes / 1e9:.1f} GB more are needed, {cuda.memory()}")
        cuda.check(status)
        self.address = int(address)
        weakref.finalize(self, cuda.cudart.cudaFree, self.address)


class Stream:
    """A CUDA stream of its own, which does not synchronize with the default stream."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        cudart = cuda.cudart
        self.handle = int(cuda.call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking))
        weakref.finalize(self, cudart.cudaStreamDestroy, self.handle)

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Copy a contiguous array to the device. It must stay unchanged until :meth:`synchronize` returns."""
        kind = self._cuda.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, array.ctypes.data, array.nbytes, kind)

    def download(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Wait for the queued work, then copy an array from the device."""
        array = np.empty(shape, dtype)
        kind = self._cuda.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, math.prod(shape) * dtype.itemsize, kind)
        self.synchronize()
        return array

    def synchronize(self) -> None:
        """Wait for all queued work. Raises SetupError when some of it failed."""
        self._cuda.call(self._cuda.cudart.cudaStreamSynchronize, self.handle)

    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """Record the work that ``enqueue`` queues as one CUDA graph, without running it.

        No garbage is collected meanwhile: a device buffer in it would be freed, which ends a capture with an error.
        """
        collects = gc.isenabled()
        gc.disable()
        try:
            return self._capture(enqueue)
        finally:
            if collects:
                gc.enable()

    def _capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        cudart = self._cuda.cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call(cudart.cudaStreamBeginCapture, self.handle, mode)
        try:
            enqueue()
        except BaseException:
            cudart.cudaStreamEndCapture(self.handle)  # a stream left in capture mode is unusable
            raise
        graph = self._cuda.call(cudart.cudaStreamEndCapture, self.handle)
        try:
            return CapturedGraph(self._cuda, self._cuda.call(cudart.cudaGraphInstantiate, graph, 0))
        finally:
            cudart.cudaGraphDestroy(graph)

    def _copy(self, target: int, source: int, nbytes: int, kind: Any) -> None:
        self._cuda.call(self._cuda.cudart.cudaMemcpyAsync, target, source, nbytes, kind, self.handle)


class CapturedGraph:
    """A CUDA graph: work recorded once, launched as a whole on the same addresses."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self._cuda, self._executable = cuda, executable
        weakref.finalize(self, cuda.cudart.cudaGraphExecDestroy, executable)

    def launch(self, stream: Stream) -> None:
        """Queue the whole graph."""
        self._cuda.call(self._cuda.cudart.cudaGraphLaunch, self._executable, stream.handle)


def aligned(nbytes: int) -> int:
    """``nbytes`` rounded up to a multiple of :data:`ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
