"""The runtime needs no torch, imports quickly, and imports no other package of the project."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundle_fakes import make_identity, write_bundle

import celebctl
import celebctl_runtime

PACKAGE = Path(celebctl_runtime.__file__).parent
BLOCKED = ("torch", "diffusers", "transformers", "onnx", "insightface", "pydantic")
ALLOWED = {"platformdirs", "numpy", "PIL", "safetensors", "tokenizers", "onnxruntime", "filelock", "celebctl_runtime"}
OPTIONAL = {"pillow_heif", "c2pa", "cryptography"}  # for HEIC images
# One image, drawn in a process in which the heavy packages cannot be imported.
SCRIPT = """
import sys, json, time
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
start = time.process_time()
import celebctl_runtime
light = time.process_time() - start
from celebctl_runtime import *
imported = time.process_time() - start
if len(sys.argv) > 2:
    from pathlib import Path
    bundle = Bundle.open(Path(sys.argv[2]), verify="full")
    picture = generate(bundle, OrtBackend(bundle, "cpu"), Request("alice"))[0]
    save_image(picture, Path(sys.argv[3]), scale=4)
print(json.dumps({"light": light, "imported": imported, "modules": sorted(sys.modules)}))
"""


def run(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-c", SCRIPT, json.dumps(BLOCKED), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    return json.loads(finished.stdout)


def test_an_image_is_drawn_without_torch(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    bundle.add(make_identity("alice"))
    run(str(bundle.path), str(tmp_path / "alice.png"))
    assert (tmp_path / "alice.png").stat().st_size > 1000


def test_importing_the_runtime_is_cheap() -> None:
    """Seconds of CPU, which do not depend on the load of the machine."""
    runs = [run() for _ in range(2)]
    assert min(run["light"] for run in runs) < 0.05
    assert min(run["imported"] for run in runs) < 0.35


def test_engine_and_tokenizer_are_imported_when_needed_only() -> None:
    modules: list[str] = run()["modules"]
    assert not {"onnxruntime", "tokenizers", "safetensors", "filelock"} & set(modules)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_every_import_is_of_the_standard_library_or_allowed(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] in sys.stdlib_module_names | ALLOWED | OPTIONAL, f"{file.name} imports {name}"


def test_every_exported_name_exists() -> None:
    for name in celebctl_runtime.__all__:
        assert getattr(celebctl_runtime, name) is not None
    assert set(celebctl_runtime.__all__) <= set(dir(celebctl_runtime))
    with pytest.raises(AttributeError):
        _ = celebctl_runtime.missing  # pyright: ignore[reportAttributeAccessIssue]


def test_all_packages_have_one_version() -> None:
    assert celebctl_runtime.__version__ == celebctl.__version__
