"""Reading single-file checkpoints. Nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from celebctl_runtime.errors import IntegrityError, SetupError


def read_checkpoint(path: Path, configs: Path | None) -> Any:
    """The pipeline of a single-file checkpoint, in float32. Pickles (.ckpt) are read for their tensors only."""
    import torch

    options: dict[str, Any] = {"config": str(configs), "local_files_only": True} if configs else {}
    names = _tensor_names(path)
    try:
        pipeline, more = _pipeline_class(names)
        return cast(Any, pipeline).from_single_file(str(path), torch_dtype=torch.float32, **options, **more)
    except Exception as error:  # anything from a network error to tensors that do not fit the configs
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if configs is None:
            hint = f"put the configs of its diffusers folder into {path.stem}/ beside it"
            raise SetupError(f"cannot find out how {path.name} is built: {reason}", hint) from error
        hint = f"check that {configs.name}/ beside it holds the configs of this very model"
        raise IntegrityError(f"cannot load {path.name}: {reason}", hint) from error


def _tensor_names(path: Path) -> list[str]:
    """What the tensors of a checkpoint are called; a damaged file is told from missing configs here.

    Raises IntegrityError for a file that is damaged, and for a pickle that holds anything but tensors.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with cast(Any, safe_open)(str(path), framework="np") as file:
                return list(file.keys())
        held: Any = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except SafetensorError as error:
        raise IntegrityError(f"{path} is damaged: {error}", "fetch the file again") from error
    except Exception as error:  # a refused pickle, a file cut short, no zip archive: no common root
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "fetch the file again, or find it as .safetensors"
        raise IntegrityError(f"{path.name} cannot be read safely: {reason}", hint) from error
    return list(cast("dict[str, Any]", held.get("state_dict", held)))


def _pipeline_class(names: list[str]) -> tuple[type, dict[str, Any]]:
    """The pipeline that reads a checkpoint, and what it wants to be told: SDXL names its text encoders differently."""
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline, {}
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    return StableDiffusionPipeline, {"safety_checker": None}


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Errors only, and no bars: advice of diffusers and transformers (accelerate, torchvision) is not for our users."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with ExitStack() as restore:
        for library in cast("tuple[Any, ...]", (diffusers_logging, transformers_logging)):
            restore.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
            if library.is_progress_bar_enabled():
                restore.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield
