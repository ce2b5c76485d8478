"""Textual inversion files: other programs read what is written exactly, and their files are read."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from conftest import WIDTH, WORDS, build_tokenizer, make_identity
from safetensors import safe_open
from textual_inversion_fakes import (
    FACTS,
    ROWS,
    TENSOR,
    XL_ROWS,
    alice,
    alice_xl,
    release_files,
    rows_in,
    torch_file,
    written,
)

from celebctl.file_info import describe
from celebctl.textual_inversion import (
    FORMATS,
    embedding_file,
    load_textual_inversion,
    read_contents,
    save_textual_inversion,
)
from celebctl_runtime.errors import CelebctlError, IntegrityError, InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.identity import Identity

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")


# What is written.


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_holds_one_tensor_with_the_name_its_readers_expect(format: str, tmp_path: Path) -> None:
    path = written(tmp_path / "alice.safetensors", embedding_file(alice(), format))
    with cast(Any, safe_open)(str(path), framework="np") as file:
        assert list(file.keys()) == ["<alice>" if format == "diffusers" else "emb_params"]
        (key,) = file.keys()
        np.testing.assert_array_equal(file.get_tensor(key), ROWS)
        assert set(file.metadata()) == {"celebctl"}


@pytest.mark.parametrize("format", FORMATS)
def test_two_text_encoders_are_clip_l_and_clip_g(format: str, tmp_path: Path) -> None:
    path = written(tmp_path / "alice.safetensors", embedding_file(alice_xl(), format))
    with cast(Any, safe_open)(str(path), framework="np") as file:
        assert set(file.keys()) == {"clip_l", "clip_g"}
        np.testing.assert_array_equal(file.get_tensor("clip_l"), ROWS)
        np.testing.assert_array_equal(file.get_tensor("clip_g"), XL_ROWS)


def test_equal_identities_give_equal_bytes() -> None:
    assert embedding_file(alice_xl(), "webui") == embedding_file(alice_xl(), "webui")
    assert embedding_file(alice(), "webui") == embedding_file(alice(), "comfyui") == embedding_file(alice(), "invoke")
    with pytest.raises(UsageError, match="midjourney"):
        embedding_file(alice(), "midjourney")


# diffusers itself.


@pytest.mark.parametrize(("format", "token"), [("diffusers", None), ("webui", "<ann>")])
def test_diffusers_computes_the_same_prompt_embeddings(
    tiny_parts: DiffusionParts, tmp_path: Path, format: str, token: str | None
) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    from celebctl.learning.captions import place_people
    from celebctl_models.checkpoints.diffusion import context_from_ids

    ann = make_identity(tiny_parts, "ann", seed=1)
    path = written(tmp_path / "ann.safetensors", embedding_file(ann, format))
    pipeline = cast(Any, StableDiffusionPipeline).from_pretrained(str(tiny_parts.path), local_files_only=True)
    plain, _ = pipeline.encode_prompt("a portrait of ann and bob", "cpu", 1, False)
    pipeline.load_textual_inversion(str(path), token=token)
    theirs, _ = pipeline.encode_prompt("a portrait of <ann> and bob", "cpu", 1, False)
    ids, (positions,) = place_people(tiny_parts.tokenizers[0], 77, ["a portrait of", "and bob"])
    inserts = torch.from_numpy(ann.embeddings[0].copy())[None]
    ours = context_from_ids(tiny_parts.text_encoders[0], ids[None], inserts, positions[None])
    assert torch.equal(theirs, ours) and not torch.equal(theirs, plain)


def test_diffusers_computes_the_same_for_two_text_encoders(tmp_path: Path) -> None:
    """By a file loaded as its users load it, and by the rows put where two words of the vocabulary were.

    Tensor by tensor, each with its text encoder and tokenizer, is diffusers' own documented way for SDXL: guide
    "Textual inversion", section "Stable Diffusion XL" (docs/source/en/using-diffusers/textual_inversion_inference.md).
    """
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    from celebctl.learning.captions import place_people
    from celebctl_models.checkpoints.diffusion import texts_from_ids

    tokenizer, encoders = build_tokenizer(WORDS), [tiny_encoder(width, width > WIDTH) for width in (WIDTH, 2 * WIDTH)]
    rows = [np.random.default_rng(width).normal(size=(2, width)).astype(np.float32) for width in (WIDTH, 2 * WIDTH)]
    person = Identity("ann", (rows[0][:, :4], rows[1][:, :4]), tuple(rows), family="sdxl", **FACTS)
    tensors: Any = load_file(written(tmp_path / "ann.safetensors", embedding_file(person, "diffusers")))
    pipeline = xl_pipeline(tokenizer, encoders)
    pipeline.load_textual_inversion(tensors["clip_l"], token="<ann>")
    second = {"text_encoder": pipeline.text_encoder_2, "tokenizer": pipeline.tokenizer_2}
    pipeline.load_textual_inversion(tensors["clip_g"], token="<ann>", **second)
    context, _, pooled, _ = pipeline.encode_prompt(
        "a portrait of <ann>", device="cpu", do_classifier_free_guidance=False
    )

    ids, (positions,) = place_people(tokenizer, 77, ["a portrait of", ""])
    inserts = [torch.from_numpy(array)[None] for array in rows]
    ours = texts_from_ids(encoders, [ids[None]] * 2, tokenizer.eos_token_id, inserts, positions[None])
    assert torch.equal(context, ours[0]) and torch.equal(pooled, ours[1])


def tiny_encoder(width: int, projection: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = build_tokenizer(WORDS)
    torch.manual_seed(width)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return cast(Any, CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval().requires_grad_(False)


def xl_pipeline(tokenizer: Any, encoders: list[Any]) -> Any:
    """A StableDiffusionXLPipeline that can read prompts and nothing else."""
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    first, second = (copy.deepcopy(encoder) for encoder in encoders)
    return cast(Any, StableDiffusionXLPipeline)(
        vae=None,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=copy.deepcopy(tokenizer),
        tokenizer_2=copy.deepcopy(tokenizer),
        unet=None,
        scheduler=None,
        add_watermarker=False,
    )


# What is read.


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("person", [alice(), alice_xl()], ids=["one", "two"])
def test_writing_and_reading_are_inverse(format: str, person: Identity, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", embedding_file(person, format))
    contents = read_contents(path)
    for read, rows in zip(rows_in(path), person.embeddings, strict=True):
        np.testing.assert_array_equal(read, rows)
    assert contents.origin["name"] == "alice" and contents.origin["table_hash"] == person.table_hash
    assert contents.kind == "embedding" and contents.dtype == "float32"


PICKLED: dict[str, tuple[Callable[[], Any], str]] = {
    "web UI": (
        lambda: {"string_to_token": {"*": 265}, "string_to_param": {"*": TENSOR}, "name": "al"},
        "string_to_param",
    ),
    "paper": (
        lambda: {
            "string_to_token": {"*": torch.tensor(265)},
            "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(TENSOR.clone())}),
        },
        "string_to_param",
    ),
    "diffusers": (lambda: {"<alice>": torch.nn.Parameter(TENSOR.clone())}, "named by its token"),
    "kohya": (lambda: {"emb_params": TENSOR}, "emb_params"),
    "extract_pt": (lambda: TENSOR, "without a name"),
    "checkpoint": (lambda: {"id_embeddings": [torch.ones(2, 768), torch.ones(2, 768), TENSOR]}, "id_embeddings"),
}


@pytest.mark.parametrize(
    ("writer", "zipped"),
    # Before torch 1.6 a module was saved with its source code, which is not for reading.
    [*((writer, True) for writer in PICKLED), *((writer, False) for writer in PICKLED if writer != "paper")],
)
def test_torch_files_are_read_like_safetensors(writer: str, zipped: bool, tmp_path: Path) -> None:
    value, layout = PICKLED[writer]
    path = torch_file(tmp_path / "x.pt", value(), _use_new_zipfile_serialization=zipped)
    np.testing.assert_array_equal(rows_in(path)[0], ROWS)
    assert layout in read_contents(path).layout


def test_names_inside_are_found(tmp_path: Path) -> None:
    assert read_contents(torch_file(tmp_path / "a.pt", PICKLED["web UI"][0]())).name == "al"
    assert read_contents(torch_file(tmp_path / "b.bin", PICKLED["diffusers"][0]())).name == "<alice>"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_are_read_exactly(dtype: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    tensor = TENSOR.to(getattr(torch, dtype))
    save_file({"emb_params": tensor}, str(tmp_path / "x.safetensors"))
    for path in (tmp_path / "x.safetensors", torch_file(tmp_path / "x.pt", tensor)):
        np.testing.assert_array_equal(rows_in(path)[0], tensor.float().numpy())
        assert read_contents(path).dtype == dtype


def test_coefficients_of_the_release_become_rows_through_their_basis(tmp_path: Path) -> None:
    basis, file, rows = release_files(tmp_path)
    np.testing.assert_allclose(rows_in(file, basis=read_contents(basis))[0], rows, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError) as alone:
        rows_in(file)
    assert alone.value.reason == "basis_needed"
    other = torch_file(tmp_path / "other.pt", torch.randn(2, 9, 768))
    with pytest.raises(IntegrityError, match="shape"):
        rows_in(file, basis=read_contents(other))
    with pytest.raises(UsageError) as wrong:
        rows_in(file, basis=read_contents(file))
    assert wrong.value.reason == "not_a_basis"
    with pytest.raises(InvalidInputError):
        rows_in(basis)


def test_unused_slots_of_a_checkpoint_are_skipped(tmp_path: Path) -> None:
    noise = torch.randn(2, 1, 5)
    slots = [torch.randn(2, 1, 5), *[noise] * 3, torch.randn(2, 1, 5)]
    path = torch_file(tmp_path / "embeddings_gs-799.pt", {"id_coefficients": slots})
    basis = read_contents(torch_file(tmp_path / "basis.pt", torch.eye(6).repeat(2, 1, 1)))
    assert len(read_contents(path).people) == 2
    first, second = (rows_in(path, which=which, basis=basis)[0] for which in (1, 2))
    np.testing.assert_allclose(second[:, 1:], slots[4][:, 0].numpy(), rtol=1e-6)
    assert not np.array_equal(first, second)
    for which in (None, 0, 3):
        with pytest.raises(UsageError) as error:
            rows_in(path, which=which, basis=basis)
        assert error.value.reason == "select_person" and error.value.values["count"] == 2
    empty = torch_file(tmp_path / "empty.pt", {"id_coefficients": [noise] * 10})
    assert read_contents(empty).kind == "unknown"
    mapper = torch_file(tmp_path / "mapper.pt", {"meta_id_net": {"weight": noise}})
    assert "mapper" in read_contents(mapper).layout


def test_safetensors_need_no_torch(tmp_path: Path) -> None:
    """Writing, reading and describing them, where torch is not installed."""
    alice().save(tmp_path / "alice.safetensors")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from celebctl.file_info import describe\n"
        "from celebctl.textual_inversion import embedding_file, read_contents\n"
        "path = Path(sys.argv[1])\n"
        "path.write_bytes(embedding_file(read_contents(path).identity, 'webui'))\n"
        "assert describe(path)['name'] == 'alice'"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "alice.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr


def test_a_file_that_cannot_be_read_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.pt", tmp_path):
        with pytest.raises(NotFoundError):
            read_contents(path)
    with pytest.raises(CelebctlError):
        describe(tmp_path / "gone.pt")
    big = tmp_path / "big.safetensors"
    with big.open("wb") as file:
        file.truncate(65 << 20)
    assert "too large" in read_contents(big).layout


# The functions of the Python API.


def test_saving_and_loading_an_identity(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    ann = make_identity(tiny_parts, "ann", seed=1)
    path = save_textual_inversion(ann, tmp_path / "x.safetensors", "webui")
    with pytest.raises(UsageError):
        save_textual_inversion(ann, path)
    with pytest.raises(UsageError):
        save_textual_inversion(ann, tmp_path / "x.pt")
    save_textual_inversion(ann, path, overwrite=True)
    assert list(read_contents(path).origin.values()).count("ann") == 1
    ann.save(tmp_path / "own.safetensors")
    assert load_textual_inversion(tmp_path / "own.safetensors", name="bob") == ann.renamed("bob")
