"""Token tables without torch: the same values, ids and hash as with transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from single_file_fake import write_single_file

from celebctl.basis.basis import build_basis
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.checkpoints.text_encoders import load_texts
from celebctl_models.checkpoints.token_tables import FastTokenizer, TokenTableParts, load_tables
from celebctl_runtime.errors import IntegrityError, InvalidInputError

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

safetensors_torch: Any = pytest.importorskip("safetensors.torch")


def same(tables: TokenTableParts, parts: DiffusionParts) -> bool:
    rows = [np.array_equal(tables.token_rows(e), parts.token_rows(e)) for e in range(len(parts.tokenizers))]
    return all(rows) and tables.table_hash == parts.table_hash and tables.card == parts.card


@pytest.mark.parametrize("which", ["tiny", "xl"])
def test_tables_are_those_of_the_open_networks(
    which: str, tiny_parts: DiffusionParts, xl_parts: DiffusionParts
) -> None:
    parts = tiny_parts if which == "tiny" else xl_parts
    assert same(load_tables(parts.path), parts)


def test_the_fast_tokenizer_equals_that_of_transformers() -> None:
    texts = load_texts("mini")
    tokenizer = FastTokenizer(texts.path / "tokenizer" / "tokenizer.json")
    prompts = ["Emma Baker", "an unknown word", "a photo, of: X", ""]
    for special in (False, True):
        expected = texts.tokenizers[0](prompts, add_special_tokens=special).input_ids
        assert tokenizer(prompts, add_special_tokens=special).input_ids == expected
    assert tokenizer.get_vocab() == texts.tokenizers[0].get_vocab()
    assert set(tokenizer.all_special_ids) == set(texts.tokenizers[0].all_special_ids)


def test_the_basis_does_not_depend_on_how_tables_are_read() -> None:
    assert build_basis(load_tables("mini")).hash == build_basis(load_parts("mini")).hash


def test_without_tokenizer_json_transformers_reads_the_vocabulary(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_parts.path, tmp_path / tiny_parts.path.name))
    file = folder / "tokenizer" / "tokenizer.json"
    model = json.loads(file.read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    file.unlink()
    assert load_tables(folder).table_hash == tiny_parts.table_hash


def test_tables_that_numpy_cannot_read_are_read_by_transformers(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_parts.path, tmp_path / "half"))
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in safetensors_torch.load_file(weights).items()}
    safetensors_torch.save_file(tensors, weights)
    found, parts = load_tables(folder), load_parts(folder)
    assert np.array_equal(found.token_rows(), parts.token_rows()) and found.table_hash == parts.table_hash
    write_single_file(tiny_parts, tmp_path / "one.safetensors")
    shutil.copytree(tiny_parts.path, tmp_path / "one")
    assert load_tables(tmp_path / "one.safetensors").table_hash == tiny_parts.table_hash


def test_damaged_tables_and_other_families_are_errors(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "broken"))
    weights = folder / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-200])
    with pytest.raises(IntegrityError):
        load_tables(folder)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("CLIPTextModel", "T5EncoderModel"))
    with pytest.raises(InvalidInputError):
        load_tables(folder)


def test_of_two_token_tables_transformers_chooses(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    """A file with two token tables is read by transformers, which has the right one."""
    folder = Path(shutil.copytree(tiny_parts.path, tmp_path / "two"))
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = safetensors_torch.load_file(weights)
    name = next(key for key in tensors if key.endswith("embeddings.token_embedding.weight"))
    safetensors_torch.save_file({**tensors, f"other.{name}": tensors[name] + 1.0}, weights)
    assert load_tables(folder).table_hash == tiny_parts.table_hash


def test_reading_tables_and_instant_learning_need_no_torch() -> None:
    code = (
        "import sys; import celebctl.learning.instant, celebctl.basis.basis as basis;"
        "from celebctl_models.checkpoints.token_tables import load_tables; basis.build_basis(load_tables('mini'));"
        "import celebctl_models.faces; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
