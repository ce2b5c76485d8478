"""Loads any model of the Stable Diffusion family as separate networks, for learning and for the exporter.

The interfaces of diffusers and transformers are used here only: callers work with token ids, contexts, latents and
pixels.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celebctl_models.checkpoints.checkpoint_io import freeze, load_component, quiet_libraries, require_packages
from celebctl_models.checkpoints.checkpoint_layout import refuse_channels, refuse_normalized_latents
from celebctl_models.checkpoints.checkpoint_options import CheckpointOptions
from celebctl_models.checkpoints.hub_download import fetch_folder
from celebctl_models.checkpoints.joint_attention import attends_jointly, transformer_output
from celebctl_models.checkpoints.known_models import KNOWN, denoiser_of
from celebctl_models.checkpoints.registry import (
    INDEX_FILE,
    Location,
    ModelCard,
    card_for,
    locate,
    read_json,
    whole_number,
)
from celebctl_models.checkpoints.registry import vae_factor as factor_of
from celebctl_models.checkpoints.text_encoders import CheckpointFile, TextEncoderParts, load_file, load_text_components
from celebctl_models.checkpoints.vae_replacement import ExpectedVae, load_vae
from celebctl_runtime.errors import IntegrityError, InvalidInputError, UsageError
from celebctl_runtime.request import MAX_SIDE
from celebctl_runtime.sampling.schedule import FLOW, ScheduleConfig

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import torch
    from torch import Tensor, nn

    from celebctl_runtime.bundle.manifest import LoraInfo


@dataclass(frozen=True)
class DiffusionParts(TextEncoderParts):
    """A text-to-image model as separate networks, all frozen and in evaluation mode.

    The networks are typed `Any`: diffusers' classes are partly untyped, and the functions below are their interface.

    Attributes:
        denoiser: The denoiser: diffusers UNet2DConditionModel, or the SD3Transformer2DModel of `StableDiffusion3Parts`.
        vae: diffusers AutoencoderKL, or an AutoencoderTiny in its place.
        scheduler_config: scheduler_config.json as a dict.
        zero_empty_prompt: Whether an empty negative prompt is encoded as zeros (SDXL base).
        vae_source: The file name of an autoencoder that replaces the checkpoint's own, else "".
        loras: LoRAs that were added to the weights.
    """

    denoiser: Any
    vae: Any
    scheduler_config: dict[str, Any]
    zero_empty_prompt: bool = False
    vae_source: str = ""
    loras: tuple[LoraInfo, ...] = ()

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel along one side."""
        return factor_of(dict(self.vae.config))

    @property
    def size_multiple(self) -> int:
        """Image height and width must be multiples of this: each UNet level but the last halves the latent."""
        return self.vae_factor * 2 ** (len(self.denoiser.config.block_out_channels) - 1)

    @property
    def max_side(self) -> int:
        """Largest image height and width in pixels."""
        return MAX_SIDE

    @property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.card.native_size, self.card.native_size

    @property
    def latent_channels(self) -> int:
        """Channels of the latents: 4 for Stable Diffusion."""
        return int(self.vae.config.latent_channels)

    @property
    def context_width(self) -> int:
        """Width D of the context: the sum over all text encoders."""
        return sum(int(self.token_table(e).shape[1]) for e in range(len(self.text_encoders)))

    @property
    def pooled_width(self) -> int:
        """Width P of the pooled text embedding that the denoiser takes as input; 0 for UNets before XL."""
        if self.denoiser.config.addition_embed_type != "text_time":
            return 0
        return int(self.text_encoders[-1].config.projection_dim)

    @property
    def upcasts_vae(self) -> bool:
        """Whether the autoencoder must not be in float16: SDXL's overflows unless its config says otherwise."""
        return len(self.text_encoders) > 1 and bool(self.vae.config.force_upcast)

    @property
    def guidance_is_embedded(self) -> bool:
        """Whether the guidance scale is an input of the UNet (latent consistency models)."""
        return self.denoiser.config.time_cond_proj_dim is not None

    @property
    def guidance_rescale(self) -> float:
        """How far guided outputs are scaled back, see `rescale_guided`; 0 for most models."""
        return float(self.card.defaults.get("guidance_rescale", 0.0))

    def size_ids(self, height: int, width: int) -> Tensor | None:
        """SDXL's micro-conditioning: original size, crop and target size, (6,) float32; None for other models."""
        import torch

        if not self.pooled_width:
            return None
        return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)

    @property
    def weights_digest(self) -> str:
        """A hash of the UNet's and autoencoder's weights, 16 hexadecimal digits; a fine-tuned model may have the same
        token table. The first 64 numbers of each tensor are hashed, as float32."""
        digest = hashlib.sha256()
        for network in (self.denoiser, self.vae):
            for name, tensor in network.state_dict().items():
                digest.update(name.encode() + tensor.flatten()[:64].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def prediction_type(self) -> str:
        """What the denoiser predicts: "epsilon", "v_prediction", "sample" or "flow_prediction" (diffusers' terms)."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def schedule(self) -> ScheduleConfig:
        """The noise schedule, at the native size. Raises IntegrityError for one that is not supported."""
        height, width = self.native_size
        return ScheduleConfig.from_dict(self.scheduler_config).for_image(height * width // self.size_multiple**2)

    @property
    def scaling_factor(self) -> float:
        """Factor from the autoencoder's latents to those of the UNet."""
        return float(self.vae.config.scaling_factor)


@dataclass(frozen=True)
class StableDiffusion3Parts(DiffusionParts):
    """Stable Diffusion 3 or 3.5 with its two CLIP text encoders, without T5; `denoiser` is an SD3Transformer2DModel.

    Raises:
        IntegrityError: Text encoders or a scheduler that do not fit the transformer.
    """

    def __post_init__(self) -> None:
        if self.schedule.prediction_type != self.prediction_type:
            raise IntegrityError(
                f"the scheduler of {self.name} is not one of flow matching",
                "use the scheduler config that came with the model, a FlowMatchEulerDiscreteScheduler",
                reason="unsupported_scheduler",
            )
        config = self.denoiser.config
        pooled = sum(int(encoder.config.projection_dim) for encoder in self.text_encoders)
        if self.context_width > config.joint_attention_dim or pooled != config.pooled_projection_dim:
            raise IntegrityError(
                f"the text encoders of {self.name} give states of {self.context_width} and pooled texts of {pooled}"
                f" numbers; its transformer takes {config.joint_attention_dim} and {config.pooled_projection_dim}",
                "the files belong to different models: download them again",
            )

    @property
    def size_multiple(self) -> int:
        """Image height and width must be multiples of this: the transformer's patches are squares of latent pixels."""
        return self.vae_factor * int(self.denoiser.config.patch_size)

    @property
    def max_side(self) -> int:
        """Largest image height and width in pixels: the transformer has position embeddings for so many patches."""
        return min(super().max_side, int(self.denoiser.config.pos_embed_max_size) * self.size_multiple)

    @property
    def pooled_width(self) -> int:
        """Width P of the pooled text of both text encoders."""
        return int(self.denoiser.config.pooled_projection_dim)

    @property
    def upcasts_vae(self) -> bool:
        """Its autoencoder runs in float16, as in diffusers' pipeline; its config has force_upcast only by default."""
        return False

    @property
    def guidance_is_embedded(self) -> bool:
        """The guidance scale is no input of the transformer."""
        return False

    def size_ids(self, height: int, width: int) -> Tensor | None:
        """None: the transformer takes no sizes."""
        return None

    @property
    def prediction_type(self) -> str:
        """The transformer predicts the flow, noise minus image."""
        return FLOW


def load_parts(
    model: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    options: CheckpointOptions | None = None,
) -> DiffusionParts:
    """Load a model. Nothing in a file is ever executed: of a .ckpt only the tensors are read.

    Args:
        model: A known name, a diffusers folder, a checkpoint file or a hub id (HF_HUB_OFFLINE is honoured).
        dtype: Of UNet and autoencoder (None: float32). Text encoders stay float32: identities are rows of their tables.
        device: A torch device.
        options: What its files do not state. They go over those in celebctl.json and the marks in a single file.

    Raises:
        NotFoundError: No such model.
        InvalidInputError: A model of another family.
        IntegrityError: Broken files.
        SetupError: Missing packages, or no network.
    """
    location = locate(model)
    require_packages()
    if location.kind == "file":
        parts = _load_file(location, dtype, device, options)
    else:
        folder = fetch_folder(location) if location.kind == "hub" else location.path
        parts = _load_folder(folder, card_for(folder, location.name, location.source), dtype, device, options)
    if not isinstance(parts, StableDiffusion3Parts):
        _check_texts(parts)
    _check_layer(parts)
    return parts


def _load_folder(
    folder: Path, card: ModelCard, dtype: torch.dtype | None, device: str, options: CheckpointOptions | None
) -> DiffusionParts:
    """The model in a diffusers folder."""
    import torch

    index = read_json(folder / INDEX_FILE)
    denoiser = denoiser_of(index)
    vae_config = read_json(folder / "vae" / "config.json")
    refuse_normalized_latents(card.name, vae_config)
    channels = whole_number(vae_config, "latent_channels", 4)
    denoiser_channels = whole_number(read_json(folder / denoiser / "config.json"), "in_channels", 4)
    refuse_channels(card.name, denoiser_channels, channels)
    stated = (options or CheckpointOptions()).over(card.checkpoint)
    if denoiser == "transformer" and (stated.prediction_type is not None or stated.zero_terminal_snr is not None):
        raise UsageError(
            f"{card.name} is trained by flow matching, which has no other prediction and no zero terminal SNR",
            "state neither",
            reason="flow_has_one_schedule",
        )
    schedule = stated.schedule(read_json(folder / "scheduler" / "scheduler_config.json"), ())

    tokenizers, encoders = load_text_components(folder, device)
    safe = {"use_safetensors": True}
    with quiet_libraries():
        # Each class from its own module: the libraries' top-level names import far more than these two.
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        network = load_component(
            _denoiser_class(denoiser), folder, denoiser, torch_dtype=dtype or torch.float32, **safe
        )
        # in float32 where another one is compared with it
        vae_dtype = torch.float32 if dtype is None or stated.vae is not None else dtype
        vae = load_component(AutoencoderKL, folder, "vae", torch_dtype=vae_dtype, **safe)
    if stated.vae is not None:
        expected = ExpectedVae(str(folder), channels, float(vae.config.scaling_factor), vae)
        vae = load_vae(stated.vae, expected).to(dtype or torch.float32)
    parts = (StableDiffusion3Parts if attends_jointly(network) else DiffusionParts)(
        path=folder,
        tokenizers=tokenizers,
        card=card.for_schedule(schedule),
        text_encoders=encoders,
        denoiser=freeze(network, device),
        vae=vae,
        scheduler_config=schedule,
        zero_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", False)),
        clip_skip=stated.clip_skip or 0,
        vae_source=stated.vae.name if stated.vae else "",
    )
    return _with_frozen_vae(parts, device)


def _denoiser_class(denoiser: str) -> Any:
    """The diffusers class of the denoiser in this folder of a model."""
    if denoiser == "transformer":
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        return SD3Transformer2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel


def _with_frozen_vae(parts: DiffusionParts, device: str) -> DiffusionParts:
    """The model with its autoencoder frozen, and in float32 where it would overflow in float16."""
    import torch

    vae = parts.vae.to(torch.float32) if parts.upcasts_vae and parts.vae.dtype == torch.float16 else parts.vae
    return replace(parts, vae=freeze(vae, device))


def _load_file(
    location: Location, dtype: torch.dtype | None, device: str, options: CheckpointOptions | None
) -> DiffusionParts:
    """The model in a single-file checkpoint."""
    import torch

    file = load_file(location, device)
    texts, pipe = file.texts, file.pipe
    stated = (options or CheckpointOptions()).over(texts.card.checkpoint)
    schedule = stated.schedule(dict(pipe.scheduler.config), file.shapes)
    parts = DiffusionParts(
        path=texts.path,
        tokenizers=texts.tokenizers,
        card=texts.card.for_schedule(schedule),
        text_encoders=texts.text_encoders,
        denoiser=freeze(pipe.unet.to(dtype or torch.float32), device),
        vae=_vae_of_file(location, file, stated.vae).to(dtype or torch.float32),
        scheduler_config=schedule,
        zero_empty_prompt=bool(pipe.config.get("force_zeros_for_empty_prompt", False)),
        clip_skip=stated.clip_skip or 0,
        vae_source=stated.vae.name if stated.vae else "",
    )
    return _with_frozen_vae(parts, device)


def _vae_of_file(location: Location, file: CheckpointFile, source: Path | None) -> Any:
    """A single file's autoencoder, or the one that replaces it. Raises InvalidInputError when there is none."""
    own, configs = file.pipe.vae, location.path.with_suffix("")
    if source is None:
        if own is None:
            problem = f"{location.source} holds no autoencoder"
            raise InvalidInputError(problem, "give one: CheckpointOptions(vae=...)", reason="no_vae")
        return own
    base, factor = ("sdxl", 0.13025) if len(file.texts.text_encoders) > 1 else ("sd15", 0.18215)
    if own is not None:
        factor = float(own.config.scaling_factor)
    elif configs.is_dir():
        factor = float(read_json(configs / "vae" / "config.json").get("scaling_factor", factor))
    return load_vae(source, ExpectedVae(str(configs) if configs.is_dir() else KNOWN[base].source, 4, factor, own))


def _check_layer(parts: DiffusionParts) -> None:
    """Raise UsageError unless the text encoders have the layer that is read."""
    layers = min(int(encoder.config.num_hidden_layers) for encoder in parts.text_encoders)
    if parts.clip_skip > layers:
        raise UsageError(
            f"clip skip {parts.clip_skip} is out of range", f"use 1 (the last layer) to {layers}",
            reason="clip_skip_range",
        )  # fmt: skip


def _check_texts(parts: DiffusionParts) -> None:
    """Raise InvalidInputError unless the UNet takes what the text encoders give."""
    takes: Any = parts.denoiser.config.cross_attention_dim
    pairs = [("context", parts.context_width, takes if isinstance(takes, int) else max(takes))]
    if parts.pooled_width:
        config = parts.denoiser.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        pairs.append(("pooled text", parts.pooled_width, pooled))
    for what, given, taken in pairs:
        if given != taken:
            raise InvalidInputError(
                f"the UNet of {parts.name} takes a {what} of width {taken}, its text encoders give {given}",
                "use the text encoders that it was trained with",
                reason="text_encoder_of_other_model",
            )


def context_from_ids(
    text_encoder: Any,
    ids: Tensor,
    inserts: Tensor | None = None,
    insert_positions: Tensor | None = None,
    layer: int = 1,
) -> Tensor:
    """Encode token ids, with rows of the token table replaced at chosen positions.

    Rows are inserted before the position embeddings are added: the result equals, bit for bit, that of a token table
    that contains them. Differentiable in `inserts`.

    Args:
        text_encoder: A CLIPTextModel.
        ids: (B, 77) int64.
        inserts: (B, n, D), rows for n people.
        insert_positions: (B, n) int64; at a negative position nothing is inserted, for prompts with fewer people.
        layer: Whose states, counted from the last, 1.

    Returns:
        The context (B, 77, D): the states after that layer, normalised as those after the last are.
    """
    with _inserted(text_encoder, inserts, insert_positions):
        if layer == 1:
            return cast("Tensor", text_encoder(input_ids=ids).last_hidden_state)
        states = text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-layer]
        # transformers has CLIPTextModel with and without a "text_model" around its modules
        return cast("Tensor", getattr(text_encoder, "text_model", text_encoder).final_layer_norm(states))


