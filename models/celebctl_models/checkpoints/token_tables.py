"""The token tables of a model, without its networks: all that the celeb basis is made of, read in tenths of a second.

What this module does not know: torch. Models that keep their tables elsewhere than in a safetensors file of their text
encoder (single-file checkpoints, bfloat16) are read by their own libraries instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from celebctl_models.checkpoints.checkpoint_io import quiet_libraries
from celebctl_models.checkpoints.hub_download import fetch_folder
from celebctl_models.checkpoints.registry import TEXT_FILES, ModelCard, card_for, locate

Floats = NDArray[np.float32]

_TABLE = "embeddings.token_embedding.weight"  # what its name ends in, in every version of transformers
_PLAIN = ("F32", "F16")  # what NumPy can read


@dataclass(frozen=True)
class TokenTables:
    """What the celeb basis needs to know of a model, whether its networks are open or not.

    path: the folder or file the weights came from. tokenizers: one per text encoder, of two in an XL model.
    """

    path: Path
    tokenizers: tuple[Any, ...]
    card: ModelCard

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def family(self) -> str:
        return self.card.family

    def token_rows(self, encoder: int = 0) -> Floats:
        """The token table (V, D) of one text encoder, float32."""
        raise NotImplementedError

    @cached_property
    def table_hash(self) -> str:
        """SHA-256 over all token tables and vocabularies: what decides whether a learned person fits this model.

        Tables are float32 whatever the dtype of the rest, so one checkpoint has one hash, however it was opened.
        """
        digest = hashlib.sha256()
        for encoder, tokenizer in enumerate(self.tokenizers):
            table = np.ascontiguousarray(self.token_rows(encoder))
            vocabulary = sorted(cast("dict[str, int]", tokenizer.get_vocab()).items())
            digest.update(json.dumps([list(table.shape), vocabulary], ensure_ascii=True).encode())
            digest.update(table.astype("<f4", copy=False).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Ids:
    """Token ids, one list per text."""

    input_ids: list[list[int]]


class Vocabulary:
    """A ``tokenizer.json``, answering like transformers' ``CLIPTokenizer`` as far as names of people need it."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._inner = cast(Any, Tokenizer).from_file(str(path))

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> Ids:
        found = self._inner.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return Ids([list(one.ids) for one in found])

    @property
    def all_special_ids(self) -> list[int]:
        return [number for number, token in self._inner.get_added_tokens_decoder().items() if token.special]

    def get_vocab(self) -> dict[str, int]:
        return self._inner.get_vocab(with_added_tokens=True)


@dataclass(frozen=True)
class TokenTableParts(TokenTables):
    """Token tables alone, (V, D) float32 each."""

    tables: tuple[Floats, ...]

    def token_rows(self, encoder: int = 0) -> Floats:
        """As the base says."""
        return self.tables[encoder]


def load_tables(model: str | Path) -> TokenTableParts:
    """The token tables of a model; `model` and errors as in `load_texts`."""
    from celebctl_models.checkpoints.text_encoders import check_kind, check_vocabularies, load_texts

    location = locate(model)
    if location.kind != "file":
        folder = fetch_folder(location, TEXT_FILES) if location.kind == "hub" else location.path
        check_kind(folder)
        tables = [_table_of(folder / part) for part in _parts(folder, "text_encoder")]
        if all(table is not None for table in tables):
            tokenizers = [_tokenizer_of(folder, part.name) for part in map(Path, _parts(folder, "tokenizer"))]
            check_vocabularies(tokenizers, folder.name)
            found = cast("tuple[Floats, ...]", tuple(tables))
            return TokenTableParts(folder, tuple(tokenizers), card_for(folder, location.name, location.source), found)
    whole = load_texts(model)
    rows = tuple(whole.token_rows(encoder) for encoder in range(len(whole.text_encoders)))
    return TokenTableParts(whole.path, whole.tokenizers, whole.card, rows)


def _parts(folder: Path, kind: str) -> list[str]:
    return [kind, f"{kind}_2"] if (folder / "text_encoder_2").is_dir() else [kind]


def _table_of(part: Path) -> Floats | None:
    """The token table of one text encoder's folder; None where only the library that wrote it knows how to read it."""
    from safetensors import SafetensorError, safe_open

    loose = cast(Any, safe_open)  # its stub says nothing
    try:
        with loose(str(part / "model.safetensors"), framework="np") as opened:
            names = [name for name in cast("list[str]", opened.keys()) if name.endswith(_TABLE)]
            if len(names) != 1 or opened.get_slice(names[0]).get_dtype() not in _PLAIN:
                return None
            return cast("NDArray[Any]", opened.get_tensor(names[0])).astype(np.float32)
    except (OSError, SafetensorError):
        return None  # whoever reads it next says what is wrong with it


def _tokenizer_of(folder: Path, part: str) -> Any:
    file = folder / part / "tokenizer.json"
    if file.is_file():
        try:
            return Vocabulary(file)
        except Exception:  # the library raises bare exceptions; the next reader says what is wrong
            pass
    from celebctl_models.checkpoints.text_encoders import read_part

    with quiet_libraries():
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        return read_part(CLIPTokenizer, folder, part)
