"""One image by one program, in the environment of that program: python cpu_peers_worker.py PEER SETTINGS.

Runs with the packages of its peer only. Loads, draws one step to warm up, then draws one image; writes one line of
JSON: seconds to load and to draw, peak resident memory, version.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Settings = dict[str, Any]  # model, bundle, ir, threads, steps, size, guidance, prompt, cache
Draw = Callable[[int], Any]  # steps -> anything


def _module(name: str) -> Any:
    """A package that only the environment of its program has."""
    return importlib.import_module(name)


def celebctl(settings: Settings, device: str) -> Draw:
    from celebctl_runtime import Bundle, Request, generate
    from celebctl_runtime.backends.select import choose_backend

    bundle = Bundle.open(Path(settings["bundle"]), verify="none")
    backend = choose_backend(bundle, device, engines=Path(settings["cache"]), threads=settings["threads"])
    base: dict[str, Any] = {"seed": 1, "guidance": settings["guidance"], "sampler": "euler"}
    base |= {"width": settings["size"], "height": settings["size"]}
    return lambda steps: generate(bundle, backend, Request(settings["prompt"], steps=steps, **base))


def diffusers(settings: Settings, compiled: bool) -> Draw:
    torch, library = _module("torch"), _module("diffusers")
    torch.set_num_threads(settings["threads"])
    pipe = library.StableDiffusionPipeline.from_pretrained(settings["model"], dtype=torch.float32, safety_checker=None)
    pipe.scheduler = library.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if compiled:
        pipe.unet = torch.compile(pipe.unet)
        pipe.vae.decode = torch.compile(pipe.vae.decode)
    side = settings["size"]

    def draw(steps: int) -> Any:
        seed = torch.Generator().manual_seed(1)
        return pipe(
            settings["prompt"], num_inference_steps=steps, guidance_scale=settings["guidance"], height=side, width=side,
            generator=seed,
        )  # fmt: skip

    return draw


def stable_diffusion_cpp(settings: Settings) -> Draw:
    model = _module("stable_diffusion_cpp").StableDiffusion(
        model_path=settings["model"], n_threads=settings["threads"], wtype="f32", verbose=False
    )
    side = settings["size"]
    return lambda steps: model.generate_image(
        prompt=settings["prompt"], sample_steps=steps, cfg_scale=settings["guidance"], width=side, height=side,
        sample_method="euler", seed=1,
    )  # fmt: skip


def openvino_genai(settings: Settings) -> Draw:
    genai = _module("openvino_genai")
    options = {"INFERENCE_NUM_THREADS": settings["threads"], "INFERENCE_PRECISION_HINT": "f32"}
    options |= {"CACHE_DIR": settings["cache"]}
    pipe = genai.Text2ImagePipeline(settings["ir"], "CPU", **options)
    euler = genai.Scheduler.Type.EULER_DISCRETE
    pipe.set_scheduler(genai.Scheduler.from_config(f"{settings['ir']}/scheduler/scheduler_config.json", euler))
    side = settings["size"]
    return lambda steps: pipe.generate(
        settings["prompt"], num_inference_steps=steps, guidance_scale=settings["guidance"], width=side, height=side,
        rng_seed=1,
    )  # fmt: skip


#: Distribution whose version is reported, and what loads the peer.
PEERS: dict[str, tuple[str, Callable[[Settings], Draw]]] = {
    "diffusers": ("diffusers", lambda settings: diffusers(settings, compiled=False)),
    "diffusers compiled": ("torch", lambda settings: diffusers(settings, compiled=True)),
    "celebctl, ONNX Runtime": ("onnxruntime", lambda settings: celebctl(settings, "cpu")),
    "celebctl, OpenVINO": ("openvino", lambda settings: celebctl(settings, "openvino")),
    "stable-diffusion.cpp": ("stable-diffusion-cpp-python", stable_diffusion_cpp),
    "OpenVINO GenAI": ("openvino-genai", openvino_genai),
}


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Load, warm up, draw, report."""
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to stdout
    distribution, load = PEERS[name]
    start = time.perf_counter()
    draw = load(settings)
    draw(1)
    loaded = time.perf_counter()
    draw(settings["steps"])
    document = {"load_seconds": loaded - start, "seconds": time.perf_counter() - loaded}
    document |= {"peak_bytes": peak_memory(), "version": importlib.metadata.version(distribution)}
    answer.write(json.dumps(document) + "\n")
    answer.flush()


if __name__ == "__main__":
    main()
