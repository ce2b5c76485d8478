"""Reads the components of diffusers folders and single-file checkpoints. Nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from celebctl_models.checkpoints.checkpoint_layout import Shapes, is_xl, latent_channels
from celebctl_models.checkpoints.known_models import refuse_index
from celebctl_models.checkpoints.registry import INDEX_FILE, read_json
from celebctl_runtime.errors import IntegrityError, InvalidInputError, SetupError


def require_packages() -> None:
    """Raise SetupError unless torch, diffusers and transformers are installed."""
    missing = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing:
        raise SetupError(f"loading a model needs {', '.join(missing)}", 'pip install "celebctl[learn,export]"')


def check_model_class(folder: Path) -> None:
    """Raise InvalidInputError for a model of another family, from its index, before any weights are read."""
    refuse_index(folder.name, read_json(folder / INDEX_FILE))


def check_vocabularies(tokenizers: Sequence[Any], name: str) -> None:
    """Raise InvalidInputError unless both tokenizers of an XL or SD3 model have one vocabulary.

    A learned name is encoded as the same ids for both text encoders.
    """
    first, *others = (tokenizer.get_vocab() for tokenizer in tokenizers)
    if any(other != first for other in others):
        hint = "use a checkpoint with its own tokenizers"
        raise InvalidInputError(f"the two tokenizers of {name} have different vocabularies", hint)


def load_component(cls: Any, folder: Path, component: str, **options: Any) -> Any:
    """One component of a model folder, by its library's class, or its fp16 variant where there is no other.

    Raises IntegrityError or SetupError (memory).
    """
    files = [path.name for path in (folder / component).glob("*")]
    weights = [name for name in files if name.endswith(".safetensors")]
    if weights and all(".fp16" in name for name in weights):
        options["variant"] = "fp16"
    try:
        return cls.from_pretrained(str(folder), subfolder=component, local_files_only=True, **options)
    except MemoryError as error:
        raise SetupError(f"no memory left to load {component} of {folder.name}", "close other programs") from error
    except Exception as error:  # the libraries raise anything from OSError to KeyError for a broken file
        hint = "download the model again"
        if not weights and any(name.endswith(".bin") for name in files):
            hint = "it has only .bin files, which are not opened: use a model with .safetensors files"
        raise IntegrityError(f"cannot load {component} of {folder.name}: {first_line(error)}", hint) from error


def freeze(network: Any, device: str) -> Any:
    """Move a network to a device, in evaluation mode and without gradients."""
    return network.eval().requires_grad_(False).to(device)


def load_checkpoint_file(path: Path, configs: Path | None, shapes: Shapes) -> Any:
    """The diffusers pipeline of a single-file checkpoint, float32. Of a pickle (.ckpt) only the tensors are read.

    Args:
        path: The .safetensors or .ckpt file.
        configs: A folder with the configs of the model; None: diffusers downloads those of the base model.
        shapes: Names and shapes of its tensors. The pipeline of a file without an autoencoder has none.

    Raises:
        InvalidInputError: A model of another family.
        IntegrityError: The file is damaged, holds more than tensors, or does not fit the configs.
        SetupError: The configs are not available.
    """
    import torch

    options: dict[str, Any] = {"config": str(configs), "local_files_only": True} if configs else {}
    try:
        pipeline, more = _pipeline_class(shapes)
        more |= {"vae": None} if latent_channels(shapes) is None else {}
        return cast(Any, pipeline).from_single_file(str(path), torch_dtype=torch.float32, **options, **more)
    except Exception as error:  # anything from a network error to tensors that do not fit the configs
        if configs is None:
            hint = f"put the configs of its diffusers folder into {path.stem}/ beside it"
            raise SetupError(f"no configs for the checkpoint {path.name}: {first_line(error)}", hint) from error
        hint = f"check that {configs.name}/ beside it holds the configs of this model"
        raise IntegrityError(f"cannot load {path.name}: {first_line(error)}", hint) from error


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a checkpoint file, without their numbers.

    Raises IntegrityError for a damaged file or an unsafe pickle, InvalidInputError for one that holds something else.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with cast(Any, safe_open)(str(path), framework="np") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        checkpoint: Any = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except SafetensorError as error:
        raise IntegrityError(f"{path} is damaged: {error}", "download the file again") from error
    except Exception as error:  # a refused pickle, a truncated file, no zip archive: no common base class
        hint = "download the file again, or use its .safetensors version"
        raise IntegrityError(f"{path.name} cannot be read safely: {first_line(error)}", hint) from error
    found = cast("dict[object, Any]", checkpoint) if isinstance(checkpoint, dict) else {}
    tensors: Any = found.get("state_dict", checkpoint)
    if not isinstance(tensors, dict):
        hint = "use a checkpoint of Stable Diffusion"
        raise InvalidInputError(f"{path.name} holds no dictionary of tensors", hint, reason="not_a_checkpoint")
    return {
        str(name): tuple(getattr(tensor, "shape", ())) for name, tensor in cast("dict[object, Any]", tensors).items()
    }


def _pipeline_class(shapes: Shapes) -> tuple[type, dict[str, Any]]:
    """The pipeline class for a checkpoint's tensors, and its options."""
    if is_xl(shapes):
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline, {}
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    return StableDiffusionPipeline, {"safety_checker": None}


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Only errors, and no progress bars, from diffusers and transformers within a `with` block."""
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
