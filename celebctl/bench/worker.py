"""One contestant in a process of its own: `python -m celebctl.bench.worker SPEC` answers orders on stdin.

SPEC, orders and answers are JSON, one object a line. SPEC: `kind` ("celebctl" or "diffusers"), `device`, `threads`,
`request` (a resolved Request), and `bundle` or `model`. Orders: {"do": "draw", "seed": 7}, {"do": "save", "path": ...},
{"do": "memory"}, {"do": "count"}, {"do": "peak"}. With --once PATH it draws one picture into PATH and is gone: a
script's cold start.

What this module does not know: the other contestants, and what becomes of the numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl_runtime.backends.base import Backend

Spec = Mapping[str, Any]
# What a picture's sampler is called in diffusers: module below diffusers.schedulers, class, options beside the model's.
SCHEDULERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "lcm": ("LCMScheduler", {}),
}
_MATMUL = 2048  # rows and columns of the product that a processor's peak is measured with


@dataclass
class Drawn:
    """A picture, how long it took, and how long after its begin each step was done, in seconds. loop: all steps
    together, where that was timed; for an engine that ends them all at once there is nothing else."""

    image: Image
    seconds: float
    marks: list[float] = field(default_factory=list[float])
    loop: float | None = None


class Worker(Protocol):
    """Who draws pictures here."""

    def draw(self, seed: int) -> Drawn: ...

    def facts(self) -> dict[str, str]: ...

    def count(self) -> dict[str, float] | None: ...


class Ours:
    """celebctl_runtime on one device."""

    def __init__(self, spec: Spec) -> None:
        from celebctl_runtime.backends.base import choose_backend
        from celebctl_runtime.backends.ort import OrtBackend
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
                self._bundle, device, engines=engines, threads=threads, cuda_options=options
            )
        self._request = Request.from_json(spec["request"])
        self._loop = time_loops(self._backend)

    def draw(self, seed: int) -> Drawn:
        """One picture, timed from the request to the pixels."""
        from dataclasses import replace

        from celebctl_runtime.pipeline import generate

        begun, marks = time.perf_counter(), list[float]()
        request = replace(self._request, seed=seed)
        self._loop.clear()
        (picture,) = generate(self._bundle, self._backend, request, lambda _: marks.append(time.perf_counter() - begun))
        return Drawn(picture.image, time.perf_counter() - begun, marks, sum(self._loop) if self._loop else None)

    def facts(self) -> dict[str, str]:
        """Engine, version, device, threads."""
        return self._backend.describe()

    def count(self) -> dict[str, float] | None:
        """Nothing here counts operations."""
        return None


class Diffusers:
    """The pipeline as its own documentation uses it, fed the same noise."""

    def __init__(self, spec: Spec) -> None:
        import diffusers
        import torch

        if spec["threads"]:
            torch.set_num_threads(int(spec["threads"]))
        self._torch, self._request, self._compiled = cast(Any, torch), spec["request"], bool(spec["compile"])
        cast(Any, diffusers).utils.logging.disable_progress_bar()
        dtype = torch.float16 if spec["dtype"] == "fp16" else torch.float32
        # Nobody else here looks at pictures once more, so neither does diffusers.
        index = json.loads((Path(spec["model"]) / "model_index.json").read_text(encoding="utf-8"))
        without = {"safety_checker": None} if "safety_checker" in index else {}
        load: Any = cast(Any, diffusers).DiffusionPipeline.from_pretrained
        pipeline: Any = load(str(spec["model"]), torch_dtype=dtype, **without)
        name, options = SCHEDULERS[self._request["sampler"]]
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline.to("cpu" if spec["device"] == "cpu" else "cuda")
        self._device = "cpu" if spec["device"] == "cpu" else str(self._torch.cuda.get_device_name())
        if self._compiled:
            self._pipeline.unet = self._torch.compile(self._pipeline.unet, mode="max-autotune")

    def draw(self, seed: int) -> Drawn:
        """One picture, timed from the prompt to the pixels."""
        request, clock = self._request, (Clock() if self._device == "cpu" else EventClock(self._torch))
        begun = time.perf_counter()

        def mark(_pipe: Any, _step: int, _timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
            clock.mark()
            return kept

        with self._torch.inference_mode():
            found = self._pipeline(
                request["prompt"],
                negative_prompt=request["negative"] or None,
                height=request["height"],
                width=request["width"],
                num_inference_steps=request["steps"],
                guidance_scale=request["guidance"],
                latents=self._noise(seed),
                callback_on_step_end=mark,
            )
        return Drawn(found.images[0], time.perf_counter() - begun, clock.marks())

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
    """When steps were done, in seconds since the clock was made."""

    def __init__(self) -> None:
        self._begun, self._marks = time.perf_counter(), list[float]()

    def mark(self) -> None:
        self._marks.append(time.perf_counter() - self._begun)

    def marks(self) -> list[float]:
        return self._marks


class EventClock:
    """The same for work that a GPU has only been told of when the host goes on: the GPU marks its own stream."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._events = [self._recorded()]

    def mark(self) -> None:
        self._events.append(self._recorded())

    def marks(self) -> list[float]:
        """Waits for the last mark."""
        first, *rest = self._events
        if rest:
            rest[-1].synchronize()
        return [first.elapsed_time(event) / 1e3 for event in rest]

    def _recorded(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def time_loops(backend: Any) -> list[float]:
    """Let a backend that runs all steps at once write down how long that took: in the list returned, in seconds."""
    from celebctl_runtime.backends.base import SupportsFullDenoise

    found: list[float] = []
    if isinstance(backend, SupportsFullDenoise):
        run: Any = backend.denoise

        def denoise(*words: Any) -> Any:
            begun = time.perf_counter()
            result = run(*words)
            found.append(time.perf_counter() - begun)
            return result

        cast(Any, backend).denoise = denoise
    return found


def peak_memory() -> int:
    """The most main memory this process ever held, in bytes; 0 where the system does not tell."""
    try:  # getrusage would count what the parent held before it became us
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def gpu_memory() -> int:
    """What this process holds on NVIDIA GPUs now, in bytes; 0 where there is none or nvidia-smi cannot tell: it counts
    processes as the machine does, and a container has numbers of its own."""
    return sum(used << 20 for pid, used in _told_by_nvidia("compute-apps=pid,used_memory") if pid == os.getpid())


def used_on_gpus() -> int:
    """What everybody holds on the NVIDIA GPUs now, in bytes; 0 where there is none or nvidia-smi cannot tell."""
    return sum(used << 20 for (used,) in _told_by_nvidia("gpu=memory.used"))


def _told_by_nvidia(query: str) -> list[list[int]]:
    """Rows of whole numbers; [] without nvidia-smi, or with one that has no number to tell."""
    command = ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
        return [[int(cell) for cell in line.split(",")] for line in lines if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def measured_peak(threads: int | None) -> dict[str, Any]:
    """Operations per second of the best of some large float32 matrix products on the CPU, and who multiplied."""
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
    for _ in range(6):
        begun = time.perf_counter()
        _ = ones @ ones
        best = min(best, time.perf_counter() - begun)
    return {"flops": 2.0 * size**3 / best, "source": f"measured: float32 product of {size} x {size} matrices, {by}"}


def make(spec: Spec) -> Worker:
    """The contestant that SPEC asks for."""
    return Ours(spec) if spec["kind"] == "celebctl" else Diffusers(spec)


def answer(order: Mapping[str, Any], contestant: Worker, spec: Spec, latest: list[Drawn]) -> dict[str, Any]:
    """Do one order; `latest` keeps the picture drawn last."""
    what = order["do"]
    if what == "draw":
        latest[:] = [contestant.draw(int(order["seed"]))]
        return {"seconds": latest[0].seconds, "marks": latest[0].marks, "loop": latest[0].loop}
    if what == "save":
        latest[0].image.save(order["path"])
        return {"path": order["path"]}
    if what == "count":
        return {"count": contestant.count()}
    if what == "peak":
        return {"peak": measured_peak(spec["threads"])}
    return {"bytes": peak_memory(), "gpu_bytes": 0 if spec["device"] == "cpu" else gpu_memory()}


def main(words: list[str]) -> int:
    """Serve until stdin ends; or with --once PATH draw a single picture."""
    spec: Spec = json.loads(words[0])
    if words[1:2] == ["--once"]:
        make(spec).draw(int(spec["request"].get("seed", 0))).image.save(words[2])
        return 0
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print; the answers stay apart
    try:
        on_gpu = spec["device"] != "cpu"
        before = used_on_gpus() if on_gpu else 0
        begun = time.monotonic()
        contestant = make(spec)
        latest = [contestant.draw(int(spec["request"].get("seed", 0)))]
        now = time.monotonic()
        grown = max(0, used_on_gpus() - before) if on_gpu else 0  # nobody else draws while one begins
        _say(answers, {"first_seconds": now - begun, "facts": contestant.facts(), "gpu_grown": grown})
        for line in sys.stdin:
            _say(answers, answer(json.loads(line), contestant, spec, latest))
    except Exception as error:  # whatever it is, the parent tells
        known = {"code": getattr(error, "code", ""), "hint": getattr(error, "hint", "")}
        problem = getattr(error, "problem", f"{type(error).__name__}: {error}")
        _say(answers, {"error": {**known, "problem": str(problem)[:2000]}})
        return 1
    return 0


def _say(answers: Any, document: Mapping[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
