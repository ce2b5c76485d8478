"""What a model is, apart from its weights: its card, the table of known models, and where a model's name leads.

Torch-free and cheap to import. A model folder may declare itself in `celebctl.json`; what it leaves out is derived
from the diffusers configs beside it, so any plain `StableDiffusionPipeline` folder has a card.
"""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from celebctl_runtime.errors import IntegrityProblem, NotFound

CARD_FILE = "celebctl.json"
INDEX_FILE = "model_index.json"

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
    defaults: dict[str, Any] = field(default_factory=lambda: {"steps": 30, "guidance": 7.5, "sampler": "dpmpp_2m"})
    class_noun: str = "person"  # the word the model knows for what a learned name stands for
    names_file: Path | None = None  # names the model knows, one "first last" a line
    faces_dir: Path | None = None  # face detector and recogniser that fit the model's world
    features_file: Path | None = None  # what the recogniser sees when the model draws those names (safetensors)
    scoring_dir: Path | None = None  # networks kept apart from learning, only for judging


@dataclass(frozen=True)
class KnownModel:
    """One row of the table: where a short name leads."""

    source: str  # a folder inside this package ("mini/weights") or a hub id
    bundled: bool


KNOWN: dict[str, KnownModel] = {"mini": KnownModel("mini/weights", bundled=True)}

_FAMILY_BY_WIDTH = {768: "sd1", 1024: "sd2"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Location:
    """Where a model is: `folder` and `file` carry a path, `hub` carries an id to fetch."""

    kind: Literal["folder", "file", "hub"]
    name: str
    source: str
    path: Path = Path()


def locate(model: str | Path) -> Location:
    """Find what `model` means: a known name, a diffusers folder, a .safetensors file or a hub id, in this order.

    Nothing is loaded or fetched. Raises NotFound when it is none of them.
    """
    known = KNOWN.get(str(model))
    if known is not None:
        return _locate_known(str(model), known)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / INDEX_FILE).is_file():
            raise NotFound(f"{path} is no diffusers model folder: {INDEX_FILE} is missing", _known_hint())
        name = path.resolve().name
        return Location("folder", name, name, path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise NotFound(f"{path} is not a .safetensors file", "convert it to safetensors first")
        return Location("file", path.stem, path.name, path)
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        return Location("hub", model.rsplit("/", 1)[1], model)
    raise NotFound(f"no model called '{model}'", _known_hint())


def _locate_known(name: str, known: KnownModel) -> Location:
    if not known.bundled:
        return Location("hub", name, known.source)
    path = Path(__file__).parent / known.source
    if not (path / INDEX_FILE).is_file():
        raise NotFound(f"the weights of model '{name}' are not installed", "reinstall celebctl, or give --model FOLDER")
    return Location("folder", name, name, path)


def _known_hint() -> str:
    return f"give a diffusers folder, a .safetensors file, a hub id like owner/name, or one of: {', '.join(KNOWN)}"


def card_for(path: Path, name: str | None = None, source: str | None = None) -> ModelCard:
    """The card of the diffusers model in folder `path`: its own celebctl.json over what the configs say.

    `name` and `source` are used where celebctl.json gives none (default: the folder's name).
    Raises IntegrityProblem when one of the JSON files is broken or holds a value of the wrong type.
    """
    fallback = name or path.resolve().name
    derived = derive_card(
        fallback,
        source or fallback,
        unet=read_json(path / "unet" / "config.json"),
        vae=read_json(path / "vae" / "config.json"),
        text_encoders=1 + (path / "text_encoder_2").is_dir(),
    )
    declared = path / CARD_FILE
    return _apply(derived, read_json(declared), declared) if declared.is_file() else derived


def derive_card(name: str, source: str, *, unet: Config, vae: Config, text_encoders: int) -> ModelCard:
    """The card of a model that does not declare itself, from its diffusers configs."""
    native_size = int(unet.get("sample_size") or 64) * vae_factor(vae)
    family = "sdxl" if text_encoders > 1 else _FAMILY_BY_WIDTH.get(unet.get("cross_attention_dim", 0), "sd")
    return ModelCard(name, family, source, "unknown", native_size)


def vae_factor(vae: Config) -> int:
    """Pixels per latent pixel along one side: each level of the autoencoder but the last halves the picture."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def read_json(path: Path) -> Config:
    """One JSON object from a model folder. Raises NotFound or IntegrityProblem."""
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{path} is missing", "the model folder is incomplete: fetch it again") from None
    except (ValueError, OSError) as error:
        raise IntegrityProblem(f"{path} cannot be read: {error}", "fetch the model again") from error
    if not isinstance(value, dict):
        raise IntegrityProblem(f"{path} holds no JSON object", "fetch the model again")
    return cast(Config, value)


_TEXT = {"name": "name", "family": "family", "licence": "licence", "class_noun": "class_noun"}
_WHOLE = {"native_size": "native_size", "display_scale": "display_scale"}
_PLACES = {"names": "names_file", "faces": "faces_dir", "features": "features_file", "scoring": "scoring_dir"}


def _apply(card: ModelCard, declared: Config, path: Path) -> ModelCard:
    """`card` with what celebctl.json says. Places are relative to its folder and must not lead out of it."""
    changes: dict[str, Any] = {}
    for key, value in declared.items():
        if key in _TEXT and isinstance(value, str) and value:
            changes[_TEXT[key]] = value
        elif key in _WHOLE and isinstance(value, int) and value > 0:
            changes[_WHOLE[key]] = value
        elif key in _PLACES and isinstance(value, str) and _inside(path.parent, value):
            changes[_PLACES[key]] = (path.parent / value).resolve()
        elif key == "defaults" and isinstance(value, dict):
            changes["defaults"] = {**card.defaults, **cast(Config, value)}
        elif key in {*_TEXT, *_WHOLE, *_PLACES, "defaults"}:
            raise IntegrityProblem(f"{path}: '{key}' cannot be {value!r}", "correct it, or fetch the model again")
    return replace(card, **changes)


def _inside(folder: Path, place: str) -> bool:
    return (folder / place).resolve().is_relative_to(folder.resolve())
