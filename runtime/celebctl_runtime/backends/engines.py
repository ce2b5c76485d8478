"""TensorRT engines in the user's cache folder: which are there, for which machine, and which one fits given inputs.

    <engines>/<key>/step-b1-512x512.plan    a serialized engine
    <engines>/<key>/engine.json             its EngineRecord, written last
    <engines>/timing.cache                  speeds up the next build

Deserializing a plan can run code that is in it. Engines therefore never come from a bundle, which may be a download,
but only from this folder, which its owner alone can enter. The key hashes everything that an engine is bound to, so
bundles with the same graphs share engines and a newly learned person changes none. The folder may be deleted at any
time: ``celebctl export --trt`` builds engines again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from celebctl_runtime.bundle.manifest import GraphInfo, Manifest
from celebctl_runtime.errors import NotFoundError
from celebctl_runtime.files import atomic_write, translate_os_errors

RECORD, TIMING_CACHE = "engine.json", "timing.cache"
_BUILD = "strongly typed, no TF32"  # part of the key: how celebctl_export.to_tensorrt builds

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]  # minimum, optimum, maximum


@dataclass(frozen=True)
class Machine:
    """What an engine is bound to: it runs nowhere else."""

    tensorrt: str
    gpu: str
    compute_capability: str

    def __str__(self) -> str:
        return f"TensorRT {self.tensorrt} on {self.gpu} ({self.compute_capability})"


@dataclass(frozen=True)
class Profile:
    """One optimization profile: the graph of the manifest that it serves, and the range of each input's shape."""

    graph: str
    shapes: Mapping[str, ShapeRange]

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether inputs of these shapes can run in this profile."""
        return shapes.keys() == self.shapes.keys() and all(
            len(shape) == len(self.shapes[name][0])
            and all(
                low <= size <= high
                for low, size, high in zip(self.shapes[name][0], shape, self.shapes[name][2], strict=True)
            )
            for name, shape in shapes.items()
        )

    @property
    def slack(self) -> int:
        """Sum of maximum minus minimum over all axes: 0 for a profile of exactly one set of shapes."""
        return sum(high - low for least, _, most in self.shapes.values() for low, high in zip(least, most, strict=True))


@dataclass(frozen=True)
class EngineRecord:
    """A built engine.

    ``file``: its name in the folder of its key; ``onnx_sha256``: see :func:`onnx_sha256`; ``profiles`` in the engine's
    order; ``seconds`` that building took, 0 for a build that an earlier command did not finish; ``parity``: errors of
    its outputs against ONNX Runtime.
    """

    file: str
    onnx_sha256: str
    profiles: tuple[Profile, ...]
    machine: Machine
    seconds: float = 0.0
    parity: tuple[Mapping[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Name of the engine's folder."""
        return engine_key(self.onnx_sha256, self.profiles, self.machine)

    def write(self, engines: Path) -> None:
        """List the engine, whose file is in place already."""
        atomic_write(engines / self.key / RECORD, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> EngineRecord:
        """Read ``engine.json``. Raises OSError, or ValueError, TypeError or KeyError for other content."""
        data: dict[str, Any] = json.loads(path.read_bytes())
        profiles = tuple(
            Profile(entry["graph"], {name: _range(*shapes) for name, shapes in entry["shapes"].items()})
            for entry in data.pop("profiles")
        )
        machine, parity = Machine(**data.pop("machine")), tuple(data.pop("parity"))
        return cls(**data, profiles=profiles, machine=machine, parity=parity)


def onnx_sha256(manifest: Manifest, graph: GraphInfo) -> str:
    """Hash of a graph and its weights. The token table is not part of it: for an engine it is an input."""
    tables = {table.file for table in manifest.token_tables}
    files = sorted({graph.file, *graph.data} - tables)
    return hashlib.sha256("\n".join(f"{name} {manifest.files[name].sha256}" for name in files).encode()).hexdigest()


def engine_key(onnx_sha256: str, profiles: Iterable[Profile], machine: Machine) -> str:
    """Hash of the graph, the optimization profiles, TensorRT's version, the GPU and the build options."""
    content = [_BUILD, onnx_sha256, [asdict(profile) for profile in profiles], asdict(machine)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _range(least: list[int], best: list[int], most: list[int]) -> ShapeRange:
    return tuple(least), tuple(best), tuple(most)


def make_folder(engines: Path) -> None:
    """Create the cache folder for its owner alone (mode 0700). Raises SetupError."""
    with translate_os_errors(engines):
        engines.mkdir(mode=0o700, parents=True, exist_ok=True)
        engines.chmod(0o700)


def read_records(engines: Path, manifest: Manifest) -> list[EngineRecord]:
    """All engines of a bundle's graphs, for any machine. Unreadable entries count as absent."""
    paths = sorted(engines.glob(f"*/{RECORD}"))
    known = {onnx_sha256(manifest, graph) for graph in manifest.graphs.values()} if paths else set[str]()
    found: list[EngineRecord] = []
    for path in paths:
        try:
            record = EngineRecord.read(path)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if record.onnx_sha256 in known and path.parent.name == record.key and (path.parent / record.file).is_file():
            found.append(record)
    return found


def find_records(engines: Path, manifest: Manifest, machine: Machine) -> list[EngineRecord]:
    """The engines of a bundle's graphs for this machine. Raises NotFoundError, naming the machines that have some."""
    records = read_records(engines, manifest)
    found = [record for record in records if record.machine == machine]
    if not found:
        others = ", ".join(sorted({str(record.machine) for record in records}))
        there = f"; there are engines for {others}" if others else ""
        raise NotFoundError(f"the bundle has no engines for {machine}{there}", "celebctl export --trt builds them")
    return found


def choose(records: Iterable[EngineRecord], graph: str, shapes: Mapping[str, Shape]) -> tuple[EngineRecord, int] | None:
    """The engine and the index of the profile with the narrowest range around these shapes, or None."""
    fitting = [
        (profile.slack, record.file, record, index)
        for record in records
        for index, profile in enumerate(record.profiles)
        if profile.graph == graph and profile.fits(shapes)
    ]
    return min(fitting, key=lambda entry: entry[:2])[2:] if fitting else None
