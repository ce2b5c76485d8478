"""What a model is, apart from its weights: its card, where its name leads, and which files it is made of.

Torch-free and cheap to import. A model folder may declare itself in `celebctl.json`; what it leaves out is told by the
table in known_models.py, and what neither says is derived from the diffusers configs beside it, so any plain
`StableDiffusionPipeline` folder has a card. What this module does not know: networks, downloads.
"""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, cast

from celebctl_models.faces.framing import Framing
from celebctl_runtime.errors import CelebctlError, IntegrityError, NotFoundError
from celebctl_runtime.paths import data_root

from .known_models import KNOWN, KnownModel, class_of, known_by_source, refuse_unsupported

CARD_FILE = "celebctl.json"
INDEX_FILE = "model_index.json"
FILE_SUFFIXES = (".safetensors", ".ckpt")  # single-file checkpoints

Config = dict[str, Any]


@dataclass(frozen=True)
class ModelCard:
    """Facts about a model that its weights do not tell. Sizes in pixels; paths are absolute, None where not given."""

    name: str
    family: str  # "sd1", "sd2", "sdxl", or "sd" for any other member of the family
    source: str  # where it came from, in words fit for a manifest: a hub id, a known name, a file name
    licence: str
    native_size: int  # side of the square picture the model was trained on
    display_scale: int = 1  # whole factor by which a front desk may enlarge pictures for people to look at
    defaults: dict[str, Any] = field(
        default_factory=lambda: {"steps": 30, "guidance": 7.5, "sampler": "dpmpp_2m", "layout": "auto"}
    )
    class_noun: str = "person"  # the word the model knows for what a learned name stands for
    names_file: Path | None = None  # names the model knows, one "first last" a line
    faces_dir: Path | None = None  # face detector and recogniser that fit the model's world
    mapper_file: Path | None = None  # the mapper from faces to people, as learning begins with it (safetensors)
    features_file: Path | None = None  # what the recogniser sees when the model draws those names (safetensors)
    scoring_dir: Path | None = None  # networks kept apart from learning, only for judging
    framing: Framing | None = None  # where it draws faces


# Where models are.

_FAMILY_BY_WIDTH = {768: "sd1", 1024: "sd2"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[A-Za-z0-9_][\w.-]*")


@dataclass(frozen=True)
class Location:
    """Where a model is: `folder` and `file` carry a path, `hub` carries an id and a revision to fetch."""

    kind: Literal["folder", "file", "hub"]
    name: str
    source: str
    path: Path = Path()
    revision: str = "main"


def locate(model: str | Path) -> Location:
    """Find what `model` means: a known name, a diffusers folder, a single checkpoint file or a hub id, in this order.

    Nothing is loaded or fetched; a model that was fetched before is a folder. Raises NotFoundError when it is none of them,
    InvalidInputError for the name of a family that cannot be supported.
    """
    known = KNOWN.get(str(model))
    if known is not None:
        return _locate_bundled(str(model), known) if known.bundled else _locate_hub(str(model), known)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / INDEX_FILE).is_file():
            raise NotFoundError(f"{path} is no diffusers model folder: {INDEX_FILE} is missing", _known_hint())
        name = path.resolve().name
        return Location("folder", name, name, path)
    if path.is_file():
        if path.suffix not in FILE_SUFFIXES:
            raise NotFoundError(f"{path} is not a {' or '.join(FILE_SUFFIXES)} file", "convert it to safetensors first")
        return Location("file", path.stem, path.name, path)
    refuse_unsupported(str(model))
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        return _locate_hub(model, known_by_source(model))
    near = difflib.get_close_matches(str(model), KNOWN, n=1)
    raise NotFoundError(f"no model called '{model}'", f"did you mean {near[0]}? {_known_hint()}" if near else _known_hint())


def _locate_bundled(name: str, known: KnownModel) -> Location:
    path = Path(__file__).parent.parent / known.source
    if not (path / INDEX_FILE).is_file():
        raise NotFoundError(f"the weights of model '{name}' are not installed", "reinstall celebctl, or give --model FOLDER")
    return Location("folder", name, name, path)


def _locate_hub(model: str, known: KnownModel | None) -> Location:
    """`model` is a known name or a hub id; `known` its row, if it has one."""
    source, revision = (known.source, known.revision) if known else (model, "main")
    name = model.rsplit("/", 1)[-1]
    for folder in (installed_folder(model), cached_folder(source, revision)):
        if folder is not None and (folder / INDEX_FILE).is_file() and not missing_parts(folder):
            return Location("folder", name, source, folder, revision)
    return Location("hub", name, source, revision=revision)


