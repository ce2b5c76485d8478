"""ONNX Runtime: loading it, sessions on the requested provider, and errors for a provider that is missing.

It falls back to the CPU silently when a CUDA library is missing, so a session's own report decides. Its Python wrapper
would fall back once more, with a message on stdout, when a session fails; that is switched off.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, cast

from celebctl_runtime.errors import IntegrityError, SetupError, UsageError

from .cuda_memory import out_of_memory

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
NO_CAPTURE = -1  # the graph id of runs that are not to be captured (onnxruntime's CUDA graph documentation)
_FATAL = 4  # ONNX Runtime's log level
# How threads wait for the next operation, measured on one step of mini on two cores, idle and both shared with another
# process: asleep 16.8 and 38.7 ms, actively 13.8 and 46.7 ms, actively for 400 us and then asleep 13.9 and 30.5 ms.
_SPINS_FOR: Mapping[str, str] = {
    "session.intra_op.allow_spinning": "1",
    "session.intra_op.spin_duration_us": "400",
}
_SPINS_NEVER: Mapping[str, str] = {"session.intra_op.allow_spinning": "0"}
_KNOWS_DURATION = (1, 32)  # the oldest ONNX Runtime in which the duration was seen to be obeyed; others would ignore it
# Convolutions run in the layout that tensor cores like; their algorithms are searched for once per shape.
CUDA_OPTIONS: Mapping[str, str] = {
    "prefer_nhwc": "1",
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "cudnn_conv_use_max_workspace": "1",
    "arena_extend_strategy": "kSameAsRequested",
}
_FAILED = "look with nvidia-smi, try cuda_options enable_cuda_graph=0 in the settings, or use --device cpu"
_CUDA_13 = 13
_LIBRARIES = {  # by the CUDA that a build is for: what its provider opens, and the packages that bring it
    12: (("libcublasLt.so.12", "libcudart.so.12", "libcurand.so.10", "libcufft.so.11", "libcudnn.so.9"), "-cu12"),
    13: (("libcublasLt.so.13", "libcudart.so.13", "libcurand.so.10", "libcufft.so.12", "libcudnn.so.9"), ""),
}
_NO_MEMORY = ("failed to allocate memory", "out of memory", "alloc_failed", "bad_alloc")
# ONNX Runtime's words for options of a provider that it does not have, or whose value it cannot read
_WRONG_OPTION = ("unknown provider option", "failed to parse provider option")
_CUDA_WORDS = ("cuda failure", "cudnn failure", "cublas failure", "cufft failure", "curand failure")
Loader = Callable[[str], object]


class CudaFailure(SetupError):
    """CUDA itself gave up: the CPU could still do what was asked."""


def load_onnxruntime() -> Any:
    """The module, quiet. Raises SetupError when it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise SetupError(
            "ONNX Runtime is not installed", "pip install 'celebctl[cpu]' (or 'celebctl[cuda]' on an NVIDIA GPU)"
        ) from error
    engine: Any = onnxruntime
    engine.set_default_logger_severity(_FATAL)  # missing providers are reported by our own check
    return engine


def choose_providers(ort: Any, device: str) -> list[str]:
    """Providers for ``device`` (auto, cpu or cuda), best first. Raises SetupError when CUDA cannot be."""
    present = cast("list[str]", ort.get_available_providers())
    if device == "cuda" and CUDA not in present:
        raise SetupError(
            "the installed ONNX Runtime cannot use CUDA",
            "pip uninstall onnxruntime; pip install 'celebctl[cuda]', or use --device cpu",
        )
    if device == "cpu" or CUDA not in present:
        return [CPU]
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints its warnings, and stdout is for data
            ort.preload_dlls()
    return [CUDA, CPU]


def parse_cuda_options(text: str) -> dict[str, str]:
    """ "prefer_nhwc=0,enable_cuda_graph=0" as options of the CUDA provider, by name. Raises UsageError."""
    found: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not (name.replace("_", "").isalnum() and equals and value):
            raise UsageError(f"{entry!r} is no option of CUDA", "write name=value,name=value: prefer_nhwc=0")
        found[name] = value
    return found


