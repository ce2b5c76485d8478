"""TensorRT and the CUDA runtime without either: the same names, rules and bookkeeping, with memory of the host.

A "device" is host memory; a stream runs nothing before it is synchronized, so a missing wait or an input that was
thrown away too early shows. An "engine" is an ONNX graph with its profiles; it runs ONNX Runtime on what lies at the
addresses it was given. The rules that the real ones have are kept, and a call that breaks one fails:

- addresses of 256 bytes, shapes within a profile, no capture before a first run (TensorRT's API reference);
- nothing is allocated, freed or waited for while capturing (CUDA programming guide, "Prohibited and Unhandled
  Operations");
- the current device is a thread's own;
- a context allocates for the largest shapes of all profiles, or its memory is given to it;
- Attention exists from 10.14 on, without softmax_precision and softcap; one that is not decomposable needs a fused
  kernel: half precision, heads of 16 to 256 channels;
- no tensor has more than 2^31 - 1 elements at the largest shapes of a profile.
"""

from __future__ import annotations

import base64
import ctypes
import json
import math
import threading
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
    cudaErrorStreamCaptureInvalidated = 901


class FakeCudart:
    """`cuda.bindings.runtime` with GPUs of ``room`` bytes together, all alike but for ``names``."""

    cudaError_t = CudaError
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, room: int = 1 << 30, compute_capability: tuple[int, int] = (9, 0), *names: str) -> None:
        self.room = room
        major, minor = compute_capability
        self.properties = [SimpleNamespace(name=name.encode(), major=major, minor=minor) for name in names or (GPU,)]
        self.calls: Counter[str] = Counter()
        self.copies: list[int] = []  # bytes of each copy to the device
        self.blocks: dict[int, Any] = {}
        self.queue: list[Work] = []
        self.captured: list[Work] | None = None
        self.capture_failed = False
        self.graphs: dict[int, list[Work]] = {}
        self.status = CudaError.cudaSuccess  # what the next call returns
        self.thread = threading.local()
        self.devices_used: set[int] = set()  # by allocations and engines

    @property
    def device(self) -> int:
        """The calling thread's current device."""
        return getattr(self.thread, "device", 0)

    def _enter(self, name: str) -> CudaError:
        self.calls[name] += 1
        status, self.status = self.status, CudaError.cudaSuccess
        return status

    def submit(self, work: Work) -> None:
        """Into the stream, or into the graph that is being captured."""
        (self.queue if self.captured is None else self.captured).append(work)

    def cudaGetDeviceCount(self) -> tuple[CudaError, int]:
        return self._enter("cudaGetDeviceCount"), len(self.properties)

    def cudaSetDevice(self, device: int) -> tuple[CudaError]:
        self.thread.device = device
        return (self._enter("cudaSetDevice"),)

    def cudaGetDeviceProperties(self, device: int) -> tuple[CudaError, Any]:
        return self._enter("cudaGetDeviceProperties"), self.properties[device]

    def cudaMemGetInfo(self) -> tuple[CudaError, int, int]:
        return self._enter("cudaMemGetInfo"), self.room - self.used, self.room

    def cudaRuntimeGetVersion(self) -> tuple[CudaError, int]:
        return self._enter("cudaRuntimeGetVersion"), 13000

    def _refused(self) -> bool:
        """Whether a capture is under way, which a forbidden call ends."""
        self.capture_failed |= self.captured is not None
        return self.captured is not None

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[CudaError, int]:
        assert flags == self.cudaStreamNonBlocking
        return self._enter("cudaStreamCreateWithFlags"), 7

    def cudaStreamDestroy(self, stream: int) -> tuple[CudaError]:
        return (self._enter("cudaStreamDestroy"),)

    def cudaMalloc(self, size: int) -> tuple[CudaError, int | None]:
        self._enter("cudaMalloc")
        self.devices_used.add(self.device)
        if self._refused():
            return CudaError.cudaErrorStreamCaptureUnsupported, None
        if self.used + size > self.room:
            return CudaError.cudaErrorMemoryAllocation, None
        block = (ctypes.c_byte * (size + 256))()
        ctypes.memset(block, 0x7F, size + 256)  # unwritten memory is not zero
        address = -(-ctypes.addressof(block) // 256) * 256
        self.blocks[address] = (block, size)
        return CudaError.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[CudaError]:
        if self._refused():
            return (CudaError.cudaErrorStreamCaptureUnsupported,)
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
        assert stream == 7
        if self._refused():
            return (CudaError.cudaErrorStreamCaptureUnsupported,)
        self._drain()
        return (self._enter("cudaStreamSynchronize"),)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[CudaError]:
        assert mode == 1
        self.captured, self.capture_failed = [], False
        return (self._enter("cudaStreamBeginCapture"),)

    def cudaStreamEndCapture(self, stream: int) -> tuple[CudaError, list[Work] | None]:
        graph, self.captured = self.captured, None
        if self.capture_failed:
            return CudaError.cudaErrorStreamCaptureInvalidated, None
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

    def __init__(self, engine: FakeEngine, strategy: int) -> None:
        self.engine, self.cudart = engine, engine.cudart
        self.memory = 0  # bytes
        if strategy == FakeTrt.ExecutionContextAllocationStrategy.STATIC:
            largest = [{name: shapes[2] for name, shapes in profile.items()} for profile in engine.profiles]
            status, _ = self.cudart.cudaMalloc(max(map(self._needed, largest)))
            assert status == CudaError.cudaSuccess, "the largest shapes of the largest profile do not fit"
            self.memory = max(map(self._needed, largest))
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

    @staticmethod
    def _needed(shapes: dict[str, Any]) -> int:
        """Bytes for what lies between inputs and outputs: as many as the inputs have, here."""
        return 4 * sum(math.prod(shape) for shape in shapes.values())

    def update_device_memory_size_for_shapes(self) -> int:
        return self._needed(self.shapes) if set(self.shapes) == set(self.engine.inputs) else 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0 and self.cudart.inside(memory, size)
        self.memory = size

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        names = [value.name for value in self.engine.ends]
        if set(self.addresses) != set(names) or (self.cudart.captured is not None and not self.has_run):
            return False
        if self.memory < self._needed(self.shapes):
            return False
        self.cudart.devices_used.add(self.cudart.device)
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
        for node in attention_nodes(model):
            allow_onnx_runtime(node)
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

    def create_execution_context(self, strategy: int = 0) -> FakeContext:
        return FakeContext(self, strategy)

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
    ExecutionContextAllocationStrategy = SimpleNamespace(STATIC=0, ON_PROFILE_CHANGE=1, USER_MANAGED=2)

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class IProgressMonitor:
        pass

    def __init__(self, cudart: FakeCudart, version: str = "11.4.0.106") -> None:
        self.cudart = cudart
        self.__version__ = version
        self.refuses: str = ""  # an operator the parser does not know
        self.fails = ""  # what the builder complains of
        self.fails_for = ""  # of files with this name, or of all
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
        model, complaint = onnx.ModelProto.FromString(network.onnx), ""
        if self.fails and self.fails_for in network.path:
            complaint = self.fails
        for profile in config.profiles:
            complaint = complaint or unbuildable(model, Path(network.path).parent, profile)
        if complaint:
            log.log(self.ILogger.Severity.ERROR, complaint)
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
        parsed = onnx.ModelProto.FromString(model)
        version = tuple(int(part) for part in self.trt.__version__.split(".")[:2])
        wrong = [(node, "not supported") for node in parsed.graph.node if node.op_type == self.trt.refuses]
        for node in attention_nodes(parsed):
            values = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            if version < (10, 14):
                wrong.append((node, "no importer registered"))
            if "softmax_precision" in values or values.get("softcap"):
                wrong.append((node, "setting softmax_precision or softcap is not supported"))
        for node, reason in wrong:
            found = {"node_operator": node.op_type, "node_name": node.name or "unnamed", "desc": reason}
            self.errors.append(SimpleNamespace(**{key: lambda text=text: text for key, text in found.items()}))
        return not self.errors

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Any:
        return self.errors[index]


def attention_nodes(model: onnx.ModelProto) -> list[Any]:
    return [node for node in model.graph.node if node.op_type == "Attention"]


def unbuildable(model: onnx.ModelProto, folder: Path, profile: dict[str, Any]) -> str:
    """Why TensorRT cannot build a graph for a profile, as its builder says it; "" where it can."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for axis, size in zip(value.type.tensor_type.shape.dim, profile[value.name][2], strict=True):
            axis.Clear()
            axis.dim_value = size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        if math.prod(axis.dim_value for axis in value.type.tensor_type.shape.dim) > 2**31 - 1:
            return f"{value.name}: tensor volume exceeds 2147483647"
    for node, (dtype, head) in attention_heads(model, folder, profile).items():
        if dtype != np.float16 or not 16 <= head <= 256 or head % 8:
            return f"could not find any implementation for node {node}"
    return ""


def attention_heads(model: onnx.ModelProto, folder: Path, profile: dict[str, Any]) -> dict[str, tuple[Any, int]]:
    """Attention that needs a fused kernel: node -> dtype and channels per head, by running the graph."""
    needy = onnx.ModelProto()
    needy.CopyFrom(model)
    nodes = [node for node in attention_nodes(needy) if not allow_onnx_runtime(node)]
    needy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(node.input[0]) for node in nodes)
    if not nodes:
        return {}
    feeds = {
        value.name: np.zeros(
            profile[value.name][1], onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        )
        for value in needy.graph.input
    }
    queries = open_session(needy, folder).run([node.input[0] for node in nodes], feeds)
    return {node.name: (query.dtype, query.shape[-1]) for node, query in zip(nodes, queries, strict=True)}


def allow_onnx_runtime(node: Any) -> bool:
    """Take TensorRT's attribute from an Attention node, which ONNX Runtime refuses; returns whether it was set."""
    found = [one for one in node.attribute if one.name == "TRT_decomposable"]
    for attribute in found:
        node.attribute.remove(attribute)
    return any(attribute.i for attribute in found)


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
    cudart = FakeCudart(room, (9, 0), name)
    trt = FakeTrt(cudart, version)
    return trt, cudart, Device(TensorRt(trt), Cuda(cudart))
