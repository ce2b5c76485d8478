"""One contender in a process of its own: `python -m celebctl.bench.worker SPEC` answers commands on stdin.

SPEC, commands and answers are JSON, one object per line. SPEC: `kind` ("celebctl" or "diffusers"), `device`, `threads`,
`request` (a resolved Request), and `bundle` or `model`. Commands: {"do": "generate", "seed": 7}, {"do": "save",
"path": ...}, {"do": "memory"}, {"do": "count"}, {"do": "peak"}. With --once PATH it writes one image to PATH and exits:
a script's cold start.

What this module does not know: the other contenders, and what becomes of the numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl_runtime.backends.base import Backend

Spec = Mapping[str, Any]
# Samplers in diffusers: class, and options that replace the model's.
SCHEDULERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "lcm": ("LCMScheduler", {}),
}
_MATMUL = 2048  # rows and columns of the matrix product that measures a processor's peak
_PRODUCTS = 3  # in every round


@dataclass
class TimedImage:
    """An image with its timings in seconds.

    Attributes:
        seconds: From the request to the pixels.
        marks: Time from the start to the end of each step.
        loop: All steps together, where they run as one call and have no marks of their own.
    """

    image: Image
    seconds: float
    marks: list[float] = field(default_factory=list[float])
    loop: float | None = None


class Worker(Protocol):
    """Generates images."""

    def generate(self, seed: int) -> TimedImage:
        """One image, with its times."""
        ...

    def facts(self) -> dict[str, str]:
        """Versions and settings, for the report."""
        ...

    def count(self) -> dict[str, float] | None:
        """Floating-point operations of a step and of decoding; None where they cannot be counted."""
        ...


class CelebctlWorker:
    """celebctl_runtime on one device."""

    def __init__(self, spec: Spec) -> None:
        from celebctl_runtime.backends.ort import OrtBackend
        from celebctl_runtime.backends.select import choose_backend
        from celebctl_runtime.bundle.bundle import Bundle
        from celebctl_runtime.request import Request

        self._bundle = Bundle.open(Path(spec["bundle"]), verify="quick")
        engines, threads = Path(spec["engines"]), spec["threads"]
        device, options = str(spec["device"]), spec.get("cuda_options")
        if spec.get("plain_graphs"):
            backend = OrtBackend(self._bundle, device, threads, options, plain_graphs=True)
            backend.prepare(("step", "vae_decoder"))
            self._backend: Backend = backend
        else:
            self._backend = choose_backend(
                self._bundle,
                device,
                engines=engines,
                threads=threads,
                cuda_options=options,
                openvino_options=spec.get("openvino_options"),
            )
        self._request = Request.from_json(spec["request"])
        self._loop = time_loops(self._backend)

    def generate(self, seed: int) -> TimedImage:
        """One image, timed from the request to the pixels."""
        from dataclasses import replace

        from celebctl_runtime.pipeline import generate

        start, marks = time.perf_counter(), list[float]()
        request = replace(self._request, seed=seed)
        self._loop.clear()
        (picture,) = generate(self._bundle, self._backend, request, lambda _: marks.append(time.perf_counter() - start))
        return TimedImage(picture.image, time.perf_counter() - start, marks, sum(self._loop) if self._loop else None)

    def facts(self) -> dict[str, str]:
        """Engine, version, device, threads."""
        return self._backend.describe()

    def count(self) -> dict[str, float] | None:
        """Operations are only counted by the baseline."""
        return None


class DiffusersWorker:
    """The pipeline as its own documentation uses it, with the same initial noise."""

    def __init__(self, spec: Spec) -> None:
        import diffusers
        import torch

        from celebctl_runtime.backends.device import parse_device

        if spec["threads"]:
            torch.set_num_threads(int(spec["threads"]))
        self._torch, self._request, self._compiled = cast(Any, torch), spec["request"], bool(spec["compile"])
        cast(Any, diffusers).utils.logging.disable_progress_bar()
        dtype = torch.float16 if spec["dtype"] == "fp16" else torch.float32
        # No other contender runs a safety checker.
        index = json.loads((Path(spec["model"]) / "model_index.json").read_text(encoding="utf-8"))
        without = {"safety_checker": None} if "safety_checker" in index else {}
        load: Any = cast(Any, diffusers).DiffusionPipeline.from_pretrained
        pipeline: Any = load(str(spec["model"]), torch_dtype=dtype, **without)
        name, options = SCHEDULERS[self._request["sampler"]]
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
        pipeline.set_progress_bar_config(disable=True)
        device = parse_device(spec["device"])
        if device.kind != "cpu":
            self._torch.cuda.set_device(device.index)
        self._pipeline = pipeline.to(device.kind)
        self._device = "cpu" if device.kind == "cpu" else str(self._torch.cuda.get_device_name())
        if self._compiled:
            self._pipeline.unet = self._torch.compile(self._pipeline.unet, mode="max-autotune")

    def generate(self, seed: int) -> TimedImage:
        """One image, timed from the prompt to the pixels."""
        request, clock = self._request, (Clock() if self._device == "cpu" else EventClock(self._torch))
        start = time.perf_counter()

        def mark(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            clock.mark()
            return tensors

        with self._torch.inference_mode():
            output = self._pipeline(
                request["prompt"],
                negative_prompt=request["negative"] or None,
                height=request["height"],
                width=request["width"],
                num_inference_steps=request["steps"],
                guidance_scale=request["guidance"],
                latents=self._noise(seed),
                callback_on_step_end=mark,
            )
        return TimedImage(output.images[0], time.perf_counter() - start, clock.marks())

    def facts(self) -> dict[str, str]:
        """Engine, versions, device, threads."""
        import diffusers

        version = f"{diffusers.__version__}, torch {self._torch.__version__}"
        facts = {"engine": "diffusers", "version": version, "device": self._device}
        if self._compiled:
            facts["compiled"] = "max-autotune"
        return facts if self._device != "cpu" else {**facts, "threads": str(self._torch.get_num_threads())}

    def count(self) -> dict[str, float] | None:
        """Operations of the network's part of one guided step, and of decoding, by torch's own counter."""
        from torch.utils.flop_counter import FlopCounterMode

        pipe, torch = self._pipeline, self._torch
        unet = getattr(pipe.unet, "_orig_mod", pipe.unet)
        noise = self._noise(0)
        guides = 2 if float(self._request["guidance"]) > 1.0 and unet.config.time_cond_proj_dim is None else 1
        width = int(unet.config.cross_attention_dim)
        text = torch.zeros(guides, 77, width, dtype=noise.dtype, device=noise.device)
        more: dict[str, Any] = {}
        if unet.config.addition_embed_type == "text_time":
            pooled = int(pipe.text_encoder_2.config.projection_dim)
            sizes = torch.zeros(guides, 6, dtype=noise.dtype, device=noise.device)
            more["added_cond_kwargs"] = {"text_embeds": text[:, 0, :pooled], "time_ids": sizes}
        with torch.inference_mode():
            with FlopCounterMode(display=False) as step:
                unet(noise.repeat(guides, 1, 1, 1), 500, encoder_hidden_states=text, **more)
            with FlopCounterMode(display=False) as decode:
                pipe.vae.decode(noise.to(pipe.vae.dtype))
        return {"step": float(step.get_total_flops()), "decode": float(decode.get_total_flops())}

    def _noise(self, seed: int) -> Any:
        from celebctl_runtime.sampling.noise import initial_noise

        factor, channels = self._pipeline.vae_scale_factor, self._pipeline.unet.config.in_channels
        shape = (channels, self._request["height"] // factor, self._request["width"] // factor)
        noise = self._torch.from_numpy(initial_noise(seed, shape))[None]
        return noise.to(self._pipeline.unet.device, self._pipeline.unet.dtype)


class Clock:
    """Times at which steps ended, in seconds since the clock was created."""

    def __init__(self) -> None:
        self._start, self._marks = time.perf_counter(), list[float]()

    def mark(self) -> None:
        """Record the end of a step."""
        self._marks.append(time.perf_counter() - self._start)

    def marks(self) -> list[float]:
        """The recorded times."""
        return self._marks


class EventClock:
    """The same for a GPU, which works asynchronously: CUDA events in its stream."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._events = [self._recorded()]

    def mark(self) -> None:
        """Record the end of a step."""
        self._events.append(self._recorded())

    def marks(self) -> list[float]:
        """Times of the marks, after the last one has been reached."""
        first, *rest = self._events
        if rest:
            rest[-1].synchronize()
        return [first.elapsed_time(event) / 1e3 for event in rest]

    def _recorded(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def time_loops(backend: Any) -> list[float]:
    """Time each denoising loop of a backend that runs all steps as one call: the returned list grows by seconds."""
    from celebctl_runtime.backends.base import SupportsFullDenoise

    seconds: list[float] = []
    if isinstance(backend, SupportsFullDenoise):
        run: Any = backend.denoise

        def denoise(*args: Any) -> Any:
            start = time.perf_counter()
            result = run(*args)
            seconds.append(time.perf_counter() - start)
            return result

        cast(Any, backend).denoise = denoise
    return seconds


def peak_memory() -> int:
    """Peak resident memory of this process in bytes; 0 where the system does not report it."""
    try:  # getrusage would count what the parent held before it became us
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def gpu_memory() -> int:
    """Memory this process holds on NVIDIA GPUs in bytes; 0 without nvidia-smi, and in containers, whose process ids
    differ from those that nvidia-smi reports."""
    return sum(used << 20 for pid, used in _query_nvidia_smi("compute-apps=pid,used_memory") if pid == os.getpid())


def used_on_gpus() -> int:
    """Memory in use on all NVIDIA GPUs in bytes; 0 without nvidia-smi."""
    return sum(used << 20 for (used,) in _query_nvidia_smi("gpu=memory.used"))


def _query_nvidia_smi(query: str) -> list[list[int]]:
    """Rows of integers; [] without nvidia-smi or without numbers in its answer."""
    command = ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
        return [[int(cell) for cell in line.split(",")] for line in lines if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def measured_peak(threads: int | None, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Operations per second of the fastest of a few large float32 matrix products on the CPU, and the library."""
    size = _MATMUL
    try:
        import torch

        if threads:
            torch.set_num_threads(threads)
        ones: Any = torch.ones(size, size)
        by = f"torch {torch.__version__}"
    except ImportError:
        import numpy as np

        ones, by = np.ones((size, size), np.float32), f"numpy {np.__version__}"
    best = float("inf")
    for _ in range(_PRODUCTS):
        start = clock()
        _ = ones @ ones
        best = min(best, clock() - start)
    return {"flops": 2.0 * size**3 / best, "source": f"measured: float32 product of {size} x {size} matrices, {by}"}


def hardware_of(device: str) -> str:
    """The device without its engine: TensorRT runs on the same GPU as ONNX Runtime, OpenVINO on the CPU.

    Example:
        >>> hardware_of("trt:1"), hardware_of("openvino")
        ('cuda:1', 'cpu')
    """
    return "cpu" if device == "openvino" else device.replace("trt", "cuda")


def create_worker(spec: Spec) -> Worker:
    """The worker of a SPEC."""
    return CelebctlWorker(spec) if spec["kind"] == "celebctl" else DiffusersWorker(spec)


def answer(command: Mapping[str, Any], worker: Worker, spec: Spec, latest: list[TimedImage]) -> dict[str, Any]:
    """Execute one command; `latest` holds the last image."""
    what = command["do"]
    if what == "generate":
        latest[:] = [worker.generate(int(command["seed"]))]
        return {"seconds": latest[0].seconds, "marks": latest[0].marks, "loop": latest[0].loop}
    if what == "save":
        latest[0].image.save(command["path"])
        return {"path": command["path"]}
    if what == "count":
        return {"count": worker.count()}
    if what == "peak":
        return {"peak": measured_peak(spec["threads"])}
    return {"bytes": peak_memory(), "gpu_bytes": 0 if hardware_of(spec["device"]) == "cpu" else gpu_memory()}


def main(argv: list[str]) -> int:
    """Answer commands until stdin ends; or with --once PATH write a single image."""
    spec: Spec = json.loads(argv[0])
    if argv[1:2] == ["--once"]:
        create_worker(spec).generate(int(spec["request"].get("seed", 0))).image.save(argv[2])
        return 0
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print to stdout
    try:
        on_gpu = hardware_of(spec["device"]) != "cpu"
        before = used_on_gpus() if on_gpu else 0
        start = time.monotonic()
        worker = create_worker(spec)
        latest = [worker.generate(int(spec["request"].get("seed", 0)))]
        now = time.monotonic()
        grown = max(0, used_on_gpus() - before) if on_gpu else 0  # no other contender works while one starts
        _write(answers, {"first_seconds": now - start, "facts": worker.facts(), "gpu_grown": grown})
        for line in sys.stdin:
            _write(answers, answer(json.loads(line), worker, spec, latest))
    except Exception as error:  # whatever it is, the parent reports it
        known = {
            "code": getattr(error, "code", ""),
            "hint": getattr(error, "hint", ""),
            "reason": getattr(error, "reason", ""),
        }
        problem = getattr(error, "problem", f"{type(error).__name__}: {error}")
        _write(answers, {"error": {**known, "problem": str(problem)[:2000]}})
        return 1
    return 0


def _write(answers: Any, document: Mapping[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
