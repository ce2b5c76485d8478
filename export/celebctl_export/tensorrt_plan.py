"""The TensorRT engines to build for a bundle and some image sizes. Needs neither TensorRT nor a GPU.

Every size gets an engine of its own, and one more, the dynamic engine, covers the sizes around the native one. Graphs
that share a file (the step with and without guidance) share an engine and its weights, with one profile each. The
autoencoder takes one image at a time, whatever the batch: its tensors are the largest by far.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from celebctl_runtime.backends.base import TABLE_INPUT, encoder_number
from celebctl_runtime.backends.engines import Machine, Profile, Shape, engine_key, onnx_sha256, read_records
from celebctl_runtime.bundle.manifest import Manifest
from celebctl_runtime.errors import UsageError
from celebctl_runtime.request import MAX_SIDE
from celebctl_runtime.sampling.schedule import ScheduleConfig

# Largest shapes of the dynamic engines, which decide about their memory. NVIDIA's demoDiffusion ends at 1360 px too.
DYNAMIC_SCALE, DYNAMIC_MAX_SIDE = 1.3, 1360
# Images at once. In float32, attention has no fused kernel and stores the weights of all pairs of latent pixels.
DYNAMIC_BATCH, DYNAMIC_BATCH_FP32 = 4, 1
DYNAMIC_WINDOWS = 3  # of a prompt, 75 tokens each
MAX_BATCH = 15  # the graphs are exported for a UNet batch of up to 31, two per image with guidance

Dims = Mapping[str, int]  # size of each named axis of a graph


class EngineSize(NamedTuple):
    """A size to optimize for: ``batch`` images of ``height`` x ``width`` pixels at once."""

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> EngineSize:
        """Parse "BxHxW". Raises UsageError.

        Example:
            >>> EngineSize.parse("1x512x768")
            EngineSize(batch=1, height=512, width=768)
        """
        match = re.fullmatch(r"(\d+)[x×](\d+)[x×](\d+)", text.strip().lower())
        if match is None:
            hint = "write BATCHxHEIGHTxWIDTH, such as 1x512x512"
            raise UsageError(f"invalid engine size {text!r}", hint, reason="invalid_engine_size", size=text)
        return cls(*(int(number) for number in match.groups()))


@dataclass(frozen=True)
class EnginePlan:
    """An engine to build. Networks are strongly typed: the precision is that of the ONNX graph.

    Attributes:
        file: Name of the engine.
        onnx: File of the graph in the bundle.
        onnx_sha256: Of the graph and its weights.
        profiles: One per graph of the manifest, in order.
        inputs_from_data: Initializers that become inputs, with the data file they are stored in.
    """

    file: str
    onnx: str
    onnx_sha256: str
    profiles: tuple[Profile, ...]
    inputs_from_data: Mapping[str, str]

    def key(self, machine: Machine) -> str:
        """Name of the engine's folder, see `celebctl_runtime.backends.engines.engine_key`."""
        return engine_key(self.onnx_sha256, self.profiles, machine)


def plan_engines(manifest: Manifest, sizes: Sequence[EngineSize] = (), *, dynamic: bool = True) -> list[EnginePlan]:
    """The engines of a bundle: every graph at each size, and with ``dynamic`` at the sizes around the native one.

    Without sizes: one image of the native size. Raises UsageError for sizes that the model does not support.
    """
    sizes = list(dict.fromkeys(sizes)) or [EngineSize(1, *manifest.size.native)]
    for size in sizes:
        _check(size, manifest)
    files: dict[str, list[str]] = {}
    for name, info in manifest.graphs.items():
        files.setdefault(info.file, []).append(name)
    plans: list[EnginePlan] = []
    for names in files.values():
        if encoder_number(names[0]) is not None:
            plans.append(_text_encoder_plan(manifest, names[0], sizes))
            continue
        single, batch = names[0].startswith("vae_"), DYNAMIC_BATCH if "16" in manifest.dtype else DYNAMIC_BATCH_FP32
        plans += [_static_plan(manifest, names, size._replace(batch=1) if single else size) for size in sizes]
        if dynamic:
            plans.append(_dynamic_plan(manifest, names, 1 if single else batch))
    return list({plan.file: plan for plan in plans}.values())


