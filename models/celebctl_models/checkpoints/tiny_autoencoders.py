"""Tiny autoencoders in the layout of TAESD, which take the place of a model's own autoencoder.

Two forms are read: a diffusers folder of an ``AutoencoderTiny``, and the two files of the original release,
``NAME_encoder.safetensors`` and ``NAME_decoder.safetensors``, whose keys are the indices of a torch Sequential. A tiny
autoencoder works on the latents as the UNet sees them, so it must have been trained for the latents of its model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celebctl_models.checkpoints.checkpoint_io import load_component, quiet_libraries, require_packages
from celebctl_models.checkpoints.registry import read_json, vae_factor
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from torch import Tensor

    from celebctl_models.checkpoints.diffusion import DiffusionParts

_CLASS = "AutoencoderTiny"
_ENCODER, _DECODER = "_encoder.safetensors", "_decoder.safetensors"


def load_tiny_autoencoder(path: Path) -> Any:
    """A diffusers AutoencoderTiny on the CPU, float32, frozen.

    Args:
        path: A diffusers folder; or one of the two original files, or a folder with them.

    Raises:
        NotFoundError: A file is missing.
        InvalidInputError: Another kind of autoencoder.
        IntegrityError: A damaged file, or tensors of another structure.
        SetupError: Missing packages.
    """
    require_packages()
    if (path / "config.json").is_file():
        return _load_folder(path)
    encoder, decoder = _original_files(path)
    return _from_tensors(_read(encoder), _read(decoder), decoder.name)


def check_tiny_autoencoder(tiny: Any, parts: DiffusionParts) -> None:
    """Raise InvalidInputError when its latents have another size than those of the model."""
    channels, factor = int(tiny.config.latent_channels), vae_factor(dict(tiny.config))
    if (channels, factor) != (parts.latent_channels, parts.vae_factor):
        raise InvalidInputError(
            f"the tiny autoencoder has {channels} latent channels of {factor} x {factor} pixels,"
            f" {parts.name} has {parts.latent_channels} of {parts.vae_factor} x {parts.vae_factor}",
            "use one that was made for this model: taesd for Stable Diffusion 1.x and 2.x, taesdxl for XL",
            reason="tiny_autoencoder_mismatch",
        )


def _load_folder(path: Path) -> Any:
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    name = str(read_json(path / "config.json").get("_class_name"))
    if name != _CLASS:
        hint = f"use a folder of an {_CLASS}"
        raise InvalidInputError(f"{path} holds a {name}, not an {_CLASS}", hint, reason="not_a_tiny_autoencoder")
    with quiet_libraries():
        return load_component(AutoencoderTiny, path, "", use_safetensors=True).eval().requires_grad_(False)


def _original_files(path: Path) -> tuple[Path, Path]:
    """The encoder's and the decoder's file."""
    named = path
    if path.is_dir():
        found = sorted(path.glob(f"*{_DECODER}"))
        named = found[0] if len(found) == 1 else path / f"taesd{_DECODER}"
    stem = named.name.removesuffix(_ENCODER).removesuffix(_DECODER)
    if stem == named.name:
        hint = f"name a diffusers folder, or a file NAME{_DECODER}"
        raise InvalidInputError(f"{path} is not a tiny autoencoder", hint, reason="not_a_tiny_autoencoder")
    files = named.with_name(stem + _ENCODER), named.with_name(stem + _DECODER)
    for file in files:
        if not file.is_file():
            hint = "encoder and decoder belong together"
            raise NotFoundError(f"there is no file {file}", hint, reason="missing_file", path=file)
    return files


def _read(path: Path) -> dict[str, Tensor]:
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        return cast(Any, safetensors.torch).load_file(path)
    except SafetensorError as error:
        raise IntegrityError(f"{path} is damaged: {error}", "download the file again") from error


def _from_tensors(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor], name: str) -> Any:
    """The network of the original tensors. Its decoder has one layer more in front, which clamps and has no weights."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    try:
        renamed = {f"encoder.layers.{key}": tensor for key, tensor in encoder.items()}
        for key, tensor in decoder.items():
            index, _, rest = key.partition(".")
            renamed[f"decoder.layers.{int(index) - 1}.{rest}"] = tensor
        width, channels = decoder["1.weight"].shape[:2]
        in_encoder, in_decoder = _count_blocks(encoder), _count_blocks(decoder)
        network = cast(Any, AutoencoderTiny)(
            latent_channels=channels,
            encoder_block_out_channels=(width,) * len(in_encoder),
            decoder_block_out_channels=(width,) * len(in_decoder),
            num_encoder_blocks=in_encoder,
            num_decoder_blocks=in_decoder,
        )
        network.load_state_dict(renamed)
    except (KeyError, ValueError, RuntimeError) as error:  # other names, numbers or shapes
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "use the files as released"
        raise IntegrityError(f"{name} does not have the layout of TAESD: {cause}", hint) from error
    return network.float().eval().requires_grad_(False)


def _count_blocks(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Residual blocks of each level; a convolution without bias changes the level."""
    counts = [0]
    for index in sorted({int(key.partition(".")[0]) for key in tensors}):
        if f"{index}.conv.0.weight" in tensors:
            counts[-1] += 1
        elif f"{index}.bias" not in tensors:
            counts.append(0)
    return tuple(counts)
