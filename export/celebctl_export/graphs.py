"""The graphs of a bundle as torch modules with fixed input and output names.

What these modules do not know: ONNX, files, tokenizers, samplers and people. A sampler reaches the step graph as a
table of numbers, a person as a row of the token table.
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
    latents_from_pixels,
    network_output,
    pixels_from_latents,
    states_from_ids,
)

Axes = tuple[int | str, ...]  # what each axis of a tensor is called; a whole number where it is fixed


class Size(NamedTuple):
    """How large an example is: pictures, latent height and width, contexts per picture (2 with guidance, 1 without)."""

    batch: int
    h: int
    w: int
    guides: int = 2


@dataclass(frozen=True)
class GraphIO:
    """What the inputs and outputs of a graph are called, in order, and each of their axes."""

    name: str
    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]


@dataclass(frozen=True)
class GraphSpec(GraphIO):
    """One graph of a bundle: its ends and a module whose forward() has them."""

    module: nn.Module
    make_inputs: Callable[[Size], dict[str, Tensor]]  # seeded
    pixels: int = 1  # per latent pixel along one side, where axes called height and width are inputs

    @property
    def io(self) -> GraphIO:
        """Without the module, which is large."""
        return GraphIO(self.name, self.inputs, self.outputs)


GraphMaker = Callable[[torch.dtype], GraphSpec]


class TextEncoderGraph(nn.Module):
    """input_ids (B, 77) int64 -> context (B, 77, D) float32.

    The hidden states alone: the pooled output of CLIP looks for the largest id, which appended people would upset.
    """

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        return context_from_ids(self.text_encoder, input_ids).float()


class StatesGraph(nn.Module):
    """One of two text encoders: input_ids (B, 77) int64 -> context (B, 77, D), the states before its last layer.

    With ``end`` also pooled (B, P), the projected last state at the first end token.
    """

    def __init__(self, text_encoder: nn.Module, end: int | None) -> None:
        super().__init__()
        self.text_encoder, self.end = text_encoder, end

    def forward(self, input_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        context, pooled = states_from_ids(self.text_encoder, input_ids, self.end)
        return context.float() if pooled is None else (context.float(), pooled.float())


class StepGraph(nn.Module):
    """One step of any linear multistep sampler, guidance and UNet included.

    state (2, B, 4, h, w): current latent and history; step (1,) int64: row of the tables; noise (B, 4, h, w);
    context (2, B, 77, D): negative prompt, then prompt, or (1, B, 77, D): prompt alone, no guidance and half the
    work; table (N, 2, 4): rows new latent and new history, columns latent, history, network output, noise;
    aux (N, 3): scale of the network's input, timestep, guidance. An XL model also takes pooled (G, B, P) and size_ids
    (6,); a latent consistency model is told the guidance instead of being guided.
    -> the next state, and step + 1, so that a loop needs no work on the host. All float32 around the network,
    which runs in its own dtype.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

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
        extras = UNetConditioning(None if pooled is None else pooled.flatten(0, 1), size_ids, guidance)
        outputs = self._network_outputs(state[0] * scale, timestep, context, extras)  # (2, B, 4, h, w), or (1, ...)
        # Classifier-free guidance: away from the negative prompt. With one context, first and last are the same.
        output = outputs[0] + guidance * (outputs[-1] - outputs[0])
        known = torch.cat([state, output.unsqueeze(0), noise.unsqueeze(0)])  # (4, B, 4, h, w)
        matrix = table.index_select(0, step).squeeze(0)  # (2, 4)
        return (matrix @ known.flatten(1)).reshape_as(state), step + 1

    def _network_outputs(self, x: Tensor, timestep: Tensor, context: Tensor, extras: UNetConditioning) -> Tensor:
        """The network's output for x (B, 4, h, w) under every context, all in one batch."""
        guides, batch = context.shape[0], x.shape[0]
        dtype = cast(torch.dtype, cast(Any, self.unet).dtype)
        # repeat and unflatten instead of cat and chunk: with the latter, torch.export fixes B to the example's value.
        repeated = x.repeat(guides, 1, 1, 1).to(dtype)
        timesteps = timestep.expand(guides * batch)
        flat = context.flatten(0, 1).to(dtype)
        outputs: Any = network_output(self.unet, repeated, timesteps, flat, extras).float()
        return outputs.unflatten(0, (guides, batch))


