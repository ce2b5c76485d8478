"""What a diffusion model reads: its tokenizers and text encoders, which can be had without the rest.

The celeb basis, and the rows that stand for people, are made of the token tables alone: half a gigabyte of Stable
Diffusion 1.5's four. What this module does not know: UNets, autoencoders, people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_models.checkpoints.checkpoint_io import quiet_libraries
from celebctl_models.checkpoints.hub_download import fetch_folder
from celebctl_models.checkpoints.known_models import refuse_index
from celebctl_models.checkpoints.registry import INDEX_FILE, TEXT_FILES, card_for, locate, read_json
from celebctl_models.checkpoints.token_tables import TokenTables
from celebctl_runtime.errors import IntegrityError, InvalidInputError, SetupError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TextEncoderParts(TokenTables):
    """The reading half of a text-to-image model, frozen and in evaluation mode; of an XL model two of each.

    tokenizers: transformers CLIPTokenizer. text_encoders: CLIPTextModel, float32 always; of an XL model the second is a
    CLIPTextModelWithProjection.
    """

    text_encoders: tuple[Any, ...]

    @property
    def max_length(self) -> int:
        """Token ids per prompt, start and end included: 77 for CLIP."""
        return int(self.text_encoders[0].config.max_position_embeddings)

    @property
    def end_id(self) -> int:
        """The token id that ends a prompt. The config of an old text encoder may say 2 and mean the largest id."""
        return int(self.tokenizers[0].eos_token_id)

    def token_table(self, encoder: int = 0) -> Tensor:
        """The token embedding table (V, D) of one text encoder, float32; a view of the weights, not a copy."""
        return cast("Tensor", self.text_encoders[encoder].get_input_embeddings().weight.detach())

    def token_rows(self, encoder: int = 0) -> NDArray[np.float32]:
        """The same table as an array (V, D), on the CPU."""
        return self.token_table(encoder).float().cpu().numpy()


def load_texts(model: str | Path) -> TextEncoderParts:
    """Tokenizers and text encoders of a model, on the CPU; `model` as in `load_parts`, and the same errors.

    UNet and autoencoder are neither fetched nor read. A single-file checkpoint is read whole all the same: how its text
    encoders lie in it is known to nobody but the reader of the whole.
    """
    location = locate(model)
    require_packages()
    if location.kind == "file":
        from celebctl_models.checkpoints.diffusion import load_parts

        whole = load_parts(model)
        return TextEncoderParts(whole.path, whole.tokenizers, whole.card, whole.text_encoders)
    folder = fetch_folder(location, TEXT_FILES) if location.kind == "hub" else location.path
    tokenizers, encoders = read_text_parts(folder, "cpu")
    return TextEncoderParts(folder, tokenizers, card_for(folder, location.name, location.source), encoders)


def read_text_parts(folder: Path, device: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Tokenizers and text encoders of a diffusers folder. Raises InvalidInputError for another kind of model."""
    import torch

    check_kind(folder)
    with quiet_libraries():
        # Each class from its own module: the library's top-level names import far more than these.
        from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        fp32 = {"dtype": torch.float32, "use_safetensors": True}
        tokenizers = [read_part(CLIPTokenizer, folder, "tokenizer")]
        encoders = [read_part(CLIPTextModel, folder, "text_encoder", **fp32)]
        if (folder / "text_encoder_2").is_dir():
            tokenizers.append(read_part(CLIPTokenizer, folder, "tokenizer_2"))
            encoders.append(read_part(CLIPTextModelWithProjection, folder, "text_encoder_2", **fp32))
    check_vocabularies(tokenizers, folder.name)
    return tuple(tokenizers), tuple(freeze(encoder, device) for encoder in encoders)


def check_kind(folder: Path) -> None:
    """Refuse models of another family by their index, before any weights are read."""
    refuse_index(folder.name, read_json(folder / INDEX_FILE))


def check_vocabularies(tokenizers: Sequence[Any], name: str) -> None:
    """A person is the same ids for both text encoders, so both must number their words alike."""
    first, *others = (tokenizer.get_vocab() for tokenizer in tokenizers)
    if any(other != first for other in others):
        hint = "use a Stable Diffusion XL checkpoint with its own tokenizers"
        raise InvalidInputError(f"the two tokenizers of {name} know different words", hint)


def require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing:
        raise SetupError(f"loading a model needs {', '.join(missing)}", 'pip install "celebctl[learn,export]"')


def read_part(cls: Any, folder: Path, part: str, **options: Any) -> Any:
    """One part of a model folder, by its library's class. Raises IntegrityError or SetupError (memory)."""
    try:
        return cls.from_pretrained(str(folder), subfolder=part, local_files_only=True, **options)
    except MemoryError as error:
        raise SetupError(f"no memory left to load {part} of {folder.name}", "close other programs") from error
    except Exception as error:  # the libraries raise anything from OSError to KeyError for one broken file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise IntegrityError(f"cannot load {part} of {folder.name}: {reason}", "fetch the model again") from error


def freeze(network: Any, device: str) -> Any:
    """No gradients for its weights, no dropout."""
    return network.eval().requires_grad_(False).to(device)
