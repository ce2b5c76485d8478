"""What is to be built for TensorRT, as data: from a bundle's manifest and the sizes asked for to a list of engines.

Pure functions; neither TensorRT nor a GPU is needed, which is what `--dry-run` shows. Each size gets an engine tuned
for exactly that size, and one more takes every size around the native one. Graphs that share a file (the step with and
without guidance) share an engine and its weights, with a profile each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from celebctl_runtime.engines import (
    FOLDER,
    TABLE_INPUT,
    EngineRecord,
    Machine,
    Profile,
    Shape,
    encoder_number,
    engine_key,
    onnx_sha256,
    table_rows,
)
from celebctl_runtime.errors import UsageProblem
from celebctl_runtime.manifest import GraphFacts, Manifest
from celebctl_runtime.request import MAX_SIDE

DYNAMIC_BATCH = 4
MAX_BATCH = 15  # the exported graphs were traced for up to twice as many, negative prompts included

Dims = Mapping[str, int]  # what each named axis of a graph is


@dataclass(frozen=True)
class EngineRequest:
    """One size to be fast at: ``batch`` pictures of ``height`` x ``width`` pixels at once."""

    batch: int
    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> EngineRequest:
        """ "BxHxW", as `--engine` takes it. Raises UsageProblem."""
        found = re.fullmatch(r"(\d+)[x×](\d+)[x×](\d+)", text.strip().lower())
        if found is None:
            raise UsageProblem(
                f"--engine {text!r} is no size", "write pictures x height x width, for example --engine 1x512x512"
            )
        return cls(*(int(number) for number in found.groups()))


@dataclass(frozen=True)
class EnginePlan:
    """One engine to build.

    ``file``: its name in the engine folder; ``onnx``: the graph's file in the bundle; ``onnx_sha256``: of the graph and
    its weights; ``profiles``: one per graph of the manifest, in order; ``inputs_from_data``: initializers that become
    inputs, with the data file they lie in; ``workspace_bytes``: scratch memory, 0 for as much as the device has.
    Precision is not chosen here: networks are strongly typed, so it is that of the ONNX graph.
    """

    file: str
    onnx: str
    onnx_sha256: str
    profiles: tuple[Profile, ...]
    inputs_from_data: Mapping[str, str]
    workspace_bytes: int = 0

    def is_built_by(self, record: EngineRecord) -> bool:
        """Whether an engine that is there already is the one planned."""
        return (record.file, record.onnx_sha256, record.profiles) == (self.file, self.onnx_sha256, self.profiles)

    def keeping(self, record: EngineRecord) -> EnginePlan:
        """This plan, so wide that its engine can do whatever the one there can: asking for one size more takes
        nothing away. As it is where that one is of another graph."""
        inputs = [[(one.graph, *sorted(one.shapes)) for one in side] for side in (self.profiles, record.profiles)]
        if (record.file, record.onnx_sha256) != (self.file, self.onnx_sha256) or inputs[0] != inputs[1]:
            return self
        pairs = zip(self.profiles, record.profiles, strict=True)
        return replace(self, profiles=tuple(_widened(mine, theirs) for mine, theirs in pairs))


def plan_engines(
    manifest: Manifest, requests: Sequence[EngineRequest] = (), *, dynamic: bool = True, workspace_bytes: int = 0
) -> list[EnginePlan]:
    """The engines of a bundle: every graph at each requested size, and with ``dynamic`` at all sizes around native.

    Without requests, the native size alone and one picture at a time. Raises UsageProblem for sizes that the model
    does not have.
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
            plans.append(_text_encoder_plan(manifest, names[0], wanted, dynamic))
            continue
        plans += [_static_plan(manifest, names, request) for request in wanted]
        if dynamic:
            plans.append(_dynamic_plan(manifest, names, wanted))
    return [replace(plan, workspace_bytes=workspace_bytes) for plan in plans]


def keeping_all(plans: Iterable[EnginePlan], known: Iterable[EngineRecord]) -> list[EnginePlan]:
    """The plans as they are built where these engines are there already, see :meth:`EnginePlan.keeping`."""
    there = {record.file: record for record in known}
    return [plan.keeping(there[plan.file]) if plan.file in there else plan for plan in plans]


