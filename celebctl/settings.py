"""Persistent settings, and where each value came from.

Precedence: option > environment > ./celebctl.toml > the user's config.toml > default. With CELEBCTL_HOME set, the
user's config.toml is read from there, so that one folder holds everything.
"""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from celebctl.strict_toml import parse_toml
from celebctl_runtime.backends.device import parse_device
from celebctl_runtime.errors import InvalidInputError, UsageError
from celebctl_runtime.files import atomic_write, read_regular
from celebctl_runtime.paths import config_folder
from celebctl_runtime.private_files import keep_private

PROJECT_FILE = "celebctl.toml"
USER_FILE = "config.toml"
_MAX_DIGITS = 20
_SECRETS = ("watermark_key",)  # their values are in no message


@dataclass(frozen=True)
class SettingSpec:
    """A setting. The type of `default` is its type: text (also for None) or whole number.

    Its values are `choices`, or what `parse` accepts, which raises UsageError.
    """

    name: str
    default: str | int | None
    description: str
    choices: tuple[str, ...] = ()
    parse: Callable[[str], object] | None = None

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"CELEBCTL_{self.name.upper()}"


def _fraction(text: str) -> float:
    """A number from 0 to 1. Raises UsageError."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise UsageError(f"{text!r} is not a number from 0 to 1", 'use "0" to "1", such as "0.5"')
    return number


KNOWN = {
    spec.name: spec
    for spec in (
        SettingSpec(
            "model", "mini", "the model: a known name, a diffusers folder, a .safetensors or .ckpt file, or a Hub id"
        ),
        SettingSpec("device", "auto", "the device that draws images", parse=parse_device),
        SettingSpec("threads", 0, "CPU threads for drawing; 0 is one per physical core"),
        SettingSpec("cuda_options", None, "options of ONNX Runtime on CUDA, like prefer_nhwc=1,enable_cuda_graph=0"),
        SettingSpec("openvino_options", None, "options of OpenVINO, like INFERENCE_PRECISION_HINT=bf16"),
        SettingSpec(
            "preview", "off", "previews while drawing: auto, off, kitty, iterm2, sixel or a file ending in .png"
        ),
        SettingSpec("wildcards", None, "the folder with the files of wildcards in prompts, NAME.txt for __NAME__"),
        SettingSpec("watermark", "on", "whether saved images carry a watermark", ("on", "off")),
        SettingSpec("watermark_key", None, "a secret text; only who knows it finds the watermark of your images"),
        SettingSpec(
            "credentials", "auto", "content credentials; auto: if c2pa-python is installed", ("auto", "on", "off")
        ),
        SettingSpec("certificate", None, "PEM file with the certificates that sign content credentials, yours first"),
        SettingSpec("private_key", None, "PEM file with the private key of the certificate"),
        SettingSpec("safety_checker", None, "an ONNX classifier; images that it refuses are not written"),
        SettingSpec(
            "safety_threshold", "0.5", "the safety checker's score up to which images are written", parse=_fraction
        ),
        SettingSpec("preset", "clean", "the learning preset", ("clean", "faithful")),
        SettingSpec(
            "face_models", None, "face detector and recogniser: a known pack, or a folder in insightface's format"
        ),
    )
}


@dataclass(frozen=True)
class Setting:
    """A value and its origin, such as "--model" or "default"."""

    value: str | int | None
    origin: str


@dataclass(frozen=True)
class Settings:
    """All layers but the options, read once."""

    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    project: Mapping[str, Any] = field(default_factory=dict[str, Any])
    user: Mapping[str, Any] = field(default_factory=dict[str, Any])
    user_file: Path = Path(USER_FILE)

    @classmethod
    def read(cls, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings for work in `folder` (default: the current one). Raises UsageError for an invalid file."""
        variables = os.environ if environment is None else environment
        user_file = config_folder(variables) / USER_FILE
        project_file = (folder or Path()) / PROJECT_FILE
        return cls(variables, _read_toml(project_file), _read_toml(user_file), user_file)

    def get(self, name: str, flag: str | int | None = None) -> Setting:
        """The value of one setting and its origin; `flag` is the value of the command's option, if given.

        Raises UsageError for an invalid value.
        """
        spec = KNOWN[name]
        layers: tuple[tuple[object, str], ...] = (
            (flag, f"--{name.replace('_', '-')}"),
            (self.environment.get(spec.variable) or None, spec.variable),
            (self.project.get(name), f"./{PROJECT_FILE}"),
            (self.user.get(name), str(self.user_file)),
            (spec.default, "default"),
        )
        for value, origin in layers:
            if value is not None:
                return Setting(_checked(spec, value, origin), origin)
        return Setting(None, "default")

    def text(self, name: str, flag: str | None = None) -> str | None:
        """A setting whose value is text."""
        value = self.get(name, flag).value
        return None if value is None else str(value)

    def number(self, name: str, flag: int | None = None) -> int:
        """A setting whose value is a whole number."""
        return int(self.get(name, flag).value or 0)


def save_setting(name: str, value: str, environment: Mapping[str, str] | None = None) -> Path:
    """Set one text in the user's config.toml, keeping all other lines and comments; returns the file.

    Raises UsageError when the value or the file is invalid.
    """
    import tomlkit

    path = config_folder(environment) / USER_FILE
    _read_toml(path)
    _checked(KNOWN[name], value, "the command line")
    text = _text_of(path)
    document = tomlkit.parse(text)
    document[name] = value
    changed = document.as_string()
    if "\r\n" in text:
        changed = changed.replace("\r\n", "\n").replace("\n", "\r\n")
    keep_private(path.parent)  # watermark_key is a secret
    atomic_write(path, changed.encode())
    return path


def _checked(spec: SettingSpec, value: object, origin: str) -> str | int:
    kind = int if isinstance(spec.default, int) else str
    checked = int(value) if kind is int and isinstance(value, str) and _is_whole(value) else value
    shown = "" if spec.name in _SECRETS else f" {str(value)[:80]!r}"
    invalid = f"invalid value{shown} for setting {spec.name} (from {origin})"
    if type(checked) is not kind or (isinstance(checked, int) and checked < 0):
        raise UsageError(invalid, f"use {'a whole number' if kind is int else 'text'}: {spec.description}")
    if spec.choices and checked not in spec.choices:
        raise UsageError(invalid, f"choose from {', '.join(spec.choices)}")
    if spec.parse is not None:
        try:
            spec.parse(str(checked))
        except UsageError as error:
            raise UsageError(invalid, error.hint) from error
    return checked


def _is_whole(text: str) -> bool:
    return text.strip().isdecimal() and len(text) < _MAX_DIGITS


def _read_toml(path: Path) -> dict[str, Any]:
    """The settings in one file, {} when there is none. Unknown entries raise UsageError, as they are likely typos."""
    try:
        values = parse_toml(_text_of(path))
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}", 'write lines like model = "mini"') from error
    for name in values:
        if name not in KNOWN:
            _unknown(name, path)
    return values


def _text_of(path: Path) -> str:
    """The file's text with its line ends; "" when there is no file."""
    try:
        return read_regular(path).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, InvalidInputError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the settings in {path}: {error}", "correct the file, or remove it") from error


def _unknown(name: str, path: Path) -> NoReturn:
    near = difflib.get_close_matches(name, KNOWN, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(KNOWN)}"
    raise UsageError(f"unknown setting {name!r} in {path}", hint)
