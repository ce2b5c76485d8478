"""Names of devices. "cuda" and "trt" may have the number of a GPU, as in "cuda:1"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from celebctl_runtime.errors import SetupError, UsageError

DEVICES = ("auto", "cpu", "cuda", "trt", "openvino", "webgpu", "mlx", "rtx")
_NAME = re.compile(rf"({'|'.join(DEVICES)})|(cuda|trt):([0-9]{{1,3}})")


@dataclass(frozen=True)
class DeviceSpec:
    """A device. ``str()`` of it is its name: "cuda" for GPU 0, "cuda:1" for GPU 1.

    Attributes:
        kind: One of :data:`DEVICES`.
        index: Number of the GPU, in CUDA's order (which CUDA_VISIBLE_DEVICES changes); 0 without a GPU.
    """

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.index else self.kind

    def check_index(self, gpus: int) -> None:
        """Raise SetupError when CUDA finds only ``gpus`` GPUs, none of this number.

        Example:
            >>> parse_device("cuda:1").check_index(2)
        """
        if self.index >= gpus:
            count = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
            hint = f"use {DeviceSpec(self.kind, gpus - 1) if gpus else 'cpu'}"
            problem = f"there is no GPU {self.index}: CUDA finds {count}, counted from 0"
            raise SetupError(problem, hint, reason="no_such_gpu", device=str(self), gpus=gpus)


def parse_device(name: str) -> DeviceSpec:
    """The device of this name.

    Example:
        >>> parse_device("cuda:1")
        DeviceSpec(kind='cuda', index=1)
        >>> str(parse_device("cuda:0"))
        'cuda'

    Raises:
        UsageError: There is no such name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        hint = f"use one of {', '.join(DEVICES)}, or a GPU by its number, such as cuda:1"
        raise UsageError(f"unknown device {name!r}", hint, reason="unknown_device", device=name)
    return DeviceSpec(match[1] or match[2], int(match[3] or 0))
