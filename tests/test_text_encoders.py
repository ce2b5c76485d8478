"""Text encoders loaded alone equal those of the whole model."""

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
    """Whether family, hash and encoders are equal."""
    facts = [(one.family, one.table_hash, one.max_length, one.end_id, len(one.text_encoders)) for one in (texts, parts)]
    return facts[0] == facts[1]


@pytest.mark.parametrize("which", ["tiny", "xl"])
def test_text_encoders_load_without_unet_and_autoencoder(
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


def test_a_single_file_is_read(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    shutil.copytree(tiny_parts.path, tmp_path / "one")
    write_single_file(tiny_parts, tmp_path / "one.safetensors")
    assert load_texts(tmp_path / "one.safetensors").table_hash == tiny_parts.table_hash


def test_another_family_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("CLIPTextModel", "T5EncoderModel"))
    with pytest.raises(InvalidInputError):
        load_texts(folder)


def test_only_text_encoders_are_downloaded_from_the_hub(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    asked: list[list[str]] = []

    def snapshot_download(source: str, revision: str, allow_patterns: list[str], tqdm_class: object) -> str:
        asked.append(allow_patterns)
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert locate("someone/model").kind == "hub"
    load_texts("someone/model")
    load_parts("someone/model")
    assert asked[0] == list(TEXT_FILES) and set(asked[0]) < set(asked[1])
    assert any(pattern.startswith("unet/") for pattern in set(asked[1]) - set(asked[0]))


@pytest.mark.parametrize("which", ["tiny", "xl"])
def test_text_features_equal_those_of_the_whole_prompt(
    which: str, tiny_parts: DiffusionParts, xl_parts: DiffusionParts
) -> None:
    """Encoding stops behind the name; the state there is that of the whole prompt."""
    parts = tiny_parts if which == "tiny" else xl_parts
    rows = [torch.randn(3, 2, parts.token_rows(e).shape[1]) for e in range(len(parts.tokenizers))]
    found = text_features(parts, [part.numpy() for part in rows])
    people = {f"p{i}": tuple(part[i] for part in rows) for i in range(3)}
    context, _ = prompt_texts(parts, [f"a photo of <{name}>" for name in people], people)
    ids = parts.tokenizers[0]("a photo of", add_special_tokens=False).input_ids
    torch.testing.assert_close(torch.as_tensor(found), context[:, len(ids) + 2].double(), atol=1e-5, rtol=1e-5)
