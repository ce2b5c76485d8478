"""What an installer would choose for the extras: one CUDA, one cuDNN, one ONNX Runtime. Nothing is installed.

Needs a package index, and `uv`, whose resolver can be asked about other versions of Python and other platforms.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import KEPT

pytestmark = pytest.mark.resolve
ROOT = Path(__file__).parent.parent
LINUX, ARM, WINDOWS = "x86_64-manylinux_2_28", "aarch64-manylinux_2_34", "x86_64-pc-windows-msvc"
CUDA = {"export,cuda": 13, "export,cuda,trt": 13, "cuda": 13, "gpu": 13, "gpu-cu12": 12}
#: Packages whose version begins with the CUDA they are for, where their names do not say it.
NUMBERED = ("cuda-python", "cuda-bindings", "nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc")


def resolve(extras: str, python: str, platform: str = LINUX) -> dict[str, str]:
    """Package -> version."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    assert uv is not None, "uv is not installed: pip install 'celebctl[dev]'"
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", python]
    command += ["--python-platform", platform, *(word for name in extras.split(",") for word in ("--extra", name))]
    command.append(str(ROOT / "pyproject.toml"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=KEPT)
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([^\s;]+)", done.stdout, re.MULTILINE))


def cuda_versions(packages: dict[str, str]) -> dict[str, int]:
    """The major version of CUDA that each package is for."""
    found: dict[str, int] = {}
    for name, version in packages.items():
        if match := re.search(r"-cu(\d\d)(-|$)", name):
            found[name] = int(match[1])
        elif name in NUMBERED:
            found[name] = int(version.partition(".")[0])
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("extras", CUDA)
def test_a_gpu_environment_has_one_cuda(extras: str, python: str) -> None:
    packages = resolve(extras, python)
    versions = cuda_versions(packages)
    assert set(versions.values()) == {CUDA[extras]}, versions
    assert sum(name.startswith("nvidia-cudnn") for name in packages) == 1
    assert sum(name.startswith("nvidia-cublas") for name in packages) == 1
    assert "onnxruntime-gpu" in packages and "onnxruntime" not in packages
    if "torch" in packages:
        assert tuple(map(int, packages["torch"].split(".")[:2])) >= (2, 8) and "+" not in packages["torch"]
        assert (tuple(map(int, packages["torch"].split(".")[:2])) >= (2, 11)) is (CUDA[extras] == 13)
    if "trt" in extras or extras.startswith("gpu"):
        assert {f"tensorrt-cu{CUDA[extras]}", "cuda-python", "polygraphy"} <= packages.keys()


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("extras", ["cpu", "learn,export,cpu"])
def test_a_cpu_environment_has_one_onnx_runtime(extras: str, python: str) -> None:
    packages = resolve(extras, python)
    assert "onnxruntime" in packages and "onnxruntime-gpu" not in packages
    assert len(set(cuda_versions(packages).values())) <= 1, "PyTorch's Linux build brings its own"


def test_a_workstation_has_what_insightface_needs_but_not_onnxruntime() -> None:
    """It is installed afterwards and alone: its own requirement would overwrite onnxruntime-gpu."""
    ours, theirs = resolve("gpu", "3.12"), resolve("learn,export,cpu", "3.12")
    assert "insightface" in theirs and "insightface" not in ours
    needed = {"numpy", "onnx", "opencv-python", "tqdm", "requests", "scipy", "scikit-image"}
    assert needed <= theirs.keys()
    assert {name.replace("opencv-python", "opencv-python-headless") for name in needed} <= ours.keys()


@pytest.mark.parametrize(
    ("extras", "platform"),
    [
        *(("learn,export,cpu", platform) for platform in (ARM, WINDOWS)),
        *(("export,cuda", platform) for platform in (ARM, WINDOWS)),
        ("gpu", WINDOWS),  # TensorRT's packages for ARM ask NVIDIA's index while they are resolved
    ],
)
def test_other_platforms_resolve_too(extras: str, platform: str) -> None:
    packages = resolve(extras, "3.12", platform)
    assert ("onnxruntime-gpu" in packages) is (extras != "learn,export,cpu")
    assert len(set(cuda_versions(packages).values())) <= 1
