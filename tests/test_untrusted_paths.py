"""No file and no option makes celebctl write outside the intended folder: identities, bundles, model cards, options."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from console_fakes import MODEL_KEY, CommandLine, refused, toy_bundle
from model_fakes import write_model
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from celebctl.library import Library, format_model_key
from celebctl_models.checkpoints.registry import CARD_FILE, cached_folder, card_for, missing_parts
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import Manifest
from celebctl_runtime.errors import IntegrityError, UsageError
from celebctl_runtime.files import open_regular, regular_path
from celebctl_runtime.identity import Identity

HOSTILE = [
    "../../../victim", "..", ".", "/tmp/victim", "a/b", "a\\b", "C:\\victim", "\\\\host\\share", "~", "~root", "$HOME",
    "a\0b", "a\nb", "**", "a*", "[a]", "?", " ", "", ".hidden", "-rf", "x" * 81, "x" * 5000, "\u2025/x", "ﬁ/../x",
    "\ud800",
]  # fmt: skip
posix = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def write_identity(path: Path, **metadata: str) -> Path:
    """An identity file with the given metadata."""
    fields = {"schema": "1", "name": "alice", "basis_hash": "b", "family": "sd", "table_hash": "t", "provenance": "{}"}
    arrays = {"coefficients.0": np.ones((2, 5), np.float32), "embeddings.0": np.ones((2, 8), np.float32)}
    save_file(arrays, path, {f"celebctl.{key}": value for key, value in (fields | metadata).items()})
    return path


# Identities and the library.


@pytest.mark.parametrize("entry", ["name", "family", "table_hash", "basis_hash"])
@pytest.mark.parametrize("value", [value for value in HOSTILE if value != "\ud800"], ids=ascii)
def test_identities_with_hostile_metadata_are_refused(tmp_path: Path, entry: str, value: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        Identity.load(write_identity(tmp_path / "x.safetensors", **{entry: value}))
    assert caught.value.exit_code == 5 and caught.value.hint


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("family", ["../../..", "../../victim", "/victim", "a/../../../victim"])
def test_import_writes_nothing_outside_the_library(
    console: CommandLine, tmp_path: Path, family: str, force: list[str]
) -> None:
    victim = tmp_path / "victim-t"
    victim.mkdir()
    (victim / "alice.safetensors").write_bytes(b"a foreign file")
    absolute = f"{tmp_path}{family}" if family.startswith("/") else family
    file = write_identity(console.folder / "x.safetensors", family=absolute)
    before = tree(tmp_path)
    refused(console("import", file.name, *force), 5, "")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
def test_the_library_builds_no_path_from_hostile_values(tmp_path: Path, value: str) -> None:
    library = Library(tmp_path / "home")
    library.save(make_identity("alice"))
    before = tree(tmp_path)
    for attempt in (
        lambda: format_model_key(value, "t"),
        lambda: format_model_key("sd", value),
        lambda: library.bundle_path("sd", value),
        lambda: library.entries(value),
        lambda: library.checkpoint(["alice"], value),
        lambda: library.require_free(["alice"], value),
        lambda: library.require_free([value], MODEL_KEY),
        lambda: library.load("alice", value),
        lambda: library.remove("alice", value),
        lambda: library.rename("alice", "bob", value),
        lambda: library.reserve(["alice"], value).__enter__(),
    ):
        with pytest.raises((IntegrityError, UsageError)):
            attempt()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("model", [*HOSTILE, "prüf model", "a:b|c", "李雷"], ids=ascii)
def test_bundles_of_any_model_name_are_inside_the_library(tmp_path: Path, model: str) -> None:
    path = Library(tmp_path).bundle_path(model, "0123456789")
    assert path.parent == tmp_path / "bundles" and path.name.endswith("-01234567")
    assert not path.name.startswith(".") and not {"/", "\\", ":", "*", "\0", "\n"} & {*path.name}


@pytest.mark.parametrize("command", ["list", "show", "rename", "forget", "export-embedding", "regen"])
@pytest.mark.parametrize(
    "model_key", ["/etc", "/", "**", "*", "../..", "x" * 5000, "a/b", "[a]", ""], ids=lambda key: key[:9]
)
def test_a_model_key_is_not_a_path_or_pattern(
    console: CommandLine, tmp_path: Path, command: str, model_key: str
) -> None:
    console.add_people("alice")
    before = tree(tmp_path)
    arguments = {"list": [], "rename": ["alice", "bob"]}.get(command, ["alice"])
    refused(console(command, *arguments, "--for-model", model_key), 2, "")
    assert tree(tmp_path) == before


@posix
def test_a_linked_folder_of_people_is_not_followed(tmp_path: Path) -> None:
    library, alice = Library(tmp_path / "home"), make_identity("alice")
    foreign = Library(tmp_path / "foreign").save(alice)
    folder = library.root / "identities" / MODEL_KEY
    folder.parent.mkdir(parents=True)
    folder.symlink_to(foreign.parent)
    before = tree(tmp_path / "foreign")
    for attempt in (
        lambda: library.save(make_identity("alice", seed=2), overwrite=True),
        lambda: library.load("alice"),
        lambda: library.remove("alice"),
        lambda: library.rename("alice", "bob"),
    ):
        with pytest.raises(IntegrityError, match="out of the library"):
            attempt()
    assert tree(tmp_path / "foreign") == before


@posix
def test_the_library_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    library, alice = Library(tmp_path / "home"), make_identity("alice")
    library.save(alice)
    assert library.load("alice") == alice


# Bundles.


@posix
@pytest.mark.parametrize(
    "name", ["token_table.bin", "step.onnx", "tokenizer/tokenizer.json", "tokenizer", "manifest.json"]
)
@pytest.mark.parametrize("verify", ["quick", "full"])
def test_a_link_in_a_bundle_is_refused(tmp_path: Path, name: str, verify: Any) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (bundle.path / name).rename(tmp_path / "foreign")
    (bundle.path / name).symlink_to(tmp_path / "foreign")
    with pytest.raises(IntegrityError) as caught:
        Bundle.open(bundle.path, verify=verify)
    assert caught.value.reason == "irregular_file"


@posix
@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("verify", ["quick", "none"])
def test_linked_tables_are_not_written(tmp_path: Path, link: Any, verify: Any) -> None:
    original = write_bundle(tmp_path / "bundle")
    original.add(make_identity("alice"))
    table, foreign = original.path / "token_table.bin", tmp_path / "foreign"
    table.rename(foreign)
    link(foreign, table)
    before = tree(tmp_path)
    bob, other = make_identity("bob"), make_identity("alice", seed=9)
    for attempt in (
        lambda: Bundle.open(original.path, verify=verify).remove("alice"),
        lambda: Bundle.open(original.path, verify=verify).add(bob),
        lambda: Bundle.open(original.path, verify=verify).replace(other),
    ):
        with pytest.raises(IntegrityError) as caught:
            attempt()
        assert caught.value.reason == "irregular_file"
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"bundle/manifest.json.lock"}


@posix
def test_a_linked_lock_file_is_not_truncated(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (tmp_path / "foreign").write_bytes(b"a foreign file")
    (bundle.path / "manifest.json.lock").symlink_to(tmp_path / "foreign")
    with pytest.raises(IntegrityError):
        bundle.add(make_identity("alice"))
    assert (tmp_path / "foreign").read_bytes() == b"a foreign file"


@posix
@pytest.mark.parametrize("name", ["token_table.bin", "manifest.json", "tokenizer/tokenizer.json"])
def test_a_pipe_in_a_bundle_does_not_block(tmp_path: Path, name: str) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (bundle.path / name).unlink()
    os.mkfifo(bundle.path / name)
    started = time.monotonic()
    with pytest.raises(IntegrityError):
        Bundle.open(bundle.path)
    with pytest.raises(IntegrityError):
        open_regular(bundle.path / name)
    assert time.monotonic() - started < 5


@posix
def test_a_bundle_may_be_opened_through_a_link(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "link")
    bundle.add(make_identity("alice"))
    assert Bundle.open(tmp_path / "bundle", verify="full").names == ("alice",)
    assert regular_path(bundle.path, "missing/file") == bundle.path / "missing" / "file"


@posix
def test_export_remove_leaves_a_foreign_file_alone(console: CommandLine, tmp_path: Path) -> None:
    bundle = toy_bundle(console.library, make_identity("alice"))
    (bundle.path / "token_table.bin").rename(tmp_path / "foreign")
    (bundle.path / "token_table.bin").symlink_to(tmp_path / "foreign")
    before = (tmp_path / "foreign").read_bytes()
    refused(console("export", "--remove", "alice"), 5, "is not a regular file")
    assert (tmp_path / "foreign").read_bytes() == before


PATHS = ["/etc/passwd", "../x", "a/../x", "a//b", "a/", "", ".hidden", "a/.x", "a\\b", "C:x", "a b", "x" * 300, "a\0"]
NUMBERS = [-1, 10**6, 10**12, 1 << 62, -(1 << 62)]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: ascii(p[:12]))
@pytest.mark.parametrize(
    "entry", ["tokenizer/file", "graphs/step/file", "graphs/step/data", "token_tables/0/file", "average"]
)
def test_a_manifest_names_plain_files_only(tmp_path: Path, entry: str, path: str) -> None:
    if (entry, path) == ("average", ""):
        return  # it has none
    bundle = write_bundle(tmp_path / "bundle")
    refuses_edit(bundle, entry, [path] if entry.endswith("data") else path)


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ("pending_slots", [[number] for number in [*NUMBERS, 4]] + [[0], [1, 1]]),
        ("next_slot", NUMBERS),
        ("token_tables/0/spare_rows", [*NUMBERS, 10**9]),
        ("token_tables/0/width", [*NUMBERS, 0, 7]),
        ("token_tables/0/rows", [*NUMBERS, 0]),
        ("token_tables/0/first_spare_row", [*NUMBERS, 1]),
        ("token_tables/0/dtype", ["float16", "object"]),
        ("size/native", [[0, 32], [32, -8], [32, 1 << 40]]),
        ("size/multiple", [0, -8, 1 << 40]),
        ("size/vae_factor", [0, -1]),
        ("size/latent_channels", [0, -4, 1 << 40]),
        ("size/display_scale", [0, -1, 1 << 40]),
        ("defaults/steps", [0, -1, 1 << 40]),
        ("defaults/guidance", [float("nan"), float("inf")]),
        ("scaling_factor", [float("nan"), float("-inf")]),
        ("tokenizer/max_length", [0, -1, 1 << 40]),
        ("tokenizer/bos", [-1, 1 << 40]),
        ("tokenizer/eos", [-1, 1 << 40]),
        ("tokenizer/pad", [-1, 1 << 40]),
        ("files/step.onnx/bytes", [-1]),
        ("files/token_table.bin/covers", [-1, 1 << 40]),
        ("files/token_table.bin/bytes", [1 << 40]),
        ("model/family", ["../x", "", "a b"]),
        ("model/table_hash", ["../x", "", "/etc"]),
    ],
)
def test_numbers_in_a_manifest_are_checked(tmp_path: Path, entry: str, values: list[Any]) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    bundle.add(make_identity("alice"))
    for value in values:
        refuses_edit(bundle, entry, value)


@pytest.mark.parametrize("name", ["../alice", "Alice", "con", "a b", ""])
def test_names_in_a_manifest_are_checked(tmp_path: Path, name: str) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    bundle.add(make_identity("alice"))
    identities: Any = json.loads((bundle.path / "manifest.json").read_bytes())["identities"]
    refuses_edit(bundle, "identities", {name: identities["alice"]})


def test_a_table_never_grows(tmp_path: Path) -> None:
    """Not even when sizes were not verified on opening."""
    bundle = write_bundle(tmp_path / "bundle")
    table = bundle.path / "token_table.bin"
    table.write_bytes(table.read_bytes()[:-32])
    before = tree(bundle.path)
    with pytest.raises(IntegrityError, match=r"token_table\.bin"):
        Bundle.open(bundle.path, verify="none").add(make_identity("alice"))
    after = tree(bundle.path)
    assert {name: after[name] for name in before} == before


def test_pathological_json_is_a_damaged_manifest() -> None:
    for raw in (b"[" * 100_000, b'{"schema_version": ' + b"9" * 5000 + b"}"):
        with pytest.raises(IntegrityError):
            Manifest.from_bytes(raw)


def refuses_edit(bundle: Bundle, entry: str, value: object) -> None:
    """The manifest with one entry changed is refused, and nothing is written."""
    path = bundle.path / "manifest.json"
    original = path.read_bytes()
    data: Any = json.loads(original)
    *parents, last = entry.split("/")
    node = data
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    assert last in node, "the entry must exist"
    node[last] = value
    path.write_text(json.dumps(data))
    before = tree(bundle.path)
    with pytest.raises(IntegrityError) as caught:
        Bundle.open(bundle.path, verify="none")
    assert caught.value.exit_code == 5 and tree(bundle.path) == before, (entry, value)
    path.write_bytes(original)


# Models.


@pytest.mark.parametrize("key", ["names", "faces", "features", "mapper", "scoring"])
@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "..\\x", "C:\\x", "a\0b", "\\\\host\\x"], ids=ascii)
def test_paths_in_a_card_stay_in_its_folder(tmp_path: Path, key: str, path: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / CARD_FILE).write_text(json.dumps({key: path}))
    with pytest.raises(IntegrityError, match=f"{key}|NUL"):
        card_for(folder)


@pytest.mark.parametrize("key", ["name", "family"])
@pytest.mark.parametrize("value", ["../x", "/x", "a\\b", "a\0b", "x" * 5000], ids=lambda v: ascii(v[:8]))
def test_names_in_a_card_are_not_paths(tmp_path: Path, key: str, value: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / CARD_FILE).write_text(json.dumps({key: value}))
    with pytest.raises(IntegrityError, match=f"{key}|NUL"):
        card_for(folder)


@posix
def test_links_of_a_hub_snapshot_are_followed_and_others_are_not(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models--a--b" / "snapshots" / "c0ffee")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    (blobs / "mapper").write_bytes(b"")
    (folder / "mapper.safetensors").symlink_to(blobs / "mapper")
    (folder / CARD_FILE).write_text(json.dumps({"mapper": "mapper.safetensors"}))
    assert card_for(folder).mapper_file == folder.resolve() / "mapper.safetensors"
    (tmp_path / "foreign").write_bytes(b"")
    (folder / "mapper.safetensors").unlink()
    (folder / "mapper.safetensors").symlink_to(tmp_path / "foreign")
    with pytest.raises(IntegrityError, match="mapper"):
        card_for(folder)


@pytest.mark.parametrize("commit", ["..", "../../..", "/etc", "."])
def test_a_reference_in_the_hub_cache_is_not_a_path(tmp_path: Path, commit: str) -> None:
    repository = tmp_path / "models--a--b"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert cached_folder("a/b", "main", tmp_path) is None


@pytest.mark.parametrize("shards", [{"a": "../x.safetensors"}, {"a": "/etc/passwd"}, {"a": 5, "b": ""}, ["x"], "x"])
def test_a_shard_index_names_files_in_its_folder(tmp_path: Path, shards: object) -> None:
    folder = write_model(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink(missing_ok=True)
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(IntegrityError, match="outside its folder"):
        missing_parts(folder)


def test_a_replaced_identity_is_checked() -> None:
    with pytest.raises(IntegrityError):
        replace(make_identity("alice"), family="../x")
