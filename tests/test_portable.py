"""People travel: what is written others read to the last bit, what others wrote is read, and bad files do no harm."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from bundle_doubles import write_bundle
from conftest import WIDTH, WORDS, build_tokenizer, make_identity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save

from celebctl.cli import main
from celebctl.cli.portable import describe
from celebctl.library import Library
from celebctl.method.basis import CelebBasis
from celebctl.portable import DIALECTS, embedding_file, person_of, read_contents, token_rows
from celebctl_runtime.errors import CelebctlError, InputRejected, IntegrityProblem, NotFound, UsageProblem
from celebctl_runtime.identity import Identity
from celebctl_runtime.picture import Picture, save_picture
from celebctl_runtime.request import Request

if TYPE_CHECKING:
    from celebctl_models.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")

Rows = NDArray[np.float32]
ROWS = np.random.default_rng(0).normal(0, 0.02, (2, 768)).astype(np.float32)
XL_ROWS = np.random.default_rng(1).normal(0, 0.02, (2, 1280)).astype(np.float32)
FACTS: dict[str, Any] = {"basis_hash": "b" * 64, "table_hash": "c" * 64}


def alice() -> Identity:
    return Identity("alice", (ROWS[:, :5],), (ROWS,), family="sd1", **FACTS)


def alice_xl() -> Identity:
    return Identity("alice", (ROWS[:, :5], ROWS[:, :4]), (ROWS, XL_ROWS), family="sdxl", **FACTS)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def torch_file(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def rows_in(path: Path, **options: Any) -> tuple[Rows, ...]:
    return token_rows(read_contents(path), path, **options)


# What is written.


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_file_holds_one_tensor_called_as_its_readers_expect(dialect: str, tmp_path: Path) -> None:
    path = written(tmp_path / "alice.safetensors", embedding_file(alice(), dialect))
    with cast(Any, safe_open)(str(path), framework="np") as file:
        assert list(file.keys()) == ["<alice>" if dialect == "diffusers" else "emb_params"]
        (key,) = file.keys()
        np.testing.assert_array_equal(file.get_tensor(key), ROWS)
        assert set(file.metadata()) == {"celebctl"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_two_text_encoders_are_clip_l_and_clip_g(dialect: str, tmp_path: Path) -> None:
    path = written(tmp_path / "alice.safetensors", embedding_file(alice_xl(), dialect))
    with cast(Any, safe_open)(str(path), framework="np") as file:
        assert set(file.keys()) == {"clip_l", "clip_g"}
        np.testing.assert_array_equal(file.get_tensor("clip_l"), ROWS)
        np.testing.assert_array_equal(file.get_tensor("clip_g"), XL_ROWS)


def test_the_same_person_gives_the_same_bytes() -> None:
    assert embedding_file(alice_xl(), "webui") == embedding_file(alice_xl(), "webui")
    assert embedding_file(alice(), "webui") == embedding_file(alice(), "comfyui") == embedding_file(alice(), "invoke")
    with pytest.raises(UsageProblem, match="midjourney"):
        embedding_file(alice(), "midjourney")


# diffusers, in person.


@pytest.mark.parametrize(("dialect", "token"), [("diffusers", None), ("webui", "<ann>")])
def test_diffusers_computes_the_prompt_embeddings_that_we_do(
    tiny_parts: DiffusionParts, tmp_path: Path, dialect: str, token: str | None
) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    from celebctl.method.captions import place_people
    from celebctl_models.diffusion import context_from_ids

    ann = make_identity(tiny_parts, "ann", seed=1)
    path = written(tmp_path / "ann.safetensors", embedding_file(ann, dialect))
    pipeline = cast(Any, StableDiffusionPipeline).from_pretrained(str(tiny_parts.path), local_files_only=True)
    plain, _ = pipeline.encode_prompt("a portrait of ann and bob", "cpu", 1, False)
    pipeline.load_textual_inversion(str(path), token=token)
    theirs, _ = pipeline.encode_prompt("a portrait of <ann> and bob", "cpu", 1, False)
    ids, (positions,) = place_people(tiny_parts.tokenizers[0], 77, ["a portrait of", "and bob"])
    inserts = torch.from_numpy(ann.embeddings[0].copy())[None]
    ours = context_from_ids(tiny_parts.text_encoders[0], ids[None], inserts, positions[None])
    assert torch.equal(theirs, ours) and not torch.equal(theirs, plain)


def test_diffusers_computes_the_same_for_two_text_encoders(tmp_path: Path) -> None:
    """By a file loaded as its users load it, and by the rows put where two words of the vocabulary were."""
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    from celebctl.method.captions import place_people
    from celebctl_models.diffusion import texts_from_ids

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


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("person", [alice(), alice_xl()], ids=["one", "two"])
def test_writing_and_reading_are_inverse(dialect: str, person: Identity, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", embedding_file(person, dialect))
    contents = read_contents(path)
    for read, rows in zip(rows_in(path), person.embeddings, strict=True):
        np.testing.assert_array_equal(read, rows)
    assert contents.origin["name"] == "alice" and contents.origin["table_hash"] == person.table_hash
    assert contents.kind == "embedding" and contents.dtype == "float32"


TENSOR = torch.from_numpy(ROWS)
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
def test_files_of_torch_are_read_like_safetensors(writer: str, zipped: bool, tmp_path: Path) -> None:
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


def release_files(folder: Path, components: int = 7) -> tuple[Path, Path, Rows]:
    """celeb_basis.pt and id_coefficient_000.pt as extract_pt.py writes them, and the rows that they stand for."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.randn(2, 1 + components, 768, generator=generator)
    coefficients = torch.randn(2, 1, components, generator=generator)
    rows = torch.einsum("ehk,ekc->ehc", coefficients, basis[:, 1:]) + basis[:, 0].unsqueeze(1)
    paths = torch_file(folder / "celeb_basis.pt", basis), torch_file(folder / "id_coefficient_000.pt", coefficients)
    return *paths, rows.reshape(2, 768).numpy()


