"""Draw the people in a bundle with numpy and an inference engine; never with torch.

The names below are imported when first used, so that ``import celebctl_runtime`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backends.base import Backend as Backend
    from .backends.ort import OrtBackend as OrtBackend
    from .backends.select import choose_backend as choose_backend
    from .backends.tensorrt import TensorRtBackend as TensorRtBackend
    from .bundle.bundle import Bundle as Bundle
    from .bundle.manifest import Manifest as Manifest
    from .errors import BusyError as BusyError
    from .errors import CelebctlError as CelebctlError
    from .errors import IntegrityError as IntegrityError
    from .errors import InvalidInputError as InvalidInputError
    from .errors import NotFoundError as NotFoundError
    from .errors import PartialBatchError as PartialBatchError
    from .errors import PolicyError as PolicyError
    from .errors import SetupError as SetupError
    from .errors import UsageError as UsageError
    from .identity import Identity as Identity
    from .identity import check_name as check_name
    from .picture import GeneratedImage as GeneratedImage
    from .picture import encode_image as encode_image
    from .picture import png_bytes as png_bytes
    from .picture import read_request as read_request
    from .picture import save_image as save_image
    from .pipeline import generate as generate
    from .progress import Progress as Progress
    from .prompting.tokenizer import EncodedPrompt as EncodedPrompt
    from .prompting.tokenizer import PromptTokenizer as PromptTokenizer
    from .recipes.reading import read_recipe as read_recipe
    from .recipes.recipe import Recipe as Recipe
    from .request import SAMPLERS as SAMPLERS
    from .request import Request as Request
    from .request import batch as batch
    from .request import resolve as resolve
    from .sampling.init_image import InitImage as InitImage
    from .sampling.samplers import StepTable as StepTable
    from .sampling.samplers import step_table as step_table
    from .sampling.schedule import ScheduleConfig as ScheduleConfig

__version__ = "0.1.0"

_EXPORTS = {
    "backends.base": "Backend",
    "backends.select": "choose_backend",
    "backends.ort": "OrtBackend",
    "backends.tensorrt": "TensorRtBackend",
    "bundle.bundle": "Bundle",
    "bundle.manifest": "Manifest",
    "errors": (
        "BusyError CelebctlError IntegrityError InvalidInputError NotFoundError PartialBatchError PolicyError"
        " SetupError UsageError"
    ),
    "identity": "Identity check_name",
    "picture": "GeneratedImage encode_image png_bytes read_request save_image",
    "pipeline": "generate",
    "progress": "Progress",
    "prompting.tokenizer": "EncodedPrompt PromptTokenizer",
    "recipes.reading": "read_recipe",
    "recipes.recipe": "Recipe",
    "request": "SAMPLERS Request batch resolve",
    "sampling.init_image": "InitImage",
    "sampling.samplers": "StepTable step_table",
    "sampling.schedule": "ScheduleConfig",
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names.split()}

__all__ = list(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
