"""Models apart from their weights: the card with their facts, their location, and the files they consist of.

Torch-free and cheap to import. A model folder may describe itself in `celebctl.json`. Missing fields come from the
table in known_models.py, then from the diffusers configs, so that any `StableDiffusionPipeline` folder has a card.
"""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, cast

from celebctl_models.faces.framing import Framing
from celebctl_runtime.errors import CelebctlError, IntegrityError, NotFoundError, UsageError
from celebctl_runtime.files import read_regular
from celebctl_runtime.paths import data_root, expanded
from celebctl_runtime.prompting.layout import AUTO, NONE
from celebctl_runtime.request import MAX_GUIDANCE, MAX_STEPS, SAMPLERS
from celebctl_runtime.strict_json import parse_json

from .checkpoint_options import CheckpointOptions
from .known_models import KNOWN, KnownModel, class_of, denoiser_of, known_by_source, refuse_unsupported

CARD_FILE = "celebctl.json"
INDEX_FILE = "model_index.json"
FILE_SUFFIXES = (".safetensors", ".ckpt")  # single-file checkpoints

Config = dict[str, Any]

_DEFAULTS: Config = {"steps": 30, "guidance": 7.5, "sampler": "dpmpp_2m", "layout": "auto"}
#: What NoobAI's model card recommends: other samplers start badly from noise alone, and strong guidance overexposes.
_ZERO_SNR_DEFAULTS: Config = {**_DEFAULTS, "guidance": 5.0, "guidance_rescale": 0.2, "sampler": "euler"}


@dataclass(frozen=True)
class ModelCard:
    """Facts about a model that its weights do not contain. Paths are absolute; None where the model has no such file.

    Attributes:
        name: Short name.
        family: "sd1", "sd2", "sdxl", "sd3", or "sd" for other Stable Diffusion models.
        source: Origin for manifests: a hub id, a known name, or a file name.
        licence: Name of the licence.
        native_size: Side in pixels of the square images the model was trained on.
        display_scale: Whole factor by which user interfaces may enlarge its images.
        defaults: Default steps, guidance, sampler and layout; and guidance_rescale, which bundles cannot change.
        class_noun: The word in prompts for what a learned name stands for.
        pictures: The kind of faces the model knows: "photographs", "drawings" of mini's world, or "" where neither its
            folder nor the table says.
        world: "mini" for a model of the synthetic world of celebctl_models.mini, whose true images can be rendered.
        names_file: Names the model knows, one "first last" per line.
        faces_dir: Face detector and recogniser for the faces this model draws.
        mapper_file: The mapper from faces to identities (safetensors).
        features_file: Recogniser features of the images the model draws for those names (safetensors).
        scoring_dir: Networks for evaluation only, never used in learning.
        framing: Where the model draws faces.
        checkpoint: What celebctl.json states about the checkpoint.
    """

    name: str
    family: str
    source: str
    licence: str
    native_size: int
    display_scale: int = 1
    defaults: dict[str, Any] = field(default_factory=lambda: dict(_DEFAULTS))
    class_noun: str = "person"
    pictures: str = ""
    world: str = ""
    names_file: Path | None = None
    faces_dir: Path | None = None
    mapper_file: Path | None = None
    features_file: Path | None = None
    scoring_dir: Path | None = None
    framing: Framing | None = None
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)

    def for_schedule(self, scheduler_config: Config) -> "ModelCard":
        """The card with the defaults that suit the noise schedule, where the model states none of its own."""
        suits = self.defaults != _DEFAULTS or not scheduler_config.get("rescale_betas_zero_snr")
        return self if suits else replace(self, defaults=dict(_ZERO_SNR_DEFAULTS))


# Locations.

_FAMILY_BY_WIDTH = {768: "sd1", 1024: "sd2"}
_FLOW_DEFAULTS = {"steps": 28, "guidance": 7.0, "sampler": "euler"}  # as diffusers' StableDiffusion3Pipeline
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Location:
    """Where a model is: a folder or file with its path, or a hub id (`source`) and revision to download."""

    kind: Literal["folder", "file", "hub"]
    name: str
    source: str
    path: Path = Path()
    revision: str = "main"


