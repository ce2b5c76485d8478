"""Which TensorRT engines to build, from a bundle's manifest and the requested sizes. Needs neither TensorRT nor a GPU.

Each size gets an engine for exactly that size, and one more covers all sizes around the native one. Graphs that share a
file (the step with and without guidance) share an engine and its weights, with a profile each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from celebctl_runtime.backends.base import TABLE_INPUT, encoder_number
from celebctl_runtime.backends.engines import Machine, Profile, Shape, engine_key, onnx_sha256, read_records
from celebctl_runtime.bundle.manifest import Manifest
from celebctl_runtime.errors import UsageError
from celebctl_runtime.request import MAX_SIDE
from celebctl_runtime.sampling.schedule import ScheduleConfig

DYNAMIC_BATCH = 4
MAX_BATCH = 15  # the exported graphs were traced for up to twice as many, negative prompts included

Dims = Mapping[str, int]  # size of each named axis of a graph


@dataclass(frozen=True)
class EngineRequest:
    """A size to optimize for: ``batch`` pictures of ``height`` x ``width`` pixels at once."""

    batch: int
    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> EngineRequest:
        """ "BxHxW", as `--engine` takes it. Raises UsageError."""
        found = re.fullmatch(r"(\d+)[x×](\d+)[x×](\d+)", text.strip().lower())
        if found is None:
            raise UsageError(
                f"--engine {text!r} is no size", "write pictures x height x width, for example --engine 1x512x512"
            )
        return cls(*(int(number) for number in found.groups()))


@dataclass(frozen=True)
class EnginePlan:
    """One engine to build.

    ``file``: its name; ``onnx``: the graph's file in the bundle; ``onnx_sha256``: of the graph and its weights;
    ``profiles``: one per graph of the manifest, in order; ``inputs_from_data``: initializers that become inputs, with
    the data file they are stored in. Networks are strongly typed, so the precision is that of the ONNX graph.
    """

    file: str
    onnx: str
    onnx_sha256: str
    profiles: tuple[Profile, ...]
    inputs_from_data: Mapping[str, str]

    def key(self, machine: Machine) -> str:
        """Name of the engine's folder, see :func:`celebctl_runtime.backends.engines.engine_key`."""
        return engine_key(self.onnx_sha256, self.profiles, machine)


def plan_engines(
    manifest: Manifest, requests: Sequence[EngineRequest] = (), *, dynamic: bool = True
) -> list[EnginePlan]:
    """The engines of a bundle: every graph at each requested size, and with ``dynamic`` at all sizes around native.

    Without requests, the native size, one picture at a time. Raises UsageError for sizes that the model cannot draw.
    """
    wanted = list(dict.fromkeys(requests)) or [EngineRequest(1, *manifest.size.native)]
    for request in wanted:
        _check(request, manifest)
    files: dict[str, list[str]] = {}
    for name, facts in manifest.graphs.items():
        files.setdefault(facts.file, []).append(name)
    plans: list[EnginePlan] = []
    for names in files.values():
        if encoder_number(names[0]) is not None:
            plans.append(_text_encoder_plan(manifest, names[0], wanted))
            continue
        plans += [_static_plan(manifest, names, request) for request in wanted]
        if dynamic:
            plans.append(_dynamic_plan(manifest, names, wanted))
    return plans


def describe(manifest: Manifest, plans: Iterable[EnginePlan], engines: Path, machine: Machine | None) -> dict[str, Any]:
    """The build plan as a JSON document. ``engines``: the cache folder; ``machine`` None: unknown, so is the key."""
    built = {record.key for record in read_records(engines, manifest)}
    listed: list[dict[str, Any]] = []
    for plan in plans:
        key = plan.key(machine) if machine else "KEY"
        listed.append({**asdict(plan), "path": str(engines / key / plan.file), "built": key in built})
    return {
        "machine": asdict(machine) if machine else None,
        "strongly_typed": True,
        "precision": manifest.dtype,
        "engines": listed,
    }