def _known_hint() -> str:
    return f"give a diffusers folder, a .safetensors file, a hub id like owner/name, or one of: {', '.join(KNOWN)}"


def installed_folder(model: str) -> Path:
    """Where `celebctl setup MODEL --from DIR` puts a known model or hub id; it need not exist."""
    return data_root() / "models" / model.replace("/", "--")


def cached_folder(source: str, revision: str, cache: Path | None = None) -> Path | None:
    """The snapshot of a hub repository in `cache` (default: the hub client's), complete or not.

    None when there is none, and without huggingface_hub: nothing that opens a model is installed without it.
    """
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    index = try_to_load_from_cache(source, INDEX_FILE, cache_dir=cache, revision=revision)
    return Path(index).parent if isinstance(index, str) else None


# What a model folder is made of.

_WEIGHTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_WEIGHT_ENDS = (".safetensors", "-?????-of-?????.safetensors", ".safetensors.index.json")
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json")
#: Glob patterns of the files that are read of a model. Names in full, because repositories hold the same weights in
#: several precisions and formats. `TEXT_FILES`: of these, what is read without UNet and autoencoder weights.
TEXT_FILES = (
    INDEX_FILE,
    CARD_FILE,
    "scheduler/scheduler_config.json",
    *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in _TOKENIZER_FILES),
    *(f"{part}/config.json" for part in _WEIGHTS),
    *(f"{part}/model{end}" for part in ("text_encoder", "text_encoder_2") for end in _WEIGHT_ENDS),
)
MODEL_FILES = (
    *TEXT_FILES,
    *(f"{part}/diffusion_pytorch_model{end}" for part in ("unet", "vae") for end in _WEIGHT_ENDS),
)


_SHARD = re.compile(r"[A-Za-z0-9_][\w.-]*")


def parts_of(index: Config) -> list[str]:
    """The folders of a model that celebctl reads, by its model_index.json."""
    second = [part for part in ("tokenizer_2", "text_encoder_2") if class_of(index, part)]
    return ["tokenizer", "text_encoder", *second, "unet", "vae", "scheduler"]


def wanted_files(names: Iterable[str]) -> list[str]:
    """Those of a model's files that celebctl reads, sorted."""
    return sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in MODEL_FILES))


def files_in(folder: Path) -> list[str]:
    """The files of a model folder that celebctl reads, as relative paths, sorted."""
    return wanted_files(path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file())


def missing_parts(folder: Path, names: list[str] | None = None) -> list[str]:
    """What a model folder lacks to be read, as relative paths; [] when it is whole. Files are not opened but indexes.

    `names`: look at this list of relative paths in place of the folder's own, of which only the index must be there.
    """
    if names is None:
        names = [path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()]
    there = set(names)
    missing: list[str] = []
    for part in parts_of(read_json(folder / INDEX_FILE)):
        if part.startswith("tokenizer"):
            needed = {"tokenizer.json"} if f"{part}/tokenizer.json" in there else {"vocab.json", "merges.txt"}
        elif part in _WEIGHTS:
            needed = {"config.json", *_weight_files(folder, part, there)}
        else:
            needed = {"scheduler_config.json"}
        missing += sorted({f"{part}/{name}" for name in needed} - there)
    return missing


def _weight_files(folder: Path, part: str, there: set[str]) -> set[str]:
    """The files that hold the weights of a part: one, or the shards an index lists."""
    whole = f"{_WEIGHTS[part]}.safetensors"
    index = f"{whole}.index.json"
    if f"{part}/{whole}" in there or f"{part}/{index}" not in there:
        return {whole}
    if not (folder / part / index).is_file():
        return {index}
    shards: object = read_json(folder / part / index).get("weight_map", {})
    found = set(map(str, cast(Config, shards).values())) if isinstance(shards, dict) else {""}
    if not all(_SHARD.fullmatch(shard) for shard in found):
        raise IntegrityError(f"{folder / part / index} names files outside its folder", "fetch the model again")
    return {index, *found}


# Cards.


