"""LoRA files fused into the networks of a model: low-rank updates of their weight matrices (Hu et al. 2021).

    tensors in the file                          written by
    lora_unet_..., lora_te_... (te1, te2)        kohya's trainers, web UIs, ComfyUI
    unet..., text_encoder..., text_encoder_2...  diffusers and peft

diffusers reads both layouts, and peft fuses them. diffusers only logs what fits no layer and reads a DoRA without its
magnitudes, so files are checked here first, and the layers that took part are counted.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celebctl_models.checkpoints.checkpoint_io import first_line, quiet_libraries, tensor_shapes
from celebctl_models.checkpoints.checkpoint_layout import Shapes, is_lora
from celebctl_models.checkpoints.joint_attention import attends_jointly
from celebctl_runtime.bundle.manifest import MAX_LORA_WEIGHT, LoraInfo
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError, SetupError, UsageError
from celebctl_runtime.files import sha256_file

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

_ADAPTER = "lora"  # peft's name for the LoRA while it is fused
_DOWN_PROJECTION = re.compile(r"(lora_A|[._]down)\.weight$")  # each layer has one
#: Kinds of update that diffusers does not load, or not completely, by a part of their tensors' names.
_OTHER_KINDS = {
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".hada_w1": "LoHa",
    ".lokr_": "LoKr",
    ".lora_mid.": "LoCon in Tucker decomposition",
}
_TOKENS = ("token_embedding", "bundle_emb")
_HINT = "use a LoRA that was trained for this family of models"
_MAX_NAME = 200


@dataclass(frozen=True)
class Lora:
    """A LoRA file and how much of it is added.

    Attributes:
        path: A .safetensors file in the layout of kohya's trainers or of diffusers.
        weight: Factor of the update, -4 to 4; 1 is as it was trained.

    Raises:
        UsageError: A weight that is out of range or not a number.

    Example:
        >>> from pathlib import Path
        >>> from celebctl_models.checkpoints.lora import Lora
        >>> Lora(Path("style.safetensors"), 0.8).weight
        0.8
    """

    path: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not -MAX_LORA_WEIGHT <= self.weight <= MAX_LORA_WEIGHT:
            raise UsageError(
                f"the weight {self.weight:g} of {self.path} is out of range",
                f"use a weight from {-MAX_LORA_WEIGHT:g} to {MAX_LORA_WEIGHT:g}",
                reason="lora_weight_range",
                path=self.path,
            )

    @property
    def info(self) -> LoraInfo:
        """What a manifest records of it. Raises NotFoundError for a missing file."""
        _require_file(self.path)
        name = "".join(letter for letter in self.path.name if letter.isprintable())
        return LoraInfo(name[-_MAX_NAME:], sha256_file(self.path), float(self.weight))


def check_loras(loras: Sequence[Lora]) -> None:
    """Check everything that can be checked without the model, before it is loaded.

    Raises:
        NotFoundError: A missing file.
        InvalidInputError: Not a .safetensors file, no LoRA or one of an unsupported kind, or one that trains tokens.
        IntegrityError: A damaged file.
        SetupError: peft is not installed.
    """
    for lora in loras:
        _require_file(lora.path)
        if lora.path.suffix != ".safetensors":
            problem = f"{lora.path} is no .safetensors file; a pickle may run code when it is read"
            raise InvalidInputError(problem, "use its .safetensors version", reason="lora_not_safetensors")
        _check_kind(lora.path, tensor_shapes(lora.path))
    if loras and find_spec("peft") is None:
        raise SetupError(
            "LoRA files need peft", 'pip install "celebctl[export]"', reason="missing_extra", extra="export"
        )


def fuse_loras(parts: DiffusionParts, loras: Sequence[Lora]) -> DiffusionParts:
    """The model with LoRAs added to its weights, one after the other, and recorded.

    The networks of ``parts`` are changed in place: an XL model leaves no room for a copy. Token tables stay as they
    are, so people learned on the model fit.

    Args:
        parts: The model, loaded for this.
        loras: Files and weights.

    Raises:
        InvalidInputError: A LoRA of another family: layers that the model does not have, or of another shape.
        IntegrityError: Weights become NaN or infinite.
        CelebctlError: As `check_loras`.
    """
    check_loras(loras)
    for lora in loras:
        with _refusing_other_families(lora.path, parts.name):
            _load(parts, lora.path)
        layers = sum(bool(_DOWN_PROJECTION.search(name)) for name in tensor_shapes(lora.path))
        try:
            fused = sum(_fuse(network, lora.weight) for network in (parts.denoiser, *parts.text_encoders))
        except ValueError as error:  # peft's safe_merge
            problem = f"with {lora.path} at {lora.weight:g} weights become NaN or infinite"
            raise IntegrityError(problem, "download the file again, or use a smaller weight") from error
        if fused != layers:
            problem = f"{layers - fused} of its {layers} layers fit none of the model"
            raise _other_family(lora.path, parts.name, problem, layers=layers, fused=fused)
    return replace(parts, loras=(*parts.loras, *(lora.info for lora in loras)))


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise NotFoundError(f"there is no LoRA file {path}", "check the path", reason="missing_file", path=path)


def _check_kind(path: Path, shapes: Shapes) -> None:
    """Raise InvalidInputError for tensors that are no LoRA, or one that cannot be fused as it was trained."""
    kind = next((kind for part, kind in _OTHER_KINDS.items() if any(part in name for name in shapes)), None)
    if kind is not None:
        problem = f"{path} is a {kind}, which diffusers cannot load"
        raise InvalidInputError(problem, "use a plain LoRA", reason="unsupported_lora", kind=kind)
    if any(part in name for name in shapes for part in _TOKENS):
        problem = f"{path} trains token embeddings, which people are learned with"
        raise InvalidInputError(problem, "use a LoRA without them", reason="lora_trains_tokens")
    # kohya's layout has an alpha for each layer, under the layer's name
    others = [name for name in shapes if "lora" not in name]
    if others and is_lora(shapes):
        problem = f"{path} holds tensors that are no LoRA, such as {others[0][:80]!r}"
        raise InvalidInputError(problem, "use a plain LoRA", reason="unsupported_lora", kind="")
    if not is_lora(shapes):
        raise InvalidInputError(f"{path} holds no LoRA", "use a LoRA file", reason="not_a_lora")


def _load(parts: DiffusionParts, path: Path) -> None:
    """Add the file's layers to the networks that it has some for, without fusing them."""
    from diffusers.loaders import lora_pipeline

    loaders = cast(Any, lora_pipeline)
    file = {"pretrained_model_name_or_path_or_dict": str(path.parent), "weight_name": path.name}
    file |= {"use_safetensors": True, "local_files_only": True, "return_lora_metadata": True}
    if attends_jointly(parts.denoiser):
        loader, alphas = loaders.SD3LoraLoaderMixin, None
        tensors, metadata = loader.lora_state_dict(**file)
        loader.load_lora_into_transformer(tensors, parts.denoiser, adapter_name=_ADAPTER, metadata=metadata)
    else:
        xl = len(parts.text_encoders) > 1
        loader = loaders.StableDiffusionXLLoraLoaderMixin if xl else loaders.StableDiffusionLoraLoaderMixin
        blocks = {"unet_config": parts.denoiser.config} if xl else {}  # kohya counts those of the original XL code
        tensors, alphas, metadata = loader.lora_state_dict(**file, **blocks)
        loader.load_lora_into_unet(tensors, alphas, parts.denoiser, adapter_name=_ADAPTER, metadata=metadata)
    for encoder, prefix in zip(parts.text_encoders, ("text_encoder", "text_encoder_2"), strict=False):
        options: dict[str, Any] = {"prefix": prefix, "adapter_name": _ADAPTER, "metadata": metadata}
        loader.load_lora_into_text_encoder(tensors, alphas, encoder, **options)


