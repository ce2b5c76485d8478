"""The NVIDIA driver: which CUDA it supports, asked without any package, and the error when that is too little."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celebctl_runtime.errors import SetupError

# The first driver for each CUDA major version (CUDA release notes, "CUDA Toolkit and Minimum Required Driver Version").
OLDEST_DRIVERS = {12: 525, 13: 580}


def driver_cuda_version(load: Callable[[str], Any] = ctypes.CDLL) -> int | None:
    """The newest CUDA that the driver supports, as CUDA writes it: 12080 is 12.8. None without a driver."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with suppress(OSError):
            version = ctypes.c_int(0)
            if load(name).cuDriverGetVersion(ctypes.byref(version)) == 0:
                return version.value
    return None


def driver_error(required: int, load: Callable[[str], Any] = ctypes.CDLL) -> SetupError:
    """The error of a driver that is missing or too old for CUDA ``required`` (13000 is 13.0; 0: not known)."""
    supported = driver_cuda_version(load)
    if supported is None:
        hint = "install the NVIDIA driver, or use device='cpu'"
        return SetupError("there is no NVIDIA driver", hint, reason="driver_missing")
    needed = f"CUDA {_text(required)}" if required else "the installed CUDA libraries"
    oldest = OLDEST_DRIVERS.get(required // 1000)
    number = f"driver {oldest} or newer" if oldest else "a newer driver"
    problem = f"the NVIDIA driver supports CUDA {_text(supported)}, and {needed} needs {number}"
    return SetupError(problem, "update the NVIDIA driver, or use device='cpu'", reason="driver_too_old")


def _text(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
