"""ONNX Runtime: import, sessions on the requested provider, and errors that say why CUDA is missing.

ONNX Runtime falls back to the CPU silently when a CUDA library is missing, so only a session's own report counts. The
second fallback of its Python wrapper, which prints on stdout, is switched off (``enable_fallback=0``).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, cast

from celebctl_runtime.errors import CelebctlError, IntegrityError, SetupError, UsageError

from .cuda_memory import out_of_memory
from .device import DeviceSpec
from .nvidia_driver import driver_cuda_version
from .ort_plugins import PLUGINS, plugin_device

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
NO_CAPTURE = -1  # gpu_graph_id of runs that are not captured (ONNX Runtime docs, CUDA provider, "CUDA graphs")
_FATAL = 4  # log severity
# Spinning of idle threads, measured on one step of mini on two cores, idle / shared with another process: never 16.8 /
# 38.7 ms, always 13.8 / 46.7 ms, for 400 us 13.9 / 30.5 ms.
_SPIN_BRIEFLY: Mapping[str, str] = {
    "session.intra_op.allow_spinning": "1",
    "session.intra_op.spin_duration_us": "400",
}
_SPIN_NEVER: Mapping[str, str] = {"session.intra_op.allow_spinning": "0"}
_HAS_SPIN_DURATION = (1, 32)  # oldest ONNX Runtime seen to obey the duration; older ones ignore it and spin on
#: Options of the CUDA provider. prefer_nhwc moves nodes that compute shapes to the GPU, which costs some hundred copies
#: a step and forbids CUDA graphs. use_tf32 would multiply what a bundle keeps in float32 with ten bits.
#: An exhaustive search of convolution algorithms takes longer than it saves in a few images.
CUDA_OPTIONS: Mapping[str, str] = {
    "prefer_nhwc": "0",
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "cudnn_conv_use_max_workspace": "1",
    "arena_extend_strategy": "kSameAsRequested",
}
# Before it, every replay of a captured graph reads host memory that was released after the capture, so that images are
# wrong (microsoft/onnxruntime pull request 32121).
_CAN_CAPTURE = (1, 30)
# What the provider of 1.30 and 1.31 is linked to, with the major version of CUDA in place of {}; on Windows it contains
# the rest. It opens cuFFT and cuDNN when it needs them.
_LIBRARIES = ("libcublasLt.so.{}", "libcublas.so.{}", "libcudart.so.{}", "libcurand.so.10")
_DLLS = ("cublasLt64_{}.dll", "cublas64_{}.dll")
_NEWEST_CUDA = 13  # its packages have no suffix
# ONNX Runtime's errors have no usable types; these are parts of their messages.
_OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "alloc_failed", "bad_alloc")
_INVALID_OPTION = ("unknown provider option", "failed to parse provider option")
_CUDA_ERRORS = ("cuda failure", "cudnn failure", "cublas failure", "cufft failure", "curand failure")
_NO_CUDNN = "cudnn is unavailable"
LoadLibrary = Callable[[str], object]


class CudaFailure(SetupError):
    """CUDA failed; the CPU can still run the bundle."""


def load_onnxruntime() -> Any:
    """The onnxruntime module with its log silenced. Raises SetupError when it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        hint = "pip install 'celebctl[cpu]' (or 'celebctl[cuda]' on an NVIDIA GPU)"
        raise SetupError("ONNX Runtime is not installed", hint) from error
    ort: Any = onnxruntime
    ort.set_default_logger_severity(_FATAL)  # missing providers are reported by our own check
    return ort


def choose_providers(ort: Any, device: DeviceSpec, load: LoadLibrary = ctypes.CDLL) -> list[Any]:
    """Execution providers for a device, best first: names, or the OrtEpDevice of a plug-in.

    Raises SetupError when CUDA or the plug-in is not available, or a GPU of that number. ``load``: see
    :func:`diagnose_cuda`.
    """
    if device.kind in PLUGINS:
        return [plugin_device(ort, device.kind), CPU]
    available = cast("list[str]", ort.get_available_providers())
    if device.kind == "cuda" and CUDA not in available:
        hint = "pip uninstall onnxruntime; pip install 'celebctl[cuda]'"
        raise SetupError("the installed ONNX Runtime does not support CUDA", hint, reason="ort_without_cuda")
    if device.kind == "cpu" or CUDA not in available:
        return [CPU]
    if device.index and (driver := _driver(load)) is not None:
        device.check_index(_gpu_count(driver))
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints warnings, and stdout is for data
            ort.preload_dlls()
    return [CUDA, CPU]


def open_session(
    ort: Any,
    path: Path,
    threads: int,
    providers: list[Any],
    cuda_options: Mapping[str, str] | None = None,
    initializers: Mapping[str, Any] | None = None,
) -> Any:
    """An InferenceSession of the graph file ``path``.

    Args:
        ort: The onnxruntime module.
        path: ONNX file.
        threads: CPU threads.
        providers: See :func:`choose_providers`.
        cuda_options: Options of the CUDA provider, if it is among the providers.
        initializers: OrtValues that replace the graph's own, by name. The caller keeps them alive.

    Raises:
        IntegrityError: The graph cannot be loaded.
        CudaFailure: CUDA cannot be used.
        SetupError: Out of memory.
        UsageError: Invalid CUDA option.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL  # failures raise
    for key, value in spin_options(str(ort.__version__)).items():
        options.add_session_config_entry(key, value)
    for name, value in (initializers or {}).items():
        options.add_initializer(name, value)
    devices = [provider for provider in providers if not isinstance(provider, str)]
    if devices:  # ONNX Runtime adds the CPU for what a plug-in does not support
        options.add_provider_for_devices(devices, {})
    named = [(name, dict(cuda_options)) if name == CUDA and cuda_options else name for name in providers]
    chosen = None if devices else named
    try:
        with translate_ort_errors(CUDA in providers):
            return ort.InferenceSession(str(path), options, providers=chosen, enable_fallback=0)
    except CudaFailure as failure:
        raise diagnose_cuda(ort, message=str(failure.__cause__)) from failure.__cause__
    except SetupError:
        raise
    except Exception as error:  # onnxruntime has a dozen error types without a common root
        raise _session_error(ort, path, error, CUDA in providers) from error


def _session_error(ort: Any, path: Path, error: Exception, on_cuda: bool) -> CelebctlError:
    """The cause of a session that could not be created."""
    message = str(error)
    if any(text in message.lower() for text in _INVALID_OPTION):
        return UsageError(f"invalid option of ONNX Runtime's CUDA provider: {message[-200:]}", "correct cuda_options")
    # What a provider raises while it is created has no type of ONNX Runtime's own, unlike errors about a graph.
    if on_cuda and isinstance(error, RuntimeError | ValueError):
        return diagnose_cuda(ort, message=message)
    problem = f"ONNX Runtime cannot load {path}: {message[:300]}"
    return IntegrityError(problem, "export the bundle again", reason="broken_graph", file=path)


def spin_options(version: str) -> Mapping[str, str]:
    """Session options for idle threads: spin briefly where ONNX Runtime can limit the time, else not at all."""
    return _SPIN_BRIEFLY if _numbers(version) >= _HAS_SPIN_DURATION else _SPIN_NEVER


def why_no_capture(version: str) -> str:
    """Why steps cannot be captured as CUDA graphs in this version of ONNX Runtime; "" where they can."""
    needed = ".".join(map(str, _CAN_CAPTURE))
    return "" if _numbers(version) >= _CAN_CAPTURE else f"needs ONNX Runtime {needed}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


@contextlib.contextmanager
def translate_ort_errors(on_cuda: bool) -> Generator[None]:
    """Turn ONNX Runtime's errors about memory and CUDA into SetupError and CudaFailure; others pass."""
    try:
        yield
    except Exception as error:  # see open_session
        message = str(error).lower()
        if any(text in message for text in _OUT_OF_MEMORY):
            if on_cuda:
                raise out_of_memory() from error
            raise out_of_memory_on_cpu() from error
        if on_cuda and _NO_CUDNN in message:
            hint = "pip install 'onnxruntime-gpu[cudnn]', or use device='cpu'"
            raise CudaFailure("cuDNN 9 cannot be loaded", hint, reason="cudnn_missing") from error
        if on_cuda and (type(error).__name__ == "EPFail" or any(text in message for text in _CUDA_ERRORS)):
            hint = "check nvidia-smi, try cuda_options enable_cuda_graph=0, or use device='cpu'"
            raise CudaFailure(f"CUDA failed: {one_line(error)}", hint, reason="cuda_run_failed") from error
        raise


