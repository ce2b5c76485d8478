"""Any member of the Stable Diffusion family, taken apart into the networks the method and the exporter work with.

Foreign models are adapted here and nowhere else: past this door there are token ids, contexts, latents and pixels.
What this module does not know: celebrities, learned people, ONNX, and which model is the bundled one.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celebctl_models.registry import (
    INDEX_FILE,
    Location,
    ModelCard,
    card_for,
    derive_card,
    locate,
    read_json,
    why_unsupported,
)
from celebctl_models.registry import vae_factor as factor_of
from celebctl_models.sources import fetch_folder, quiet_libraries, read_checkpoint
from celebctl_runtime.errors import EnvironmentProblem, InputRejected, IntegrityProblem

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import torch
    from torch import Tensor, nn

_CLASSES = {
    "tokenizer": {"CLIPTokenizer", "CLIPTokenizerFast"},
    "text_encoder": {"CLIPTextModel"},
    "tokenizer_2": {"CLIPTokenizer", "CLIPTokenizerFast"},
    "text_encoder_2": {"CLIPTextModelWithProjection"},
    "unet": {"UNet2DConditionModel"},
    "vae": {"AutoencoderKL"},
}


@dataclass(frozen=True)
class DiffusionParts:
    """A text-to-image model in parts, every network frozen and in evaluation mode.

    Networks are typed loosely on purpose: they are other people's classes, used through the functions below.
    """

    path: Path  # the folder or file the weights came from
    tokenizers: tuple[Any, ...]  # transformers CLIPTokenizer, one per text encoder
    text_encoders: tuple[Any, ...]  # transformers CLIPTextModel, float32 always; XL: CLIPTextModelWithProjection second
    unet: Any  # diffusers UNet2DConditionModel
    vae: Any  # diffusers AutoencoderKL
    scheduler_config: dict[str, Any]
    card: ModelCard
    zero_empty_prompt: bool = False  # an empty negative prompt means zeros, not the encoding of "" (SDXL base)

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def family(self) -> str:
        return self.card.family

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
    def max_length(self) -> int:
        """Token ids per prompt, start and end included: 77 for CLIP."""
        return int(self.text_encoders[0].config.max_position_embeddings)

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

    @property
    def end_id(self) -> int:
        """The token id that ends a prompt. The config of an old text encoder may say 2 and mean the largest id."""
        return int(self.tokenizers[0].eos_token_id)

    def size_ids(self, height: int, width: int) -> Tensor | None:
        """What an XL UNet is told about the picture's size and crop, (6,) float32; None for other models."""
        import torch

        if not self.pooled_width:
            return None
        return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon", "v_prediction" or "sample" (diffusers' words)."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def scaling_factor(self) -> float:
        """Factor between the autoencoder's own latents and those the UNet works on."""
        return float(self.vae.config.scaling_factor)

    def token_table(self, encoder: int = 0) -> Tensor:
        """The token embedding table (V, D) of one text encoder, float32; a view of the weights, not a copy."""
        return cast("Tensor", self.text_encoders[encoder].get_input_embeddings().weight.detach())

    @cached_property
    def table_hash(self) -> str:
        """SHA-256 over all token tables and vocabularies: what decides whether a learned person fits this model.

        Text encoders are loaded in float32 whatever the dtype of the rest, so one checkpoint has one hash.
        """
        digest = hashlib.sha256()
        for index, tokenizer in enumerate(self.tokenizers):
            table = self.token_table(index).float().cpu().contiguous().numpy()
            vocabulary = sorted(cast("dict[str, int]", tokenizer.get_vocab()).items())
            digest.update(json.dumps([list(table.shape), vocabulary], ensure_ascii=True).encode())
            digest.update(table.astype("<f4", copy=False).data)
        return digest.hexdigest()


