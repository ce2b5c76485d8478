"""The engine room: from a bundle to pictures with numpy and an inference engine, and no torch, ever.

The names below are loaded when first used, so that ``import celebctl_runtime`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends.base import Backend, choose_backend
    from .backends.ort import OrtBackend
    from .backends.tensorrt import TensorRtBackend
    from .bundle.bundle import Bundle
    from .bundle.manifest import Manifest
    from .errors import (
        BusyError,
        CelebctlError,
        IntegrityError,
        InvalidInputError,
        NotFoundError,
        PartialBatchError,
        PolicyError,
        SetupError,
        UsageError,
    )
    from .identity import Identity, check_name
    from .picture import GeneratedImage, png_bytes, read_request, save_image
    from .pipeline import Progress, generate
    from .prompting.tokenizer import Encoded, PromptTokenizer
    from .request import SAMPLERS, Request, batch, resolve
    from .sampling.init_image import InitImage
    from .sampling.samplers import StepTable, step_table
    from .sampling.schedule import ScheduleConfig

__version__ = "0.1.0"

_HOMES = {
    "backends.base": "Backend choose_backend",
    "backends.ort": "OrtBackend",
    "backends.tensorrt": "TensorRtBackend",
    "bundle.bundle": "Bundle",
    "bundle.manifest": "Manifest",
    "errors": (
        "BusyError CelebctlError IntegrityError InvalidInputError NotFoundError PartialBatchError PolicyError"
        " SetupError UsageError"
    ),
    "identity": "Identity check_name",
    "picture": "GeneratedImage png_bytes read_request save_image",
    "pipeline": "Progress generate",
    "prompting.tokenizer": "Encoded PromptTokenizer",
    "request": "SAMPLERS Request batch resolve",
    "sampling.init_image": "InitImage",
    "sampling.samplers": "StepTable step_table",
    "sampling.schedule": "ScheduleConfig",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "SAMPLERS",
    "Backend",
    "Bundle",
    "BusyError",
    "CelebctlError",
    "Encoded",
    "GeneratedImage",
    "Identity",
    "InitImage",
    "IntegrityError",
    "InvalidInputError",
    "Manifest",
    "NotFoundError",
    "OrtBackend",
    "PartialBatchError",
    "PolicyError",
    "Progress",
    "PromptTokenizer",
    "Request",
    "ScheduleConfig",
    "SetupError",
    "StepTable",
    "TensorRtBackend",
    "UsageError",
    "batch",
    "check_name",
    "choose_backend",
    "generate",
    "png_bytes",
    "read_request",
    "resolve",
    "save_image",
    "step_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
