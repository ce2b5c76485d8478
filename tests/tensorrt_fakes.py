"""TensorRT and the CUDA runtime without either: the same names, rules and bookkeeping, with memory of the host.

A "device" is host memory; a stream runs nothing before it is synchronized, so a missing wait or an input that was
thrown away too early shows. An "engine" is an ONNX graph with its profiles; it runs ONNX Runtime on what lies at the
addresses it was given. The rules that the real ones have are kept: 256-byte addresses, shapes within a profile, no
capture before a first run, no allocation while capturing.
"""

from __future__ import annotations

import base64
import ctypes
import json
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from celebctl_runtime.backends.cuda_memory import Cuda
from celebctl_runtime.backends.tensorrt_runner import Device, TensorRt

GPU = "NVIDIA Fake 1000"
Work = Callable[[], object]


class CudaError(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorLaunchFailure = 719
    cudaErrorSystemDriverMismatch = 803
    cudaErrorStreamCaptureUnsupported = 900


class FakeCudart:
    """`cuda.bindings.runtime` with a device of ``room`` bytes."""

    cudaError_t = CudaError
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, room: int = 1 << 30, compute_capability: tuple[int, int] = (9, 0), name: str = GPU) -> None:
        self.room = room
        self.properties = SimpleNamespace(name=name.encode(), major=compute_capability[0], minor=compute_capability[1])
        self.calls: Counter[str] = Counter()
        self.copies: list[int] = []  # bytes of each copy to the device
        self.blocks: dict[int, Any] = {}
        self.queue: list[Work] = []
        self.captured: list[Work] | None = None
        self.graphs: dict[int, list[Work]] = {}
        self.status = CudaError.cudaSuccess  # what the next call returns

    def _enter(self, name: str) -> CudaError:
        self.calls[name] += 1
        status, self.status = self.status, CudaError.cudaSuccess
        return status

    def submit(self, work: Work) -> None:
        """Into the stream, or into the graph that is being captured."""
        (self.queue if self.captured is None else self.captured).append(work)

    def cudaGetDeviceCount(self) -> tuple[CudaError, int]:
        return self._enter("cudaGetDeviceCount"), 1

    def cudaGetDevice(self) -> tuple[CudaError, int]:
        return self._enter("cudaGetDevice"), 0

    def cudaGetDeviceProperties(self, device: int) -> tuple[CudaError, Any]:
        assert device == 0
        return self._enter("cudaGetDeviceProperties"), self.properties

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[CudaError, int]:
        assert flags == self.cudaStreamNonBlocking
        return self._enter("cudaStreamCreateWithFlags"), 7

    def cudaStreamDestroy(self, stream: int) -> tuple[CudaError]:
        return (self._enter("cudaStreamDestroy"),)

    def cudaMalloc(self, size: int) -> tuple[CudaError, int | None]:
        self._enter("cudaMalloc")
        if self.captured is not None:
            return CudaError.cudaErrorStreamCaptureUnsupported, None
        if self.used + size > self.room:
            return CudaError.cudaErrorMemoryAllocation, None
        block = (ctypes.c_byte * (size + 256))()
        ctypes.memset(block, 0x7F, size + 256)  # unwritten memory is not zero
        address = -(-ctypes.addressof(block) // 256) * 256
        self.blocks[address] = (block, size)
        return CudaError.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[CudaError]:
        self._drain()
        del self.blocks[address]
        return (self._enter("cudaFree"),)

    @property
    def used(self) -> int:
        return sum(size for _, size in self.blocks.values())

    def inside(self, address: int, nbytes: int) -> bool:
        """Whether a range lies in one block of the device."""
        return any(start <= address and address + nbytes <= start + size for start, (_, size) in self.blocks.items())

    def cudaMemcpyAsync(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> tuple[CudaError]:
        assert stream == 7
        upward = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        device = to if upward else source
        self.copies += [nbytes] * upward
        assert self.inside(device, nbytes), "a copy outside of what was allocated"
        self.submit(partial(ctypes.memmove, to, source, nbytes))
        return (self._enter("cudaMemcpyAsync"),)

    def cudaStreamSynchronize(self, stream: int) -> tuple[CudaError]:
        assert stream == 7 and self.captured is None
        self._drain()
        return (self._enter("cudaStreamSynchronize"),)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[CudaError]:
        assert mode == 1
        self.captured = []
        return (self._enter("cudaStreamBeginCapture"),)

    def cudaStreamEndCapture(self, stream: int) -> tuple[CudaError, list[Work] | None]:
        graph, self.captured = self.captured, None
        return self._enter("cudaStreamEndCapture"), graph

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> tuple[CudaError, int]:
        assert flags == 0
        self.graphs[len(self.graphs) + 1] = list(graph)
        return self._enter("cudaGraphInstantiate"), len(self.graphs)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[CudaError]:
        for work in self.graphs[executable]:
            self.submit(work)
        return (self._enter("cudaGraphLaunch"),)

    def cudaGraphDestroy(self, graph: list[Work]) -> tuple[CudaError]:
        return (self._enter("cudaGraphDestroy"),)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[CudaError]:
        self.graphs[executable] = []
        return (self._enter("cudaGraphExecDestroy"),)

    def _drain(self) -> None:
        queue, self.queue = self.queue, []
        for work in queue:
            work()


class FakeContext:
    """An IExecutionContext."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.cudart = engine, engine.cudart
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.has_run = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return 0 <= profile < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.profiles[self.profile][name]
        self.shapes[name], self.has_run = tuple(shape), False
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name] if name in self.shapes else self.engine.output_shapes(self.shapes)[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        names = [value.name for value in self.engine.ends]
        if set(self.addresses) != set(names) or (self.cudart.captured is not None and not self.has_run):
            return False
        self.has_run = True
        addresses, shapes = dict(self.addresses), {name: self.get_tensor_shape(name) for name in names}
        self.cudart.submit(lambda: self.engine.run(addresses, shapes))
        return True


class FakeEngine:
    """An ICudaEngine that is an ONNX graph: see the module's docstring."""

    def __init__(self, content: dict[str, Any], cudart: FakeCudart) -> None:
        self.cudart = cudart
        self.profiles: list[dict[str, Any]] = content["profiles"]
        model = onnx.ModelProto.FromString(base64.b64decode(content["onnx"]))
        self.session: Any = open_session(model, Path(content["path"]).parent)
        self.inputs = [value.name for value in model.graph.input]
        self.ends = [*model.graph.input, *model.graph.output]
        self.dtypes = {
            value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in self.ends
        }
        self._shapes: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}

    @property
    def num_io_tensors(self) -> int:
        return len(self.ends)

    def get_tensor_name(self, index: int) -> str:
        return self.ends[index].name

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return self.dtypes[name]

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self)

    def output_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """By trying, once per set of shapes."""
        key = tuple(sorted(shapes.items()))
        if key not in self._shapes:
            outputs = self.session.run(None, {name: np.zeros(shapes[name], self.dtypes[name]) for name in self.inputs})
            names = [value.name for value in self.session.get_outputs()]
            self._shapes[key] = {name: array.shape for name, array in zip(names, outputs, strict=True)}
        return self._shapes[key]

    def run(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        feeds = {name: self._at(addresses[name], name, shapes).copy() for name in self.inputs}
        outputs = self.session.run(None, feeds)
        for value, array in zip(self.session.get_outputs(), outputs, strict=True):
            self._at(addresses[value.name], value.name, shapes)[...] = array

    def _at(self, address: int, name: str, shapes: dict[str, tuple[int, ...]]) -> NDArray[Any]:
        dtype, shape = np.dtype(self.dtypes[name]), shapes[name]
        nbytes = int(np.prod(shape)) * dtype.itemsize
        assert self.cudart.inside(address, nbytes), f"{name} lies outside of what was allocated"
        block: Any = (ctypes.c_byte * nbytes).from_address(address)
        return np.frombuffer(block, dtype).reshape(shape)


class FakeTrt:
    """The `tensorrt` module on a fake device."""

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(TF32="tf32")

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class IProgressMonitor:
        pass

    def __init__(self, cudart: FakeCudart, version: str = "11.4.0.106") -> None:
        self.cudart = cudart
        self.__version__ = version
        self.refuses: str = ""  # an operator the parser does not know
        self.fails = ""  # what the builder complains of
        self.built: list[str] = []
        self.loaded = 0
        self.interrupt = False
        self.flags: list[str] = []

    @staticmethod
    def nptype(dtype: Any) -> Any:
        return dtype

    def Runtime(self, log: Any) -> Any:
        def deserialize(plan: bytes) -> FakeEngine | None:
            self.loaded += 1
            content = json.loads(plan)
            if content["version"] != self.__version__:
                log.log(self.ILogger.Severity.ERROR, "the plan was made by another version")
                return None
            return FakeEngine(content, self.cudart)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def Builder(self, log: Any) -> Any:
        return SimpleNamespace(
            create_network=self._network,
            create_builder_config=lambda: FakeConfig(self),
            create_optimization_profile=FakeProfile,
            build_serialized_network=partial(self._build, log),
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:
        return FakeParser(self, network)

    def _network(self, flags: int) -> Any:
        assert flags == 1 << self.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return SimpleNamespace()

    def _build(self, log: Any, network: Any, config: FakeConfig) -> bytes | None:
        assert config.cache is not None and self.BuilderFlag.TF32 in config.cleared
        monitor = config.progress_monitor
        monitor.phase_start("build", None, 2)
        for step in range(2):
            monitor.phase_start(f"tactics {step}", "build", 3)
            for k in range(3):
                if not monitor.step_complete(f"tactics {step}", k):
                    return None
            monitor.phase_finish(f"tactics {step}")
            monitor.step_complete("build", step)
        monitor.phase_finish("build")
        if self.fails:
            log.log(self.ILogger.Severity.ERROR, self.fails)
            return None
        self.built.append(network.path)
        config.cache.entries += network.path.encode()
        content = {
            "version": self.__version__,
            "path": network.path,
            "onnx": base64.b64encode(network.onnx).decode(),
            "profiles": config.profiles,
        }
        return json.dumps(content).encode()


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(least, best, most, strict=True))
        self.shapes[name] = (list(least), list(best), list(most))


class FakeCache:
    def __init__(self, entries: bytes) -> None:
        self.entries = entries

    def serialize(self) -> bytes:
        return self.entries


class FakeConfig:
    """An IBuilderConfig."""

    def __init__(self, trt: FakeTrt) -> None:
        self.trt = trt
        self.cleared: list[str] = []
        self.profiles: list[dict[str, Any]] = []
        self.cache: FakeCache | None = None
        self.progress_monitor: Any = None

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized: bytes) -> FakeCache:
        return FakeCache(serialized)

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if b"another GPU" in cache.entries:
            return False
        self.cache = cache
        return True


