"""Run a command as a process and measure its wall time and peak memory; describe the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# The peak memory of a process includes that of its parent at the fork, so a small launcher starts it.
_LAUNCHER = """
import os, subprocess, sys, time
started = time.monotonic()
process = subprocess.Popen(sys.argv[2:])
_, status, used = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    print(os.waitstatus_to_exitcode(status), used.ru_maxrss, time.monotonic() - started, file=file)
"""
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Run:
    """A finished process.

    Attributes:
        seconds: Wall time.
        peak_bytes: Peak resident memory.
        output: The JSON document on its stdout, {} for none.
    """

    seconds: float
    peak_bytes: int
    output: dict[str, Any]


def run(command: list[str], folder: Path) -> Run:
    """Run a command in ``folder``, with ``folder / "home"`` as celebctl's library and without network access.

    Its stderr is passed on. Raises RuntimeError with the end of its output when it fails.
    """
    paths = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "CELEBCTL_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(paths)  # commands may be modules of this package
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(folder / "used"), *command]
    done = subprocess.run(launch, cwd=folder, env=env, capture_output=True, text=True, check=True)
    code, peak, seconds = (folder / "used").read_text().split()
    if int(code) != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{done.stderr[-4000:]}{done.stdout[-2000:]}")
    sys.stderr.write(done.stderr)
    output: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :]) if "{" in done.stdout else {}
    # kilobytes on Linux, bytes on macOS
    return Run(float(seconds), int(peak) * (1 if sys.platform == "darwin" else 1024), output)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Processor, memory and package versions; no host or user name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "processor": name or platform.processor(), "cores_used": cores(), "memory_bytes": memory,
        "system": platform.system(), "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }  # fmt: skip
