"""Time to add a person to a bundle, and to import the runtime.

People are random numbers that fit the bundle's model. They are added to a copy of the bundle whose manifest and token
tables are real and whose other files are hard links.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from celebctl.library import Library
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import FILE_NAME
from celebctl_runtime.errors import SetupError
from celebctl_runtime.identity import Identity

_IMPORT = (
    "import time; start = time.perf_counter(); import celebctl_runtime\n"
    "from celebctl_runtime import Bundle, OrtBackend, Request, generate\n"
    "print(time.perf_counter() - start)"
)


def measure_adding(bundle: Bundle, folder: Path, rounds: int) -> dict[str, float]:
    """Time additions of a person.

    Args:
        folder: An empty folder for the copy.

    Returns:
        Medians of ``rounds``: ``import_s``, the runtime's import in a fresh process; ``add_ms``, an addition in a
        running process; ``add_command_s``, by `celebctl export --add`.
    """
    copy = copy_for_adding(bundle, folder / "bundle")
    people = [random_identity(bundle, f"bench-{number}", number) for number in range(rounds)]
    library = Library(folder / "home")
    imports, adds, commands = list[float](), list[float](), list[float]()
    for person in people:
        imports.append(float(_run(["-c", _IMPORT]).strip()))
        start = time.perf_counter()
        copy.add(person)
        adds.append(time.perf_counter() - start)
        copy.remove(person.name)
        library.save(person)
        start = time.perf_counter()
        words = ["-m", "celebctl", "--quiet", "export", "--add", person.name, "--bundle", str(copy.path)]
        _run(words, CELEBCTL_HOME=str(library.root))
        commands.append(time.perf_counter() - start)
        copy.refresh()
        copy.remove(person.name)
    return {
        "import_s": round(statistics.median(imports), 4),
        "add_ms": round(1e3 * statistics.median(adds), 3),
        "add_command_s": round(statistics.median(commands), 4),
    }


def copy_for_adding(bundle: Bundle, path: Path) -> Bundle:
    """A copy of the bundle at ``path`` that takes people without changing the original."""
    tables = {table.file for table in bundle.manifest.token_tables}
    for name in (FILE_NAME, *bundle.manifest.files):
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in tables or name == FILE_NAME:
            shutil.copyfile(bundle.file(name), target)
        else:
            _link(bundle.file(name), target)
    return Bundle.open(path, verify="quick")


def _link(source: Path, target: Path) -> None:
    """A hard link to a file that is only read, or a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def random_identity(bundle: Bundle, name: str, seed: int) -> Identity:
    """A person of random numbers that fits the bundle's model."""
    random, manifest = np.random.default_rng(seed), bundle.manifest
    rows = tuple(random.standard_normal((2, table.width), np.float32) for table in manifest.token_tables)
    coefficients = tuple(row[:, :4] for row in rows)
    return Identity(name, coefficients, rows, "bench", manifest.model.family, manifest.model.table_hash)


def _run(words: list[str], **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise SetupError(f"python {words[1]} failed: {cause[:300]}", "run it by itself to see the cause")
    return done.stdout
