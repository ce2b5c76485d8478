"""A CUDA device without a GPU, on which the genuine CUDA provider of onnxruntime-gpu runs.

The C files of tests/cuda_device are compiled into libraries of the names that the provider asks for. Which kernel runs
where, what is copied, what a capture accepts and what an error says is then real; only numbers and times are not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import KEPT
from genuine_packages import ROOT, environment, fetch

SOURCES = ROOT / "tests" / "cuda_device"
#: Folder -> libraries: (file name, source, the functions it exports).
LIBRARIES = {
    "driver": [("libcuda.so.1", "device.c", "cu[A-Z]*")],
    "runtime": [
        ("libcudart.so.13", "device.c", "cuda*; __cuda*"),
        ("libcublas.so.13", "libraries.c", "cublas[!L]*"),
        ("libcublasLt.so.13", "libraries.c", "cublasLt*"),
        ("libcurand.so.10", "libraries.c", "curand*"),
    ],
    "cudnn": [("libcudnn.so.9", "libraries.c", "cudnn*")],
}
#: Any name of a CUDA function in a library, imported or looked up while it runs.
_NAMES = re.compile(rb"(?<=\0)(?:__cuda|cuda|cudnn|cublas|curand|cu)[A-Z][A-Za-z]\w*(?=\0)")


@dataclass(frozen=True)
class CudaDevice:
    """packages: the folder of onnxruntime-gpu. libraries: the folder of the folders of :data:`LIBRARIES`."""

    packages: Path
    libraries: Path

    def environment(self, without: str = "", **variables: str) -> dict[str, str]:
        """For a process that runs on the device; ``without`` one of the folders of :data:`LIBRARIES`."""
        folders = [str(self.libraries / name) for name in LIBRARIES if name != without]
        return {**environment(self.packages), "LD_LIBRARY_PATH": os.pathsep.join(folders), **variables}

    def run(self, folder: Path, *words: str, without: str = "", **variables: str) -> Run:
        """A Python process in ``folder``: ``words`` are the arguments of the interpreter."""
        log = folder / "device.log"
        log.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=self.environment(without, CUDA_TEST_LOG=str(log), **variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return Run(done.returncode, done.stdout, done.stderr, log.read_text().splitlines() if log.exists() else [])


@dataclass(frozen=True)
class Run:
    """A finished process, and the lines of the device's log."""

    code: int
    stdout: str
    stderr: str
    log: list[str]

    def json(self) -> Any:
        """Its answer; a failure shows what it wrote."""
        assert self.code == 0, self.stderr[-3000:]
        return json.loads(self.stdout)

    def events(self, name: str) -> list[dict[str, int]]:
        """The device's events of one name: {value's name: value}."""
        lines = [line.split()[1:] for line in self.log if line.split()[0] == name]
        return [{key: int(value) for key, value in (word.split("=") for word in line)} for line in lines]


def open_device() -> CudaDevice:
    """The device, made on first use in build/cuda-device. Skips where its parts are missing.

    The wheel of onnxruntime-gpu (some 250 MB) is fetched only when CELEBCTL_TEST_CUDA is set; once there, it is used.
    """
    root = ROOT / "build" / "cuda-device"
    if not (root / "packages").is_dir() and not KEPT.get("CELEBCTL_TEST_CUDA"):
        pytest.skip("onnxruntime-gpu is not in build/cuda-device: make test-cuda-device")
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("there is no C compiler for Linux")
    packages = fetch(["onnxruntime-gpu>=1.30"], root / "packages")
    headers = fetch(["nvidia-cuda-runtime>=13,<14", "nvidia-cuda-crt>=13,<14"], root / "headers")
    libraries = root / "libraries"
    newest = max(path.stat().st_mtime for path in (*SOURCES.iterdir(), Path(__file__)))
    if not libraries.is_dir() or libraries.stat().st_mtime < newest:
        build(packages, headers / "nvidia" / "cu13" / "include", libraries)
    return CudaDevice(packages, libraries)


def build(packages: Path, headers: Path, folder: Path) -> None:
    """Compile the libraries: our sources, and a function that returns success for every other name."""
    provider = packages / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    names = sorted({name.decode() for name in _NAMES.findall(provider.read_bytes())})
    shutil.rmtree(folder, ignore_errors=True)
    unfinished = folder.with_name("libraries.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    rest = unfinished / "rest.c"
    rest.write_text("".join(f"int __attribute__((weak)) {name}(void) {{ return 0; }}\n" for name in names))
    for place, libraries in LIBRARIES.items():
        (unfinished / place).mkdir()
        for library, source, exports in libraries:
            script = unfinished / f"{library}.map"  # the provider asks for symbols of the version of this name
            script.write_text(f"{library} {{ global: {exports}; local: *; }};\n")
            flags = ["-w", "-O1", "-shared", "-fPIC", f"-I{headers}", f"-Wl,-soname,{library}"]
            flags += [f"-Wl,--version-script={script}", "-lpthread", "-o", str(unfinished / place / library)]
            command = ["cc", str(SOURCES / source), str(rest), *flags]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
    unfinished.rename(folder)
