"""The denoiser of Stable Diffusion 3: a transformer in which text and image tokens attend jointly (MMDiT).

Esser et al. 2024 (arXiv 2403.03206), section 4; the calls are those of diffusers' `StableDiffusion3Pipeline` without
its third text encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor

T5_TOKENS = 256  # `max_sequence_length` of diffusers' pipeline


def attends_jointly(network: Any) -> bool:
    """Whether a denoiser is the transformer of Stable Diffusion 3; other denoisers are UNets."""
    return "joint_attention_dim" in network.config


def joint_context(context: Tensor, width: int) -> Tensor:
    """The transformer's text tokens: CLIP's states, and zeros in place of T5's.

    The transformer was trained with text encoders left out at random, so that it works without T5.

    Args:
        context: CLIP's states (B, 77, D).
        width: The transformer's `joint_attention_dim`, at least D.

    Returns:
        (B, 77 + 256, width).

    Example:
        >>> import torch
        >>> joint_context(torch.ones(1, 77, 2048), 4096).shape
        torch.Size([1, 333, 4096])
    """
    import torch.nn.functional as F

    return F.pad(context, (0, width - context.shape[-1], 0, T5_TOKENS))


def transformer_output(transformer: Any, x: Tensor, timesteps: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
    """The flow (B, C, h, w) that the transformer predicts, noise minus image.

    Args:
        transformer: diffusers SD3Transformer2DModel.
        x: Latents (B, C, h, w).
        timesteps: (B,) or scalar, 1000 times the noise level.
        context: CLIP's states (B, 77, D).
        pooled: CLIP's pooled texts (B, P), of all text encoders.
    """
    output = transformer(
        hidden_states=x,
        encoder_hidden_states=joint_context(context, transformer.config.joint_attention_dim),
        pooled_projections=pooled.to(context),
        timestep=timesteps.expand(x.shape[0]),
        return_dict=False,
    )
    return cast("Tensor", output[0])
