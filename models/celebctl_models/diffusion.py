"""Any member of the Stable Diffusion family, taken apart into the networks the method and the exporter work with.

Foreign models are adapted here and nowhere else: past this door there are token ids, contexts, latents and pixels.
What this module does not know: celebrities, learned people, ONNX, and which model is the bundled one.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celebctl_models.registry import INDEX_FILE, Location, ModelCard, card_for, derive_card, locate, read_json
from celebctl_models.registry import vae_factor as factor_of
from celebctl_runtime.errors import EnvironmentProblem, InputRejected, IntegrityProblem, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import torch
    from torch import Tensor, nn

# What a fetched model folder is made of. Names in full, because hub repositories carry the same weights several
# times over (fp16 variants, non-EMA, pickles) and only these are read.
_HUB_FILES = [
    "*.json",
    "*/*.json",
    "*/merges.txt",
    "text_encoder*/model.safetensors",
    "text_encoder*/model-0*.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model-0*.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]

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
    text_encoders: tuple[Any, ...]  # transformers CLIPTextModel, float32 always
    unet: Any  # diffusers UNet2DConditionModel
    vae: Any  # diffusers AutoencoderKL
    scheduler_config: dict[str, Any]
    card: ModelCard

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
    """Load a model: a known name, a diffusers folder, a .safetensors file or a hub id (HF_HUB_OFFLINE is honoured).

    `dtype` is that of UNet and autoencoder (None: float32); text encoders stay float32, for identities are made of
    their table rows. Only safetensors are read, never pickles. Raises NotFound, InputRejected (another kind of
    model), IntegrityProblem (broken files) or EnvironmentProblem (missing packages, no network).
    """
    location = locate(model)
    _require_packages()
    if location.kind == "file":
        return _load_file(location, dtype, device)
    folder = _fetch(location) if location.kind == "hub" else location.path
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
    frozen = [_freeze(network, device) for network in (*encoders, unet, vae)]
    return DiffusionParts(folder, tuple(tokenizers), tuple(frozen[:-2]), frozen[-2], frozen[-1], scheduler, card)


def _check_kind(folder: Path) -> None:
    """Refuse models of another family by their index, before any weights are read."""
    index = read_json(folder / INDEX_FILE)
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


def _fetch(location: Location) -> Path:
    """Download a model from the hub, or find it in the hub's cache. Returns its folder."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(location.source, allow_patterns=_HUB_FILES))
    except GatedRepoError as error:
        hint = f"accept its licence at huggingface.co/{location.source}, then set HF_TOKEN"
        raise EnvironmentProblem(f"the model {location.source} is gated", hint) from error
    except RepositoryNotFoundError as error:
        raise NotFound(f"the hub has no model {location.source}", "check the spelling, or set HF_TOKEN") from error
    except Exception as error:  # offline mode, no network, a full disk: the hub client's errors have no common root
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "check the network and HF_HUB_OFFLINE, or give a local folder"
        raise EnvironmentProblem(f"cannot fetch {location.source}: {reason}", hint) from error


def _load_file(location: Location, dtype: torch.dtype | None, device: str) -> DiffusionParts:
    """A single-file checkpoint. Its configs come from the folder of the same name beside it, else from the hub."""
    import torch

    dtype = dtype or torch.float32
    configs = location.path.with_suffix("")
    with quiet_libraries():
        pipe = _read_file(location.path, configs if configs.is_dir() else None)
        unet, vae = _freeze(pipe.unet.to(dtype), device), _freeze(pipe.vae.to(dtype), device)
    if configs.is_dir():
        card = card_for(configs, location.name, location.source)
    else:
        unet_config, vae_config = dict(unet.config), dict(vae.config)
        card = derive_card(location.name, location.source, unet=unet_config, vae=vae_config, text_encoders=1)
    encoders, scheduler = (_freeze(pipe.text_encoder, device),), dict(pipe.scheduler.config)
    return DiffusionParts(location.path, (pipe.tokenizer,), encoders, unet, vae, scheduler, card)


def _read_file(path: Path, configs: Path | None) -> Any:
    """The StableDiffusionPipeline of a single-file checkpoint, in float32."""
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from safetensors import SafetensorError, safe_open

    options: dict[str, Any] = {"config": str(configs), "local_files_only": True} if configs else {}
    try:
        with safe_open(str(path), framework="np"):
            pass  # a damaged file is told from missing configs
        load: Callable[..., Any] = cast(Any, StableDiffusionPipeline).from_single_file
        return load(str(path), torch_dtype=torch.float32, safety_checker=None, **options)
    except SafetensorError as error:
        raise IntegrityProblem(f"{path} is damaged: {error}", "fetch the file again") from error
    except Exception as error:  # anything from a network error to tensors that do not fit the configs
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if configs is None:
            hint = f"put the configs of its diffusers folder into {path.stem}/ beside it"
            raise EnvironmentProblem(f"cannot find out how {path.name} is built: {reason}", hint) from error
        hint = f"check that {configs.name}/ beside it holds the configs of this very model"
        raise IntegrityProblem(f"cannot load {path.name}: {reason}", hint) from error


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Errors only, and no bars: advice of diffusers and transformers (accelerate, torchvision) is not for our users."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with ExitStack() as restore:
        for library in cast("tuple[Any, ...]", (diffusers_logging, transformers_logging)):
            restore.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
            if library.is_progress_bar_enabled():
                restore.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield


def context_from_ids(
    text_encoder: nn.Module, ids: Tensor, inserts: Tensor | None = None, insert_positions: Tensor | None = None
) -> Tensor:
    """Token ids (B, 77) int64 -> context (B, 77, D), with table rows replaced at chosen positions.

    `inserts` (B, n, D) stand where `insert_positions` (B, n) say; a negative position leaves its insert out, so that
    prompts with fewer people fit one batch. Rows go in before position embeddings, exactly where a row of the token
    table would: the result equals that of a table which holds them, bit for bit. Differentiable in `inserts`.
    """
    if inserts is None or insert_positions is None:
        return _last_hidden_state(text_encoder, ids)
    used = insert_positions >= 0
    samples, slots = used.nonzero(as_tuple=True)
    rows, positions = inserts[samples, slots], insert_positions[samples, slots]

    def put_rows(_module: nn.Module, _args: tuple[Any, ...], embedded: Tensor) -> Tensor:
        return embedded.index_put((samples, positions), rows.to(embedded.dtype))

    # A hook on the embedding: CLIPTextModel takes no embeddings as input (transformers 5), and the path to the
    # module differs between versions while get_input_embeddings() does not.
    embedding = cast("nn.Module", cast(Any, text_encoder).get_input_embeddings())
    handle = embedding.register_forward_hook(put_rows)
    try:
        return _last_hidden_state(text_encoder, ids)
    finally:
        handle.remove()


def _last_hidden_state(text_encoder: nn.Module, ids: Tensor) -> Tensor:
    return cast("Tensor", text_encoder(input_ids=ids).last_hidden_state)


def network_output(unet: nn.Module, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    """The UNet's raw prediction (B, 4, h, w), epsilon or v as trained, for latents x at timesteps (B,) or scalar."""
    return cast("Tensor", unet(x, timesteps, encoder_hidden_states=context, return_dict=False)[0])


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