def texts_from_ids(
    text_encoders: Sequence[Any],
    ids: Sequence[Tensor],
    end: int,
    inserts: Sequence[Tensor] | None = None,
    insert_positions: Tensor | None = None,
    layer: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Encode token ids with all text encoders of a model, as its denoiser takes them.

    Two encoders give the states before their last layer, concatenated; those with a projection (SDXL's second, both of
    SD3) also their projected state at the first end token, which is always the last layer's. transformers' own pooling
    takes the largest id of old configs, which a learned row may have.

    Args:
        text_encoders: One or two.
        ids: (B, 77) int64 for each encoder.
        end: The id of the end token.
        inserts: (B, n, D) for each encoder, as in `context_from_ids`.
        insert_positions: (B, n) int64.
        layer: Whose states, counted from the last, 1; None: 1 for one encoder, 2 for two.

    Returns:
        The context (B, 77, D), and the pooled text (B, P) for two encoders, else None.
    """
    rows_by_encoder = list(inserts) if inserts is not None else [None] * len(ids)
    if len(text_encoders) == 1:
        return context_from_ids(text_encoders[0], ids[0], rows_by_encoder[0], insert_positions, layer or 1), None
    import torch

    states: list[Tensor] = []
    pooled: list[Tensor] = []
    for encoder, tokens, rows in zip(text_encoders, ids, rows_by_encoder, strict=True):
        with _inserted(encoder, rows, insert_positions):
            context, projected = states_from_ids(encoder, tokens, end if has_projection(encoder) else None, layer or 2)
        states.append(context)
        pooled += [] if projected is None else [projected]
    return torch.cat(states, dim=-1), torch.cat(pooled, dim=-1)


def has_projection(text_encoder: Any) -> bool:
    """Whether a text encoder has a pooled output, its projected state at the end token."""
    return hasattr(text_encoder, "text_projection")


def states_from_ids(text_encoder: Any, ids: Tensor, end: int | None, layer: int = 2) -> tuple[Tensor, Tensor | None]:
    """One of two text encoders: states (B, 77, D) after `layer`, counted from the last, and, given `end`, pooled text
    (B, P)."""
    out = text_encoder(input_ids=ids, output_hidden_states=True)
    context = cast("Tensor", out.hidden_states[-layer])
    if end is None:
        return context, None
    at_end = (ids == end).int().argmax(dim=1)
    last = cast("Tensor", out.last_hidden_state)
    pooled = last.gather(1, at_end.view(-1, 1, 1).expand(-1, 1, last.shape[2])).squeeze(1)
    return context, cast("Tensor", text_encoder.text_projection(pooled))


def read_texts(
    parts: TextEncoderParts,
    ids: Tensor,
    inserts: Sequence[Tensor] | None = None,
    insert_positions: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`texts_from_ids` for ids (B, 77) of the first tokenizer; the second one differs at most in its padding id."""
    padding = (ids == parts.end_id).int().cumsum(dim=1).roll(1, dims=1)
    padding[:, 0] = 0
    rows = [ids]
    for tokenizer in parts.tokenizers[1:]:
        rows.append(ids.masked_fill(padding > 0, int(tokenizer.pad_token_id)))
    return texts_from_ids(parts.text_encoders, rows, parts.end_id, inserts, insert_positions, parts.context_layer)


@contextmanager
def _inserted(text_encoder: Any, inserts: Tensor | None, insert_positions: Tensor | None) -> Generator[None]:
    """Replace rows of the token table at chosen positions within a `with` block."""
    if inserts is None or insert_positions is None:
        yield
        return
    used = insert_positions >= 0
    samples, slots = used.nonzero(as_tuple=True)
    rows, positions = inserts[samples, slots], insert_positions[samples, slots]

    def put_rows(_module: nn.Module, _args: tuple[Any, ...], embedded: Tensor) -> Tensor:
        return embedded.index_put((samples, positions), rows.to(embedded.dtype))

    # A hook on the embedding: CLIPTextModel takes no embeddings as input (transformers 5), and the path to the
    # module differs between versions while get_input_embeddings() does not.
    embedding = cast("nn.Module", text_encoder.get_input_embeddings())
    handle = embedding.register_forward_hook(put_rows)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class UNetConditioning:
    """Inputs that some denoisers take besides the context.

    Attributes:
        pooled: Pooled text (B, P), for XL and SD3 models.
        size_ids: Micro-conditioning (6,), for XL models.
        guidance: Guidance scale (B,) or (1,), for latent consistency models.
    """

    pooled: Tensor | None = None
    size_ids: Tensor | None = None
    guidance: Tensor | None = None


def network_output(
    denoiser: nn.Module, x: Tensor, timesteps: Tensor, context: Tensor, extras: UNetConditioning | None = None
) -> Tensor:
    """The denoiser's raw prediction (B, C, h, w), as it was trained, for latents x at timesteps (B,) or scalar."""
    if attends_jointly(denoiser):
        assert extras is not None and extras.pooled is not None  # every SD3 model has pooled texts
        return transformer_output(denoiser, x, timesteps, context, extras.pooled)
    options: dict[str, Any] = {}
    if extras is not None and extras.pooled is not None and extras.size_ids is not None:
        sizes = extras.size_ids.to(context).unsqueeze(0).expand(context.shape[0], -1)
        # float32 like the embedded sizes: ONNX cannot concatenate two dtypes
        options["added_cond_kwargs"] = {"text_embeds": extras.pooled.to(context.device).float(), "time_ids": sizes}
    width = cast(Any, denoiser).config.time_cond_proj_dim
    if width is not None and extras is not None and extras.guidance is not None:
        options["timestep_cond"] = guidance_embedding(extras.guidance, width).to(context).expand(x.shape[0], -1)
    return cast("Tensor", denoiser(x, timesteps, encoder_hidden_states=context, return_dict=False, **options)[0])


def guidance_embedding(guidance: Tensor, width: int) -> Tensor:
    """Sinusoids of a guidance scale (B,) -> (B, width) (Meng et al. 2023; diffusers' consistency pipelines)."""
    import torch

    half = width // 2
    rates = torch.exp(torch.arange(half, device=guidance.device) * -(math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (guidance.float() - 1.0).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def rescale_guided(guided: Tensor, conditional: Tensor, strength: float) -> Tensor:
    """A guided output scaled towards the standard deviation of the conditional one (Lin et al. 2023, section 3.4).

    Args:
        guided: (B, 4, h, w), after classifier-free guidance.
        conditional: (B, 4, h, w), the output for the prompt.
        strength: 0 (as it is) to 1; diffusers' ``guidance_rescale``.
    """

    def deviation(output: Tensor) -> Tensor:
        centred = output - output.mean(dim=(1, 2, 3), keepdim=True)
        return centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()

    return guided * (strength * deviation(conditional) / deviation(guided) + (1.0 - strength))


def latents_from_pixels(vae: nn.Module, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) as the denoiser sees them.

    With a generator they are sampled from the encoder's distribution, as in training; without, its mode is returned. A
    tiny autoencoder has no distribution.
    """
    network = cast(Any, vae)
    encoded, config = network.encode(pixels), network.config
    if hasattr(encoded, "latents"):
        latents = encoded.latents
    else:
        latents = encoded.latent_dist.mode() if generator is None else encoded.latent_dist.sample(generator)
    shift = config.shift_factor  # None before SD3
    shifted = latents - shift if shift else latents
    return cast("Tensor", shifted * config.scaling_factor)


def pixels_from_latents(vae: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the denoiser sees them -> pixels (B, 3, H, W), clamped to [-1, 1]."""
    network = cast(Any, vae)
    shift = network.config.shift_factor
    scaled = latents / network.config.scaling_factor
    decoded = network.decode(scaled + shift if shift else scaled, return_dict=False)[0]
    return cast("Tensor", decoded.clamp(-1.0, 1.0))