def locate(model: str | Path) -> Location:
    """Find a model. Nothing is loaded or downloaded; a model that was downloaded before is a folder.

    Args:
        model: A known name, a diffusers folder, a single checkpoint file or a hub id, tried in this order.

    Raises:
        NotFoundError: None of these.
        InvalidInputError: The name of an unsupported model family.
    """
    known = KNOWN.get(str(model))
    if known is not None:
        return _locate_bundled(str(model), known) if known.bundled else _locate_hub(str(model), known)
    path = expanded(model)
    if os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises OSError for what is too long for a path
        if not (path / INDEX_FILE).is_file():
            raise NotFoundError(f"{path} is not a diffusers model folder: no {INDEX_FILE}", _known_hint())
        name = path.resolve().name
        return Location("folder", name, name, path)
    if os.path.isfile(path):  # noqa: PTH113  likewise
        if path.suffix not in FILE_SUFFIXES:
            renamed = path.with_suffix(path.suffix.lower()).name
            hint = (
                f"rename it to {renamed}" if path.suffix.lower() in FILE_SUFFIXES else "convert it to safetensors first"
            )
            raise NotFoundError(f"{path} is not a {' or '.join(FILE_SUFFIXES)} file", hint, reason="checkpoint_suffix")
        return Location("file", path.stem, path.name, path)
    refuse_unsupported(str(model))
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        return _locate_hub(model, known_by_source(model))
    similar = difflib.get_close_matches(str(model), KNOWN, n=1)
    hint = f"did you mean {similar[0]}? {_known_hint()}" if similar else _known_hint()
    raise NotFoundError(f"no model named '{str(model)[:200]}'", hint)


def _locate_bundled(name: str, known: KnownModel) -> Location:
    """The location of a model that comes with the package."""
    path = Path(__file__).parent.parent / known.source
    if not (path / INDEX_FILE).is_file():
        hint = "reinstall celebctl, or use a model folder"
        raise NotFoundError(f"the weights of model '{name}' are not installed", hint)
    return Location("folder", name, name, path)


def _locate_hub(model: str, known: KnownModel | None) -> Location:
    """The location of a known name or hub id; `known` is its row in the table."""
    source, revision = (known.source, known.revision) if known else (model, "main")
    name = model.rsplit("/", 1)[-1]
    for folder in (installed_folder(model), cached_folder(source, revision)):
        if folder is not None and (folder / INDEX_FILE).is_file() and not missing_parts(folder):
            return Location("folder", name, source, folder, revision)
    return Location("hub", name, source, revision=revision)


def _known_hint() -> str:
    """The hint that lists what names a model."""
    return f"use a diffusers folder, a .safetensors file, a hub id like owner/name, or one of: {', '.join(KNOWN)}"


def installed_folder(model: str) -> Path:
    """The folder in the library for a known name or hub id that is installed from a folder; it need not exist."""
    return data_root() / "models" / model.replace("/", "--")


def cached_folder(source: str, revision: str, cache: Path | None = None) -> Path | None:
    """The snapshot of a hub repository in `cache` (default: the hub client's), complete or not; None without one.

    Also None without huggingface_hub: the packages that open models depend on it.
    """
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    index = try_to_load_from_cache(source, INDEX_FILE, cache_dir=cache, revision=revision)
    return Path(index).parent if isinstance(index, str) else None


# The files of a model folder.

_WEIGHTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_WEIGHT_SUFFIXES = (".safetensors", "-?????-of-?????.safetensors", ".safetensors.index.json")
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json")
#: Glob patterns of the files that are read of a model: full names, because repositories have the same weights in many
#: precisions and formats. `TEXT_FILES`: those that are read without the weights of denoiser and autoencoder.
TEXT_FILES = (
    INDEX_FILE,
    CARD_FILE,
    "scheduler/scheduler_config.json",
    *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in _TOKENIZER_FILES),
    *(f"{part}/config.json" for part in _WEIGHTS),
    *(f"{part}/model{suffix}" for part in ("text_encoder", "text_encoder_2") for suffix in _WEIGHT_SUFFIXES),
)
MODEL_FILES = (
    *TEXT_FILES,
    *(f"{part}/{name}{suffix}" for part, name in _WEIGHTS.items() for suffix in _WEIGHT_SUFFIXES if name != "model"),
)


_SHARD = re.compile(r"[A-Za-z0-9_][\w.-]*")


def parts_of(index: Config) -> list[str]:
    """The folders of a model that celebctl reads, by its model_index.json."""
    second = [part for part in ("tokenizer_2", "text_encoder_2") if class_of(index, part)]
    return ["tokenizer", "text_encoder", *second, denoiser_of(index), "vae", "scheduler"]


def wanted_files(names: Iterable[str]) -> list[str]:
    """Those of a model's files that celebctl reads, sorted."""
    return sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in MODEL_FILES))


def files_in(folder: Path) -> list[str]:
    """The files of a model folder that celebctl reads, as relative paths, sorted."""
    return wanted_files(path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file())


def missing_parts(folder: Path, names: list[str] | None = None) -> list[str]:
    """Relative paths of the files that a model folder lacks; [] when it is complete. Only indexes are opened.

    `names`: relative paths to check in place of the folder's own files, of which only model_index.json must exist.
    """
    if names is None:
        names = [path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()]
    present = set(names)
    missing: list[str] = []
    for part in parts_of(read_json(folder / INDEX_FILE)):
        if part.startswith("tokenizer"):
            needed = {"tokenizer.json"} if f"{part}/tokenizer.json" in present else {"vocab.json", "merges.txt"}
        elif part in _WEIGHTS:
            needed = {"config.json", *_weight_files(folder, part, present)}
        else:
            needed = {"scheduler_config.json"}
        missing += sorted({f"{part}/{name}" for name in needed} - present)
    return missing