def out_of_memory_on_cpu() -> SetupError:
    """The error of a full main memory."""
    hint = "use a smaller image size, or close other programs"
    return SetupError("out of memory", hint, reason="out_of_memory")


def diagnose_cuda(ort: Any, load: LoadLibrary = ctypes.CDLL, message: str = "") -> CudaFailure:
    """Why a session is not on CUDA, and what to install or update.

    ``load`` opens a shared library or raises OSError. ``message``: ONNX Runtime's error; "" after a silent fallback.
    """
    problem = "ONNX Runtime cannot use CUDA" if message else "ONNX Runtime fell back from CUDA to the CPU"
    required, supported = _required_cuda(ort), _driver_cuda(load)
    if supported is None:
        hint = "install the NVIDIA driver, or use device='cpu'"
        return CudaFailure(f"{problem}: no NVIDIA driver", hint, reason="driver_missing")
    if supported < required:
        problem = f"{problem}: the driver supports CUDA {supported}, not {required}"
        return CudaFailure(problem, "update the NVIDIA driver, or use device='cpu'", reason="driver_too_old")
    names = [name.format(required) for name in (_DLLS if sys.platform == "win32" else _LIBRARIES)]
    missing = [name for name in names if not _can_load(load, name)]
    if missing:
        cublas = f"nvidia-cublas{'' if required >= _NEWEST_CUDA else f'-cu{required}'}"
        problem = f"{problem}: cannot load {', '.join(missing)}"
        hint = f"pip install 'onnxruntime-gpu[cuda,cudnn]' {cublas}, or use device='cpu'"
        return CudaFailure(problem, hint, reason="cuda_libraries_missing", cublas=cublas)
    problem = f"{problem}: {one_line(message)}" if message else problem
    return CudaFailure(problem, "check nvidia-smi, or use device='cpu'", reason="cuda_failed")


def has_nvidia_driver(load: LoadLibrary = ctypes.CDLL) -> bool:
    """Whether an NVIDIA driver is installed; without one, CUDA is not expected to work."""
    return _driver_cuda(load) is not None


def one_line(message: object, limit: int = 200) -> str:
    """An error message as one line of at most ``limit`` characters; ONNX Runtime puts the reason last."""
    text = " ".join(str(message).split())
    return text if len(text) <= limit else f"... {text[-limit:]}"


def _required_cuda(ort: Any) -> int:
    """Major version of CUDA that this build of ONNX Runtime needs."""
    build: Any = getattr(getattr(ort, "capi", None), "build_and_package_info", None)
    version = str(getattr(build, "cuda_version", "") or getattr(ort, "cuda_version", "") or "")
    major = version.partition(".")[0]
    return int(major) if major.isdecimal() else _NEWEST_CUDA


def _driver(load: LoadLibrary) -> Any | None:
    """The CUDA driver's library; None without a driver."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with contextlib.suppress(OSError):
            return load(name)
    return None


def _driver_cuda(load: LoadLibrary) -> int | None:
    """Major version of the newest CUDA that the driver supports; None without a driver."""
    version = driver_cuda_version(load)
    return None if version is None else version // 1000


def _gpu_count(driver: Any) -> int:
    count = ctypes.c_int(0)
    driver.cuInit(0)
    driver.cuDeviceGetCount(ctypes.byref(count))  # leaves 0 where the driver does not work
    return count.value


def _can_load(load: LoadLibrary, name: str) -> bool:
    try:
        load(name)
    except OSError:
        return False
    return True
