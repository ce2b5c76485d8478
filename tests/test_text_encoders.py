"""A model's reading half is the same, and enough for a basis and for people, whether the rest is there or not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from single_file_fake import write_single_file

from celebctl.basis.text_features import text_features
from celebctl.learning.sampling import prompt_texts
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.checkpoints.registry import TEXT_FILES, locate
from celebctl_models.checkpoints.text_encoders import TextEncoderParts, load_texts
from celebctl_runtime.errors import IntegrityError, InvalidInputError

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")


def same(texts: TextEncoderParts, parts: DiffusionParts) -> bool:
    """Whether the two read alike, as far as a person can tell."""
    facts = [(one.family, one.table_hash, one.max_length, one.end_id, len(one.text_encoders)) for one in (texts, parts)]
    return facts[0] == facts[1]


@pytest.mark.parametrize("which", ["tiny", "xl"])
def test_texts_are_read_without_the_networks_that_draw(
    which: str, tiny_parts: DiffusionParts, xl_parts: DiffusionParts, tmp_path: Path
) -> None:
    parts = tiny_parts if which == "tiny" else xl_parts
    folder = Path(shutil.copytree(parts.path, tmp_path / parts.path.name))
    for part in ("unet", "vae"):
        (folder / part / "diffusion_pytorch_model.safetensors").unlink()
    texts = load_texts(folder)
    assert same(texts, parts) and texts.name == parts.name
    for encoder in range(len(parts.text_encoders)):
        assert torch.equal(texts.token_table(encoder), parts.token_table(encoder))
    with pytest.raises(IntegrityError):
        load_parts(folder)


def test_a_single_file_is_read_too(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    shutil.copytree(tiny_parts.path, tmp_path / "one")
    write_single_file(tiny_parts, tmp_path / "one.safetensors")
    assert load_texts(tmp_path / "one.safetensors").table_hash == tiny_parts.table_hash


def test_another_kind_of_model_is_refused_as_ever(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("CLIPTextModel", "T5EncoderModel"))
    with pytest.raises(InvalidInputError):
        load_texts(folder)


def test_of_a_model_on_the_hub_only_texts_are_fetched(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    asked: list[list[str]] = []

    def snapshot_download(source: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert locate("somebody/model").kind == "hub"
    load_texts("somebody/model")
    load_parts("somebody/model")
    assert asked[0] == list(TEXT_FILES) and set(asked[0]) < set(asked[1])
    assert any(pattern.startswith("unet/") for pattern in set(asked[1]) - set(asked[0]))


@pytest.mark.parametrize("which", ["tiny", "xl"])
def test_people_are_read_as_the_whole_prompt_reads_them(
    which: str, tiny_parts: DiffusionParts, xl_parts: DiffusionParts
) -> None:
    """Reading stops behind the name; the state there is that of the whole prompt."""
    parts = tiny_parts if which == "tiny" else xl_parts
    rows = [torch.randn(3, 2, parts.token_rows(e).shape[1]) for e in range(len(parts.tokenizers))]
    found = text_features(parts, [part.numpy() for part in rows])
    people = {f"p{i}": tuple(part[i] for part in rows) for i in range(3)}
    context, _ = prompt_texts(parts, [f"a photo of <{name}>" for name in people], people)
    ids = parts.tokenizers[0]("a photo of", add_special_tokens=False).input_ids
    torch.testing.assert_close(torch.as_tensor(found), context[:, len(ids) + 2].double(), atol=1e-5, rtol=1e-5)