def card_for(path: Path, name: str | None = None, source: str | None = None) -> ModelCard:
    """The card of the diffusers model in folder `path`: its own celebctl.json over the table over what configs say.

    `name` and `source` are used where celebctl.json gives none (default: the folder's name).
    Raises IntegrityError when one of the JSON files is broken or holds a value of the wrong type.
    """
    fallback = name or path.resolve().name
    card = derive_card(
        fallback,
        source or fallback,
        unet=read_json(path / "unet" / "config.json"),
        vae=read_json(path / "vae" / "config.json"),
        text_encoders=1 + (path / "text_encoder_2").is_dir(),
    )
    known = known_by_source(card.source)
    if known is not None:
        card = replace(
            card,
            licence=known.licence.name,
            native_size=known.native_size,
            defaults={**card.defaults, **known.defaults},
        )
    declared = path / CARD_FILE
    return _apply(card, read_json(declared), declared) if declared.is_file() else card


def derive_card(name: str, source: str, *, unet: Config, vae: Config, text_encoders: int) -> ModelCard:
    """The card of a model that does not declare itself, from its diffusers configs."""
    native_size = int(unet.get("sample_size") or 64) * vae_factor(vae)
    family = "sdxl" if text_encoders > 1 else _FAMILY_BY_WIDTH.get(unet.get("cross_attention_dim", 0), "sd")
    return ModelCard(name, family, source, "unknown", native_size)


def vae_factor(vae: Config) -> int:
    """Pixels per latent pixel along one side: each level of the autoencoder but the last halves the picture."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def read_json(path: Path) -> Config:
    """One JSON object from a model folder. Raises NotFoundError or IntegrityError."""
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path} is missing", "the model folder is incomplete: fetch it again") from None
    except (ValueError, OSError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", "fetch the model again") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} holds no JSON object", "fetch the model again")
    return cast(Config, value)


_MAX_NAME, _MAX_WORDS = 100, 300  # characters
_TEXT = {"name": "name", "family": "family", "licence": "licence", "class_noun": "class_noun"}
_WHOLE = {"native_size": "native_size", "display_scale": "display_scale"}
_PLACES = {
    "names": "names_file",
    "faces": "faces_dir",
    "features": "features_file",
    "mapper": "mapper_file",
    "scoring": "scoring_dir",
}


def _apply(card: ModelCard, declared: Config, path: Path) -> ModelCard:
    """`card` with what celebctl.json says. Places are relative to its folder and must not lead out of it.

    The name and the family become part of file names.
    """
    changes: dict[str, Any] = {}
    for key, value in declared.items():
        if key in _TEXT and isinstance(value, str) and _is_text(key, value):
            changes[_TEXT[key]] = value
        elif key in _WHOLE and isinstance(value, int) and value > 0:
            changes[_WHOLE[key]] = value
        elif key in _PLACES and isinstance(value, str) and _inside(path.parent, value):
            changes[_PLACES[key]] = path.parent.resolve() / value
        elif key == "defaults" and isinstance(value, dict):
            changes["defaults"] = {**card.defaults, **cast(Config, value)}
        elif key == "framing" and (framing := _framing(value)) is not None:
            changes["framing"] = framing
        elif key in {*_TEXT, *_WHOLE, *_PLACES, "defaults", "framing"}:
            raise IntegrityError(f"{path}: '{key}' cannot be {value!r}", "correct it, or fetch the model again")
    return replace(card, **changes)


def _framing(value: object) -> Framing | None:
    try:
        return Framing.from_dict(cast(Config, value)) if isinstance(value, dict) else None
    except ValueError:
        return None


def _is_text(key: str, value: str) -> bool:
    """Whether celebctl.json may say this: a family as identities have it, a name without separators."""
    if key == "family":
        from celebctl_runtime.identity import check_key

        try:
            return bool(check_key("a family", value))
        except CelebctlError:
            return False
    limit = _MAX_NAME if key == "name" else _MAX_WORDS
    return 0 < len(value) <= limit and value.isprintable() and (key != "name" or not {"/", "\\"} & {*value})


def _inside(folder: Path, place: str) -> bool:
    """Whether a place named in celebctl.json is in its folder. A hub snapshot's files are links to its blobs."""
    posix, windows = PurePosixPath(place), PureWindowsPath(place)
    if not place.isprintable() or posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts):
        return False
    home, target = folder.resolve(), (folder / place).resolve()
    blobs = home.parent.parent / "blobs"
    return target.is_relative_to(home) or (home.parent.name == "snapshots" and target.is_relative_to(blobs))
