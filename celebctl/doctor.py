"""Checks of the installation and the user's data, with the command that fixes each problem.

No check changes anything or uses the network. Packages are asked for their version without importing them; only ONNX
Runtime is opened, because only a session shows which of its providers work.
"""

import contextlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal, cast

from celebctl import __version__
from celebctl.library import Library
from celebctl.settings import Settings
from celebctl_models.checkpoints.known_models import KNOWN
from celebctl_models.checkpoints.registry import INDEX_FILE, cached_folder, locate, missing_parts
from celebctl_runtime.backends.nvidia_driver import OLDEST_DRIVERS
from celebctl_runtime.backends.ort_session import one_line, why_no_capture
from celebctl_runtime.backends.tensorrt_runner import OLDEST, TOO_NEW
from celebctl_runtime.errors import CelebctlError, NotFoundError, PolicyError

Status = Literal["ok", "warn", "fail", "skip"]

# As in pyproject.toml; a test holds them equal.
EXTRAS = {
    "learn": ("torch", "diffusers", "transformers", "huggingface_hub", "insightface", "scikit-image"),
    "faces": ("insightface", "scikit-image"),
    "export": ("torch", "diffusers", "transformers", "huggingface_hub", "onnx", "onnxscript", "peft"),
    "openvino": ("openvino",),
    "eval": ("jinja2", "matplotlib", "scipy"),
    "heif": ("pillow-heif",),
}
_CPU_RUNTIME, _GPU_RUNTIME = "onnxruntime", "onnxruntime-gpu"
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_TWO_RUNTIMES = 'pip uninstall -y onnxruntime onnxruntime-gpu\n      pip install "celebctl[cpu]"   or "celebctl[cuda]"'
_CUDA_LIBRARIES = ("cublas", "cublasLt", "cudart", "curand", "cudnn")  # cuFFT is for operators that no graph has
_CUDA_13_RUNTIME = (1, 27)  # the first ONNX Runtime built for CUDA 13; earlier ones are for 12
_GPU_EXTRAS = {13: "gpu", 12: "gpu-cu12"}  # by the CUDA of the driver
_INSIGHTFACE = "pip install --no-deps 'insightface>=2.1,<3'"
_GB = 1e9
_LITTLE, _TOO_LITTLE = 2 * _GB, 0.2 * _GB  # free bytes
_FATAL = 4  # ONNX Runtime's log level

# The smallest ONNX model with something to compute: y = -x for one float, IR 8, opset 13. Field by field, as protobuf:
# ir_version 8; graph { node { input x, output y, op_type Neg }, name g, input x and output y: float tensor of shape
# [1] }; opset_import { version 13 }.
TINY_ONNX = (
    b"\x08\x08:2"
    b'\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01g'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"B\x02\x10\r"
)


@dataclass(frozen=True)
class Check:
    """One finding: status, subject, detail, and the command that fixes it ("" for none)."""

    status: Status
    name: str
    detail: str
    fix: str = ""


def run_checks(deep: bool = False) -> list[Check]:
    """Run all checks, in reading order. `deep` also imports torch and TensorRT, which takes seconds.

    Example:
        >>> checks = run_checks()
        >>> {check.status for check in checks} <= {"ok", "warn", "fail", "skip"}
        True
    """
    checks: list[Callable[[], Iterable[Check]]] = [
        check_python,
        check_data,
        check_extras,
        check_runtime,
        check_providers,
        check_gpu,
        check_cuda,
        lambda: check_torch(deep),
        lambda: check_tensorrt(deep),
        check_models,
        check_default_model,
        check_face_models,
        check_people,
        check_bundles,
        check_interrupted,
    ]
    # An invalid settings file stops several checks with the same finding.
    return list(dict.fromkeys(line for check in checks for line in _guard(check)))