def test_coefficients_of_the_release_become_rows_through_their_basis(tmp_path: Path) -> None:
    basis, file, rows = release_files(tmp_path)
    np.testing.assert_allclose(rows_in(file, basis=read_contents(basis))[0], rows, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageProblem, match="without their basis") as alone:
        rows_in(file)
    assert "--basis" in alone.value.hint
    other = torch_file(tmp_path / "other.pt", torch.randn(2, 9, 768))
    with pytest.raises(IntegrityProblem, match="shape"):
        rows_in(file, basis=read_contents(other))
    with pytest.raises(UsageProblem, match="no celeb basis"):
        rows_in(file, basis=read_contents(file))
    with pytest.raises(InputRejected, match="is a celeb basis"):
        rows_in(basis)


def test_a_checkpoint_tells_the_learned_from_the_noise(tmp_path: Path) -> None:
    noise = torch.randn(2, 1, 5)
    slots = [torch.randn(2, 1, 5), *[noise] * 3, torch.randn(2, 1, 5)]
    path = torch_file(tmp_path / "embeddings_gs-799.pt", {"id_coefficients": slots})
    basis = read_contents(torch_file(tmp_path / "basis.pt", torch.eye(6).repeat(2, 1, 1)))
    assert len(read_contents(path).people) == 2
    first, second = (rows_in(path, which=which, basis=basis)[0] for which in (1, 2))
    np.testing.assert_allclose(second[:, 1:], slots[4][:, 0].numpy(), rtol=1e-6)
    assert not np.array_equal(first, second)
    for which, problem in ((None, "2 people"), (0, "out of range"), (3, "out of range")):
        with pytest.raises(UsageProblem, match=problem):
            rows_in(path, which=which, basis=basis)
    empty = torch_file(tmp_path / "empty.pt", {"id_coefficients": [noise] * 10})
    assert "nobody" in read_contents(empty).layout
    mapper = torch_file(tmp_path / "mapper.pt", {"meta_id_net": {"weight": noise}})
    assert "mapper" in read_contents(mapper).layout


# What is refused.


