"""The doors: for each format read from outside, genuine files to change, and what reads the changed ones."""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_fakes import SCHEDULER, make_identity, write_bundle
from model_fakes import write_model
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save
from typer.main import get_command

from celebctl.cli import main
from celebctl.library import Library
from celebctl_runtime.picture import UNMARKED, GeneratedImage, encode_image
from celebctl_runtime.request import Request
from celebctl_runtime.strict_json import parse_json

from .guard import fault_of
from .mutator import mutate_bytes, mutate_json


def _same(payload: bytes) -> bytes:
    return payload


@dataclass(frozen=True)
class Seed:
    """A genuine file: `build` puts its payload, which is mutated, into the file's format."""

    payload: bytes
    build: Callable[[bytes], bytes] = _same
    is_json: bool = False

    def mutated(self, chance: random.Random) -> bytes:
        """A hostile file."""
        change = mutate_json if self.is_json and chance.random() < 0.85 else mutate_bytes
        content = self.build(change(chance, self.payload))
        return mutate_bytes(chance, content) if chance.random() < 0.1 else content


@dataclass(frozen=True)
class Door:
    """A format: its seeds, and what reads a file of it.

    `read` gets the file and the sandbox, whose folder "home" is the library; it may return an exit code.
    """

    seeds: Callable[[], list[Seed]]
    read: Callable[[Path, Path], object]
    suffix: str = ""
    place: str = "input"  # of the file, below the sandbox
    prepare: Callable[[Path], object] | None = None  # the sandbox, before every input


def fault(door: Door, content: bytes, sandbox: Path) -> str:
    """What is wrong about how celebctl takes `content`; "" for nothing."""
    shutil.rmtree(sandbox, ignore_errors=True)
    for name in ("home", "here"):
        (sandbox / name).mkdir(parents=True)
    if door.prepare is not None:
        door.prepare(sandbox)
    path = sandbox / f"{door.place}{door.suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(sandbox / "here")
        patch.setattr("tempfile.tempdir", str(sandbox))
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setattr("typer.main.get_command", _get_command)
        for name, value in _environment(sandbox).items():
            patch.setenv(name, value)
        return fault_of(lambda: door.read(path, sandbox), sandbox)


@cache
def _get_command(app: Any) -> Any:
    """Typer's commands, made once: they take longer than most inputs."""
    return get_command(app)


def _environment(sandbox: Path) -> dict[str, str]:
    home = str(sandbox / "home")
    return {"CELEBCTL_HOME": home, "CELEBCTL_MODEL": "toy", "HOME": home, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}


def _commands(*commands: list[str]) -> int:
    """Run commands; the first exit code that is not documented, else the last."""
    code = 0
    for words in commands:
        code = main(words)
        if code in (1, 130) or code > 9:
            return code
    return code


# Genuine files.