def describe(
    manifest: Manifest, plans: Iterable[EnginePlan], machine: Machine | None, known: Sequence[EngineRecord] = ()
) -> dict[str, Any]:
    """The whole build plan as one JSON document. ``machine`` None: not known here, so the key is open.

    ``known``: the engines that are there already; "built" tells of each planned one whether it is among them.
    """
    key = engine_key(manifest, machine) if machine else None
    folder = PurePosixPath(FOLDER) / (key or "KEY")
    return {
        "machine": asdict(machine) if machine else None,
        "key": key,
        "strongly_typed": True,
        "precision": manifest.dtype,
        "engines": [
            {
                **asdict(plan),
                "path": str(folder / plan.file),
                "built": any(plan.is_built_by(record) for record in known),
            }
            for plan in plans
        ],
    }


def _check(request: EngineRequest, manifest: Manifest) -> None:
    if not 1 <= request.batch <= MAX_BATCH:
        raise UsageProblem(f"an engine for {request.batch} pictures at once cannot be built", f"use 1 to {MAX_BATCH}")
    multiple = manifest.size.multiple
    for side in (request.height, request.width):
        if side % multiple or not multiple <= side <= MAX_SIDE:
            raise UsageProblem(
                f"--engine {request.batch}x{request.height}x{request.width} does not suit this model",
                f"use sides that are multiples of {multiple}, from {multiple} to {MAX_SIDE}",
            )


def _static_plan(manifest: Manifest, names: Sequence[str], request: EngineRequest) -> EnginePlan:
    dims = _dims(manifest, request)
    suffix = f"b{request.batch}-{request.height}x{request.width}"
    return _plan(manifest, names, suffix, (dims, dims, dims))


def _dynamic_plan(manifest: Manifest, names: Sequence[str], wanted: Sequence[EngineRequest]) -> EnginePlan:
    """From half to twice the native sides, and everything that was asked for; tuned for one native picture."""
    (height, width), multiple = manifest.size.native, manifest.size.multiple
    halves = [max(multiple, side // 2 // multiple * multiple) for side in (height, width)]
    least = EngineRequest(
        1,
        min(halves[0], *(request.height for request in wanted)),
        min(halves[1], *(request.width for request in wanted)),
    )
    most = EngineRequest(
        max(DYNAMIC_BATCH, *(request.batch for request in wanted)),
        max(2 * height, *(request.height for request in wanted)),
        max(2 * width, *(request.width for request in wanted)),
    )
    best = EngineRequest(1, height, width)
    low, middle, high = (_dims(manifest, request) for request in (least, best, most))
    return _plan(manifest, names, "dynamic", (low, middle, high))


def _text_encoder_plan(manifest: Manifest, name: str, wanted: Sequence[EngineRequest], dynamic: bool) -> EnginePlan:
    """One engine for all: sizes mean nothing to it, and a prompt may come alone or with its negative."""
    pictures = max(DYNAMIC_BATCH if dynamic else 1, *(request.batch for request in wanted))
    low, middle, high = ({"batch": count} for count in (1, 2, 2 * pictures))
    plan = _plan(manifest, [name], "dynamic", (low, middle, high))
    table = manifest.token_tables[encoder_number(name) or 0]
    shape = (table.rows, table.width)
    (profile,) = plan.profiles
    widened = replace(profile, shapes={**profile.shapes, TABLE_INPUT: (shape, shape, shape)})
    return replace(plan, profiles=(widened,), inputs_from_data={TABLE_INPUT: table.file})


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
    return EnginePlan(f"{_stem(facts)}-{suffix}.plan", facts.file, onnx_sha256(manifest, facts), profiles, {})


def _widened(profile: Profile, other: Profile) -> Profile:
    """A profile from the smaller minimum to the larger maximum of two, tuned for what the first is tuned for."""
    shapes = {
        name: (
            tuple(map(min, least, other.shapes[name][0])), best, tuple(map(max, most, other.shapes[name][2]))
        )
        for name, (least, best, most) in profile.shapes.items()
    }  # fmt: skip
    return replace(profile, shapes=shapes)


def _dims(manifest: Manifest, request: EngineRequest) -> Dims:
    factor = manifest.size.vae_factor
    return {
        "batch": request.batch,
        "h": request.height // factor,
        "w": request.width // factor,
        "height": request.height,
        "width": request.width,
        "steps": table_rows(manifest),
    }


def _shape(axes: Sequence[int | str], dims: Dims) -> Shape:
    return tuple(axis if isinstance(axis, int) else dims[axis] for axis in axes)


def _stem(facts: GraphFacts) -> str:
    return PurePosixPath(facts.file).stem
