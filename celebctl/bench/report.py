"""The benchmark report as one JSON document.

Keys: ``machine`` and ``settings``; ``contenders``: medians of each (``cold``, ``first``, ``picture`` in seconds,
``step_ms``, ``memory_mib``, ``gpu_memory_mib``) and ``rounds``; ``ratios``: how many times faster, or smaller, ``ours``
is than ``theirs``, as medians of paired rounds; ``roofline``: each contender's step next to the hardware's limit;
``operations`` and ``pixel_differences``; ``no_baseline``: why there is no comparison. `celebctl bench` adds
``add_person`` (`measure_adding`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .roofline import gpu_peak
from .runner import Measurements, Timings

SCHEMA = 2
_MIB = 1 << 20
_OPERATIONS_NOTE = (
    "operations of the networks as diffusers runs them; ONNX Runtime's form of the step leaves out what is"
    " the same for both halves of guidance, or for all steps"
)


@dataclass(frozen=True)
class Ratio:
    """How many times faster (or, of memory, smaller) ``ours`` is than ``theirs``: medians over paired rounds."""

    ours: str
    theirs: str
    values: Mapping[str, float]


def ratios(timings: Sequence[Timings]) -> list[Ratio]:
    """Each celebctl contender against each baseline on the same hardware, and against its own variants."""
    rows: list[Ratio] = []
    for ours in (one for one in timings if not one.baseline):
        for theirs in (one for one in timings if one.device_type == ours.device_type):
            if not (theirs.baseline or theirs.name.startswith(f"{ours.name}, ")):
                continue
            pairs = {
                key: [b / a for a, b in zip(getattr(ours, key), getattr(theirs, key), strict=True)]
                for key in ("cold", "first", "picture", "step")
            }
            for key in ("memory", "gpu_memory"):
                one, other = getattr(ours, key), getattr(theirs, key)
                pairs[key] = [other / one] if one and other else []
            medians = {key: median for key, values in pairs.items() if (median := _median(values)) is not None}
            rows.append(Ratio(ours.name, theirs.name, {key: round(value, 3) for key, value in medians.items()}))
    return rows


def roofline(timings: Sequence[Timings], measurements: Measurements, dtype: str, gpu: str) -> list[dict[str, Any]]:
    """Share of each contender's hardware limit: operations over peak, over the step's time (Williams et al. 2009).

    Peaks are those of the dtype that runs; the CPU's is measured in fp32. Without a peak there is no row.

    Args:
        gpu: Name of the machine's GPU, for contenders that report only "cuda".
    """
    rows: list[dict[str, Any]] = []
    operations = measurements.operations
    for one in timings:
        device = one.facts.get("device", "")
        cpu_peak = measurements.cpu_peak if dtype == "fp32" else None
        peak = cpu_peak if one.device_type == "cpu" else gpu_peak(gpu if device == "cuda" else device, dtype)
        if not (operations and peak):
            continue
        floor, median = operations["step"] / float(peak["flops"]), _median(one.step)
        rows.append(
            {
                "name": one.name,
                "step_gflop": round(operations["step"] / 1e9, 3),
                "limit_gflops": round(float(peak["flops"]) / 1e9, 1),
                "source": peak["source"],
                "floor_ms_per_step": round(1e3 * floor, 4),
                "share_of_limit": None if median is None else round(floor / median, 4),
            }
        )
    return rows


def report(
    timings: Sequence[Timings], measurements: Measurements, settings: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON document of the module's docstring."""
    gpu = str(machine["gpus"][0]) if len(machine["gpus"]) == 1 else ""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": dict(machine),
        "settings": dict(settings),
        "contenders": [_row(one) for one in timings],
        "ratios": [asdict(ratio) for ratio in ratios(timings)],
        "roofline": roofline(timings, measurements, settings["dtype"], gpu),
        "operations": measurements.operations,
        "pixel_differences": measurements.pixel_differences,
    }
    if measurements.operations:
        document["operations_note"] = _OPERATIONS_NOTE
    if not any(one.baseline for one in timings):
        document["no_baseline"] = "no comparison: diffusers did not run"
    return document


def title_of(report: Mapping[str, Any]) -> str:
    """What was generated."""
    settings = report["settings"]
    size = f"{settings['width']} x {settings['height']}"
    guidance = f", guidance {settings['guidance']:g}" if settings["guidance"] > 1 else ""
    return f"{settings['model']}: {size}, {settings['steps']} steps of {settings['sampler']}{guidance}"


def machine_of(report: Mapping[str, Any]) -> str:
    """The hardware and the main versions."""
    machine, packages = report["machine"], report["machine"]["packages"]
    threads = report["settings"]["threads"] or machine["cores"]
    hardware = [*machine["gpus"], f"{machine['cpu']}, {threads} thread{'' if threads == 1 else 's'}"]
    shown = ("onnxruntime", "openvino", "torch", "diffusers")
    versions = [f"{name} {packages[name]}" for name in shown if name in packages]
    return "; ".join([*hardware, ", ".join(versions)])


def _row(one: Timings) -> dict[str, Any]:
    cold, first, picture, step = (_median(times) for times in (one.cold, one.first, one.picture, one.step))
    return {
        "name": one.name,
        "baseline": one.baseline,
        "device_type": one.device_type,
        "facts": one.facts,
        "cold": cold and round(cold, 4),
        "first": first and round(first, 4),
        "picture": picture and round(picture, 5),
        "step_ms": None if step is None else round(1e3 * step, 3),
        "memory_mib": round(one.memory / _MIB) or None,
        "gpu_memory_mib": round(one.gpu_memory / _MIB) or None,
        "rounds": {key: [round(value, 5) for value in getattr(one, key)] for key in ("cold", "picture")},
    }


def _median(values: Sequence[float]) -> float | None:
    """Median of the values that are not NaN; None without any."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else None
