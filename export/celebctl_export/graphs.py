"""The graphs of a bundle as torch modules with fixed input and output names.

A sampler reaches the step graph as a table of numbers, a person as two rows of the token table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from celebctl_models.checkpoints.checkpoint_io import quiet_libraries
from celebctl_models.checkpoints.diffusion import (
    DiffusionParts,
    UNetConditioning,
    context_from_ids,
    has_projection,
    latents_from_pixels,
    network_output,
    pixels_from_latents,
    rescale_guided,
    states_from_ids,
)

Axes = tuple[int | str, ...]  # of a tensor: the size of a fixed axis, the name of a dynamic one


class Size(NamedTuple):
    """Size of example inputs.

    Images, latent height and width, contexts per image (2 with guidance, 1 without), windows of a prompt.
    """

    batch: int
    h: int
    w: int
    guides: int = 2
    windows: int = 1


@dataclass(frozen=True)
class GraphIO:
    """Names and axes of a graph's inputs and outputs, in order."""

    name: str
    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]


@dataclass(frozen=True)
class GraphSpec(GraphIO):
    """A graph and the module that computes it.

    Attributes:
        module: Its forward() takes the inputs and returns the outputs.
        make_inputs: Seeded example inputs.
        pixels: Image pixels per latent pixel along one side, for graphs whose input is an image.
    """

    module: nn.Module
    make_inputs: Callable[[Size], dict[str, Tensor]]
    pixels: int = 1

    @property
    def io(self) -> GraphIO:
        """The graph without its module, which is large."""
        return GraphIO(self.name, self.inputs, self.outputs)


GraphMaker = Callable[[torch.dtype], GraphSpec]


class TextEncoderGraph(nn.Module):
    """input_ids (B, 77) int64 -> context (B, 77, D) float32.

    Without the pooled output: CLIP takes it at the largest id, which would be a person's.
    """

    def __init__(self, text_encoder: nn.Module, layer: int) -> None:
        super().__init__()
        self.text_encoder, self.layer = text_encoder, layer

    def forward(self, input_ids: Tensor) -> Tensor:
        return context_from_ids(self.text_encoder, input_ids, layer=self.layer).float()


