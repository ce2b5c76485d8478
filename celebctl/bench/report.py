"""The benchmark report as one JSON document.

Keys: ``machine`` and ``settings``; ``contenders``: medians of each (``cold``, ``first``, ``picture`` in seconds,
``step_ms``, ``memory_mib``, ``gpu_memory_mib``), their ``spread`` (first and third quartile) and ``rounds``;
``ratios``: how many times faster, or smaller, ``ours`` is than ``theirs``, as medians of paired rounds with their
``spread``; ``roofline``: each contender's step next to the hardware's limit, and whether that figure is ``reliable``;
``cpu_peak``: the limit as measured, by round; ``operations`` and ``pixel_differences``; ``no_baseline``: why there is
no comparison. document.py adds ``add_person`` (`measure_adding`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .roofline import gpu_peak
from .runner import Measurements, Timings

SCHEMA = 3
_MIB = 1 << 20
_BUSY = 0.8  # an idle machine repeats its matrix product within a few per cent
_OPERATIONS_NOTE = (
    "operations of the networks as diffusers runs them; ONNX Runtime's form of the step leaves out what is"
    " the same for both halves of guidance, or for all steps"
)


@dataclass(frozen=True)
class Ratio:
    """How many times faster (or, of memory, smaller) ``ours`` is than ``theirs``.

    Attributes:
        values: Medians over paired rounds.
        spread: First and third quartile of the pairs.
    """

    ours: str
    theirs: str
    values: Mapping[str, float]
    spread: Mapping[str, tuple[float, float]]


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
            known = {key: median for key, values in pairs.items() if (median := _median(values)) is not None}
            medians = {key: round(median, 3) for key, median in known.items()}
            quartiles = {key: spread(pairs[key], 3) or (median, median) for key, median in medians.items()}
            rows.append(Ratio(ours.name, theirs.name, medians, quartiles))
    return rows


def roofline(timings: Sequence[Timings], measurements: Measurements, dtype: str, gpu: str) -> list[dict[str, Any]]:
    """Share of each contender's hardware limit: operations over peak, over the step's time (Williams et al. 2009).

    Peaks are those of the dtype that runs; the CPU's is measured in fp32. Without a peak there is no row. A share above
    1 is not reliable: the limit was measured too low, or the contender runs fewer operations than were counted.

    Args:
        gpu: Name of the machine's GPU, for contenders that report only "cuda" or "cuda:1".
    """
    rows: list[dict[str, Any]] = []
    operations = measurements.operations
    for one in timings:
        device = one.facts.get("device", "")
        in_fp32 = dtype == "fp32" and one.facts.get("precision", "f32") == "f32"
        cpu_peak = measurements.cpu_peak if in_fp32 else None
        peak = cpu_peak if one.device_type == "cpu" else gpu_peak(gpu if device[:4] == "cuda" else device, dtype)
        if not (operations and peak):
            continue
        floor, median = operations["step"] / float(peak["flops"]), _median(one.step)
        share = None if median is None else round(floor / median, 4)
        rows.append(
            {
                "name": one.name,
                "step_gflop": round(operations["step"] / 1e9, 3),
                "limit_gflops": round(float(peak["flops"]) / 1e9, 1),
                "source": peak["source"],
                "floor_ms_per_step": round(1e3 * floor, 4),
                "share_of_limit": share,
                "reliable": share is None or share <= 1,
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
        "cpu_peak": measurements.cpu_peak,
        "operations": measurements.operations,
        "pixel_differences": measurements.pixel_differences,
    }
    if measurements.operations:
        document["operations_note"] = _OPERATIONS_NOTE
    if not any(one.baseline for one in timings):
        document["no_baseline"] = "no comparison: diffusers did not run"
    return document


def busy_share(report: Mapping[str, Any]) -> float | None:
    """Median over best of the limits measured in the rounds, where that shows other load on the machine; else None."""
    peak = report["cpu_peak"]
    share = statistics.median(peak["rounds"]) / peak["flops"] if peak and "rounds" in peak else 1.0
    return share if share < _BUSY else None


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
        "spread": _spreads(one),
        "memory_mib": round(one.memory / _MIB) or None,
        "gpu_memory_mib": round(one.gpu_memory / _MIB) or None,
        "rounds": {key: [round(value, 5) for value in getattr(one, key)] for key in ("cold", "picture")},
    }


def _spreads(one: Timings) -> dict[str, tuple[float, float]]:
    """Quartiles of the rounds, by the key and in the unit of the median."""
    step = [1e3 * seconds for seconds in one.step]
    measured = {"cold": (one.cold, 4), "picture": (one.picture, 5), "step_ms": (step, 3)}
    found = {key: spread(values, digits) for key, (values, digits) in measured.items()}
    return {key: quartiles for key, quartiles in found.items() if quartiles is not None}


def spread(values: Sequence[float], digits: int) -> tuple[float, float] | None:
    """First and third quartile of the values that are not NaN; None for fewer than two.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 50.0], 1)
        (2.0, 4.0)
    """
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return None
    first, _, third = statistics.quantiles(known, n=4, method="inclusive")
    return round(first, digits), round(third, digits)


def _median(values: Sequence[float]) -> float | None:
    """Median of the values that are not NaN; None without any."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else None