def describe(manifest: Manifest, plans: Iterable[EnginePlan], engines: Path, machine: Machine | None) -> dict[str, Any]:
    """The build plan as JSON data. ``engines``: the cache folder; ``machine``: None if unknown, as is then the key."""
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


def _check(size: EngineSize, manifest: Manifest) -> None:
    if not 1 <= size.batch <= MAX_BATCH:
        raise UsageError(f"engine size {size}: the batch must be 1 to {MAX_BATCH}", "use a smaller batch", size=size)
    multiple, largest = manifest.size.multiple, min(MAX_SIDE, manifest.size.max_side)
    for side in (size.height, size.width):
        if side % multiple or not multiple <= side <= largest:
            hint = f"use sides that are multiples of {multiple}, from {multiple} to {largest}"
            raise UsageError(f"engine size {size}: this model does not support it", hint, size=size)


def _static_plan(manifest: Manifest, names: Sequence[str], size: EngineSize) -> EnginePlan:
    dims = _dims(manifest, size)
    return _plan(manifest, names, f"b{size.batch}-{size.height}x{size.width}", (dims, dims, dims))


def _dynamic_plan(manifest: Manifest, names: Sequence[str], batch: int) -> EnginePlan:
    """From half to 1.3 times the native sides, prompts of up to three windows; optimized for one image of the native
    size and one window."""
    native, multiple = manifest.size.native, manifest.size.multiple
    smallest = EngineSize(1, *(max(multiple, side // 2 // multiple * multiple) for side in native))
    largest = EngineSize(batch, *(max(side, _largest_side(side) // multiple * multiple) for side in native))
    low, middle, high = (_dims(manifest, size) for size in (smallest, EngineSize(1, *native), largest))
    high["tokens"] *= DYNAMIC_WINDOWS
    return _plan(manifest, names, "dynamic", (low, middle, high))


def _largest_side(native: int) -> int:
    return min(int(DYNAMIC_SCALE * native), DYNAMIC_MAX_SIDE)


def _text_encoder_plan(manifest: Manifest, name: str, sizes: Sequence[EngineSize]) -> EnginePlan:
    """One engine for all sizes: only the batch varies; a prompt comes alone or with its negative prompt."""
    low, middle, high = ({"batch": count} for count in (1, 2, 2 * max(DYNAMIC_BATCH, *(size.batch for size in sizes))))
    plan = _plan(manifest, [name], "dynamic", (low, middle, high))
    table = manifest.token_tables[encoder_number(name) or 0]
    shape = (table.rows, table.width)
    (profile,) = plan.profiles
    with_table = replace(profile, shapes={**profile.shapes, TABLE_INPUT: (shape, shape, shape)})
    return replace(plan, profiles=(with_table,), inputs_from_data={TABLE_INPUT: table.file})


def _plan(manifest: Manifest, names: Sequence[str], suffix: str, dims: tuple[Dims, Dims, Dims]) -> EnginePlan:
    info = manifest.graphs[names[0]]
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
    stem = PurePosixPath(info.file).stem
    return EnginePlan(f"{stem}-{suffix}.plan", info.file, onnx_sha256(manifest, info), profiles, {})


def _dims(manifest: Manifest, size: EngineSize) -> dict[str, int]:
    factor = manifest.size.vae_factor
    return {
        "batch": size.batch,
        "h": size.height // factor,
        "w": size.width // factor,
        "height": size.height,
        "width": size.width,
        "steps": ScheduleConfig.from_dict(manifest.scheduler).num_train_timesteps,
        "tokens": manifest.tokenizer.max_length,
    }


def _shape(axes: Sequence[int | str], dims: Dims) -> Shape:
    return tuple(axis if isinstance(axis, int) else dims[axis] for axis in axes)
