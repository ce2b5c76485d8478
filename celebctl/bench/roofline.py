"""Published peaks of GPUs, and a description of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from celebctl.doctor import find_gpus
from celebctl_runtime.backends.cpu_count import physical_core_count

# Dense float16 tensor-core peaks with float32 accumulation, operations per second, from NVIDIA's data sheets: H100
# (SXM 989.4 T, PCIe 756 T), H200 (SXM 989.5 T), A100 (312 T). The first entry whose words are all in the name counts.
_PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("H100", "PCIe"), 756e12),
    (("H100",), 989.4e12),
    (("H200",), 989.5e12),
    (("A100",), 312e12),
)
_PACKAGES = (
    *"celebctl numpy onnxruntime onnxruntime-gpu openvino tensorrt".split(),
    *"torch diffusers transformers tokenizers pillow typer".split(),
)


def gpu_peak(name: str, dtype: str) -> dict[str, Any] | None:
    """The published peak of a GPU by its name, for fp16; None for a GPU or a dtype that is not in the table."""
    if dtype != "fp16":
        return None
    for words, flops in _PEAKS:
        if all(word in name for word in words):
            return {"flops": flops, "source": f"published: dense float16 tensor-core peak, {' '.join(words)}"}
    return None


def machine() -> dict[str, Any]:
    """Hardware and versions that a result depends on."""
    return {
        "cpu": _cpu_name(),
        "cores": physical_core_count(),
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[str]:
    try:
        return [f"{gpu.name}, driver {gpu.driver}" for gpu in find_gpus()]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []
