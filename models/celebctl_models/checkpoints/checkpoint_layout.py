"""What a single file holds, by the names and shapes of its tensors: refused before its weights are read.

Names are those of the original Stable Diffusion code, which trainers of SD and SDXL write. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping

from celebctl_runtime.errors import InvalidInputError

Shapes = Mapping[str, tuple[int, ...]]

_UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
_TEXT_ENCODERS = ("cond_stage_model.", "conditioner.embedders.")
_REFINER, _XL = "conditioner.embedders.0.model.", "conditioner.embedders.1."
_VAE_PREFIXES = ("first_stage_model.", "vae.", "")
_VAE_INPUT = "decoder.conv_in.weight"
_LORA = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", ".lora.up.", ".hada_w1", ".lokr_w1")
_OTHER_FAMILIES = {"joint_blocks.": "Stable Diffusion 3", "double_blocks.": "Flux", "cap_embedder.": "Lumina"}
#: Channels of a UNet's input besides those of the latents: what they are for.
_TASKS = {5: "for inpainting", 1: "for depth", 4: "for instructions on an image"}
#: Tensors that mark a parametrisation by sigma (ComfyUI), or latents with a mean and deviation of their own.
_EDM_MARKERS = ("edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std")
_HINT = "use a text-to-image checkpoint of Stable Diffusion 1.x, 2.x or XL, or the diffusers folder of one of 3"


def is_xl(shapes: Shapes) -> bool:
    """Whether a checkpoint has the two text encoders of XL."""
    return any(name.startswith(_XL) for name in shapes)


def latent_channels(shapes: Shapes) -> int | None:
    """Channels of the latents of the autoencoder in a file; None for a file without one."""
    found = (shapes.get(f"{prefix}{_VAE_INPUT}") for prefix in _VAE_PREFIXES)
    return next((shape[1] for shape in found if shape is not None and len(shape) == 4), None)


def refuse_layout(name: str, shapes: Shapes) -> None:
    """Raise InvalidInputError unless the file is a whole text-to-image checkpoint of a supported family.

    Args:
        name: Of the file, for the message.
        shapes: Names and shapes of its tensors.
    """
    if _UNET_INPUT not in shapes:
        raise InvalidInputError(f"{name} is no checkpoint: {_content(shapes)}", _HINT, reason="not_a_checkpoint")
    markers = [marker for marker in _EDM_MARKERS if marker in shapes]
    if markers:
        problem = f"{name} is trained with another noise parametrisation (EDM), as its tensor {markers[0]} tells"
        raise InvalidInputError(problem, _HINT, reason="unsupported_prediction", marker=markers[0])
    if len(shapes[_UNET_INPUT]) != 4:
        problem = f"{name} is no checkpoint: {_UNET_INPUT} has shape {shapes[_UNET_INPUT]}"
        raise InvalidInputError(problem, _HINT, reason="not_a_checkpoint")
    refuse_channels(name, shapes[_UNET_INPUT][1], 4)
    if any(key.startswith(_REFINER) for key in shapes) and not is_xl(shapes):
        raise InvalidInputError(f"{name} is a refiner", "use the base model", reason="not_a_checkpoint")
    if not any(key.startswith(_TEXT_ENCODERS) for key in shapes):
        problem = f"{name} is no whole checkpoint: it holds no text encoder"
        raise InvalidInputError(problem, _HINT, reason="not_a_checkpoint")


def refuse_normalized_latents(name: str, vae_config: Mapping[str, object]) -> None:
    """Raise InvalidInputError for an autoencoder whose latents have a mean and deviation for each channel."""
    for key in ("latents_mean", "latents_std"):
        if vae_config.get(key) is not None:
            problem = f"the latents of {name} are normalised by {key}, which is not supported"
            raise InvalidInputError(problem, _HINT, reason="unsupported_latents", key=key)


def refuse_channels(name: str, channels: int, expected: int) -> None:
    """Raise InvalidInputError when a UNet takes more than latents as its input: 9 channels are for inpainting."""
    if channels != expected:
        task = _TASKS.get(channels - expected, "for another task")
        raise InvalidInputError(
            f"the UNet of {name} is {task}: it has {channels} input channels, not {expected}",
            _HINT,
            reason="unet_of_other_task",
            channels=channels,
        )


def _content(shapes: Shapes) -> str:
    """What a file without a UNet holds."""
    if is_lora(shapes):
        return "it holds a LoRA"
    family = next((title for part, title in _OTHER_FAMILIES.items() if any(part in key for key in shapes)), None)
    if family is not None:
        return f"it holds a network of {family}"
    if latent_channels(shapes) is not None:
        return "it holds an autoencoder only"
    return "it holds no UNet of Stable Diffusion"


def is_lora(shapes: Shapes) -> bool:
    """Whether a file holds a LoRA."""
    return any(part in key for key in shapes for part in _LORA)