def load_parts(model: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> DiffusionParts:
    """Load a model: a known name, a diffusers folder, a checkpoint file or a hub id (HF_HUB_OFFLINE is honoured).

    `dtype` is that of UNet and autoencoder (None: float32); text encoders stay float32, for identities are made of
    their table rows. Nothing in a file is ever executed: of a .ckpt only the tensors are read. Raises NotFound,
    InputRejected (another kind of model), IntegrityProblem (broken files) or EnvironmentProblem (missing packages, no
    network).
    """
    location = locate(model)
    _require_packages()
    if location.kind == "file":
        return _load_file(location, dtype, device)
    folder = fetch_folder(location) if location.kind == "hub" else location.path
    return _load_folder(folder, card_for(folder, location.name, location.source), dtype, device)


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(f"loading a model needs {', '.join(missing)}", 'pip install "celebctl[learn,export]"')


def _load_folder(folder: Path, card: ModelCard, dtype: torch.dtype | None, device: str) -> DiffusionParts:
    import torch

    _check_kind(folder)
    with quiet_libraries():
        # Each class from its own module: the libraries' top-level names import far more than these four.
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        def part(cls: Any, name: str, **options: Any) -> Any:
            return _read_part(cls, folder, name, **options)

        dtype = dtype or torch.float32
        fp32 = {"dtype": torch.float32, "use_safetensors": True}
        rest = {"torch_dtype": dtype, "use_safetensors": True}
        tokenizers = [part(CLIPTokenizer, "tokenizer")]
        encoders = [part(CLIPTextModel, "text_encoder", **fp32)]
        if (folder / "text_encoder_2").is_dir():
            tokenizers.append(part(CLIPTokenizer, "tokenizer_2"))
            encoders.append(part(CLIPTextModelWithProjection, "text_encoder_2", **fp32))
        unet, vae = part(UNet2DConditionModel, "unet", **rest), part(AutoencoderKL, "vae", **rest)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    zero = bool(read_json(folder / INDEX_FILE).get("force_zeros_for_empty_prompt", False))
    encoders = tuple(_freeze(encoder, device) for encoder in encoders)
    vae = _full_precision(vae) if len(encoders) > 1 else vae
    unet, vae = _freeze(unet, device), _freeze(vae, device)
    return _checked(DiffusionParts(folder, tuple(tokenizers), encoders, unet, vae, scheduler, card, zero))


def _full_precision(vae: Any) -> Any:
    """SDXL's autoencoder overflows in float16 and says so, unless it is the repaired one; then it stays in float32."""
    import torch

    return vae.to(torch.float32) if vae.config.force_upcast and vae.dtype == torch.float16 else vae


def _checked(parts: DiffusionParts) -> DiffusionParts:
    """A person is the same ids for both text encoders, so both must number their words alike."""
    first, *others = (tokenizer.get_vocab() for tokenizer in parts.tokenizers)
    if any(other != first for other in others):
        hint = "use a Stable Diffusion XL checkpoint with its own tokenizers"
        raise InputRejected(f"the two tokenizers of {parts.name} know different words", hint)
    return parts


def _check_kind(folder: Path) -> None:
    """Refuse models of another family by their index, before any weights are read."""
    index = read_json(folder / INDEX_FILE)
    why = why_unsupported(index)
    if why is not None:
        raise InputRejected(f"{folder.name} cannot be used: {why}", "use a Stable Diffusion 1.x, 2.x or XL checkpoint")
    for part, expected in _CLASSES.items():
        entry: Any = index.get(part)
        if entry is None and part.endswith("_2"):
            continue
        found = str(cast("list[Any]", entry)[-1]) if isinstance(entry, list) and entry else "nothing"
        if found not in expected:
            raise InputRejected(
                f"{folder.name} is not of the Stable Diffusion family: its {part} is {found}",
                "use a Stable Diffusion 1.x, 2.x or XL checkpoint",
            )


def _read_part(cls: Any, folder: Path, part: str, **options: Any) -> Any:
    try:
        return cls.from_pretrained(str(folder), subfolder=part, local_files_only=True, **options)
    except MemoryError as error:
        raise EnvironmentProblem(f"no memory left to load {part} of {folder.name}", "close other programs") from error
    except Exception as error:  # the libraries raise anything from OSError to KeyError for one broken file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise IntegrityProblem(f"cannot load {part} of {folder.name}: {reason}", "fetch the model again") from error


def _freeze(network: Any, device: str) -> Any:
    return network.eval().requires_grad_(False).to(device)


def _load_file(location: Location, dtype: torch.dtype | None, device: str) -> DiffusionParts:
    """A single-file checkpoint. Its configs come from the folder of the same name beside it, else from the hub."""
    import torch

    dtype = dtype or torch.float32
    configs = location.path.with_suffix("")
    with quiet_libraries():
        pipe = read_checkpoint(location.path, configs if configs.is_dir() else None)
        unet = _freeze(pipe.unet.to(dtype), device)
        two = getattr(pipe, "text_encoder_2", None) is not None
        vae = pipe.vae.to(dtype)
        vae = _freeze(_full_precision(vae) if two else vae, device)
    if configs.is_dir():
        card = card_for(configs, location.name, location.source)
    else:
        unet_config, vae_config = dict(unet.config), dict(vae.config)
        card = derive_card(location.name, location.source, unet=unet_config, vae=vae_config, text_encoders=1 + two)
    encoders, tokenizers = [pipe.text_encoder], [pipe.tokenizer]
    if two:
        encoders, tokenizers = [*encoders, pipe.text_encoder_2], [*tokenizers, pipe.tokenizer_2]
    frozen, scheduler = tuple(_freeze(encoder, device) for encoder in encoders), dict(pipe.scheduler.config)
    zero = bool(pipe.config.get("force_zeros_for_empty_prompt", False))
    return _checked(DiffusionParts(location.path, tuple(tokenizers), frozen, unet, vae, scheduler, card, zero))


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
    parts: DiffusionParts,
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
class Extras:
    """What some UNets are told beside the context.

    pooled: (B, P), and size_ids: (6,), for XL models. guidance: (B,) or (1,), for latent consistency models.
    """

    pooled: Tensor | None = None
    size_ids: Tensor | None = None
    guidance: Tensor | None = None


def network_output(
    unet: nn.Module, x: Tensor, timesteps: Tensor, context: Tensor, extras: Extras | None = None
) -> Tensor:
    """The UNet's raw prediction (B, 4, h, w), epsilon or v as trained, for latents x at timesteps (B,) or scalar."""
    options: dict[str, Any] = {}
    if extras is not None and extras.pooled is not None and extras.size_ids is not None:
        sizes = extras.size_ids.to(context).unsqueeze(0).expand(context.shape[0], -1)
        options["added_cond_kwargs"] = {"text_embeds": extras.pooled.to(context), "time_ids": sizes}
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
