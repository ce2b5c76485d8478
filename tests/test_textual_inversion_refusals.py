"""Files that are damaged, malicious or hold no person are refused, and no code in them runs."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from textual_inversion_fakes import ROWS, TENSOR, Evil, alice, rows_in, torch_file, written

from celebctl.textual_inversion import embedding_file, read_contents, token_rows
from celebctl_runtime.errors import IntegrityError, InvalidInputError

if TYPE_CHECKING:
    pass

torch: Any = pytest.importorskip("torch")


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
        with pytest.raises(IntegrityError) as caught:
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
    with pytest.raises(IntegrityError, match="damaged"):
        read_contents(written(tmp_path / "x.safetensors", BOMBS[bomb]))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_file_is_damaged_wherever_it_ends(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    whole = (
        embedding_file(alice(), "webui") if suffix == ".safetensors" else torch_file(path, {"a": TENSOR}).read_bytes()
    )
    for length in (*range(0, 100, 7), len(whole) // 2, len(whole) - 1):
        with pytest.raises(IntegrityError, match="damaged"):
            read_contents(written(path, whole[:length]))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"", b"PK\3\4", b"\x80\2", b"\2\0\0\0\0\0\0\0{}"]),
    rest=st.binary(max_size=200),
    data=st.data(),
)
def test_no_content_raises_an_unexpected_exception(
    start: bytes, rest: bytes, data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / f"x{data.draw(st.sampled_from(['.safetensors', '.pt', '.txt', '']))}"
    try:
        assert read_contents(written(path, start + rest)).kind == "unknown"
    except IntegrityError as error:
        assert str(path) in error.problem and error.hint


def test_a_small_file_cannot_claim_a_huge_tensor(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "x.pt", torch.zeros(1, 1).expand(70, 1 << 40))
    assert path.stat().st_size < 10_000 and read_contents(path).kind == "unknown"
    packed = tmp_path / "y.pt"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("y/data/0", "w") as entry:
        for _ in range(65):
            entry.write(bytes(1 << 20))
    with pytest.raises(IntegrityError, match="larger than 64 MiB"):
        read_contents(packed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "zero", "overflow"])
def test_rows_that_are_not_finite_or_zero_are_refused(value: float | str, tmp_path: Path) -> None:
    rows = ROWS.astype(np.float64)
    rows[1] = 0 if value == "zero" else rows[1]
    if value != "zero":
        rows[1, 3] = 1e300 if value == "overflow" else float(value)
    with pytest.raises(IntegrityError, match="zero" if value == "zero" else "NaN or infinity"):
        rows_in(written(tmp_path / "x.safetensors", save({"emb_params": rows})))


@pytest.mark.parametrize("count", [1, 3, 16])
def test_a_person_is_two_vectors(count: int, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", save({"emb_params": np.ones((count, 768), np.float32)}))
    with pytest.raises(InvalidInputError, match=f"holds {count} vector") as caught:
        rows_in(path)
    assert caught.value.hint
    flat = written(tmp_path / "y.safetensors", save({"<a>": np.ones(768, np.float32)}))
    with pytest.raises(InvalidInputError, match="holds 1 vector;"):
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
def test_other_tensors_are_unknown(tensors: dict[str, Any], layout: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", save(tensors))
    contents = read_contents(path)
    assert contents.kind == "unknown" and layout in contents.layout
    with pytest.raises(InvalidInputError):
        token_rows(contents, path)


@pytest.mark.parametrize(
    "value",
    [{}, {"a": TENSOR, "b": 3}, [TENSOR], {"string_to_param": {"a": TENSOR, "b": TENSOR}}, {"string_to_param": 3}, 7],
)
def test_other_pickles_are_unknown(value: Any, tmp_path: Path) -> None:
    assert read_contents(torch_file(tmp_path / "x.pt", value)).kind == "unknown"