class StatesGraph(nn.Module):
    """One of two text encoders: input_ids (B, 77) int64 -> context (B, 77, D), its states after ``layer``.

    With ``end`` (an id) also pooled (B, P), the projected last state at the first end token.
    """

    def __init__(self, text_encoder: nn.Module, end: int | None, layer: int) -> None:
        super().__init__()
        self.text_encoder, self.end, self.layer = text_encoder, end, layer

    def forward(self, input_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        context, pooled = states_from_ids(self.text_encoder, input_ids, self.end, self.layer)
        return context.float() if pooled is None else (context.float(), pooled.float())


class StepGraph(nn.Module):
    """One step of any linear multistep sampler, with classifier-free guidance and the UNet.

    Inputs:
        state (2, B, C, h, w): current latent and history.
        step (1,) int64: row of the tables.
        noise (B, C, h, w).
        context (2, B, T, D): negative prompt, then prompt; (1, B, T, D) without guidance, for half the work. T is 77,
            or a multiple of it for prompts of several windows.
        table (N, 2, 4): rows new latent and new history; columns latent, history, network output, noise.
        aux (N, 3): scale of the network's input, timestep, guidance.
        pooled (G, B, P): XL and SD3 models only.
        size_ids (6,): XL models only.
    Outputs: the next state, and step + 1, so that a loop needs no work on the host.

    Everything around the network is float32. Latent consistency models take the guidance as an input of the UNet.
    """

    def __init__(self, unet: nn.Module, rescale: float = 0.0) -> None:
        super().__init__()
        self.unet, self.rescale = unet, rescale

    def forward(
        self,
        state: Tensor,
        step: Tensor,
        noise: Tensor,
        context: Tensor,
        table: Tensor,
        aux: Tensor,
        pooled: Tensor | None = None,
        size_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        scale, timestep, guidance = aux.index_select(0, step).unbind(dim=1)  # (1,) each
        conditioning = UNetConditioning(None if pooled is None else pooled.flatten(0, 1), size_ids, guidance)
        outputs = self._network_outputs(state[0] * scale, timestep, context, conditioning)  # (G, B, 4, h, w)
        # Classifier-free guidance. With one context, first and last are the same.
        output = outputs[0] + guidance * (outputs[-1] - outputs[0])
        if self.rescale:
            output = rescale_guided(output, outputs[-1], self.rescale)
        terms = torch.cat([state, output.unsqueeze(0), noise.unsqueeze(0)])  # (4, B, 4, h, w)
        matrix = table.index_select(0, step).squeeze(0)  # (2, 4)
        return (matrix @ terms.flatten(1)).reshape_as(state), step + 1

    def _network_outputs(self, x: Tensor, timestep: Tensor, context: Tensor, conditioning: UNetConditioning) -> Tensor:
        """The network's outputs (G, B, 4, h, w) for x (B, 4, h, w) under each context, in one batch."""
        guides, batch = context.shape[0], x.shape[0]
        dtype = cast(torch.dtype, cast(Any, self.unet).dtype)
        # Not cat and chunk: with those, torch.export specializes B to the example's value.
        repeated = x.repeat(guides, 1, 1, 1).to(dtype)
        timesteps = timestep.expand(guides * batch)
        flat = context.flatten(0, 1).to(dtype)
        outputs: Any = network_output(self.unet, repeated, timesteps, flat, conditioning).float()
        return outputs.unflatten(0, (guides, batch))


class VaeDecoderGraph(nn.Module):
    """Scaled latent (B, C, h, w) float32 -> image (B, 3, H, W) float32 in [-1, 1]."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        return pixels_from_latents(self.vae, latent.to(cast(torch.dtype, cast(Any, self.vae).dtype))).float()


class VaeEncoderGraph(nn.Module):
    """Image (B, 3, H, W) float32 in [-1, 1] -> scaled latent (B, C, h, w) float32.

    The mean of the encoder's distribution: deterministic.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        return latents_from_pixels(self.vae, image.to(cast(torch.dtype, cast(Any, self.vae).dtype))).float()


def graph_makers(parts: DiffusionParts) -> list[GraphMaker]:
    """Functions that make the graphs of a bundle on the CPU, one at a time, as networks may be copied to another dtype.

    Denoiser and VAE compute in the given dtype; text encoders, and VAEs that must be upcast, in float32.
    """

    def text_encoder(number: int, _: torch.dtype) -> GraphSpec:
        return _text_encoder_spec(parts, number, _as(parts.text_encoders[number], torch.float32))

    def vae(dtype: torch.dtype) -> Any:
        return _as(parts.vae, torch.float32 if parts.upcasts_vae else dtype)

    return [
        *(partial(text_encoder, number) for number in range(len(parts.text_encoders))),
        lambda dtype: _step_spec(parts, _as(parts.denoiser, dtype)),
        lambda dtype: _vae_decoder_spec(parts, vae(dtype)),
        lambda dtype: _vae_encoder_spec(parts, vae(dtype)),
    ]


def encoder_graph(number: int) -> str:
    """Name of the graph of text encoder ``number`` (from 0)."""
    return "text_encoder" if number == 0 else f"text_encoder_{number + 1}"


def _as(network: Any, dtype: torch.dtype) -> Any:
    """The network on the CPU in ``dtype``: itself if it is so already, else a copy."""
    if network.dtype == dtype and network.device.type == "cpu":
        return network
    with quiet_libraries():
        return copy.deepcopy(network).to("cpu", dtype)


def _text_encoder_spec(parts: DiffusionParts, number: int, encoder: nn.Module) -> GraphSpec:
    rows, width = parts.token_table(number).shape
    length, pooled = parts.max_length, has_projection(encoder)

    def make_inputs(size: Size) -> dict[str, Tensor]:
        ids = torch.randint(parts.end_id, (size.batch, length), generator=_seeded()) % rows
        ids[:, length // 3] = parts.end_id  # the end of the prompt
        return {"input_ids": ids}

    outputs: dict[str, Axes] = {"context": ("batch", length, width)}
    if len(parts.text_encoders) == 1:
        module: nn.Module = TextEncoderGraph(encoder, parts.context_layer)
    else:
        module = StatesGraph(encoder, parts.end_id if pooled else None, parts.context_layer)
        if pooled:
            outputs["pooled"] = ("batch", int(cast(Any, encoder).config.projection_dim))
    return GraphSpec(encoder_graph(number), {"input_ids": ("batch", length)}, outputs, module.eval(), make_inputs)


def _step_spec(parts: DiffusionParts, unet: nn.Module) -> GraphSpec:
    width, channels, length = parts.context_width, parts.latent_channels, parts.max_length
    pooled, takes_sizes = parts.pooled_width, parts.size_ids(*parts.native_size) is not None

    def make_inputs(size: Size) -> dict[str, Tensor]:
        (batch, h, w, guides, windows), seed, steps = size, _seeded(), 11
        aux = torch.tensor([[0.9, 40.0 * (i + 1), 2.5] for i in range(steps)])
        inputs = {
            "state": torch.randn(2, batch, channels, h, w, generator=seed),
            "step": torch.tensor([steps // 2]),
            "noise": torch.randn(batch, channels, h, w, generator=seed),
            "context": torch.randn(guides, batch, windows * length, width, generator=seed),
            "table": torch.randn(steps, 2, 4, generator=seed),
            "aux": aux,
        }
        if pooled:
            inputs["pooled"] = torch.randn(guides, batch, pooled, generator=seed)
        if takes_sizes:
            inputs["size_ids"] = torch.tensor([16.0, 24.0, 0.0, 0.0, 16.0, 24.0])
        return inputs

    inputs: dict[str, Axes] = {
        "state": (2, "batch", channels, "h", "w"),
        "step": (1,),
        "noise": ("batch", channels, "h", "w"),
        "context": ("guides", "batch", "tokens", width),
        "table": ("steps", 2, 4),
        "aux": ("steps", 3),
    }
    if pooled:
        inputs["pooled"] = ("guides", "batch", pooled)
    if takes_sizes:
        inputs["size_ids"] = (6,)
    outputs: dict[str, Axes] = {"next_state": inputs["state"], "next_step": (1,)}
    return GraphSpec("step", inputs, outputs, StepGraph(unet, parts.guidance_rescale).eval(), make_inputs)


def _vae_decoder_spec(parts: DiffusionParts, vae: nn.Module) -> GraphSpec:
    channels = parts.latent_channels

    def make_inputs(size: Size) -> dict[str, Tensor]:
        return {"latent": torch.randn(size.batch, channels, size.h, size.w, generator=_seeded())}

    inputs: dict[str, Axes] = {"latent": ("batch", channels, "h", "w")}
    outputs: dict[str, Axes] = {"image": ("batch", 3, "height", "width")}
    return GraphSpec("vae_decoder", inputs, outputs, VaeDecoderGraph(vae).eval(), make_inputs)


def _vae_encoder_spec(parts: DiffusionParts, vae: nn.Module) -> GraphSpec:
    channels, factor = parts.latent_channels, parts.vae_factor

    def make_inputs(size: Size) -> dict[str, Tensor]:
        shape = (size.batch, 3, factor * size.h, factor * size.w)
        return {"image": torch.rand(*shape, generator=_seeded()) * 2 - 1}

    inputs: dict[str, Axes] = {"image": ("batch", 3, "height", "width")}
    outputs: dict[str, Axes] = {"latent": ("batch", channels, "h", "w")}
    return GraphSpec("vae_encoder", inputs, outputs, VaeEncoderGraph(vae).eval(), make_inputs, pixels=factor)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