def _pack_header(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> Seed:
    """A safetensors file of which the header is mutated."""
    raw = save(dict(arrays), metadata=dict(metadata))
    length = int.from_bytes(raw[:8], "little")
    data = raw[8 + length :]
    return Seed(raw[8 : 8 + length], lambda text: len(text).to_bytes(8, "little") + text + data, is_json=True)


def _identities() -> list[Seed]:
    alice = make_identity("alice")
    arrays = {"coefficients.0": alice.coefficients[0], "embeddings.0": alice.embeddings[0]}
    facts = {
        "schema": "1", "name": "alice", "basis_hash": "basis", "family": "toy", "table_hash": "0123456789abcdef",
        "provenance": '{"preset": "clean"}',
    }  # fmt: skip
    return [_pack_header(arrays, {f"celebctl.{key}": value for key, value in facts.items()})]


def _inversions() -> list[Seed]:
    rows, wide = (np.random.default_rng(0).normal(0, 0.02, (2, width)).astype(np.float32) for width in (768, 1280))
    origin = {"celebctl": json.dumps({"name": "alice", "table_hash": "c" * 64})}
    return [
        _pack_header({"emb_params": rows}, origin),
        _pack_header({"clip_l": rows, "clip_g": wide}, {}),
        _pack_header({"<alice>": rows[:1]}, {}),
    ]


def _torch_files() -> list[Seed]:
    import torch

    rows = torch.zeros(2, 768) + 0.5
    values: list[Any] = [
        rows,
        {"string_to_param": {"*": rows}, "name": "alice", "string_to_token": {"*": torch.tensor(265)}, "step": 9},
        {"id_embeddings": [rows * k for k in (1, 2, 2)]},
        {"<alice>": rows.half()},
        {"emb_params": rows.to_sparse()},
    ]
    seeds: list[Seed] = []
    for value in values:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        seeds += [_in_zip(buffer.getvalue()), Seed(buffer.getvalue())]
    buffer = io.BytesIO()
    torch.save(values[0], buffer, _use_new_zipfile_serialization=False)
    return [*seeds, Seed(buffer.getvalue())]


def _in_zip(archive: bytes) -> Seed:
    """A torch file of which the pickle is mutated; its check sums are right."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    pickle = next(name for name in files if name.endswith("data.pkl"))

    def build(payload: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as target:
            for name, content in files.items():
                target.writestr(name, payload if name == pickle else content)
        return buffer.getvalue()

    return Seed(files[pickle], build)


def _recipes() -> list[Seed]:
    request = Request(
        "alice and bob",
        "blurry",
        7,
        2,
        2.5,
        "ddim",
        32,
        32,
        ("alice",),
        likeness=(("alice", 0.5),),
        layout="left:alice",
    )
    record: dict[str, Any] = {
        "model": "toy", "bundle": "f" * 64, "backend": "cpu", "identities": {"alice": "0" * 64}, "dtype": "float32",
        "scale": 1, "table_hash": "0123456789abcdef", "family": "toy",
    }  # fmt: skip
    document = {"schema": 1, "request": request.to_json(), "record": record}
    plain = {"schema": 1, "request": {"prompt": "alice", "steps": 1}, "record": {"model": "toy"}}
    changes: list[dict[str, Any]] = [
        {"hires": "64x64", "hires_strength": 0.5, "refine_faces": "alice@0,0,0.5,1", "refine_strength": 0.5},
        {"source": "0" * 64, "strength": 0.5, "mask": "1" * 64, "mask_blur": 1, "mask_invert": True},
        {"source": "0" * 64, "strength": 0.5, "was": "alice", "threshold": 0.5},
    ]
    changed = [{**document, "request": {**request.to_json(), **change}} for change in changes]
    documents = [_recipe_in_png("celebctl", one) for one in (document, plain, *changed)]
    return [*documents, *_foreign_recipes(), *_recipes_in_exif(document)]


def _foreign_recipes() -> list[Seed]:
    """Recipes as other programs write them."""
    settings = "Steps: 1, Sampler: DPM++ 2M Karras, CFG scale: 2.5, Seed: 7, Size: 32x32, Model: toy"
    text = f'alice <lora:x:1>\nNegative prompt: blurry\n{settings}, Layout: "left:alice", TI hashes: "alice: 00"'
    values = {"model": "toy", "steps": 1, "cfg_scale": 2.5, "seed": 7, "width": 32, "height": 32}
    invoke = {**values, "positive_prompt": "alice", "scheduler": "euler", "model": {"name": "toy", "hash": "0"}}
    dream = {"image": {**values, "prompt": [{"prompt": "alice", "weight": 1}], "sampler": "ddim"}, "app_version": "2"}
    nodes = {
        "1": {"class_type": "KSampler", "inputs": {**values, "cfg": 2.5, "positive": ["2", 0], "negative": ["2", 0]}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": ["3", 0], "clip": ["4", 1]}},
        "3": {"class_type": "PrimitiveString", "inputs": {"value": "alice"}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "toy"}},
    }
    return [
        Seed(text.encode(), lambda content: _in_png("parameters", content)),
        Seed(b'"alice [blurry]" -s 1 -S 7 -C 2.5 -W 32 -H 32 -A ddim', lambda text: _in_png("Dream", text)),
        _recipe_in_png("invokeai_metadata", invoke),
        _recipe_in_png("sd-metadata", dream),
        _recipe_in_png("prompt", nodes),
    ]


def _recipes_in_exif(document: Mapping[str, Any]) -> list[Seed]:
    request = Request.from_json(document["request"])
    image = GeneratedImage(Image.new("RGB", (32, 32)), request, document["record"])
    return [Seed(encode_image(image, image_format, marks=UNMARKED)) for image_format in ("jpeg", "webp")]


def _recipe_in_png(key: str, document: object) -> Seed:
    return Seed(json.dumps(document).encode(), lambda text: _in_png(key, text), is_json=True)


def _in_png(key: str, text: bytes) -> bytes:
    info = PngInfo()
    info.add_text(key, text.decode("latin-1"))
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _job_files() -> list[Seed]:
    rows: list[dict[str, Any]] = [
        {"prompt": "alice smiling", "seed": 7, "count": 2, "steps": 1, "size": "32x32", "likeness": {"alice": 0.5}},
        {"prompt": "<bob>", "steps": 1, "guidance": 2.5, "sampler": "ddim", "layout": "left:bob", "name": "x-{seed}"},
        {"prompt": "alice", "from": "x.png", "strength": 0.5, "steps": 2, "width": 32, "height": 32, "scale": 2},
    ]
    table = b'prompt,seed,steps\n"alice, smiling",7,1\nbob,,1\n'
    return [
        *(Seed(json.dumps(row).encode(), is_json=True) for row in rows),
        Seed(b"\n".join(json.dumps(row).encode() for row in rows)),
        Seed(b"# people\nalice smiling\n\nbob\n"),
        Seed(table),
    ]


def _settings() -> list[Seed]:
    text = b'model = "mini"\ndevice = "cpu"\nthreads = 2\npreset = "clean"\ncuda_options = "prefer_nhwc=1"\n'
    return [Seed(text), Seed(text + b'openvino_options = "A=1"\nface_models = "buffalo_l"\n')]


def _documents(*values: object) -> Callable[[], list[Seed]]:
    return lambda: [Seed(json.dumps(value).encode(), is_json=True) for value in values]


def _lists() -> list[Seed]:
    return [
        Seed("# names\nEmma Stone\nbrad pitt\t0.53\ntaylor_swift_(singer)\nÉmile Zola\n".encode()),
        Seed(b"\xef\xbb\xbfemma stone\r\nhatsune_miku_(vocaloid)\r\n\r\n"),
    ]


def _prompts() -> list[Seed]:
    return [
        Seed(b'[[prompt]]\ntext = "{} on the beach"\ncategory = "place"\nstates = { place = "beach" }\n'),
        Seed(b'[[prompt]]\ntext = "{} and {} playing chess"\ncategory = "pair"\n'),
    ]


def _checkpoints() -> list[Seed]:
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (9, 8),
        "first_stage_model.decoder.conv_in.weight": (4, 4, 3, 3),
        "conditioner.embedders.1.model.x": (2,),
        "v_pred": (0,),
    }
    return [_pack_header({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, {"format": "pt"})]


def _commands_of_users() -> list[Seed]:
    """Words as they are typed; only commands that draw, look or keep the library's people."""
    gen = ["gen", "alice and <bob> on the beach", "--model", "toy", "--device", "cpu", "--steps", "1", "--seed", "7"]
    commands: list[list[str]] = [
        [*gen, "--layout", "left:alice,right:bob", "--likeness", "alice=0.5,bob=1", "--size", "32x32"],
        [*gen, "--layout", "alice@0,0,0.5,1 bob@0.5,0,1,1", "--cfg", "2.5", "--sampler", "euler", "-o", "x.png"],
        [
            *gen,
            "--hires",
            "2x",
            "--hires-strength",
            "0.5",
            "-o",
            "x.jpg",
            "--quality",
            "90",
            "--refine-strength",
            "0.5",
        ],
        [*gen, "--from", "x.png", "--mask", "y.png", "--mask-blur", "1", "--mask-invert", "--strength", "0.5"],
        [*gen, "--format", "webp", "--best-of", "2", "--no-watermark", "-o", "folder"],
        ["edit", "x.png", "alice smiling", "--was", "alice", "--threshold", "0.5", "--model", "toy", "--device", "cpu"],
        ["grid", "{person} in red", "--x", "seed=1,2", "--y", "person=alice,bob", "--steps", "1", "--model", "toy"],
        ["grid", "alice", "--x", "likeness=0.5,1", "--y", "steps=1,2", "--cell-size", "32", "--model", "toy"],
        ["sheet", "x.png", "y.png", "--columns", "2", "--cell-size", "32", "-o", "sheet.png"],
        ["verify", "x.png", "y.png", "--trust", "ca.pem"],
        [*gen, "--neg", "blurry", "--scale", "2", "--threads", "1", "-n", "2", "-o", "folder", "--likeness", "0.5"],
        ["mix", "alice", "bob", "--weights", "2,1", "--name", "carol"],
        ["mix", "alice", "bob", "--weight", "0.3"],
        ["show", "alice", "--for-model", "toy-01234567"],
        ["list", "--for-model", "toy-01234567"],
        ["rename", "alice", "anna"],
        ["rm", "alice", "bob"],
        ["export-embedding", "alice", "--to", "webui", "-o", "alice.safetensors"],
        ["interpolate", "alice", "bob", "--frames", "2", "--prompt", "{} smiling", "--model", "toy", "--device", "cpu"],
        ["use", "mini"],
        ["use", "device"],
        ["regen", "x.png"],
        ["inspect", "x.png"],
        ["import", "x.safetensors", "--name", "carol"],
        ["export", "--add", "bob", "--model", "toy"],
    ]
    return [Seed(json.dumps(words).encode(), is_json=True) for words in commands]


# Readers.


_TEMPLATES: dict[str, Path] = {}


def _bundle_in(sandbox: Path) -> Path:
    """A copy of the toy bundle with alice, and a library that knows alice and bob."""
    template = _TEMPLATES.get("bundle")
    if template is None:
        import tempfile

        template = Path(tempfile.mkdtemp(prefix="celebctl-fuzz-")) / "bundle"
        write_bundle(template, encodes=True).add(make_identity("alice"))
        _TEMPLATES["bundle"] = template
    library = Library(sandbox / "home")
    for number, name in enumerate(("alice", "bob"), 1):
        library.save(make_identity(name, seed=number))
    target = library.bundle_path("toy", "0123456789abcdef")
    shutil.copytree(template, target)
    return target


def _bundle_file(name: str) -> Callable[[], list[Seed]]:
    def seeds() -> list[Seed]:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            bundle = write_bundle(Path(folder) / "bundle", encodes=True)
            bundle.add(make_identity("alice"))
            content = (bundle.path / name).read_bytes()
        return [Seed(content, is_json=name.endswith(".json"))]

    return seeds


_BUNDLE = "home/bundles/toy-01234567"


def _read_bundle(path: Path, sandbox: Path) -> int:
    bundle = str(sandbox / _BUNDLE)
    return _commands(
        ["inspect", bundle],
        ["gen", "alice on the beach", "--bundle", bundle, "--steps", "2", "-o", "x.png", "--device", "cpu"],
        ["gen", "<bob>", "--model", "toy", "--likeness", "0.5", "--device", "cpu", "-o", "y.png"],
        ["export", "--bundle", bundle, "--add", "bob"],
        ["export", "--bundle", bundle, "--remove", "alice"],
        ["rename", "bob", "carl"],
        ["rm", "carl"],
    )


def _read_sealed(path: Path, sandbox: Path) -> int:
    """A bundle whose manifest states what the changed file is: made by an attacker, not damaged."""
    import hashlib

    file = sandbox / _BUNDLE / "manifest.json"
    manifest: Any = json.loads(file.read_bytes())
    name = path.relative_to(file.parent).as_posix()
    raw = path.read_bytes()
    manifest["files"][name] |= {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    file.write_text(json.dumps(manifest))
    return _read_bundle(path, sandbox)


def _read_identity(path: Path, sandbox: Path) -> int:
    shutil.copy(path, sandbox / "home" / "identities" / "toy-01234567" / "carl.safetensors")
    return _commands(
        ["inspect", str(path)],
        ["import", str(path), "--force"],
        ["import", str(path), "--name", "dora", "--force"],
        ["list"],
        ["show", "carl"],
        ["mix", "alice", "carl", "--name", "mixed"],
        ["gen", "carl", "--model", "toy", "--steps", "1", "--device", "cpu"],
        ["export-embedding", "carl"],
        ["rename", "carl", "erna"],
    )


def _read_recipe(path: Path, sandbox: Path) -> int:
    return _commands(
        ["inspect", str(path)],
        ["regen", str(path), "--device", "cpu"],
        ["regen", str(path), "--device", "cpu", "--model", "toy", "--sampler", "euler", "-o", "y.jpg"],
        ["sheet", str(path)],
        ["verify", str(path)],
    )


def _read_jobs(path: Path, sandbox: Path) -> int:
    words = ["--model", "toy", "--device", "cpu", "--seed", "1", "-o", "images"]
    formats: dict[bytes, str] = {b"{": "jsonl", b"p": "csv"}
    words += ["--format", formats.get(path.read_bytes()[:1], "text")]
    return _commands(["run", str(path), *words, "--keep-going"], ["run", str(path), *words])


def _read_inversion(path: Path, sandbox: Path) -> int:
    from celebctl.textual_inversion import read_contents, token_rows

    code = _commands(["inspect", str(path)])
    token_rows(read_contents(path), path, which=1)
    return code


def _read_settings(path: Path, sandbox: Path) -> int:
    from celebctl.settings import KNOWN, Settings

    code = _commands(["use"], ["use", "mini"], ["gen", "alice", "--model", "toy", "--steps", "1"])
    for name in KNOWN:
        Settings.read().get(name)
    return code


def _read_model(path: Path, sandbox: Path) -> int:
    from celebctl_models.checkpoints.registry import card_for, find_card, missing_parts, read_json
    from celebctl_runtime.sampling.schedule import ScheduleConfig

    folder = sandbox / "model"
    code = _commands(["inspect", str(folder)], ["use", str(folder)])
    missing_parts(folder)
    find_card(str(folder))
    card = card_for(folder)
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    schedule = ScheduleConfig.from_dict(card.checkpoint.schedule(config, ())).for_image(64)
    card.for_schedule(config)
    schedule.sigmas()
    return code


def _read_checkpoint(path: Path, sandbox: Path) -> int:
    from celebctl_models.checkpoints.checkpoint_io import tensor_shapes
    from celebctl_models.checkpoints.checkpoint_layout import latent_channels, refuse_layout

    code = _commands(["inspect", str(path)])
    shapes = tensor_shapes(path)
    refuse_layout(path.name, shapes)
    latent_channels(shapes)
    return code


def _read_command(path: Path, sandbox: Path) -> int:
    """Run the words in the file, but for paths out of the sandbox, which a user may name."""
    try:
        words = [str(word) for word in parse_json(path.read_bytes())]
        usable = "\0".join(words).count("\0") == len(words) - 1 and words[0] in COMMANDS
    except (ValueError, TypeError, IndexError):
        return 0
    if not usable or any(word.startswith(("/", "..", "~")) for word in words):
        return 0
    return main(words)


def _read_names(path: Path, sandbox: Path) -> None:
    from celebctl.basis.names import read_name_list

    read_name_list(path)


def _read_prompts(path: Path, sandbox: Path) -> None:
    from celebctl.evaluation.prompts import read_prompts

    read_prompts(path)


def _read_faces(path: Path, sandbox: Path) -> None:
    from celebctl_models.faces.analysis import FaceSettings
    from celebctl_models.faces.packs import face_models_name

    FaceSettings.read(path.parent)
    face_models_name(path.parent)


def _read_consistent(path: Path, sandbox: Path) -> None:
    """Files that celebctl wrote itself and reads again: caches, journals, reports."""
    from celebctl.basis.basis import load_basis
    from celebctl.basis.celebrities import load_faces
    from celebctl.evaluation.results import SubjectRecord

    load_basis(path)
    SubjectRecord.load(path)
    load_faces(path, "t")


def _own_files() -> list[Seed]:
    rows = np.ones((2, 4), np.float32)
    facts = {"names": "2", "kind": "clean", "hash": "0" * 64}
    record: dict[str, Any] = {
        "name": "alice", "samples": 1, "learn_seconds": 1.0, "size_bytes": 9, "rows": [["alice", 0, 1, {}, None]],
    }  # fmt: skip
    framing = {"face_height_min": 0.3, "face_height_max": 0.5, "face_center_y": 0.4, "face_jitter": 0.1}
    return [
        _pack_header({"mean.0": rows, "components.0": np.ones((2, 3, 4), np.float32), "spread.0": rows}, facts),
        _pack_header(
            {"features": rows[:1], "poses": np.ones((1, 3), np.float32), "sizes": np.array([1, 1]),
             "images": np.zeros(2, np.uint8)},
            {"record": json.dumps(record)},
        ),
        _pack_header(
            {"features": rows.astype(np.float16)},
            {"names": "a b\nc d", "table_hash": "t", "framing": json.dumps(framing)},
        ),
    ]  # fmt: skip


def _metadata(key: str, value: object) -> Seed:
    """A file of ours whose JSON in the metadata is mutated."""
    rows = np.ones((1, 4), np.float32)
    arrays = {"features": rows, "poses": rows[:, :3], "sizes": np.array([1, 1]), "images": np.zeros(2, np.uint8)}
    more = {"names": "a b", "table_hash": "t"}

    def build(text: bytes) -> bytes:
        return save({k: v.copy() for k, v in arrays.items()}, metadata={**more, key: text.decode("utf-8", "replace")})

    return Seed(json.dumps(value).encode(), build, is_json=True)


def _own_metadata() -> list[Seed]:
    framing = {"face_height_min": 0.3, "face_height_max": 0.5, "face_center_y": 0.4, "face_jitter": 0.1}
    record: dict[str, Any] = {
        "name": "alice", "samples": 1, "learn_seconds": 1.0, "size_bytes": 9, "rows": [["alice", 0, 1, {}, None]],
    }  # fmt: skip
    return [*_own_files(), _metadata("framing", framing), _metadata("record", record)]


def _model_in(sandbox: Path) -> Path:
    return write_model(sandbox / "model")


COMMANDS = frozenset(
    "gen mix show list rename rm export-embedding interpolate use regen inspect import export edit grid sheet"
    " verify".split()
)
DOORS: dict[str, Door] = {
    "command": Door(_commands_of_users, _read_command, ".json", prepare=_bundle_in),
    "identity": Door(_identities, _read_identity, ".safetensors", prepare=_bundle_in),
    "manifest": Door(_bundle_file("manifest.json"), _read_bundle, "", f"{_BUNDLE}/manifest.json", _bundle_in),
    "tokenizer": Door(
        _bundle_file("tokenizer/tokenizer.json"), _read_sealed, "", f"{_BUNDLE}/tokenizer/tokenizer.json", _bundle_in
    ),
    "token_table": Door(
        _bundle_file("token_table.bin"), _read_bundle, "", f"{_BUNDLE}/token_table.bin", _bundle_in
    ),
    "average": Door(_bundle_file("average.bin"), _read_sealed, "", f"{_BUNDLE}/average.bin", _bundle_in),
    "recipe": Door(_recipes, _read_recipe, ".png", prepare=_bundle_in),
    "jobs": Door(_job_files, _read_jobs, prepare=_bundle_in),
    "inversion": Door(_inversions, _read_inversion, ".safetensors"),
    "torch_file": Door(_torch_files, _read_inversion, ".pt"),
    "settings": Door(_settings, _read_settings, "", "here/celebctl.toml", _bundle_in),
    "user_settings": Door(_settings, _read_settings, "", "home/config.toml", _bundle_in),
    "card": Door(
        _documents({
            "name": "x", "family": "sd1", "licence": "mit", "native_size": 64, "display_scale": 2,
            "class_noun": "person", "pictures": "drawings", "names": "names.txt", "faces": "faces",
            "defaults": {"steps": 9, "guidance": 2.5,
            "sampler": "ddim", "layout": "none", "guidance_rescale": 0.5}, "checkpoint": {"clip_skip": 1,
            "prediction_type": "epsilon", "zero_terminal_snr": False, "vae": "vae"}, "framing": {"face_height_min": 0.3,
            "face_height_max": 0.5, "face_center_y": 0.4, "face_jitter": 0.1},
        }),
        _read_model, "", "model/celebctl.json", _model_in,
    ),
    "model_index": Door(
        _documents({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
                    "vae": ["diffusers", "AutoencoderKL"], "tokenizer_2": [None, None], "transformer": [None, None]}),
        _read_model, "", "model/model_index.json", _model_in,
    ),
    "unet_config": Door(
        _documents({"in_channels": 4, "sample_size": 64, "cross_attention_dim": 768}),
        _read_model, "", "model/unet/config.json", _model_in,
    ),
    "vae_config": Door(
        _documents({"latent_channels": 4, "block_out_channels": [1, 2, 3, 4], "scaling_factor": 0.18}),
        _read_model, "", "model/vae/config.json", _model_in,
    ),
    "scheduler_config": Door(
        _documents({**SCHEDULER, "num_train_timesteps": 1000, "trained_betas": [0.1, 0.2]}, {
            "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True,
            "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096,
        }),
        _read_model, "", "model/scheduler/scheduler_config.json", _model_in,
    ),
    "checkpoint": Door(_checkpoints, _read_checkpoint, ".safetensors"),
    "torch_checkpoint": Door(_torch_files, _read_checkpoint, ".ckpt"),
    "names": Door(_lists, _read_names, ".txt"),
    "prompts": Door(_prompts, _read_prompts, ".toml"),
    "faces": Door(
        _documents({"det_size": [320, 320], "det_thresh": 0.5, "min_face": 32, "similar": 0.6, "name": "x"}),
        _read_faces, "", "faces/faces.json",
    ),
    "own_files": Door(_own_metadata, _read_consistent, ".safetensors"),
}  # fmt: skip
