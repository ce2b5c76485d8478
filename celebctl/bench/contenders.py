"""Contenders: celebctl on each device and in variants, and diffusers on the same weights."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celebctl_runtime.backends.base import parse_options

from .worker import hardware_of

if TYPE_CHECKING:
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.request import Request

BASELINE = "diffusers"
#: CUDA variants: ONNX Runtime without CUDA graphs, and with the tensor cores' layout, which excludes them.
CUDA_VARIANTS = {"no CUDA graph": "enable_cuda_graph=0", "channels last": "prefer_nhwc=1"}
#: Options of all CUDA contenders but their cold starts, which are commands as a user types them.
CUDA_SEARCH = "cudnn_conv_algo_search=EXHAUSTIVE"
BFLOAT16 = "INFERENCE_PRECISION_HINT=bf16"  # variant of OpenVINO
PLAIN = "plain graphs"  # variant of ONNX Runtime on any device, with the graphs as exported

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contender:
    """A program to time.

    Attributes:
        name: What tables call it.
        spec: The SPEC of its worker (worker.py).
        command: Generates one image from a fresh process; the path of the PNG is appended.
        variables: Environment variables of the command.
    """

    name: str
    spec: Mapping[str, Any]
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_baseline(self) -> bool:
        """Whether it is diffusers."""
        return self.spec["kind"] == BASELINE

    @property
    def device_type(self) -> str:
        """ "cpu", "cuda" or "cuda:1": only contenders on the same hardware are compared."""
        return hardware_of(str(self.spec["device"]))


@dataclass(frozen=True)
class Workload:
    """What all contenders generate.

    Attributes:
        bundle: The exported model.
        request: A resolved request.
        engines: Folder of TensorRT engines.
        threads: CPU threads; None leaves the choice to each program.
        cuda_options: The user's options of ONNX Runtime's CUDA provider.
        openvino_options: The user's options of OpenVINO.
    """

    bundle: Bundle
    request: Request
    engines: Path
    threads: int | None = None
    cuda_options: str = ""
    openvino_options: str = ""

    def celebctl_contenders(self, devices: Sequence[str], *, variants: bool = False) -> list[Contender]:
        """celebctl on each device, and its variants if asked."""
        contenders = [self._celebctl(*way) for way in device_variants(devices, self.cuda_options, variants)]
        if variants and "openvino" in devices:
            bfloat16 = replace(self, openvino_options=f"{self.openvino_options},{BFLOAT16}")
            contenders.append(bfloat16._celebctl("openvino", ", bfloat16", self.cuda_options))
        if variants:
            plain = [name for name in devices if name != "openvino" and not name.startswith("trt")]
            contenders += [self._celebctl(name, f", {PLAIN}", self.cuda_options, plain=True) for name in plain]
        return contenders

    def baselines(self, model: str, devices: Sequence[str], *, compiled: bool = False) -> list[Contender]:
        """diffusers on the hardware of each device; none, with a warning, where it cannot run."""
        from celebctl_models.checkpoints.registry import locate

        missing = [name for name in ("torch", "diffusers", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            logger.warning("no comparison: %s not installed; pip install 'celebctl[learn]'", ", ".join(missing))
            return []
        location = locate(model)
        if location.kind != "folder":
            logger.warning("no comparison: %s is not a diffusers folder on this machine", model)
            return []
        contenders: list[Contender] = []
        for device in dict.fromkeys(map(hardware_of, devices)):
            for compile_unet in (False, True) if compiled else (False,):
                spec = {
                    "kind": BASELINE, "model": str(location.path), "device": device, "threads": self.threads,
                    "compile": compile_unet, "dtype": self.bundle.manifest.dtype, "request": self.request.to_json(),
                }  # fmt: skip
                name = f"diffusers {device}{' compiled' if compile_unet else ''}"
                contenders.append(Contender(name, spec, _worker_command(spec)))
        return contenders

    def _celebctl(self, device: str, suffix: str, cuda_options: str, *, plain: bool = False) -> Contender:
        request, name = self.request, f"celebctl {device}{suffix}"
        spec = {
            "kind": "celebctl", "bundle": str(self.bundle.path), "engines": str(self.engines), "device": device,
            "threads": self.threads, "cuda_options": parse_options(f"{CUDA_SEARCH},{cuda_options}"),
            "openvino_options": parse_options(self.openvino_options), "request": request.to_json(),
            "plain_graphs": plain,
        }  # fmt: skip
        if plain:  # the command line has no option for it
            return Contender(name, spec, _worker_command(spec))
        threads = ["--threads", str(self.threads)] if self.threads else []
        words = [request.prompt, "--seed", "0", "--steps", str(request.steps), "--guidance", str(request.guidance)]
        words += ["--sampler", request.sampler, "--size", f"{request.width}x{request.height}", "--scale", "1"]
        words += ["--bundle", str(self.bundle.path), "--device", device, *threads, "--force", "--out"]
        command = (sys.executable, "-m", "celebctl", "--quiet", "gen", *words)
        variables = {"CELEBCTL_CUDA_OPTIONS": cuda_options, "CELEBCTL_OPENVINO_OPTIONS": self.openvino_options}
        return Contender(name, spec, command, variables)


def device_variants(devices: Sequence[str], cuda_options: str, variants: bool) -> list[tuple[str, str, str]]:
    """(device, suffix of the name, CUDA options) of each celebctl contender. cuda_options: the user's."""
    ways = [(device, "", cuda_options) for device in devices]
    for device in devices if variants else ():
        if device.startswith("cuda"):
            ways += [(device, f", {name}", f"{cuda_options},{option}") for name, option in CUDA_VARIANTS.items()]
    return ways


def _worker_command(spec: Mapping[str, Any]) -> tuple[str, ...]:
    return (sys.executable, "-m", "celebctl.bench.worker", json.dumps(spec), "--once")
