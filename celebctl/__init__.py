"""celebctl: learn a person from one photo as 1024 numbers, and draw them with Stable Diffusion models.

The public names below are imported on first use, so ``import celebctl`` imports neither torch nor ONNX Runtime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from celebctl_runtime import __version__ as __version__
from celebctl_runtime.errors import (
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

if TYPE_CHECKING:
    from celebctl.basis.identity_vectors import mix
    from celebctl.evaluation import evaluate
    from celebctl.library import Library
    from celebctl.model import Model, Subject
    from celebctl.pipeline import Pipeline
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.identity import Identity


__all__ = [
    "Bundle",
    "BusyError",
    "CelebctlError",
    "Identity",
    "IntegrityError",
    "InvalidInputError",
    "Library",
    "Model",
    "NotFoundError",
    "PartialBatchError",
    "Pipeline",
    "PolicyError",
    "SetupError",
    "Subject",
    "UsageError",
    "evaluate",
    "mix",
]

_MODULES = {
    "Bundle": "celebctl_runtime.bundle.bundle",
    "Identity": "celebctl_runtime.identity",
    "Library": "celebctl.library",
    "Model": "celebctl.model",
    "Pipeline": "celebctl.pipeline",
    "Subject": "celebctl.model",
    "evaluate": "celebctl.evaluation",
    "mix": "celebctl.basis.identity_vectors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'celebctl' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
