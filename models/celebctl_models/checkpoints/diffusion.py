"""Any member of the Stable Diffusion family, taken apart into the networks the method and the exporter work with.

Foreign models are adapted here and nowhere else: past this door there are token ids, contexts, latents and pixels.
What this module does not know: celebrities, learned people, ONNX, and which model is the bundled one.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celebctl_models.checkpoints.checkpoint_io import quiet_libraries, read_checkpoint
from celebctl_models.checkpoints.hub_download import fetch_folder
from celebctl_models.checkpoints.registry import (
    INDEX_FILE,
    Location,
    ModelCard,
    card_for,
    derive_card,
    locate,
    read_json,
)
from celebctl_models.checkpoints.registry import vae_factor as factor_of
from celebctl_models.checkpoints.text_encoders import (
    TextEncoderParts,
    check_vocabularies,
    freeze,
    read_part,
    read_text_parts,
    require_packages,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class DiffusionParts(TextEncoderParts):
    """A text-to-image model in parts, every network frozen and in evaluation mode.

    Networks are typed loosely on purpose: they are other people's classes, used through the functions below.
    """

    unet: Any  # diffusers UNet2DConditionModel
    vae: Any  # diffusers AutoencoderKL
    scheduler_config: dict[str, Any]
    zero_empty_prompt: bool = False  # an empty negative prompt means zeros, not the encoding of "" (SDXL base)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel along one side."""
        return factor_of(dict(self.vae.config))

    @property
    def size_multiple(self) -> int:
        """Height and width of a picture must be multiples of this: each UNet level but the last halves the latent."""
        return self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.card.native_size, self.card.native_size

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def context_width(self) -> int:
        """Width D of the context: of all text encoders together."""
        return sum(int(self.token_table(e).shape[1]) for e in range(len(self.text_encoders)))

    @property
    def pooled_width(self) -> int:
        """Width of the pooled text that an XL UNet is told; 0 for one that is not."""
        if self.unet.config.addition_embed_type != "text_time":
            return 0
        return int(self.text_encoders[-1].config.projection_dim)

    @property
    def guidance_is_embedded(self) -> bool:
        """Whether the UNet is told the guidance scale instead of being run twice (latent consistency models)."""
        return self.unet.config.time_cond_proj_dim is not None

    def size_ids(self, height: int, width: int) -> Tensor | None:
        """What an XL UNet is told about the picture's size and crop, (6,) float32; None for other models."""
        import torch

        if not self.pooled_width:
            return None
        return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)

    @property
    def weights_digest(self) -> str:
        """Which weights UNet and autoencoder have, in 16 hexadecimal digits, for telling results apart: a model that
        was trained on may keep its token table. The first 64 numbers of each tensor count, as float32."""
        digest = hashlib.sha256()
        for network in (self.unet, self.vae):
            for name, tensor in network.state_dict().items():
                digest.update(name.encode() + tensor.flatten()[:64].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon", "v_prediction" or "sample" (diffusers' words)."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def scaling_factor(self) -> float:
        """Factor between the autoencoder's own latents and those the UNet works on."""
        return float(self.vae.config.scaling_factor)


def load_parts(model: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> DiffusionParts:
    """Load a model: a known name, a diffusers folder, a checkpoint file or a hub id (HF_HUB_OFFLINE is honoured).

    `dtype` is that of UNet and autoencoder (None: float32); text encoders stay float32, for identities are made of
    their table rows. Nothing in a file is ever executed: of a .ckpt only the tensors are read. Raises NotFoundError,
    InvalidInputError (another kind of model), IntegrityError (broken files) or SetupError (missing packages, no
    network).
    """
    location = locate(model)
    require_packages()
    if location.kind == "file":
        return _load_file(location, dtype, device)
    folder = fetch_folder(location) if location.kind == "hub" else location.path
    return _load_folder(folder, card_for(folder, location.name, location.source), dtype, device)


def _load_folder(folder: Path, card: ModelCard, dtype: torch.dtype | None, device: str) -> DiffusionParts:
    import torch

    tokenizers, encoders = read_text_parts(folder, device)
    with quiet_libraries():
        # Each class from its own module: the libraries' top-level names import far more than these two.
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        rest = {"torch_dtype": dtype or torch.float32, "use_safetensors": True}
        unet = read_part(UNet2DConditionModel, folder, "unet", **rest)
        vae = read_part(AutoencoderKL, folder, "vae", **rest)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    zero = bool(read_json(folder / INDEX_FILE).get("force_zeros_for_empty_prompt", False))
    vae = _full_precision(vae) if len(encoders) > 1 else vae
    unet, vae = freeze(unet, device), freeze(vae, device)
    return DiffusionParts(
        path=folder,
        tokenizers=tokenizers,
        card=card,
        text_encoders=encoders,
        unet=unet,
        vae=vae,
        scheduler_config=scheduler,
        zero_empty_prompt=zero,
    )


def _full_precision(vae: Any) -> Any:
    """SDXL's autoencoder overflows in float16 and says so, unless it is the repaired one; then it stays in float32."""
    import torch

    return vae.to(torch.float32) if vae.config.force_upcast and vae.dtype == torch.float16 else vae


def _load_file(location: Location, dtype: torch.dtype | None, device: str) -> DiffusionParts:
    """A single-file checkpoint. Its configs come from the folder of the same name beside it, else from the hub."""
    import torch

    dtype = dtype or torch.float32
    configs = location.path.with_suffix("")
    with quiet_libraries():
        pipe = read_checkpoint(location.path, configs if configs.is_dir() else None)
        unet = freeze(pipe.unet.to(dtype), device)
        two = getattr(pipe, "text_encoder_2", None) is not None
        vae = pipe.vae.to(dtype)
        vae = freeze(_full_precision(vae) if two else vae, device)
    if configs.is_dir():
        card = card_for(configs, location.name, location.source)
    else:
        unet_config, vae_config = dict(unet.config), dict(vae.config)
        card = derive_card(location.name, location.source, unet=unet_config, vae=vae_config, text_encoders=1 + two)
    encoders, tokenizers = [pipe.text_encoder], [pipe.tokenizer]
    if two:
        encoders, tokenizers = [*encoders, pipe.text_encoder_2], [*tokenizers, pipe.tokenizer_2]
    frozen, scheduler = tuple(freeze(encoder, device) for encoder in encoders), dict(pipe.scheduler.config)
    zero = bool(pipe.config.get("force_zeros_for_empty_prompt", False))
    check_vocabularies(tokenizers, card.name)
    return DiffusionParts(
        path=location.path,
        tokenizers=tuple(tokenizers),
        card=card,
        text_encoders=frozen,
        unet=unet,
        vae=vae,
        scheduler_config=scheduler,
        zero_empty_prompt=zero,
    )


def context_from_ids(
    text_encoder: nn.Module, ids: Tensor, inserts: Tensor | None = None, insert_positions: Tensor | None = None
) -> Tensor:
    """Token ids (B, 77) int64 -> context (B, 77, D), with table rows replaced at chosen positions.

    `inserts` (B, n, D) stand where `insert_positions` (B, n) say; a negative position leaves its insert out, so that
    prompts with fewer people fit one batch. Rows go in before position embeddings, exactly where a row of the token
    table would: the result equals that of a table which holds them, bit for bit. Differentiable in `inserts`.
    """
    with _inserted(text_encoder, inserts, insert_positions):
        return cast("Tensor", text_encoder(input_ids=ids).last_hidden_state)


def texts_from_ids(
    text_encoders: Sequence[Any],
    ids: Sequence[Tensor],
    end: int,
    inserts: Sequence[Tensor] | None = None,
    insert_positions: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What the UNet reads: context (B, 77, D), and for two text encoders the pooled text (B, P), else None.

    One tensor of `ids`, and of `inserts`, per encoder, as in `context_from_ids`. Two encoders give the states before
    their last layer, side by side, and the second its projected state at the first `end` (SDXL; transformers' own
    pooling looks for the largest id in old configs, which the rows of people would be).
    """
    given = list(inserts) if inserts is not None else [None] * len(ids)
    if len(text_encoders) == 1:
        return context_from_ids(text_encoders[0], ids[0], given[0], insert_positions), None
    import torch

    states: list[Tensor] = []
    pooled: Tensor | None = None
    for number, (encoder, row, rows) in enumerate(zip(text_encoders, ids, given, strict=True)):
        with _inserted(encoder, rows, insert_positions):
            context, pooled = states_from_ids(encoder, row, end if number == len(ids) - 1 else None)
        states.append(context)
    return torch.cat(states, dim=-1), pooled


def states_from_ids(text_encoder: Any, ids: Tensor, end: int | None) -> tuple[Tensor, Tensor | None]:
    """One of two text encoders: states (B, 77, D) before its last layer and, given `end`, its pooled text (B, P)."""
    out = text_encoder(input_ids=ids, output_hidden_states=True)
    context = cast("Tensor", out.hidden_states[-2])
    if end is None:
        return context, None
    at_end = (ids == end).int().argmax(dim=1)
    last = cast("Tensor", out.last_hidden_state)
    ended = last.gather(1, at_end.view(-1, 1, 1).expand(-1, 1, last.shape[2])).squeeze(1)
    return context, cast("Tensor", text_encoder.text_projection(ended))


def read_texts(
    parts: TextEncoderParts,
    ids: Tensor,
    inserts: Sequence[Tensor] | None = None,
    insert_positions: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`texts_from_ids` for ids (B, 77) of the first tokenizer; the second may only differ in how it pads."""
    padding = (ids == parts.end_id).int().cumsum(dim=1).roll(1, dims=1)
    padding[:, 0] = 0
    rows = [ids]
    for tokenizer in parts.tokenizers[1:]:
        rows.append(ids.masked_fill(padding > 0, int(tokenizer.pad_token_id)))
    return texts_from_ids(parts.text_encoders, rows, parts.end_id, inserts, insert_positions)


@contextmanager
def _inserted(text_encoder: Any, inserts: Tensor | None, insert_positions: Tensor | None) -> Generator[None]:
    """While this lasts, chosen positions get other rows than the token table's."""
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
    """What some UNets are told beside the context.

    pooled: (B, P), and size_ids: (6,), for XL models. guidance: (B,) or (1,), for latent consistency models.
    """

    pooled: Tensor | None = None
    size_ids: Tensor | None = None
    guidance: Tensor | None = None


def network_output(
    unet: nn.Module, x: Tensor, timesteps: Tensor, context: Tensor, extras: UNetConditioning | None = None
) -> Tensor:
    """The UNet's raw prediction (B, 4, h, w), epsilon or v as trained, for latents x at timesteps (B,) or scalar."""
    options: dict[str, Any] = {}
    if extras is not None and extras.pooled is not None and extras.size_ids is not None:
        sizes = extras.size_ids.to(context).unsqueeze(0).expand(context.shape[0], -1)
        # float32, as diffusers makes the sizes beside it: a concatenation of two types is no ONNX
        options["added_cond_kwargs"] = {"text_embeds": extras.pooled.to(context.device).float(), "time_ids": sizes}
    width = cast(Any, unet).config.time_cond_proj_dim
    if width is not None and extras is not None and extras.guidance is not None:
        options["timestep_cond"] = guidance_embedding(extras.guidance, width).to(context).expand(x.shape[0], -1)
    return cast("Tensor", unet(x, timesteps, encoder_hidden_states=context, return_dict=False, **options)[0])


def guidance_embedding(guidance: Tensor, width: int) -> Tensor:
    """Sinusoids of a guidance scale (B,) -> (B, width) (Meng et al. 2023; diffusers' consistency pipelines)."""
    import torch

    half = width // 2
    rates = torch.exp(torch.arange(half, device=guidance.device) * -(math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (guidance.float() - 1.0).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def latents_from_pixels(vae: nn.Module, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, 4, h, w) as the UNet sees them.

    With a generator they are drawn from the encoder's distribution, as in training; without, its mode is taken.
    """
    loose = cast(Any, vae)
    distribution = loose.encode(pixels).latent_dist
    latents = distribution.mode() if generator is None else distribution.sample(generator)
    return cast("Tensor", latents * loose.config.scaling_factor)


def pixels_from_latents(vae: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, 4, h, w) as the UNet sees them -> pixels (B, 3, H, W), clamped to [-1, 1]."""
    loose = cast(Any, vae)
    decoded = loose.decode(latents / loose.config.scaling_factor, return_dict=False)[0]
    return cast("Tensor", decoded.clamp(-1.0, 1.0))