def _weight_files(folder: Path, part: str, present: set[str]) -> set[str]:
    """The files with the weights of a part: one, or an index and its shards. Raises IntegrityError."""
    whole = f"{_WEIGHTS[part]}.safetensors"
    index = f"{whole}.index.json"
    if f"{part}/{whole}" in present or f"{part}/{index}" not in present:
        return {whole}
    if not (folder / part / index).is_file():
        return {index}
    shards: object = read_json(folder / part / index).get("weight_map", {})
    files = set(map(str, cast(Config, shards).values())) if isinstance(shards, dict) else {""}
    if not all(_SHARD.fullmatch(file) for file in files):
        raise IntegrityError(f"{folder / part / index} names files outside its folder", "download the model again")
    return {index, *files}


# Cards.


def card_for(path: Path, name: str | None = None, source: str | None = None) -> ModelCard:
    """The card of a diffusers folder: fields from its celebctl.json, else the table of known models, else its configs.

    Args:
        path: The folder.
        name: Used where celebctl.json has none; default the folder's name.
        source: Likewise; default the name.

    Raises:
        NotFoundError: A config is missing.
        IntegrityError: A JSON file is broken or has a value of the wrong type.
    """
    fallback = name or path.resolve().name
    card = derive_card(
        fallback,
        source or fallback,
        denoiser=read_json(path / denoiser_of(read_json(path / INDEX_FILE)) / "config.json"),
        vae=read_json(path / "vae" / "config.json"),
        text_encoders=1 + (path / "text_encoder_2").is_dir(),
    )
    known = known_by_source(card.source)
    if known is not None:
        card = replace(
            card,
            licence=known.licence.name,
            native_size=known.native_size,
            pictures="photographs",
            defaults={**card.defaults, **known.defaults},
        )
    declared = path / CARD_FILE
    return _apply(card, read_json(declared), declared) if declared.is_file() else card


def find_card(model: str | Path) -> ModelCard | None:
    """The card of a known name, folder, file or hub id; None for a file, or a model that is not on this machine.

    Raises NotFoundError, InvalidInputError or IntegrityError as `locate` and `card_for` do.
    """
    location = locate(model)
    return card_for(location.path, location.name, location.source) if location.kind == "folder" else None


def derive_card(name: str, source: str, *, denoiser: Config, vae: Config, text_encoders: int) -> ModelCard:
    """The card of a model from its diffusers configs alone."""
    native_size = whole_number(denoiser, "sample_size", 64) * vae_factor(vae)
    if "joint_attention_dim" in denoiser:
        card = ModelCard(name, "sd3", source, "unknown", native_size)
        return replace(card, defaults={**card.defaults, **_FLOW_DEFAULTS})
    width = denoiser.get("cross_attention_dim")  # a list where it differs between blocks
    known = _FAMILY_BY_WIDTH.get(width, "sd") if isinstance(width, int) else "sd"
    family = "sdxl" if text_encoders > 1 else known
    return ModelCard(name, family, source, "unknown", native_size)


def vae_factor(vae: Config) -> int:
    """Pixels per latent pixel along one side: each level of the autoencoder but the last halves the image.

    Raises IntegrityError when the config does not tell.
    """
    value: Any = vae.get("block_out_channels")
    levels = len(cast("list[Any]", value)) if isinstance(value, list | tuple) else 0
    if not 1 <= levels <= _MAX_LEVELS:
        raise _unsupported_config("block_out_channels", vae, f"a list of 1 to {_MAX_LEVELS} numbers")
    return 2 ** (levels - 1)


def whole_number(config: Config, key: str, default: int) -> int:
    """A size or count in a model's config, from 1; `default` where it is missing or null. A square may be two numbers.

    Raises IntegrityError for anything else.
    """
    value: Any = config.get(key)
    if value is None:
        return default
    sides = list(cast("list[Any]", value)) if isinstance(value, list | tuple) else [value]
    if not sides or type(sides[0]) is not int or sides not in ([sides[0]], [sides[0]] * 2):
        raise _unsupported_config(key, config, "one whole number; other shapes than squares are not supported")
    if not 1 <= sides[0] <= _MAX_NUMBER:
        raise _unsupported_config(key, config, f"1 to {_MAX_NUMBER}")
    return int(sides[0])


def _unsupported_config(key: str, config: Config, expected: str) -> IntegrityError:
    return IntegrityError(
        f"'{key}' in the model's config is {str(config.get(key))[:80]}; celebctl needs {expected}",
        "use another model, or download this one again",
        reason="unsupported_config",
        key=key,
    )


