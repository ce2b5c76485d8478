"""Real packages that are too large to require: fetched from the package index, unpacked into a folder of their own and
imported in a subprocess."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import KEPT

ROOT = Path(__file__).parent.parent


def fetch(requirements: list[str], folder: Path) -> Path:
    """Wheels, unpacked into one folder; kept between runs. Skips where there is no package index."""
    if folder.is_dir():
        return folder
    wheels = folder.with_name(f"{folder.name}.wheels")
    wheels.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(wheels),
    ]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False, timeout=300, env=KEPT)
    if done.returncode:
        pytest.skip(f"no package index gives {requirements}: {done.stderr.strip().splitlines()[-1:]}")
    unfinished = folder.with_name(f"{folder.name}.part")
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unfinished)
    unfinished.rename(folder)
    shutil.rmtree(wheels)
    return folder


def cache_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pytest's cache where it has one."""
    cache: Any = getattr(request.config, "cache", None)
    return Path(cache.mkdir("bindings")) if cache else tmp_path_factory.getbasetemp() / "bindings"


def environment(folder: Path, **more: str) -> dict[str, str]:
    packages = [str(ROOT), *(str(ROOT / package) for package in ("models", "runtime", "export"))]
    return {**os.environ, **more, "PYTHONPATH": os.pathsep.join([str(folder), *packages])}


def run_python(code: str, env: dict[str, str], *arguments: str, data: object = None) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        check=False,
        env=env,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