def _guard(check: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The findings of a check; an exception becomes a finding."""
    from celebctl.cli.hints import hint_for

    try:
        yield from check()
    except CelebctlError as error:
        yield Check("fail", "settings" if error.code == "usage" else "files", error.problem, hint_for(error))
    except Exception as error:  # broken packages raise anything when they are imported
        name = getattr(check, "__name__", "check").removeprefix("check_")
        yield Check("fail", name, f"check failed: {error!r}")


def version_of(package: str) -> str | None:
    """The installed version of a distribution, without importing it; None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_python() -> Iterator[Check]:
    """Python and celebctl."""
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}, celebctl {__version__}"
    yield Check("ok", "python", detail)


def check_data() -> Iterator[Check]:
    """The folders of data and settings: writable, with free space."""
    root = Library().root
    place = _existing(root)
    free = shutil.disk_usage(place).free
    detail = f"{root}, {free / _GB:.1f} GB free"
    if not _writable(place):
        yield Check("fail", "data", f"{root} is not writable", "set CELEBCTL_HOME to a writable folder")
    elif free < _LITTLE:
        yield Check(
            "fail" if free < _TOO_LITTLE else "warn",
            "data",
            detail,
            "free some space, or set CELEBCTL_HOME to a folder on another disk",
        )
    else:
        yield Check("ok", "data", detail)
    settings = Settings.read()  # raises for an invalid file
    state = "" if settings.user_file.exists() else " (none yet)"
    status: Status = "ok" if _writable(_existing(settings.user_file.parent)) else "warn"
    yield Check(status, "settings", f"{settings.user_file}{state}")


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def check_extras() -> Iterator[Check]:
    """The extras: installed, partly installed or not installed."""
    for extra, packages in EXTRAS.items():
        found = {package: version_of(package) for package in packages}
        missing = [package for package, version in found.items() if version is None]
        fix = f'pip install "celebctl[{extra}]"'
        if not missing:
            yield Check("ok", extra, ", ".join(f"{package} {version}" for package, version in found.items()))
        elif len(missing) == len(packages):
            yield Check("skip", extra, "not installed", fix)
        else:
            yield Check("warn", extra, f"missing: {', '.join(missing)}", fix)


# Inference engines.


def check_runtime() -> Iterator[Check]:
    """The ONNX Runtime package. The CPU and the GPU package install the same module and overwrite each other."""
    cpu, gpu = version_of(_CPU_RUNTIME), version_of(_GPU_RUNTIME)
    if cpu and gpu:
        detail = f"{_CPU_RUNTIME} {cpu} and {_GPU_RUNTIME} {gpu} are installed and overwrite each other"
        yield Check("fail", "onnxruntime", detail, _TWO_RUNTIMES)
    elif gpu:
        beside = ", with insightface beside it (a GPU workstation)" if version_of("insightface") else ""
        slower = f", without CUDA graphs: {reason}" if (reason := why_no_capture(gpu)) else ""
        yield Check("ok", "onnxruntime", f"{_GPU_RUNTIME} {gpu}{beside}{slower}")
    elif cpu:
        yield Check("ok", "onnxruntime", f"{_CPU_RUNTIME} {cpu} (CPU)")
    else:
        yield Check("fail", "onnxruntime", "not installed: needed to draw", 'pip install "celebctl[cpu]"')


def check_providers() -> Iterator[Check]:
    """Run a tiny model on the CPU, and open a session on CUDA where it is offered."""
    if version_of(_CPU_RUNTIME) is None and version_of(_GPU_RUNTIME) is None:
        return
    import numpy as np
    import onnxruntime

    engine = cast(Any, onnxruntime)
    engine.set_default_logger_severity(_FATAL)
    session = engine.InferenceSession(TINY_ONNX, providers=[_CPU], enable_fallback=0)
    answer = session.run(None, {"x": np.ones(1, np.float32)})[0]
    if float(answer[0]) != -1.0:
        yield Check("fail", "providers", f"the CPU computes -(1) = {answer[0]}", _TWO_RUNTIMES)
        return
    bound, gpus = ["CPU"], find_gpus()
    if _CUDA in engine.get_available_providers():
        problem = why_not_bound(engine, _CUDA)
        if problem is None:
            bound.insert(0, "CUDA")
        elif gpus:
            detail = "CUDA is offered, but no session can use it; only the CPU works" + (
                f": {problem}" if problem else ""
            )
            yield Check("fail", "providers", detail, _cuda_fix())
            return
    elif gpus:
        fix = 'pip uninstall -y onnxruntime\n      pip install "celebctl[cuda]"'
        yield Check("warn", "providers", "CPU only, although there is a GPU", fix)
        return
    yield Check("ok", "providers", f"{', '.join(bound)} (a session was opened on each)")


