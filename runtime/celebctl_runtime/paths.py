"""The folders celebctl uses on this machine."""

import os
from collections.abc import Mapping
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """``path`` with ``~`` and ``~name`` replaced by a home folder; as it is for a user that this machine has not.

    Example:
        >>> expanded("face.png").name
        'face.png'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def celebctl_home(environment: Mapping[str, str] | None = None) -> Path | None:
    """$CELEBCTL_HOME as an absolute path, None when unset. ``environment`` defaults to the process's own."""
    home = (os.environ if environment is None else environment).get("CELEBCTL_HOME")
    return expanded(home).absolute() if home else None


def data_root() -> Path:
    """The folder of people, bundles, models and caches: $CELEBCTL_HOME, or the user's data folder for celebctl."""
    from platformdirs import user_data_path

    return celebctl_home() or user_data_path("celebctl", appauthor=False)


def config_folder(environment: Mapping[str, str] | None = None) -> Path:
    """The folder of the user's settings: $CELEBCTL_HOME, or the user's configuration folder for celebctl."""
    from platformdirs import user_config_path

    return celebctl_home(environment) or user_config_path("celebctl", appauthor=False)
