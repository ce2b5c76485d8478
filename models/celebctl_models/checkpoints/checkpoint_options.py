"""What a user states about a checkpoint, where its files leave it open or should be overridden. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from celebctl_runtime.errors import InvalidInputError, UsageError

PREDICTIONS = ("epsilon", "v_prediction")
#: Empty tensors that mark v-prediction and zero terminal SNR in a single file (A1111, ComfyUI, Forge).
V_PREDICTION_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"


@dataclass(frozen=True)
class CheckpointOptions:
    """Facts and replacements for one checkpoint; None leaves them to its files.

    Attributes:
        prediction_type: What the UNet predicts, in diffusers' terms: "epsilon" or "v_prediction".
        zero_terminal_snr: Whether it was trained with betas rescaled to zero terminal SNR (Lin et al. 2023).
        clip_skip: Which layer of the text encoders the UNet reads, counted from the last, 1, as in A1111 and ComfyUI.
            Stable Diffusion 1 and 2 read the last, XL the last but one. diffusers counts from what the family reads.
        vae: An autoencoder in place of the checkpoint's own: a diffusers folder or a file.

    Raises:
        UsageError: A value that is not one of these.

    Example:
        >>> CheckpointOptions(prediction_type="v_prediction").schedule({}, ())
        {'prediction_type': 'v_prediction'}
    """

    prediction_type: str | None = None
    zero_terminal_snr: bool | None = None
    clip_skip: int | None = None
    vae: Path | None = None

    def __post_init__(self) -> None:
        if self.prediction_type not in (None, *PREDICTIONS):
            raise UsageError(
                f"a UNet cannot predict {self.prediction_type!r}",
                f"use {' or '.join(PREDICTIONS)}",
                reason="unknown_prediction",
            )
        if self.clip_skip is not None and self.clip_skip < 1:
            problem = f"clip skip {self.clip_skip} is out of range"
            raise UsageError(problem, "use 1 (the last layer) or more", reason="clip_skip_range")

    def over(self, other: CheckpointOptions) -> CheckpointOptions:
        """These options, and those of ``other`` where these are None."""
        stated = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(other, **{name: value for name, value in stated.items() if value is not None})

    def schedule(self, config: Mapping[str, Any], tensor_names: Collection[str]) -> dict[str, Any]:
        """A scheduler config with the facts stated here and by the marker tensors of a single file.

        Zero terminal SNR comes with trailing timesteps: with other spacings no step starts at pure noise.

        Args:
            config: diffusers' scheduler config.
            tensor_names: Names of the tensors in a single file; empty for a folder.

        Raises:
            InvalidInputError: Zero terminal SNR with epsilon prediction, which has no solution at pure noise.
        """
        stated: dict[str, Any] = {}
        if self.prediction_type is not None:
            stated["prediction_type"] = self.prediction_type
        elif V_PREDICTION_MARKER in tensor_names:
            stated["prediction_type"] = "v_prediction"
        zero = self.zero_terminal_snr
        if zero is None and ZERO_SNR_MARKER in tensor_names:
            zero = True
        if zero is not None:
            stated["rescale_betas_zero_snr"] = zero
        if zero:
            stated["timestep_spacing"] = "trailing"
        changed = {**config, **stated}
        defaulted = cast("list[str]", changed.get("_use_default_values", []))
        if stated and defaulted:
            changed["_use_default_values"] = [name for name in defaulted if name not in stated]
        if changed.get("rescale_betas_zero_snr") and changed.get("prediction_type", "epsilon") == "epsilon":
            raise InvalidInputError(
                "zero terminal SNR needs v-prediction: pure noise tells nothing about the image",
                "state v_prediction, or turn zero terminal SNR off",
                reason="zero_snr_needs_v_prediction",
            )
        return changed
