"""The stages of a run. Each returns plain data for the document.

| stage | result |
|---|---|
| machine | hardware and versions, devices that work, findings of `doctor` |
| model | name, family, hashes, whether weights are random, its celeb basis |
| names | which of the first celebrities the model draws as one person each |
| learn | seconds, likeness at the end, peak memory |
| export | seconds, size, errors of every graph against torch |
| images | seconds on every device; largest pixel difference from the CPU; whether CUDA graphs change a pixel |
| engines | TensorRT: seconds, error against ONNX Runtime on the CPU, time of both |
| speed | `celebctl bench`: cold start, image, step, memory, beside diffusers |
| likeness | `celebctl eval` with two or more people, and how much images copy the photo |
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from celebctl_runtime.errors import SetupError
from celebctl_runtime.files import atomic_write

from .run import ProveRun, Skipped

if TYPE_CHECKING:
    from celebctl.pipeline import Pipeline
    from celebctl_runtime.picture import GeneratedImage

COMPARED_STEPS = 4  # of the image that is drawn on every device: on a CPU a full one takes minutes at true size
SEED = 5
PROBED_NAMES = 24
Stage = Callable[[ProveRun], Mapping[str, Any]]
_MIB = 1 << 20


def check_machine(run: ProveRun) -> Mapping[str, Any]:
    """The installation."""
    from celebctl.bench.roofline import machine
    from celebctl.doctor import run_checks

    private = {str(run.library.root): "LIBRARY", str(Path.home()): "~"}
    checks = [{key: _without(str(value), private) for key, value in asdict(one).items()} for one in run_checks()]
    return {"machine": machine(), "devices": list(run.devices), "checks": checks}


def check_model(run: ProveRun) -> Mapping[str, Any]:
    """The weights and the basis of their token tables."""
    from celebctl.basis.report import basis_report

    parts, report = run.model.parts, basis_report(run.model.tables, run.library)
    names = [{"read": one.read, "used": one.used, "dropped": one.counts()} for one in report.names]
    return {
        "name": parts.name, "family": parts.family, "licence": parts.card.licence,
        "random_weights": "random weights" in parts.card.licence,
        "table_hash": parts.table_hash, "weights_digest": parts.weights_digest, "native_size": list(parts.native_size),
        "names": names, "positions": report.facts["positions"], "coefficients": report.facts["coefficients"],
    }  # fmt: skip


def check_names(run: ProveRun) -> Mapping[str, Any]:
    """Draw the first names of the list four times each."""
    from celebctl.basis.choose import probe_names
    from celebctl.basis.names import names_file, read_name_list

    if run.result("model").get("random_weights"):
        raise Skipped("the weights are random: they know no names")
    listed = read_name_list(names_file(run.model.tables, None))[:PROBED_NAMES]
    file = run.folder / "names.txt"
    atomic_write(file, ("\n".join(listed) + "\n").encode())
    result = probe_names(run.model, file, progress=run.progress).result
    separation = {name: round(value, 3) for name, value in result.separation.items()}
    return {"kept": list(result.kept), "dropped": result.dropped, "separation": separation}


def learn_people(run: ProveRun) -> Mapping[str, Any]:
    """Learn all people together, once."""
    _reset_gpu_peak()
    likeness: list[float] = []

    def watch(now: Any) -> None:
        likeness[:] = [now.metrics["likeness"]] if "likeness" in now.metrics else likeness
        run.progress(now)

    started = time.monotonic()
    people = run.model.learn(
        run.subjects, steps=run.options.steps, checkpoint=run.folder / "learn.checkpoint",
        resume=(run.folder / "learn.checkpoint").exists(), consent="synthetic" if run.options.photos is None else None,
        progress=watch,
    )  # fmt: skip
    seconds = time.monotonic() - started
    for person, file in zip(people, run.identity_files.values(), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        person.save(file)
    (run.folder / "learn.checkpoint").unlink(missing_ok=True)
    sheet = run.model.contact_sheet(people, [subject.image for subject in run.subjects])
    return {
        "people": [{"name": one.name, "bytes": run.identity_files[one.name].stat().st_size} for one in people],
        "face_models": run.model.face_models.name, "photos": run.options.photos is not None,
        "seconds": round(seconds, 2), "likeness": likeness[0] if likeness else None,
        "peak_memory_mib": _peak_memory(), "peak_gpu_memory_mib": _gpu_peak(),
        "sheet": run.keep_image("sheet", sheet, side=1400),
    }  # fmt: skip


def export_bundle(run: ProveRun) -> Mapping[str, Any]:
    """Export in float16 for a GPU, else in float32."""
    dtype = "fp16" if run.gpu else "fp32"
    started, folder = time.monotonic(), run.folder / "bundle"
    bundle = run.model.export(folder, run.people, dtype=dtype, overwrite=True, progress=run.progress)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "dtype": dtype, "seconds": round(time.monotonic() - started, 2), "bytes": size,
        "parity": [dict(row) for row in bundle.manifest.parity],
    }  # fmt: skip


def draw_images(run: ProveRun) -> Mapping[str, Any]:
    """The same image on every device, and a few whole ones on the fastest."""
    bundle, names, reference = run.bundle, [person.name for person in run.people], None
    prompt = f"{names[0]} and {names[1]} playing chess" if len(names) > 1 else f"{names[0]} playing chess"
    rows: list[dict[str, Any]] = []
    for device in run.devices:
        try:
            pipe = _pipeline(run, device)
        except SetupError as error:
            rows.append({"device": device, "problem": error.problem})
            continue
        first, seconds = _timed(pipe, prompt, COMPARED_STEPS), _timed(pipe, prompt, COMPARED_STEPS)[1]
        row = {"device": device, "engine": str(first[0].record.get("backend", "")), "steps": COMPARED_STEPS}
        row |= {"first_seconds": round(first[1], 3), "seconds": round(seconds, 3)}
        pixels = np.asarray(first[0].image, np.int16)
        reference = pixels if device == "cpu" else reference
        if reference is not None:
            row["pixel_difference"] = int(np.abs(pixels - reference).max())
        if device.startswith("cuda"):
            plain = _timed(_pipeline(run, device, {"enable_cuda_graph": "0"}), prompt, COMPARED_STEPS)[0]
            row["equal_without_graphs"] = bool(np.array_equal(np.asarray(plain.image, np.int16), pixels))
        rows.append(row)
    working = [row["device"] for row in rows if "seconds" in row]
    if not working:
        raise SetupError("no device drew an image", "see the engines' problems", reason="no_device")
    pipe = _pipeline(run, working[-1])
    prompts = [prompt, f"{names[-1]} smiling on the beach", f"{names[0]} in space"]
    scale = bundle.manifest.size.display_scale
    images = [
        {"prompt": text, "file": run.keep_image(f"image-{number}", _timed(pipe, text)[0].image, scale=scale)}
        for number, text in enumerate(prompts)
    ]
    return {"bundle": bundle.manifest.fingerprint, "devices": rows, "images": images, "drawn_on": working[-1]}


def build_engines(run: ProveRun) -> Mapping[str, Any]:
    """TensorRT engines of the native size."""
    wanted = [name for name in run.devices if name.startswith("trt")]
    if not wanted:
        raise Skipped("TensorRT is not among the devices")
    from celebctl_export import build_engines

    engines = run.library.engines
    records = [
        record
        for device in wanted
        for record in build_engines(run.bundle, engines, dynamic=False, device=device, progress=run.progress)
    ]
    return {"engines": [{"file": one.file, "seconds": one.seconds, "parity": list(one.parity)} for one in records]}


def compare_speed(run: ProveRun) -> Mapping[str, Any]:
    """The benchmark, in turns with diffusers."""
    from celebctl.bench.contenders import Workload
    from celebctl.bench.report import report
    from celebctl.bench.roofline import machine
    from celebctl.bench.runner import run_benchmark
    from celebctl_runtime.request import Request, resolve

    bundle, devices = run.bundle, [name for name in run.devices if not (run.gpu and name == "cpu")]
    request = resolve(Request("a portrait of a person", "", 0, identities=()), bundle.manifest)
    workload = Workload(bundle, request, run.library.engines)
    contenders = workload.celebctl_contenders(devices)
    contenders += workload.baselines(run.model.source, devices, compiled=run.gpu)
    timings, measured = run_benchmark(contenders, rounds=run.options.rounds, cold_rounds=1, progress=run.progress)
    about = {**request.to_json(), "model": bundle.manifest.model.name, "dtype": bundle.manifest.dtype}
    about |= {"rounds": run.options.rounds, "cold_rounds": 1, "threads": None}
    return report(timings, measured, about, machine())


def score_likeness(run: ProveRun) -> Mapping[str, Any]:
    """Likeness, prompts and pairs by another recogniser than that of learning, and copying of the photo."""
    from celebctl.evaluation.copying import copy_paste_of
    from celebctl.evaluation.session import EvalContext, LibraryEvaluation, choose_scorer
    from celebctl_models.faces.packs import choose_face_models

    scoring, model = run.options.scoring_face_models, run.model
    recogniser = None if scoring is None else choose_face_models(scoring, model.source, run.library.root)
    context = EvalContext(model, choose_scorer(model.parts, model.analyser, recogniser))
    config = context.configure(None, 1, with_pairs=len(run.people) > 1)
    photos, sizes = [own[0] for own in run.photos.values()], [None] * len(run.people)
    evaluation = LibraryEvaluation(context, config, run.people, photos, sizes)
    (result,) = evaluation.run(run.folder / "evaluation", progress=run.progress)
    other_photos = [own[1:] for own in run.photos.values()]
    copying = copy_paste_of(result.records, config.prompts, context.scorer, photos, other_photos)
    return {"scorer": context.scorer.description, "metrics": result.metrics.to_json(), "copy_paste": copying}


STAGES: dict[str, Stage] = {
    "machine": check_machine,
    "model": check_model,
    "names": check_names,
    "learn": learn_people,
    "export": export_bundle,
    "engines": build_engines,
    "images": draw_images,
    "speed": compare_speed,
    "likeness": score_likeness,
}


def _without(text: str, private: Mapping[str, str]) -> str:
    """The text with each private path replaced."""
    for path, shown in private.items():
        text = text.replace(path, shown)
    return text


def _pipeline(run: ProveRun, device: str, cuda_options: Mapping[str, str] | None = None) -> Pipeline:
    from celebctl.pipeline import Pipeline

    return Pipeline(run.bundle, device=device, library=run.library, cuda_options=cuda_options)


def _timed(pipe: Pipeline, prompt: str, steps: int = 0) -> tuple[GeneratedImage, float]:
    """An image and its seconds. steps: 0 for the model's own number."""
    from celebctl_runtime.request import Request

    started = time.monotonic()
    (image,) = pipe.generate([Request(prompt, "", SEED, steps)])
    return image, time.monotonic() - started


def _reset_gpu_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _gpu_peak() -> int | None:
    """MiB of the GPU that torch has used at most since the reset."""
    import torch

    return round(torch.cuda.max_memory_allocated() / _MIB) if torch.cuda.is_available() else None


def _peak_memory() -> int | None:
    """MiB of main memory that this process has used at most; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB)