def _fuse(network: Any, weight: float) -> int:
    """Add the loaded layers to a network's weights, and remove them; returns how many there were."""
    from diffusers.utils import peft_utils
    from peft.tuners.lora import LoraLayer

    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    for layer in cast("list[Any]", layers):
        layer.scale_layer(weight)
        layer.merge(safe_merge=True, adapter_names=[_ADAPTER])
    if layers:
        cast(Any, peft_utils).recurse_remove_peft_layers(network)
        del network.peft_config
        network._hf_peft_config_loaded = False
        network.eval().requires_grad_(False)
    return len(layers)


@contextmanager
def _refusing_other_families(path: Path, model: str) -> Generator[None]:
    """Turn what diffusers and peft raise for layers that do not fit into InvalidInputError, and silence them."""
    try:
        with quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for library in ("diffusers", "transformers"):  # they log errors, too; quiet_libraries restores the level
                logging.getLogger(library).setLevel(logging.CRITICAL)
            yield
    except MemoryError as error:
        raise SetupError(f"no memory left to load {path.name}", "close other programs") from error
    except Exception as error:  # ValueError, RuntimeError or KeyError, by what does not fit
        mismatch = "size mismatch" in str(error)
        problem = "its matrices are of other sizes" if mismatch else first_line(error)[:200]
        raise _other_family(path, model, problem) from error


def _other_family(path: Path, model: str, problem: str, **values: object) -> InvalidInputError:
    return InvalidInputError(f"{path} does not fit {model}: {problem}", _HINT, reason="lora_of_other_family", **values)
