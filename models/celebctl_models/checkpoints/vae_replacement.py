"""Another autoencoder in place of a checkpoint's own: fine-tuned decoders, or a file without one.

Two autoencoders of the same structure may have unrelated latents (SD 1's and SDXL's have), and files state no family.
So the latents themselves are compared, on a drawn portrait.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from celebctl_models.checkpoints.checkpoint_io import first_line, load_component, quiet_libraries, tensor_shapes
from celebctl_models.checkpoints.checkpoint_layout import is_lora, latent_channels, refuse_normalized_latents
from celebctl_models.checkpoints.registry import read_json, whole_number
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError

#: Relative distance between the latents of two autoencoders of one family. Fine-tuning leaves the encoder as it is
#: (sd-vae-ft-mse) or its latents close (sdxl-vae-fp16-fix); those of unrelated encoders differ by about 1.4.
MAX_LATENT_DISTANCE = 0.5
_PORTRAIT_SIZE = 256  # pixels
_HINT = "use an autoencoder of this checkpoint's family"


@dataclass(frozen=True)
class ExpectedVae:
    """What the checkpoint's UNet was trained with.

    Attributes:
        config: A folder or hub id with the config of its autoencoder in vae/.
        channels: Of its latents.
        scaling_factor: From the autoencoder's latents to those of the UNet.
        own: The checkpoint's own autoencoder, None where it has none.
    """

    config: str
    channels: int
    scaling_factor: float
    own: Any | None


def load_vae(source: Path, expected: ExpectedVae) -> Any:
    """Read an autoencoder, float32, and check that its latents are those of the checkpoint.

    Args:
        source: A diffusers folder (of the autoencoder, or of a model with vae/) or a file.
        expected: What it replaces.

    Raises:
        NotFoundError: No such folder or file.
        InvalidInputError: No autoencoder, or one of another family; with the number that differs.
        IntegrityError: A damaged file.
    """
    if source.is_dir():
        vae = _from_folder(source, expected)
    elif source.is_file():
        vae = _from_file(source, expected)
    else:
        raise NotFoundError(f"there is no autoencoder {source}", "give a folder or a .safetensors file")
    vae.eval().requires_grad_(False)
    distance = 0.0 if expected.own is None else latent_distance(expected.own, vae)
    if not distance <= MAX_LATENT_DISTANCE:
        problem = f"its latents differ from the checkpoint's by {distance:.2f} (at most {MAX_LATENT_DISTANCE})"
        raise _other_family(source, problem, distance=f"{distance:.2f}")
    return vae


def latent_distance(one: Any, other: Any) -> float:
    """Relative distance between the latents that two autoencoders give for a drawn portrait, each times its factor.

    0 for the same encoder, about 1.4 for unrelated ones.
    """
    import numpy as np
    import torch

    from celebctl_models.mini.world import draw_portrait

    portrait = np.asarray(draw_portrait(0, _PORTRAIT_SIZE), dtype=np.float32)
    pixels = torch.as_tensor(portrait / 127.5 - 1.0).permute(2, 0, 1)[None]
    with torch.no_grad():
        first, second = (
            vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float().cpu() * vae.config.scaling_factor
            for vae in (one, other)
        )
    return float((first - second).norm() / first.norm())


def _from_folder(source: Path, expected: ExpectedVae) -> Any:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    folder = source / "vae" if (source / "vae").is_dir() else source
    config = read_json(folder / "config.json")
    refuse_normalized_latents(source.name, config)
    _check_channels(source, whole_number(config, "latent_channels", 4), expected.channels)
    factor: Any = config.get("scaling_factor", 0.18215)  # diffusers' default
    if not isinstance(factor, int | float):
        raise InvalidInputError(f"the scaling factor of {source} is no number", _HINT, reason="not_an_autoencoder")
    if abs(factor / expected.scaling_factor - 1) > 0.01:
        problem = f"its scaling factor is {factor:g}, the checkpoint's {expected.scaling_factor:g}"
        raise _other_family(source, problem, scaling_factor=factor)
    options = {"torch_dtype": torch.float32, "use_safetensors": True}
    with quiet_libraries():
        return load_component(AutoencoderKL, folder.parent, folder.name, **options)


def _from_file(source: Path, expected: ExpectedVae) -> Any:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    shapes = tensor_shapes(source)
    channels = latent_channels(shapes)
    if channels is None:
        content = "it holds a LoRA" if is_lora(shapes) else "it holds none"
        raise InvalidInputError(f"{source} is no autoencoder: {content}", _HINT, reason="not_an_autoencoder")
    _check_channels(source, channels, expected.channels)
    options = {"config": expected.config, "subfolder": "vae", "local_files_only": Path(expected.config).is_dir()}
    try:
        with quiet_libraries():
            return cast(Any, AutoencoderKL).from_single_file(str(source), torch_dtype=torch.float32, **options)
    except Exception as error:  # tensors that do not fit the config, or no config: no common base class
        raise IntegrityError(f"cannot load {source.name}: {first_line(error)}", _HINT) from error


def _check_channels(source: Path, channels: int, expected: int) -> None:
    if channels != expected:
        raise _other_family(source, f"its latents have {channels} channels, not {expected}", channels=channels)


def _other_family(source: Path, problem: str, **values: object) -> InvalidInputError:
    return InvalidInputError(f"{source} is of another family: {problem}", _HINT, reason="vae_of_other_family", **values)