class VaeDecoderGraph(nn.Module):
    """latent (B, 4, h, w) float32 as the step graph leaves it -> image (B, 3, H, W) float32 in [-1, 1]."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        return pixels_from_latents(self.vae, latent.to(cast(torch.dtype, cast(Any, self.vae).dtype))).float()


class VaeEncoderGraph(nn.Module):
    """image (B, 3, H, W) float32 in [-1, 1] -> latent (B, 4, h, w) float32 as the step graph wants it.

    The mean of the encoder's distribution, so that the same picture always gives the same latent.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        return latents_from_pixels(self.vae, image.to(cast(torch.dtype, cast(Any, self.vae).dtype))).float()


def graph_makers(parts: DiffusionParts) -> list[GraphMaker]:
    """The graphs of a bundle, each to be made on the CPU when it is wanted, for networks are copied to another dtype.

    UNet and autoencoder compute in the dtype asked for, the text encoders in float32, and so does an autoencoder that
    overflows in float16 and says so.
    """
    kept = bool(parts.vae.config.force_upcast and parts.pooled_width)

    def text_encoder(number: int, _: torch.dtype) -> GraphSpec:
        return _text_encoder_spec(parts, number, _as(parts.text_encoders[number], torch.float32))

    def vae(dtype: torch.dtype) -> Any:
        return _as(parts.vae, torch.float32 if kept else dtype)

    return [
        *(partial(text_encoder, number) for number in range(len(parts.text_encoders))),
        lambda dtype: _step_spec(parts, _as(parts.unet, dtype)),
        lambda dtype: _vae_decoder_spec(parts, vae(dtype)),
        lambda dtype: _vae_encoder_spec(parts, vae(dtype)),
    ]


def encoder_graph(number: int) -> str:
    """What the graph of a text encoder is called, counted from 0."""
    return "text_encoder" if number == 0 else f"text_encoder_{number + 1}"


def _as(network: Any, dtype: torch.dtype) -> Any:
    """The network on the CPU in `dtype`: itself where it is so already, otherwise a copy."""
    if network.dtype == dtype and network.device.type == "cpu":
        return network
    with quiet_libraries():
        return copy.deepcopy(network).to("cpu", dtype)


def _text_encoder_spec(parts: DiffusionParts, number: int, encoder: nn.Module) -> GraphSpec:
    rows, width = parts.token_table(number).shape
    length, last = parts.max_length, number == len(parts.text_encoders) - 1

    def make_inputs(size: Size) -> dict[str, Tensor]:
        ids = torch.randint(parts.end_id, (size.batch, length), generator=_seeded()) % rows
        ids[:, length // 3] = parts.end_id  # a prompt that ends
        return {"input_ids": ids}

    outputs: dict[str, Axes] = {"context": ("batch", length, width)}
    if len(parts.text_encoders) == 1:
        module: nn.Module = TextEncoderGraph(encoder)
    else:
        module = StatesGraph(encoder, parts.end_id if last else None)
        if last:
            outputs["pooled"] = ("batch", parts.pooled_width)
    return GraphSpec(encoder_graph(number), {"input_ids": ("batch", length)}, outputs, module.eval(), make_inputs)


def _step_spec(parts: DiffusionParts, unet: nn.Module) -> GraphSpec:
    width, channels, length = parts.context_width, parts.latent_channels, parts.max_length
    pooled = parts.pooled_width

    def make_inputs(size: Size) -> dict[str, Tensor]:
        (batch, h, w, guides), seed, steps = size, _seeded(), 11
        aux = torch.tensor([[0.9, 40.0 * (i + 1), 2.5] for i in range(steps)])
        made = {
            "state": torch.randn(2, batch, channels, h, w, generator=seed),
            "step": torch.tensor([steps // 2]),
            "noise": torch.randn(batch, channels, h, w, generator=seed),
            "context": torch.randn(guides, batch, length, width, generator=seed),
            "table": torch.randn(steps, 2, 4, generator=seed),
            "aux": aux,
        }
        if pooled:
            made["pooled"] = torch.randn(guides, batch, pooled, generator=seed)
            made["size_ids"] = torch.tensor([16.0, 24.0, 0.0, 0.0, 16.0, 24.0])
        return made

    inputs: dict[str, Axes] = {
        "state": (2, "batch", channels, "h", "w"),
        "step": (1,),
        "noise": ("batch", channels, "h", "w"),
        "context": ("guides", "batch", length, width),
        "table": ("steps", 2, 4),
        "aux": ("steps", 3),
    }
    if pooled:
        inputs |= {"pooled": ("guides", "batch", pooled), "size_ids": (6,)}
    outputs: dict[str, Axes] = {"next_state": inputs["state"], "next_step": (1,)}
    return GraphSpec("step", inputs, outputs, StepGraph(unet).eval(), make_inputs)


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