class Evil:
    """Asks whoever unpickles it to make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ""])
@pytest.mark.parametrize("kind", ["zip", "legacy", "protocol 0", "protocol 2", "protocol 4", "zipped twice"])
def test_a_malicious_pickle_is_never_run(kind: str, suffix: str, tmp_path: Path) -> None:
    path, mark = tmp_path / f"alice{suffix}", tmp_path / "harm"
    if kind == "zipped twice":
        torch_file(path, {"emb_params": TENSOR})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/more.pkl", pickle.dumps(Evil(mark)))
    elif kind.startswith("protocol"):
        path.write_bytes(pickle.dumps({"emb_params": Evil(mark)}, int(kind[-1])))
    else:
        torch_file(path, {"emb_params": TENSOR, "x": Evil(mark)}, _use_new_zipfile_serialization=kind == "zip")
    if kind == "protocol 0" and not suffix:
        assert read_contents(path).kind == "unknown"
    else:
        with pytest.raises(IntegrityProblem) as caught:
            read_contents(path)
        assert kind == "protocol 0" or "mkdir" in caught.value.problem
    assert not mark.exists()


def header(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + data


ROW = '{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}'
BOMBS = {
    "empty": b"",
    "short": b"\1\0\0",
    "endless header": struct.pack("<Q", 1 << 40) + b"{}",
    "header over a mebibyte": header('{"a":' + ROW + " " * (2 << 20) + "}", bytes(8)),
    "no object": header("[]"),
    "nested": header("[" * 100_000),
    "overlapping": header('{"a":' + ROW + ',"b":' + ROW + "}", bytes(8)),
    "a name twice": header('{"a":' + ROW + ',"a":' + ROW.replace("0,8", "8,16") + "}", bytes(16)),
    "past the end": header('{"a":' + ROW.replace("0,8", "0,999").replace("2,1", "999,1") + "}", bytes(8)),
    "shape and size differ": header('{"a":' + ROW.replace("2,1", "4,4") + "}", bytes(8)),
    "left over": header('{"a":' + ROW + "}", bytes(80)),
    "a torch file by another name": b"PK\3\4" + bytes(100),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_header_bombs_are_refused(bomb: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityProblem, match="damaged"):
        read_contents(written(tmp_path / "x.safetensors", BOMBS[bomb]))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_file_is_damaged_wherever_it_ends(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    whole = (
        embedding_file(alice(), "webui") if suffix == ".safetensors" else torch_file(path, {"a": TENSOR}).read_bytes()
    )
    for length in (*range(0, 100, 7), len(whole) // 2, len(whole) - 1):
        with pytest.raises(IntegrityProblem, match="damaged"):
            read_contents(written(path, whole[:length]))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"", b"PK\3\4", b"\x80\2", b"\2\0\0\0\0\0\0\0{}"]),
    rest=st.binary(max_size=200),
    data=st.data(),
)
def test_no_bytes_are_a_bug(start: bytes, rest: bytes, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / f"x{data.draw(st.sampled_from(['.safetensors', '.pt', '.txt', '']))}"
    try:
        assert read_contents(written(path, start + rest)).kind == "unknown"
    except IntegrityProblem as error:
        assert str(path) in error.problem and error.hint


def test_a_small_file_cannot_claim_a_huge_tensor(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "x.pt", torch.zeros(1, 1).expand(70, 1 << 40))
    assert path.stat().st_size < 10_000 and read_contents(path).kind == "unknown"
    packed = tmp_path / "y.pt"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("y/data/0", "w") as entry:
        for _ in range(65):
            entry.write(bytes(1 << 20))
    with pytest.raises(IntegrityProblem, match="larger than 64 MiB"):
        read_contents(packed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "zero", "overflow"])
def test_rows_that_are_no_numbers_are_refused(value: float | str, tmp_path: Path) -> None:
    rows = ROWS.astype(np.float64)
    rows[1] = 0 if value == "zero" else rows[1]
    if value != "zero":
        rows[1, 3] = 1e300 if value == "overflow" else float(value)
    with pytest.raises(IntegrityProblem, match="zero" if value == "zero" else "NaN or infinity"):
        rows_in(written(tmp_path / "x.safetensors", save({"emb_params": rows})))


@pytest.mark.parametrize("count", [1, 3, 16])
def test_a_person_is_two_vectors(count: int, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", save({"emb_params": np.ones((count, 768), np.float32)}))
    with pytest.raises(InputRejected, match=f"holds {count} vector") as caught:
        rows_in(path)
    assert "change who it is" in caught.value.hint
    flat = written(tmp_path / "y.safetensors", save({"<a>": np.ones(768, np.float32)}))
    with pytest.raises(InputRejected, match="holds 1 vector,"):
        rows_in(flat)


@pytest.mark.parametrize(
    ("tensors", "layout"),
    [
        ({}, "no tensors"),
        ({"a": ROWS, "b": ROWS}, "2 tensors: a, b"),
        ({"emb_params": ROWS.astype(np.int32)}, "of i32 numbers"),
        ({"emb_params": ROWS[:0]}, "shape (0, 768)"),
        ({"emb_params": np.ones((5, 4, 3, 2), np.float32)}, "shape (5, 4, 3, 2)"),
        ({"token_table": np.ones((500, 8), np.float32)}, "shape (500, 8)"),
        ({"clip_l": ROWS, "clip_g": np.ones((500, 8), np.float32)}, "2 tensors"),
    ],
)
def test_other_tensors_are_nobody(tensors: dict[str, Any], layout: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", save(tensors))
    contents = read_contents(path)
    assert contents.kind == "unknown" and layout in contents.layout
    with pytest.raises(InputRejected, match="holds no person"):
        token_rows(contents, path)


@pytest.mark.parametrize(
    "value",
    [{}, {"a": TENSOR, "b": 3}, [TENSOR], {"string_to_param": {"a": TENSOR, "b": TENSOR}}, {"string_to_param": 3}, 7],
)
def test_other_pickles_are_nobody(value: Any, tmp_path: Path) -> None:
    assert read_contents(torch_file(tmp_path / "x.pt", value)).kind == "unknown"


# Becoming one of the model's people.


@pytest.fixture(scope="module")
def doll(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a list of names of its own."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("models") / "doll"))
    names = ["ann anna", "anna bob", "bob alice", "alice ann", "person chess", "chess person"]
    (folder / "names.txt").write_text("\n".join(names))
    (folder / "celebctl.json").write_text(json.dumps({"name": "doll", "names": "names.txt"}))
    return folder


@pytest.fixture(scope="module")
def doll_basis(doll: Path) -> tuple[DiffusionParts, CelebBasis]:
    from celebctl.method import build_basis
    from celebctl_models.diffusion import load_parts

    parts = load_parts(doll)
    return parts, build_basis(parts)


@pytest.mark.parametrize(("inside", "outside", "share"), [(1, 0, 0.0), (0, 1, 1.0), (3, 4, 16 / 25)])
def test_rows_are_kept_and_what_the_basis_cannot_say_is_told(
    doll_basis: tuple[DiffusionParts, CelebBasis], inside: float, outside: float, share: float
) -> None:
    parts, basis = doll_basis
    components = basis.components[0]
    stranger = np.random.default_rng(5).normal(size=(2, WIDTH))
    stranger -= np.einsum("jd,jkd,jke->je", stranger, components, components)  # nothing of it in the basis
    stranger /= np.linalg.norm(stranger, axis=1, keepdims=True)
    rows = (basis.mean[0] + inside * components[:, 0] + outside * stranger).astype(np.float32)
    person = person_of([rows], "ann", parts, basis, {"origin": "imported"})
    np.testing.assert_array_equal(person.embeddings[0], rows)
    wanted = np.zeros_like(person.coefficients[0])
    wanted[:, 0] = inside
    np.testing.assert_allclose(person.coefficients[0], wanted, atol=1e-4)
    assert float(person.provenance["outside_basis"]) == pytest.approx(share, abs=1e-3)
    assert (person.basis_hash, person.table_hash, person.family) == (basis.hash, parts.table_hash, parts.family)


def test_another_width_is_another_model(doll_basis: tuple[DiffusionParts, CelebBasis]) -> None:
    for rows, family in (((np.ones((2, 1024), np.float32),), "2.x"), ((ROWS, XL_ROWS), "XL")):
        with pytest.raises(IntegrityProblem, match="those of doll are 32") as caught:
            person_of(rows, "ann", *doll_basis, {})
        assert family in caught.value.hint and "--model" in caught.value.hint


# At the desk.


class Shell:
    """The command line in an empty folder, with an empty library and the tiny model as the default."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.library, self._capsys = folder, Library(), capsys

    def __call__(self, *words: str | Path) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = self._capsys.readouterr()
        return code, out, err

    def answer(self, *words: str | Path) -> Any:
        code, out, err = self(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    def refuses(self, code: int, problem: str, *words: str | Path) -> None:
        found, out, err = self(*words)
        assert found == code and not out, err
        assert f"error: {problem}" in err or problem in err
        assert "hint: " in err and "Traceback" not in err


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, doll: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CELEBCTL_MODEL", str(doll))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Shell(tmp_path / "here", capsys)


def test_a_person_leaves_for_a_file_or_a_folder(shell: Shell) -> None:
    shell.library.save(alice())
    code, out, err = shell("export-embedding", "alice", "--to", "comfyui")
    assert (code, out) == (0, "alice.safetensors\n") and "embedding:alice" in err
    shell.refuses(2, "alice.safetensors exists already", "export-embedding", "alice")
    assert shell("export-embedding", "alice", "--force", "--to", "diffusers")[0] == 0
    assert shell("export-embedding", "alice", "-o", "people")[1].strip() == str(Path("people/alice.safetensors"))
    assert shell("export-embedding", "alice", "-o", "x.safetensors")[1] == "x.safetensors\n"
    assert read_contents(Path("alice.safetensors")).name == "<alice>"
    shell.refuses(2, "x.pt is no .safetensors file", "export-embedding", "alice", "-o", "x.pt")
    shell.refuses(2, "midjourney", "export-embedding", "alice", "--to", "midjourney", "-o", "y.safetensors")
    shell.refuses(4, "nobody called bob", "export-embedding", "bob")
    assert not Path("y.safetensors").exists()


def test_how_to_use_it_elsewhere_is_said(shell: Shell, doll_basis: tuple[DiffusionParts, CelebBasis]) -> None:
    shell.library.save(alice_xl())
    _, _, err = shell("export-embedding", "alice", "--to", "diffusers")
    assert "text_encoder=pipe.text_encoder_2" in err and "note" not in err
    shell.library.save(make_identity(doll_basis[0], "ann", seed=1))
    assert "note: webui knows" in shell("export-embedding", "ann")[2]
    assert 'pipe.load_textual_inversion("ann' in shell("export-embedding", "ann", "--force", "--to", "diffusers")[2]


def test_a_person_goes_and_comes_back_the_same(shell: Shell, doll_basis: tuple[DiffusionParts, CelebBasis]) -> None:
    ann = make_identity(doll_basis[0], "ann", seed=1)
    shell.library.save(ann)
    shell("export-embedding", "ann", "--to", "invoke", "-o", "somebody.safetensors")
    shell.refuses(2, "you already know ann", "import", "somebody.safetensors")
    assert shell.library.load("ann") == ann
    shell("forget", "ann")
    told = shell.answer("import", "somebody.safetensors")
    back = shell.library.load("ann")
    np.testing.assert_array_equal(back.embeddings[0], ann.embeddings[0])
    assert told["provenance"]["origin"] == "imported" and 0 < float(told["provenance"]["outside_basis"]) <= 1
    assert told["digest"] == back.digest and Path(told["path"]).is_file()
    assert shell("import", "somebody.safetensors", "--force")[0] == 0


def test_whose_file_it_is_comes_from_the_file_or_is_asked(shell: Shell) -> None:
    rows = np.random.default_rng(2).normal(size=(2, WIDTH)).astype(np.float32)
    names = {"bob.safetensors": "emb_params", "learned_embeds.safetensors": "<carol>", "Mr X!.safetensors": "*"}
    for file, key in names.items():
        Path(file).write_bytes(save({key: rows}))
        assert shell("import", file)[0] == 0
    assert shell.library.names() == ["bob", "carol", "mr_x"]
    for file in ("learned_embeds-steps-500.safetensors", "id_embedding_000.safetensors"):
        Path(file).write_bytes(save({"emb_params": rows}))
        shell.refuses(2, "does not say who it is", "import", file)
    assert shell("import", "id_embedding_000.safetensors", "--name", "Dora")[0] == 0
    shell.refuses(2, "'and'", "import", "id_embedding_000.safetensors", "--name", "and")


def test_an_identity_goes_to_its_own_model(shell: Shell, doll: Path) -> None:
    """It needs no model to be opened, unless one is asked for."""
    alice().save(Path("a.safetensors"))
    shell.refuses(5, "a person of another model (sd1-cccccccc)", "import", "a.safetensors", "--model", doll)
    assert not shell.library.names()
    told = shell.answer("import", "a.safetensors", "--name", "zoe")
    assert told["name"] == "zoe" and told["shelf"] == "sd1-cccccccc"
    assert shell.library.load("zoe") == alice().renamed("zoe")


def test_the_release_is_taken_in(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    basis = torch_file(Path("celeb_basis.pt"), torch.randn(2, 6, WIDTH))
    file = torch_file(Path("id_coefficient_000.pt"), torch.randn(2, 1, 5))
    shell.refuses(2, "mean nothing without their basis", "import", file, "--name", "ann")
    told = shell.answer("import", file, "--name", "ann", "--basis", basis)
    assert told["format"] == "Celeb Basis coefficients" and shell.library.names() == ["ann"]
    assert Path(told["path"]).suffix == ".safetensors"


def test_another_text_encoder_is_noted(shell: Shell, doll_basis: tuple[DiffusionParts, CelebBasis]) -> None:
    rows = make_identity(doll_basis[0], "ann", seed=1).embeddings
    stranger = Identity("ann", (rows[0][:, :4],), rows, family="sd", **FACTS)
    Path("ann.safetensors").write_bytes(embedding_file(stranger, "webui"))
    code, _, err = shell("import", "ann.safetensors")
    assert code == 0 and "note: ann.safetensors was made with another text encoder" in err


def people(library: Library) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (library.root / "identities").rglob("*") if path.is_file()}


def test_bad_files_have_their_codes_and_nothing_is_lost(shell: Shell) -> None:
    shell.library.save(alice())
    before = people(shell.library)
    Path("text.txt").write_text("hello")
    Path("wide.safetensors").write_bytes(save({"emb_params": ROWS}))
    Path("nan.safetensors").write_bytes(save({"emb_params": ROWS * np.nan}))
    Path("one.safetensors").write_bytes(save({"emb_params": ROWS[:1]}))
    Path("cut.safetensors").write_bytes(embedding_file(alice(), "webui")[:-1])
    torch_file(Path("evil.pt"), {"a": Evil(Path("harm"))})
    expected = {"gone.pt": 4, "text.txt": 3, "wide.safetensors": 5, "nan.safetensors": 5, "one.safetensors": 3}
    for file, code in {**expected, "cut.safetensors": 5, "evil.pt": 5, ".": 4}.items():
        shell.refuses(code, "", "import", file, "--name", "bob")
    for file in ("cut.safetensors", "evil.pt"):
        shell.refuses(5, "", "inspect", file)
    shell.refuses(4, "there is no file gone.pt", "inspect", "gone.pt")
    assert not Path("harm").exists()
    assert people(shell.library) == before


def test_an_imported_person_moves_into_the_bundle(shell: Shell, exported_copy: Path) -> None:
    """The bundle of the same token table, wherever the person came from."""
    from celebctl_runtime.bundle import Bundle

    home = shell.library.root / "bundles" / "tiny"
    home.parent.mkdir(parents=True)
    shutil.copytree(exported_copy, home)
    Path("eve.safetensors").write_bytes(save({"emb_params": np.ones((2, WIDTH), np.float32)}))
    code, _, err = shell("import", "eve.safetensors")
    assert code == 0 and "celebctl gen" in err
    assert "eve" in Bundle.open(home).names


# inspect


def test_inspect_knows_every_kind_of_file(shell: Shell) -> None:
    alice().save(Path("identity.safetensors"))
    Path("xl.safetensors").write_bytes(embedding_file(alice_xl(), "webui"))
    release_files(Path())
    bundle = write_bundle(Path("bundle"))
    save_picture(Picture(Image.new("RGB", (8, 8)), Request("alice smiling", seed=3), {"model": "toy"}), Path("a.png"))
    Image.new("RGB", (8, 8)).save("plain.png")
    Path("text.txt").write_text("hello")
    kinds = {
        "identity.safetensors": "identity",
        "xl.safetensors": "embedding",
        "celeb_basis.pt": "basis",
        "id_coefficient_000.pt": "coefficients",
        "bundle": "bundle",
        "bundle/manifest.json": "bundle",
        "a.png": "picture",
        "plain.png": "picture",
        "text.txt": "unknown",
        ".": "unknown",
    }
    told = {file: shell.answer("inspect", file) for file in kinds}
    assert {file: facts["kind"] for file, facts in told.items()} == kinds
    xl = told["xl.safetensors"]
    assert (xl["name"], xl["vectors"], xl["widths"], xl["dtype"]) == ("alice", 2, [768, 1280], "float32")
    assert xl["likely_for"] == "Stable Diffusion XL" and len(xl["norms"]) == 2 and not xl["warnings"]
    assert told["identity.safetensors"]["table_hash"] == FACTS["table_hash"]
    assert told["celeb_basis.pt"]["components"] == 7 and told["id_coefficient_000.pt"]["coefficients"] == [2, 7]
    assert told["bundle"]["model"] == bundle.manifest.model.name and told["a.png"]["prompt"] == "alice smiling"
    assert "kind: embedding" in shell("inspect", "xl.safetensors")[1].splitlines()


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        (ROWS * np.nan, "NaN"),
        (ROWS * 0, "zero"),
        (ROWS * 1000, "own words are about 0.6"),
        (ROWS[:1], "this has 1"),
        (ROWS, ""),
    ],
)
def test_inspect_warns_of_odd_numbers(shell: Shell, rows: Rows, warning: str) -> None:
    Path("x.safetensors").write_bytes(save({"emb_params": rows}))
    facts = shell.answer("inspect", "x.safetensors")
    assert [warning in sentence for sentence in facts["warnings"]] == [True] * bool(warning)
    assert ("note: " in shell("inspect", "x.safetensors")[2]) is bool(warning)


def test_inspect_tells_noise_from_people(shell: Shell) -> None:
    path = torch_file(Path("x.pt"), torch.randn(2, 1, 512))
    assert "noise" in shell.answer("inspect", path)["warnings"][0]
    assert not shell.answer("inspect", torch_file(path, torch.randn(2, 1, 512) / 30))["warnings"]


def test_safetensors_need_no_torch(tmp_path: Path) -> None:
    """Writing, reading and describing them, where torch is not installed."""
    alice().save(tmp_path / "alice.safetensors")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from celebctl.cli.portable import describe\n"
        "from celebctl.portable import embedding_file, read_contents\n"
        "path = Path(sys.argv[1])\n"
        "path.write_bytes(embedding_file(read_contents(path).identity, 'webui'))\n"
        "assert describe(path)['name'] == 'alice'"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "alice.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr


def test_a_file_that_cannot_be_read_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.pt", tmp_path):
        with pytest.raises(NotFound):
            read_contents(path)
    with pytest.raises(CelebctlError):
        describe(tmp_path / "gone.pt")
    big = tmp_path / "big.safetensors"
    with big.open("wb") as file:
        file.truncate(65 << 20)
    assert "too large" in read_contents(big).layout
