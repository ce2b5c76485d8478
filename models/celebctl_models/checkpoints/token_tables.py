"""The token tables of a model without its networks, read in tenths of a second and without torch.

Models that store their tables elsewhere than in a safetensors file of the text encoder, or as bfloat16 (single-file
checkpoints among them), are opened with transformers instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_models.checkpoints.checkpoint_io import (
    check_model_class,
    check_vocabularies,
    load_component,
    quiet_libraries,
)
from celebctl_models.checkpoints.hub_download import fetch_folder
from celebctl_models.checkpoints.model_types import TokenTables as TokenTables
from celebctl_models.checkpoints.registry import TEXT_FILES, card_for, locate
from celebctl_models.checkpoints.text_encoders import load_texts
from celebctl_runtime.errors import IntegrityError
from celebctl_runtime.prompting.tokenizer import translate_tokenizer_errors

Floats = NDArray[np.float32]

_TABLE_SUFFIX = "embeddings.token_embedding.weight"  # the same in all versions of transformers
_NUMPY_DTYPES = ("F32", "F16")


@dataclass(frozen=True)
class Encoding:
    """Token ids, one list per text."""

    input_ids: list[list[int]]


class FastTokenizer:
    """A ``tokenizer.json`` with the part of transformers' ``CLIPTokenizer`` interface that names of people need."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._path = path
        with translate_tokenizer_errors(path):
            self._tokenizer = cast(Any, Tokenizer).from_file(str(path))

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> Encoding:
        with translate_tokenizer_errors(self._path):
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return Encoding([list(encoding.ids) for encoding in encodings])

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens (start, end, padding)."""
        return [number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special]

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)


@dataclass(frozen=True)
class TokenTableParts(TokenTables):
    """Token tables alone, (V, D) float32 each, one per text encoder."""

    tables: tuple[Floats, ...]

    def token_rows(self, encoder: int = 0) -> Floats:
        """The token table of one text encoder, (V, D) float32."""
        return self.tables[encoder]


def load_tables(model: str | Path) -> TokenTableParts:
    """Read the token tables of a model.

    Args:
        model: A known name, a diffusers folder, a checkpoint file or a hub id, as in `load_parts`.

    Raises:
        CelebctlError: The same errors as `load_parts`.

    Example:
        >>> load_tables("mini").token_rows().shape[1]
        576
    """
    location = locate(model)
    if location.kind != "file":
        folder = fetch_folder(location, TEXT_FILES) if location.kind == "hub" else location.path
        check_model_class(folder)
        tables = [_read_table(part) for part in _components(folder, "text_encoder")]
        if all(table is not None for table in tables):
            tokenizers = [_load_tokenizer(part) for part in _components(folder, "tokenizer")]
            check_vocabularies(tokenizers, folder.name)
            read = cast("tuple[Floats, ...]", tuple(tables))
            return TokenTableParts(folder, tuple(tokenizers), card_for(folder, location.name, location.source), read)
    parts = load_texts(model)
    rows = tuple(parts.token_rows(encoder) for encoder in range(len(parts.text_encoders)))
    return TokenTableParts(parts.path, parts.tokenizers, parts.card, rows)


def _components(folder: Path, kind: str) -> list[Path]:
    """The folders of one or two tokenizers or text encoders."""
    names = [kind, f"{kind}_2"] if (folder / "text_encoder_2").is_dir() else [kind]
    return [folder / name for name in names]


def _read_table(component: Path) -> Floats | None:
    """The token table in a text encoder's folder; None where NumPy cannot read it."""
    from safetensors import SafetensorError, safe_open

    try:
        with cast(Any, safe_open)(str(component / "model.safetensors"), framework="np") as file:
            names = [name for name in cast("list[str]", file.keys()) if name.endswith(_TABLE_SUFFIX)]
            if len(names) != 1 or file.get_slice(names[0]).get_dtype() not in _NUMPY_DTYPES:
                return None
            return cast("NDArray[Any]", file.get_tensor(names[0])).astype(np.float32)
    except (OSError, SafetensorError):
        return None  # transformers reads the file next and reports the reason


def _load_tokenizer(component: Path) -> Any:
    """A tokenizer from its tokenizer.json where there is one, else transformers' own."""
    file = component / "tokenizer.json"
    if file.is_file():
        try:
            return FastTokenizer(file)
        except IntegrityError:  # transformers reads the files next and reports the reason
            pass
    with quiet_libraries():
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        return load_component(CLIPTokenizer, component.parent, component.name)