def read_json(path: Path) -> Config:
    """One JSON object from a model folder. Raises NotFoundError or IntegrityError."""
    try:
        value: object = parse_json(read_regular(path))
    except FileNotFoundError:
        raise NotFoundError(f"{path} is missing", "the model folder is incomplete: download it again") from None
    except (ValueError, OSError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", "download the model again") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} contains no JSON object", "download the model again")
    return cast(Config, value)


_MAX_NAME, _MAX_WORDS = 100, 300  # characters
_MAX_NUMBER, _MAX_LEVELS = 1 << 16, 12  # far above every real model
_TEXTS = ("name", "family", "licence", "class_noun", "world")
_SIZES = ("native_size", "display_scale")
_PICTURES = ("photographs", "drawings")
_PATHS = {
    "names": "names_file",
    "faces": "faces_dir",
    "features": "features_file",
    "mapper": "mapper_file",
    "scoring": "scoring_dir",
}


def _apply(card: ModelCard, declared: Config, path: Path) -> ModelCard:
    """`card` with the fields of celebctl.json. Paths are relative to its folder and must stay inside it."""
    changes: dict[str, Any] = {}
    for key, entry in declared.items():
        value: Any = entry
        is_text = key in _TEXTS and isinstance(value, str) and _is_valid_text(key, value)
        is_kind = key == "pictures" and value in _PICTURES
        if is_text or is_kind or (key in _SIZES and type(value) is int and 0 < value <= _MAX_NUMBER):
            changes[key] = value
        elif key in _PATHS and isinstance(value, str) and _is_inside(path.parent, value):
            changes[_PATHS[key]] = path.parent.resolve() / value
        elif key == "defaults" and isinstance(value, dict) and _are_defaults(cast(Config, value)):
            changes["defaults"] = {**card.defaults, **cast(Config, value)}
        elif key == "framing" and (framing := _framing(entry)) is not None:
            changes["framing"] = framing
        elif key == "checkpoint" and (stated := _checkpoint_options(entry, path.parent)) is not None:
            changes["checkpoint"] = stated
        elif key in {*_TEXTS, *_SIZES, *_PATHS, "pictures", "defaults", "framing", "checkpoint"}:
            raise IntegrityError(f"{path}: '{key}' cannot be {value!r}", "correct it, or download the model again")
    return replace(card, **changes)


def _are_defaults(values: Config) -> bool:
    """Whether celebctl.json may have these defaults."""
    limits = {"steps": (int, 1, MAX_STEPS), "guidance": (float, 0, MAX_GUIDANCE), "guidance_rescale": (float, 0, 1)}
    choices = {"sampler": SAMPLERS, "layout": (AUTO, NONE)}
    for key, value in values.items():
        if key in choices and value not in choices[key]:
            return False
        kind, low, high = limits.get(key, (object, 0, 0))
        if key in limits and not (type(value) in (int, kind) and low <= value <= high):
            return False
    return True


def _framing(value: object) -> Framing | None:
    """The framing in celebctl.json; None for invalid values."""
    try:
        return Framing.from_dict(cast(Config, value)) if isinstance(value, dict) else None
    except ValueError:
        return None


def _checkpoint_options(value: object, folder: Path) -> CheckpointOptions | None:
    """The options of a checkpoint in celebctl.json; None for invalid ones."""
    kinds = {"prediction_type": str, "zero_terminal_snr": bool, "clip_skip": int, "vae": str}
    stated: Config = dict(cast(Config, value)) if isinstance(value, dict) else {"": None}
    if any(type(stated[key]) is not kinds.get(key) for key in stated):
        return None
    if "vae" in stated:
        if not _is_inside(folder, stated["vae"]):
            return None
        stated["vae"] = folder.resolve() / stated["vae"]
    try:
        return CheckpointOptions(**stated)
    except UsageError:
        return None


def _is_valid_text(key: str, value: str) -> bool:
    """Whether celebctl.json may have this text. Name and family become parts of file names."""
    if key == "family":
        from celebctl_runtime.identity import check_key

        try:
            return bool(check_key("a family", value))
        except CelebctlError:
            return False
    limit = _MAX_NAME if key == "name" else _MAX_WORDS
    return 0 < len(value) <= limit and value.isprintable() and (key != "name" or not {"/", "\\"} & {*value})


def _is_inside(folder: Path, path: str) -> bool:
    """Whether a path in celebctl.json is in its folder. A hub snapshot's files are links to its blobs."""
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    if not path.isprintable() or posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts):
        return False
    root, target = folder.resolve(), (folder / path).resolve()
    blobs = root.parent.parent / "blobs"
    return target.is_relative_to(root) or (root.parent.name == "snapshots" and target.is_relative_to(blobs))