def open_session(
    ort: Any,
    path: Path,
    threads: int,
    providers: list[str],
    cuda_options: Mapping[str, str] | None = None,
    initializers: Mapping[str, Any] | None = None,
) -> Any:
    """A session of the graph file ``path``. ``cuda_options``: of the CUDA provider, where it is among ``providers``.

    ``initializers``: OrtValues in place of the graph's own, by name; the caller keeps them as long as the session.
    Raises IntegrityError for a graph that cannot be loaded, CudaFailure when CUDA is at fault, SetupError
    when memory runs out, UsageError for an option that CUDA does not have.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL  # its complaints reach people through our own errors
    for key, value in spin_options(str(ort.__version__)).items():
        options.add_session_config_entry(key, value)
    for name, content in (initializers or {}).items():
        options.add_initializer(name, content)
    wanted = [(name, dict(cuda_options)) if name == CUDA and cuda_options else name for name in providers]
    try:
        with memory_problems(CUDA in providers):
            return ort.InferenceSession(str(path), options, providers=wanted, enable_fallback=0)
    except CudaFailure as failure:
        raise no_cuda(ort, said=str(failure.__cause__)) from failure.__cause__
    except SetupError:
        raise
    except Exception as error:  # onnxruntime has a dozen error types, all children of Exception only
        if any(words in str(error).lower() for words in _WRONG_OPTION):
            raise UsageError(f"ONNX Runtime on CUDA: {str(error)[-200:]}", "correct cuda_options") from error
        # What a provider throws while it is made has no type of ONNX Runtime's own, unlike complaints about a graph.
        if CUDA in providers and isinstance(error, RuntimeError | ValueError):
            raise no_cuda(ort, said=str(error)) from error
        raise IntegrityError(
            f"ONNX Runtime cannot load {path}: {str(error)[:300]}", "celebctl export makes a fresh bundle"
        ) from error


def spin_options(version: str) -> Mapping[str, str]:
    """How a session's threads are to wait, in the words of ONNX Runtime's session options."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    return _SPINS_FOR if numbers >= _KNOWS_DURATION else _SPINS_NEVER


def _blames_cuda(error: Exception) -> bool:
    return type(error).__name__ == "EPFail" or any(words in str(error).lower() for words in _CUDA_WORDS)


@contextlib.contextmanager
def memory_problems(on_cuda: bool) -> Generator[None]:
    """Turn ONNX Runtime's complaints about memory, and about CUDA, into an SetupError with a cure."""
    try:
        yield
    except Exception as error:  # its error types have no common root but this
        if not any(word in str(error).lower() for word in _NO_MEMORY):
            if on_cuda and _blames_cuda(error):
                raise CudaFailure(f"CUDA failed: {one_line(error)}", _FAILED) from error
            raise
        if on_cuda:
            raise out_of_memory() from error
        hint = "use a smaller --size, or close other programs"
        raise SetupError("there is not enough memory for this", hint) from error


def no_cuda(ort: Any, load: Loader = ctypes.CDLL, said: str = "") -> CudaFailure:
    """Why a session is not on CUDA that was to be, as far as it can be found out, and the command that helps.

    ``load`` opens a shared library or raises OSError. ``said``: ONNX Runtime's complaint; without one it fell back to
    the CPU in silence.
    """
    problem = "ONNX Runtime cannot use CUDA" if said else "CUDA was asked for, but ONNX Runtime fell back to the CPU"
    wanted = _cuda_of(ort)
    driver = _driver_version(load)
    if driver is None:
        return CudaFailure(
            f"{problem}: there is no NVIDIA driver", "install it and look with nvidia-smi, or use --device cpu"
        )
    if driver < wanted:
        return CudaFailure(
            f"{problem}: the driver is too old, it knows CUDA {driver} and not {wanted}",
            "update the NVIDIA driver, or use --device cpu",
        )
    names, suffix = _LIBRARIES[_CUDA_13 if wanted >= _CUDA_13 else 12]
    missing = [name for name in names if not _opens(load, name)]
    if missing:
        return CudaFailure(
            f"{problem}: {', '.join(missing)} cannot be loaded",
            f"pip install 'onnxruntime-gpu[cuda,cudnn]' nvidia-cublas{suffix}, or use --device cpu",
        )
    if said:
        problem = f"{problem}: {one_line(said)}"
    return CudaFailure(problem, "check the driver with nvidia-smi, or use --device cpu")


def has_driver(load: Loader = ctypes.CDLL) -> bool:
    """Whether there is an NVIDIA driver: without one nobody expects CUDA."""
    return _driver_version(load) is not None


def one_line(said: object, most: int = 200) -> str:
    """What ONNX Runtime says, which may be pages with the place in its sources first."""
    text = " ".join(str(said).split())
    return text if len(text) <= most else f"... {text[-most:]}"


def _cuda_of(ort: Any) -> int:
    """The major version of CUDA that this build of ONNX Runtime wants."""
    facts: Any = getattr(getattr(ort, "capi", None), "build_and_package_info", None)
    said = str(getattr(facts, "cuda_version", "") or getattr(ort, "cuda_version", "") or "")
    major = said.partition(".")[0]
    return int(major) if major.isdecimal() else _CUDA_13


def _driver_version(load: Loader) -> int | None:
    """The newest CUDA that the driver knows; None where there is no driver."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver: Any = load(name)
        except OSError:
            continue
        number = ctypes.c_int(0)
        if driver.cuDriverGetVersion(ctypes.byref(number)) == 0:
            return number.value // 1000
    return None


def _opens(load: Loader, name: str) -> bool:
    try:
        load(name)
    except OSError:
        return False
    return True