def why_not_bound(engine: Any, provider: str) -> str | None:
    """ONNX Runtime's reason for not using `provider`; "" when it gives none, None when a session uses it."""
    with contextlib.redirect_stdout(sys.stderr):  # it prints warnings; stdout is for results
        if hasattr(engine, "preload_dlls"):
            engine.preload_dlls()
    try:  # without the wrapper's fallback, which prints on stdout and hides the reason
        session = engine.InferenceSession(TINY_ONNX, providers=[provider, _CPU], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        return one_line(error)
    return None if provider in session.get_providers() else ""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as nvidia-smi reports it."""

    name: str
    driver: str
    memory: str

    @property
    def cuda(self) -> int | None:
        """The newest major version of CUDA that the driver supports, of those we know; None for an older driver."""
        number = int(self.driver.partition(".")[0] or 0)
        return max((major for major, oldest in OLDEST_DRIVERS.items() if number >= oldest), default=None)


def find_gpus() -> list[Gpu]:
    """NVIDIA GPUs, by nvidia-smi; [] without one. Raises OSError when nvidia-smi fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode != 0:
        output = (done.stdout or done.stderr).strip().splitlines()
        raise OSError(output[0] if output else f"nvidia-smi exits with {done.returncode}")
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [Gpu(*row) for row in rows if len(row) == 3]


def check_gpu() -> Iterator[Check]:
    """The GPU and its driver."""
    try:
        gpus = find_gpus()
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Check("warn", "gpu", f"nvidia-smi fails: {error}", "reinstall the NVIDIA driver, or restart")
        return
    if not gpus:
        yield Check("skip", "gpu", "no NVIDIA GPU (nvidia-smi not found): images are drawn on the CPU")
    for gpu in gpus:
        detail, cuda = f"{gpu.name}, {gpu.memory}, driver {gpu.driver}", gpu.cuda
        if cuda is None:
            needed = ", ".join(f"CUDA {major} needs {oldest}" for major, oldest in sorted(OLDEST_DRIVERS.items()))
            yield Check("warn", "gpu", f"{detail}: too old, {needed}", "install a newer NVIDIA driver")
            continue
        yield Check("ok", "gpu", f"{detail} (CUDA {cuda})")
        yield from _check_gpu_packages(cuda)


def _check_gpu_packages(cuda: int) -> Iterator[Check]:
    """Whether the packages for a GPU are installed, and for the CUDA of its driver."""
    runtime, fix = version_of(_GPU_RUNTIME), f'pip install "celebctl[{_GPU_EXTRAS[cuda]}]"\n      {_INSIGHTFACE}'
    if runtime is None:
        detail = "onnxruntime-gpu is not installed: images are drawn on the CPU"
        yield Check("skip", "gpu set-up", f"{detail}. The set-up for a GPU, in an environment of its own:", fix)
        return
    built_for = 13 if _numbers(runtime) >= _CUDA_13_RUNTIME else 12
    if built_for > cuda:
        detail = f"{_GPU_RUNTIME} {runtime} is for CUDA {built_for}, and the driver supports CUDA {cuda}"
        update = f"update the NVIDIA driver to {OLDEST_DRIVERS[built_for]}, or install for CUDA {cuda}:"
        yield Check("warn", "gpu set-up", detail, f"{update}\n{fix}")
        return
    missing = [name for name in ("torch", "insightface") if version_of(name) is None]
    if _tensorrt_version() is None:
        missing.append("tensorrt (several GB, from pypi.nvidia.com)")
    if missing:
        yield Check("skip", "gpu set-up", f"drawing with CUDA only; not installed: {', '.join(missing)}", fix)


def check_cuda() -> Iterator[Check]:
    """CUDA's libraries, where the GPU runtime is installed."""
    if version_of(_GPU_RUNTIME) is None:
        return
    missing = [name for name in _CUDA_LIBRARIES if not _has_library(name)]
    if missing:
        yield Check("warn", "cuda", f"not found: {', '.join(f'lib{name}' for name in missing)}", _cuda_fix())
    else:
        yield Check("ok", "cuda", ", ".join(f"lib{name}" for name in _CUDA_LIBRARIES))


def _cuda_fix() -> str:
    return 'pip install "onnxruntime-gpu[cuda,cudnn]"'


def _has_library(name: str) -> bool:
    """Whether a file of this library is where pip, PyTorch, the system or LD_LIBRARY_PATH puts them."""
    pattern = f"{name}64_*.dll" if os.name == "nt" else f"lib{name}.so*"
    search = os.environ.get("PATH" if os.name == "nt" else "LD_LIBRARY_PATH", "").split(os.pathsep)
    folders = [Path(folder) for folder in search if folder]
    for site in {Path(folder) for folder in sys.path if folder.endswith("site-packages")}:
        folders += [site / "torch" / "lib", *site.glob("nvidia/*/lib"), *site.glob("nvidia/*/bin")]
    folders += [*Path("/usr/local").glob("cuda*/lib64"), *Path("/usr/lib").glob("*-linux-gnu"), Path("/usr/lib64")]
    return any(next(folder.glob(pattern), None) is not None for folder in folders)


def check_torch(deep: bool) -> Iterator[Check]:
    """PyTorch, for learning and exporting; `deep` imports it and asks for its GPU."""
    version = version_of("torch")
    if version is None:
        yield Check("skip", "torch", "not installed: needed only for learning and exporting")
        return
    if not deep:
        build = "CPU build" if "+cpu" in version else "see --deep for its GPU"
        yield Check("ok", "torch", f"{version} ({build})")
        return
    import torch

    loose = cast(Any, torch)
    gpu = loose.cuda.get_device_name() if loose.cuda.is_available() else "no GPU"
    yield Check("ok", "torch", f"{version}, CUDA {loose.version.cuda or 'none'}, {gpu}")


def check_tensorrt(deep: bool) -> Iterator[Check]:
    """TensorRT, where it is installed; `deep` imports it."""
    version = _tensorrt_version()
    if version is None:
        yield Check("skip", "tensorrt", "not installed")
        return
    if not OLDEST <= _numbers(version) < TOO_NEW:
        fix = 'pip install "tensorrt-cu13>=10.16,<12"   or "tensorrt-cu12>=10.16,<12"'
        yield Check("warn", "tensorrt", f"{version}: celebctl supports 10.16 up to 11", fix)
        return
    if deep:
        import_module("tensorrt")
    yield Check("ok", "tensorrt", version)


def _tensorrt_version() -> str | None:
    names = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
    return next((found for name in names if (found := version_of(name))), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


# Models and data.


def check_models() -> Iterator[Check]:
    """Known models on this machine, and incomplete downloads."""
    here = [name for name in KNOWN if locate(name).kind == "folder"]
    yield Check("ok", "models", ", ".join(f"{name}{' (bundled)' if KNOWN[name].bundled else ''}" for name in here))
    for name, row in KNOWN.items():
        folder = None if name in here else cached_folder(row.source, row.revision)
        if folder is not None:
            missing = missing_parts(folder) if (folder / INDEX_FILE).is_file() else [INDEX_FILE]
            yield Check("warn", "models", f"{name} is incomplete: {missing[0]} is missing", f"celebctl download {name}")


def check_default_model() -> Iterator[Check]:
    """The model used without --model."""
    setting = Settings.read().get("model")
    try:
        place = locate(str(setting.value))
    except CelebctlError as error:
        yield Check("fail", "default model", f"{error.problem} ({setting.origin})", "celebctl use mini")
        return
    if place.kind == "hub":
        detail = f"{setting.value} ({setting.origin}) is not on this machine yet"
        yield Check("warn", "default model", detail, f"celebctl download {setting.value}")
    else:
        yield Check("ok", "default model", f"{setting.value} ({setting.origin})")


def check_face_models() -> Iterator[Check]:
    """The face models for learning with the default model."""
    from celebctl.cli.hints import hint_for
    from celebctl_models.faces.packs import PACKS, accepted_at, choose_face_models, find_pack

    settings, root = Settings.read(), Library().root
    try:
        folder = choose_face_models(settings.text("face_models"), str(settings.text("model")), root)
        yield Check("ok", "face models", str(folder))
    except (NotFoundError, PolicyError) as error:
        yield Check("warn", "face models", error.problem, hint_for(error))
    for name, pack in PACKS.items():
        with contextlib.suppress(NotFoundError):
            find_pack(name, root)
            accepted, free = accepted_at(name, root), not pack.restricts
            state = "free for any use" if free else f"accepted {accepted:%Y-%m-%d}" if accepted else "not accepted"
            yield Check("ok" if accepted or free else "skip", "face models", f"{name}, licence {state}")


def check_people() -> Iterator[Check]:
    """Open every identity of the library."""
    library = Library()
    entries = library.entries()
    for entry in entries:
        try:
            entry.load()
        except CelebctlError as error:
            fix = f"celebctl rm {entry.name} --for-model {entry.model_key}"
            yield Check("fail", "people", f"{entry.name} cannot be read: {error.problem}", fix)
    model_keys = len({entry.model_key for entry in entries})
    yield Check("ok", "people", f"{len(entries)} learned, for {model_keys} {'model' if model_keys == 1 else 'models'}")


def check_bundles() -> Iterator[Check]:
    """Open every bundle of the library: manifest, files and sizes."""
    from celebctl_runtime.bundle.bundle import Bundle

    library = Library()
    bundles = library.bundles()
    for path in bundles:
        try:
            Bundle.open(path, verify="quick")
        except CelebctlError as error:
            fix = f"celebctl export --model {shlex.quote(library.origin(path) or 'MODEL')}"
            yield Check("fail", "bundles", f"{path.name}: {error.problem}", fix)
    yield Check("ok", "bundles", f"{len(bundles)} exported")


def check_interrupted() -> Iterator[Check]:
    """Interrupted learning, learning that is running, and interrupted downloads."""
    root = Library().root
    for checkpoint in sorted((root / "checkpoints").glob("*/*.checkpoint")):
        names = checkpoint.stem.split("+")
        words = " ".join([*("PHOTO" for _ in names), *(f"--name {name}" for name in names)])
        yield Check("warn", "interrupted", f"learning {' and '.join(names)}", f"celebctl learn {words} --resume")
    busy = [path.stem for path in sorted((root / "locks").glob("*.lock")) if _held(path)]
    if busy:
        yield Check("ok", "running", f"another process is working on {', '.join(busy)}")
    cache = root / "cache"
    names = {part.name.partition(".")[0] for part in cache.glob("*.part")}
    for name in sorted(names | {part.parent.name for part in cache.glob("*/*.part")}):
        yield Check("warn", "interrupted", f"download of {name}", f"celebctl download {name}")


def _held(path: Path) -> bool:
    """Whether a process holds a lock; a lock file alone means nothing."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a read-only library
        return False


# Text.


def render(checks: Iterable[Check], width: int = 80) -> list[str]:
    """The checks as aligned text: status, subject and detail; below it the command that fixes a problem."""
    import textwrap

    text: list[str] = []
    for check in checks:
        head = f"{check.status:<5} {check.name:<14} "
        indent = " " * len(head)
        text += textwrap.wrap(
            check.detail, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False
        )
        if check.fix and check.status != "ok":
            text += [f"      {command.strip()}" for command in check.fix.split("\n")]
    return text