def _check(request: EngineRequest, manifest: Manifest) -> None:
    if not 1 <= request.batch <= MAX_BATCH:
        raise UsageError(f"an engine for {request.batch} pictures at once cannot be built", f"use 1 to {MAX_BATCH}")
    multiple = manifest.size.multiple
    for side in (request.height, request.width):
        if side % multiple or not multiple <= side <= MAX_SIDE:
            raise UsageError(
                f"--engine {request.batch}x{request.height}x{request.width} does not suit this model",
                f"use sides that are multiples of {multiple}, from {multiple} to {MAX_SIDE}",
            )


def _static_plan(manifest: Manifest, names: Sequence[str], request: EngineRequest) -> EnginePlan:
    dims = _dims(manifest, request)
    return _plan(manifest, names, f"b{request.batch}-{request.height}x{request.width}", (dims, dims, dims))


def _dynamic_plan(manifest: Manifest, names: Sequence[str], wanted: Sequence[EngineRequest]) -> EnginePlan:
    """From half to twice the native sides, widened to all requests; optimized for one native picture."""
    (height, width), multiple = manifest.size.native, manifest.size.multiple
    heights, widths = [request.height for request in wanted], [request.width for request in wanted]
    halves = [max(multiple, side // 2 // multiple * multiple) for side in (height, width)]
    least = EngineRequest(1, min(halves[0], *heights), min(halves[1], *widths))
    most = EngineRequest(_largest_batch(wanted), max(2 * height, *heights), max(2 * width, *widths))
    best = EngineRequest(1, height, width)
    low, middle, high = (_dims(manifest, request) for request in (least, best, most))
    return _plan(manifest, names, "dynamic", (low, middle, high))


def _text_encoder_plan(manifest: Manifest, name: str, wanted: Sequence[EngineRequest]) -> EnginePlan:
    """One engine for all sizes: only the batch counts, and a prompt may come alone or with its negative."""
    low, middle, high = ({"batch": count} for count in (1, 2, 2 * _largest_batch(wanted)))
    plan = _plan(manifest, [name], "dynamic", (low, middle, high))
    table = manifest.token_tables[encoder_number(name) or 0]
    shape = (table.rows, table.width)
    (profile,) = plan.profiles
    widened = replace(profile, shapes={**profile.shapes, TABLE_INPUT: (shape, shape, shape)})
    return replace(plan, profiles=(widened,), inputs_from_data={TABLE_INPUT: table.file})


def _largest_batch(wanted: Sequence[EngineRequest]) -> int:
    return max(DYNAMIC_BATCH, *(request.batch for request in wanted))


def _plan(manifest: Manifest, names: Sequence[str], suffix: str, dims: tuple[Dims, Dims, Dims]) -> EnginePlan:
    facts = manifest.graphs[names[0]]
    low, middle, high = dims
    profiles = tuple(
        Profile(
            name,
            {
                key: (_shape(tensor.shape, low), _shape(tensor.shape, middle), _shape(tensor.shape, high))
                for key, tensor in manifest.graphs[name].inputs.items()
            },
        )
        for name in names
    )
    stem = PurePosixPath(facts.file).stem
    return EnginePlan(f"{stem}-{suffix}.plan", facts.file, onnx_sha256(manifest, facts), profiles, {})


def _dims(manifest: Manifest, request: EngineRequest) -> Dims:
    factor = manifest.size.vae_factor
    return {
        "batch": request.batch,
        "h": request.height // factor,
        "w": request.width // factor,
        "height": request.height,
        "width": request.width,
        "steps": ScheduleConfig.from_dict(manifest.scheduler).num_train_timesteps,
    }


def _shape(axes: Sequence[int | str], dims: Dims) -> Shape:
    return tuple(axis if isinstance(axis, int) else dims[axis] for axis in axes)
