"""The engine room: from a bundle to pictures with numpy and an inference engine, and no torch, ever.

The names below are loaded when first used, so that ``import celebctl_runtime`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends import Backend, choose_backend
    from .bundle import Bundle
    from .errors import (
        Busy,
        CelebctlError,
        EnvironmentProblem,
        InputRejected,
        IntegrityProblem,
        NotFound,
        PartialBatch,
        PolicyRefusal,
        UsageProblem,
    )
    from .identity import Identity, check_name
    from .manifest import Manifest
    from .ort_backend import OrtBackend
    from .picture import Picture, png_bytes, read_request, save_picture
    from .pipeline import Progress, generate
    from .request import SAMPLERS, Request, batch, resolve
    from .samplers import Plan, plan
    from .schedule import ScheduleConfig
    from .source import Source
    from .tensorrt_backend import TensorRtBackend
    from .tokenizer import Encoded, PromptTokenizer

__version__ = "0.1.0"

_HOMES = {
    "backends": "Backend choose_backend",
    "ort_backend": "OrtBackend",
    "tensorrt_backend": "TensorRtBackend",
    "bundle": "Bundle",
    "errors": (
        "Busy CelebctlError EnvironmentProblem InputRejected IntegrityProblem NotFound PartialBatch PolicyRefusal"
        " UsageProblem"
    ),
    "identity": "Identity check_name",
    "manifest": "Manifest",
    "picture": "Picture png_bytes read_request save_picture",
    "pipeline": "Progress generate",
    "request": "SAMPLERS Request batch resolve",
    "samplers": "Plan plan",
    "schedule": "ScheduleConfig",
    "source": "Source",
    "tokenizer": "Encoded PromptTokenizer",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "SAMPLERS",
    "Backend",
    "Bundle",
    "Busy",
    "CelebctlError",
    "Encoded",
    "EnvironmentProblem",
    "Identity",
    "InputRejected",
    "IntegrityProblem",
    "Manifest",
    "NotFound",
    "OrtBackend",
    "PartialBatch",
    "Picture",
    "Plan",
    "PolicyRefusal",
    "Progress",
    "PromptTokenizer",
    "Request",
    "ScheduleConfig",
    "Source",
    "TensorRtBackend",
    "UsageProblem",
    "batch",
    "check_name",
    "choose_backend",
    "generate",
    "plan",
    "png_bytes",
    "read_request",
    "resolve",
    "save_picture",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