class FakeParser:
    """An OnnxParser."""

    def __init__(self, trt: FakeTrt, network: Any) -> None:
        self.trt, self.network = trt, network
        self.errors: list[Any] = []

    def supports_model_v2(self, model: bytes, path: str) -> bool:
        return self.parse(model, path)

    def parse(self, model: bytes, path: str) -> bool:
        self.network.onnx, self.network.path = model, path
        for node in onnx.ModelProto.FromString(model).graph.node:
            if node.op_type == self.trt.refuses:
                found = {"node_operator": node.op_type, "node_name": node.name or "unnamed", "desc": "not supported"}
                self.errors.append(SimpleNamespace(**{key: lambda text=text: text for key, text in found.items()}))
        return not self.errors

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Any:
        return self.errors[index]


def open_session(model: onnx.ModelProto, folder: Path) -> Any:
    """ONNX Runtime on a graph whose weights lie in ``folder``."""
    onnx.load_external_data_for_model(model, str(folder))
    engine: Any = onnxruntime
    options = engine.SessionOptions()
    options.intra_op_num_threads = 1
    return engine.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def fake_device(
    room: int = 1 << 30, version: str = "11.4.0.106", name: str = GPU
) -> tuple[FakeTrt, FakeCudart, Device]:
    """A fake TensorRT and a fake device, bare and as the runtime wraps them."""
    cudart = FakeCudart(room, name=name)
    trt = FakeTrt(cudart, version)
    return trt, cudart, Device(TensorRt(trt), Cuda(cudart))
